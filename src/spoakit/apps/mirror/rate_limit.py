"""Limit of the requests a second."""


class RateLimit:
    """Token bucket: `rate` requests a second on average, and a burst of up to one second's worth.

    Args:
        rate: requests a second, above 0.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(rate, 1.0)
        self._tokens = self._burst
        self._filled_at = 0.0

    def allows(self, now: float) -> bool:
        """Return whether one more request may pass at `now`, in seconds on a monotonic clock."""
        tokens = self._tokens + (now - self._filled_at) * self._rate
        self._filled_at = now
        self._tokens = min(tokens, self._burst)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

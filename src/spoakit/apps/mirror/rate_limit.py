"""Taking so many requests a second and no more."""


class RateLimit:
    """A token bucket: `rate` a second on the average, and what a second allows at once.

    Args:
        rate: requests a second, above 0.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(rate, 1.0)
        self._tokens = self._burst
        self._filled_at = 0.0

    def takes(self, now: float) -> bool:
        """Return whether one more may pass at that time, in seconds on a clock that only grows."""
        tokens = self._tokens + (now - self._filled_at) * self._rate
        self._filled_at = now
        self._tokens = min(tokens, self._burst)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

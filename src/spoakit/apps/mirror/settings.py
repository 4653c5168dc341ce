"""What a mirror can be told."""

from dataclasses import dataclass, field

from spoakit.apps.mirror.url import TargetURL
from spoakit.exceptions import ConfigurationError


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """One target, per worker. Times are in seconds, sizes in bytes.

    Attributes:
        url: where the copies go.
        connections: the most connections open at a time, each with one request on its way.
        queue_length: requests that wait for a connection. When there are more, the oldest is
            dropped: the latest traffic is the one worth copying.
        queue_bytes: their size altogether, by the same rule.
        connect_timeout: for resolving the name, connecting and TLS.
        answer_timeout: from sending a request to the end of its answer.
        min_backoff: the pause before the first attempt to reach a target that failed; it doubles
            with each further failure up to `max_backoff`, and chance makes it up to half shorter.
        max_backoff: the longest pause.
    """

    url: TargetURL
    connections: int = 64
    queue_length: int = 65_536
    queue_bytes: int = 32 * 1024 * 1024
    connect_timeout: float = 5.0
    answer_timeout: float = 10.0
    min_backoff: float = 0.1
    max_backoff: float = 10.0

    def __post_init__(self) -> None:
        for name in ("connections", "queue_length", "queue_bytes"):
            _check_positive(name, getattr(self, name))
        for name in ("connect_timeout", "answer_timeout", "min_backoff", "max_backoff"):
            _check_positive(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """The whole mirror.

    Attributes:
        targets: each gets a copy of every request; without one, requests are ACKed and that is all.
        drain: at the stop, the seconds the queues have to be sent.
    """

    targets: tuple[TargetSettings, ...] = field(default=())
    drain: float = 10.0

    def __post_init__(self) -> None:
        if self.drain < 0:
            raise ConfigurationError(f"drain: {self.drain!r} is less than 0")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigurationError(f"{name.replace('_', ' ')}: {value!r} is not above 0")

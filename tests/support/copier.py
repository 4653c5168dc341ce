"""A target of the mirror without an agent: requests are handed to it, and its log is read."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from spoakit.agent.headers import Headers
from spoakit.apps.mirror._request_cy import IncomingRequest
from spoakit.apps.mirror.target import Target
from tests.support.waiting import until

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]


@dataclass
class Copier:
    """A target and its log."""

    target: Target
    log: Path

    def get(self, path: bytes = b"/", method: bytes = b"GET", version: bytes = b"1.1") -> None:
        """Copy a request without a body."""
        self.copy(method, path, b"host: h\r\n\r\n", version=version)

    def copy(
        self,
        method: bytes,
        path: bytes,
        lines: bytes,
        body: bytes = b"",
        version: bytes = b"1.1",
        **more: Any,
    ) -> None:
        """Copy a request."""
        headers = Headers(lines, False)
        self.target.copy(IncomingRequest(method, path, version, headers, body, **more))

    async def answered(self, count: int) -> None:
        """Wait for that many responses."""
        await until(lambda: self.target.counters.responses >= count)

    def lines(self) -> list[str]:
        """Return the access log, without what each line begins with."""
        return [line.partition("] ")[2] for line in self.log.read_text("latin-1").splitlines()]


Copying = Callable[..., Any]

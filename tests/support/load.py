"""Clients that send HAProxy a steady stream of requests, and remember what came of each."""

import threading
from contextlib import closing
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Self

from spoakit.testing.haproxy import HAProxy
from tests.support.programs import ask, connect
from tests.support.waiting import TIMEOUT, wait_until

PAUSE = 0.002
CLIENTS = 2


@dataclass(frozen=True)
class Answered:
    """A request that was answered, with the headers x-value and x-error of the answer."""

    sent_at: float
    seconds: float
    value: str
    error: str

    @property
    def ended_at(self) -> float:
        """When the answer was there."""
        return self.sent_at + self.seconds


class Load:
    """Sends requests over two connections while its block runs, for a minute at most."""

    def __init__(self, haproxy: HAProxy) -> None:
        self.answers: list[Answered] = []
        self._haproxy = haproxy
        self._stop = threading.Event()
        self._failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
        if self._failures:
            raise self._failures[0]

    def wait_for(self, count: int) -> None:
        """Wait until so many more requests have been answered."""
        wanted = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= wanted or bool(self._failures), f"{count} answers")

    def since(self, moment: float) -> list[Answered]:
        """Return what was answered of the requests sent after a moment of `monotonic`."""
        return [answer for answer in self.answers if answer.sent_at > moment]

    def _run(self) -> None:
        end = monotonic() + 60
        try:
            with closing(connect(self._haproxy)) as client:
                while not self._stop.wait(PAUSE) and monotonic() < end:
                    sent_at = monotonic()
                    headers = ask(client)
                    seconds = monotonic() - sent_at
                    value, error = headers["x-value"], headers["x-error"]
                    self.answers.append(Answered(sent_at, seconds, value, error))
        except Exception as error:
            self._failures.append(error)

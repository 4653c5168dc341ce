"""An HTTP/2 connection as a pool sees it: as many places as it may have streams."""

import asyncio
import time
from math import inf
from typing import Final, Protocol

from spoakit.apps.mirror._pool_cy import Pool
from spoakit.apps.mirror._request_cy import Request
from spoakit.apps.mirror.http2 import Http2Answer, Http2Connection, Retry
from spoakit.apps.mirror.metrics import Failure


class Owner(Protocol):
    """Who is told of the connection."""

    @property
    def is_probing(self) -> bool:
        """Whether the target failed, and has not answered since."""

    def on_open(self, connection: "Streams") -> None:
        """Take a new connection."""

    def on_closed(self, connection: "Streams") -> None:
        """Forget it."""

    def on_waiting(self) -> None:
        """See a request wait that was to be sent here, where there is no room any more."""

    def on_failure(
        self, answer: "StreamPlace", request: Request, error: Failure, stale: bool, retry: Retry
    ) -> None:
        """Take note that there will be no answer, and whether the request may be sent again.

        `stale` means that this says nothing of the target.
        """


class StreamPlace:
    """Room for one request on a connection, and what there is of its answer.

    To a pool this is what a connection of HTTP/1.1 is.
    """

    __slots__ = ("_streams", "answer")

    def __init__(self, streams: "Streams") -> None:
        self._streams = streams
        self.answer: Http2Answer | None = None

    def send(self, request: Request) -> None:
        """Send a request as a stream of the connection."""
        self._streams.send(self, request)

    def close(self) -> None:
        """Do nothing: the other streams of the connection are not concerned."""

    @property
    def version(self) -> bytes:
        """The answer's HTTP version."""
        return b"???" if self.answer is None else self.answer.version

    @property
    def status(self) -> int:
        """The answer's status; 0 for none."""
        return 0 if self.answer is None else self.answer.status

    @property
    def first_byte_at(self) -> float:
        """When the answer's first byte came, on ``time.perf_counter()``'s clock."""
        return 0.0 if self.answer is None else self.answer.first_byte_at

    @property
    def received(self) -> int:
        """The size of the answer's body in bytes."""
        return 0 if self.answer is None else self.answer.received

    @property
    def sent_at(self) -> float:
        """When the request was sent, on ``time.perf_counter()``'s clock."""
        return 0.0 if self.answer is None else self.answer.sent_at


class Streams:
    """An HTTP/2 connection whose free streams are places in a pool.

    Args:
        owner: who is told of the connection.
        pool: where its places go.
    """

    def __init__(self, owner: Owner, pool: Pool) -> None:
        self.protocol = Http2Connection(self)
        self.opened_at = self.sent_at = self.idle_since = time.perf_counter()
        self.idle_limit: Final = inf  # HTTP/2 has no Keep-Alive field
        self._owner = owner
        self._pool = pool
        self._has_answered = False
        self._free: set[StreamPlace] = set()
        self._used: dict[Request, StreamPlace] = {}
        self._opened = asyncio.get_running_loop().create_future()

    @property
    def refusal(self) -> str | None:
        """Why the connection ended or ends without an answer; None if there was one."""
        return None if self._has_answered else self.protocol.error or self.protocol.goaway

    @property
    def is_idle(self) -> bool:
        """Whether no answer is awaited."""
        return not self.protocol.in_flight

    async def opened(self, timeout: float) -> str | None:
        """Wait until the peer allows a request; return why that did not happen, if so.

        After `timeout` seconds without it, or when cancelled, the connection is closed.
        """
        try:
            await asyncio.wait((self._opened,), timeout=timeout)
        finally:
            self.protocol.give_up_opening(timeout)
        error: str | None = self._opened.result()
        return error

    def expire(self, now: float, first_byte: float, total: float) -> None:
        """Give up the answers that are overdue; see `Http2Connection.expire`."""
        self.protocol.expire(now, first_byte, total)

    def retire(self) -> None:
        """Take no more requests, and close when the last answer is in."""
        self._forget_places()
        self.protocol.retire()

    def close(self) -> None:
        """Close; requests on their way fail."""
        self.protocol.close()

    def send(self, place: StreamPlace, request: Request) -> None:
        """Send a request in a place; put it back if there is no room any more."""
        self._free.discard(place)
        if not self.protocol.room:
            self._pool.put_back(request)
            self._owner.on_waiting()
            return
        self.sent_at = time.perf_counter()
        self._used[request] = place
        place.answer = None
        self.protocol.send(request)

    # Called by the connection.

    def on_open(self, connection: Http2Connection) -> None:
        """Offer its places."""
        if not self._opened.done():
            self._opened.set_result(None)
        self._owner.on_open(self)
        self._offer()

    def on_answer(
        self, connection: Http2Connection, answer: Http2Answer, request: Request, now: float
    ) -> None:
        """Bring an answer, and send the next request in its place."""
        place = self._used.pop(request)
        place.answer = answer
        self._has_answered = True
        self.idle_since = now
        ready = connection.room > len(self._free)
        following = self._pool.on_answer(place, request, now, ready)
        if following is not None:
            self.send(place, following)
        elif ready:
            self._free.add(place)

    def on_room(self, connection: Http2Connection) -> None:
        """Offer the places that have come up."""
        self._offer()

    def on_failure(
        self,
        connection: Http2Connection,
        answer: Http2Answer,
        request: Request,
        error: Failure,
        retry: Retry,
    ) -> None:
        """Pass on that a request failed."""
        place = self._used.pop(request)
        place.answer = answer
        self._owner.on_failure(place, request, error, retry > Retry.NEVER, retry)

    def on_closed(self, connection: Http2Connection) -> None:
        """Take the places back."""
        if not self._opened.done():
            self._opened.set_result(connection.error or "the connection was closed")
        self._forget_places()
        self._owner.on_closed(self)

    def _offer(self) -> None:
        """Give the pool a place for each stream that may be opened now.

        For a target that failed it is one until there is an answer.
        """
        places = self.protocol.room - len(self._free)
        if self._owner.is_probing and not self._has_answered:
            places = min(places, 1 - len(self._free) - len(self._used))
        for _ in range(places):
            place = StreamPlace(self)
            self._free.add(place)
            self._pool.use(place)

    def _forget_places(self) -> None:
        for place in self._free:
            self._pool.forget(place)
        self._free.clear()

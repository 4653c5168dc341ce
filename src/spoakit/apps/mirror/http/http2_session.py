"""HTTP/2 connection as its pool uses it: one slot for each stream that it may have."""

import asyncio
import time
from math import inf
from typing import Final

from spoakit.apps.mirror._request_cy import OutgoingRequest
from spoakit.apps.mirror.http._queue_cy import RequestQueue, RequestSlot
from spoakit.apps.mirror.http.http2 import Http2Connection
from spoakit.apps.mirror.http.http2_response import Http2Response
from spoakit.apps.mirror.http.interfaces import ConnectionListener
from spoakit.apps.mirror.http.outcome import Outcome


class StreamSlot(RequestSlot):
    """Room for one request on a connection, and what there is of its response.

    To a queue it is what a connection of HTTP/1.1 is.
    """

    def __init__(self, session: "Http2Session") -> None:
        super().__init__()
        self._session = session

    def send(self, request: OutgoingRequest) -> None:
        """Send a request as a stream of the connection."""
        self._session.send(self, request)

    def close(self) -> None:
        """Do nothing: other streams use the connection."""

    def show(self, response: Http2Response) -> None:
        """Be seen as a response."""
        self.version = response.version
        self.status = response.status
        self.received = response.received
        self.sent_at = response.sent_at
        self.first_byte_at = response.first_byte_at


class Http2Session:
    """HTTP/2 connection whose free streams are slots in a queue.

    Args:
        listener: the pool.
        queue: gets the slots.
    """

    def __init__(self, listener: ConnectionListener, queue: RequestQueue) -> None:
        self.protocol = Http2Connection(self)
        self.opened_at = self.idle_since = time.perf_counter()
        self.idle_limit: Final = inf  # HTTP/2 has no Keep-Alive field
        self._listener = listener
        self._queue = queue
        self._has_responded = False
        self._free: set[StreamSlot] = set()
        self._used: dict[OutgoingRequest, StreamSlot] = {}
        self._opened = asyncio.get_running_loop().create_future()

    @property
    def in_flight(self) -> int:
        """The number of requests that wait for their response."""
        return self.protocol.in_flight

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
        """Give up the responses that are overdue; see `Http2Connection.expire`."""
        self.protocol.expire(now, first_byte, total)

    def retire(self) -> None:
        """Accept no more requests, and close when the last response is in."""
        self._remove_slots(len(self._free))
        self.protocol.retire()

    def close(self) -> None:
        """Close; requests in flight fail."""
        self.protocol.close()

    def send(self, slot: StreamSlot, request: OutgoingRequest) -> None:
        """Send a request in a slot; put it back if there is no room any more."""
        self._free.discard(slot)
        if not self.protocol.room:
            self._remove_slots(len(self._free))
            self._queue.put_back(request)
            self._listener.on_waiting()
            return
        self._used[request] = slot
        self.protocol.send(request)

    # Called by the connection.

    def on_open(self) -> None:
        """Offer its slots."""
        if not self._opened.done():
            self._opened.set_result(None)
        self._listener.on_open(self)
        self.on_room()

    def on_response(self, response: Http2Response, now: float) -> None:
        """Pass on a response, and send the next request in its slot."""
        request = response.request
        slot = self._used.pop(request)
        slot.show(response)
        self._has_responded = True
        self.idle_since = now
        is_free = self.protocol.room > len(self._free)
        following = self._queue.on_response(slot, request, now, is_free)
        if following is not None:
            self.send(slot, following)
        elif is_free:
            self._free.add(slot)

    def on_odd(self, text: str) -> None:
        """Pass on that a response is odd."""
        self._listener.on_odd(text)

    def on_room(self) -> None:
        """Have as many free slots in the queue as there may be streams now.

        For a target in trouble it is one until there is a response.
        """
        count = self.protocol.room - len(self._free)
        if self._listener.is_probing and not self._has_responded:
            count = min(count, 1 - len(self._free) - len(self._used))
        if count < 0:
            self._remove_slots(-count)
        for _ in range(count):
            slot = StreamSlot(self)
            self._free.add(slot)
            self._queue.use(slot)

    def on_failure(
        self, response: Http2Response, request: OutgoingRequest, outcome: Outcome
    ) -> None:
        """Pass on that a request failed."""
        slot = self._used.pop(request)
        slot.show(response)
        if outcome.is_response:
            self._has_responded = True
            self.idle_since = time.perf_counter()
        self._listener.on_failure(slot, request, outcome)

    def on_closed(self, outcome: Outcome | None) -> None:
        """Take the slots back."""
        if not self._opened.done():
            self._opened.set_result(outcome.text if outcome else "the connection was closed")
            outcome = None  # whoever waits in `opened` reports it
        self._remove_slots(len(self._free))
        self._listener.on_closed(self, None if self._has_responded else outcome)

    def _remove_slots(self, count: int) -> None:
        # Those in use are in no queue, and end with their responses.
        for _ in range(min(count, len(self._free))):
            self._queue.forget(self._free.pop())

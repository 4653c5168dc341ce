"""HTTP/2 session: makes each allowed stream of a connection a slot in the queue."""

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
    """Slot for one request on a shared connection, and its response.

    The queue uses it like an HTTP/1.1 connection.
    """

    def __init__(self, session: "Http2Session") -> None:
        super().__init__()
        self._session = session

    def send(self, request: OutgoingRequest) -> None:
        """Send a request as a stream of the connection."""
        self._session.send(self, request)

    def close(self) -> None:
        """Do nothing: other streams share the connection."""

    def show(self, response: Http2Response) -> None:
        """Copy the figures of a response, for the access log."""
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
        """The number of requests in flight."""
        return self.protocol.in_flight

    async def opened(self, timeout: float) -> str | None:
        """Wait until the peer allows a request; return the error, or "".

        After `timeout` seconds, or when cancelled, the connection is closed.
        """
        try:
            await asyncio.wait((self._opened,), timeout=timeout)
        finally:
            self.protocol.give_up_opening(timeout)
        error: str | None = self._opened.result()
        return error

    def expire(self, now: float, first_byte: float, total: float) -> None:
        """Fail the requests whose response is overdue; see `Http2Connection.expire`."""
        self.protocol.expire(now, first_byte, total)

    def retire(self) -> None:
        """Accept no more requests, and close after the last response."""
        self._remove_slots(len(self._free))
        self.protocol.retire()

    def close(self) -> None:
        """Close; requests in flight fail."""
        self.protocol.close()

    def send(self, slot: StreamSlot, request: OutgoingRequest) -> None:
        """Send a request in a slot; queue it again if there is no more room."""
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
        """Add the connection's slots to the queue."""
        if not self._opened.done():
            self._opened.set_result(None)
        self._listener.on_open(self)
        self.on_room()

    def on_response(self, response: Http2Response, now: float) -> None:
        """Report a response, and send the next request in its slot."""
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
        """Report an odd response."""
        self._listener.on_odd(text)

    def on_room(self) -> None:
        """Adjust the number of free slots in the queue to the streams allowed now.

        For a target in trouble that is one stream, until there is a response.
        """
        count = self.protocol.room - len(self._free)
        if self._listener.is_probing and not self._has_responded:
            count = min(count, 1 - len(self._free) - len(self._used))
        if count < 0:
            self._remove_slots(-count)
        for _ in range(count):
            slot = StreamSlot(self)
            self._free.add(slot)
            self._queue.add_slot(slot)

    def on_failure(
        self, response: Http2Response, request: OutgoingRequest, outcome: Outcome
    ) -> None:
        """Report a failed request."""
        slot = self._used.pop(request)
        slot.show(response)
        if outcome.is_response:
            self._has_responded = True
            self.idle_since = time.perf_counter()
        self._listener.on_failure(slot, request, outcome)

    def on_closed(self, outcome: Outcome | None) -> None:
        """Remove the slots from the queue."""
        if not self._opened.done():
            self._opened.set_result(outcome.text if outcome else "the connection was closed")
            outcome = None  # the caller of `opened` reports it
        self._remove_slots(len(self._free))
        self._listener.on_closed(self, None if self._has_responded else outcome)

    def _remove_slots(self, count: int) -> None:
        # Slots in use are not in the queue, and end with their responses.
        for _ in range(min(count, len(self._free))):
            self._queue.remove_slot(self._free.pop())

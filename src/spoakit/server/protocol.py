"""One connection to an engine: asyncio's side of `spoakit.spop.AgentConnection`.

All frames of a read are handled before anything is written, and their ACKs leave in one
write: a system call costs more than handling a frame. Frames whose handlers take time
wait here; when as many wait as may, the connection is not read until some are answered.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from spoakit.agent._dispatch_cy import MAX_OUTGOING
from spoakit.agent.suspension import SuspendedFrame
from spoakit.exceptions import InputOutputError, ProtocolError, StatusCode, TimedOutError
from spoakit.server._fast_path_cy import FastPathProtocol
from spoakit.server.server_state import ServerState
from spoakit.spop import (
    Aborted,
    Action,
    AgentConnection,
    Disconnected,
    Event,
    Failed,
    HealthChecked,
    Notify,
    Opened,
    Skipped,
    append_ack,
    decode_messages,
)

logger = logging.getLogger("spoakit.server")

# After our DISCONNECT the engine's end is read and thrown away for so long: closing with
# input unread would reset the connection, and the engine might never see the reason.
LINGER: Final = 1.0

# What frames that wait may hold, in bytes; with more, the connection is not read.
MAX_WAITING: Final = 4 * 1024 * 1024
# After a read of so many bytes it is the others' turn. uvloop reads 250 KiB at once, and reads on
# up to 32 times while there is more, before it looks at another connection.
_TURN: Final = 128 * 1024


class SpopProtocol(FastPathProtocol, asyncio.Protocol):
    """A connection to an engine.

    Args:
        state: what all connections of the worker share.

    Attributes:
        outgoing, max_frame_size, peer, engine_id, received: see `EngineLink`.
        deadline: when the HELLO must have come, on the loop's clock.
    """

    def __init__(self, state: ServerState) -> None:
        super().__init__(state.dispatcher, state.limits.frame_size_cap, _TURN - 1)
        self.peer = "?"
        self.engine_id: str | None = None
        self.deadline = self.received + state.limits.hello_timeout
        self._state = state
        self._dispatcher = state.dispatcher
        self._dispatch = state.dispatcher.dispatch
        self._in_flight = state.limits.in_flight
        self._debug = state.debug
        self._frames_left = state.limits.frames or None
        # Frames are logged or counted one by one.
        self._is_watched = state.debug or state.limits.frames > 0
        self._connection = AgentConnection(state.agent_settings)
        self.outgoing = self._connection.outgoing
        self.max_frame_size = self._connection.max_frame_size
        self._frames: set[SuspendedFrame] = set()
        self._waiting_size = 0
        self._backlog: deque[Event] = deque()
        self._farewell: tuple[int, str] | None = None
        self._flushing = False
        self._opened = False
        self._write_paused = False
        self._lingering: asyncio.TimerHandle | None = None

    # --- what asyncio calls ------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the engine's HELLO."""
        super().connection_made(transport)
        self._transport: asyncio.Transport = transport
        self.peer = _peer_name(transport)
        self._connection.refuse_health_checks = self._state.refuses_health_checks
        self._state.opened(self)

    def receive(self, data: bytes) -> None:
        """Handle all frames of a read, and write what is due at once."""
        self._connection.receive_data(data)
        events = self._connection.events_received()
        if self._frames_left is not None:
            frames = sum(type(event) is Notify for event in events)
            self._frames_left = max(0, self._frames_left - frames)
        self.go_on(events)
        if len(data) >= _TURN and not self._transport.is_closing():
            self._transport.pause_reading()
            self._flush_soon()

    def go_on(self, rest: Sequence[Event]) -> None:
        """Handle what else was read, and write what is due at once."""
        if self._backlog:
            self._backlog.extend(rest)
        elif rest:
            self._handle(rest)
            if self._backlog and not self._write_paused:
                self._state.held_back()
        if self._frames_left == 0 and self._farewell is None:
            self._end_service()
        if self.outgoing and not self._transport.is_closing():
            self._transport.write(self._connection.data_to_send())
        self.is_clear = self._is_between_frames()

    def refuse(self, error: ProtocolError) -> None:
        """Send a DISCONNECT with the error, and close."""
        self._state.failed(self.peer, error)
        for frame in tuple(self._frames):
            frame.cancel()
        self._frames.clear()
        self._waiting_size = 0
        self._backlog.clear()
        self._say_farewell(error.status_code, str(error))

    def _is_between_frames(self) -> bool:
        """Return whether the next read may begin with a frame, and needs not wait or be watched."""
        hindered = self._frames or self._backlog or self._write_paused or self._is_watched
        return self._connection.is_between_frames and not hindered

    def eof_received(self) -> bool:
        """Stay half open as long as ACKs are owed, which TLS knows nothing of."""
        self._connection.receive_eof()
        for event in self._connection.events_received():
            if isinstance(event, Failed):
                self.refuse(InputOutputError(str(event.error)))
        owes = bool(self._frames or self._backlog)
        return owes and self._transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what nobody waits for any more."""
        logger.debug("connection from %s closed%s", self.peer, f": {exc}" if exc else "")
        if self._lingering is not None:
            self._lingering.cancel()
        self._opened = True
        # The state may remember this object for a while; it is not to hold what came in part.
        self._connection.receive_eof()
        self._backlog.clear()
        for frame in tuple(self._frames):
            frame.cancel()
        self._frames.clear()
        self._waiting_size = 0
        self._state.closed(self)

    def pause_writing(self) -> None:
        """Read no more while the engine does not read our ACKs."""
        self._write_paused = True
        self.is_clear = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._write_paused = False
        self._flush_soon()

    # --- what waiting frames call ------------------------------------------------------

    def wait(self, frame: SuspendedFrame) -> None:
        """Keep a frame in mind until `finish`."""
        self._frames.add(frame)
        self.is_clear = False
        self._waiting_size += frame.size

    def finish(self, frame: SuspendedFrame, actions: list[Action]) -> None:
        """Send the ACK of a frame that had to wait, with those of others that are done."""
        self._forget(frame)
        if not append_ack(self.outgoing, frame.notify.ids, actions, self.max_frame_size):
            self._dispatcher.oversized_ack(self)
        self._flush_soon()

    def fail(self, frame: SuspendedFrame, error: ProtocolError) -> None:
        """End the connection, because a frame that waited turned out broken."""
        self._forget(frame)
        self.refuse(error)
        self._flush_soon()

    def _forget(self, frame: SuspendedFrame) -> None:
        if frame in self._frames:
            self._frames.remove(frame)
            self._waiting_size -= frame.size

    # --- what ServerState and Server call ----------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the HELLO has come, or is not awaited any more."""
        return self._opened

    @property
    def frames_in_flight(self) -> int:
        """How many frames wait for their handlers."""
        return len(self._frames)

    def expire(self) -> None:
        """End a connection whose HELLO did not come in time."""
        self.refuse(TimedOutError(f"no HELLO within {self._state.limits.hello_timeout:g} s"))

    def refuse_health_checks(self) -> None:
        """Answer a health check with a DISCONNECT from now on."""
        self._connection.refuse_health_checks = True

    def is_quiet(self, since: float) -> bool:
        """Whether nothing is owed to the engine, and nothing has come since then."""
        return not self._frames and not self._backlog and self.received <= since

    def leave(self) -> None:
        """Tell the engine that the agent leaves, and close."""
        if self._farewell is None:
            self._say_farewell(StatusCode.NORMAL, "the agent is stopping")

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # --- frames ------------------------------------------------------------------------

    def _handle(self, events: Sequence[Event]) -> None:
        """Handle events in their order; what must wait goes into the backlog."""
        if self._debug:
            self._log_frames(events)
        index, count = 0, len(events)
        try:
            while index < count:
                if self._write_paused or (self._frames and self._is_full()):
                    self._backlog.extend(events[index:])
                    self._transport.pause_reading()
                    return
                index = self._dispatch(events, index, self)
                if index == count:
                    return
                event = events[index]
                if type(event) is not Notify:
                    index += 1
                    self._handle_other(event)
                elif len(self.outgoing) > MAX_OUTGOING:
                    self._write_outgoing()
        except ProtocolError as error:
            self.refuse(error)

    def _is_full(self) -> bool:
        """Return whether as many frames wait as may."""
        return len(self._frames) >= self._in_flight or self._waiting_size > MAX_WAITING

    def _handle_other(self, event: Event) -> None:
        match event:
            case Opened(engine, agent):
                self._opened = True
                self.engine_id = engine.engine_id
                self.max_frame_size = agent.max_frame_size
                logger.debug("HELLO from %s: %s; answered %s", self.peer, engine, agent)
            case HealthChecked():
                self._state.health_checked()
                self._opened = True
                self._close()
            case Disconnected(status_code, message):
                self._state.disconnected(self.peer, status_code, message)
                self._say_farewell(status_code, message)
            case Failed(error):
                self.refuse(error)
            case Aborted():
                logger.debug("a NOTIFY in fragments from %s was aborted", self.peer)
            case Skipped(kind):
                logger.debug("a frame of unknown type %d from %s was skipped", kind, self.peer)

    def _flush_soon(self) -> None:
        """Write once the callbacks that are due have run: several frames may be done by then."""
        if not self._flushing:
            self._flushing = True
            self._state.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._backlog and not self._write_paused:
            events = list(self._backlog)
            self._backlog.clear()
            self._handle(events)
        if self._farewell is not None and not self._frames and not self._backlog:
            self._close()
        if self.outgoing:
            self._write_outgoing()
        ends_service = self._frames_left == 0 and self._lingering is None
        must_wait = self._backlog or self._write_paused or ends_service
        if not must_wait and not self._transport.is_closing():
            self._transport.resume_reading()
        owes_nothing = not self._frames and not self._backlog
        if self._connection.is_closing and owes_nothing and self._lingering is None:
            self._transport.close()
        self.is_clear = self._is_between_frames()

    def _write_outgoing(self) -> None:
        data = self._connection.data_to_send()
        if not self._transport.is_closing():
            self._transport.write(data)

    # --- the end -----------------------------------------------------------------------

    def _end_service(self) -> None:
        """Leave, because the connection has had as many frames as it may.

        All whole frames of the last read are answered, those over the limit too: to the engine a
        frame without an ACK is an error. None is read after them, or frames that take long might
        follow each other without end.
        """
        self._transport.pause_reading()
        frames = self._state.limits.frames
        self._say_farewell(StatusCode.NORMAL, f"the connection has had its {frames} frames")

    def _say_farewell(self, status_code: int, message: str) -> None:
        """Send a DISCONNECT once all that is owed has been sent, and close."""
        self._farewell = status_code, message
        if not self._frames and not self._backlog:
            self._close()

    def _close(self) -> None:
        """Write what is left, stop writing, and give the engine a moment to close."""
        self._opened = True
        self.is_clear = False
        if self._lingering is not None or self._transport.is_closing():
            return
        if self._farewell is not None:
            self._connection.send_disconnect(*self._farewell)
        self._transport.write(self._connection.data_to_send())
        if not self._transport.can_write_eof():
            self._transport.close()  # TLS waits for the engine's goodbye by itself, LINGER at most
            return
        # asyncio raises where the engine has gone in the meantime.
        with suppress(OSError):
            self._transport.write_eof()
        self._transport.resume_reading()
        self._lingering = self._state.loop.call_later(LINGER, self._transport.abort)

    def _log_frames(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Notify):
                # Dispatching says what is wrong with a frame that cannot be read.
                with suppress(ProtocolError):
                    logger.debug("%r from %s: %s", event, self.peer, decode_messages(event))


def _peer_name(transport: asyncio.BaseTransport) -> str:
    address = transport.get_extra_info("peername")
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    family = getattr(transport.get_extra_info("socket"), "family", None)
    return "a Unix socket" if family == socket.AF_UNIX else "an unknown address"

"""One connection to an engine: asyncio's side of `spoakit.spop.AgentConnection`.

All frames of a read are handled before anything is written, and their ACKs leave in one
write: a system call costs more than handling a frame. Frames whose handlers take time are in
flight; when as many are as may be, the connection is not read until some are acknowledged.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from math import inf
from random import uniform
from typing import Any, Final

from spoakit.agent._dispatch_cy import MAX_OUTGOING
from spoakit.agent.interfaces import PendingFrame
from spoakit.exceptions import InputOutputError, ProtocolError, StatusCode, TimedOutError
from spoakit.server._fast_path_cy import FastPathProtocol
from spoakit.server.frame_log import describe_notify, describe_outgoing
from spoakit.server.server_state import ServerState
from spoakit.spop import (
    Aborted,
    AgentConnection,
    Disconnected,
    Event,
    Failed,
    HealthChecked,
    Notify,
    Opened,
    Skipped,
)

logger = logging.getLogger("spoakit.server")

# After our DISCONNECT the engine's end is read and thrown away for this long: closing with
# input unread would reset the connection, and the engine might never see the reason.
LINGER: Final = 1.0

# After a read of this many bytes it is the others' turn. uvloop reads 250 KiB at once, and reads
# on up to 32 times while there is more, before it looks at another connection.
_TURN: Final = 128 * 1024


class Phase(IntEnum):
    """Phase of a connection; each leads to a later one only."""

    HELLO = 0
    """The engine's HELLO is awaited."""
    OPEN = 1
    """Frames are read and handled."""
    DRAINING = 2
    """Nothing more is read. What was received is acknowledged, then the connection is closed."""
    CLOSED = 3
    """Nothing more is written."""


# In Python 3.11 looking up a member of an Enum costs a call.
HELLO, OPEN, DRAINING, CLOSED = Phase


class SpopProtocol(FastPathProtocol, asyncio.Protocol):
    """A connection to an engine.

    Args:
        state: shared by all connections of the worker.
        peer: the engine's address, for logs and for `Context`.

    Attributes:
        peer, engine_id: see `EngineLink`.
        deadline: when the HELLO must have come, on the loop's clock.
        retire_at: when it has reached its age, on the same clock.
        phase: see `Phase`; changed here alone.
    """

    def __init__(self, state: ServerState, peer: str) -> None:
        self._connection = AgentConnection(state.agent_settings)
        super().__init__(
            state.dispatcher,
            state.limits.frame_size_cap,
            _TURN - 1,
            state.limits.in_flight,
            self._connection.outgoing,
        )
        self.peer = peer
        self.engine_id: str | None = None
        self.deadline = self.received + state.limits.hello_timeout
        age = state.limits.connection_age
        self.retire_at = self.received + age * uniform(0.9, 1.1) if age else inf
        self.phase = HELLO
        self._state = state
        self._dispatch = state.dispatcher.dispatch
        self._debug = state.debug
        self._frames_left = state.limits.frames or None
        # Frames are logged or counted one by one.
        self._is_watched = state.debug or state.limits.frames > 0
        self._reason: tuple[int, str] | None = None
        self._is_write_paused = False
        self._is_half_closed = False
        self._has_engine_left = False
        self._linger_handle: asyncio.TimerHandle | None = None

    # --- called by asyncio -------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the engine's HELLO."""
        super().connection_made(transport)
        self._transport: asyncio.Transport = transport
        self._connection.refuse_health_checks = self._state.refuses_health_checks
        self._state.opened(self)

    def receive(self, data: bytes) -> None:
        """Handle all frames of a read, and write what is due at once."""
        if self.phase in (HELLO, OPEN):
            self._connection.receive_data(data)
            events = self._connection.events_received()
            if self._frames_left is not None:
                frames = sum(type(event) is Notify for event in events)
                self._frames_left = max(0, self._frames_left - frames)
            self.handle(events)
        if len(data) >= _TURN and not self._transport.is_closing():
            self._transport.pause_reading()
            self.flush_soon()

    def eof_received(self) -> bool:
        """Keep the write side open while ACKs are pending. TLS has no half-close."""
        self._is_half_closed = True
        self._connection.receive_eof()
        self._enter(DRAINING)
        # A frame that is cut short is not the engine's mistake but its connection's.
        self.handle(
            [
                Failed(InputOutputError(str(event.error))) if isinstance(event, Failed) else event
                for event in self._connection.events_received()
            ]
        )
        return self.phase is DRAINING and self._transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the handlers that are still running, and hold nothing."""
        if self._debug:
            logger.debug("connection from %s closed%s", self.peer, f": {exc}" if exc else "")
        self._enter(CLOSED)
        handles: tuple[Any, ...] = self._linger_handle, self.flush_handle
        for handle in handles:
            if handle is not None:
                handle.cancel()
        # The state may remember this object for a while; it is not to hold what came in part.
        self._connection.receive_eof()
        self.backlog.cancel()
        self._state.closed(self)

    def pause_writing(self) -> None:
        """Read no more while the engine does not read our ACKs."""
        self._is_write_paused = self.is_halted = True
        self._transport.pause_reading()
        self._set_fast_path()

    def resume_writing(self) -> None:
        """Handle what waits, and read on."""
        self._is_write_paused = False
        self.is_halted = self._reason is not None
        self.flush_soon()

    # --- called by the fast path -------------------------------------------------------

    def handle(self, events: Sequence[Event]) -> None:
        """Handle events after those that wait, and write what is due at once."""
        if self.backlog.events:
            self.backlog.events.extend(events)
        elif events:
            self._handle_events(events)
            if self.backlog.events and not self._is_write_paused:
                self._state.backpressure()
        self._settle()

    def refuse(self, error: ProtocolError) -> None:
        """End the connection for a violation: nothing more is handled."""
        self._violate(error)
        self._settle()

    # --- called by suspended frames ----------------------------------------------------

    def close_with_error(self, frame: PendingFrame, error: ProtocolError) -> None:
        """End the connection, because a frame in flight cannot be read to its end."""
        self.backlog.discard(frame)
        self._violate(error)
        self.flush_soon()

    # --- called by ServerState and Server ----------------------------------------------

    @property
    def done(self) -> bool:
        """True once the HELLO has come, or is not awaited any more."""
        return self.phase is not HELLO

    @property
    def frames_in_flight(self) -> int:
        """Number of frames that wait for their handlers."""
        return len(self.backlog)

    def expire(self) -> None:
        """End a connection whose HELLO did not come in time."""
        self.refuse(TimedOutError(f"no HELLO within {self._state.limits.hello_timeout:g} s"))

    def refuse_health_checks(self) -> None:
        """Answer a health check with a DISCONNECT from now on."""
        self._connection.refuse_health_checks = True

    def is_quiet(self, since: float) -> bool:
        """Return whether no ACK is pending, and nothing has been received since then."""
        return self.backlog.is_empty and self.received <= since

    def leave(self, reason: str) -> None:
        """Send a DISCONNECT with status 0 and a reason, and close."""
        self._disconnect(StatusCode.NORMAL, reason)
        self._settle()

    def abort(self) -> None:
        """Close at once."""
        self._enter(CLOSED)
        self._transport.abort()

    # --- frames ------------------------------------------------------------------------

    def _handle_events(self, events: Sequence[Event]) -> None:
        """Handle events in their order; those that must wait go into the backlog."""
        if self._debug:
            self._log_frames(events)
        index, count = 0, len(events)
        try:
            # With a reason to disconnect nothing more is handled.
            while index < count and self._reason is None:
                if not self.accepts_frames:
                    self.backlog.events.extend(events[index:])
                    self._transport.pause_reading()
                    return
                event = events[index]
                if type(event) is Notify:
                    index = self._dispatch(events, index, self)
                    if len(self.outgoing) > MAX_OUTGOING:
                        self._write_outgoing()
                else:
                    index += 1
                    self._handle_other(event)
        except ProtocolError as error:
            self._violate(error)

    def _handle_other(self, event: Event) -> None:
        match event:
            case Opened(engine, agent):
                self.engine_id = engine.engine_id
                self.max_frame_size = agent.max_frame_size
                self._enter(OPEN)
                if self._debug:
                    logger.debug("from %s: HELLO %s; agreed: %s", self.peer, engine, agent)
            case HealthChecked():
                self._state.health_checked()
                logger.debug("from %s: a health check", self.peer)
                self._has_engine_left = True
                self._enter(DRAINING)
            case Disconnected(status_code, message):
                self._has_engine_left = True
                if self._debug:
                    logger.debug(
                        "from %s: HAPROXY-DISCONNECT with status %d: %s",
                        self.peer,
                        status_code,
                        message,
                    )
                self._state.disconnected(self.peer, status_code, message)
                self._disconnect(status_code, message)
            case Failed(error):
                self._violate(error)
            case Aborted():
                logger.debug("a NOTIFY in fragments from %s was aborted", self.peer)
            case Skipped(kind):
                logger.debug("a frame of unknown type %d from %s was skipped", kind, self.peer)

    def _log_frames(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Notify):
                # Dispatching says what is wrong with a frame that cannot be read.
                with suppress(ProtocolError):
                    notify = describe_notify(event, self._state.limits.messages)
                    logger.debug("from %s: %s", self.peer, notify)

    # --- phases ------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        """Change the phase, unless a later one has been reached."""
        if phase > self.phase:
            self.phase = phase
            self.is_fast_path_open = False  # until `_settle` finds that it may be open

    def _set_fast_path(self) -> None:
        """Open the fast path if the next read may be handled at once, or else shut it."""
        self.is_fast_path_open = (
            self.phase is OPEN
            and self.backlog.is_empty
            and self._connection.is_between_frames
            and not self._is_write_paused
            and not self._is_watched
        )

    def _violate(self, error: ProtocolError) -> None:
        """Count and log a violation by the engine, and disconnect for it.

        Frames in flight are cancelled, unless the engine has only been cut off.
        """
        if self._reason is None and self.phase is not CLOSED:
            self._state.failed(self.peer, error)
            if not isinstance(error, InputOutputError):
                self.backlog.cancel()
            self._disconnect(error.status_code, str(error))

    def _disconnect(self, status_code: int, message: str) -> None:
        """Have a DISCONNECT sent behind the pending ACKs; of several reasons the first is sent.

        Events that wait came after the reason, and are dropped. Frames in flight came before it.
        """
        if self._reason is None:
            self._reason = status_code, message
            self.is_halted = True
            self.backlog.pop_events()
            self._enter(DRAINING)

    def _settle(self) -> None:
        """Write what is due, and close where nothing is pending any more."""
        if self._frames_left == 0 and not self.backlog.events:
            # All frames of the last read are acknowledged, those over the limit too: to the engine
            # a frame without an ACK is an error.
            frames = self._state.limits.frames
            self._disconnect(StatusCode.NORMAL, f"the connection has had its {frames} frames")
        if self.phase is DRAINING and self.backlog.is_empty:
            self._close()
        elif self.outgoing:
            self._write_outgoing()
        self._set_fast_path()

    def flush_soon(self) -> None:
        """Write once the callbacks that are due have run: several frames may be done by then."""
        if self.flush_handle is None:
            self.flush_handle = self._state.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.flush_handle = None
        if self.backlog.events and not self._is_write_paused:
            self._handle_events(self.backlog.pop_events())
        self._settle()
        self._resume_reading()

    def _resume_reading(self) -> None:
        """Read on, if neither events wait nor the engine's end has ended."""
        must_wait = self.backlog.events or self._is_write_paused or self._is_half_closed
        if not must_wait and not self._transport.is_closing():
            self._transport.resume_reading()

    def _write_outgoing(self) -> None:
        data = self._connection.data_to_send()
        if self._debug:
            for frame in describe_outgoing(data):
                logger.debug("to %s: %s", self.peer, frame)
        if self.phase is not CLOSED and not self._transport.is_closing():
            self.sent_bytes += len(data)
            self._transport.write(data)

    def _close(self) -> None:
        """Write what is left, and close: by half, so that the engine can read the reason."""
        if self._reason is not None:
            self._connection.send_disconnect(*self._reason)
        if self.outgoing:
            self._write_outgoing()
        self._enter(CLOSED)
        if self._transport.is_closing():
            return
        if self._is_half_closed or not self._transport.can_write_eof():
            # TLS waits for the engine's end by itself, LINGER at most.
            self._transport.close()
            return
        if self._has_engine_left:
            # It has sent its last frame, so that nothing is left unread.
            self._transport.close()
            if self._transport.get_write_buffer_size() == 0:
                return  # closed at once
        else:
            # asyncio raises where the engine has gone in the meantime.
            with suppress(OSError):
                self._transport.write_eof()
            self._transport.resume_reading()
        self._linger_handle = self._state.loop.call_later(LINGER, self._transport.abort)

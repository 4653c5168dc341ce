"""Connection to an engine: the asyncio adapter of `spoakit.spop.AgentConnection`.

All frames of a read are handled before their ACKs leave in one write, because a system call costs
more than handling a frame. Frames whose handlers wait are in flight. While the limit on frames in
flight is reached, the connection is not read.
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

# Seconds in which input is read and discarded after our DISCONNECT. Closing with unread input would
# reset the connection, and the engine might never read the DISCONNECT.
LINGER: Final = 1.0

# Bytes of a read after which other connections get their turn. uvloop reads 250 KiB at a time, up
# to 32 times in a row, before it serves another connection.
_TURN: Final = 128 * 1024


class Phase(IntEnum):
    """Phase of a connection; it only moves on to a later one."""

    HELLO = 0
    """Waiting for the engine's HELLO."""
    OPEN = 1
    """Reading and handling frames."""
    DRAINING = 2
    """Not reading any more. Received frames are acknowledged, then the connection is closed."""
    CLOSED = 3
    """Not writing any more."""


# Python 3.11 makes a call for each access to an Enum's member.
HELLO, OPEN, DRAINING, CLOSED = Phase


class SpopProtocol(FastPathProtocol, asyncio.Protocol):
    """Connection to an engine.

    Args:
        state: the state that all connections of the worker share.
        peer: the engine's address, for logs and for `Context`.

    Attributes:
        peer, engine_id: see `EngineLink`.
        deadline: the time by which the HELLO must arrive, on the loop's clock.
        retire_at: the time at which it reaches its maximum age, on the same clock.
        phase: see `Phase`; only this class changes it.
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
        # The fast path neither logs nor counts single frames.
        self._is_watched = state.debug or state.limits.frames > 0
        self._reason: tuple[int, str] | None = None
        self._is_write_paused = False
        self._is_half_closed = False
        self._has_engine_left = False
        self._linger_handle: asyncio.TimerHandle | None = None

    # --- called by asyncio -------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Wait for the engine's HELLO."""
        super().connection_made(transport)
        self._transport: asyncio.Transport = transport
        self._connection.refuse_health_checks = self._state.refuses_health_checks
        self._state.opened(self)

    def receive(self, data: bytes) -> None:
        """Handle a read that the fast path has passed on, and write ACKs at once."""
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
        # A frame that is cut short is an error of the connection, not a violation by the engine.
        self.handle(
            [
                Failed(InputOutputError(str(event.error))) if isinstance(event, Failed) else event
                for event in self._connection.events_received()
            ]
        )
        return self.phase is DRAINING and self._transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel running handlers, and free everything."""
        if self._debug:
            logger.debug("connection from %s closed%s", self.peer, f": {exc}" if exc else "")
        self._enter(CLOSED)
        handles: tuple[Any, ...] = self._linger_handle, self.flush_handle
        for handle in handles:
            if handle is not None:
                handle.cancel()
        # `Deadlines` may keep this object for a while, so incomplete frames are dropped.
        self._connection.receive_eof()
        self.backlog.cancel()
        self._state.closed(self)

    def pause_writing(self) -> None:
        """Stop reading while the engine does not read our ACKs."""
        self._is_write_paused = self.is_halted = True
        self._transport.pause_reading()
        self._set_fast_path()

    def resume_writing(self) -> None:
        """Handle events that wait, and resume reading."""
        self._is_write_paused = False
        self.is_halted = self._reason is not None
        self.flush_soon()

    # --- called by the fast path -------------------------------------------------------

    def handle(self, events: Sequence[Event]) -> None:
        """Handle events, after events that wait, and write ACKs at once."""
        if self.backlog.events:
            self.backlog.events.extend(events)
        elif events:
            self._handle_events(events)
            if self.backlog.events and not self._is_write_paused:
                self._state.backpressure()
        self._settle()

    def refuse(self, error: ProtocolError) -> None:
        """End the connection because of a violation; no further event is handled."""
        self._violate(error)
        self._settle()

    # --- called by suspended frames ----------------------------------------------------

    def close_with_error(self, frame: PendingFrame, error: ProtocolError) -> None:
        """End the connection, because a message of a suspended frame is malformed."""
        self.backlog.discard(frame)
        self._violate(error)
        self.flush_soon()

    # --- called by ServerState and Server ----------------------------------------------

    @property
    def done(self) -> bool:
        """True once the HELLO has arrived, or the connection has ended."""
        return self.phase is not HELLO

    @property
    def frames_in_flight(self) -> int:
        """Number of frames that wait for their handlers."""
        return len(self.backlog)

    def expire(self) -> None:
        """End the connection, whose HELLO did not arrive in time."""
        self.refuse(TimedOutError(f"no HELLO within {self._state.limits.hello_timeout:g} s"))

    def refuse_health_checks(self) -> None:
        """Answer a health check with a DISCONNECT from now on."""
        self._connection.refuse_health_checks = True

    def is_quiet(self, since: float) -> bool:
        """Return whether no ACK is pending, and nothing has been received after a time."""
        return self.backlog.is_empty and self.received <= since

    def leave(self, reason: str) -> None:
        """Send a DISCONNECT with status 0 after the pending ACKs, and close."""
        self._disconnect(StatusCode.NORMAL, reason)
        self._settle()

    def abort(self) -> None:
        """Close at once, without a DISCONNECT."""
        self._enter(CLOSED)
        self._transport.abort()

    # --- frames ------------------------------------------------------------------------

    def _handle_events(self, events: Sequence[Event]) -> None:
        """Handle events in order; events that must wait go to the backlog."""
        if self._debug:
            self._log_frames(events)
        index, count = 0, len(events)
        try:
            # Once there is a reason to disconnect, no further event is handled.
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
                logger.debug("from %s: health check", self.peer)
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
                logger.debug("from %s: aborted a fragmented NOTIFY", self.peer)
            case Skipped(kind):
                logger.debug("from %s: skipped a frame of unknown type %d", self.peer, kind)

    def _log_frames(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Notify):
                # Dispatching reports the error of a malformed frame.
                with suppress(ProtocolError):
                    notify = describe_notify(event, self._state.limits.messages)
                    logger.debug("from %s: %s", self.peer, notify)

    # --- phases ------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        """Change the phase, unless a later one has been reached."""
        if phase > self.phase:
            self.phase = phase
            self.is_fast_path_open = False  # `_settle` may open it again

    def _set_fast_path(self) -> None:
        """Open or close the fast path for the next read."""
        self.is_fast_path_open = (
            self.phase is OPEN
            and self.backlog.is_empty
            and self._connection.is_between_frames
            and not self._is_write_paused
            and not self._is_watched
        )

    def _violate(self, error: ProtocolError) -> None:
        """Count and log a violation by the engine, and disconnect.

        Frames in flight are cancelled, unless the stream has only ended within a frame.
        """
        if self._reason is None and self.phase is not CLOSED:
            self._state.failed(self.peer, error)
            if not isinstance(error, InputOutputError):
                self.backlog.cancel()
            self._disconnect(error.status_code, str(error))

    def _disconnect(self, status_code: int, message: str) -> None:
        """Enter DRAINING; a DISCONNECT follows the pending ACKs, with the first reason given.

        Events that wait came after the reason, and are dropped. Frames in flight came before it.
        """
        if self._reason is None:
            self._reason = status_code, message
            self.is_halted = True
            self.backlog.pop_events()
            self._enter(DRAINING)

    def _settle(self) -> None:
        """Write pending bytes, and close a connection that has been drained."""
        if self._frames_left == 0 and not self.backlog.events:
            # Frames of the last read over the limit are acknowledged too: a frame without an ACK is
            # an error to the engine.
            frames = self._state.limits.frames
            self._disconnect(StatusCode.NORMAL, f"the connection has had its {frames} frames")
        if self.phase is DRAINING and self.backlog.is_empty:
            self._close()
        elif self.outgoing:
            self._write_outgoing()
        self._set_fast_path()

    def flush_soon(self) -> None:
        """Schedule a write after the callbacks that are due, which may finish more frames."""
        if self.flush_handle is None:
            self.flush_handle = self._state.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.flush_handle = None
        if self.backlog.events and not self._is_write_paused:
            self._handle_events(self.backlog.pop_events())
        self._settle()
        self._resume_reading()

    def _resume_reading(self) -> None:
        """Resume reading, unless events wait, writing is paused or the stream has ended."""
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
        """Send the DISCONNECT, and close the write side, so that the engine can read it."""
        if self._reason is not None:
            self._connection.send_disconnect(*self._reason)
        if self.outgoing:
            self._write_outgoing()
        self._enter(CLOSED)
        if self._transport.is_closing():
            return
        if self._is_half_closed or not self._transport.can_write_eof():
            # TLS waits for the engine's close by itself, for at most LINGER.
            self._transport.close()
            return
        if self._has_engine_left:
            # The engine has sent its last frame, so no input stays unread.
            self._transport.close()
            if self._transport.get_write_buffer_size() == 0:
                return  # closed at once
        else:
            # asyncio raises if the engine has closed in the meantime.
            with suppress(OSError):
                self._transport.write_eof()
            self._transport.resume_reading()
        self._linger_handle = self._state.loop.call_later(LINGER, self._transport.abort)

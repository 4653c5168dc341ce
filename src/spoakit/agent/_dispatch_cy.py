"""Dispatch of NOTIFYs to handlers, and of their actions into ACKs. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). A `BoundHandler` is one handler in one
worker. It keeps a `CallPlan` for each shape in which its message has come, which knows the
source of every parameter's value, so that a call costs comparing some bytes and decoding
the values. Frames whose handlers are all inline, or async and do not wait, are answered at once;
one whose handler waits, or runs in a thread, is handed on to ``spoakit.agent._suspension_cy``.

Each message is one guarded step: whatever finding its values, or calling its handler, raises
costs that message alone (`CallErrors.record_failure`), but for an InvalidFrameError of a payload
that cannot be read.
"""

from __future__ import annotations

from asyncio import Task
from collections.abc import Callable, Coroutine, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from spoakit.agent._calls_cy import Failure
from spoakit.agent.call_errors import CallErrors, once_a_minute, show_name, throttle
from spoakit.agent.context import Context, FrameState
from spoakit.agent.handlers import DEFAULT_TIMEOUT, Handler, HandlerKind, bind_arguments
from spoakit.agent.headers import Headers
from spoakit.agent.interfaces import EngineLink
from spoakit.agent.parameters import Role
from spoakit.exceptions import InvalidFrameError
from spoakit.spop._decode_cy import ArgumentReader, Cursor, Notify, Reading, split_notifies
from spoakit.spop._encode_cy import (
    Action,
    append_ack,
    append_acks,
    check_actions,
    encode_ack,
    extend_actions,
)
from spoakit.spop.constants import DEFAULT_MAX_MESSAGES
from spoakit.spop.messages import decode_message

if TYPE_CHECKING:
    from spoakit import _cython as cython
    from spoakit.agent._calls_cy import PendingCall
    from spoakit.metrics._histogram_cy import HistogramCells
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython
    if cython.compiled:
        from cython.cimports.spoakit.agent._calls_cy import PendingCall
        from cython.cimports.spoakit.metrics._histogram_cy import HistogramCells
    else:
        from spoakit.agent._calls_cy import PendingCall
        from spoakit.metrics._histogram_cy import HistogramCells

COMPILED: bool = cython.compiled

# Shapes differ by what is NULL and by configuration, so there are few. A peer that makes
# more has them planned anew.
MAX_PLANS: int = 16

# Names that a log line lists at most.
_MAX_SHOWN: int = 16

# Bytes; with more to send, `Dispatcher.dispatch` returns, so that a peer that does not read
# its ACKs is noticed.
MAX_OUTGOING: int = 256 * 1024
_MAX_OUTGOING = cython.declare(cython.Py_ssize_t, 256 * 1024)

# Pending calls of observers; with this many, no more are waited for.
MANY_OBSERVATIONS: int = 16
_MANY_OBSERVATIONS = cython.declare(cython.Py_ssize_t, 16)

_NOTHING: Sequence[Any] = ()

# Seconds; an inline handler holds up every connection of its worker.
SLOW = cython.declare(cython.double, 0.010)


@cython.final
@cython.cclass
class CallPlan:
    """Recipe for calls of one handler by messages of one shape; see `plan`."""

    _reader: ArgumentReader
    _template: list[Any]
    _injected: tuple[tuple[int, Any], ...]
    # The places of the agreed max-frame-size among the values; None, as mostly, without any.
    _frame_sizes: tuple[int, ...] | None
    _mismatch: str | None

    def __init__(
        self,
        reader: ArgumentReader,
        template: list[Any],
        injected: tuple[tuple[int, Any], ...],
        frame_sizes: tuple[int, ...] | None,
        mismatch: str | None,
    ) -> None:
        self._reader = reader
        self._template = template
        self._injected = injected
        self._frame_sizes = frame_sizes
        self._mismatch = mismatch


@cython.final
@cython.cclass
class BoundHandler:
    """One handler in one worker.

    Args:
        handler: the handler.
        function: the handler's function in its middleware, taking all values by position.
        resources: gives the object for the type of each RESOURCE parameter.
        seconds: counts the time that each call takes.
        ack_seconds: counts the time from the reading of each frame to its ACK.
        on_error: called with the error of each call that failed, an exception of the handler's
            own or a `CallError`. For tests.
    """

    _handler: Handler
    _name: str
    _function: Any
    _resources: Any
    _errors: CallErrors
    _seconds: HistogramCells
    _ack_seconds: HistogramCells
    _inline: cython.bint
    _async: cython.bint
    _observer: cython.bint
    _fallback: tuple[Any, ...]
    _timeout: cython.double
    _calls: cython.ulonglong
    _last: Any
    _plans: list[Any]

    def __init__(
        self,
        handler: Handler,
        function: Callable[..., Any],
        resources: Callable[[Any], Any],
        seconds: HistogramCells,
        ack_seconds: HistogramCells,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._seconds = seconds
        self._ack_seconds = ack_seconds
        self._handler = handler
        self._name = handler.name
        self._function = function
        self._resources = resources
        self._errors = CallErrors(handler, on_error)
        self._inline = handler.kind is HandlerKind.INLINE
        self._async = handler.kind is HandlerKind.ASYNC
        self._observer = handler.kind is HandlerKind.OBSERVER
        self._fallback = handler.fallback
        self._timeout = handler.deadline_after or DEFAULT_TIMEOUT
        self._calls = 0
        self._last = None
        self._plans = []

    @property
    def handler(self) -> Handler:
        """The handler."""
        return self._handler

    @property
    def timeout(self) -> float:
        """Seconds from the reading of the frame to the fallback, for calls that take time."""
        return self._timeout

    @property
    def calls(self) -> int:
        """Number of calls of the handler."""
        return self._calls

    @property
    def errors(self) -> CallErrors:
        """Errors of the handler's calls."""
        return self._errors

    def call(self, values: list[Any]) -> Any:
        """Call the function of an async or threaded handler, and return its result."""
        self._calls += 1
        return self._function(*values)

    def add_result(self, result: Any, actions: list[Any]) -> None:
        """Add the actions that a call has returned; its fallback's where it failed."""
        if type(result) is Failure:
            self._errors.record_failure(result.error)
            extend_actions(actions, self._fallback)
            return
        try:
            extend_actions(actions, check_actions(result))
        except BaseException as error:
            self._errors.record_failure(error)
            extend_actions(actions, self._fallback)

    def observe_wait(self, began: float, received: float, now: float) -> None:
        """Count a call that took time, and the frame whose ACK follows; times of one clock."""
        self._seconds._observe(now - began, 1)
        self._ack_seconds._observe(now - received, 1)

    def bind_values(self, cursor: Cursor, notify: Notify, link: EngineLink) -> list[Any] | None:
        """Go past the message at the cursor; return the values to call the handler with.

        Returns:
            None if it cannot be called, which has been counted and logged.

        Raises:
            InvalidFrameError: the message cannot be read.
        """
        start: cython.Py_ssize_t = cursor.tell()
        try:
            return self._bind_values(start, cursor, notify, link)
        except BaseException as error:
            # The message's fault, or that of the code that makes a value?
            cursor.seek(start)
            decode_message(cursor)
            self._errors.record_failure(error)
            return None

    @cython.cfunc
    @cython.inline
    def _bind_values(
        self, start: cython.Py_ssize_t, cursor: Cursor, notify: Notify, link: EngineLink
    ) -> list[Any] | None:
        values: list[Any]
        known: CallPlan
        if self._last is not None:
            known = self._last
            values = known._template.copy()
            if known._reader.parse(cursor, values):
                return self._finish(known, values, start, cursor, notify, link)
        for known in self._plans:
            values = known._template.copy()
            if known._reader.parse(cursor, values):
                self._last = known
                return self._finish(known, values, start, cursor, notify, link)
        known = self._learn(cursor)
        cursor.seek(start)
        values = known._template.copy()
        known._reader.parse(cursor, values)
        return self._finish(known, values, start, cursor, notify, link)

    @cython.cfunc
    @cython.inline
    def _finish(
        self,
        known: CallPlan,
        values: list[Any],
        start: cython.Py_ssize_t,
        cursor: Cursor,
        notify: Notify,
        link: EngineLink,
    ) -> list[Any] | None:
        if known._mismatch is not None:
            self._errors.record_mismatch(known._mismatch, link.peer)
            return None
        if known._frame_sizes is not None:
            _put_frame_size(known._frame_sizes, values, link)
        if known._injected:
            self._inject(known._injected, values, start, cursor, notify, link)
        return values

    def _learn(self, cursor: Cursor) -> CallPlan:
        """Plan calls for the shape of the message at the cursor, and go past it."""
        name, shape = cursor.message_shape()
        made = plan(self._handler, name, shape, self._resources)
        if len(self._plans) >= MAX_PLANS:
            del self._plans[0]
        self._plans.append(made)
        self._last = made
        return made

    def _inject(
        self,
        injected: tuple[tuple[int, Any], ...],
        values: list[Any],
        start: int,
        cursor: Cursor,
        notify: Notify,
        link: EngineLink,
    ) -> None:
        """Fill in the values that come from the frame."""
        if notify.state is None:
            notify.state = FrameState(link.received)
        state: Any = notify.state
        for slot, parameter in injected:
            if parameter.role is Role.PER_FRAME:
                values[slot] = state.get(parameter.annotation)
            elif parameter.role is Role.MESSAGE:
                cursor.seek(start)
                values[slot] = decode_message(cursor)
            else:
                timeout = self._handler.deadline_after
                values[slot] = Context(
                    self._handler.message,
                    link.engine_id,
                    link.peer,
                    notify.stream_id,
                    notify.frame_id,
                    state.received,
                    None if timeout is None else state.received + timeout,
                )


@cython.cfunc
def _put_frame_size(slots: tuple[int, ...], values: list[Any], link: EngineLink) -> object:
    """Fill in the agreed max-frame-size, which is the same for all frames of a connection."""
    for slot in slots:
        values[slot] = link.max_frame_size
    return None


def plan(
    handler: Handler,
    name: bytes,
    shape: list[tuple[bytes, Any]],
    resources: Callable[[Any], Any],
) -> CallPlan:
    """Plan the calls of a handler by messages of one shape."""
    binding = bind_arguments(handler, shape)
    takes_all = any(parameter.role is Role.MESSAGE for parameter in handler.parameters)
    if binding.extra and not takes_all:
        extra = ", ".join(map(show_name, binding.extra[:_MAX_SHOWN]))
        if len(binding.extra) > _MAX_SHOWN:
            extra += f" and {len(binding.extra) - _MAX_SHOWN} more"
        once_a_minute.warning(
            (handler.name, extra),
            "message %s has arguments that handler %s does not take: %s",
            handler.message,
            handler.name,
            extra,
        )
    readings = [Reading.SKIP] * len(shape)
    slots = [0] * len(shape)
    template: list[Any] = []
    injected = []
    frame_sizes = []
    for slot in binding.slots:
        at = len(template)
        template.append(slot.value)
        if slot.index is not None:
            readings[slot.index] = slot.parameter.reading
            slots[slot.index] = at
        elif slot.parameter.role is Role.RESOURCE:
            template[at] = resources(slot.parameter.annotation)
        elif slot.parameter.role is Role.MAX_FRAME_SIZE:
            frame_sizes.append(at)
        elif slot.parameter.role is not Role.ARGUMENT:
            injected.append((at, slot.parameter))
    reader = ArgumentReader(name, shape, readings, slots, Headers)
    return CallPlan(reader, template, tuple(injected), tuple(frame_sizes) or None, binding.mismatch)


@cython.final
@cython.cclass
class Dispatcher:
    """Router of messages to their handlers; one for a worker.

    Args:
        routes: the handlers of each message; one that answers stands before observers.
        suspend: takes over a frame with a call that waits (None if the next one is for a thread),
            with the cursor (None behind the last message), the actions so far, and the observers'
            calls that are due once its ACK is written; tells if its connection takes more frames.
        await_call: makes the coroutine of an async handler's call, which ends the call with the
            handler's result or a `Failure`.
        start: starts a task of a coroutine and a name; it has run to its end, or to what it waits
            for first.
        schedule: schedules `run_observers`, which is given to it, once the ACKs that are due
            have been written; called with the first pending call of an observer.
        hurry: schedules the same soon; called once `MANY_OBSERVATIONS` calls are pending.
        max_messages: messages that a frame may have; the handlers of that many may have been
            called when a frame is found to have more.
    """

    _routes: dict[bytes, Any]
    _suspend: Any
    _await_call: Any
    _start: Any
    _started: Any
    _schedule: Any
    _hurry: Any
    _observations: list[Any]
    _clock: cython.double
    _received: cython.double
    _expected: Any
    _frames: cython.ulonglong
    _oversized: cython.ulonglong
    _unknown: cython.ulonglong
    _max_messages: Any

    def __init__(
        self,
        routes: Mapping[bytes, tuple[BoundHandler, ...]],
        suspend: Callable[
            [
                Dispatcher,
                Notify,
                EngineLink,
                Cursor | None,
                PendingCall | None,
                list[Any],
                list[Any],
            ],
            bool,
        ],
        await_call: Callable[[PendingCall, BoundHandler, list[Any]], Coroutine[Any, Any, None]],
        start: Callable[[Coroutine[Any, Any, None], str], Task[None]],
        schedule: Callable[[Callable[[int], bool]], object],
        hurry: Callable[[Callable[[int], bool]], object],
        max_messages: int = DEFAULT_MAX_MESSAGES,
    ) -> None:
        self._routes = dict(routes)
        self._suspend = suspend
        self._await_call = await_call
        self._start = start
        self._started = None
        self._schedule = schedule
        self._hurry = hurry
        self._max_messages = max_messages
        self._observations = []
        self._clock = self._received = 0.0
        self._expected = None
        self._frames = 0
        self._oversized = 0
        self._unknown = 0

    @property
    def routes(self) -> Mapping[bytes, tuple[BoundHandler, ...]]:
        """The handlers of each message."""
        return self._routes

    @property
    def frames(self) -> int:
        """Number of frames dispatched."""
        return self._frames

    @property
    def oversized(self) -> int:
        """Number of ACKs that lost their actions because they did not fit."""
        return self._oversized

    @property
    def unknown(self) -> int:
        """Number of messages without a handler."""
        return self._unknown

    def start_clock(self, now: float, received: float) -> None:
        """Note the time before calls of `dispatch_message`, and when the frame was received."""
        self._clock = now
        self._received = received

    def pop_started(self) -> PendingCall | None:
        """Return the call that the frame waits for; None if it is for a thread, and not started."""
        started: PendingCall | None = self._started
        self._started = None
        return started

    def try_batch(self, data: bytes, limit: int, link: EngineLink) -> Sequence[Any] | None:
        """Handle a read that is whole NOTIFYs and nothing else, as nearly all reads are.

        Args:
            data: what was received, by a connection that is between two frames.
            limit: the largest FRAME-LENGTH that is taken.
            link: the connection.

        Returns:
            The frames that `dispatch` has left; None if the read is something else, and
            nothing has been done.

        Raises:
            InvalidFrameError: a payload cannot be read; its frame has no ACK then.
        """
        frames: list[Any] = []
        try:
            end: cython.Py_ssize_t = split_notifies(data, 0, limit, frames)
        except InvalidFrameError:
            return None
        if end != len(data):
            return None
        handled: cython.Py_ssize_t = self.dispatch(frames, 0, link)
        if handled < len(frames):
            return frames[handled:]
        return _NOTHING

    def try_single(self, data: bytes, received: float, link: EngineLink) -> bytes | None:
        """Answer `data` if it is exactly one NOTIFY of the expected shape.

        Args:
            data: what was received, by a connection that is between two frames.
            received: when that was; whatever runs until its handler is called is quick.
            link: the connection.

        Returns:
            Its ACK, not in ``link.outgoing``; None if the read is something else, and nothing
            has been done.
        """
        known: CallPlan = self._expected_plan()
        if known is None or self._expects_async():
            return None
        values: list[Any] = known._template.copy()
        try:
            ids = known._reader.parse_single(data, values)
        except InvalidFrameError:
            return None
        if ids is None:
            return None
        if known._frame_sizes is not None:
            _put_frame_size(known._frame_sizes, values, link)
        self._clock = received
        self._frames += 1
        calls: list[Any] = [values]
        self._call_expected(calls, received)
        ack = encode_ack(ids, calls[0], link.max_frame_size)
        if ack is None:
            self.oversized_ack(link)
            ack = encode_ack(ids, None, link.max_frame_size)
        return ack

    def dispatch(self, events: Sequence[Any], first: int, link: EngineLink) -> int:
        """Handle frames, and append their ACKs to ``link.outgoing``.

        Args:
            events: what was received.
            first: the index of the first event to look at.
            link: the connection they came by.

        Returns:
            The index behind the last frame that was handled or has to wait (``link.finish`` is
            called with such a one, maybe before this returns). It ends in front of an event that
            is no frame, where the link takes no more frames, and where over `MAX_OUTGOING` bytes
            are to be sent.

        Raises:
            InvalidFrameError: a payload cannot be read; its frame has no ACK then.
        """
        # Whatever runs between here and the first handler is quick.
        self._clock = monotonic()
        self._received = link.received
        index: cython.Py_ssize_t = first
        count: cython.Py_ssize_t = len(events)
        out: bytearray = link.outgoing
        limit: int = link.max_frame_size
        handled: cython.Py_ssize_t
        goes_on: cython.bint = True
        try:
            while index < count and goes_on and len(out) <= _MAX_OUTGOING:
                handled = self._dispatch_run(events, index, out, limit, link)
                if handled == index:
                    event: Any = events[index]
                    if type(event) is not Notify:
                        break
                    goes_on = self._dispatch_any(event, out, limit, link)
                    handled += 1
                elif self._expects_async():
                    goes_on = link.takes_frames
                index = handled
        finally:
            self._frames += index - first
        return index

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _dispatch_run(
        self,
        events: Sequence[Any],
        first: cython.Py_ssize_t,
        out: bytearray,
        limit: cython.Py_ssize_t,
        link: EngineLink,
    ) -> cython.Py_ssize_t:
        """Handle frames that look like the last one, up to one that does not.

        They are read together, called one after the other, and their ACKs encoded together: each
        of the two is a call into another module.

        Returns:
            The index behind the last one.
        """
        known: CallPlan = self._expected_plan()
        if known is None:
            return first
        # So many ACKs cannot exceed _MAX_OUTGOING by more than one.
        most: cython.Py_ssize_t = (_MAX_OUTGOING - len(out)) // limit + 1
        ids: list[Any] = []
        calls: list[Any] = []
        template: list[Any] = known._template
        if known._frame_sizes is not None:
            template = template.copy()
            _put_frame_size(known._frame_sizes, template, link)
        behind: cython.Py_ssize_t = known._reader.parse_run(
            events, first, most, template, ids, calls
        )
        if behind == first:
            return first
        bound: BoundHandler = self._expected
        if bound._async:
            started: cython.Py_ssize_t = self._start_calls(bound, events, first, ids, calls, link)
            behind = first + started
        else:
            self._call_expected(calls, self._received)
        oversized: cython.Py_ssize_t = append_acks(out, ids, calls, limit)
        while oversized > 0:
            self.oversized_ack(link)
            oversized -= 1
        return behind

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _call_expected(self, calls: list[Any], received: cython.double) -> cython.Py_ssize_t:
        """Call the expected handler; replace each call's values by its actions."""
        bound: BoundHandler = self._expected
        index: cython.Py_ssize_t
        count: cython.Py_ssize_t = len(calls)
        if bound._observer:
            for index in range(count):
                self._observe_later(bound, calls[index])
                calls[index] = None
            return 0
        for index in range(count):
            calls[index] = self._call(bound, calls[index])
        # Looking at the clock costs as much as a small handler: once for all.
        self._time(bound, count, count)
        bound._ack_seconds._observe(self._clock - received, count)
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _start_calls(
        self,
        bound: BoundHandler,
        events: Sequence[Any],
        first: cython.Py_ssize_t,
        ids: list[Any],
        calls: list[Any],
        link: EngineLink,
    ) -> cython.Py_ssize_t:
        """Start calls of the expected handler, an async one, as long as the link takes frames.

        Afterwards ``ids`` and ``calls`` have what can be acknowledged, with the actions.

        Returns:
            How many calls were started.
        """
        count: cython.Py_ssize_t = len(calls)
        index: cython.Py_ssize_t = 0
        done: cython.Py_ssize_t = 0
        goes_on: cython.bint = True
        while index < count and goes_on:
            actions: list[Any] = []
            if self._start_call(bound, calls[index], actions):
                ids[done] = ids[index]
                calls[done] = actions
                done += 1
            else:
                goes_on = self._suspend(
                    self, events[first + index], link, None, self.pop_started(), actions, []
                )
            index += 1
        del ids[done:], calls[done:]
        self._time(bound, index, done)
        bound._ack_seconds._observe(self._clock - self._received, done)
        return index

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def _expects_async(self) -> cython.bint:
        bound: BoundHandler = self._expected
        return bound is not None and bound._async

    @cython.cfunc
    @cython.inline
    def _expected_plan(self) -> Any:
        """Return the plan for the expected shape; None if there is none."""
        bound: BoundHandler = self._expected
        if bound is None:
            return None
        known: CallPlan = bound._last
        return known if known._mismatch is None else None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _dispatch_any(
        self, notify: Notify, out: bytearray, limit: int, link: EngineLink
    ) -> cython.bint:
        """Handle a frame, or have it wait; False if no more may be handled."""
        cursor: Cursor = notify.cursor(self._max_messages)
        actions: list[Any] = []
        observations: list[Any] = []
        bound: BoundHandler
        values: list[Any]
        while not cursor.at_end():
            if not self.dispatch_message(cursor, notify, link, actions, observations):
                goes_on: bool = self._suspend(
                    self, notify, link, cursor, self.pop_started(), actions, observations
                )
                return goes_on
        if not append_ack(out, notify.ids, actions, limit):
            self.oversized_ack(link)
        for bound, values in observations:
            self._observe_later(bound, values)
        return True

    def dispatch_message(
        self,
        cursor: Cursor,
        notify: Notify,
        link: EngineLink,
        actions: list[Any],
        observations: list[Any],
    ) -> bool:
        """Handle the message at the cursor, and go past it.

        Args:
            cursor: in front of the message.
            notify: its frame.
            link: the connection it came by.
            actions: gains those of its handler.
            observations: gains the calls that `call_observers` is to make after the ACK.

        Returns:
            False if the frame has to wait for its handler. An async one has been called then, see
            `pop_started`; a threaded one has not, and the cursor has not moved.

        Raises:
            InvalidFrameError: the message cannot be read.
        """
        handlers: Any = self._routes.get(cursor.message_name())
        if handlers is None:
            self._skip(cursor, link)
            return True
        bound: BoundHandler = handlers[0]
        start: cython.Py_ssize_t = cursor.tell()
        observers: Any = handlers
        if bound._inline:
            values: Any = bound.bind_values(cursor, notify, link)
            if values is None:
                extend_actions(actions, bound._fallback)
            else:
                extend_actions(actions, self._call(bound, values))
                self._time(bound, 1, 1)
                bound._ack_seconds._observe(self._clock - self._received, 1)
            observers = handlers[1:]
        elif bound._async:
            if len(handlers) > 1:
                self.observe(handlers[1:], start, cursor, notify, link, observations)
                cursor.seek(start)
            self._call_async(bound, cursor, notify, link, actions)
            self._expect(handlers)
            return self._started is None
        elif not bound._observer:
            return False
        if observers:
            self.observe(observers, start, cursor, notify, link, observations)
        self._expect(handlers)
        return True

    @cython.cfunc
    def _call_async(
        self,
        bound: BoundHandler,
        cursor: Cursor,
        notify: Notify,
        link: EngineLink,
        actions: list[Any],
    ) -> object:
        """Call an async handler; `_started` has the call if it waits."""
        values: Any = bound.bind_values(cursor, notify, link)
        if values is None:
            extend_actions(actions, bound._fallback)
            return None
        done: cython.bint = self._start_call(bound, values, actions)
        self._time(bound, 1, done)
        bound._ack_seconds._observe(self._clock - self._received, done)
        return None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _start_call(
        self, bound: BoundHandler, values: list[Any], actions: list[Any]
    ) -> cython.bint:
        """Start a call of an async handler; False, and `_started` has the call, if it waits."""
        call: PendingCall = PendingCall(bound, self._received + bound._timeout)
        try:
            call.task = self._start(self._await_call(call, bound, values), bound._name)
        except BaseException as error:
            bound._errors.record_failure(error)
            extend_actions(actions, bound._fallback)
            return True
        if call.has_ended:
            bound.add_result(call.pop_result(), actions)
            return True
        self._started = call
        return False

    @cython.cfunc
    def _expect(self, handlers: tuple[Any, ...]) -> object:
        """Expect the next frames to be like this one, if that makes them simple to handle."""
        bound: BoundHandler = handlers[0]
        if bound._last is None or len(handlers) != 1:
            return None  # without a plan where making one failed
        known: CallPlan = bound._last
        if not known._injected and known._mismatch is None:
            self._expected = bound
        return None

    @cython.cfunc
    @cython.inline
    def _call(self, bound: BoundHandler, values: list[Any]) -> Any:
        """Call an inline handler, and return actions, its fallback where it fails."""
        bound._calls += 1
        function: Any = bound._function
        try:
            # One value, as is usual, needs no tuple.
            actions: Any = function(values[0]) if len(values) == 1 else function(*values)
            if actions is not None and type(actions) is not Action:
                actions = check_actions(actions)
        except BaseException as error:
            bound._errors.record_failure(error)
            actions = bound._fallback
        return actions

    def observe(
        self,
        handlers: tuple[BoundHandler, ...],
        start: int,
        cursor: Cursor,
        notify: Notify,
        link: EngineLink,
        observations: list[Any],
    ) -> None:
        """Add the calls of observers with the message at ``start``, and go past it."""
        bound: BoundHandler
        for bound in handlers:
            cursor.seek(start)
            values: Any = bound.bind_values(cursor, notify, link)
            if values is not None:
                observations.append((bound, values))

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def _observe_later(self, bound: BoundHandler, values: list[Any]) -> cython.Py_ssize_t:
        self._observations.append((bound, values))
        waiting: cython.Py_ssize_t = len(self._observations)
        if waiting == 1:
            self._schedule(self.run_observers)
        elif waiting == _MANY_OBSERVATIONS:
            self._hurry(self.run_observers)
        return 0

    def run_observers(self, most: int = 0) -> bool:
        """Make `most` of the pending observers' calls, or all; return True if some are left."""
        observations: list[Any] = self._observations
        self._observations = observations[most:] if most else []
        self._call_observers(observations[:most] if most else observations)
        return bool(self._observations)

    def call_observers(self, observations: list[Any]) -> None:
        """Make calls of observers of frames whose ACKs are written."""
        self._call_observers(observations)

    @cython.cfunc
    def _call_observers(self, observations: list[Any]) -> object:
        bound: BoundHandler
        values: list[Any]
        self._clock = monotonic()
        for bound, values in observations:
            bound._calls += 1
            function: Any = bound._function
            try:
                function(*values)
            except BaseException as error:
                bound._errors.record_failure(error)
            self._time(bound, 1, 1)
        return None

    def oversized_ack(self, link: EngineLink) -> None:
        """Count and log an ACK that lost its actions because they did not fit."""
        self._oversized += 1
        throttle.warning(
            "oversized",
            "an ACK to %s exceeded the agreed %d bytes and was sent without its actions: "
            "raise tune.bufsize and max-frame-size, or set shorter values",
            link.peer,
            link.max_frame_size,
        )

    def _skip(self, cursor: Cursor, link: EngineLink) -> None:
        self._unknown += 1
        name, _ = cursor.message_shape()
        shown: str = show_name(name)
        once_a_minute.warning(
            shown,
            "message %s from %s has no handler here: check the names of the spoe-messages",
            shown,
            link.peer,
        )

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def _time(
        self, bound: BoundHandler, calls: cython.Py_ssize_t, ended: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        """Count the time of the last calls; log them if they held up everything for long.

        Of those that have ended each counts with their mean: a look at the clock costs as much as a
        small handler.
        """
        now: cython.double = monotonic()
        took: cython.double = now - self._clock
        if took > SLOW:
            bound._errors.slow(took, calls)
        if ended > 0:
            bound._seconds._observe(took / calls, ended)
        self._clock = now
        return 0

"""Dispatch of NOTIFYs to handlers, and of their actions into ACKs. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``).

Theory of operation
-------------------
An engine sends the same few messages again and again, so the next frame nearly always has the
*shape* of the last one: one message, the same name, the same argument names and wire types. The
dispatcher predicts that, and tries the cheapest way first. A wrong prediction costs a comparison
of bytes, never a wrong result: the next step of the ladder parses the bytes again.

::

    a read                             handled by         cost is paid once for
      |
      +- one NOTIFY of the           -> try_single          the frame; its ACK is returned,
      |  predicted shape                                    not buffered
      |        no |
      +- only whole NOTIFYs          -> try_batch           the read
      |        no |                       |
      +- anything else               -> dispatch            the events, which AgentConnection
         (other types, fragments)         |                 has parsed
                                          v
                           for the frames at the front:
                 +- the predicted shape  -> _dispatch_run   the run: one parse, one clock
                 |        no |                              reading, one encoding of ACKs
                 +- any other NOTIFY     -> _dispatch_any   each message
                                              |
                                              +- a handler waits, or needs a thread
                                                   -> suspend: `_suspension_cy` keeps the frame
                                                      and resumes it at `dispatch_message`

1. **Single.** `try_single` parses and answers a read that is exactly one frame of the predicted
   shape, for an inline handler or an observer. The cost of a lone frame is mostly around it, so
   this step does nothing else.
2. **Batch.** `try_batch` splits a read into NOTIFYs in one call and passes them to `dispatch`.
   `_dispatch_run` parses as many frames of the predicted shape as there are in a row, calls the
   handler for each, and encodes their ACKs together.
3. **Any.** `_dispatch_any` handles a frame of another shape, or of several messages, message by
   message. Then `_predict` decides if its shape becomes the prediction: only a message with a
   single handler that is not threaded, and without parameters that need the frame itself.
4. **Suspended.** An async handler's task runs its first step at once, and mostly ends in it. If it
   waits, or the handler is threaded, the frame becomes a `SuspendedFrame`.

A `BoundHandler` is one handler in one worker. It keeps a `CallPlan` for each shape of its message:
a parser for the arguments, and a template of the values that do not come from them. Making a plan
(`plan_calls`, `bind_arguments`) is slow and happens once for a shape.

**Errors.** Each message is one guarded step. An exception raised by parsing its values or calling
its handler costs that message alone (`CallErrors.record_failure`). The exception is an
InvalidFrameError of a malformed payload, which ends the connection.
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

# Limit on plans of a handler. Shapes differ by NULLs and by configuration, so a few are enough;
# a peer that sends more has its oldest plan replaced.
MAX_PLANS: int = 16

# Limit on names in a log line.
_MAX_SHOWN: int = 16

# Bytes in the output buffer at which `Dispatcher.dispatch` returns, so that the caller notices a
# peer that does not read its ACKs.
MAX_OUTGOING: int = 256 * 1024
_MAX_OUTGOING = cython.declare(cython.Py_ssize_t, 256 * 1024)

# Pending calls of observers at which a batch is made at once.
OBSERVER_BATCH: int = 16
_OBSERVER_BATCH = cython.declare(cython.Py_ssize_t, 16)

_NO_FRAMES: Sequence[Any] = ()

# Seconds on the event loop after which calls are logged: they block all connections of a worker.
SLOW = cython.declare(cython.double, 0.010)


@cython.final
@cython.cclass
class CallPlan:
    """Recipe for calls of one handler by messages of one shape; see `plan_calls`."""

    _reader: ArgumentReader
    _template: list[Any]
    _injected: tuple[tuple[int, Any], ...]
    # Indexes of the agreed max-frame-size among the values; None, as usual, if there are none.
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
    """Handler in one worker, with its call plans and counters.

    Args:
        handler: the handler.
        function: the handler's function with its middleware; accepts all values by position.
        resources: called with the type of a RESOURCE parameter, returns the object.
        seconds: histogram of the time that each call takes.
        ack_seconds: histogram of the time from reading a frame to its ACK.
        on_error: for tests; called with the error of each failed call, the handler's exception or
            a `CallError`.
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
        """Seconds from reading the frame to the fallback, for async and threaded handlers."""
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
        """Add the actions of a call's result; the fallback if the call failed."""
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
        """Record the times of a suspended call and its frame; all are on the monotonic clock."""
        self._seconds._observe(now - began, 1)
        self._ack_seconds._observe(now - received, 1)

    def bind_values(self, cursor: Cursor, notify: Notify, link: EngineLink) -> list[Any] | None:
        """Parse the message at the cursor; return the values to call the handler with.

        Returns:
            None if the handler cannot be called. The error has been counted and logged.

        Raises:
            InvalidFrameError: the message is malformed.
        """
        start: cython.Py_ssize_t = cursor.tell()
        try:
            return self._bind_values(start, cursor, notify, link)
        except BaseException as error:
            # Decoding raises if the message is malformed; otherwise making a value failed.
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
                return self._complete(known, values, start, cursor, notify, link)
        for known in self._plans:
            values = known._template.copy()
            if known._reader.parse(cursor, values):
                self._last = known
                return self._complete(known, values, start, cursor, notify, link)
        known = self._add_plan(cursor)
        cursor.seek(start)
        values = known._template.copy()
        known._reader.parse(cursor, values)
        return self._complete(known, values, start, cursor, notify, link)

    @cython.cfunc
    @cython.inline
    def _complete(
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
            _set_frame_size(known._frame_sizes, values, link)
        if known._injected:
            self._inject(known._injected, values, start, cursor, notify, link)
        return values

    def _add_plan(self, cursor: Cursor) -> CallPlan:
        """Plan calls for the shape of the message at the cursor, and move past the message."""
        name, shape = cursor.message_shape()
        made = plan_calls(self._handler, name, shape, self._resources)
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
        """Fill in the values that come from the frame: PerFrame, Message and Context."""
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
def _set_frame_size(slots: tuple[int, ...], values: list[Any], link: EngineLink) -> object:
    """Fill in the agreed max-frame-size, which is the same for all frames of a connection."""
    for slot in slots:
        values[slot] = link.max_frame_size
    return None


def plan_calls(
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
            "message %s has arguments that handler %s has no parameters for: %s",
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
    """Dispatcher of messages to their handlers; one for a worker.

    Args:
        routes: the handlers of each message; the one that answers comes before the observers.
        suspend: `Suspender.suspend`. It gets a frame with its pending call (None if the next
            message is for a thread), the cursor (None after the last message), the actions so far,
            and the calls of observers to make after the ACK. Returns False if the connection
            accepts no more frames now.
        await_call: returns the coroutine of an async handler's call, which ends the call with the
            handler's result or a `Failure`.
        start: called with a coroutine and a name; returns a task that has run to its first await
            that blocks, or to its end.
        schedule: called with `run_observers` when the first call of an observer is pending;
            schedules it after the ACKs that are due have been written.
        schedule_soon: called with `run_observers` when `OBSERVER_BATCH` calls are pending;
            schedules it for the next round of the event loop.
        max_messages: limit on the messages of a frame. When a frame turns out to have more, the
            handlers of this many may have been called.
    """

    _routes: dict[bytes, Any]
    _suspend: Any
    _await_call: Any
    _start: Any
    _started: Any
    _schedule: Any
    _schedule_soon: Any
    _observations: list[Any]
    _clock: cython.double
    _received: cython.double
    _predicted: Any
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
        schedule_soon: Callable[[Callable[[int], bool]], object],
        max_messages: int = DEFAULT_MAX_MESSAGES,
    ) -> None:
        self._routes = dict(routes)
        self._suspend = suspend
        self._await_call = await_call
        self._start = start
        self._started = None
        self._schedule = schedule
        self._schedule_soon = schedule_soon
        self._max_messages = max_messages
        self._observations = []
        self._clock = self._received = 0.0
        self._predicted = None
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
        """Set the times that the next calls of `dispatch_message` are measured from."""
        self._clock = now
        self._received = received

    def pop_started(self) -> PendingCall | None:
        """Return the call that the frame waits for; None if it has to be started in a thread."""
        started: PendingCall | None = self._started
        self._started = None
        return started

    def try_batch(self, data: bytes, limit: int, link: EngineLink) -> Sequence[Any] | None:
        """Handle a read that is unfragmented NOTIFYs only, as nearly all reads are.

        Args:
            data: the bytes of the read; the connection is between two frames.
            limit: the largest FRAME-LENGTH that is accepted.
            link: the connection.

        Returns:
            The frames that `dispatch` has not handled; None if the read is anything else, and
            nothing has been done.

        Raises:
            InvalidFrameError: a payload is malformed; its frame gets no ACK.
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
        return _NO_FRAMES

    def try_single(self, data: bytes, received: float, link: EngineLink) -> bytes | None:
        """Fast path: answer `data` if it is exactly one NOTIFY of the predicted shape.

        Args:
            data: the bytes of the read; the connection is between two frames.
            received: the time of the read. It also stands for the time of the call, which follows
                at once.
            link: the connection.

        Returns:
            The ACK, which is not in ``link.outgoing``; None if the read is anything else, and
            nothing has been done.
        """
        known: CallPlan = self._predicted_plan()
        if known is None or self._predicts_async():
            return None
        values: list[Any] = known._template.copy()
        try:
            ids = known._reader.parse_single(data, values)
        except InvalidFrameError:
            return None
        if ids is None:
            return None
        if known._frame_sizes is not None:
            _set_frame_size(known._frame_sizes, values, link)
        self._clock = received
        self._frames += 1
        calls: list[Any] = [values]
        self._call_predicted(calls, received)
        ack = encode_ack(ids, calls[0], link.max_frame_size)
        if ack is None:
            self.oversized_ack(link)
            ack = encode_ack(ids, None, link.max_frame_size)
        return ack

    def dispatch(self, events: Sequence[Any], first: int, link: EngineLink) -> int:
        """Handle frames, and append their ACKs to ``link.outgoing``.

        Args:
            events: events of the connection.
            first: the index of the first event to handle.
            link: the connection.

        Returns:
            The index after the last frame that was handled or suspended. A suspended frame ends
            with ``link.finish``, which may happen before this returns. Dispatching stops at an
            event that is not a NOTIFY, when the link accepts no more frames, and when more than
            `MAX_OUTGOING` bytes are in the buffer.

        Raises:
            InvalidFrameError: a payload is malformed; its frame gets no ACK.
        """
        # Little runs between here and the first handler, so one reading of the clock is enough.
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
                elif self._predicts_async():
                    goes_on = link.accepts_frames
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
        """Handle frames of the predicted shape, up to the first of another shape.

        Frames are parsed together and their ACKs are encoded together, because each of the two is
        a call into another module.

        Returns:
            The index after the last frame that was handled.
        """
        known: CallPlan = self._predicted_plan()
        if known is None:
            return first
        # Limits the ACKs of this run, so that at most one of them exceeds _MAX_OUTGOING.
        max_frames: cython.Py_ssize_t = (_MAX_OUTGOING - len(out)) // limit + 1
        ids: list[Any] = []
        calls: list[Any] = []
        template: list[Any] = known._template
        if known._frame_sizes is not None:
            template = template.copy()
            _set_frame_size(known._frame_sizes, template, link)
        behind: cython.Py_ssize_t = known._reader.parse_run(
            events, first, max_frames, template, ids, calls
        )
        if behind == first:
            return first
        bound: BoundHandler = self._predicted
        if bound._async:
            started: cython.Py_ssize_t = self._start_calls(bound, events, first, ids, calls, link)
            behind = first + started
        else:
            self._call_predicted(calls, self._received)
        oversized: cython.Py_ssize_t = append_acks(out, ids, calls, limit)
        while oversized > 0:
            self.oversized_ack(link)
            oversized -= 1
        return behind

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _call_predicted(self, calls: list[Any], received: cython.double) -> cython.Py_ssize_t:
        """Call the predicted handler; replace each call's values with its actions."""
        bound: BoundHandler = self._predicted
        index: cython.Py_ssize_t
        count: cython.Py_ssize_t = len(calls)
        if bound._observer:
            for index in range(count):
                self._observe_later(bound, calls[index])
                calls[index] = None
            return 0
        for index in range(count):
            calls[index] = self._call(bound, calls[index])
        # Reading the clock costs as much as a small handler, so it is read once for all calls.
        self._record_time(bound, count, count)
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
        """Start calls of the predicted async handler, while the link accepts frames.

        Afterwards ``ids`` and ``calls`` have the ids and the actions of the calls that have ended.

        Returns:
            The number of calls that were started.
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
        self._record_time(bound, index, done)
        bound._ack_seconds._observe(self._clock - self._received, done)
        return index

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def _predicts_async(self) -> cython.bint:
        bound: BoundHandler = self._predicted
        return bound is not None and bound._async

    @cython.cfunc
    @cython.inline
    def _predicted_plan(self) -> Any:
        """Return the plan for the predicted shape; None without a prediction."""
        bound: BoundHandler = self._predicted
        if bound is None:
            return None
        known: CallPlan = bound._last
        return known if known._mismatch is None else None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _dispatch_any(
        self, notify: Notify, out: bytearray, limit: int, link: EngineLink
    ) -> cython.bint:
        """Handle or suspend a frame; return False if the link accepts no more frames."""
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
        """Handle the message at the cursor, and move past it.

        Args:
            cursor: a cursor at the message.
            notify: its frame.
            link: the connection.
            actions: the handler's actions are appended.
            observations: the calls for `call_observers` to make after the ACK are appended.

        Returns:
            False if the frame has to wait for the handler. An async handler has been called, see
            `pop_started`. A threaded one has not been called, and the cursor has not moved.

        Raises:
            InvalidFrameError: the message is malformed.
        """
        handlers: Any = self._routes.get(cursor.message_name())
        if handlers is None:
            self._skip_unknown(cursor, link)
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
                self._record_time(bound, 1, 1)
                bound._ack_seconds._observe(self._clock - self._received, 1)
            observers = handlers[1:]
        elif bound._async:
            if len(handlers) > 1:
                self.observe(handlers[1:], start, cursor, notify, link, observations)
                cursor.seek(start)
            self._call_async(bound, cursor, notify, link, actions)
            self._predict(handlers)
            return self._started is None
        elif not bound._observer:
            return False
        if observers:
            self.observe(observers, start, cursor, notify, link, observations)
        self._predict(handlers)
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
        """Call an async handler; if it waits, `_started` is its call."""
        values: Any = bound.bind_values(cursor, notify, link)
        if values is None:
            extend_actions(actions, bound._fallback)
            return None
        done: cython.bint = self._start_call(bound, values, actions)
        self._record_time(bound, 1, done)
        bound._ack_seconds._observe(self._clock - self._received, done)
        return None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _start_call(
        self, bound: BoundHandler, values: list[Any], actions: list[Any]
    ) -> cython.bint:
        """Start a call of an async handler; if it waits, set `_started` and return False."""
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
    def _predict(self, handlers: tuple[Any, ...]) -> object:
        """Predict that the next frames have this shape, if `_dispatch_run` could handle them."""
        bound: BoundHandler = handlers[0]
        if bound._last is None or len(handlers) != 1:
            return None  # without a plan, because making it failed
        known: CallPlan = bound._last
        if not known._injected and known._mismatch is None:
            self._predicted = bound
        return None

    @cython.cfunc
    @cython.inline
    def _call(self, bound: BoundHandler, values: list[Any]) -> Any:
        """Call an inline handler; return its actions, or its fallback if it fails."""
        bound._calls += 1
        function: Any = bound._function
        try:
            # A single value, which is usual, is passed without making a tuple.
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
        """Add the observers' calls for the message at ``start``, and move past the message."""
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
        elif waiting == _OBSERVER_BATCH:
            self._schedule_soon(self.run_observers)
        return 0

    def run_observers(self, max_calls: int = 0) -> bool:
        """Make up to `max_calls` pending observers' calls, all for 0; True if any are left."""
        observations: list[Any] = self._observations
        self._observations = observations[max_calls:] if max_calls else []
        self._call_observers(observations[:max_calls] if max_calls else observations)
        return bool(self._observations)

    def call_observers(self, observations: list[Any]) -> None:
        """Make calls of observers; the ACKs of their frames have been written."""
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
            self._record_time(bound, 1, 1)
        return None

    def oversized_ack(self, link: EngineLink) -> None:
        """Count and log an ACK that was sent without its actions, which did not fit."""
        self._oversized += 1
        throttle.warning(
            "oversized",
            "an ACK to %s exceeded the agreed %d bytes and was sent without its actions; "
            "raise tune.bufsize and max-frame-size, or set shorter values",
            link.peer,
            link.max_frame_size,
        )

    def _skip_unknown(self, cursor: Cursor, link: EngineLink) -> None:
        self._unknown += 1
        name, _ = cursor.message_shape()
        shown: str = show_name(name)
        once_a_minute.warning(
            shown,
            "message %s from %s has no handler; check the names of the spoe-messages",
            shown,
            link.peer,
        )

    @cython.cfunc
    @cython.inline
    @cython.exceptval(-1, check=False)
    def _record_time(
        self, bound: BoundHandler, calls: cython.Py_ssize_t, ended: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        """Record the time of the last calls, and log them if they blocked the event loop for long.

        Calls that have ended are recorded with their mean time, since reading the clock for each
        would cost as much as a small handler.
        """
        now: cython.double = monotonic()
        took: cython.double = now - self._clock
        if took > SLOW:
            bound._errors.record_slow(took, calls)
        if ended > 0:
            bound._seconds._observe(took / calls, ended)
        self._clock = now
        return 0

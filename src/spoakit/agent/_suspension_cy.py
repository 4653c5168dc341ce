"""Frames whose ACK waits for ``async def`` and threaded handlers. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). The messages of a frame are handled in
order, one at a time; frames run concurrently. If a call fails or misses its deadline, the handler's
fallback replaces its actions, and the frame is resumed.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from time import monotonic
from typing import TYPE_CHECKING, Any

from spoakit.agent._calls_cy import Failure
from spoakit.agent._deadlines_cy import Deadlines
from spoakit.agent._dispatch_cy import BoundHandler, Dispatcher
from spoakit.agent.call_errors import propagate_fatal
from spoakit.agent.context import FrameState
from spoakit.agent.interfaces import EngineLink
from spoakit.agent.thread_pool import ThreadPool
from spoakit.exceptions import InvalidFrameError, RefusedError
from spoakit.spop._decode_cy import Cursor, Notify
from spoakit.spop._encode_cy import Action, extend_actions

if TYPE_CHECKING:
    from spoakit import _cython as cython
    from spoakit.agent._calls_cy import EndedCalls, PendingCall
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython
    if cython.compiled:
        from cython.cimports.spoakit.agent._calls_cy import EndedCalls, PendingCall
    else:
        from spoakit.agent._calls_cy import EndedCalls, PendingCall

COMPILED: bool = cython.compiled


@cython.final
@cython.cclass
class Suspender:
    """Suspended frames of one worker: their calls, deadlines and threads.

    Args:
        loop: the event loop.
    """

    _loop: Any
    _threads: Any
    _deadlines: dict[Any, Any]
    _ended: EndedCalls

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = None
        self._deadlines = {}
        self._ended = EndedCalls(loop, self.resume)

    def suspend(
        self,
        dispatcher: Dispatcher,
        notify: Notify,
        link: EngineLink,
        cursor: Cursor | None,
        call: PendingCall | None,
        actions: list[Action],
        observations: list[Any],
    ) -> bool:
        """Suspend a frame; return False if its connection accepts no more: see `Dispatcher`."""
        frame: SuspendedFrame = SuspendedFrame(
            self, dispatcher, notify, link, cursor, actions, observations
        )
        link.wait(frame)
        if call is None:
            frame._resume()
        else:
            frame._wait_for(call)
        return link.accepts_frames

    def resume(self, calls: list[Any]) -> None:
        """Resume the frames of ended calls, and send the ACKs of frames that are done."""
        now: cython.double = monotonic()
        link: Any = None
        finished: list[Any] = []
        index: cython.Py_ssize_t = 0
        call: PendingCall
        frame: SuspendedFrame
        try:
            while index < len(calls):
                call = calls[index]
                index += 1
                if call.frame is None:
                    _check_ignored(call)
                    continue
                frame = call.frame
                frame._end_call(call, now)
                if frame._link is not link or frame._has_more():
                    _finish(link, finished)
                    link = frame._link
                    finished = []
                if frame._has_more():
                    frame._resume()
                else:
                    finished.append(frame)
        finally:
            _finish(link, finished)
            if index < len(calls):
                # If the exception does not end the process, the rest is handled.
                self._loop.call_soon(self.resume, calls[index:])

    @cython.cfunc
    def _submit(self, call: PendingCall, values: list[Any]) -> object:
        """Make a call in a thread.

        Raises:
            RefusedError: no thread is free.
        """
        if self._threads is None:
            self._threads = ThreadPool(self._loop)
        self._threads.submit(call, values)
        return None

    @cython.cfunc
    def _watch(self, call: PendingCall) -> object:
        """Watch the deadline of a call."""
        deadlines: Any = self._deadlines.get(call.bound)
        if deadlines is None:
            deadlines = self._deadlines[call.bound] = Deadlines(self._loop, _expire)
        deadlines.add(call)
        return None

    @cython.cfunc
    def _call_soon(self, function: Any, argument: Any) -> object:
        """Call a function in the next round of the event loop."""
        self._loop.call_soon(function, argument)
        return None

    def close(self) -> None:
        """Stop timers and threads. Calls that still run are ignored."""
        self._ended.close()
        for deadlines in self._deadlines.values():
            deadlines.close()
        if self._threads is not None:
            self._threads.close()


@cython.cfunc
def _finish(link: Any, frames: list[Any]) -> object:
    """Send the ACKs of frames of one connection."""
    if frames:
        link.finish(frames)
    return None


@cython.cfunc
def _check_ignored(call: PendingCall) -> object:
    """Raise the error of a call that no frame waits for, if it must end the process."""
    result: Any = call.pop_result()
    if type(result) is Failure:
        propagate_fatal(result.error)
    return None


def _expire(call: PendingCall) -> None:
    """Cancel a call at its deadline, and resume its frame with the fallback."""
    frame: SuspendedFrame = call.frame
    call.cancel()
    call.bound.errors.record_deadline()
    frame._expire_call(call.bound)


@cython.final
@cython.freelist(256)
@cython.cclass
class SuspendedFrame:
    """Frame that waits for the call of one of its messages.

    Args:
        suspender: the suspender that watches its calls.
        dispatcher: the dispatcher that handles its other messages.
        notify: the frame.
        link: the connection.
        cursor: a cursor after the message whose call has started, or at a message for a thread;
            None after the last message.
        actions: the actions of the messages so far.
        observations: the calls of observers to make after the ACK.
    """

    _suspender: Suspender
    _dispatcher: Any
    _notify: Any
    _link: Any
    _cursor: Any
    _actions: list[Any]
    _observations: list[Any]
    _call: Any
    _size: cython.Py_ssize_t
    _received: cython.double
    _began: cython.double  # start of its current call

    def __init__(
        self,
        suspender: Suspender,
        dispatcher: Dispatcher,
        notify: Notify,
        link: EngineLink,
        cursor: Cursor | None,
        actions: list[Action],
        observations: list[Any],
    ) -> None:
        self._suspender = suspender
        self._dispatcher = dispatcher
        self._notify = notify
        self._link = link
        if cursor is None or cursor.at_end():
            self._cursor = None
            self._size = notify.release()
        else:
            self._cursor = notify.detach(cursor)
            self._size = len(notify.payload)
        self._actions = actions
        self._observations = observations
        self._call = None
        state: Any = notify.state
        self._received = link.received if state is None else state.received
        self._began = self._received

    @property
    def ids(self) -> bytes:
        """STREAM-ID and FRAME-ID as they came, to be repeated by the ACK."""
        ids: bytes = self._notify.ids
        return ids

    @property
    def actions(self) -> list[Action]:
        """The actions of the ACK."""
        return self._actions

    @property
    def size(self) -> int:
        """Size of its payload in bytes."""
        return self._size

    def cancel(self) -> None:
        """Cancel the call, because the connection has ended."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    @cython.cfunc
    @cython.inline
    def _has_more(self) -> cython.bint:
        """Return whether messages or calls of observers remain."""
        return self._cursor is not None or len(self._observations) > 0

    @cython.cfunc
    def _end_call(self, call: PendingCall, now: cython.double) -> object:
        """Add the actions of the call that the frame waited for."""
        bound: BoundHandler = call.bound
        self._call = None
        bound.add_result(call.pop_result(), self._actions)
        bound.observe_wait(self._began, self._received, now)
        self._began = now
        return None

    @cython.cfunc
    def _expire_call(self, bound: BoundHandler) -> object:
        """Resume without the call: the handler's fallback replaces its actions."""
        self._call = None
        extend_actions(self._actions, bound.handler.fallback)
        self._began = monotonic()
        self._resume()
        return None

    @cython.cfunc
    def _resume(self) -> object:
        """Handle messages until one has to wait, or all are done."""
        if self._cursor is not None:
            try:
                if not self._handle_messages():
                    return None
            except InvalidFrameError as error:
                self._link.close_with_error(self, error)
                return None
        self._link.finish([self])
        if self._observations:
            # `finish` has scheduled the write of the ACK, so it comes first.
            self._suspender._call_soon(self._dispatcher.call_observers, self._observations)
        return None

    @cython.cfunc
    def _handle_messages(self) -> cython.bint:
        """Handle the messages from the cursor on; return False if the frame has to wait."""
        dispatcher: Any = self._dispatcher
        cursor: Any = self._cursor
        notify: Any = self._notify
        call: PendingCall
        if notify.state is None:
            notify.state = FrameState(self._received)
        dispatcher.start_clock(self._began, self._received)
        while not cursor.at_end():
            if dispatcher.dispatch_message(
                cursor, notify, self._link, self._actions, self._observations
            ):
                continue
            call = dispatcher.pop_started()
            if call is not None:
                self._wait_for(call)
                return False
            if self._submit():
                return False
        return True

    @cython.cfunc
    def _wait_for(self, call: PendingCall) -> object:
        """Wait for a call that has started, or is about to start."""
        self._call = call
        call.frame = self
        call.ended = self._suspender._ended
        self._suspender._watch(call)
        return None

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _submit(self) -> cython.bint:
        """Call the handler of the message at the cursor in a thread; return False on failure."""
        cursor: Any = self._cursor
        notify: Any = self._notify
        handlers: Any = self._dispatcher.routes[cursor.message_name()]
        bound: BoundHandler = handlers[0]
        start: int = cursor.tell()
        values: Any = bound.bind_values(cursor, notify, self._link)
        if len(handlers) > 1:
            self._dispatcher.observe(
                handlers[1:], start, cursor, notify, self._link, self._observations
            )
        if values is not None:
            call: PendingCall = PendingCall(bound, self._received + bound.timeout)
            self._wait_for(call)
            try:
                self._suspender._submit(call, values)
            except RefusedError as error:
                self.cancel()
                bound.errors.record_refusal(str(error))
            else:
                return True
        extend_actions(self._actions, bound.handler.fallback)
        return False

"""Frames whose ACK waits for ``async def`` and threaded handlers. Hot code.

Plain Python that compiles to C (see ``spoakit._cython``). The messages of a frame are handled one
after the other, in their order; frames run concurrently. Where a call fails, or has not finished at
its deadline, its handler's fallback stands in for its actions, and the frame is resumed.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from time import monotonic
from typing import TYPE_CHECKING, Any

from spoakit.agent._deadlines_cy import Deadlines
from spoakit.agent._dispatch_cy import BoundHandler, Dispatcher, Failure
from spoakit.agent.call_errors import propagate_fatal
from spoakit.agent.context import FrameState
from spoakit.agent.interfaces import EngineLink
from spoakit.agent.thread_pool import ThreadPool
from spoakit.exceptions import InvalidFrameError, RefusedError
from spoakit.spop._decode_cy import Cursor, Notify
from spoakit.spop._encode_cy import Action, extend_actions

if TYPE_CHECKING:
    from spoakit import _cython as cython
else:
    try:
        import cython
    except ModuleNotFoundError:
        from spoakit import _cython as cython

COMPILED: bool = cython.compiled


@cython.final
@cython.cclass
class Suspender:
    """Starter of calls that take time, and watch of their deadlines; one for a worker.

    Args:
        loop: the event loop.
    """

    _loop: Any
    _threads: Any
    _deadlines: dict[Any, Any]

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._threads = None
        self._deadlines = {}

    def suspend(
        self,
        dispatcher: Dispatcher,
        notify: Notify,
        link: EngineLink,
        cursor: Cursor | None,
        actions: list[Action],
        observations: list[Any],
    ) -> bool:
        """Take over a frame, and tell if its connection takes more: see `Dispatcher`."""
        frame: SuspendedFrame = SuspendedFrame(
            self, dispatcher, notify, link, cursor, actions, observations
        )
        link.wait(frame)
        frame.begin()
        return link.takes_frames

    def submit(self, bound: BoundHandler, values: list[Any]) -> Future[Any]:
        """Have a thread call a handler.

        Raises:
            RefusedError: there is no thread for it.
        """
        if self._threads is None:
            self._threads = ThreadPool(self._loop)
        future: Future[Any] = self._threads.submit(bound, values)
        return future

    def watch(self, call: PendingCall) -> None:
        """Make a call expire at its deadline."""
        bound: BoundHandler = call.bound
        deadlines: Any = self._deadlines.get(bound)
        if deadlines is None:
            deadlines = self._deadlines[bound] = Deadlines(self._loop, PendingCall.expire)
        deadlines.add(call)

    def call_soon(self, function: Any, argument: Any) -> None:
        """Have the event loop call a function in its next round."""
        self._loop.call_soon(function, argument)

    def close(self) -> None:
        """Stop timers and threads; of calls that still run, nothing is sent."""
        for deadlines in self._deadlines.values():
            deadlines.close()
        if self._threads is not None:
            self._threads.close()


@cython.final
@cython.freelist(256)
@cython.cclass
class SuspendedFrame:
    """A frame that waits for the call of one of its messages, or is between two.

    Args:
        suspender: starts its calls.
        dispatcher: handles the messages that take no time.
        notify: the frame.
        link: the connection it came by.
        cursor: behind the message whose call has started, or in front of one for a thread; None
            behind the last one.
        actions: those of the messages before.
        observations: the calls of observers that are due once the ACK is written.
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
    _began: cython.double  # when its last call did

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
    def notify(self) -> Notify:
        """The frame."""
        notify: Notify = self._notify
        return notify

    @property
    def size(self) -> int:
        """The bytes of its payload."""
        return self._size

    def begin(self) -> None:
        """Wait for the call that has started; handle the next message where it is for a thread."""
        started: Any = self._dispatcher.pop_started()
        if started is None:
            self._resume()
        else:
            self._wait_for(started)

    def end_call(self, future: Future[Any]) -> None:
        """Add the actions of the call that the frame waited for, and go on."""
        call: Any = self._call
        self._call = None
        bound: BoundHandler = call.bound
        bound.add_result(future, self._actions)
        now: cython.double = monotonic()
        bound.observe_wait(self._began, self._received, now)
        self._began = now
        self._resume()

    def expire_call(self) -> None:
        """Go on without the call: its handler's fallback stands in for its actions."""
        call: Any = self._call
        self._call = None
        extend_actions(self._actions, call.bound.handler.fallback)
        self._began = monotonic()
        self._resume()

    def cancel(self) -> None:
        """Give the call up, because the connection has ended."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    @cython.cfunc
    def _resume(self) -> object:
        """Handle messages up to one that the frame has to wait for, or to the end."""
        if self._cursor is not None:
            try:
                if not self._handle_messages():
                    return None
            except InvalidFrameError as error:
                self._link.fail(self, error)
                return None
        self._link.finish(self, self._actions)
        if self._observations:
            # `finish` has scheduled the write of the ACK, which thus comes before.
            self._suspender.call_soon(self._dispatcher.call_observers, self._observations)
        return None

    @cython.cfunc
    def _handle_messages(self) -> cython.bint:
        """Handle the messages from the cursor on; False if the frame has to wait for one."""
        dispatcher: Any = self._dispatcher
        cursor: Any = self._cursor
        notify: Any = self._notify
        if notify.state is None:
            notify.state = FrameState(self._received)
        dispatcher.start_clock(self._began, self._received)
        while not cursor.at_end():
            if dispatcher.dispatch_message(
                cursor, notify, self._link, self._actions, self._observations
            ):
                continue
            started: Any = dispatcher.pop_started() or self._submit()
            if started is not None:
                self._wait_for(started)
                return False
        return True

    @cython.cfunc
    def _wait_for(self, started: Any) -> object:
        """Wait for a call that has started: its handler and its future."""
        bound: BoundHandler = started[0]
        self._call = PendingCall(self, bound, started[1], self._received + bound.timeout)
        self._suspender.watch(self._call)
        return None

    @cython.cfunc
    def _submit(self) -> Any:
        """Have a thread make the call for the message at the cursor; None if it cannot be made."""
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
            try:
                return bound, self._suspender.submit(bound, values)
            except RefusedError as error:
                bound.errors.record_refusal(str(error))
        extend_actions(self._actions, bound.handler.fallback)
        return None


@cython.final
@cython.freelist(256)
@cython.cclass
class PendingCall:
    """A call of an async or threaded handler that has started.

    Args:
        frame: waits for it.
        bound: the handler.
        future: the outcome.
        deadline: when the fallback stands in for its actions, on the loop's clock.
    """

    _frame: Any
    _bound: Any
    _future: Any
    _deadline: cython.double
    _done: cython.bint

    def __init__(
        self, frame: SuspendedFrame, bound: BoundHandler, future: Future[Any], deadline: float
    ) -> None:
        self._frame = frame
        self._bound = bound
        self._future = future
        self._deadline = deadline
        self._done = False
        future.add_done_callback(self._finished)

    @property
    def bound(self) -> BoundHandler:
        """The handler."""
        bound: BoundHandler = self._bound
        return bound

    @property
    def deadline(self) -> float:
        """When the fallback stands in for its actions, on the loop's clock."""
        return self._deadline

    @property
    def done(self) -> bool:
        """Whether it has ended, or been given up."""
        return self._done

    def expire(self) -> None:
        """Give the call up at its deadline; the fallback stands in for its actions."""
        frame: Any = self._frame
        self.cancel()
        self._bound.errors.record_deadline()
        frame.expire_call()

    def cancel(self) -> None:
        """Give the call up; its outcome is ignored."""
        if self._done:
            return
        future: Any = self._future
        self._end()
        future.cancel()

    def _finished(self, future: Future[Any]) -> None:
        if not self._done:
            frame: Any = self._frame
            self._end()
            frame.end_call(future)
        elif not future.cancelled() and type(result := future.result()) is Failure:
            propagate_fatal(result.error)

    @cython.cfunc
    def _end(self) -> object:
        """Mark as done, and release the frame: `Deadlines` may keep this object for a while."""
        self._done = True
        self._frame = self._future = None
        return None

"""Frames whose ACK waits for ``async def`` and threaded handlers.

The messages of a frame are handled one after the other, in their order; frames run
concurrently. Where a call fails, or has not finished at its deadline, its handler's fallback
stands in for its actions, and the frame is resumed.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from time import monotonic
from typing import Any

from spoakit.agent._dispatch_cy import BoundHandler, Dispatcher, Failure
from spoakit.agent.call_errors import propagate_fatal
from spoakit.agent.context import FrameState
from spoakit.agent.deadlines import Deadlines
from spoakit.agent.handlers import DEFAULT_TIMEOUT
from spoakit.agent.interfaces import EngineLink
from spoakit.agent.thread_pool import ThreadPool
from spoakit.exceptions import InvalidFrameError, RefusedError
from spoakit.spop._decode_cy import Cursor, Notify
from spoakit.spop._encode_cy import Action, extend_actions


class Suspender:
    """Starter of calls that take time, and watch of their deadlines; one for a worker.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self._threads: ThreadPool | None = None
        self._deadlines: dict[BoundHandler, Deadlines[PendingCall]] = {}

    def suspend(
        self,
        dispatcher: Dispatcher,
        notify: Notify,
        link: EngineLink,
        cursor: Cursor,
        actions: list[Action],
        observations: list[Any],
    ) -> None:
        """Take over a frame: see `Dispatcher`."""
        frame = SuspendedFrame(self, dispatcher, notify, link, cursor, actions, observations)
        link.wait(frame)
        frame.begin()

    def submit(self, bound: BoundHandler, values: list[Any]) -> Future[Any]:
        """Have a thread call a handler.

        Raises:
            RefusedError: there is no thread for it.
        """
        if self._threads is None:
            self._threads = ThreadPool(self.loop)
        return self._threads.submit(bound, values)

    def watch(self, call: PendingCall) -> None:
        """Make a call expire at its deadline."""
        deadlines = self._deadlines.get(call.bound)
        if deadlines is None:
            deadlines = self._deadlines[call.bound] = Deadlines(self.loop, PendingCall.expire)
        deadlines.add(call)

    def close(self) -> None:
        """Stop timers and threads; of calls that still run, nothing is sent."""
        for deadlines in self._deadlines.values():
            deadlines.close()
        if self._threads is not None:
            self._threads.close()


async def await_call(bound: BoundHandler, values: list[Any]) -> Any:
    """Call an async handler, and await its result.

    Its middleware may raise at once, and may return any awaitable.
    """
    try:
        return await bound.call(values)
    except BaseException as error:
        return Failure(error)


class SuspendedFrame:
    """A frame that waits for the call of one of its messages, or is between two.

    Args:
        suspender: starts its calls.
        dispatcher: handles the messages that take no time.
        notify: the frame.
        link: the connection it came by.
        cursor: behind the message whose call has started, or in front of one for a thread.
        actions: those of the messages before.
        observations: the calls of observers that are due once the ACK is written.

    Attributes:
        size: the bytes of its payload.
    """

    __slots__ = (
        "_actions",
        "_call",
        "_cursor",
        "_dispatcher",
        "_link",
        "_observations",
        "_received",
        "_suspender",
        "notify",
        "size",
    )

    def __init__(
        self,
        suspender: Suspender,
        dispatcher: Dispatcher,
        notify: Notify,
        link: EngineLink,
        cursor: Cursor,
        actions: list[Action],
        observations: list[Any],
    ) -> None:
        self.notify = notify
        self._suspender = suspender
        self._dispatcher = dispatcher
        self._link = link
        self._cursor = notify.detach(cursor)
        self.size = len(notify.payload)
        self._actions = actions
        self._observations = observations
        self._call: PendingCall | None = None
        if notify.state is None:
            notify.state = FrameState(link.received)
        self._received: float = notify.state.received

    def begin(self) -> None:
        """Wait for the call that has started; handle the next message where it is for a thread."""
        started = self._dispatcher.pop_started()
        if started is None:
            self.resume()
        else:
            self._wait_for(*started)

    def resume(self) -> None:
        """Handle messages up to one that the frame has to wait for, or to the end."""
        cursor, notify, link, dispatcher = self._cursor, self.notify, self._link, self._dispatcher
        dispatcher.start_clock(monotonic())
        try:
            while not cursor.at_end():
                if dispatcher.dispatch_message(
                    cursor, notify, link, self._actions, self._observations
                ):
                    continue
                if (started := dispatcher.pop_started() or self._submit()) is not None:
                    self._wait_for(*started)
                    return
        except InvalidFrameError as error:
            link.fail(self, error)
            return
        link.finish(self, self._actions)
        if self._observations:
            # `finish` has scheduled the write of the ACK, which thus comes before.
            self._suspender.loop.call_soon(dispatcher.call_observers, self._observations)

    def end_call(self, future: Future[Any]) -> None:
        """Add the actions of the call that the frame waited for, and go on."""
        call, self._call = self._call, None
        assert call is not None
        call.bound.add_result(future, self._actions)
        self.resume()

    def expire_call(self) -> None:
        """Go on without the call: its handler's fallback stands in for its actions."""
        call, self._call = self._call, None
        assert call is not None
        extend_actions(self._actions, call.bound.handler.fallback)
        self.resume()

    def cancel(self) -> None:
        """Give the call up, because the connection has ended."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _wait_for(self, bound: BoundHandler, future: Future[Any]) -> None:
        timeout = bound.handler.deadline_after or DEFAULT_TIMEOUT
        self._call = PendingCall(self, bound, future, self._received + timeout)
        self._suspender.watch(self._call)

    def _submit(self) -> tuple[BoundHandler, Future[Any]] | None:
        """Have a thread make the call for the message at the cursor; None if it cannot be made."""
        cursor, notify, link = self._cursor, self.notify, self._link
        handlers = self._dispatcher.routes[cursor.message_name()]
        bound, observers = handlers[0], handlers[1:]
        start = cursor.tell()
        values = bound.bind_values(cursor, notify, link)
        if observers:
            self._dispatcher.observe(observers, start, cursor, notify, link, self._observations)
        if values is not None:
            try:
                return bound, self._suspender.submit(bound, values)
            except RefusedError as error:
                bound.errors.record_refusal(str(error))
        extend_actions(self._actions, bound.handler.fallback)
        return None


class PendingCall:
    """A call of an async or threaded handler that has started.

    Attributes:
        bound: the handler.
        deadline: when the fallback stands in for its actions, on the loop's clock.
        done: whether it has ended, or been given up.
    """

    __slots__ = ("_frame", "_future", "bound", "deadline", "done")

    def __init__(
        self, frame: SuspendedFrame, bound: BoundHandler, future: Future[Any], deadline: float
    ) -> None:
        self.bound = bound
        self.deadline = deadline
        self.done = False
        self._frame = frame
        self._future = future
        future.add_done_callback(self._finished)

    def expire(self) -> None:
        """Give the call up at its deadline; the fallback stands in for its actions."""
        frame = self._frame
        self.cancel()
        self.bound.errors.record_deadline()
        frame.expire_call()

    def cancel(self) -> None:
        """Give the call up; its outcome is ignored."""
        if self.done:
            return
        future = self._future
        self._end()
        future.cancel()

    def _finished(self, future: Future[Any]) -> None:
        if not self.done:
            frame = self._frame
            self._end()
            frame.end_call(future)
        elif not future.cancelled() and type(result := future.result()) is Failure:
            propagate_fatal(result.error)

    def _end(self) -> None:
        """Mark as done, and release the frame: `Deadlines` may keep this object for a while."""
        self.done = True
        del self._frame, self._future

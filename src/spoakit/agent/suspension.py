"""Frames whose ACK waits for handlers that take time: ``async def`` and threaded ones.

The messages of a frame are handled one after the other, in their order; frames run
concurrently. A call that fails, or has not finished at its deadline, is answered with its
handler's fallback, and the frame goes on.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Future
from time import monotonic
from typing import Any

from spoakit.agent._dispatch_cy import BoundHandler, Dispatcher
from spoakit.agent.context import FrameState
from spoakit.agent.deadlines import Deadlines
from spoakit.agent.handlers import DEFAULT_TIMEOUT, HandlerKind
from spoakit.agent.interfaces import EngineLink
from spoakit.agent.thread_pool import ThreadPool
from spoakit.exceptions import InvalidFrameError
from spoakit.spop._decode_cy import Cursor, Notify
from spoakit.spop._encode_cy import Action, check_actions, extend_actions


class Suspender:
    """What all waiting frames of a worker share.

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
        frame.go_on()

    def start(self, bound: BoundHandler, values: list[Any]) -> Future[Any] | None:
        """Start a handler; None if there is no thread for it."""
        if bound.handler.kind is HandlerKind.ASYNC:
            return self.loop.create_task(bound.start(values))
        if self._threads is None:
            self._threads = ThreadPool(self.loop)
        return self._threads.submit(bound, values)

    def watch(self, call: PendingCall) -> None:
        """Have a call expire at its deadline."""
        deadlines = self._deadlines.get(call.bound)
        if deadlines is None:
            deadlines = self._deadlines[call.bound] = Deadlines(self.loop, PendingCall.expire)
        deadlines.add(call)

    def close(self) -> None:
        """Stop timers and threads; calls still running get no answer sent."""
        for deadlines in self._deadlines.values():
            deadlines.close()
        if self._threads is not None:
            self._threads.close()


class SuspendedFrame:
    """A frame on its way through its messages.

    Args:
        suspender: what it shares with others.
        dispatcher: handles the messages that take no time.
        notify: the frame.
        link: the connection it came by.
        cursor: in front of the message whose handler takes time.
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

    def go_on(self) -> None:
        """Handle messages up to one that takes time, or to the end."""
        cursor, notify, link, dispatcher = self._cursor, self.notify, self._link, self._dispatcher
        dispatcher.begin(monotonic())
        try:
            while not cursor.at_end():
                if dispatcher.dispatch_message(
                    cursor, notify, link, self._actions, self._observations
                ):
                    continue
                if self._start_call():
                    return
        except InvalidFrameError as error:
            link.fail(self, error)
            return
        link.finish(self, self._actions)
        if self._observations:
            # Called after what `finish` has had called soon, which is what writes the ACK.
            self._suspender.loop.call_soon(dispatcher.call_observers, self._observations)

    def take(self, actions: object) -> None:
        """Take what the call that was waited for has answered; then `go_on`.

        Raises:
            TypeError: it is no actions; nothing has been taken then.
        """
        check_actions(actions)
        extend_actions(self._actions, actions)
        self._call = None

    def cancel(self) -> None:
        """Give up, because there is nobody left to answer."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _start_call(self) -> bool:
        """Start the handler of the message at the cursor; False if it was answered at once."""
        cursor, notify, link = self._cursor, self.notify, self._link
        handlers = self._dispatcher.routes[cursor.message_name()]
        bound, observers = handlers[0], handlers[1:]
        start = cursor.tell()
        values = bound.take(cursor, notify, link)
        if observers:
            self._dispatcher.observe(observers, start, cursor, notify, link, self._observations)
        future = None if values is None else self._suspender.start(bound, values)
        if future is None:
            if values is not None:
                bound.errors.refuse()
            extend_actions(self._actions, bound.handler.fallback)
            return False
        timeout = bound.handler.deadline_after or DEFAULT_TIMEOUT
        self._call = PendingCall(self, bound, future, self._received + timeout)
        self._suspender.watch(self._call)
        return True


class PendingCall:
    """A call of a handler that takes time.

    Attributes:
        bound: whose it is.
        deadline: when its fallback is answered instead, on the loop's clock.
        done: whether it has been answered, or given up.
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
        """Answer with the fallback, because the deadline has come."""
        frame = self._frame
        self.cancel()
        self.bound.errors.expire()
        frame.take(self.bound.handler.fallback)
        frame.go_on()

    def cancel(self) -> None:
        """Give the call up; what it still answers is ignored."""
        future = self._future
        self._end()
        future.cancel()

    def _finished(self, future: Future[Any]) -> None:
        if self.done:
            # Asked for, so that asyncio does not report what came too late.
            if not future.cancelled():
                future.exception()
            return
        frame = self._frame
        self._end()
        try:
            frame.take(future.result())
        except (Exception, CancelledError) as error:
            self.bound.errors.fail(error)
            frame.take(self.bound.handler.fallback)
        frame.go_on()

    def _end(self) -> None:
        """Be done, and hold nothing: `Deadlines` may keep this object for a while."""
        self.done = True
        del self._frame, self._future

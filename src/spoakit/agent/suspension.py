"""Frames whose ACK waits for handlers that take time: ``async def`` and threaded ones.

The messages of a frame are handled one after the other, in their order; frames run
concurrently. A call that fails, or has not finished at its deadline, is answered with its
handler's fallback, and the frame goes on.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Future
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

from spoakit.agent._dispatch_cy import Dispatcher, Runner
from spoakit.agent.context import FrameState
from spoakit.agent.deadlines import Deadlines
from spoakit.agent.handlers import DEFAULT_TIMEOUT, HandlerKind
from spoakit.agent.link import Link
from spoakit.exceptions import InvalidFrameError
from spoakit.spop._decode_cy import Cursor, Notify
from spoakit.spop._encode_cy import Action, check_actions, extend_actions


class Threads:
    """The threads of threaded handlers, and a bound on the calls that wait for one.

    Args:
        loop: the event loop.
        size: how many threads there are.
        queue: how many calls may wait for one; further ones are refused.
    """

    def __init__(self, loop: AbstractEventLoop, size: int = 32, queue: int = 1024) -> None:
        self._loop = loop
        self._size = size
        self._places = size + queue
        self._taken = 0
        self._threads: list[Thread] = []
        self._calls: SimpleQueue[tuple[Future[Any], Runner, list[Any]] | None] = SimpleQueue()

    def submit(self, runner: Runner, values: list[Any]) -> Future[Any] | None:
        """Have a handler called in a thread; None if all places are taken."""
        if self._taken == self._places:
            return None
        self._taken += 1
        future: Future[Any] = self._loop.create_future()
        self._calls.put((future, runner, values))
        if len(self._threads) < min(self._taken, self._size):
            thread = Thread(target=self._run, name=f"spoakit-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return future

    def close(self) -> None:
        """Drop the calls that wait; running ones end by themselves, and nobody waits for them."""
        while not self._calls.empty():
            self._calls.get()
        for _ in self._threads:
            self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, runner, values = call
            result, error = None, None
            if not future.cancelled():
                try:
                    result = runner.start(values)
                except BaseException as raised:
                    error = raised
            # The loop is closed when a handler outlives the drain.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._finished, future, result, error)
            del call, future, runner, values, result, error

    def _finished(self, future: Future[Any], result: object, error: BaseException | None) -> None:
        # A place is free when the thread is, not when a deadline gave the call up.
        self._taken -= 1
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):
            # Futures refuse it; out of a coroutine it comes as this, too.
            stopped = RuntimeError("the handler raised StopIteration")
            future.set_exception(stopped.with_traceback(error.__traceback__))
        else:
            future.set_exception(error)


class Waiting:
    """What all waiting frames of a worker share.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self._threads: Threads | None = None
        self._deadlines: dict[Runner, Deadlines[Call]] = {}

    def suspend(
        self,
        dispatcher: Dispatcher,
        notify: Notify,
        link: Link,
        cursor: Cursor,
        actions: list[Action],
        observations: list[Any],
    ) -> None:
        """Take over a frame: see `Dispatcher`."""
        frame = WaitingFrame(self, dispatcher, notify, link, cursor, actions, observations)
        link.wait(frame)
        frame.go_on()

    def start(self, runner: Runner, values: list[Any]) -> Future[Any] | None:
        """Start a handler; None if there is no thread for it."""
        if runner.handler.kind is HandlerKind.ASYNC:
            return self.loop.create_task(runner.start(values))
        if self._threads is None:
            self._threads = Threads(self.loop)
        return self._threads.submit(runner, values)

    def watch(self, call: Call) -> None:
        """Have a call expire at its deadline."""
        deadlines = self._deadlines.get(call.runner)
        if deadlines is None:
            deadlines = self._deadlines[call.runner] = Deadlines(self.loop, Call.expire)
        deadlines.add(call)

    def close(self) -> None:
        """Stop timers and threads; calls still running get no answer sent."""
        for deadlines in self._deadlines.values():
            deadlines.close()
        if self._threads is not None:
            self._threads.close()


class WaitingFrame:
    """A frame on its way through its messages.

    Args:
        waiting: what it shares with others.
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
        "_waiting",
        "notify",
        "size",
    )

    def __init__(
        self,
        waiting: Waiting,
        dispatcher: Dispatcher,
        notify: Notify,
        link: Link,
        cursor: Cursor,
        actions: list[Action],
        observations: list[Any],
    ) -> None:
        self.notify = notify
        self._waiting = waiting
        self._dispatcher = dispatcher
        self._link = link
        self._cursor = notify.detach(cursor)
        self.size = len(notify.payload)
        self._actions = actions
        self._observations = observations
        self._call: Call | None = None
        if notify.state is None:
            notify.state = FrameState(link.received)
        self._received: float = notify.state.received

    def go_on(self) -> None:
        """Handle messages up to one that takes time, or to the end."""
        cursor, notify, link, dispatcher = self._cursor, self.notify, self._link, self._dispatcher
        dispatcher.begin(monotonic())
        try:
            while not cursor.at_end():
                if dispatcher.message(cursor, notify, link, self._actions, self._observations):
                    continue
                if self._start_call():
                    return
        except InvalidFrameError as error:
            link.fail(self, error)
            return
        link.finish(self, self._actions)
        if self._observations:
            # Called after what `finish` has had called soon, which is what writes the ACK.
            self._waiting.loop.call_soon(dispatcher.call_observers, self._observations)

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
        runners = self._dispatcher.routes[cursor.message_name()]
        runner, observers = runners[0], runners[1:]
        start = cursor.tell()
        values = runner.take(cursor, notify, link)
        if observers:
            self._dispatcher.observe(observers, start, cursor, notify, link, self._observations)
        future = None if values is None else self._waiting.start(runner, values)
        if future is None:
            if values is not None:
                runner.mishaps.refuse()
            extend_actions(self._actions, runner.handler.fallback)
            return False
        timeout = runner.handler.deadline_after or DEFAULT_TIMEOUT
        self._call = Call(self, runner, future, self._received + timeout)
        self._waiting.watch(self._call)
        return True


class Call:
    """A call of a handler that takes time.

    Attributes:
        runner: whose it is.
        deadline: when its fallback is answered instead, on the loop's clock.
        done: whether it has been answered, or given up.
    """

    __slots__ = ("_frame", "_future", "deadline", "done", "runner")

    def __init__(
        self, frame: WaitingFrame, runner: Runner, future: Future[Any], deadline: float
    ) -> None:
        self.runner = runner
        self.deadline = deadline
        self.done = False
        self._frame = frame
        self._future = future
        future.add_done_callback(self._finished)

    def expire(self) -> None:
        """Answer with the fallback, because the deadline has come."""
        frame = self._frame
        self.cancel()
        self.runner.mishaps.expire()
        frame.take(self.runner.handler.fallback)
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
            self.runner.mishaps.fail(error)
            frame.take(self.runner.handler.fallback)
        frame.go_on()

    def _end(self) -> None:
        """Be done, and hold nothing: `Deadlines` may keep this object for a while."""
        self.done = True
        del self._frame, self._future

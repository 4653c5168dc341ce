"""spoakit.agent._suspension_cy: frames that wait for async and threaded handlers."""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import pytest

from spoakit import Action, Agent, Argument, Context, Message, PerFrame
from spoakit.agent._calls_cy import EndedCalls, PendingCall
from spoakit.agent._dispatch_cy import BoundHandler
from spoakit.agent.handlers import DEFAULT_TIMEOUT
from spoakit.agent.interfaces import PendingFrame
from spoakit.agent.runtime import Runtime
from spoakit.agent.thread_pool import ThreadPool
from spoakit.exceptions import DeadlineError, InvalidFrameError, ProtocolError, RefusedError
from spoakit.logs import forget_throttled
from spoakit.spop import Notify, encode_messages
from spoakit.testing import Engine
from tests.support.agent_frames import bound_handler
from tests.support.waiting import TIMEOUT, until, wait_until


def pool() -> list[threading.Thread]:
    """Return the threads of threaded handlers."""
    return [each for each in threading.enumerate() if each.name.startswith("spoakit-")]


@pytest.fixture(autouse=True)
def _nothing_left_of_other_tests() -> None:
    forget_throttled()
    wait_until(lambda: pool() == [])


@pytest.fixture
def agent() -> Agent:
    return Agent("agent")


@pytest.fixture
def blocked() -> Iterator[threading.Event]:
    """What threaded handlers wait for; released at the end at the latest."""
    event = threading.Event()
    yield event
    event.set()


class Steps(list[str]):
    """What messages of one frame did, in order."""


def test_messages_of_a_frame_are_handled_one_after_the_other(agent: Agent) -> None:
    steps: list[str] = []

    @agent.message("async")
    async def handle_async(n: int, shared: PerFrame[Steps]) -> None:
        shared.append(f"async {n}")
        await asyncio.sleep(0.01 / n)
        steps.extend(shared)
        shared.clear()

    @agent.message("threaded", threaded=True)
    def handle_threaded(n: int, shared: PerFrame[Steps]) -> None:
        shared.append(f"threaded {n}")

    @agent.message("inline")
    def handle_inline(n: int, shared: PerFrame[Steps]) -> None:
        shared.append(f"inline {n}")

    names = ("inline", "async", "threaded", "inline", "async")
    with Engine(agent) as engine:
        engine.notify(
            Message(name, (Argument.of("n", n),)) for n, name in enumerate(names, start=1)
        )
    assert steps == [f"{name} {n}" for n, name in enumerate(names, start=1)]


def test_the_fallback_stands_in_for_a_late_answer_and_the_frame_goes_on(agent: Agent) -> None:
    number = agent.variable("txn.number", int)
    ends: list[str] = []

    @agent.message("late", timeout=0.01, fallback=number.set(-1))
    async def late() -> Action:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")
        return number.set(1)

    @agent.message("next")
    async def go_on() -> Action:
        return number.set(2)

    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify([Message("late"), Message("next"), Message("late")])
    assert [action.value for action in reply.actions] == [-1, 2, -1]
    assert isinstance(reply.error, DeadlineError)
    assert ends == ["cancelled"] * 2


def test_an_answer_after_the_deadline_is_ignored(
    agent: Agent, blocked: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    number = agent.variable("txn.number", int)
    ended = threading.Semaphore(0)

    @agent.message("stubborn", timeout=0.01, fallback=number.set(-1))
    async def stubborn() -> Action:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.release()
        return number.set(1)

    @agent.message("failing", timeout=0.01, fallback=number.set(-1))
    async def fail_late() -> Action:
        try:
            await asyncio.Event().wait()
        finally:
            ended.release()
            raise RuntimeError("too late to matter")

    @agent.message("thread", timeout=0.01, threaded=True, fallback=number.set(-1))
    def block() -> Action:
        blocked.wait(TIMEOUT)
        ended.release()
        return number.set(1)

    with Engine(agent, raise_errors=False) as engine:
        for name in ("stubborn", "failing", "thread"):
            assert engine.call(name) == {"txn.number": -1}
        blocked.set()
        for _ in range(3):
            assert ended.acquire(timeout=TIMEOUT)
        assert engine.call("stubborn") == {"txn.number": -1}
    assert "too late" not in caplog.text
    assert len(caplog.messages) == 3


@pytest.mark.parametrize("before", ["inline", "waiting"])
def test_the_time_before_a_handler_counts_too(agent: Agent, before: str) -> None:
    number = agent.variable("txn.number", int)
    deadlines: list[float | None] = []

    @agent.message("inline")
    def inline() -> None:
        time.sleep(0.25)

    @agent.message("waiting")
    async def waiting() -> None:
        await asyncio.sleep(0.25)

    @agent.message("handled", timeout=0.2, fallback=number.set(-1))
    async def handled(context: Context) -> Action:
        assert context.deadline is not None
        deadlines.append(context.deadline - context.received)
        await asyncio.sleep(0.001)
        return number.set(1)

    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify([Message(before), Message("handled")])
        assert reply == {"txn.number": -1}
        assert isinstance(reply.error, DeadlineError)
        assert engine.call("handled") == {"txn.number": 1}
    assert deadlines == [pytest.approx(0.2), pytest.approx(0.2)]


def test_handlers_that_do_not_say_have_a_second(agent: Agent) -> None:
    contexts: list[Context] = []

    @agent.message("async")
    async def handle_async(context: Context) -> None:
        contexts.append(context)

    @agent.message("threaded", threaded=True)
    def handle_threaded(context: Context) -> None:
        contexts.append(context)

    with Engine(agent) as engine:
        engine.notify([Message("async"), Message("threaded")])
    for context in contexts:
        assert context.deadline == context.received + DEFAULT_TIMEOUT


def test_one_failure_costs_its_message_alone(agent: Agent) -> None:
    number = agent.variable("txn.number", int)

    def register(name: str, handle: Callable[[], Awaitable[Any]]) -> None:
        async def call() -> Action:
            return await handle()  # type: ignore[no-any-return]

        agent.message(name, fallback=number.set(-1))(call)

    async def fail() -> None:
        raise RuntimeError("on purpose")

    async def give_up() -> None:
        raise asyncio.CancelledError

    async def answer_nonsense() -> int:
        return 5

    async def answer() -> Action:
        return number.set(1)

    handlers = {"f": fail, "c": give_up, "n": answer_nonsense, "a": answer}
    for name, handle in handlers.items():
        register(name, handle)
    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify(map(Message, "afacana"))
    assert [action.value for action in reply.actions] == [1, -1, 1, -1, 1, -1, 1]


@pytest.mark.parametrize("error", [RuntimeError("on purpose"), StopIteration()])
def test_a_thread_that_fails_is_answered_with_the_fallback(
    agent: Agent, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("message", threaded=True, fallback=number.set(-1))
    def handle() -> Action:
        raise error

    with Engine(agent, raise_errors=False) as engine:
        start = time.monotonic()
        assert engine.call("message") == {"txn.number": -1}
        assert time.monotonic() - start < DEFAULT_TIMEOUT
    line = handle.__code__.co_firstlineno + 2
    place = f"test_suspension.py:{line}"
    summary = f"handle failed at {place}, its fallback is sent: {type(error).__name__}"
    assert summary in caplog.text


def test_a_mismatch_before_and_behind_what_waits_costs_its_message_alone(agent: Agent) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("async", fallback=number.set(-1))
    async def handle(n: int) -> Action:
        return number.set(n)

    fits, fits_not = (Argument.of("n", 3),), (Argument.of("n", "3"),)
    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify(Message("async", each) for each in (fits_not, fits, fits_not))
    assert [action.value for action in reply.actions] == [-1, 3, -1]


user: ContextVar[str] = ContextVar("user", default="nobody")


def test_what_a_handler_sets_in_its_context_is_not_seen_by_later_messages(agent: Agent) -> None:
    seen: list[str] = []

    @agent.message("async")
    async def set_user(name: str) -> None:
        seen.append(user.get())
        user.set(name)
        await asyncio.sleep(0)
        assert user.get() == name

    @agent.message("inline")
    def look() -> None:
        seen.append(user.get())

    @agent.observe("observed")
    def observe() -> None:
        seen.append(user.get())

    async_message = Message("async", (Argument.of("name", "someone"),))
    with Engine(agent) as engine:
        engine.notify([async_message, Message("inline"), async_message, Message("observed")])
        engine.notify([async_message])
    assert seen == ["nobody"] * 5


class EngineLink:
    """A connection on which frames are broken, or get lost."""

    peer = "192.0.2.9:1234"
    engine_id = None
    max_frame_size = 16380
    takes_frames = True

    def __init__(self) -> None:
        self.outgoing = bytearray()
        self.received = time.monotonic()
        self.waiting: list[PendingFrame] = []
        self.finished: list[list[Action]] = []
        self.failed: list[ProtocolError] = []

    def wait(self, frame: PendingFrame) -> None:
        self.waiting.append(frame)

    def finish(self, frames: Sequence[PendingFrame]) -> None:
        self.finished += [frame.actions for frame in frames]

    def fail(self, frame: PendingFrame, error: ProtocolError) -> None:
        self.failed.append(error)


def running(agent: Agent, use: Callable[[Runtime, EngineLink], Awaitable[None]]) -> None:
    async def live() -> None:
        runtime = Runtime([agent])
        await runtime.start()
        await asyncio.wait_for(use(runtime, EngineLink()), TIMEOUT)
        await runtime.aclose()

    asyncio.run(live())


def dispatch(runtime: Runtime, link: EngineLink, payload: bytes) -> None:
    notify = Notify(b"\1\1", payload, 0, len(payload))
    assert runtime.dispatcher.dispatch([notify], 0, link) == 1


def test_a_frame_that_turns_out_broken_behind_what_waits_fails_its_connection(
    agent: Agent,
) -> None:
    @agent.message("async")
    async def handle() -> None:
        await asyncio.sleep(0)

    async def use(runtime: Runtime, link: EngineLink) -> None:
        dispatch(runtime, link, encode_messages([Message("async")]) + b"\x07a")
        await until(lambda: link.failed)

    link = EngineLink()
    running(agent, lambda runtime, _: use(runtime, link))
    assert isinstance(link.failed[0], InvalidFrameError)
    assert link.finished == []


def test_a_cancelled_frame_answers_nothing_and_shows_observers_nothing(agent: Agent) -> None:
    ends: list[str] = []

    @agent.message("async")
    async def handle() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    @agent.observe("async")
    def see() -> None:
        ends.append("observed")

    async def use(runtime: Runtime, link: EngineLink) -> None:
        dispatch(runtime, link, encode_messages([Message("async")]))
        await asyncio.sleep(0)
        link.waiting[0].cancel()
        await until(lambda: ends)
        await asyncio.sleep(0)
        assert (link.finished, link.failed) == ([], [])

    running(agent, use)
    assert ends == ["cancelled"]


def test_a_frame_that_waits_does_not_keep_the_read_it_came_in(agent: Agent) -> None:
    @agent.message("async")
    async def handle() -> None:
        await asyncio.sleep(0)

    async def use(runtime: Runtime, link: EngineLink) -> None:
        payload = encode_messages([Message("async")])
        read = bytes(100_000) + payload
        notify = Notify(b"\1\1", read, 100_000, len(read))
        references = sys.getrefcount(read)
        runtime.dispatcher.dispatch([notify], 0, link)
        assert sys.getrefcount(read) == references - 1
        assert link.waiting != []
        assert notify.payload == b""
        assert link.waiting[0].size == len(payload)
        await until(lambda: link.finished)

    running(agent, use)


def test_an_ended_call_does_not_keep_its_frame(agent: Agent) -> None:
    @agent.message("async", timeout=TIMEOUT)
    async def handle() -> None:
        await asyncio.Event().wait()

    async def use(runtime: Runtime, link: EngineLink) -> None:
        payload = encode_messages([Message("async")])
        ids = bytes(range(1, 3))
        references = sys.getrefcount(ids)
        runtime.dispatcher.dispatch([Notify(ids, payload, 0, len(payload))], 0, link)
        await asyncio.sleep(0)
        assert sys.getrefcount(ids) > references
        frame = link.waiting.pop()
        frame.cancel()
        frame.cancel()
        del frame
        await asyncio.sleep(0.01)
        gc.collect()
        # Its deadline is still known.
        assert sys.getrefcount(ids) == references

    running(agent, use)


# --- calls that do not wait ----------------------------------------------------------------


def test_a_call_that_does_not_wait_is_answered_at_once(agent: Agent) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("async")
    async def handle(n: int) -> Action:
        return number.set(n)

    async def use(runtime: Runtime, link: EngineLink) -> None:
        for n in range(3):
            dispatch(runtime, link, encode_messages([Message("async", (Argument.of("n", n),))]))
        assert link.waiting == []
        assert link.outgoing

    running(agent, use)


def test_a_call_runs_in_a_task_and_in_a_context_of_its_own(agent: Agent) -> None:
    variable: ContextVar[int] = ContextVar("variable", default=0)
    seen: list[object] = []

    @agent.message("async")
    async def handle(wait: bool) -> None:
        task = asyncio.current_task()
        seen.append(variable.get())
        variable.set(variable.get() + 1)
        if wait:
            await asyncio.sleep(0)
        assert isinstance(task, asyncio.Task)
        assert task is asyncio.current_task()
        assert task.get_loop() is asyncio.get_running_loop()
        seen.append(variable.get())

    async def use(runtime: Runtime, link: EngineLink) -> None:
        outer = asyncio.current_task()
        for wait in (False, True, False):
            argument = Argument.of("wait", wait)
            dispatch(runtime, link, encode_messages([Message("async", (argument,))]))
            assert asyncio.current_task() is outer
        await until(lambda: len(seen) == 6)
        assert variable.get() == 0

    running(agent, use)
    assert sorted(map(str, seen)) == ["0", "0", "0", "1", "1", "1"]


@pytest.mark.parametrize("wait", [False, True])
def test_timeouts_of_a_handlers_own_work_in_its_first_step(agent: Agent, wait: bool) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("async", timeout=TIMEOUT)
    async def handle() -> Action:
        if wait:
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            async with asyncio.TaskGroup() as group:
                inner = group.create_task(asyncio.sleep(0, 7))
            return number.set(inner.result())
        return number.set(0)

    with Engine(agent) as engine:
        assert engine.call("async") == {"txn.number": 7}


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("how", ["raises", "exits", "cancels itself", "is no action"])
def test_a_call_that_fails_in_any_step_costs_its_message(
    agent: Agent, wait: bool, how: str
) -> None:
    number = agent.variable("txn.number", int)

    @agent.message("async", fallback=number.set(-1))
    async def handle() -> Any:
        if wait:
            await asyncio.sleep(0)
        if how == "raises":
            raise ValueError("on purpose")
        if how == "exits":
            sys.exit("on purpose")
        if how == "cancels itself":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return number.set(1)
        return 7

    @agent.message("inline")
    def inline() -> Action:
        return number.set(2)

    with Engine(agent, raise_errors=False) as engine:
        reply = engine.notify([Message("async"), Message("inline"), Message("async")])
    assert [action.value for action in reply.actions] == [-1, 2, -1]
    assert reply.error is not None


def test_observers_see_a_message_after_the_ack_of_a_call_that_does_not_wait(agent: Agent) -> None:
    events: list[str] = []

    @agent.message("async")
    async def handle(wait: bool) -> None:
        events.append("handled")
        if wait:
            await asyncio.sleep(0)

    @agent.observe("async")
    def see(wait: bool) -> None:
        events.append(f"observed {wait}")

    async def use(runtime: Runtime, link: EngineLink) -> None:
        for wait in (False, True):
            argument = Argument.of("wait", wait)
            dispatch(runtime, link, encode_messages([Message("async", (argument,))]))
        await until(lambda: len(events) == 4)

    running(agent, use)
    assert sorted(events) == ["handled", "handled", "observed False", "observed True"]
    assert events.index("handled") < events.index("observed False")


# --- threads -------------------------------------------------------------------------------


def runner(agent: Agent, function: Callable[[], Any]) -> BoundHandler:
    agent.message("message", threaded=True)(function)
    return bound_handler(agent.handlers[0], function)


class Submitted:
    """A frame that waits for a call in a thread."""

    def __init__(self, threads: ThreadPool, bound: BoundHandler) -> None:
        loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = loop.create_future()
        self.call = PendingCall(bound, loop.time() + TIMEOUT)
        self.call.frame = self
        self.call.ended = EndedCalls(loop, self.resume)
        threads.submit(self.call, [])

    def resume(self, calls: list[PendingCall]) -> None:
        assert calls == [self.call]
        self.outcome.set_result(self.call.result)


async def submit_when_free(threads: ThreadPool, bound: BoundHandler) -> Any:
    while True:
        try:
            return await Submitted(threads, bound).outcome
        except RefusedError:
            await asyncio.sleep(0.001)


def test_calls_over_the_threads_and_their_queue_are_refused(
    agent: Agent, blocked: threading.Event
) -> None:
    def block() -> str:
        blocked.wait(TIMEOUT)
        return threading.current_thread().name

    async def live() -> None:
        threads = ThreadPool(asyncio.get_running_loop(), size=2, queue=3)
        blocking = runner(agent, block)
        waiting = [Submitted(threads, blocking) for _ in range(5)]
        # What a deadline gives up keeps its slot until a thread has seen it.
        waiting[4].call.cancel()
        waiting[0].call.cancel()
        for _ in range(2):
            with pytest.raises(RefusedError, match="2 threads are busy, and 3 calls wait"):
                Submitted(threads, blocking)
        blocked.set()
        async with asyncio.timeout(TIMEOUT):
            outcomes = await asyncio.gather(*(each.outcome for each in waiting[1:4]))
            assert set(outcomes) <= {"spoakit-0", "spoakit-1"}
            outcome = await submit_when_free(threads, blocking)
            assert outcome in {"spoakit-0", "spoakit-1"}
        assert blocking.calls == 5
        assert not waiting[0].outcome.done()
        threads.close()

    asyncio.run(live())


def test_threads_are_started_as_they_are_needed_and_end(agent: Agent) -> None:
    async def live() -> None:
        threads = ThreadPool(asyncio.get_running_loop(), size=8)
        quick = runner(agent, lambda: None)
        for _ in range(50):
            await Submitted(threads, quick).outcome
        assert len(pool()) == 1
        threads.close()

    asyncio.run(live())
    wait_until(lambda: pool() == [])


def test_nobody_waits_for_a_thread_that_hangs(
    agent: Agent, blocked: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    @agent.message("message", threaded=True, timeout=0.01)
    def hang() -> None:
        blocked.wait(TIMEOUT)

    start = time.monotonic()
    with Engine(agent, raise_errors=False) as engine:
        assert isinstance(engine.call("message").error, DeadlineError)
    assert time.monotonic() - start < TIMEOUT / 2
    [thread] = pool()
    # Nor does the interpreter, when it exits.
    assert thread.daemon
    blocked.set()
    wait_until(lambda: pool() == [])
    assert len(caplog.messages) == 1


# --- many at once --------------------------------------------------------------------------


def test_calls_that_end_in_one_round_are_acknowledged_together(agent: Agent) -> None:
    @agent.message("async")
    async def handle() -> None:
        await asyncio.sleep(0)

    class Batches(EngineLink):
        """A connection that notes how many ACKs come at once."""

        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def finish(self, frames: Sequence[PendingFrame]) -> None:
            self.sizes.append(len(frames))

    async def use(runtime: Runtime, unused: EngineLink) -> None:
        links = Batches(), Batches()
        for link in links:
            for _ in range(20):
                dispatch(runtime, link, encode_messages([Message("async")]))
        await until(lambda: all(link.sizes for link in links))
        assert [link.sizes for link in links] == [[20], [20]]

    running(agent, use)

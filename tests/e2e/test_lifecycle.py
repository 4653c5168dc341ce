"""Agents come, go, hang and die, and the requests of a real HAProxy's clients hardly notice."""

import os
import signal
from collections import Counter
from contextlib import ExitStack
from time import monotonic
from zlib import crc32

import pytest

from spoakit.spop import Message
from spoakit.testing import EngineClient
from spoakit.testing.haproxy import HAProxy
from spoakit.testing.pytest_plugin import StartHAProxy
from tests.support.haproxy_configuration import haproxy_cfg, show, spoe_cfg
from tests.support.load import CLIENTS, Load
from tests.support.programs import Program, Serve, get
from tests.support.waiting import wait_until

PROCESSING = 1.0  # seconds that HAProxy waits for an agent, in these tests
UNHARMED = PROCESSING / 2  # what took less has not waited for that

AGENT = """
import os
from spoakit import Action, Agent

tested = Agent("tested")
value = tested.variable("txn.value", int)

@tested.message("request")
def request() -> Action:
    return value.set(os.getpid())
"""
REQUEST = "spoe-message request\n    args {}\n    event on-frontend-http-request\n"
SHOWN = show(x_value="var(txn.tested.value)", x_error="var(txn.tested.error)")
CHECKED = "inter 50ms fall 1 rise 1"


@pytest.fixture
def balance(haproxy: StartHAProxy) -> "Balance":
    return Balance(haproxy)


class Balance:
    """Start a HAProxy that asks an agent, and shows what it set and what went wrong."""

    def __init__(self, haproxy: StartHAProxy) -> None:
        self._haproxy = haproxy

    def __call__(self, agent: Program, arguments: str = "", backend: str = "") -> HAProxy:
        spoe = spoe_cfg(
            REQUEST.format(arguments), messages="request", processing=f"{PROCESSING:g}s"
        )
        return self._haproxy(
            haproxy_cfg(*SHOWN, server=CHECKED, backend=backend),
            files={"spoe.cfg": spoe},
            variables={"AGENT": agent.address},
        )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_under_load_makes_no_request_wait(
    serve: Serve, balance: Balance, workers: int
) -> None:
    agent = serve(AGENT, "--drain-checks", "300ms", "--drain", "500ms", "-n", str(workers))
    # A busy machine may not answer a check within 50 ms.
    running = balance(agent, backend="timeout check 2s")
    with Load(running) as load:
        load.wait_for(50)
        signalled = monotonic()
        agent.process.send_signal(signal.SIGTERM)
        running.wait_for_log("Server agents/agent is DOWN, reason: Layer7 invalid response")
        assert agent.process.poll() is None
        assert agent.process.wait(5) == 0
        ended = monotonic()
        # 2.6 may be slow from here on: see below.
        load.wait_for(2 if running.version < "3.0" else 50)
    assert ended - signalled < 0.3 + 0.5 + 1
    assert not [answer for answer in load.answers if answer.value and answer.error]
    assert not [answer for answer in load.answers if answer.error and answer.ended_at < signalled]
    assert load.answers[-1].error
    # Up to 3.0, HAProxy goes on using the connections that it has to an agent that is down, and
    # 2.6 may hold what it sends while they end, and what comes then, for the processing timeout.
    waited = [answer for answer in load.answers if answer.seconds > UNHARMED]
    if running.version < "3.0":
        waited = [answer for answer in waited if answer.ended_at < ended]
    assert waited == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_hangs_costs_seconds_and_then_all_is_well(
    serve: Serve, balance: Balance, workers: int
) -> None:
    agent = serve(AGENT, "--worker-timeout", "1s", "-n", str(workers))
    running = balance(agent)
    with Load(running) as load:
        load.wait_for(50)
        os.kill(agent.children[0], signal.SIGSTOP)
        agent.wait_for("was killed, because it hung; it is replaced")
        wait_until(lambda: len(agent.children) == workers, "a successor")

        def is_well() -> bool:
            return not any(answer.error for answer in load.answers[-100:])

        load.wait_for(100)
        wait_until(is_well, "100 answers without an error")
    assert agent.stop() == 0


STUCK = """
import asyncio
from spoakit import Agent

tested = Agent("tested")

@tested.message("request", timeout=60)
async def request() -> None:
    print("it has come", flush=True)
    await asyncio.sleep(60)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_sigterm_ends_a_drain_at_once(serve: Serve, workers: int) -> None:
    agent = serve(STUCK, "--drain", "30s", "-n", str(workers))
    with connect(agent) as engine:
        engine.hello()
        engine.notify(Message("request"))
        agent.wait_for("it has come")
        agent.process.send_signal(signal.SIGTERM)
        agent.wait_for("stopping: SIGTERM")

        def obeyed() -> bool:
            agent.process.send_signal(signal.SIGTERM)
            return "second SIGTERM: ending at once" in agent.log

        # Signals within half a second of each other are one.
        wait_until(obeyed, "the second SIGTERM")
        assert agent.process.wait(1) in (128 + signal.SIGTERM, -signal.SIGTERM)
        engine.wait_for_close()


def connect(agent: Program) -> EngineClient:
    host, _, port = agent.address.rpartition(":")
    return EngineClient(host, int(port))


def test_connections_are_shared_evenly_among_the_workers(serve: Serve) -> None:
    agent = serve(AGENT, "-n", "4")
    with ExitStack() as stack:
        engines = [stack.enter_context(connect(agent)) for _ in range(8)]
        for engine in engines:
            engine.hello()
        serving = Counter(engine.call("request")["txn.value"] for engine in engines)
    assert serving == dict.fromkeys(agent.children, 2)


def test_a_killed_worker_is_replaced_while_the_others_go_on(serve: Serve, balance: Balance) -> None:
    agent = serve(AGENT, "-n", "4")
    running = balance(agent)
    with Load(running) as load:
        load.wait_for(20)
        victim = int(load.answers[-1].value)
        os.kill(victim, signal.SIGKILL)
        agent.wait_for(rf"process {victim}\) ended unexpectedly: signal 9")
        load.wait_for(50)
        wait_until(lambda: len(agent.children) == 4, f"a successor of {victim}")
    # What is with the worker when it dies is lost, also what HAProxy sends it before it has seen
    # the connection end; up to 3.0 it waits for that all the same. No client loses another.
    harmed = [each for each in load.answers if each.error or each.seconds > UNHARMED]
    assert len(harmed) <= CLIENTS
    # A check that met the killed worker has failed; the next one does not.
    wait_until(lambda: running.server_status("agents", "agent") == "UP", "good checks")


def test_a_dead_agent_costs_nothing_and_is_used_again_when_it_is_back(
    serve: Serve, balance: Balance
) -> None:
    agent = serve(AGENT)
    running = balance(agent)
    with Load(running) as load:
        load.wait_for(20)
        agent.kill()
        running.wait_for_log("Server agents/agent is DOWN")
        noticed = monotonic()
        # 2.6 may be slow from here on until the agent is back: see above.
        load.wait_for(2 if running.version < "3.0" else 50)
        assert not load.answers[-1].value
        serve(AGENT, "-p", agent.address.rpartition(":")[2])
        running.wait_for_log("Server agents/agent is UP")
        back = monotonic()
        load.wait_for(50)
        assert load.answers[-1].value
    quick_from = back if running.version < "3.0" else noticed
    assert max(answer.seconds for answer in load.since(quick_from)) < UNHARMED


def test_a_hanging_agent_is_left_alone_as_soon_as_its_checks_fail(
    serve: Serve, balance: Balance
) -> None:
    agent = serve(AGENT)
    running = balance(agent, backend="timeout check 50ms")
    if running.version < "3.1":
        pytest.skip("up to 3.0, HAProxy goes on using the connections that it has")
    with Load(running) as load:
        load.wait_for(20)
        [worker] = agent.children
        os.kill(worker, signal.SIGSTOP)
        running.wait_for_log("Server agents/agent is DOWN")
        noticed = monotonic()
        load.wait_for(50)
        assert not load.answers[-1].value
        os.kill(worker, signal.SIGCONT)
        running.wait_for_log("Server agents/agent is UP")
        load.wait_for(50)
        assert load.answers[-1].value
    assert max(answer.seconds for answer in load.since(noticed)) < UNHARMED


def test_one_haproxy_takes_over_from_another_under_load(serve: Serve, balance: Balance) -> None:
    agent = serve(AGENT, "-n", "2")
    for _ in range(3):
        old = balance(agent)
        with Load(old) as old_load:
            old_load.wait_for(20)
            new = balance(agent)
            with Load(new) as load:
                load.wait_for(20)
        old.stop()
        assert get(new)["x-value"]
        assert [answer.error for answer in (*old_load.answers, *load.answers) if answer.error] == []
        new.stop()
    assert "ERROR" not in agent.log
    assert "WARNING" not in agent.log


LARGE = """
from zlib import crc32
from spoakit import Action, Agent

tested = Agent("tested")
value = tested.variable("txn.value", int)

@tested.message("request")
def request(one: bytes, two: bytes, three: bytes) -> Action:
    return value.set(crc32(one + two + three))
"""


def test_what_exceeds_a_frame_comes_in_fragments_or_not_at_all(
    serve: Serve, balance: Balance
) -> None:
    agent = serve(LARGE, "--max-frame-size", "512")
    running = balance(agent, "one=req.hdr(x-one) two=req.hdr(x-two) three=str(three)")
    one, two = "1" * 2000, "2" * 3000
    small = {"x-one": "1", "x-two": "2"}
    for _ in range(3):
        # Up to 3.0, HAProxy knows the agreed size only after its first connection's HELLO.
        assert int(get(running, headers=small)["x-value"]) == crc32(b"12three")
        before = monotonic()
        answer = get(running, headers={"x-one": one, "x-two": two})
        assert monotonic() - before < UNHARMED
        if running.version < "3.1":
            assert int(answer["x-value"]) == crc32(f"{one}{two}three".encode())
        else:
            assert (answer["x-value"], bool(answer["x-error"])) == ("", True)


TALKATIVE = """
from spoakit import Action, Agent

tested = Agent("tested")
value = tested.variable("txn.value", str)

@tested.message("request")
def request(size: int) -> Action:
    return value.set("x" * size)
"""


def test_an_ack_that_would_exceed_a_frame_is_sent_without_its_actions(
    serve: Serve, balance: Balance
) -> None:
    agent = serve(TALKATIVE, "--max-frame-size", "512")
    running = balance(agent, "size=req.hdr(x-size),add(0)")
    for size, shown in ((10, 10), (600, 0), (400, 400), (5000, 0), (10, 10)):
        answer = get(running, headers={"x-size": str(size)})
        assert (answer["x-value"], answer["x-error"]) == ("x" * shown, "")
    agent.wait_for("exceeded the agreed 512 bytes and was sent without its actions")

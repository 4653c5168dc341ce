"""spoakit.server.fatal_errors: a worker without memory ends, and says so."""

import os
import subprocess
import sys
from contextlib import suppress
from time import monotonic

import pytest

from spoakit import Message
from spoakit.server.fatal_errors import EXIT_CODE
from spoakit.testing import EngineClient
from tests.support.ports import free_port
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.slow

# An agent served in a process, and an engine in a thread of it. What takes all memory at once
# fails at once, as everything does where none is left. "own" stands for spoakit's code: the
# traceback of its error has no frame but spoakit's.
PROGRAM = """
import asyncio, sys
from functools import partial
from spoakit import Action, Agent
from spoakit.log_output import configure_logging
from spoakit.server import Listen, ServerSettings
from spoakit.server.fatal_errors import end_on_memory_error
from spoakit.testing import AgentServer, EngineClient

TOO_MUCH = 1 << 60

def around(handler, message):
    return partial(bytearray, TOO_MUCH) if message.startswith("own") else handler

agent = Agent("agent", middleware=[around])
number = agent.variable("txn.number", int)

@agent.message("inline", fallback=number.set(-1))
def inline() -> Action:
    return number.set(len(bytearray(TOO_MUCH)))

@agent.message("async", fallback=number.set(-1))
async def in_task() -> Action:
    return number.set(len(bytearray(TOO_MUCH)))

@agent.message("threaded", fallback=number.set(-1), threaded=True)
def in_thread() -> Action:
    return number.set(len(bytearray(TOO_MUCH)))

@agent.observe("inline")
def see() -> None:
    bytearray(TOO_MUCH)

@agent.message("own-inline")
def own_inline() -> None: ...

@agent.message("own-async")
async def own_async() -> None: ...

@agent.message("own-threaded", threaded=True)
def own_threaded() -> None: ...

@agent.observe("own-observer")
def own_observer() -> None: ...

def set_up():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(end_on_memory_error)
    return loop

configure_logging()
loop_name, what = sys.argv[1:]
settings = ServerSettings(listen=Listen.at("127.0.0.1", 0), loop=loop_name)
with AgentServer(agent, settings=settings) as server:
    loop = server.call(set_up)
    with EngineClient(port=server.port) as engine:
        engine.hello()
        for message in ("inline", "async", "threaded"):
            print(message, engine.call(message)["txn.number"], flush=True)
        if what == "callback":
            loop.call_soon_threadsafe(bytearray, TOO_MUCH)
        if what != "nothing":
            engine.call(what)
            engine.call("inline")  # after the observers of the call before
print("served on")
"""


def run(loop: str, what: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PROGRAM, loop, what]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=stderr, timeout=TIMEOUT, check=False
    )


@pytest.mark.parametrize("loop", ["uvloop", "epoll"])
def test_handlers_that_ask_for_too_much_memory_fail_alone(loop: str) -> None:
    done = run(loop, "nothing")
    assert done.stdout.split() == b"inline -1 async -1 threaded -1 served on".split()
    assert done.returncode == 0


@pytest.mark.parametrize("loop", ["uvloop", "epoll"])
@pytest.mark.parametrize(
    "what", ["callback", "own-inline", "own-async", "own-threaded", "own-observer"]
)
def test_a_process_without_memory_ends(loop: str, what: str) -> None:
    done = run(loop, what)
    assert done.returncode == EXIT_CODE
    assert b"threaded -1" in done.stdout
    assert b"served on" not in done.stdout
    assert done.stderr.splitlines()[-1] == b"spoakit: out of memory, the worker ends at once"


def test_it_ends_too_where_nobody_reads_its_log() -> None:
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        assert run("uvloop", "own-inline", writer).returncode == EXIT_CODE
    finally:
        os.close(reader)
        os.close(writer)


# A process that has nothing left, whatever size is asked for.
FULL = """
import asyncio, resource
from functools import partial
from spoakit.server.fatal_errors import end_on_memory_error

sizes = (400, 300, 200, 100, 60, 40, 20, 1)
makers = [partial(bytearray, 100_000), *(partial(bytes, size) for size in sizes), list, object]
context = {"exception": MemoryError()}
loop = asyncio.new_event_loop()
kept = None
resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))
for make in makers:
    try:
        while True:
            kept = (make(), kept)
    except MemoryError:
        pass
end_on_memory_error(loop, context)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_the_last_line_needs_no_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL], stderr=subprocess.PIPE, timeout=TIMEOUT, check=False
    )
    assert done.returncode == EXIT_CODE
    assert done.stderr == b"spoakit: out of memory, the worker ends at once\n"


# An agent that keeps something of each frame, in a process that may not grow by 40 MiB.
LEAKING = """
import asyncio, resource, sys, threading
from spoakit import Agent
from spoakit.log_output import configure_logging
from spoakit.server import Listen, ServerSettings, serve
from spoakit.server.event_loops import loop_factory
from spoakit.server.fatal_errors import end_on_memory_error
from spoakit.testing import EngineClient

agent = Agent("agent")
kept = []

@agent.message("inline")
def inline() -> None:
    kept.append([object() for _ in range(200)])

@agent.message("async")
async def in_task() -> None:
    kept.append([object() for _ in range(200)])

@agent.message("threaded", threaded=True)
def in_thread() -> None:
    kept.append([object() for _ in range(200)])

@agent.observe("observer")
def see() -> None:
    kept.append([object() for _ in range(200)])

async def main():
    asyncio.get_running_loop().set_exception_handler(end_on_memory_error)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (40 << 20), size + (40 << 20)))
    await serve([agent], ServerSettings(listen=Listen.at("127.0.0.1", int(port))))

configure_logging()
loop, port = sys.argv[1:]
with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
    runner.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
@pytest.mark.parametrize("message", ["inline", "async", "observer"])
@pytest.mark.parametrize("loop", ["uvloop", "epoll"])
def test_a_process_whose_memory_is_exhausted_ends(loop: str, message: str) -> None:
    port = free_port()
    command = [sys.executable, "-c", LEAKING, loop, str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        end = monotonic() + TIMEOUT
        while process.poll() is None:
            assert monotonic() < end, "it goes on"
            with suppress(OSError), EngineClient(port=port) as engine:
                engine.hello()
                while True:
                    for ids in [engine.notify(Message(message)) for _ in range(50)]:
                        engine.ack(ids)
        assert process.stderr is not None
        log = process.stderr.read().splitlines()
    assert process.returncode == EXIT_CODE
    # Python may have begun a line of its own, about what it met in a destructor, and not have had
    # the memory to end it.
    assert log[-1].endswith(b"spoakit: out of memory, the worker ends at once")
    assert len(log) < 200

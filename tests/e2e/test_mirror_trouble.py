"""Targets in trouble behind a real HAProxy: neither others nor production notice."""

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import monotonic

import pytest

from benchmarks.resetting import resetting
from tests.support.capture import Capture, Received, answer_ok
from tests.support.load import Load
from tests.support.mirror import Mirror
from tests.support.mirror_targets import figures, get_all, table, with_one_haproxy
from tests.support.ports import free_port
from tests.support.programs import Program, connect
from tests.support.waiting import wait_until

# Reloads.


@pytest.mark.parametrize("workers", ["-n1", "-n2"])
def test_nothing_is_lost_by_reloads_under_load(mirror: Mirror, workers: str) -> None:
    with Capture() as first, Capture() as second, Capture() as always:
        steady = table("always", always.address)
        program = mirror.serve_configured(table("first", first.address) + steady, workers)
        running = mirror.balance(program)
        count = int(workers[2:])
        with Load(running) as load:
            load.wait_for(30)
            mirror.configure("drain = '11s'\n" + table("second", second.address) + steady)
            program.process.send_signal(signal.SIGHUP)
            wait_until(lambda: program.log.count("reloaded: ") >= count, "a reload")
            load.wait_for(30)
            mirror.configure("[[target]]\nurl = 'ftp://nowhere'\n")

            def refused() -> bool:
                # Signals within half a second of each other are one.
                program.process.send_signal(signal.SIGHUP)
                return (
                    re.search(r"ERROR .*mirror\.toml: target\[1\]\.url: .*ftp", program.log)
                    is not None
                )

            wait_until(refused, "a refused reload")
            load.wait_for(30)
        assert program.stop() == 0
        assert program.log.count("a changed drain needs a restart") == 1
        total = len(load.answers)
        assert not any(answer.error for answer in load.answers)
        assert len(always.requests) == total
        assert len(first.requests) + len(second.requests) == total
        assert len(first.requests) >= 30
        assert len(second.requests) >= 60
    for name in ("first", "second", "always"):
        assert f"{name}: " in program.log
    assert " dropped, " in program.log
    assert not re.search("[1-9][0-9]* (dropped|failed|refused)", program.log)


@with_one_haproxy
def test_a_watched_file_is_reloaded_when_it_changes(mirror: Mirror) -> None:
    with Capture() as first, Capture() as second:
        program = mirror.serve_configured(table("first", first.address), "--watch")
        running = mirror.balance(program)
        get_all(running, "/1")
        first.wait_for(1)

        def changed() -> bool:
            # What changes before it is watched is not noticed.
            mirror.configure(table("second", second.address))
            return "reloaded: " in program.log

        wait_until(changed, "a reload")
        get_all(running, "/2")
        second.wait_for(1)
        mirror.configure("[[target]]\nurl = 1\n")
        program.wait_for(r"mirror\.toml: target\[1\]\.url: .*str")
        get_all(running, "/3")
        second.wait_for(2)
    assert len(first.requests) == 1


# Targets in trouble.


@with_one_haproxy
def test_a_dead_target_is_told_of_once_and_the_other_never_notices(mirror: Mirror) -> None:
    port = free_port()
    with Capture() as well:
        program = mirror.serve_configured(
            table("dead", f"127.0.0.1:{port}", "timeouts.max-backoff = '200ms'")
            + table("well", well.address)
        )
        running = mirror.balance(program)
        before = memory(program)
        for number in range(200):
            assert not any(get_all(running, f"/{number}"))
        well.wait_for(200)
        program.wait_for(r"WARNING .*dead: .*; copies wait")
        assert memory(program) - before < 6 * 1024 * 1024
        with Capture(port) as back:
            back.wait_for(200)
            program.wait_for(
                r"INFO .*dead: can be reached again after \d+\.\d s; \d+ copies waiting"
            )
            assert {each.target for each in back.requests} == {
                each.target for each in well.requests
            }
    assert program.stop() == 0
    assert program.log.count("; copies wait\n") == 1
    assert program.log.count("reached again") == 1
    assert "well: " not in program.log.partition("stopping")[0]
    dead, good = figures(program, "dead"), figures(program, "well")
    assert (dead["responses"], dead["failed"], dead["dropped"]) == (200, 0, 0)
    assert dead["connect failures"] > 0
    assert (good["responses"], good["connect failures"], good["retried"]) == (200, 0, 0)


def memory(program: Program) -> int:
    """Return the bytes that its only process has in use."""
    pages = Path(f"/proc/{program.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def slow(seconds: float) -> Iterator[Capture]:
    """Run a target that takes so long for each answer, until its block ends."""
    over = threading.Event()

    def answer(received: Received) -> bytes:
        over.wait(seconds)
        return answer_ok(received)

    with Capture(answer=answer) as target:
        try:
            yield target
        finally:
            over.set()


def test_targets_in_trouble_touch_neither_a_healthy_one_nor_production(mirror: Mirror) -> None:
    bounds = "queue = { length = 1000, bytes = '256KiB' }"
    with ExitStack() as stack:
        healthy = stack.enter_context(Capture())
        tardy = stack.enter_context(slow(0.5))
        reset = stack.enter_context(resetting())
        alone = table("healthy", healthy.address)
        troubled = (
            table("slow", tardy.address, "connections = 4", bounds)
            + table("dead", f"127.0.0.1:{free_port()}", bounds)
            + table("resetting", f"127.0.0.1:{reset}", bounds)
        )
        program = mirror.serve_configured(alone, "--drain", "0")
        running = mirror.balance(program)
        body = b"x" * 10_000

        def measure(path: str, count: int) -> list[float]:
            """Return what requests took, the quickest first."""
            took = []
            with closing(connect(running)) as client:
                for _ in range(count):
                    before = monotonic()
                    client.request("POST", path, body)
                    with client.getresponse() as answer:
                        answer.read()
                        assert answer.headers["x-error"] == ""
                    took.append(monotonic() - before)
            return sorted(took)

        undisturbed = measure("/undisturbed", 300)
        mirror.configure(alone + troubled)
        program.process.send_signal(signal.SIGHUP)
        program.wait_for("reloaded: 4 targets, 3 new, 0 removed")
        before = memory(program)
        disturbed = measure("/disturbed", 900)
        # The time of a machine that others use as well varies more than this does; a request that
        # waited for a target would take half a second.
        for share in (0.5, 0.95):
            before_it = undisturbed[int(share * len(undisturbed))]
            assert disturbed[int(share * len(disturbed))] < 2 * before_it + 0.01
        healthy.wait_for(1200)
        # 900 bodies for each of three targets are 27 MB, were there no bounds.
        assert memory(program) - before < 6 * 1024 * 1024
        assert program.stop() == 0
        assert len(healthy.requests) == 1200
        assert all(each.body == body for each in healthy.requests)
    assert figures(program, "healthy")["responses"] == 1200
    for name in ("slow", "dead", "resetting"):
        trouble = figures(program, name)
        assert trouble["received"] == 900
        assert trouble["dropped"] > 700
        assert f"WARNING spoakit.mirror: {name}: the queue is full, the oldest" in program.log
    assert figures(program, "dead")["connect failures"] > 0
    assert figures(program, "resetting")["failed"] > 0
    assert program.log.count("; copies wait\n") == 2


@with_one_haproxy
def test_a_rate_and_a_short_queue_bound_what_a_target_gets(mirror: Mirror) -> None:
    with Capture() as limited, slow(60) as tardy:
        program = mirror.serve_configured(
            table("limited", limited.address, "rate = 5")
            + table(
                "newest",
                tardy.address,
                "connections = 1",
                "queue = { length = 10, overflow = 'drop-newest' }",
            ),
            "--drain",
            "0",
        )
        running = mirror.balance(program)
        assert not any(get_all(running, *(f"/{number}" for number in range(50))))
        tardy.wait_for(1)
        assert program.stop() == 0
        assert tardy.requests[0].target == b"/0"
    rated, dropping = figures(program, "limited"), figures(program, "newest")
    accepted = rated["responses"] + rated["failed"]  # the stop may come before an answer
    assert accepted + rated["rate limited"] == 50
    assert 1 <= accepted <= 10
    assert dropping["dropped"] >= 39
    assert "newest: the queue is full, the newest request is dropped" in program.log


# Stopping, and being asked.


@with_one_haproxy
def test_a_stop_waits_for_the_queue_as_long_as_it_was_told_to(mirror: Mirror) -> None:
    with Capture() as quick, socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        program = mirror.serve_configured(
            table("quick", quick.address) + table("silent", f"{host}:{port}", "connections = 2"),
            "--drain",
            "300ms",
        )
        running = mirror.balance(program)
        get_all(running, *(["/"] * 20))
        before = monotonic()
        assert program.stop() == 0
        assert 0.3 <= monotonic() - before < 2
        assert len(quick.requests) == 20
    assert "silent: stopped with 18 requests not sent" in program.log
    counted = figures(program, "silent")
    assert (counted["received"], counted["dropped"], counted["failed"]) == (20, 18, 2)
    assert figures(program, "quick")["responses"] == 20
    # The log of requests is written by itself, and may come after that.
    own = [line for line in program.log.splitlines() if not line.startswith("[ 1]")]
    assert "silent: 20 received" in own[-1]


@pytest.mark.parametrize("workers", ["-n1", "-n2"])
@with_one_haproxy
def test_sigusr2_shows_the_counters(mirror: Mirror, workers: str) -> None:
    with Capture() as target:
        program = mirror.serve_configured(
            table("all", target.address) + table("none", target.address + "/none", "sample = 0"),
            workers,
        )
        running = mirror.balance(program)
        get_all(running, *(["/"] * 12))
        target.wait_for(12)

        def shown() -> bool:
            program.process.send_signal(signal.SIGUSR2)
            return program.log.count("requests 12 (+") >= 2

        # What is counted is published within the second.
        wait_until(shown, "the counters")
        [*_, none] = re.findall("target none: (.*)", program.log)
        [*_, all_of_them] = re.findall("target all: (.*)", program.log)
        assert "not copied not_selected 12 (+" in none
        assert "responses 2xx 12 (+" in all_of_them
        assert "first byte p50 " in all_of_them
        assert "failures" not in program.log

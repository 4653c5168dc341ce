"""Metrics of running programs, as their log tells them."""

import os
import random
import re
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Thread

from spoakit.testing import EngineClient
from tests.support.capture import Capture
from tests.support.ports import free_port
from tests.support.programs import Program, Serve, Start
from tests.support.waiting import wait_until

LOGINS = """
from spoakit import Action, Agent, metrics

LOGINS = metrics.counter("logins_total", "Logins by result.", labels=("result",))
TOOK = metrics.histogram("login_seconds", "Time of a login.")
tested = Agent("tested")
found = tested.variable("txn.found", bool)

@tested.message("login", threaded=True)
def login(user: str) -> Action:
    LOGINS.add(result="ok" if user == "me" else "refused")
    TOOK.observe(0.25)
    return found.set(user == "me")
"""
ENDS = ("responses", "failures", "dropped", "not copied", "waiting", "in flight")
BLOCK = b"\x04host\x09shop.test\x00\x00"


def report(program: Program) -> list[str]:
    """Have a program log its metrics, and return the lines."""
    before = program.log.count("in the last ")

    def reported() -> bool:
        # One signal soon after another counts as the same, and a first second has no workers yet.
        program.process.send_signal(signal.SIGUSR2)
        reports = program.log.split("in the last ")
        return len(reports) > before + 1 and "worker 1: " in reports[-1]

    wait_until(reported, "a report of the workers")
    lines = program.log.rpartition("in the last ")[2].splitlines()
    return [line.partition(" INFO spoakit.server: ")[2] for line in lines]


def figures(lines: list[str], subject: str) -> dict[str, int]:
    """Return the figures of a target, those of several reasons or classes together."""
    found: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        if line.startswith(f"{subject}: "):
            for name, value in re.findall(r"([a-z][\w ]*?) ([\d,]+)(?= \(|, |$)", line):
                base = next((end for end in ENDS if name.startswith(end)), name)
                if name != "waiting":
                    found[base] += int(value.replace(",", ""))
                else:
                    found["waiting"] += int(value.replace(",", ""))
    return found


def test_an_agents_own_metrics_are_those_of_all_workers(serve: Serve) -> None:
    program = serve(LOGINS, "-n", "2")
    port = int(program.address.rpartition(":")[2])
    for _ in range(4):
        with EngineClient(port=port) as engine:
            engine.hello()
            for user in ("me", "you", "me"):
                engine.call("login", user=user)

    def shown() -> bool:
        lines = report(program)
        return any("logins ok 8 (+" in line and "logins refused 4 (+" in line for line in lines)

    wait_until(shown, "what both workers have counted")
    [*_, message] = re.findall("message login: (.*)", program.log)
    assert "messages 12 (+" in message
    assert re.search(r"handler p50 [\d.]+ [mu]s p99 [\d.]+ [mu]?s p99.9 ", message)
    assert re.search(r"worker [12]: resident memory [\d.]+ MiB", program.log)
    assert "login p50 2" in program.log


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Give the port of a server that answers each read with some bytes; with none, by a reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_one(connection: socket.socket) -> None:
            # A worker that is killed resets its connections.
            with closing(connection), suppress(ConnectionError):
                while connection.recv(65536):
                    if not answer:
                        linger = b"\1\0\0\0\0\0\0\0"
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        return
                    connection.sendall(answer)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                Thread(target=serve_one, args=(connection,), daemon=True).start()

        Thread(target=serve, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def test_sums_hold_at_any_moment_though_a_worker_is_killed(start: Start, tmp_path: Path) -> None:
    chance = random.Random(5)
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    folded = b"HTTP/1.1 204 No Content\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok"
    # SETTINGS, and a GOAWAY that says that no stream was looked at.
    goaway = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)) + bytes((0, 0, 8, 7)) + bytes(5 + 8)
    port = free_port()
    with (
        Capture() as healthy,
        answering(ok) as quick,
        answering(folded) as odd,
        answering(goaway) as refusing,
        answering(b"") as resetting,
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.socket() as dead,
    ):
        dead.bind(("127.0.0.1", 0))
        ports = {
            "healthy": healthy.address.rpartition(":")[2],
            "slow": quick,
            "odd": odd,
            "refusing": refusing,
            "resetting": resetting,
            "silent": silent.getsockname()[1],
            "dead": dead.getsockname()[1],
        }
        tables = [
            f"[[target]]\nname = '{name}'\nurl = 'http://127.0.0.1:{target}'\n"
            f"connections = {1 if name in ('slow', 'silent') else 8}\n"
            f"http = '{2 if name == 'refusing' else 1.1}'\n[target.queue]\nlength = 40\n"
            "[target.timeouts]\nfirst-byte = 0.3\nmin-backoff = 0.05\n"
            for name, target in ports.items()
        ]
        file = tmp_path / "mirror.toml"
        file.write_text("[log]\nquiet = true\n" + "".join(tables))
        program = start(
            "spoakit.cli.mirror", "-r0", "--config", str(file), "-n2", "-a127.0.0.1", f"-p{port}"
        )
        for moment in range(10):
            for _ in range(2):
                with EngineClient(port=port) as engine:
                    engine.hello()
                    for number in range(chance.randrange(60)):
                        engine.call(
                            "mirror",
                            arg_method="GET",
                            arg_path=f"/{number}",
                            arg_ver="1.1",
                            arg_hdrs=BLOCK,
                        )
            if moment == 5:
                os.kill(program.children[0], signal.SIGKILL)
                program.wait_for("ended unexpectedly")
            time.sleep(chance.random() * 0.3)  # any moment is as good as another
            lines = report(program)
            for name in ports:
                counted = figures(lines, f"target {name}")
                assert counted["requests"] == sum(counted[end] for end in ENDS), (name, lines)
        lines = report(program)
        assert figures(lines, "target odd")["failures"] == 0
        assert figures(lines, "target refusing")["requests"] > 100
        assert "refusing: ends connections without a response: the target ended" in program.log
        counted = figures(lines, "target silent")
        assert counted["requests"] > 100
        assert counted["failures"] > 0
        assert counted["dropped"] > 0

"""Middleware in a service of several processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import wait_until
from spoakit.exceptions import SpoakitError
from spoakit.testing import EngineClient
from tests.support.ports import free_port
from tests.support.processes import children_of

PROGRAM = """
import os, sys
from spoakit import Action, Agent, run

def register_metric(handler, name):
    with open(sys.argv[2], "a") as applied:
        applied.write(f"{name}\\n")
    return lambda *values: handler(*values)

agent = Agent("counting", middleware=[register_metric])
worker = agent.variable("txn.worker", int)

@agent.message("check")
def check() -> Action:
    return worker.set(os.getpid())

sys.exit(run(agent, address="127.0.0.1", port=int(sys.argv[1]), workers=2))
"""


def answering_worker(port: int) -> object:
    try:
        with EngineClient(port=port) as engine:
            engine.hello()
            return engine.call("check").get("txn.worker")
    except (OSError, SpoakitError):
        return None


def test_it_is_applied_once_for_all_workers_and_their_successors(tmp_path: Path) -> None:
    applied, port = tmp_path / "applied", free_port()
    command = [sys.executable, "-c", PROGRAM, str(port), str(applied)]
    with subprocess.Popen(command) as service:
        try:
            assert wait_until(lambda: answering_worker(port) is not None, 20)
            first = set(children_of(service.pid))
            assert len(first) == 2
            for worker in first:
                os.kill(worker, signal.SIGKILL)
            assert wait_until(lambda: answering_worker(port) not in (None, *first), 20)
        finally:
            service.terminate()
        assert service.wait(20) == 0
    assert applied.read_text() == "check\n"

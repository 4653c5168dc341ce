"""What happens to the agents while HAProxy's clients are served; each ends as it began."""

import os
import signal
import socket
from collections.abc import Callable
from ipaddress import IPv4Address

from tests.fuzz.mutations import HELLO
from tests.soak.scene import WORKERS, Agent, Scene, wait

from spoakit.testing import EngineClient

Incident = Callable[[Scene], None]

SCORED = IPv4Address("198.51.100.7")
BROKEN_PEERS = 20  # of each kind
BROKEN = (
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\0",
    HELLO[: len(HELLO) // 2],
    HELLO + b"\0\0\x10\0\x03",
)


def nothing(scene: Scene) -> None:
    """Comes first, to compare with."""


def reload_of_mirror(scene: Scene) -> None:
    scene.configure_mirror()
    with scene.mirror.logging("reloaded: 5 targets, 1 new, 1 removed", WORKERS):
        scene.mirror.signal(signal.SIGHUP)


def refused_reload(scene: Scene) -> None:
    scene.configure_mirror(more="unknown = 1")
    with scene.mirror.logging("reload refused, going on as before"):
        scene.mirror.signal(signal.SIGHUP)


def report_of_counters(scene: Scene) -> None:
    for agent in scene.agents:
        with agent.logging(" all: "):
            agent.signal(signal.SIGUSR2)


def rotation_of_logs(scene: Scene) -> None:
    scene.rotate_logs()


def restart_of_target(scene: Scene) -> None:
    with scene.mirror.logging("restarted: .*; requests wait until it answers", WORKERS):
        scene.stop_target()
    with scene.mirror.logging("restarted: answers again", WORKERS):
        scene.start_target()


def broken_peers(scene: Scene) -> None:
    for agent in scene.agents:
        for stream in BROKEN * BROKEN_PEERS:
            with socket.create_connection(("127.0.0.1", agent.port)) as peer:
                peer.sendall(stream)


def change_of_list(scene: Scene) -> None:
    with _engine(scene.iprep) as engine:
        scene.list_network("198.51.100.0/24")
        scene.iprep.signal(signal.SIGHUP)
        wait(lambda: _score(engine) == 0, f"{SCORED} is listed")
        scene.list_network("192.0.2.0/24")
        scene.iprep.signal(signal.SIGHUP)
        wait(lambda: _score(engine) != 0, f"{SCORED} is not listed any more")


def ban(scene: Scene) -> None:
    with _engine(scene.iprep) as engine:
        scene.control("ban", str(SCORED))
        wait(lambda: _score(engine) == 0, f"{SCORED} is banned")
        scene.control("unban", str(SCORED))
        wait(lambda: _score(engine) != 0, f"{SCORED} is not banned any more")


def killed_worker_of_mirror(scene: Scene) -> None:
    _kill_worker(scene.mirror)


def killed_worker_of_iprep(scene: Scene) -> None:
    _kill_worker(scene.iprep)


INCIDENTS: tuple[Incident, ...] = (
    nothing,
    reload_of_mirror,
    refused_reload,
    report_of_counters,
    rotation_of_logs,
    restart_of_target,
    broken_peers,
    change_of_list,
    ban,
    killed_worker_of_iprep,
    killed_worker_of_mirror,
)
# What a request's copy does not survive: it is in the worker's memory.
LOSING = frozenset((killed_worker_of_mirror,))


def _engine(agent: Agent) -> EngineClient:
    engine = EngineClient(port=agent.port)
    engine.hello()
    return engine


def _score(engine: EngineClient) -> object:
    return engine.call("check-client-ip", ip=SCORED).get("sess.ip_score")


def _kill_worker(agent: Agent) -> None:
    killed = agent.workers[0]
    os.kill(killed, signal.SIGKILL)

    def is_replaced() -> bool:
        workers = agent.workers
        return killed not in workers and len(workers) >= WORKERS

    wait(is_replaced, f"spoa-{agent.name} has another worker in the place of {killed}")

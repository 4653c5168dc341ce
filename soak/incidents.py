"""What happens to the agents while HAProxy's clients are served; each ends as it began."""

import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address

from fuzz.mutations import HELLO
from soak.scene import WORKERS, Agent, Scene, wait
from spoakit.testing import EngineClient

Incident = Callable[[Scene], None]

SCORED = IPv4Address("198.51.100.7")
ENGINES = 4
HUNG_BOUND = 40.0  # seconds until a worker that hangs is replaced: --worker-timeout and a start
# Requests on the connections of hung workers until these are replaced; 350 to 2,400 were seen.
HUNG_LOSSES = 2500 * WORKERS
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
    # A worker without requests does not meet the target's end, so one line is enough.
    with scene.mirror.logging("restarted: .*; copies wait"):
        scene.stop_target()
    with scene.mirror.logging("restarted: can be reached again"):
        scene.start_target()
    wait(lambda: scene.restarted.count() > 0, "the restarted target has requests again")


def broken_peers(scene: Scene) -> None:
    for agent in scene.agents:
        for stream in BROKEN * BROKEN_PEERS:
            with socket.create_connection(("127.0.0.1", agent.port)) as peer:
                peer.sendall(stream)


def change_of_list(scene: Scene) -> None:
    with _engines(scene.iprep) as engines:
        scene.list_network("198.51.100.0/24")
        scene.iprep.signal(signal.SIGHUP)
        wait(lambda: _scores(engines) == {0}, f"{SCORED} is listed")
        scene.list_network("192.0.2.0/24")
        scene.iprep.signal(signal.SIGHUP)
        wait(lambda: _scores(engines).isdisjoint((0, None)), f"{SCORED} is not listed any more")


def ban(scene: Scene) -> None:
    with _engines(scene.iprep) as engines:
        scene.control("ban", str(SCORED))
        wait(lambda: _scores(engines) == {0}, f"{SCORED} is banned")
        scene.control("unban", str(SCORED))
        wait(lambda: _scores(engines).isdisjoint((0, None)), f"{SCORED} is not banned any more")


def killed_workers_of_mirror(scene: Scene) -> None:
    _end_workers(scene.mirror, signal.SIGKILL)


def killed_workers_of_iprep(scene: Scene) -> None:
    _end_workers(scene.iprep, signal.SIGKILL)


def stopped_workers_of_mirror(scene: Scene) -> None:
    _end_workers(scene.mirror, signal.SIGSTOP)


def stopped_workers_of_iprep(scene: Scene) -> None:
    _end_workers(scene.iprep, signal.SIGSTOP)


def incidents(stop_workers: bool) -> tuple[Incident, ...]:
    """Return the incidents of a round, those with hung workers only if they are replaced."""
    return INCIDENTS + STOPPING * stop_workers


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
    killed_workers_of_iprep,
    killed_workers_of_mirror,
)
STOPPING: tuple[Incident, ...] = (stopped_workers_of_iprep, stopped_workers_of_mirror)
# A worker that is killed has requests and their copies in its memory. One that hangs has those of
# up to 64 clients, again after each of HAProxy's timeouts, until it is replaced.
LOST_COPIES: Mapping[Incident, int] = {
    killed_workers_of_mirror: 100 * WORKERS,
    stopped_workers_of_mirror: HUNG_LOSSES,
}
UNSCORED: Mapping[Incident, int] = {
    killed_workers_of_iprep: 100 * WORKERS,
    stopped_workers_of_iprep: HUNG_LOSSES,
}


@contextmanager
def _engines(agent: Agent) -> Iterator[list[EngineClient]]:
    """Connect several clients, so that more than one worker is likely to be asked."""
    with ExitStack() as stack:
        engines = []
        for _ in range(ENGINES):
            engine = stack.enter_context(EngineClient(port=agent.port))
            engine.hello()
            engines.append(engine)
        yield engines


def _scores(engines: Iterable[EngineClient]) -> set[object]:
    """Return the different scores, None among them where a response has none."""
    return {engine.call("check-client-ip", ip=SCORED).get("sess.ip_score") for engine in engines}


def _end_workers(agent: Agent, number: signal.Signals) -> None:
    """Send each worker a signal, one after the other: which has HAProxy's connections is open."""
    for worker in agent.workers:
        with agent.logging(rf"process {worker}\b"):
            os.kill(worker, number)
            _wait_for_successor(agent, worker)


def _wait_for_successor(agent: Agent, worker: int) -> None:
    def is_replaced() -> bool:
        workers = agent.workers
        return worker not in workers and len(workers) >= WORKERS

    wait(is_replaced, f"spoa-{agent.name} has another worker in the place of {worker}", HUNG_BOUND)

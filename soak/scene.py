"""What a soak runs: both agents behind one HAProxy, with an origin and targets in trouble."""

import csv
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.measure import BenchmarkError, Process, running, stop, wait_until
from benchmarks.resetting import resetting
from benchmarks.subjects import newest_haproxy
from benchmarks.tools import Sent, Tools
from spoakit.testing.haproxy import HAProxy, haproxy_version
from tests.support.ports import free_port
from tests.support.processes import children_of

WORKERS = 2
CONNECTIONS = 16  # of each worker to each target
SLOW_ANSWER = 500  # milliseconds
PROGRAMS = Path(sys.executable).parent
BOUND = 20.0  # seconds, for what is waited for
LAST_LINES = 20  # of a log, which are shown with a problem

HAPROXY_CFG = """\
global
    maxconn 2000

defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s

frontend web
    bind "${FRONTEND}"
    option http-buffer-request
    filter spoe engine reputation config spoe.cfg
    filter spoe engine mirror config spoe.cfg
    http-request set-var(txn.scored) bool(true) if { var(sess.iprep.ip_score) -m found }
    http-request deny if { var(sess.iprep.ip_score) -m int lt 20 }
    # The scope is the client's connection: without this its next request has this one's score.
    http-request unset-var(sess.iprep.ip_score)
    use_backend unscored unless { var(txn.scored) -m found }
    default_backend origin

backend unscored
    server origin "127.0.0.1:${ORIGIN}"

backend origin
    server origin "127.0.0.1:${ORIGIN}"

backend mirrors
    mode @MODE@
    option spop-check
    server mirror "127.0.0.1:${MIRROR}" check inter 200ms

backend ipreps
    mode @MODE@
    option spop-check
    server iprep "127.0.0.1:${IPREP}" check inter 200ms
"""

SPOE_CFG = """\
[reputation]
spoe-agent iprep
    messages check-client-ip
    use-backend ipreps
    option var-prefix iprep
    option continue-on-error
    timeout hello 500ms
    timeout idle 30s
    timeout processing 2s

spoe-message check-client-ip
    args src
    event on-frontend-http-request

[mirror]
spoe-agent mirror
    messages mirror
    use-backend mirrors
    option var-prefix mirror
    option continue-on-error
    timeout hello 500ms
    timeout idle 30s
    timeout processing 2s

spoe-message mirror
    args arg_method=method arg_path=url arg_ver=req.ver arg_hdrs=req.hdrs_bin arg_body=req.body
    event on-frontend-http-request
"""

# The target that is restarted is also another one after each reload. The healthy one, whose copies
# are counted, has room for the burst of requests that follows a worker's standstill.
MIRROR_TOML = """\
[defaults]
connections = {connections}
timeouts = {{ connect = 1, first-byte = 1, total = 2 }}
queue = {{ length = 1000 }}

[[target]]
name = "healthy"
url = "http://127.0.0.1:{healthy}/"
queue = {{ length = 20000 }}

[[target]]
name = "restarted"
url = "http://127.0.0.1:{restarted}/"
marker = "X-Reload: {reload}"

[[target]]
name = "slow"
url = "http://127.0.0.1:{slow}/"

[[target]]
name = "dead"
url = "http://127.0.0.1:{dead}/"

[[target]]
name = "resetting"
url = "http://127.0.0.1:{resetting}/"
"""

IPREP_TOML = """\
[answers]
variables = ["ip_score"]

[policy]
block-private = true

[bans]
path = "bans.db"

[control]
path = "control.sock"

[[source]]
name = "listed"
type = "list"
path = "listed.txt"
score = 0
"""


@dataclass(frozen=True, slots=True)
class Held:
    """What an agent's processes hold: MB of memory (PSS), and open files."""

    memory: float
    files: int


@dataclass(frozen=True, slots=True)
class Agent:
    """One of the agents, as it runs."""

    name: str
    port: int
    process: Process
    log: Path

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers; while one is replaced there are fewer."""
        return children_of(self.process.popen.pid)

    @property
    def held(self) -> Held:
        files = sum(len(list(each.iterdir())) for each in self._descriptors)
        return Held(self.process.memory(), files)

    def signal(self, number: int) -> None:
        self.process.popen.send_signal(number)

    @property
    def _descriptors(self) -> list[Path]:
        return [Path(f"/proc/{pid}/fd") for pid in (self.process.popen.pid, *self.workers)]

    def is_using_its_log(self) -> bool:
        """Tell if all its processes write to the file of that name."""
        return all((each / "1").readlink() == self.log for each in self._descriptors)

    @contextmanager
    def logging(self, pattern: str, times: int = 1) -> Iterator[None]:
        """Wait until what is done in the block has led to so many such lines in the log."""
        start = self.log.stat().st_size

        def is_logged() -> bool:
            with self.log.open("rb") as log:
                log.seek(start)
                return len(re.findall(pattern.encode(), log.read())) >= times

        yield
        wait(is_logged, f"spoa-{self.name} logs {pattern!r} {times} times")


def wait(condition: Callable[[], bool], what: str, bound: float = BOUND) -> None:
    """Wait for a condition.

    Raises:
        BenchmarkError: it did not come true in time.
    """
    if not wait_until(condition, bound):
        raise BenchmarkError(f"not within {bound:g} s: {what}")


def has_worker_timeout() -> bool:
    """Return whether the agents replace a worker that hangs."""
    command = [str(PROGRAMS / "spoa-mirror"), "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=True)
    return "--worker-timeout" in printed.stdout


class Scene:
    """All that runs, from its making until `stack` is left; its files are in `folder`."""

    def __init__(self, tools: Tools, folder: Path, stack: ExitStack) -> None:
        self._tools = tools
        self._folder = folder
        self._errors: list[str] = []
        self._reloads = self._requests = self._copies = self._unscored = 0
        self.origin = stack.enter_context(tools.sink(folder / "origin.log"))
        self._healthy = stack.enter_context(tools.sink(folder / "healthy.log"))
        slow = stack.enter_context(tools.sink(folder / "slow.log", delay=SLOW_ANSWER))
        self._ports = {
            "healthy": self._healthy.port,
            "restarted": free_port(),
            "slow": slow.port,
            "dead": free_port(),
            "resetting": stack.enter_context(resetting()),
        }
        self._target = stack.enter_context(ExitStack())
        self.start_target()
        self.configure_mirror()
        (folder / "iprep.toml").write_text(IPREP_TOML)
        self.list_network("192.0.2.0/24")
        self.mirror = self._agent(stack, "mirror")
        self.iprep = self._agent(stack, "iprep")
        self._entrance = stack.enter_context(ExitStack())
        self.restart_haproxy()

    def send(self, count: int, rate: float) -> Sent:
        """Send HAProxy requests at a rate, over connections of their own."""
        port = self._haproxy.ports["FRONTEND"]
        return self._tools.bare_sender(port, 64, count=count, rate=rate)

    @property
    def agents(self) -> tuple[Agent, ...]:
        return self.mirror, self.iprep

    def reached(self) -> tuple[int, int]:
        """Return how many requests have come to the origin since the last look, how many copies."""
        requests = self.origin.count() - self._requests
        copies = self._healthy.wait_for(self._copies + requests) - self._copies
        self._requests += requests
        self._copies += copies
        return requests, copies

    def said_of_healthy(self) -> str:
        """Return what spoa-mirror's log says of the healthy target, its counters at last."""
        with self.mirror.logging(" all: "):
            self.mirror.signal(signal.SIGUSR2)
        lines = self.mirror.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if " healthy: " in line][-LAST_LINES:])

    def unscored(self) -> int:
        """Return the number of requests without a score since the last call."""
        rows = csv.DictReader(self._haproxy.command("show stat").removeprefix("# ").splitlines())
        [total] = [
            int(row["stot"])
            for row in rows
            if (row["pxname"], row["svname"]) == ("unscored", "BACKEND")
        ]
        since, self._unscored = total - self._unscored, total
        return since

    def restart_haproxy(self) -> None:
        """Replace HAProxy by a new one, which finds both agents up."""
        self._entrance.close()
        self._unscored = 0
        if (binary := newest_haproxy()) is None:
            raise BenchmarkError("no HAProxy: install haproxy, or run scripts/fetch_haproxy.py")
        mode = "spop" if tuple(map(int, haproxy_version(binary).split(".")[:2])) > (3, 0) else "tcp"
        haproxy = HAProxy(
            HAPROXY_CFG.replace("@MODE@", mode),
            files={"spoe.cfg": SPOE_CFG},
            variables={
                "ORIGIN": str(self.origin.port),
                "MIRROR": str(self.mirror.port),
                "IPREP": str(self.iprep.port),
            },
            binary=binary,
        )
        self._haproxy = self._entrance.enter_context(haproxy)
        for name in ("mirror", "iprep"):
            up = partial(self._is_up, name)
            wait(up, f"HAProxy finds spoa-{name} up")

    def start_target(self) -> None:
        """Start the target that is restarted, on its port."""
        log = self._folder / "restarted.log"
        sink = self._tools.sink(log, port=self._ports["restarted"])
        self.restarted = self._target.enter_context(sink)

    def stop_target(self) -> None:
        """Stop it."""
        self._target.close()

    def configure_mirror(self, more: str = "") -> None:
        """Write spoa-mirror's configuration, different each time, with one more line."""
        self._reloads += 1
        values = {"reload": self._reloads, "connections": CONNECTIONS, **self._ports}
        text = MIRROR_TOML.format(**values)
        self._replace("mirror.toml", f"{text}{more}\n")

    def list_network(self, network: str) -> None:
        """Write the list by which spoa-iprep scores."""
        self._replace("listed.txt", f"{network}\n")

    def rotate_logs(self) -> None:
        """Have the agents begin other logfiles, and remove those that they had."""
        for agent in self.agents:
            old = agent.log.with_suffix(".old")
            agent.log.rename(old)
            agent.signal(signal.SIGUSR1)
            wait(agent.is_using_its_log, f"spoa-{agent.name} uses another logfile")
            self._look_through(old)
            old.unlink()

    def stop_agents(self) -> list[str]:
        """Stop both agents; return what was wrong with their ends, or is in their logs."""
        for agent in self.agents:
            stop(agent.process)
            self._look_through(agent.log)
            if status := agent.process.popen.returncode:
                self._errors.append(f"spoa-{agent.name} ended with {status}")
        return self._errors

    def control(self, *arguments: str) -> None:
        """Run a command on spoa-iprep."""
        control = str(self._folder / "control.sock")
        command = [str(PROGRAMS / "spoa-iprep"), *arguments, "--control", control]
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=BOUND, check=True)

    def _look_through(self, log: Path) -> None:
        text = log.read_text(errors="replace")
        if (found := text.find("Traceback")) >= 0:
            self._errors.append(f"{log.name} has an error:\n{text[found : found + 2000]}")

    def _is_up(self, name: str) -> bool:
        return self._haproxy.server_status(f"{name}s", name).startswith("UP")

    def _agent(self, stack: ExitStack, name: str) -> Agent:
        port, log = free_port(), self._folder / f"{name}.log"
        command = [
            str(PROGRAMS / f"spoa-{name}"),
            "-r0",
            f"-n{WORKERS}",
            "-a127.0.0.1",
            f"-p{port}",
        ]
        command += ["--config", str(self._folder / f"{name}.toml"), "-l", str(log)]
        process = stack.enter_context(running(command, port=port, log=log.with_suffix(".out")))
        return Agent(name, port, process, log)

    def _replace(self, name: str, text: str) -> None:
        new = self._folder / f"{name}.new"
        new.write_text(text)
        new.rename(self._folder / name)

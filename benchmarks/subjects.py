"""Who is measured: spoakit's own commands, and any other agent by its command line."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile

from benchmarks.measure import BenchmarkError, Process, running
from benchmarks.tools import Tools
from spoakit.testing.haproxy import find_haproxy
from tests.support.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[1]
OWN = "spoakit"
AGENTS = "benchmarks.agents"
OWN_AGENT = f"{AGENTS}:agent"
ACKNOWLEDGING = "acknowledging agent"
KINDS = {
    "agent": "def",
    "never_waits": "async def that never waits",
    "waits_once": "async def that waits a turn",
    "threaded": "threaded",
}
HAPROXY_VERSIONS = ("3.4", "3.2", "3.0", "2.8", "2.6")


@dataclass(frozen=True, slots=True)
class Subject:
    """An agent to measure.

    The command names its port as ``{port}``. With a ``{target}``, the port that copies go to, it
    is a mirror; else it answers ``check-client-ip`` by setting ``ip_score``, with a ``{config}`` by
    the lists of that file, one of spoa-iprep's.
    """

    name: str
    command: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_mirror(self) -> bool:
        return "{target}" in self.command

    @property
    def has_lists(self) -> bool:
        return "{config}" in self.command


@dataclass(frozen=True, slots=True)
class Bench:
    """What every scenario needs."""

    tools: Tools
    directory: Path  # for the logs of what is started
    subjects: tuple[Subject, ...]
    scale: float = 1.0  # of all counts and durations

    @property
    def has_own(self) -> bool:
        return any(subject.name == OWN for subject in self.subjects)

    def mirrors(self) -> list[Subject]:
        return [subject for subject in self.subjects if subject.is_mirror]

    def reputations(self) -> list[Subject]:
        return [each for each in self.subjects if not each.is_mirror and not each.has_lists]

    def with_lists(self) -> list[Subject]:
        return [subject for subject in self.subjects if subject.has_lists]

    def handlers(self) -> list[Subject]:
        """Return agents of spoakit's whose handlers are of other kinds, for each that is one."""
        return [
            replace(
                subject,
                name=f"{subject.name}, {title}",
                command=subject.command.replace(OWN_AGENT, f"{AGENTS}:{name}"),
            )
            for subject in self.reputations()
            if OWN_AGENT in subject.command
            for name, title in KINDS.items()
        ]

    def count(self, full: int) -> int:
        return max(1000, int(full * self.scale))

    def new_log(self) -> Path:
        with NamedTemporaryFile(dir=self.directory, suffix=".log", delete=False) as log:
            return Path(log.name)

    @contextmanager
    def agent(self, subject: Subject, target: int = 0) -> Iterator[tuple[int, Process]]:
        """Run a subject on a free port; its log is removed with it."""
        port = free_port()
        words = shlex.split(subject.command.format(port=port, target=target))
        log = self.new_log()
        try:
            with running(words, port=port, log=log, environment=subject.environment) as process:
                yield port, process
        finally:
            log.unlink()


def own_subjects() -> tuple[Subject, ...]:
    """Return spoakit's agents, from the environment this Python runs in."""
    programs = shlex.quote(str(Path(sys.executable).parent))
    return (
        Subject(
            OWN,
            f"{programs}/spoakit run {OWN_AGENT} --address 127.0.0.1 --port {{port}}",
            environment={"PYTHONPATH": str(REPOSITORY)},
        ),
        Subject(
            OWN,
            f"{programs}/spoa-mirror -r0 -n1 -a 127.0.0.1 -p {{port}} -u http://127.0.0.1:{{target}}/",
        ),
        Subject(OWN, f"{programs}/spoa-iprep --config {{config}} -n1 -a 127.0.0.1 -p {{port}}"),
    )


def acknowledging_agent() -> Subject:
    """Return an agent of spoakit's that ACKs what a mirror would copy, and does nothing else."""
    own = own_subjects()[0]
    command = own.command.replace(OWN_AGENT, f"{AGENTS}:acknowledging")
    return replace(own, name=ACKNOWLEDGING, command=command)


def newest_haproxy() -> Path | None:
    """Return the newest HAProxy of those that the tests use."""
    cache = REPOSITORY / ".cache"
    found = (find_haproxy(version, cache=cache) for version in HAPROXY_VERSIONS)
    return next(filter(None, found), None)


def compared(text: str) -> Subject:
    """Read ``NAME=COMMAND``.

    Raises:
        BenchmarkError: no name, or no {port} in the command.
    """
    name, _, command = text.partition("=")
    if not name or "{port}" not in command:
        raise BenchmarkError(f"--compare takes 'NAME=COMMAND with {{port}}', not {text!r}")
    return Subject(name.strip(), command)

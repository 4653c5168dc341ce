"""Start commands, measure what they cost, and leave none behind.

Each command leads a session of its own: the session's processes and their descendants are what is
measured (workers included) and what is ended. A descendant that left the session must end by itself
when its parent does. CPU is user and system time of all of them, dead children included.
"""

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT = 15.0
STOP_TIMEOUT = 25.0  # agents drain for 10 seconds
POLL = 0.02
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_libc = ctypes.CDLL(None, use_errno=True)


class BenchmarkError(Exception):
    """A measurement that could not be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command's processes used: CPU seconds so far, and the sum of their peak RSS in MB."""

    cpu: float
    peak_rss: float


@dataclass(frozen=True, slots=True)
class Process:
    """A started command."""

    popen: subprocess.Popen[bytes]
    log: Path

    def usage(self) -> Usage:
        cpu = peak = 0.0
        for pid, dead_children in _processes_of(self.popen.pid):
            with suppress(OSError):  # it ended meanwhile
                cpu += _cpu_seconds(pid) + dead_children
                peak += peak_rss(pid)
        return Usage(cpu, peak)

    def memory(self) -> float:
        """Return the PSS of all its processes together, in MB."""
        total = 0.0
        for pid, _ in _processes_of(self.popen.pid):
            with suppress(OSError):
                total += proportional_set_size(pid)
        return total

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def ended(self) -> bool:
        return self.popen.poll() is not None


@contextmanager
def running(
    command: Sequence[str],
    *,
    port: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = START_TIMEOUT,
) -> Iterator[Process]:
    """Run a command, its output in a file, ready once its port accepts; end it at exit.

    Raises:
        BenchmarkError: there is no such command, or it ended, or does not accept in `timeout`
            seconds.
    """
    with log.open("wb") as output:
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise BenchmarkError(f"cannot run {command[0]}: {error.strerror}") from error
    process = Process(popen, log)
    try:
        if not wait_until(lambda: process.ended() or _accepts(port), timeout):
            raise BenchmarkError(f"{command[0]} does not listen on port {port}")
        if process.ended():
            last = process.log_text().strip().splitlines()[-1:] or ["no output"]
            raise BenchmarkError(f"{command[0]} ended with {popen.returncode}: {last[0]}")
        yield process
    finally:
        stop(process)


def stop(process: Process) -> None:
    """End a command by SIGTERM, and what is left of its session after 25 seconds by SIGKILL."""
    try:
        if not process.ended():
            process.popen.terminate()
            process.popen.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for pid, _ in _processes_of(process.popen.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.popen.wait()


@contextmanager
def on_core(number: int) -> Iterator[None]:
    """Keep what is started within on one core; where there is a single core, do nothing.

    Two processes that answer each other cost three times less on one core than on two, and which
    it is the kernel decides anew in every run.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > number and len(cores) > 1:
        os.sched_setaffinity(0, {cores[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Return whether the condition came true in time."""
    limit = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(POLL)
    return True


def peak_rss(pid: int | None = None) -> float:
    """Return the peak RSS of a process, by default this one, in MB (VmHWM)."""
    return _figure(f"/proc/{pid or 'self'}/status", "VmHWM")


def proportional_set_size(pid: int | None = None) -> float:
    """Return the PSS of a process in MB: its memory, of what is shared only its share."""
    return _figure(f"/proc/{pid or 'self'}/smaps_rollup", "Pss")


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _processes_of(leader: int) -> list[tuple[int, float]]:
    """List a session's processes and their descendants, each with its dead children's CPU seconds.

    Descendants count in whatever session they are: spoa-iprep's builders have one of their own.
    """
    parents: dict[int, int] = {}
    dead_children: dict[int, float] = {}
    members: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            # The name, in parentheses, may contain anything: fields count from behind it.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] == "Z":
                continue
            pid = int(entry.name)
            parents[pid] = int(fields[1])
            dead_children[pid] = (int(fields[13]) + int(fields[14])) / TICKS_PER_SECOND
            if int(fields[3]) == leader:
                members.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return [(pid, dead_children[pid]) for pid in sorted(members)]


def _cpu_seconds(pid: int) -> float:
    # The process's CPU clock: utime + stime of /proc/PID/stat, but in nanoseconds, not in ticks.
    clock = ctypes.c_int()
    if error := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def _figure(path: str, key: str) -> float:
    """Return a figure of /proc that is given in kB, in MB; 0 where there is none."""
    for line in Path(path).read_text(errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0

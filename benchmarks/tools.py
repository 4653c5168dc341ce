"""The C tools beside this file: compile them, run them, read their JSON."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.measure import POLL, BenchmarkError, running
from tests.support.ports import free_port

SOURCES = Path(__file__).parent
NAMES = ("engine_load", "bare_sender", "http_sink")
MARGIN = 60.0  # seconds a tool may take beyond the time it was told; each ends stalled runs itself
NO_PROGRESS = 3.0  # seconds without any arrival after which what is missing is lost
ARRIVAL_LIMIT = 60.0  # and seconds after which it is lost in any case


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine saw: NOTIFYs (or, with churn, connections) ACKed, and their latencies."""

    done: int
    per_second: float
    p50: float
    p99: float
    maximum: float
    problems: tuple[str, ...]

    def values(self, unit: str) -> dict[str, float]:
        return {f"{unit}/s": self.per_second, "ACK p50 us": self.p50, "ACK p99 us": self.p99}


@dataclass(frozen=True, slots=True)
class Sent:
    """What the bare sender saw: answers, their latencies in us, and its own CPU us a request."""

    per_second: float
    cpu: float
    p50: float
    p99: float
    maximum: float
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sink:
    """A running HTTP sink."""

    port: int

    def count(self) -> int:
        with urlopen(f"http://127.0.0.1:{self.port}/__count", timeout=10) as answer:
            requests: int = json.load(answer)["requests"]
            return requests

    def wait_for(self, requests: int) -> int:
        """Wait until so many requests have come, or no more do; return how many came."""
        start = changed = time.monotonic()
        seen = self.count()
        while seen < requests and time.monotonic() < min(
            changed + NO_PROGRESS, start + ARRIVAL_LIMIT
        ):
            time.sleep(POLL)
            if (count := self.count()) != seen:
                seen, changed = count, time.monotonic()
        return seen


@dataclass(frozen=True, slots=True)
class Tools:
    """The compiled tools in a directory."""

    directory: Path

    def engine_load(
        self,
        port: int,
        connections: int = 1,
        depth: int = 1,
        *,
        seconds: float = 0,
        count: int = 0,
        rate: float = 0,
        message: str = "iprep",
        body: int = 0,
        expect: str = "",
        churn: bool = False,
        wide: bool = False,
    ) -> Load:
        """Load an agent; errors of any kind are in the result's problems."""
        options = [f"-p{port}", f"-c{connections}", f"-d{depth}", f"-m{message}", f"-b{body}"]
        options += [f"-n{count}"] if count else [f"-s{seconds}"]
        options += [f"-r{rate}"] if rate else []
        options += [f"-e{expect}"] if expect else []
        options += ["-x"] if churn else []
        options += ["-w"] if wide else []
        # Paced runs take what they take; others are over sooner than at one frame in 100 us.
        duration = seconds + (count / rate if rate else count / 10_000)
        result = self._run("engine_load", options, duration)
        latency = result["latency_us"]
        return Load(
            result["cycles" if churn else "frames"],
            result["per_second"],
            latency["p50"],
            latency["p99"],
            latency["max"],
            _problems(result),
        )

    def bare_sender(
        self, port: int, connections: int, *, count: int, rate: float = 0, body: int = 0
    ) -> Sent:
        """Send requests, as fast as they are answered unless there is a rate."""
        options = [f"-p{port}", f"-c{connections}", f"-n{count}", f"-b{body}"]
        options += [f"-r{rate}"] if rate else []
        result = self._run("bare_sender", options, count / (rate or 10_000))
        latency = result["latency_us"]
        return Sent(
            result["per_second"],
            result["cpu_us"],
            latency["p50"],
            latency["p99"],
            latency["max"],
            _problems(result),
        )

    @contextmanager
    def sink(
        self, log: Path, *, never: bool = False, delay: int = 0, port: int = 0
    ) -> Iterator[Sink]:
        """Run an HTTP sink that answers at once, after some milliseconds, or never.

        It listens on a free port unless one is given.
        """
        port = port or free_port()
        command = [str(self.directory / "http_sink"), f"-p{port}", f"-d{delay}"]
        command += ["-n"] if never else []
        with running(command, port=port, log=log):
            yield Sink(port)

    def _run(self, tool: str, options: list[str], duration: float) -> dict[str, Any]:
        command = [str(self.directory / tool), *options]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=duration + MARGIN, check=False
            )
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{tool} did not end in {duration + MARGIN:.0f} s") from None
        if ended.returncode not in (0, 1):
            raise BenchmarkError(f"{tool} ended with {ended.returncode}: {ended.stderr.strip()}")
        result: dict[str, Any] = json.loads(ended.stdout)
        return result


def build(directory: Path) -> Tools:
    """Compile the tools that are older than their sources.

    Raises:
        BenchmarkError: there is no C compiler, or it failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    headers = [source.stat().st_mtime for source in SOURCES.glob("*.h")]
    for name in NAMES:
        source, tool = SOURCES / f"{name}.c", directory / name
        if tool.exists() and tool.stat().st_mtime > max(source.stat().st_mtime, *headers):
            continue
        command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(tool), str(source)]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            raise BenchmarkError("no C compiler: install gcc") from None
        except subprocess.CalledProcessError as error:
            raise BenchmarkError(f"{source} does not compile:\n{error.stderr}") from error
    return Tools(directory)


def _problems(result: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{count} {name}" for name, count in result["errors"].items() if count)

"""`HAProxy`: boots a real HAProxy for a test, on its own ports, and collects its logs.

Configurations are not templates. HAProxy itself expands ``"${NAME}"`` within double quotes, also in
files that SPOE filters load, so a test uses the deployed configuration and sets its variables. Each
listener is bound here and inherited by HAProxy (``bind "fd@..."``), so its port is known before
HAProxy runs, and no other process can bind it in between.
"""

import csv
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType, TracebackType
from typing import Self

from spoakit.exceptions import ConfigurationError, StartupError

# Debian keeps haproxy in a directory that is not on the PATH of ordinary users.
_SYSTEM_PATH = os.pathsep.join((os.defpath, "/usr/local/sbin", "/usr/sbin"))
_VERSION = re.compile(r"^HA-?Proxy version (\d+(?:\.\d+)+)", re.MULTILINE)
_KEPT_LINES = 10_000
_STOP_TIMEOUT = 5.0
_CHECK_TIMEOUT = 30.0
_COMMAND_TIMEOUT = 5.0

NOTHING: Mapping[str, str] = MappingProxyType({})
DEFAULT_LISTENERS: Mapping[str, str] = MappingProxyType({"FRONTEND": "127.0.0.1"})

# A second global section, which HAProxy merges with the one of the tested configuration.
_TEST_SECTION = """\
global
    log stdout format raw daemon
    stats socket "${SPOAKIT_STATS}" mode 600 level admin
"""


def haproxy_version(binary: str | os.PathLike[str]) -> str:
    """Return the version a haproxy program reports, such as ``"3.0.11"``.

    Raises:
        StartupError: it cannot be run, or does not print a version.
    """
    try:
        shown = subprocess.run(
            [binary, "-v"], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StartupError(f"cannot run {os.fspath(binary)} -v: {error}") from error
    if (found := _VERSION.search(shown.stdout)) is None:
        raise StartupError(
            f"{os.fspath(binary)} -v names no HAProxy version: {shown.stdout + shown.stderr!r}"
        )
    return found[1]


def find_haproxy(version: str = "", *, cache: Path | None = None) -> Path | None:
    """Find a haproxy program with a version: the system's, otherwise one in the cache folder.

    Args:
        version: leading numbers of the version, such as ``"3.0"``; empty takes any.
        cache: the folder that holds ``haproxy/<version>/haproxy``; by default $SPOAKIT_CACHE,
            else ``.cache`` in the current directory.

    Returns:
        The program, or None when neither place has that version.

    Raises:
        StartupError: a program was found, but cannot be run.
    """
    path = os.environ.get("PATH", "") + os.pathsep + _SYSTEM_PATH
    system = shutil.which("haproxy", path=path)
    cache = cache or Path(os.environ.get("SPOAKIT_CACHE", ".cache"))
    candidates = sorted(cache.absolute().glob(f"haproxy/{version or '*'}/haproxy"))
    if system:
        candidates.insert(0, Path(system))
    for candidate in candidates:
        if not version or f"{haproxy_version(candidate)}.".startswith(f"{version}."):
            return candidate
    return None


class HAProxy:
    r"""HAProxy process; a context manager, ready when entered, removed with its files on exit.

    ::

        with HAProxy(
            Path("haproxy.cfg").read_text(),            # bind "${FRONTEND-:80}"
            files={"spoe.cfg": Path("spoe.cfg").read_text()},
            variables={"AGENT": "127.0.0.1:12345"},     # server agent "${AGENT}"
        ) as haproxy:
            urlopen(f"http://127.0.0.1:{haproxy.ports['FRONTEND']}/")
            haproxy.wait_for_log(r"SPOE: \[agent\]")

    The configuration is an ordinary HAProxy configuration, with two rules. A listener is written
    ``bind "${FRONTEND}"``, with its name in ``listeners``. Sections use ``log global`` for lines
    that ``logs`` shall contain: standard output is added to the global log targets.

    Args:
        config: the text of haproxy.cfg.
        files: further files by name, such as ``{"spoe.cfg": ...}``. They are written to HAProxy's
            working directory, beside haproxy.cfg.
        variables: environment variables for ``"${NAME}"``.
        listeners: names and addresses of listeners, which are bound to free ports; by default
            FRONTEND on 127.0.0.1.
        binary: the program to run; by default the system's.

    Attributes:
        ports: the port of each listener, while HAProxy runs.
    """

    def __init__(
        self,
        config: str,
        *,
        files: Mapping[str, str] = NOTHING,
        variables: Mapping[str, str] = NOTHING,
        listeners: Mapping[str, str] = DEFAULT_LISTENERS,
        binary: Path | None = None,
    ) -> None:
        found = binary or find_haproxy()
        if found is None:
            raise StartupError("haproxy was not found: install it, or pass its binary")
        for name in listeners:
            if not re.search(rf'"[^"\n]*\$(?:{name}\b|\{{{name}\b)', config):
                raise ConfigurationError(
                    f'listener {name} is not used: write bind "${{{name}}}" in the configuration'
                )
        self.binary = found
        self.ports: dict[str, int] = {}
        self._files = {**files, "haproxy.cfg": config, "spoakit-test.cfg": _TEST_SECTION}
        self._variables = dict(variables)
        self._listeners = dict(listeners)
        self._version: str | None = None
        self._directory: TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._logged = threading.Condition()

    @property
    def version(self) -> str:
        """The version of the program, such as ``"3.0.11"``."""
        if self._version is None:
            self._version = haproxy_version(self.binary)
        return self._version

    @property
    def logs(self) -> list[str]:
        """The lines logged so far, oldest first: at most the last 10,000."""
        with self._logged:
            return list(self._lines)

    def check(self) -> str:
        """Check the configuration with ``haproxy -c``, without running it.

        Returns:
            HAProxy's warnings, or an empty string.

        Raises:
            ConfigurationError: HAProxy refuses it; the text is HAProxy's.
            StartupError: HAProxy did not finish the check in time.
        """
        with TemporaryDirectory(prefix="spoakit-") as directory:
            # A check binds nothing, so any address is suitable.
            addresses = dict.fromkeys(self._listeners, "127.0.0.1:1")
            try:
                checked = subprocess.run(
                    [*self._command_line(directory), "-c"],
                    cwd=directory,
                    env=self._environment(directory, addresses),
                    capture_output=True,  # "Configuration file is valid" goes to stdout
                    text=True,
                    errors="replace",
                    timeout=_CHECK_TIMEOUT,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise StartupError(
                    f"HAProxy did not check the configuration in {_CHECK_TIMEOUT:g} s; "
                    "it may be waiting for the name of a server to be resolved"
                ) from error
        if checked.returncode != 0:
            raise ConfigurationError(
                f"HAProxy {self.version} refuses the configuration:\n{checked.stderr}"
            )
        return checked.stderr

    def start(self, timeout: float = 10.0) -> None:
        """Check the configuration, start HAProxy and wait until it answers.

        Args:
            timeout: seconds it may take.

        Raises:
            ConfigurationError: HAProxy refuses the configuration.
            StartupError: HAProxy ended, or did not answer in time; its output is in the text.
        """
        if self._process is not None:
            raise StartupError("this HAProxy is already running")
        self.check()
        self._lines.clear()
        self._directory = TemporaryDirectory(prefix="spoakit-")
        directory = self._directory.name
        try:
            # Our copies are closed once HAProxy has inherited them, so that connections are refused
            # after it has stopped.
            with ExitStack() as ours:
                sockets = {
                    name: ours.enter_context(_bind(host)) for name, host in self._listeners.items()
                }
                self.ports = {name: bound.getsockname()[1] for name, bound in sockets.items()}
                addresses = {name: f"fd@{bound.fileno()}" for name, bound in sockets.items()}
                self._process = process = subprocess.Popen(
                    [*self._command_line(directory), "-db"],
                    cwd=directory,
                    env=self._environment(directory, addresses),
                    pass_fds=[bound.fileno() for bound in sockets.values()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            self._reader = threading.Thread(target=self._collect_logs, args=(process,), daemon=True)
            self._reader.start()
            self._wait_until_ready(process, timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop HAProxy, and remove its files. Logs are kept. Does nothing if it is not running."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._reader is not None:
                self._reader.join()
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._directory is not None:
            self._directory.cleanup()
        self._process = self._reader = self._directory = None
        self.ports = {}

    def wait_for_log(self, pattern: str, timeout: float = 5.0) -> re.Match[str]:
        """Wait for a logged line, past or to come.

        Args:
            pattern: regular expression, searched in each line.
            timeout: seconds to wait.

        Returns:
            The first match.

        Raises:
            TimeoutError: no line matched in time; the text has the last lines.
        """
        expression = re.compile(pattern)

        def search() -> re.Match[str] | None:
            return next(filter(None, map(expression.search, self._lines)), None)

        with self._logged:
            found = self._logged.wait_for(search, timeout)
        if found is None:
            raise TimeoutError(
                f"no line matches {pattern!r} in {timeout:g} s: {self._last_lines()}"
            )
        return found

    def command(self, text: str) -> str:
        """Send a command of the runtime API, such as ``"show info"``.

        Returns:
            The response, without the empty line at its end.

        Raises:
            OSError: HAProxy is not running, or did not respond within 5 seconds.
        """
        if self._directory is None:
            raise ConnectionError(f"HAProxy is not running, so it cannot execute {text!r}")
        answer = bytearray()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_COMMAND_TIMEOUT)
            client.connect(f"{self._directory.name}/stats.sock")
            client.sendall(f"{text}\n".encode())
            while chunk := client.recv(65536):
                answer += chunk
        return answer.decode(errors="replace").rstrip("\n")

    def server_status(self, backend: str, server: str) -> str:
        """Return a server's state: ``"UP"``, ``"DOWN"``, ``"no check"``, ``"UP 1/3"``, ...

        Raises:
            KeyError: the backend has no such server.
        """
        statistics = self.command("show stat").removeprefix("# ").splitlines()
        for row in csv.DictReader(statistics):
            if (row["pxname"], row["svname"]) == (backend, server):
                return row["status"]
        raise KeyError(f"{backend}/{server}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _command_line(self, directory: str) -> list[str | Path]:
        for name, text in self._files.items():
            Path(directory, name).write_text(text, encoding="utf-8")
        return [self.binary.absolute(), "-f", "spoakit-test.cfg", "-f", "haproxy.cfg"]

    def _environment(self, directory: str, listeners: Mapping[str, str]) -> dict[str, str]:
        stats = {"SPOAKIT_STATS": f"{directory}/stats.sock"}
        return {**os.environ, **self._variables, **listeners, **stats}

    def _collect_logs(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._logged:
                self._lines.append(line.rstrip("\n"))
                self._logged.notify_all()

    def _wait_until_ready(self, process: subprocess.Popen[str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.command("show info")
            except OSError:
                if process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
            else:
                return
            what = "does not answer" if process.poll() is None else "ended at once"
            raise StartupError(f"HAProxy {self.version} {what}: {self._last_lines()}")

    def _last_lines(self) -> str:
        return "\n".join(self.logs[-20:]) or "it has logged nothing"


def _bind(host: str) -> socket.socket:
    """Listen on a free port of an address."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.bind((host, 0))
        bound.listen(1024)
    except OSError:
        bound.close()
        raise
    return bound

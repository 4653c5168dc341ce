"""A service whose server speaks lines instead of SPOP, to test what stands around a server.

Run as a script: stand_in.py '{"settings": {...}, ...}'. A client's line is a command:

    pid             answered with the worker's process id
    checks          answered with "refused" once health checks are refused, else "accepted"
    slow            answered at the next reload
    die             the worker exits with code 3
    block           the worker's event loop stops forever
    compute         the same in a call into C that never returns
    say             printed on standard output
"""

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from spoakit.exceptions import ConfigurationError, StartupError
from spoakit.log_output import configure_logging
from spoakit.metrics.families import counter
from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.ipc import FRAMES, IN_FLIGHT
from spoakit.server.service import run_service
from spoakit.server.settings import (
    Drain,
    Limits,
    Listen,
    Logfile,
    ServerSettings,
    TcpAddress,
    UnixAddress,
    parse_network,
)
from spoakit.server.signals import Hooks

_slow: list[asyncio.Event] = []

LINES = counter("stand_in_lines_total", "Lines received.")


class StandIn:
    """The interface of `spoakit.server.interfaces.WorkerServer`, on lines."""

    def __init__(self, row: WorkerMetrics, fail: str) -> None:
        self.on_closed: Callable[[], None] = lambda: None
        self._row = row
        self._fail = fail
        self._refusing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._quiet: set[asyncio.StreamWriter] = set()
        self._draining = False
        row.on_publish(self._collect)

    @property
    def connection_count(self) -> int:
        return len(self._tasks)

    async def start(self) -> None:
        if os.path.exists("fail"):
            print("connecting to the database")
        if self._fail == "startup" or os.path.exists("fail"):
            raise StartupError("the stand-in was told to fail")
        if self._fail == "exception":
            raise LookupError("no such thing")
        if self._fail == "hang":
            logging.getLogger("stand_in").info("hanging")
            await asyncio.Event().wait()
        if self._fail == "exit":
            os._exit(7)
        if self._fail == "thread":
            asyncio.get_running_loop().run_in_executor(None, _block)
        if self._fail == "block-start":
            _block()

    def adopt(self, sock: socket.socket) -> None:
        task = asyncio.ensure_future(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.on_closed()

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        self._quiet.add(writer)
        try:
            while not self._draining and (line := await reader.readline()):
                self._quiet.discard(writer)
                self._row.add(LINES)
                self._row.add(FRAMES)
                writer.write(f"{await self._answer(line.decode().strip())}\n".encode())
                self._quiet.add(writer)
        except ConnectionError:
            pass
        finally:
            self._quiet.discard(writer)
            writer.close()

    async def _answer(self, command: str) -> str:
        match command:
            case "pid":
                return str(os.getpid())
            case "checks":
                return "refused" if self._refusing else "accepted"
            case "slow":
                reloaded = asyncio.Event()
                _slow.append(reloaded)
                await reloaded.wait()
                return "finished"
            case "die":
                os._exit(3)
            case "block" | "compute":
                if command == "block":
                    _block()
                logging.getLogger("stand_in").info("blocking")
                sum(range(10**15))
            case "say":
                print("said")
                return "said"
        return "what?"

    def refuse_health_checks(self) -> None:
        self._refusing = True

    def _collect(self) -> None:
        self._row.set(IN_FLIGHT, len(self._tasks) - len(self._quiet))

    def run_observers(self) -> None:
        logging.getLogger("stand_in").info("observing")

    async def drain(self, timeout: float) -> None:
        self._draining = True
        logging.getLogger("stand_in").info("draining")
        for writer in list(self._quiet):
            writer.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._fail == "block-close":
            _block()
        if self._fail == "slow-close":
            await asyncio.sleep(1.5)
        logging.getLogger("stand_in").info("closed")


def _block() -> None:
    logging.getLogger("stand_in").info("blocking")
    while True:
        time.sleep(1)


def _reload() -> None:
    if os.path.exists("refuse"):
        raise ConfigurationError("the stand-in was told to refuse")
    if os.path.exists("hanging"):
        logging.getLogger("stand_in").info("opening a FIFO that nobody writes to")
        open("hanging").close()
    time.sleep(float(os.environ.get("SLOW_RELOAD", "0")))
    logging.getLogger("stand_in").info("reloading")
    for reloaded in _slow:
        reloaded.set()


def _reopen() -> None:
    logging.getLogger("stand_in").info("reopening")
    if os.environ.get("BAD_HOOK") == "exit":
        sys.exit("a bad hook")
    if "BAD_HOOK" in os.environ:
        raise RuntimeError("a bad hook")


def read_settings(given: dict[str, Any]) -> ServerSettings:
    allow = tuple(parse_network(text) for text in given.pop("allow", ()))
    listen = given.pop("listen", {})
    path = listen.pop("unix", None)
    address = TcpAddress("127.0.0.1", listen.pop("port", 0)) if path is None else UnixAddress(path)
    logfile = given.pop("logfile", None)
    return ServerSettings(
        listen=Listen((address,), allow=allow, **listen),
        logfile=Logfile(**logfile) if logfile else None,
        limits=Limits(**given.pop("limits", {})),
        drain=Drain(**given.pop("drain", {})),
        **given,
    )


def main() -> int:
    configure_logging("debug")
    if os.environ.get("NO_STDOUT"):
        sys.stdout = None  # as where the caller has closed descriptor 1
    given = json.loads(sys.argv[1])
    fail = given.pop("fail", "")
    log_file = given.pop("log_file", None)
    if log_file:
        logging.getLogger().addHandler(logging.FileHandler(log_file))
    hooks = Hooks(_reload, _reopen)
    return run_service(lambda row: StandIn(row, fail), read_settings(given), hooks)


if __name__ == "__main__":
    sys.exit(main())

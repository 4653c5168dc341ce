"""`AgentServer`: agents served from a thread, for tests over real sockets."""

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from spoakit.agent import Agent
from spoakit.exceptions import SpoakitError
from spoakit.metrics.memory import SharedMetrics
from spoakit.metrics.snapshot import Snapshot
from spoakit.server.event_loops import loop_factory
from spoakit.server.server import Server
from spoakit.server.settings import Drain, Listen, ServerSettings
from spoakit.server.sockets import Listeners
from spoakit.server.standalone import StandaloneServer

T = TypeVar("T")

# Seconds after which a call in the server's thread counts as hanging.
_TIMEOUT: Final = 15.0

DEFAULT_SETTINGS: Final = ServerSettings(listen=Listen.at("127.0.0.1", 0), drain=Drain(timeout=0))
"""Settings for tests: a free port of 127.0.0.1, and no drain."""


class AgentServer:
    """Server of agents in a thread of this process; a context manager, ready when entered.

    ::

        with AgentServer(agent) as server, EngineClient(port=server.port) as engine:
            ...

    Args:
        agents: one or more agents with different messages.
        settings: settings as for `spoakit.server.run`, for one worker; by default a free port of
            127.0.0.1, and no drain.

    Attributes:
        port: the port it listens on; 0 for a Unix socket.
        server: the server; access it with `call` only.

    Raises:
        RegistrationError, ConfigurationError: the agents cannot be served.
        StartupError: (when entered) the socket or a resource failed.
    """

    def __init__(self, *agents: Agent, settings: ServerSettings = DEFAULT_SETTINGS) -> None:
        self._settings = settings
        self._metrics = SharedMetrics(1)
        self.server = Server(agents, settings, self._metrics.worker(0))
        self.port = 0
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="AgentServer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._ready.result(_TIMEOUT)
        except BaseException:
            self._thread.join(_TIMEOUT)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._leaving.set)
        self._thread.join(self._settings.drain.timeout + _TIMEOUT)
        if self._thread.is_alive():
            raise SpoakitError(f"the server did not stop within {_TIMEOUT:g} s after its drain")

    @property
    def metrics(self) -> Snapshot:
        """Current metrics of the agents and the server."""
        if self._thread.is_alive():
            return self.call(Snapshot.take, self._metrics)
        return Snapshot.take(self._metrics)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in the server's thread, and return its result."""

        async def call() -> T:
            return function(*args)

        return self.run(call())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's event loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_TIMEOUT)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory(self._settings.loop)) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leaving = asyncio.Event()
        listeners = Listeners(self._settings.listen)
        try:
            single = StandaloneServer(
                self._settings, listeners, self.server, self._metrics.worker(0)
            )
            try:
                await single.start()
                first = listeners.sockets[0]
                if first.family != socket.AF_UNIX:
                    self.port = first.getsockname()[1]
                self._ready.set_result(None)
                await self._leaving.wait()
            finally:
                await single.leave()
        finally:
            listeners.close()
            listeners.remove()

"""Standalone server: it accepts by itself in a running event loop, without a supervisor."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from spoakit.metrics.families import Recording
from spoakit.metrics.memory import WorkerMetrics
from spoakit.server.accept_loop import AcceptLoop
from spoakit.server.interfaces import WorkerServer
from spoakit.server.settings import ServerSettings
from spoakit.server.sockets import Listeners
from spoakit.server.worker import GRACE, flush_logs_forever, start_server

logger = logging.getLogger("spoakit.server")

T = TypeVar("T")


class StandaloneServer:
    """Server and its listening sockets in the running event loop.

    Raises:
        StartupError: (by `start`) a resource did not start.
    """

    __slots__ = ("_accepting", "_flusher", "_loop", "_recording", "_row", "_server", "_settings")

    def __init__(
        self,
        settings: ServerSettings,
        listeners: Listeners,
        server: WorkerServer,
        row: WorkerMetrics,
    ) -> None:
        self._settings = settings
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._accepting = AcceptLoop(settings, listeners, server, row)
        self._row = row
        self._recording: Recording | None = None
        self._flusher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the resources, then accept. Metrics count for this server from now on."""
        self._recording = Recording(self._row)
        self._flusher = asyncio.create_task(flush_logs_forever())
        starting = asyncio.create_task(start_server(self._server))
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            await _uncancelled(_cancel(starting))
            raise
        starting.result()
        self._accepting.open()

    def refuse_health_checks(self) -> None:
        """Answer health checks with a DISCONNECT from now on, and keep serving."""
        self._server.refuse_health_checks()

    def run_observers(self) -> None:
        """Make the pending calls of observers now."""
        self._server.run_observers()

    async def leave(self) -> bool:
        """Stop listening, drain and close; return True if it was done within the timeouts.

        A cancellation ends the drain. Closing has a timeout of its own and is completed anyway, so
        that no connection, resource or task remains.
        """
        self.close()
        drain = self._settings.drain
        begin = self._loop.time()
        try:
            await self._server.drain(drain.timeout)
        except BaseException:
            await self._close_server(self._loop.time(), drain.resources + GRACE)
            raise
        return await self._close_server(begin, drain.total + GRACE)

    async def _close_server(self, begin: float, bound: float) -> bool:
        """Close the server; return True if it was done within `bound` seconds after `begin`.

        A cancellation is raised at the end, after at most the timeout of resources and the grace.
        """
        closing = asyncio.create_task(self._server.aclose())
        cancellation: asyncio.CancelledError | None = None
        while not closing.done() and (left := begin + bound - self._loop.time()) > 0:
            try:
                await asyncio.wait([closing], timeout=left)
            except asyncio.CancelledError as error:
                cancellation = error
                if self._settings.drain.resources + GRACE < left:
                    begin, bound = self._loop.time(), self._settings.drain.resources + GRACE
        done = closing.done()
        if done:
            closing.result()
        else:
            logger.error("the drain has not ended within %g s; stopping anyway", bound)
            await _uncancelled(_cancel(closing))
        if self._flusher is not None:
            await _uncancelled(_cancel(self._flusher))
        if self._recording is not None:
            self._recording.__exit__()
            self._recording = None
        if cancellation is not None:
            raise cancellation
        return done

    def close(self) -> None:
        """Stop listening."""
        if self._flusher is not None:
            self._flusher.cancel()
        self._accepting.close()


async def _uncancelled(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end despite a cancellation, which is raised afterwards."""
    task = asyncio.create_task(coroutine)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    result = task.result()
    if cancellation is not None:
        raise cancellation
    return result


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task, and wait `GRACE` seconds for its end."""
    task.cancel()
    await asyncio.wait([task], timeout=GRACE)
    if task.done() and not task.cancelled():
        task.exception()  # retrieve it, so that asyncio does not log it

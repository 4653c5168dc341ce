"""Agent of spoa-mirror: the message ``mirror``, and the C program's two for debugging."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from random import randrange
from typing import Final

from msgspec import structs

from spoakit import Action, Agent, DataType, IPAddress, Message
from spoakit.apps.delay import DEADLINE, delayed
from spoakit.apps.line_output import check_lines
from spoakit.apps.line_writer import LogWriter
from spoakit.apps.mirror._copying_cy import Copiers, copy
from spoakit.apps.mirror._request_cy import IncomingRequest
from spoakit.apps.mirror.access_log import LOG_NAME
from spoakit.apps.mirror.access_log._lines_cy import AccessLog
from spoakit.apps.mirror.config.schema import MirrorSettings, TargetSettings
from spoakit.apps.mirror.http.connection_budget import ConnectionBudget, wanted_connections
from spoakit.apps.mirror.http.connector import check_connections
from spoakit.apps.mirror.http.names import Names
from spoakit.apps.mirror.http.pool import ConnectionPool
from spoakit.apps.mirror.http.proxies import proxy_for
from spoakit.apps.mirror.metrics import (
    CONNECTIONS,
    IN_FLIGHT,
    IN_TROUBLE,
    OLDEST,
    WAITING,
    WAITING_BYTES,
)
from spoakit.apps.mirror.target import Target
from spoakit.exceptions import ConfigurationError
from spoakit.logs import Throttle
from spoakit.metrics import WorkerMetrics
from spoakit.server import ReloadableSettings
from spoakit.spop import MAX_ARGUMENTS

logger = logging.getLogger("spoakit.mirror")

# Gathering for this many seconds saves a fifth of a copy's cost at 2,000 requests/s; longer saves
# no more.
_MAX_DELAY: Final = 0.005
_SCORES: Final = 101
# Settings that need a restart: the server was created with them.
_NEEDS_RESTART: Final = ("drain", "processing_delay")


class Mirror:
    """Targets of a worker and their access log, in a running event loop.

    Attributes:
        targets: in the order of the settings.
        copiers: the copiers of the targets.
    """

    def __init__(
        self,
        settings: MirrorSettings,
        access_log: AccessLog,
        row: WorkerMetrics,
        budget: ConnectionBudget | None = None,
    ) -> None:
        self._access_log = access_log
        self._budget = budget or ConnectionBudget.from_open_files_limit()
        self._names = Names()
        self._row = row
        # Targets that a reload removed are in here until they are closed.
        self._leaving: set[Target] = set()
        self._shown: set[str] = set()
        self._drain = settings.drain
        self._closing: set[asyncio.Task[None]] = set()
        self._applying: asyncio.Task[None] | None = None
        self._is_closed = False
        self.targets = tuple(self._make(target) for target in settings.targets)
        self.copiers: Final = Copiers(target.copier for target in self.targets)
        row.on_publish(self._collect)
        self._report(settings)

    def apply(self, settings: MirrorSettings) -> None:
        """Reconfigure after a reload; log a failure and keep the present targets."""
        self._applying = asyncio.create_task(self._apply(settings))

    def reopen_log(self) -> None:
        """Reopen the access log by its path.

        Raises:
            ConfigurationError: the file cannot be opened; lines still go to the previous one.
        """
        self._access_log.reopen()

    def copy(self, original: IncomingRequest) -> None:
        """Copy a request to each target that selects it."""
        self.copiers.copy(original)

    async def reconfigure(self, settings: MirrorSettings) -> None:
        """Replace targets and log settings without losing queued copies.

        Targets with unchanged settings stay as they are. Removed targets send their queued copies
        in the background, within the drain timeout. If a target cannot be created, or the access
        log not be opened, the error is raised and nothing changes.
        """
        if self._is_closed:
            return
        removed = list(self.targets)
        targets: list[Target] = []
        new: list[Target] = []
        try:
            for wanted in settings.targets:
                known = next((target for target in removed if target.settings == wanted), None)
                if known is None:
                    new.append(known := self._make(wanted))
                else:
                    removed.remove(known)
                targets.append(known)
            self._access_log.configure(settings.log, len(targets) > 1)
        except BaseException:
            self._close_behind(new)
            raise
        self.targets = tuple(targets)
        self.copiers.replace(target.copier for target in targets)
        self._report(settings)
        self._close_behind(removed)
        logger.info(
            "reloaded: %d targets, %d new, %d removed", len(targets), len(new), len(removed)
        )

    async def aclose(self) -> None:
        """Send the queued copies, within the drain timeout of the settings, and close."""
        self._is_closed = True
        try:
            closing = [target.aclose(self._drain) for target in self.targets]
            await asyncio.gather(*closing, *self._closing)
        finally:
            await self._names.close()
            self._access_log.close()
            self._collect()
            self._row.forget(self._collect)

    async def _apply(self, settings: MirrorSettings) -> None:
        try:
            await self.reconfigure(settings)
        except ConfigurationError as error:
            logger.error("reload refused, going on as before: %s", error)
        except Exception:
            logger.exception("reload failed; going on as before")

    def _close_behind(self, targets: list[Target]) -> None:
        for target in targets:
            self._leaving.add(target)
            task = asyncio.create_task(self._close(target))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, target: Target) -> None:
        try:
            await target.aclose(self._drain)
        finally:
            target.collect()
            self._leaving.discard(target)

    def _collect(self) -> None:
        """Publish the counts of all targets; a replaced target has the name of its successor."""
        now = time.perf_counter()
        targets = (*self.targets, *self._leaving)
        by_name: dict[str, list[ConnectionPool]] = {target.label: [] for target in targets}
        for target in targets:
            target.collect()
            by_name[target.label] += target.pools
        for name in self._shown - by_name.keys():
            for gauge in (IN_TROUBLE, CONNECTIONS, IN_FLIGHT, WAITING, WAITING_BYTES, OLDEST):
                self._row.set(gauge, 0, name)
        self._shown = set(by_name)
        for name, pools in by_name.items():
            queues = [pool.queue for pool in pools]
            oldest = max((queue.oldest(now) for queue in queues), default=0.0)
            in_trouble = any(pool.health.trouble for pool in pools)
            self._row.set(IN_TROUBLE, in_trouble, name)
            self._row.set(CONNECTIONS, sum(pool.count for pool in pools), name)
            self._row.set(IN_FLIGHT, sum(pool.in_flight for pool in pools), name)
            self._row.set(WAITING, sum(queue.waiting for queue in queues), name)
            self._row.set(WAITING_BYTES, sum(queue.waiting_bytes for queue in queues), name)
            self._row.set(OLDEST, oldest, name)

    def _make(self, settings: TargetSettings) -> Target:
        return Target(settings, self._access_log, self._row, self._budget, self._names)

    def _report(self, settings: MirrorSettings) -> None:
        """Log proxies and limits that may surprise; the first worker does it for all."""
        if self._row.index != 0:
            return
        for target in settings.targets:
            if proxy := proxy_for(target.url):
                logger.info("%s: connections go through the proxy %s", target.name, proxy)
        wanted = wanted_connections(settings)
        if wanted > self._budget.limit:
            logger.warning(
                "targets may have %d connections in each worker, and the limit of open files "
                "leaves room for %d; raise it (ulimit -n), or lower connections",
                wanted,
                self._budget.limit,
            )


def reloadable_settings(read: Callable[[], MirrorSettings]) -> ReloadableSettings[MirrorSettings]:
    """Return settings that a reload replaces.

    Args:
        read: returns the settings. A reload is refused if it raises ConfigurationError or OSError,
            if certificates cannot be read, or if the access log cannot be opened.
    """
    checked: str | None = None

    def read_checked() -> MirrorSettings:
        nonlocal checked
        # Errors are found here in the supervisor, before workers are forked or reload.
        settings = read()
        for target in settings.targets:
            check_connections(target)
        if settings.log.path not in (None, checked):
            check_lines(LOG_NAME, settings.log.path)
        checked = settings.log.path
        return settings

    return ReloadableSettings(read_checked, _NEEDS_RESTART, logger, structs.replace)


def create_agent(settings: MirrorSettings | ReloadableSettings[MirrorSettings]) -> Agent:
    """Return the agent that copies requests by the settings.

    The message ``mirror`` has the arguments of the C program, and after them, optionally: arg_size
    (req.body_size, which shows that HAProxy's buffer cut a chunked body), arg_src (src, for
    X-Forwarded-For and samples), arg_id (unique-id, for X-Request-Id) and arg_key (the value to
    sample by). The C program's messages ``check-client-ip`` and ``test`` are handled, too.
    """
    live = (
        settings
        if isinstance(settings, ReloadableSettings)
        else reloadable_settings(lambda: settings)
    )
    agent = Agent("mirror")

    @agent.resource
    async def copiers(row: WorkerMetrics) -> AsyncIterator[Copiers]:
        settings = live.current
        access_log = AccessLog(
            LogWriter(name=LOG_NAME, logger=logger),
            row.index + 1,
            settings.log,
            names_targets=len(settings.targets) > 1,
        )
        mirror = Mirror(settings, access_log, row)
        try:
            mirror.reopen_log()
        except ConfigurationError as error:
            # The file could be opened at the start. A worker that replaces another one must still
            # copy.
            logger.error("%s; its lines go to standard output until it is reopened", error)
        live.follow(mirror.apply)
        live.on_reopen(mirror.reopen_log)
        try:
            yield mirror.copiers
        finally:
            await mirror.aclose()

    delay = live.current.processing_delay
    if delay:
        agent.message("mirror", timeout=delay + DEADLINE)(delayed(copy, delay))
    else:
        agent.observe("mirror", max_delay=_MAX_DELAY)(copy)
    _add_debugging_messages(agent)
    return agent


def _add_debugging_messages(agent: Agent) -> None:
    """Add the C program's messages for trying out a configuration of SPOE."""
    ip_score = agent.variable("sess.ip_score", DataType.UINT32)
    throttle = Throttle(logger, max_kinds=MAX_ARGUMENTS)

    @agent.message("check-client-ip")
    def check_client_ip(ip: IPAddress, /) -> Action:
        return ip_score.set(randrange(_SCORES))

    @agent.observe("test", max_delay=_MAX_DELAY)
    def show(message: Message) -> None:
        for index, argument in enumerate(message.arguments):
            name, type_name, value = argument.name, argument.type.name, argument.value
            throttle.info(index, "test[%d] name=%r type=%s: %r", index, name, type_name, value)

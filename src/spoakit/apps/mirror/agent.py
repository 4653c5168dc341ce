"""The agent: one message, observed."""

import asyncio
from collections.abc import AsyncIterator

from spoakit.agent.agent import Agent
from spoakit.agent.headers import Headers
from spoakit.agent.parameters import IPAddress
from spoakit.apps.mirror._access_log_cy import AccessLog
from spoakit.apps.mirror._request_cy import Original
from spoakit.apps.mirror.log_writer import LogWriter
from spoakit.apps.mirror.settings import MirrorSettings
from spoakit.apps.mirror.target import Target
from spoakit.metrics.counters import CounterRow


class Mirror:
    """A worker's targets and their access log, in a running event loop.

    Attributes:
        targets: in the order of the settings.
    """

    def __init__(self, settings: MirrorSettings, access_log: AccessLog, row: CounterRow) -> None:
        self.targets = tuple(Target(target, access_log, row) for target in settings.targets)
        self._access_log = access_log
        self._drain = settings.drain

    def copy(self, original: Original) -> None:
        """Copy a request to all targets that are to get it."""
        for target in self.targets:
            target.copy(original)

    async def aclose(self) -> None:
        """Send what waits, within the time the settings give, and close."""
        try:
            await asyncio.gather(*(target.aclose(self._drain) for target in self.targets))
        finally:
            self._access_log.close()


def create_agent(settings: MirrorSettings) -> Agent:
    """Return the agent that copies requests as the settings say.

    The arguments of its message ``mirror`` are those of the C program, and after them, where the
    spoe-message has them: arg_size (req.body_size, which shows that HAProxy's buffer cut a chunked
    body), arg_src (src, for X-Forwarded-For and samples), arg_id (unique-id, for X-Request-Id) and
    arg_key (what makes samples coherent).
    """
    agent = Agent("mirror")

    @agent.resource
    async def mirror(row: CounterRow) -> AsyncIterator[Mirror]:
        mirror = Mirror(settings, AccessLog(LogWriter(), row.index + 1), row)
        try:
            yield mirror
        finally:
            await mirror.aclose()

    @agent.observe("mirror")
    def copy(
        arg_method: bytes,
        arg_path: bytes,
        arg_ver: bytes,
        arg_hdrs: Headers,
        mirror: Mirror,
        arg_body: bytes = b"",
        arg_size: int = -1,
        arg_src: IPAddress | None = None,
        arg_id: bytes = b"",
        arg_key: bytes = b"",
    ) -> None:
        source = b"" if arg_src is None else str(arg_src).encode()
        mirror.copy(
            Original(
                arg_method,
                arg_path,
                arg_ver,
                arg_hdrs,
                arg_body,
                arg_size,
                source,
                arg_id,
                arg_key,
            )
        )

    return agent

"""Connections for HTTP/1 requests, also to targets that speak only HTTP/2."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.http.connector import FALLBACK, HTTP_1, ConnectError, Connector
from spoakit.apps.mirror.http.names import Names

# Seconds for which a target's refusal of HTTP/1.1 is remembered.
_MEMORY: Final = 600.0
# Failures that may mean that a target refuses clients without HTTP/2: a TLS alert, or a connection
# closed during or after the handshake.
_MAY_BE_REFUSALS: Final = frozenset({"protocol", "tls", "other"})


class FallbackConnector:
    """Open connections for HTTP/1.1, or for HTTP/2 if the target refuses HTTP/1.1.

    At first only HTTP/1.1 is offered: most servers choose HTTP/2 if they are offered both, and
    HTTP/1 requests should be copied over HTTP/1. A target that does not choose HTTP/1.1 is offered
    both, for a while. If it still chooses nothing, it does not know ALPN and speaks HTTP/1.1.

    Args:
        settings: the settings of an https:// target.
        names: the worker's cache of addresses.
    """

    forward: Final = None  # a proxy opens tunnels for it

    def __init__(self, settings: TargetSettings, names: Names) -> None:
        self._preferred = Connector(settings, (HTTP_1,), names, must_choose=True)
        self._fallback = Connector(settings, FALLBACK, names)
        self._falls_back_until = 0.0

    async def connect(self, make: Callable[[str], asyncio.Protocol]) -> None:
        """Open a connection; see `Connector.connect`."""
        now = asyncio.get_running_loop().time()
        if now >= self._falls_back_until:
            try:
                await self._preferred.connect(make)
            except ConnectError as error:
                if error.reason not in _MAY_BE_REFUSALS:
                    raise
            else:
                return
        try:
            await self._fallback.connect(make)
        except ConnectError:
            self._falls_back_until = 0.0
            raise
        self._falls_back_until = self._falls_back_until or now + _MEMORY


def make_connector(
    settings: TargetSettings, http: Sequence[str], names: Names
) -> Connector | FallbackConnector:
    """Return the connector to a target for one of its ALPN groups."""
    if settings.http == "auto" and settings.url.scheme == "https" and tuple(http) == (HTTP_1,):
        return FallbackConnector(settings, names)
    return Connector(settings, http, names)

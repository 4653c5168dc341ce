"""Connections for what came over HTTP/1, also to targets that speak HTTP/2 only."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.http.connector import FALLBACK, HTTP_1, ConnectError, Connector
from spoakit.apps.mirror.http.names import Names

# Seconds for which a target is known not to choose HTTP/1.1.
_MEMORY: Final = 600.0
# Failures that may be a target's way to refuse a client without HTTP/2: an alert, or a connection
# that ends in the handshake or behind it.
_MAY_BE_REFUSALS: Final = frozenset({"protocol", "tls", "other"})


class FallbackConnector:
    """Opens connections for HTTP/1.1, or for HTTP/2 if a target chooses nothing else.

    HTTP/1.1 is offered alone at first: a server that is offered both as well mostly chooses HTTP/2,
    and what came over HTTP/1 would not go on over it. Only a target that does not choose HTTP/1.1
    then is offered both, for a while. One that does not know ALPN at all chooses nothing again,
    and speaks HTTP/1.1.

    Args:
        settings: the target's, which is an https:// one.
        names: the worker's addresses of hosts.
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
    """Return what opens connections to a target for one of its ALPN groups."""
    if settings.http == "auto" and settings.url.scheme == "https" and tuple(http) == (HTTP_1,):
        return FallbackConnector(settings, names)
    return Connector(settings, http, names)

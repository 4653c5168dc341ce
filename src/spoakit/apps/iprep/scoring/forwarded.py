"""Who is behind a proxy: X-Forwarded-For, as far as the proxies that wrote it are trusted."""

from bisect import bisect_right
from typing import Final

from spoakit.agent.parameters import IPAddress
from spoakit.apps.iprep.addresses import address_of, number_of, parse_number
from spoakit.apps.iprep.config.settings import parse_ranges

_MAX_HOPS: Final = 64


class Trusted:
    """The proxies that are believed.

    Args:
        texts: addresses, networks and ranges.

    Raises:
        ConfigurationError: one is none of these.
    """

    def __init__(self, texts: tuple[str, ...]) -> None:
        ranges = sorted(parse_ranges("forwarded.trusted", texts))
        self._firsts = [(version, first) for version, first, _, _ in ranges]
        self._lasts: list[tuple[int, int]] = []
        last = (0, 0)
        for version, _, end, _ in ranges:  # one may be within one before it
            last = max(last, (version, end))
            self._lasts.append(last)

    def __contains__(self, address: IPAddress) -> bool:
        number = number_of(address)
        place = bisect_right(self._firsts, number) - 1
        return place >= 0 and number <= self._lasts[place]

    def client_of(self, source: IPAddress, header: str) -> IPAddress:
        """Return the last address that is not a trusted proxy's.

        Args:
            source: the address that a connection comes from.
            header: X-Forwarded-For as the proxy there sent it: addresses with commas between them,
                with ports or not. What stands before one that cannot be read is not believed, nor
                are more than 64 of them.
        """
        client = source
        for text in reversed(header.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]):
            if client not in self:
                break
            try:
                client = address_of(*parse_number(_without_port(text.strip())))
            except ValueError:
                break
        return client


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text

"""The client behind proxies: X-Forwarded-For or Forwarded, as far as the proxies are trusted.

Headers are read from their end, where the nearest proxy wrote; what stands before an address that
is not trusted or cannot be read may be the client's own invention, and is never looked at.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from spoakit import Headers, IPAddress, Message
from spoakit.apps.iprep.addresses import address_of, number_of, parse_number
from spoakit.apps.iprep.config.schema import ForwardedHeader
from spoakit.apps.iprep.config.units import parse_ranges

_MAX_HOPS: Final = 64
# A parameter of RFC 7239, and what ends it. Values without quotes may have what a token cannot,
# since some proxies leave the quotes out.
_PARAMETER: Final = re.compile(
    r"""[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s",;]+)))?[ \t]*(?:;|$)"""
)
_ESCAPED: Final = re.compile(r"\\(.)")


class Trusted:
    """The proxies that are believed.

    Args:
        texts: addresses, networks and ranges.
        header: the header that they write.

    Raises:
        ConfigurationError: one is none of these.
    """

    def __init__(self, texts: tuple[str, ...], header: ForwardedHeader = "x-forwarded-for") -> None:
        ranges = sorted(parse_ranges("forwarded.trusted", texts))
        self._firsts = [(version, first) for version, first, _, _ in ranges]
        self._lasts: list[tuple[int, int]] = []
        last = (0, 0)
        for version, _, end, _ in ranges:  # one may be within one before it
            last = max(last, (version, end))
            self._lasts.append(last)
        self.header = header
        self._nodes = _NODES[header]

    def __contains__(self, address: IPAddress) -> bool:
        number = number_of(address)
        place = bisect_right(self._firsts, number) - 1
        return place >= 0 and number <= self._lasts[place]

    def client_of(self, source: IPAddress, lines: Sequence[str]) -> IPAddress:
        """Return the last address that is not a trusted proxy's.

        Args:
            source: the address that a connection comes from.
            lines: the values of the header's lines, in their order. What stands before an address
                that cannot be read is not believed, nor are more than 64 of them.
        """
        client = source
        if client not in self:
            return client
        nodes = (node for line in reversed(lines) for node in self._nodes(line))
        for node in islice(nodes, _MAX_HOPS):
            try:
                client = parse_node(node)
            except ValueError:
                break
            if client not in self:
                break
        return client


def lines_of(message: Message, argument: str, header: str) -> list[str]:
    """Return the values of a header's lines that come with a message, in their order.

    All arguments of the name count: a STRING is the value of a line (``req.fhdr``), a BINARY is a
    block with all fields of a request (``req.hdrs_bin``).

    Raises:
        ValueError: a BINARY is not such a block.
    """
    lines: list[str] = []
    for each in message.arguments:
        if each.name != argument:
            continue
        if isinstance(each.value, str):
            lines.append(each.value)
        elif isinstance(each.value, bytes):
            lines += Headers(each.value).getall(header)
    return lines


def parse_node(text: str) -> IPAddress:
    """Return the address of a proxy or client: "192.0.2.1", "192.0.2.1:80", "[2001:db8::1]:80".

    Raises:
        ValueError: it is not an address, but "unknown" for instance.
    """
    return address_of(*parse_number(_without_port(text.strip(" \t"))))


def _without_port(text: str) -> str:
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return address if not port or port.startswith(":") else text
    return text.partition(":")[0] if text.count(":") == 1 else text


def _listed(line: str) -> Iterator[str]:
    """Yield the addresses of a line of X-Forwarded-For, the last one first."""
    return reversed(line.rsplit(",", _MAX_HOPS)[-_MAX_HOPS:])


def _forwarded(line: str) -> Iterator[str]:
    """Yield the addresses of a line of Forwarded, the last one first; "" for none."""
    return map(_for, _elements(line))


def _elements(line: str) -> Iterator[str]:
    """Yield the elements of a line of Forwarded, the last one first.

    They are found from the end, so that a quote which a client leaves open cannot swallow what
    proxies append behind it.
    """
    end = at = len(line)
    while True:
        comma, quote = line.rfind(",", 0, at), line.rfind('"', 0, at)
        if quote > comma:
            at = _opening_quote(line, quote)
            if at < 0:
                yield ""  # which ends the walk
                return
        else:
            yield line[comma + 1 : end]
            if comma < 0:
                return
            end = at = comma


def _opening_quote(line: str, closing: int) -> int:
    """Return the index of the quote that opens what another one closes; -1 for none."""
    at = closing
    while (at := line.rfind('"', 0, at)) >= 0:
        before = at
        while before and line[before - 1] == "\\":
            before -= 1
        if (at - before) % 2 == 0:
            return at
    return -1


def _for(element: str) -> str:
    """Return the "for" of an element of Forwarded; "" without, or where it cannot be read."""
    found = ""
    place = 0
    while place < len(element):
        parameter = _PARAMETER.match(element, place)
        if parameter is None:
            return ""
        name, quoted, token = parameter.groups()
        if name is not None and name.lower() == "for":
            if found:
                return ""
            found = token if quoted is None else _ESCAPED.sub(r"\1", quoted)
        place = parameter.end()
    return found


_NODES: Final[dict[ForwardedHeader, Callable[[str], Iterator[str]]]] = {
    "x-forwarded-for": _listed,
    "forwarded": _forwarded,
}

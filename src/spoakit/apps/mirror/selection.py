"""Selection of the requests that a target gets: matching and sampling."""

import random
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final

from spoakit import Headers
from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.paths import split_url
from spoakit.apps.mirror.patterns import Pattern

# Function that returns the value that a request is sampled by; b"" if it has none.
_Sampler = Callable[[Headers, bytes | None, bytes | None], bytes]

_HASHES: Final = 2**64
# Key of the hash for all targets, workers and machines, see `Selector`. Another key would change
# who is sampled.
_SALT: Final = b"spoakit mirror"


class Selector:
    """Decide whether a target gets a request, by its settings.

    Samples by a value are **coherent**: all requests with the same value are selected, or none of
    them, by a hash of the value that is the same in every worker, on every machine and after every
    restart. They are also **nested**: a user in a sample of 1 % is in every larger one, so two
    targets with the same percentage get the same users, and raising the percentage keeps the users
    selected before. A request without the value, or with an empty one, is sampled at random.

    Attributes:
        selects_all: whether every request is selected, so that `selects` need not be called.
    """

    def __init__(self, settings: TargetSettings) -> None:
        match = settings.match
        self._methods: Final = frozenset(method.encode() for method in match.methods)
        self._hosts: Final = _HostRule(match.host)
        self._path: Final = None if match.path is None else Pattern("match.path", match.path)
        self._headers: Final = tuple(
            (name, Pattern(f"match.header.{name}", expression)) for name, expression in match.header
        )
        self._share: Final = settings.sample / 100
        self._threshold: Final = round(settings.sample * _HASHES / 100)
        self._value: Final = _sampler(settings.sample_by) if settings.sample < 100 else None
        matches_all = not (match.methods or match.host or match.header or match.path is not None)
        self.selects_all: Final = matches_all and settings.sample == 100

    def selects(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        key: bytes | None = None,
        src: bytes | None = None,
    ) -> bool:
        """Return whether the target gets a request.

        A request with malformed header fields, where a rule needs them, is selected: the copier
        then refuses, counts and logs it.

        Args:
            method: the method.
            target: a path with its query, a complete URL (the absolute form), or ``*``.
            headers: the fields; they are parsed only if a rule needs them.
            key: the argument `arg_key`, if the message has it.
            src: the argument `arg_src`, if the message has it.
        """
        if self._methods and method not in self._methods:
            return False
        # Sampling comes before the rules that take longer, and saves most of them.
        if self._value is None and random.random() >= self._share:
            return False
        _, authority, path = split_url(target)
        try:
            return (
                (self._path is None or self._path.is_in(path or b"/"))
                and self._hosts.allows(authority.decode("latin-1"), headers)
                and all(_has(headers, name, pattern) for name, pattern in self._headers)
                and (self._value is None or self._samples(self._value(headers, key, src)))
            )
        except ValueError:
            return True

    def _samples(self, value: bytes) -> bool:
        if not value:
            return random.random() < self._share
        digest = blake2b(value, digest_size=8, person=_SALT).digest()
        return int.from_bytes(digest, "big") < self._threshold


class _HostRule:
    """Rule about the host: names, and suffixes for names with a wildcard."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._names = frozenset(host for host in hosts if not host.startswith("*."))
        self._suffixes = tuple(host[1:] for host in hosts if host.startswith("*."))

    def allows(self, authority: str, headers: Headers) -> bool:
        """Return whether a request's host matches: the target's authority, or else its Host."""
        if not self._names and not self._suffixes:
            return True
        host = _host(authority or headers.get("host", ""))
        if host in self._names:
            return True
        return any(host.endswith(suffix) and len(host) > len(suffix) for suffix in self._suffixes)


def _host(authority: str) -> str:
    """Return the host of an authority, in lower case, without user, port or final dot."""
    host = authority.rpartition("@")[2].strip().lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0].removesuffix(".")


def _has(headers: Headers, name: str, pattern: Pattern) -> bool:
    return any(pattern.is_in(_encode(value)) for value in headers.getall(name))


def _sampler(sample_by: str) -> _Sampler | None:
    """Return the function that finds the value to sample by; None to sample at random."""
    kind, _, name = sample_by.partition(":")
    samplers: dict[str, _Sampler] = {
        "src": lambda headers, key, src: src or b"",
        "key": lambda headers, key, src: key or b"",
        "header": lambda headers, key, src: _encode(headers.get(name, "")),
        "cookie": lambda headers, key, src: _encode(_cookie(headers, name)),
    }
    return samplers.get(kind)


def _cookie(headers: Headers, name: str) -> str:
    """Return the value of the first cookie with a name (RFC 6265, 4.2.1 and 5.4), or ""."""
    for field in headers.getall("cookie"):
        for pair in field.split(";"):
            found, equals, value = pair.partition("=")
            if equals and found.strip(" \t") == name:
                return _unquoted(value.strip(" \t"))
    return ""


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value


def _encode(text: str) -> bytes:
    """Return the bytes that `Headers` decoded a text from."""
    return text.encode("utf-8", "surrogateescape")

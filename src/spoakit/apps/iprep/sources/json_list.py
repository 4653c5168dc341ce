"""Lists in JSON documents, in which paths lead to the addresses.

A path has names joined by dots, and "[]" for all items of a list: `prefixes[].ip_prefix`,
`result.ipv4_cidrs[]`, `[].address`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

import msgspec

from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources.chunks import MAX_SIZE, unzipped
from spoakit.apps.iprep.sources.entries import Entries
from spoakit.apps.iprep.sources.limits import ListLimits

MAX_JSON: Final = 16 * 1024**2
"""The most bytes of a document: decoded, each may take 20 in memory."""

_BOM: Final = b"\xef\xbb\xbf"
_PATH: Final = re.compile(r"(?:\[\]|[^.\[\]]+)(?:\[\])*(?:\.[^.\[\]]+(?:\[\])*)*")
_STEP: Final = re.compile(r"\[\]|[^.\[\]]+")
_EACH: Final = "[]"


class JsonPath:
    """A path to values in a JSON document.

    Args:
        text: the path.

    Raises:
        ValueError: it is not a path.
    """

    def __init__(self, text: str) -> None:
        if _PATH.fullmatch(text) is None:
            raise ValueError(
                f"{text[:80]!r} is not a path of names, dots and [], as 'prefixes[].ip_prefix'"
            )
        self._text = text
        self._steps = _STEP.findall(text)

    def __str__(self) -> str:
        return self._text

    def find(self, document: object) -> Iterable[object]:
        """Yield the values that the path leads to. Objects without one of its names have none."""
        values: Iterable[object] = (document,)
        for step in self._steps:
            values = _items(values) if step == _EACH else _members(values, step)
        return values


class JsonReader:
    """Reads a document of at most 16 MiB; of texts that paths lead to, each is a range.

    Args:
        select: the paths.
        limits: what its ranges may be.
    """

    def __init__(self, select: Iterable[str], limits: ListLimits | None = None) -> None:
        self._paths = tuple(map(JsonPath, select))
        self._limits = limits or ListLimits()

    def read(self, file: BinaryIO, max_size: int = MAX_SIZE) -> Entries:
        """See `lists.ListReader.read`."""
        document = _decode(file, max_size)
        entries = Entries(unit="value")
        for path in self._paths:
            before = entries.lines
            self._add(entries, path, document)
            if entries.lines == before:
                entries.warnings.append(f"there is nothing at {str(path)!r} (select)")
        if not entries.lines:
            raise SourceError("; ".join(entries.warnings))
        return entries.checked()

    def _add(self, entries: Entries, path: JsonPath, document: object) -> None:
        for value in path.find(document):
            entries.lines += 1
            try:
                if not isinstance(value, str):
                    raise ValueError(f"it is of the type {_type(value)}, not a text")
                entries.add(self._limits.parse(value.strip()))
            except ValueError as error:
                entries.fail(entries.lines, f"{path}: {error}")


def _decode(file: BinaryIO, max_size: int) -> object:
    document = bytearray()
    for chunk in unzipped(file, max_size):
        document += chunk
        if len(document) > MAX_JSON:
            raise SourceError(f"it is larger than {MAX_JSON} bytes, the most for a JSON document")
    try:
        return msgspec.json.decode(document.removeprefix(_BOM))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise SourceError(f"it is not JSON: {error}") from None


def _items(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, list):
            yield from value


def _members(values: Iterable[object], name: str) -> Iterator[object]:
    for value in values:
        if isinstance(value, dict) and name in value:
            yield value[name]


def _type(value: object) -> str:
    """Return the type of a value in JSON's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case dict():
            return "object"
        case list():
            return "array"
    return "number"

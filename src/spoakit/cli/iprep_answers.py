"""Text for people of the responses of a running spoa-iprep.

Responses have text of lists and databases, which are not trusted, so unprintable characters, which
could control a terminal, are replaced.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import msgspec

from spoakit.apps.iprep.control.socket import Answer, ControlError

_RULES: Final = {
    "ban": "it is banned",
    "allow": "it is allowed, whatever else is known",
    "private": "it is not of the public Internet, so that sources do not count",
    "lowest": "the lowest of the sources that have it",
    "weighted": "the weighted mean of the sources that have it",
    "unknown": "no source has it",
}
_UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
_SIZES: Final = ("B", "KiB", "MiB", "GiB")
_MAX_TEXT: Final = 200
_ADDRESS_WIDTH: Final = 39  # of the longest IPv6 address

T = TypeVar("T")


class _Ban(msgspec.Struct, frozen=True):
    address: str
    score: int
    until: float
    reason: str = ""
    note: str = ""

    def time_left(self, now: float) -> str:
        return duration(max(0.0, self.until - now))


class _Unban(msgspec.Struct, frozen=True):
    address: str
    count: int = 1


class _Update(msgspec.Struct, frozen=True):
    source: str
    entries: int
    download: str = ""
    fault: str = ""


class _Bans(msgspec.Struct, frozen=True):
    bans: tuple[_Ban, ...]


class _Table(msgspec.Struct, frozen=True):
    built: float
    entries: int
    size: int | None = None
    generation: int | None = None
    failed: float = 0.0
    error: str = ""

    def show(self, now: float) -> str:
        shown = f"table: {self.entries:,} entries"
        if self.size is not None:
            shown += f", {_size(self.size)}"
        shown += f", built {duration(now - self.built)} ago"
        if self.generation is not None:
            shown += f", generation {self.generation}"
        if self.error:
            shown += (
                f"\nno newer table could be made {duration(now - self.failed)} ago: "
                f"{_clean(self.error)}"
            )
        return shown


class _SourceResult(msgspec.Struct, frozen=True):
    source: str
    state: str
    score: int | None = None
    category: str = ""
    mode: str = "enforce"

    @property
    def shown_state(self) -> str:
        return self.state if self.mode == "enforce" else f"{self.state} (observed)"


class _Observed(msgspec.Struct, frozen=True):
    source: str
    score: int


class _Lookup(msgspec.Struct, frozen=True):
    address: str
    score: int
    rule: str
    says: tuple[_SourceResult, ...]
    table: _Table
    source: str = ""
    category: str = ""
    asn: int | None = None
    country: str = ""
    ban: _Ban | None = None
    observed: tuple[_Observed, ...] = ()


class _Source(msgspec.Struct, frozen=True):
    name: str
    type: str
    place: str
    state: str
    mode: str = "enforce"
    entries: int | None = None
    age: float | None = None
    failed_lines: int = 0
    masked: int = 0
    line_errors: tuple[str, ...] = ()
    warning: str = ""
    error: str = ""
    asked: int | None = None
    failures: int | None = None


class _Sources(msgspec.Struct, frozen=True):
    sources: tuple[_Source, ...]
    table: _Table


def show_ban(answer: Answer, now: float) -> str:
    """Show the ban that was added.

    Raises:
        ControlError: (by all functions here) the response has another form.
    """
    ban = _convert(answer, _Ban)
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ban.until))
    shown = f"{_clean(ban.address)} has a score of {ban.score} until {until}"
    return f"{shown}; note that {_clean(ban.note)}" if ban.note else shown


def show_unban(answer: Answer, now: float) -> str:
    """Show the address or network whose bans were ended."""
    ended = _convert(answer, _Unban)
    if not ended.address:
        return f"all bans were ended: {ended.count:,}"
    count = f": {ended.count:,} bans were ended" if ended.count > 1 else ""
    return f"{_clean(ended.address)} is banned no more{count}"


def show_update(answer: Answer, now: float) -> str:
    """Show a source that was updated."""
    found = _convert(answer, _Update)
    download = f"the download is {found.download}, and " if found.download else ""
    shown = f"{_clean(found.source)}: {download}{found.entries:,} entries are in the table"
    return f"{shown}; {_clean(found.fault)}" if found.fault else shown


def show_bans(answer: Answer, now: float) -> str:
    """Show all bans with their remaining time."""
    bans = _convert(answer, _Bans).bans
    if not bans:
        return "there are no bans"
    rows = [(ban.address, str(ban.score), ban.time_left(now), ban.reason) for ban in bans]
    return columns(("ADDRESS", "SCORE", "LEFT", "REASON"), rows, right=(1, 2))


def show_lookup(answer: Answer, now: float) -> str:
    """Show the score of an address, the rule that decided, and the result of each source."""
    found = _convert(answer, _Lookup)
    rule = _RULES.get(found.rule, found.rule)
    lines = [
        f"{_clean(found.address)} has a score of {found.score}: {_clean(rule)}",
        *_facts(found, now),
        "",
    ]
    if found.says:
        rows = [
            (say.source, say.shown_state, _number(say.score), say.category) for say in found.says
        ]
        lines += [columns(("SOURCE", "SAYS", "SCORE", "CATEGORY"), rows, right=(2,)), ""]
    return "\n".join((*lines, found.table.show(now)))


def show_lookup_line(answer: Answer, now: float) -> str:
    """Show the score of an address and the rule that decided, in one line."""
    found = _convert(answer, _Lookup)
    shown = f"{_clean(found.address):<{_ADDRESS_WIDTH}}  {found.score:>3}  {_clean(found.rule):<8}"
    return f"{shown}  {_clean(found.source)}".rstrip()


def _facts(found: _Lookup, now: float) -> Iterable[str]:
    if found.ban is not None:
        ban = found.ban
        reason = f": {_clean(ban.reason)}" if ban.reason else ""
        yield f"banned as {_clean(ban.address)} for another {ban.time_left(now)}{reason}"
    named = (
        ("source", found.source),
        ("category", found.category),
        ("autonomous system", "" if found.asn is None else str(found.asn)),
        ("country", found.country),
    )
    for name, value in named:
        if value:
            yield f"{name}: {_clean(value)}"
    for each in found.observed:
        yield f"observed: with {_clean(each.source)} the score would be {each.score}"


def show_sources(answer: Answer, now: float) -> str:
    """Show the sources in a table, followed by refused lines and warnings."""
    found = _convert(answer, _Sources)
    header = ["NAME", "TYPE", "STATE", "ENTRIES", "AGE", "ASKED", "FAILED", "PLACE", "ERROR"]
    rows = [
        (
            each.name,
            each.type,
            each.state if each.mode == "enforce" else f"{each.state} (observed)",
            _number(each.entries),
            "-" if each.age is None else duration(each.age),
            _number(each.asked),
            _number(each.failures),
            each.place,
            each.error or "-",
        )
        for each in found.sources
    ]
    lines = [columns(header, rows, right=(3, 4, 5, 6)), ""]
    for each in found.sources:
        notes = [f"{_clean(each.name)}: {_clean(note)}" for note in _notes(each)]
        notes += [f"  {_clean(error)}" for error in each.line_errors]
        lines += [*notes, ""] if notes else []
    return "\n".join((*lines, found.table.show(now)))


def _notes(source: _Source) -> Iterable[str]:
    if source.warning:
        yield source.warning
    if source.masked:
        yield f"{source.masked:,} networks have bits set behind their prefix, which do not count"
    if source.failed_lines:
        yield f"{source.failed_lines:,} lines are refused"


def duration(seconds: float) -> str:
    """Return a time in its two largest units: "3d 4h", "12m 30s", "0s"."""
    rest = max(0, int(seconds))
    parts = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        parts.append((count, unit))
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count}{unit}" for count, unit in parts[first : first + 2] if count]
    return " ".join(shown) or "0s"


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Return lines of aligned columns; columns with an index in `right` are right-aligned."""
    lines = [tuple(header), *(tuple(map(_clean, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place in right else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _convert(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise ControlError(
            f"cannot parse the response: {error}; is the running spoa-iprep of another version?"
        ) from None


def _clean(text: str) -> str:
    if len(text) > _MAX_TEXT:
        text = f"{text[:_MAX_TEXT]}..."
    return "".join(each if each.isprintable() else "?" for each in text)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _size(size: float) -> str:
    unit = 0
    while size >= 1024 and unit < len(_SIZES) - 1:
        size /= 1024
        unit += 1
    return f"{size:.1f} {_SIZES[unit]}" if unit else f"{size:.0f} B"

"""Header fields of a request or response, which HAProxy sends as one argument."""

import re
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar, overload

from spoakit.exceptions import InvalidFrameError
from spoakit.spop._decode_cy import Cursor
from spoakit.spop._encode_cy import encode_string

T = TypeVar("T")

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_END: Final = b"\0\0"


class Headers:
    """Header fields in order, repeated fields included; parsed on first use.

    Args:
        raw: the argument's bytes.
        binary: True for a BINARY (``req.hdrs_bin``, ``res.hdrs_bin``), False for a STRING
            (``req.hdrs``, ``res.hdrs``).

    Names are case-insensitive. Names and values are str, decoded as UTF-8 with surrogateescape,
    which loses nothing; `raw` has the bytes.

    The constructor does not parse. All methods and properties but `raw` and `binary` raise
    ValueError if the bytes are not a header block.
    """

    __slots__ = ("_fields", "binary", "raw")

    raw: bytes
    binary: bool
    _fields: tuple[tuple[str, str], ...] | None

    def __init__(self, raw: bytes, binary: bool = True) -> None:
        self.raw = raw
        self.binary = binary
        self._fields = None

    @classmethod
    def of(cls, *fields: tuple[str, str]) -> "Headers":
        """Return header fields with these names and values.

        An agent sets a BINARY variable to their `raw` bytes for HAProxy's ``set-headers-bin``
        and ``add-headers-bin`` (3.4 and later). A test passes them as an argument.

        Raises:
            ValueError: see `encode`.
        """
        return cls(_encode(fields))

    def encode(self) -> bytes:
        """Return the fields as a BINARY block that is safe for ``set-headers-bin``.

        HAProxy does not check the block: a line feed in a value would begin another field.

        Raises:
            ValueError: a name is not a token (RFC 9110, 5.6.2), or a value has a control character
                other than a tab (5.5): CR, LF and NUL among them.
        """
        return _encode(self.fields)

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """The (name, value) pairs; names have the case that HAProxy sent."""
        if self._fields is None:
            pairs = _parse_binary(self.raw) if self.binary else _parse_text(self.raw)
            self._fields = tuple((_decode(name), _decode(value)) for name, value in pairs)
        return self._fields

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: T) -> str | T: ...
    def get(self, name: str, default: object = None) -> object:
        """Return the value of the first field with this name, or the default."""
        wanted = name.lower()
        for field, value in self.fields:
            if field.lower() == wanted:
                return value
        return default

    def getall(self, name: str) -> list[str]:
        """Return the values of all fields with this name, in order."""
        wanted = name.lower()
        return [value for field, value in self.fields if field.lower() == wanted]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Headers):
            return NotImplemented
        return self.raw == other.raw and self.binary == other.binary

    def __hash__(self) -> int:
        return hash((self.raw, self.binary))

    def __repr__(self) -> str:
        return f"<Headers {len(self.raw)} bytes {'BINARY' if self.binary else 'STRING'}>"


def _encode(fields: Iterable[tuple[str, str]]) -> bytes:
    block = bytearray()
    for name, value in fields:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"header name {name!r:.80} is not a token (RFC 9110)")
        if found := _CONTROL.search(value):
            raise ValueError(f"header {name:.80}: the value must not contain {found[0]!r}")
        for text in (name, value):
            block += encode_string(text.encode("utf-8", "surrogateescape"))
    return bytes(block + _END)


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _parse_binary(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Parse names and values with varint lengths, up to an empty pair."""
    cursor = Cursor(raw, 0, len(raw))
    try:
        while True:
            name = cursor.string()
            value = cursor.string()
            if not name:
                break
            yield name, value
    except InvalidFrameError as error:
        raise ValueError(f"not a req.hdrs_bin block: {error}") from None
    if value or not cursor.at_end():
        raise ValueError("not a req.hdrs_bin block: there is data after its empty name")


def _parse_text(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Parse "name: value" lines up to an empty line or the end; LF alone ends a line too.

    Converters in the SPOE configuration may have changed the text since HAProxy parsed it, so it
    may be malformed. A line that starts with a space or a tab continues the line before it
    (RFC 9112, 5.2), and is joined to it with one space.
    """
    lines = [line.removesuffix(b"\r") for line in raw.split(b"\n")]
    end = lines.index(b"") if b"" in lines else len(lines)
    if any(lines[end:]):
        raise ValueError("not a req.hdrs block: there is data after its empty line")
    unfolded: list[bytes] = []
    for line in lines[:end]:
        if unfolded and line[0] in b" \t":
            unfolded[-1] += b" " + line.strip(b" \t")
        else:
            unfolded.append(line)
    for line in unfolded:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip(b" \t"):
            raise ValueError(f"not a req.hdrs block: {line[:40]!r} is not a header field")
        yield name, value.strip(b" \t")

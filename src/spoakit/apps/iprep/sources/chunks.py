"""The bytes of a list in large pieces that are whole lines, out of gzip if they are in it."""

import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

from spoakit.apps.iprep.exceptions import SourceError

CHUNK_SIZE: Final = 256 * 1024
"""What is read at once, in bytes."""

MAX_LINE: Final = 64 * 1024
"""The longest line that is looked at, in bytes; of a longer one only its start is."""

MAX_SIZE: Final = 1024**3
"""The most bytes a list may have, out of gzip."""

_BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"


def chunks_of(file: BinaryIO, max_size: int = MAX_SIZE) -> Iterator[bytes]:
    """Yield a file's bytes in pieces of about 256 KiB, each of whole lines that end with LF.

    A byte order mark is taken away, and an LF put at the end where it lacks. What is compressed
    with gzip is decompressed.

    Args:
        file: open for reading, at its start.
        max_size: the most bytes it may have, out of gzip.

    Raises:
        SourceError: it has more, cannot be read, or its gzip is damaged or cut off.
    """
    rest = b""
    for data in _without_mark(unzipped(file, max_size)):
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        elif len(rest) < MAX_LINE:
            rest += data
    if rest:
        yield rest + b"\n"


def unzipped(file: BinaryIO, max_size: int) -> Iterator[bytes]:
    """Yield a file's bytes in pieces of at most 256 KiB, out of gzip if they are in it.

    Args:
        file: open for reading, at its start.
        max_size: the most bytes it may have, out of gzip.

    Raises:
        SourceError: it has more, cannot be read, or its gzip is damaged or cut off.
    """
    left = max_size
    try:
        start = file.read(2)
        file.seek(0)
        source = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if start == _GZIP else file
        while data := source.read(CHUNK_SIZE):
            left -= len(data)
            if left < 0:
                raise SourceError(f"it is larger than {max_size} bytes (max-size)")
            yield data
    except EOFError:
        raise SourceError("it is cut off: its gzip has no end") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"its gzip is damaged: {error}") from None
    except OSError as error:
        raise SourceError(f"it cannot be read: {error.strerror or error}") from None


def _without_mark(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Take away a byte order mark."""
    yield next(pieces, b"").removeprefix(_BOM)
    yield from pieces

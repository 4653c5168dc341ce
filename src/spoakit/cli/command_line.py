"""Command line of this process, which all users of the machine can read (ps, /proc)."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Final

# Matches users and passwords of URLs; a NUL ends an argument.
_USER: Final = re.compile(rb"(?<=//)[^@\0]*(?:@[^@\0]*)*(?=@)")
# Field of /proc/self/stat after the name of the program (proc(5): arg_start, arg_end).
_ARG_START: Final = 45


def hide_users() -> None:
    """Overwrite users and passwords of URLs in the command line, if the system allows it.

    Other processes may have read them before. Workers that are forked later inherit the change.
    """
    with suppress(OSError, ImportError, ValueError, IndexError):
        _overwrite()


def _overwrite() -> None:
    import ctypes  # which nothing else needs

    line = Path("/proc/self/cmdline").read_bytes()
    hidden = _USER.sub(lambda match: b"*" * len(match[0]), line)
    fields = Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_START + 1])
    # Write only if the memory has exactly the command line.
    if start and end - start == len(line) and ctypes.string_at(start, len(line)) == line:
        ctypes.memmove(start, hidden, len(hidden))

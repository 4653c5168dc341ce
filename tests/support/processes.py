"""Processes: their children and state in Linux' /proc, and the lines that they log."""

import subprocess
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Return the processes that any thread of a process has started and that are still there.

    It has none when it is no longer there itself. The children of a thread that ends move to
    another thread, and a list that is read while one of them ends may lack others: what counts is
    what two readings in a row say.
    """
    earlier: list[int] | None = None
    while True:
        found = _read_children(Path(f"/proc/{pid}/task"))
        if found is not None and found == earlier:
            return found
        earlier = found


def _read_children(tasks: Path) -> list[int] | None:
    """Return the children of all threads; None if one of these has ended meanwhile."""
    try:
        threads = list(tasks.iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        lists = [(thread / "children").read_text() for thread in threads]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return sorted(int(child) for listed in lists for child in listed.split())


def is_running(pid: int) -> bool:
    """Tell if a process is there and has not ended: one that nobody waited for stays listed."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "\nState:\tZ" not in status


def wait_for_line(process: "subprocess.Popen[str]", text: str) -> str:
    """Read a process' standard error up to the line with a text, and return that line."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"its standard error ended before a line with {text!r}")

import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spoakit.apps.line_output import BATCH_SIZE
from spoakit.apps.line_writer import LogWriter
from tests.support.waiting import wait_until

LINE = b"x" * 99 + b"\n"


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Have writes beyond this size of a file write a part, and fail, as on a full disk."""
    # Python ignores SIGXFSZ.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_batches_are_written_whole_and_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [b"%d " % number + LINE for number in range(5000)]
    lines[7] = b"y" * (2 * BATCH_SIZE) + b"\n"
    with path.open("wb") as file:
        writer = LogWriter(file.fileno())
        for start in range(0, 5000, 1000):
            writer.put(b"".join(lines[start : start + 1000]))
        writer.close()
    assert path.read_bytes() == b"".join(lines)
    assert writer.dropped == 0


def test_a_full_pipe_drops_lines_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    reader, descriptor = os.pipe()
    writer = LogWriter(descriptor)
    count, batch = 120_000, 500
    started = time.perf_counter()
    for _ in range(count // batch):
        writer.put(LINE * batch)
    assert time.perf_counter() - started < 10
    assert 0 < writer.dropped < count
    received = bytearray()
    deadline = time.perf_counter() + 10
    while received.count(b"\n") + writer.dropped < count:
        assert time.perf_counter() < deadline
        if select.select([reader], [], [], 0.01)[0]:
            received.extend(os.read(reader, 65536))
    assert set(bytes(received).splitlines(keepends=True)) == {LINE}
    writer.close()
    os.close(reader)
    os.close(descriptor)
    assert "lines could not be written so far" in caplog.text


def test_lines_that_cannot_be_written_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    writer = LogWriter(descriptor)
    writer.put(LINE * 3)
    writer.close()
    os.close(descriptor)
    assert writer.dropped == 3
    assert "log: 3 lines could not be written so far" in caplog.text


def test_lines_that_a_stuck_reader_left_unwritten_are_counted_at_the_end() -> None:
    reader, descriptor = os.pipe()
    writer = LogWriter(descriptor)
    writer.put(LINE * 3000)
    writer.close()
    # The pipe holds 64 KiB, which are a few hundred lines.
    assert 2000 < writer.dropped < 3000
    os.close(reader)
    os.close(descriptor)


@pytest.mark.parametrize("waits", [False, True])
def test_a_line_that_a_full_disk_tore_is_lost_alone(tmp_path: Path, waits: bool) -> None:
    path = tmp_path / "log"
    with path.open("ab") as file:
        writer = LogWriter(file.fileno())
        with room_for(250):
            writer.put(LINE * 4)
            wait_until(lambda: writer.dropped >= 2)
            assert path.read_bytes() == LINE * 2 + b"x" * 50
        if waits:  # the torn line is ended without another one
            wait_until(lambda: path.stat().st_size >= 251)
        writer.put(LINE)
        writer.close()
    assert path.read_bytes() == LINE * 2 + b"x" * 50 + b"\n" + LINE
    assert writer.dropped == 2


def test_a_torn_line_of_another_worker_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as one, path.open("ab") as two:
        writers = [LogWriter(file.fileno()) for file in (one, two)]
        with room_for(250):
            writers[0].put(LINE * 3)
            wait_until(lambda: writers[0].dropped >= 1)
            writers[1].put(LINE)
            wait_until(lambda: writers[1].dropped >= 1)
        writers[1].put(LINE)
        writers[1].close()
        writers[0].close()
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    assert lines == [LINE[:-1]] * 2 + [b"x" * 50] + [LINE[:-1]]


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a file system")
def test_a_full_file_system_tears_no_line_of_later_ones(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    lines = [b"%d " % number + b"y" * 120 for number in range(2000)]
    try:
        with (tmp_path / "log").open("ab") as file:
            writer = LogWriter(file.fileno())
            for line in lines[:-1]:
                writer.put(line + b"\n")
            wait_until(lambda: writer.dropped >= 1000)
            larger = ["mount", "-o", "remount,size=1m", str(tmp_path)]
            subprocess.run(larger, check=True)
            writer.put(lines[-1] + b"\n")
            writer.close()
        written = (tmp_path / "log").read_bytes().split(b"\n")
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    whole = [line for line in written if line in set(lines)]
    assert whole[-1] == lines[-1]
    assert len(whole) + writer.dropped == 2000
    assert len([line for line in written if line]) - len(whole) <= 1, "more than the torn one"


def test_a_pipe_that_is_not_to_be_waited_for_is_waited_for() -> None:
    """Another process that shares it may have made it so."""
    reader, descriptor = os.pipe()
    os.set_blocking(descriptor, False)
    writer = LogWriter(descriptor)
    lines = b"".join(b"%d " % number + b"z" * 200_000 + b"\n" for number in range(4))
    writer.put(lines)
    received = bytearray()
    deadline = time.monotonic() + 10
    while len(received) < len(lines):
        assert time.monotonic() < deadline
        if select.select([reader], [], [], 0.01)[0]:
            received.extend(os.read(reader, 65536))
    writer.close()
    assert received == lines
    assert writer.dropped == 0
    os.close(reader)
    os.close(descriptor)

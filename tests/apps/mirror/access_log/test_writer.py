import os
import select
import time
from pathlib import Path

import pytest

from spoakit.apps.mirror.access_log.writer import BATCH_SIZE, LogWriter

LINE = b"x" * 99 + b"\n"


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
    assert "access log: 3 lines could not be written so far" in caplog.text


def test_lines_that_a_stuck_reader_left_unwritten_are_counted_at_the_end() -> None:
    reader, descriptor = os.pipe()
    writer = LogWriter(descriptor)
    writer.put(LINE * 3000)
    writer.close()
    # The pipe holds 64 KiB, which are a few hundred lines.
    assert 2000 < writer.dropped < 3000
    os.close(reader)
    os.close(descriptor)

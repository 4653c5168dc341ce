"""The way of lines to their file: no reader is waited for, and lines stay whole."""

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from spoakit.logs import Throttle

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("make", [os.pipe, lambda: [s.detach() for s in socket.socketpair()]])
@pytest.mark.parametrize("room", [1, 2, 5, 15])
@pytest.mark.parametrize("character", ["x", "é", "\U0001f600", "\n", "\udc80"])
def test_no_line_waits_for_a_reader(
    make: Callable[[], Sequence[int]], room: int, character: str
) -> None:
    reader, writer = make()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4095 + b"\n")
    os.set_blocking(writer, True)
    for _ in range(room):
        os.read(reader, 4096)
    script = (
        f"import logging; from spoakit.log_output import *; configure_logging()\n"
        f"log = logging.getLogger('spoakit.test'); text = {character!a}\n"
        "for size in range(0, 9000, 450): log.info(text * size)\n"
        "for size in range(0, 9000, 450): log.info('failed', exc_info=ValueError(text * size))\n"
        "for size in range(0, 9000, 450): log.info('stack', stack_info=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stderr=writer, timeout=30, check=True)
    assert done.returncode == 0
    assert os.get_blocking(writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        lines = pipe.read().splitlines(keepends=True)
    # Whole lines, however little room there was.
    assert all(line.endswith(b"\n") and len(line) <= 4096 for line in lines)
    assert all(line.startswith((b".", b"20", b"  ")) for line in lines)


def test_lines_of_several_processes_do_not_mix() -> None:
    reader, writer = os.pipe()
    script = (
        "import logging, sys; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "for size in range(1000): log.info(sys.argv[1] * (3 * size % 4000))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, letter], stderr=writer) for letter in "abcd"
    ]
    os.close(writer)
    with open(reader, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert [process.wait(30) for process in processes] == [0] * 4
    assert len(lines) >= 100
    for line in lines:
        assert re.fullmatch(rb"20\S+ \S+ \[\d+\] \w+ spoakit.*: (a*|b*|c*|d*|\d+ lines .*)", line)


def shell(redirection: str) -> subprocess.CompletedProcess[bytes]:
    """Log with standard error redirected, and print what happens to the log's caller."""
    script = (
        "import logging, sys; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "for size in range(100): log.error('x' * size, exc_info=ValueError('x'), stack_info=True)\n"
        "logging.shutdown(); print('fine', flush=True)\n"
    )
    return subprocess.run(
        ["/bin/sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, script],
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>/dev/null", "2</dev/null"])
def test_a_log_that_cannot_be_written_raises_nothing(redirection: str) -> None:
    done = shell(redirection)
    assert done.stdout == b"fine\n"


def test_a_log_whose_reader_has_gone_raises_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    script = (
        "import logging; from spoakit.log_output import *; configure_logging()\n"
        "[logging.error('x') for _ in range(3)]; print('fine')"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, timeout=30, check=False)
    os.close(writer)
    assert done.stdout == b"fine\n"


def test_a_log_that_is_closed_under_way_goes_on_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "log"
    script = (
        "import logging, os, sys; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "os.close(2); log.info('lost'); log.info('lost')\n"
        "os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND); log.info('x' * 5000)\n"
        "log.info('short')"
    )
    subprocess.run([sys.executable, "-c", script, path], timeout=30, check=True)
    lost, long, short = path.read_text().splitlines()
    assert "2 lines of this log were lost" in lost
    assert long.endswith("xxx... (5000 characters in all)")
    assert short.endswith("short")


def test_a_record_that_a_socket_took_in_part_is_ended_before_the_next() -> None:
    reader, writer = socket.socketpair()
    writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    script = (
        "import logging, sys; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "for size in range(200): log.info('x' * (37 * size % 4000))\n"
        "print(flush=True); sys.stdin.readline()\n"
        "for size in range(3): log.info('y')\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script]
    with (
        reader,
        writer,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=writer.fileno()) as process,
    ):
        assert process.stdout
        process.stdout.readline()
        writer.close()
        reader.setblocking(False)
        data = b""
        with suppress(BlockingIOError):
            while True:
                data += reader.recv(1 << 20)
        process.communicate(b"\n", 30)
        reader.setblocking(True)
        while more := reader.recv(1 << 20):
            data += more
    assert data.endswith(b"spoakit.test: y\n")
    for line in data.splitlines():
        assert re.match(rb"20\d\d-\d\d-\d\d ", line)


def test_a_filter_that_raises_costs_its_line_alone(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("spoakit.test.filtered")

    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError("a bad filter")

    throttle = Throttle(logger)
    logger.addFilter(refuse)
    try:
        throttle.warning("kind", "lost")
        throttle.error("other kind", "lost", error=ValueError("lost"))
    finally:
        logger.removeFilter(refuse)
    throttle.warning("third kind", "kept")
    assert caplog.messages == ["kept"]
    assert capsys.readouterr().err.count("RuntimeError: a bad filter") == 2


def test_a_line_of_another_worker_that_a_full_disk_tore_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "log"
    script = (
        "import logging, os, resource; from spoakit.log_output import *; configure_logging()\n"
        "log = logging.getLogger('spoakit.test')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))\n"
        "if not (worker := os.fork()): log.info('x' * 400); os._exit(0)\n"
        "os.waitpid(worker, 0); log.info('lost')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "log.info('after')"
    )
    with path.open("ab") as file:
        subprocess.run([sys.executable, "-c", script], stderr=file, timeout=30, check=True)
    torn, lost, after = path.read_text().splitlines()
    assert len(torn) == 300
    assert re.fullmatch("20.*: 1 lines of this log were lost: .*", lost)
    assert re.fullmatch("20.*: after", after)

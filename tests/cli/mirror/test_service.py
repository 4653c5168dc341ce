"""spoa-mirror as a process: it copies, serves TLS, and logs to a file."""

import re
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path
from threading import Event, Thread

import pytest

from spoakit.testing import EngineClient
from tests.support.certificates import make_authority, make_certificate
from tests.support.mirror_program import Recorder, send_until, start, stop
from tests.support.ports import free_port
from tests.support.processes import children_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def serve_once(server: socket.socket, received: list[bytes]) -> None:
    """Answer one request."""
    connection, _ = server.accept()
    with connection:
        received.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        connection.recv(1)


def test_it_copies_a_request_and_logs_it() -> None:
    port = free_port()
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        answering = Thread(target=serve_once, args=(server, received))
        answering.start()
        with start("-r0", "-a127.0.0.1", f"-p{port}", f"-u{url}", "-n2") as process:
            assert process.stderr is not None
            assert process.stdout is not None
            assert any("listening on" in line for line in process.stderr)
            with EngineClient(port=port) as engine:
                engine.hello()
                engine.call(
                    "mirror",
                    arg_method="GET",
                    arg_path="/a",
                    arg_ver="1.1",
                    arg_hdrs=b"\4host\1h\0\0",
                    arg_body=b"",
                )
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=20)
            assert process.returncode == 0, err
        answering.join(10)
    assert received == [b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"]
    line = rf'\[ ?\d+\]\[ *\d+\.\d{{6}}\] "GET {url}a HTTP/1.1" 200 0/2 \d+\.\d{{3}} ok\n'
    assert re.fullmatch(line, out), err


def test_it_ends_after_its_runtime_and_says_what_it_lacks() -> None:
    with start("-r100", "-a127.0.0.1", f"-p{free_port()}", "-n1") as process:
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0
    assert "without a URL (-u) requests are acknowledged and not mirrored" in err
    assert "the runtime has ended" in err


def test_it_serves_tls(tmp_path: Path) -> None:
    pem = make_certificate(tmp_path, "agent", make_authority(tmp_path))
    port = free_port()
    with start("-r0", "-a127.0.0.1", f"-p{port}", f"--tls-cert={pem.both}", "-n2") as process:
        assert process.stderr is not None
        assert any("listening on" in line for line in process.stderr)
        with (
            socket.create_connection(("127.0.0.1", port), 10) as plain,
            ssl.create_default_context(cafile=tmp_path / "authority.crt").wrap_socket(
                plain, server_hostname="127.0.0.1"
            ) as engine,
        ):
            assert engine.version() == "TLSv1.3"
        stop(process)


def uses_linux_aio(pid: int) -> bool:
    """Return whether strace sees a process submit asynchronous polls within a second."""
    seen = subprocess.run(
        ["timeout", "1", "strace", "-f", "-e", "trace=io_submit,io_getevents", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    if "Operation not permitted" in seen or "ptrace" in seen:
        pytest.skip("strace may not attach here")
    return "io_submit(" in seen and "IOCB_CMD_POLL" in seen and "io_getevents(" in seen


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_linuxaio_is_really_that() -> None:
    target = Recorder()
    port = free_port()
    url = f"http://127.0.0.1:{target.port}/"
    with start("-r0", "-a127.0.0.1", f"-p{port}", f"-u{url}", "-Blinuxaio", "-n1") as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if "listening on" in line:
                break
        if any("refuses linuxaio" in line for line in lines):
            pytest.skip(lines[0])
        assert "(1 worker, linuxaio, " in lines[-1]
        ended = Event()
        sending = Thread(target=send_until, args=(port, ended))
        sending.start()
        try:
            [worker] = children_of(process.pid)
            assert uses_linux_aio(worker)
        finally:
            ended.set()
            sending.join()
        wait_until(lambda: bool(target.paths))
        stop(process)
    target.close()


def test_the_logfile_has_everything_from_the_first_line_on(tmp_path: Path) -> None:
    file = tmp_path / "b.log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start("-r0", "-D", "-a127.0.0.1", f"-p{port}", f"-lA:{file}") as process:
            out, err = process.communicate(timeout=20)
            assert process.returncode == 1
    reason = f"cannot start: cannot listen on 127.0.0.1 port {port}: Address already in use"
    assert (out, err) == ("", f"ERROR: {reason}\n")
    begin, warning, error = file.read_text().splitlines()
    assert "--- start" in begin
    assert warning.endswith("without a URL (-u) requests are acknowledged and not mirrored")
    assert error.endswith(reason)


def test_a_logfile_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with start("-r0", f"-l{tmp_path}/absent/b.log") as process:
        _, err = process.communicate(timeout=20)
        assert process.returncode == 1
    assert err == f"ERROR: logfile {tmp_path}/absent/b.log: No such file or directory\n"

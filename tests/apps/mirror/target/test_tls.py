"""TLS to one target: certificates of both sides."""

import os
import pty
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spoakit.apps.mirror.config.schema import TlsSettings
from spoakit.exceptions import ConfigurationError
from tests.support.copier import Copying, Run
from tests.support.origin import origin
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("tls", "is_trusted"),
    [
        (lambda path: TlsSettings(), False),
        (lambda path: TlsSettings(ca_file=str(path)), True),
        (lambda path: TlsSettings(ca_file=str(path), server_name="other.example"), False),
        (lambda path: TlsSettings(verify=False), True),
    ],
)
def test_a_target_is_reached_by_tls_if_its_certificate_is_good(
    run: Run,
    copying: Copying,
    certificate: Path,
    caplog: pytest.LogCaptureFixture,
    tls: Callable[[Path], TlsSettings],
    is_trusted: bool,
) -> None:
    async def scenario() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        async with origin() as server:
            port = server.port
            await server.stop()
            await server.start(port, ssl=context)
            name = {"scheme": "https", "server": "localhost", "drain": 0}
            async with copying(port, tls=tls(certificate), **name) as mirror:
                for _ in range(3):
                    mirror.get()
                if is_trusted:
                    await mirror.answered(3)
                else:
                    await until(lambda: "certificate" in caplog.text)
            assert len(server.requests) == (3 if is_trusted else 0)

    run(scenario())


def test_a_client_certificate_is_shown(run: Run, copying: Copying, certificate: Path) -> None:
    async def scenario() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
        context.load_cert_chain(certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        async with origin() as server:
            port = server.port
            await server.stop()
            await server.start(port, ssl=context)
            tls = TlsSettings(ca_file=str(certificate), certificate=str(certificate))
            async with copying(port, scheme="https", server="localhost", tls=tls) as mirror:
                mirror.get()
                await mirror.answered(1)

    run(scenario())


def test_a_certificate_that_cannot_be_read_is_said(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        for tls in (TlsSettings(ca_file="/nowhere"), TlsSettings(certificate="/dev/null")):
            with pytest.raises(ConfigurationError, match=r"/nowhere|/dev/null"):
                async with copying(1, scheme="https", tls=tls):
                    pass

    run(scenario())


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(
    certificate: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    command = [
        *("openssl", "rsa", "-in", str(certificate)),
        *("-aes128", "-passout", "pass:x", "-out", str(locked)),
    ]
    subprocess.run(command, check=True, capture_output=True)
    load = (
        "from spoakit.apps.mirror.http.connector import check_connections;"
        "from spoakit.apps.mirror.config.schema import TargetSettings, TlsSettings;"
        "from spoakit.apps.mirror.url import TargetURL;"
        f"tls = TlsSettings(certificate={str(certificate)!r}, key={str(locked)!r});"
        "check_connections(TargetSettings(TargetURL.parse('https://localhost'), tls=tls))"
    )
    # With a terminal, where OpenSSL would ask for the password and wait.
    ours, theirs = pty.openpty()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", load],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            start_new_session=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert f"with key {str(locked)!r}" in ended.stderr

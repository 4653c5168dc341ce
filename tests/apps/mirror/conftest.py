import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvloop

from spoakit.apps.line_writer import LogWriter
from spoakit.apps.mirror.access_log._lines_cy import AccessLog
from spoakit.apps.mirror.config.schema import TargetSettings
from spoakit.apps.mirror.target import Target
from spoakit.apps.mirror.url import TargetURL
from spoakit.metrics.memory import SharedMetrics
from tests.support.copier import Copier, Run
from tests.support.forms import Form
from tests.support.waiting import TIMEOUT


@pytest.fixture(scope="session")
def building(form: Form) -> ModuleType:
    """`spoakit.apps.mirror._request_builder_cy`, in each form."""
    return form("spoakit.apps.mirror._request_builder_cy")


@pytest.fixture(scope="session")
def answering(form: Form) -> ModuleType:
    """`spoakit.apps.mirror.http._response_cy`, in each form."""
    return form("spoakit.apps.mirror.http._response_cy")


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine in an event loop of each kind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, 2 * TIMEOUT))

    return run


@pytest.fixture
def copying(tmp_path: Path) -> Callable[..., Any]:
    """Give `copying(port, **settings)`, an asynchronous context of a `Copier`."""
    log = tmp_path / "access.log"

    @asynccontextmanager
    async def copying(
        port: int,
        *,
        scheme: str = "http",
        server: str = "127.0.0.1",
        base: str = "",
        drain: float = 5.0,
        **settings: Any,
    ) -> AsyncIterator[Copier]:
        url = TargetURL.parse(f"{scheme}://{server}:{port}{base}")
        with log.open("wb") as file:
            access_log = AccessLog(LogWriter(file.fileno()))
            target = Target(TargetSettings(url, **settings), access_log, SharedMetrics(1).worker(0))
            try:
                yield Copier(target, log)
            finally:
                await target.aclose(drain)
                access_log.close()

    return copying


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost, and its key."""
    path = tmp_path / "localhost.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", path, "-out", tmp_path / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    with path.open("a") as file:
        file.write((tmp_path / "cert.pem").read_text())
    return path

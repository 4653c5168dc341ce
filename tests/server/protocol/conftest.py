import logging
from collections.abc import Iterator
from typing import Any

import pytest

from spoakit.logs import forget_throttled
from spoakit.server.protocol import SpopProtocol
from spoakit.server.settings import LoopName
from spoakit.testing.pytest_plugin import ServeAgents
from tests.support.protocol_subject import Recorder, Serve, Subject, settings


@pytest.fixture
def subject() -> Subject:
    return Subject()


@pytest.fixture(autouse=True)
def _unthrottled(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    forget_throttled()
    with caplog.at_level(logging.INFO):
        yield


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> LoopName:
    name: LoopName = request.param
    return name


@pytest.fixture
def serve(serve_agents: ServeAgents, loop: LoopName) -> Serve:
    return lambda agent, **limits: serve_agents(agent, settings=settings(loop, **limits))


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All that the server writes from now on, write by write."""
    written: list[bytes] = []

    class Recorded(SpopProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(Recorder(transport, written))

    monkeypatch.setattr("spoakit.server.server.SpopProtocol", Recorded)
    return written

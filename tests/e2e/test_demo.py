"""`make demo` ends well only if every request was copied as it is."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.haproxy_versions import CACHE

DEMO = Path(__file__).parents[2] / "examples" / "mirror" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo as a module, with the HAProxy that it would find."""
    spec = importlib.util.spec_from_file_location("mirror_demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mirror_demo", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("SPOAKIT_CACHE", str(CACHE))
    monkeypatch.delenv("KEEP", raising=False)
    return module


def test_copies_that_are_the_same_are_shown_and_end_it_with_0(
    demo: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main() == 0
    shown = capsys.readouterr().out
    count = len(demo.varied_requests())
    assert shown.count(": same\n") == count
    assert f"{count} copies the same, 0 different or missing" in shown


def lose(target: Any, request: Any) -> None:
    """Forget a copy."""


def change(target: Any, request: Any) -> None:
    """Receive a copy with another body."""
    target.requests[request.id] = type(request)(request.line, request.headers, b"{}")


@pytest.mark.parametrize(("happens", "verdict"), [(lose, "MISSING"), (change, "DIFFERENT")])
def test_one_that_is_not_ends_it_with_1(
    demo: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Any, Any], None],
    verdict: str,
) -> None:
    receive = demo.Server.receive

    def receive_all_but_one(server: Any, request: Any) -> None:
        meant = server.name == "target" and request.id == "put"
        (happens if meant else receive)(server, request)

    monkeypatch.setattr(demo.Server, "receive", receive_all_but_one)
    if verdict == "MISSING":
        monkeypatch.setattr(demo, "ARRIVAL", 1.0)  # the time it is waited for in vain
    assert demo.main() == 1
    shown = capsys.readouterr().out
    assert f"== put: {verdict}\n" in shown
    assert ", 1 different or missing" in shown

import asyncio
import importlib.util
import selectors
from importlib.machinery import ModuleSpec

import pytest

from spoakit.exceptions import ConfigurationError
from spoakit.server.event_loops import choose_loop, loop_factory
from spoakit.server.settings import LoopName


def test_auto_takes_uvloop_where_it_is_installed() -> None:
    assert choose_loop("auto") == "uvloop"
    loop = loop_factory("auto")()
    assert type(loop).__module__ == "uvloop"
    loop.close()


@pytest.mark.parametrize(
    ("name", "selector"),
    [("select", "SelectSelector"), ("poll", "PollSelector"), ("epoll", "EpollSelector")],
)
def test_a_selector_can_be_asked_for(
    name: LoopName, selector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hasattr(selectors, selector):
        assert choose_loop(name) == name
        loop = loop_factory(name)()
        assert type(vars(loop)["_selector"]).__name__ == selector
        loop.close()
    monkeypatch.delattr(selectors, selector, raising=False)
    with pytest.raises(ConfigurationError, match=f"loop: this system does not support {name}"):
        choose_loop(name)


def test_asyncio_can_be_asked_for() -> None:
    loop = loop_factory("asyncio")()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    loop.close()


def test_without_uvloop_auto_is_asyncio_and_uvloop_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_nothing(name: str, package: str | None = None) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_nothing)
    assert choose_loop("auto") == "asyncio"
    with pytest.raises(ConfigurationError, match="uvloop is not installed"):
        choose_loop("uvloop")

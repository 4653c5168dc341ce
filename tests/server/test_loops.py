import asyncio
import importlib.util
from importlib.machinery import ModuleSpec

import pytest

from spoakit.exceptions import ConfigurationError
from spoakit.server.loops import choose_loop, loop_factory


def test_auto_takes_uvloop_where_it_is_installed() -> None:
    assert choose_loop("auto") == "uvloop"
    loop = loop_factory("auto")()
    assert type(loop).__module__ == "uvloop"
    loop.close()


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

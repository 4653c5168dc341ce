"""Event loops of workers, by name."""

import asyncio
import importlib.util
import selectors
from collections.abc import Callable
from functools import partial
from typing import Final

from spoakit.exceptions import ConfigurationError
from spoakit.server.aio_selector import AioSelector
from spoakit.server.settings import LoopName

# Classes of the module `selectors` for select(2), poll(2) and epoll(7); a system may lack some.
_SELECTORS: Final = {
    "select": "SelectSelector",
    "poll": "PollSelector",
    "epoll": "EpollSelector",
}


def choose_loop(name: LoopName) -> LoopName:
    """Return the name; for "auto" it is "uvloop" if that is installed, otherwise "asyncio".

    Raises:
        ConfigurationError: this system does not support the loop.
    """
    if name == "auto":
        return "asyncio" if importlib.util.find_spec("uvloop") is None else "uvloop"
    if name == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise ConfigurationError("loop: uvloop is not installed; pip install uvloop")
    if name == "linuxaio" or name in _SELECTORS:
        _selector_type(name)().close()
    return name


def loop_factory(name: LoopName) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of event loops with that name (see `choose_loop`)."""
    name = choose_loop(name)
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    if name == "asyncio":
        return asyncio.new_event_loop
    return partial(_selector_loop, _selector_type(name))


def _selector_type(name: str) -> Callable[[], selectors.BaseSelector]:
    if name == "linuxaio":
        return AioSelector
    found: Callable[[], selectors.BaseSelector] | None = getattr(selectors, _SELECTORS[name], None)
    if found is None:
        raise ConfigurationError(f"loop: this system does not support {name}; choose another loop")
    return found


def _selector_loop(
    make_selector: Callable[[], selectors.BaseSelector],
) -> asyncio.SelectorEventLoop:
    return asyncio.SelectorEventLoop(make_selector())

"""Which event loop runs a worker."""

import asyncio
import importlib.util
from collections.abc import Callable

from spoakit.exceptions import ConfigurationError
from spoakit.server.settings import LoopName


def choose_loop(name: LoopName) -> LoopName:
    """Return "uvloop" or "asyncio"; "auto" is uvloop where it is installed.

    Raises:
        ConfigurationError: "uvloop" is asked for and not installed.
    """
    if name == "asyncio":
        return "asyncio"
    if importlib.util.find_spec("uvloop") is not None:
        return "uvloop"
    if name == "uvloop":
        raise ConfigurationError("loop: uvloop is not installed; pip install uvloop")
    return "asyncio"


def loop_factory(name: LoopName) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes an event loop of that name (see `choose_loop`)."""
    if choose_loop(name) == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop

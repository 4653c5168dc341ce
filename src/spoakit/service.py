"""`run` and `serve`, with which a program serves agents; users import them from `spoakit`."""

from dataclasses import replace

from spoakit import server
from spoakit.agent import Agent
from spoakit.server.settings import Listen, ServerSettings


def run(
    *agents: Agent,
    address: str | None = None,
    port: int | None = None,
    unix: str | None = None,
    workers: int | None = None,
    settings: ServerSettings | None = None,
) -> int:
    """Serve agents until SIGTERM or SIGINT, and return the process's exit code.

    To be called in the main thread of a process without an event loop or other threads, since it
    receives signals and forks its workers. Logging is left as it is.

    Args:
        agents: one or more, whose messages all differ; each HAProxy engine uses its own.
        address: an IPv4 or IPv6 address or a host name to listen on; 0.0.0.0 by default.
        port: 0 lets the system choose, and the choice is logged; 12345 by default.
        unix: path of a Unix socket to listen on: beside address and port, or alone without these.
        workers: processes that serve, 1 to 1024, beside the one that supervises them; 1 by default.
        settings: all other settings; the arguments above take the place of what they say.

    Returns:
        0 after a drain; 1 if the start failed (the reason is logged) or a worker had to be killed;
        128 and the signal's number if a second signal ended it at once.

    Raises:
        ConfigurationError: a setting is out of its range, the system lacks the loop asked for, or a
            TLS file cannot be used.
        RegistrationError: the agents do not go together.
    """
    settings = _with_address(settings or ServerSettings(), address, port, unix)
    if workers is not None:
        settings = replace(settings, workers=workers)
    return server.run(agents, settings)


async def serve(
    *agents: Agent,
    address: str | None = None,
    port: int | None = None,
    unix: str | None = None,
    settings: ServerSettings | None = None,
) -> None:
    """Serve agents on the running event loop until cancelled; then drain, within its bound.

    A second cancellation ends the drain. For programs with an event loop of their own: signals are
    theirs, and there are no workers.

    Args:
        agents: one or more, whose messages all differ.
        address: as for `run`.
        port: as for `run`.
        unix: as for `run`.
        settings: all other settings, but for those that need a process (workers, a pidfile, a
            logfile, a runtime, reports, going to the background).

    Raises:
        ConfigurationError: a setting is out of its range or needs a process, or a TLS file cannot
            be used.
        RegistrationError: the agents do not go together.
        StartupError: an address cannot be had, or a resource does not come up.
    """
    await server.serve(agents, _with_address(settings or ServerSettings(), address, port, unix))


def _with_address(
    settings: ServerSettings, address: str | None, port: int | None, unix: str | None
) -> ServerSettings:
    if (address, port, unix) == (None, None, None):
        return settings
    addresses = Listen.at(address, port, unix=unix).addresses
    return replace(settings, listen=replace(settings.listen, addresses=addresses))

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

    Call it in the main thread of a process without an event loop or other threads, since it
    receives signals and forks its workers. It does not configure logging.

    Args:
        agents: one or more agents with different messages.
        address: an IPv4 or IPv6 address or a host name to listen on; 0.0.0.0 by default.
        port: 0 lets the system choose the port, which is logged; 12345 by default.
        unix: path of a Unix socket to listen on, in addition to address and port, if given.
        workers: number of worker processes, 1 to 1024, besides the supervisor; 1 by default.
        settings: all other settings; the arguments above override them.

    Returns:
        0 after a drain; 1 if the start failed (the reason is logged) or a worker had to be killed;
        128 plus the signal's number if a second signal ended it at once.

    Raises:
        ConfigurationError: a setting is out of its range, the system does not support the loop, or
            a TLS file cannot be used.
        RegistrationError: the agents cannot be served together.
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
    """Serve agents in the running event loop until cancelled; then drain within the timeout.

    A second cancellation ends the drain. It is for programs with their own event loop, which also
    handle signals themselves. There are no workers.

    Args:
        agents: one or more agents with different messages.
        address: as for `run`.
        port: as for `run`.
        unix: as for `run`.
        settings: all other settings, except settings that need a process (workers, pidfile,
            logfile, runtime, monitor, watch, daemonize).

    Raises:
        ConfigurationError: a setting is out of its range or needs a process, or a TLS file cannot
            be used.
        RegistrationError: the agents cannot be served together.
        StartupError: an address cannot be bound, or a resource does not start.
    """
    await server.serve(agents, _with_address(settings or ServerSettings(), address, port, unix))


def _with_address(
    settings: ServerSettings, address: str | None, port: int | None, unix: str | None
) -> ServerSettings:
    if (address, port, unix) == (None, None, None):
        return settings
    addresses = Listen.at(address, port, unix=unix).addresses
    return replace(settings, listen=replace(settings.listen, addresses=addresses))

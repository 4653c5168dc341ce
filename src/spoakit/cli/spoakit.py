"""The spoakit command: `spoakit run module:agent` serves any agent."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace

from spoakit.agent import Agent
from spoakit.cli.common_options import WORKER_TIMEOUT
from spoakit.cli.options import Parser, open_standard_streams, read_tls, version
from spoakit.exceptions import ConfigurationError, SpoakitError
from spoakit.logs import configure_logging
from spoakit.server import Drain, Limits, Listen, ServerSettings, run
from spoakit.server.settings import CAPABILITIES, LOOPS, parse_network

_DEFAULTS = ServerSettings()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, 64 for a wrong command line."""
    open_standard_streams()
    parser = Parser("spoakit", description="HAProxy's Stream Processing Offload Agents in Python.")
    parser.add_argument(
        "-V",
        "--version",
        action="version",
        version=f"spoakit {version()}",
        help="print the version, and whether the hot code is compiled",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runner = commands.add_parser(
        "run", help="serve agents", description=_run.__doc__, formatter_class=_HelpFormatter
    )
    _add_run_options(runner)
    arguments = sys.argv[1:] if arguments is None else arguments
    parser.refuse_dashes(arguments)
    options = parser.parse_args(arguments)
    return _run(runner, options)


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Serve agents until SIGTERM or SIGINT."""
    sys.path.insert(0, "")  # agents are looked for where the command is given
    try:
        settings = _settings(options)
        agents = [_load(name) for name in options.agents]
        configure_logging(options.debug)
        return run(agents, settings)
    except SpoakitError as error:
        parser.error(str(error))


def _load(name: str) -> Agent:
    """Return the agent that "module:attribute" names."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ConfigurationError(f"agent {name!r}: give it as module:agent, such as iprep:agent")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError, SyntaxError) as error:
        # It may also be about something that the module itself imports.
        raise ConfigurationError(f"agent {name!r}: {error}") from error
    agent = getattr(module, attribute, None)
    if isinstance(agent, Agent):
        return agent
    names = sorted(key for key, value in vars(module).items() if isinstance(value, Agent))
    there = f"its agents are: {', '.join(names)}" if names else "it has no agents"
    what = "it is not an Agent" if hasattr(module, attribute) else "there is no such name"
    raise ConfigurationError(f"agent {name!r}: {what} in {module_name}; {there}")


def _settings(options: argparse.Namespace) -> ServerSettings:
    listen = Listen(
        address=options.address,
        port=options.port,
        unix=options.unix,
        unix_mode=options.unix_mode,
        backlog=options.backlog,
        allow=tuple(parse_network(text) for text in options.allow),
        tls=read_tls(options.tls_cert, options.tls_key, options.tls_ca),
    )
    limits = Limits(
        connections=options.max_connections,
        in_flight=options.max_in_flight,
        frame_size=options.max_frame_size,
        frame_size_cap=options.frame_size_cap,
        reassembled_size=options.max_reassembled,
        hello_timeout=options.hello_timeout,
        frames=options.max_frames,
        messages=options.max_messages,
    )
    return ServerSettings(
        listen=listen,
        limits=limits,
        drain=Drain(timeout=options.drain, checks=options.drain_checks),
        workers=options.workers,
        worker_timeout=WORKER_TIMEOUT.read_from(options),
        capabilities=tuple(dict.fromkeys((*_DEFAULTS.capabilities, *options.capability))),
        runtime=options.runtime,
        pidfile=options.pidfile,
        daemonize=options.daemonize,
        loop=options.loop,
    )


def octal(text: str) -> int:
    """Return what octal digits stand for; argparse names this function in its errors."""
    return int(text, 8)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    listen, limits, drain = _DEFAULTS.listen, _DEFAULTS.limits, _DEFAULTS.drain
    add = parser.add_argument
    add("agents", nargs="+", metavar="module:agent", help="where to import an agent from")
    add("-d", "--debug", action="store_true", help="log each frame")

    add = parser.add_argument_group("where to listen").add_argument
    add("-a", "--address", default=listen.address, help="an address or a name")
    add("-p", "--port", type=int, default=listen.port, help="0 lets the system choose")
    add("--unix", metavar="PATH", help="listen on this Unix socket instead")
    add("--unix-mode", type=octal, default="660", metavar="MODE", help="its permissions, octal")
    add(
        "--backlog",
        type=int,
        default=listen.backlog,
        metavar="N",
        help="connections kept until they are accepted",
    )
    add(
        "--allow",
        action="append",
        default=[],
        metavar="CIDR",
        help="only this network may connect; repeat it for more",
    )
    add("--tls-cert", metavar="FILE", help="take TLS connections only, with this certificate")
    add("--tls-key", metavar="FILE", help="its key, if it is not in the same file")
    add("--tls-ca", metavar="FILE", help="ask for certificates that come from these authorities")

    group = parser.add_argument_group("processes")
    add = group.add_argument
    add("-n", "--workers", type=int, default=_DEFAULTS.workers, metavar="N", help="processes")
    replace(WORKER_TIMEOUT, help="replace a worker that hangs for so long, 0 never").add_to(group)
    add("--loop", choices=LOOPS, default=_DEFAULTS.loop, help="event loop; auto is uvloop if found")
    add("--runtime", type=float, metavar="SECONDS", help="stop by itself after this time")
    add("--drain", type=float, default=drain.timeout, metavar="SECONDS", help="time to stop in")
    add(
        "--drain-checks",
        type=float,
        default=drain.checks,
        metavar="SECONDS",
        help="before that, serve on but refuse health checks for this time",
    )
    add("--pidfile", metavar="FILE", help="write the process id here, and lock it")
    add("--daemonize", action="store_true", help="go to the background")

    add = parser.add_argument_group("protocol and limits").add_argument
    add(
        "-c",
        "--capability",
        action="append",
        choices=CAPABILITIES,
        default=[],
        help="announce this too; fragmentation and pipelining always are",
    )
    add(
        "--max-frame-size",
        type=int,
        default=limits.frame_size,
        metavar="BYTES",
        help="0 takes the engine's",
    )
    add(
        "--frame-size-cap",
        type=int,
        default=limits.frame_size_cap,
        metavar="BYTES",
        help="the largest frame taken at all",
    )
    add(
        "--max-reassembled",
        type=int,
        default=limits.reassembled_size,
        metavar="BYTES",
        help="of a NOTIFY in fragments",
    )
    add(
        "--max-connections",
        type=int,
        default=limits.connections,
        metavar="N",
        help="of all workers together",
    )
    add(
        "--max-in-flight",
        type=int,
        default=limits.in_flight,
        metavar="N",
        help="unanswered frames of one connection",
    )
    add(
        "--hello-timeout",
        type=float,
        default=limits.hello_timeout,
        metavar="SECONDS",
        help="for a connection's HELLO",
    )
    add(
        "--max-frames",
        type=int,
        default=limits.frames,
        metavar="N",
        help="of a connection, which is closed then; 0 for any number",
    )
    add(
        "--max-messages",
        type=int,
        default=limits.messages,
        metavar="N",
        help="of one frame, whose connection is closed if it has more",
    )


class _HelpFormatter(argparse.HelpFormatter):
    """Show the defaults of options that take a value and have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.nargs == 0 or action.default in (None, []):
            return action.help
        return f"{action.help} (default: %(default)s)"


if __name__ == "__main__":
    sys.exit(main())

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from msgspec import structs

from spoakit.apps.mirror.agent import Mirror, create_agent, reloadable_settings
from spoakit.apps.mirror.config.schema import (
    MirrorSettings,
    TargetSettings,
    TlsSettings,
)
from spoakit.apps.mirror.target import Target
from spoakit.apps.mirror.url import TargetURL
from spoakit.exceptions import ConfigurationError
from spoakit.metrics.memory import SharedMetrics
from spoakit.server import ServerSettings
from spoakit.server.reloadable_settings import ReloadableSettings
from spoakit.server.server import Server
from spoakit.spop import (
    Acknowledged,
    Argument,
    DataType,
    EngineConnection,
    EngineHello,
    Event,
    Message,
    Opened,
    Scope,
    VariableEncoder,
)
from tests.support.copier import Run
from tests.support.origin import origin
from tests.support.ports import free_port
from tests.support.waiting import until

HEADERS = b"\4host\5x.org\3x-a\1b\0\0"
COPY = b" HTTP/1.1\r\nhost: x.org\r\nx-a: b\r\n"


class EngineSocket:
    """An engine's end of a connection to a server."""

    def __init__(self, sock: socket.socket, server: Server) -> None:
        self.server = server
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._engine = EngineConnection(EngineHello(16380))

    async def open(self) -> None:
        self._engine.send_hello()
        assert isinstance(await self._event(), Opened)

    async def notify(self, *arguments: Argument, message: str = "mirror") -> Event:
        """Send the message; return what comes back."""
        self._engine.send_notify([Message(message, arguments)], stream_id=1)
        return await self._event()

    async def notify_at_once(self, count: int, *arguments: Argument) -> None:
        """Send the message so often, without waiting in between; wait for all ACKs."""
        for number in range(count):
            self._engine.send_notify([Message("mirror", arguments)], stream_id=number + 1)
        acknowledged = 0
        await self._loop.sock_sendall(self._sock, self._engine.data_to_send())
        while acknowledged < count:
            self._engine.receive_data(await self._loop.sock_recv(self._sock, 65536))
            events = self._engine.events_received()
            assert all(isinstance(event, Acknowledged) for event in events)
            acknowledged += len(events)

    async def _event(self) -> Event:
        await self._loop.sock_sendall(self._sock, self._engine.data_to_send())
        while not (events := self._engine.events_received()):
            self._engine.receive_data(await self._loop.sock_recv(self._sock, 65536))
        [event] = events
        return event


def settings_for(*ports: int, drain: float = 10, delay: float = 0) -> MirrorSettings:
    """Return the settings of a mirror with targets on these ports."""
    targets = tuple(TargetSettings(TargetURL.parse(f"http://127.0.0.1:{port}")) for port in ports)
    return MirrorSettings(targets, drain, processing_delay=delay)


@asynccontextmanager
async def mirror(
    *ports: int,
    drain: float = 10,
    delay: float = 0,
    live: ReloadableSettings[MirrorSettings] | None = None,
) -> AsyncIterator[EngineSocket]:
    """Serve the mirror of these targets, or of live settings, to one engine."""
    agent = create_agent(live or settings_for(*ports, drain=drain, delay=delay))
    server = Server([agent], ServerSettings(), SharedMetrics(1).worker(0))
    server.on_closed = lambda: None
    await server.start()
    theirs, ours = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        server.adopt(ours)
        engine = EngineSocket(theirs, server)
        await engine.open()
        yield engine
    await server.drain(5)
    await server.aclose()


def arguments(
    method: str = "GET",
    *,
    headers: tuple[DataType, bytes | str] = (DataType.BINARY, HEADERS),
    body: tuple[DataType, bytes | str | None] = (DataType.BINARY, b""),
) -> Sequence[Argument]:
    return (
        Argument("arg_method", DataType.STRING, method),
        Argument("arg_path", DataType.STRING, "/a?b"),
        Argument("arg_ver", DataType.STRING, "1.1"),
        Argument("arg_hdrs", *headers),
        Argument("arg_body", *body),
    )


@pytest.mark.parametrize(
    ("given", "copy"),
    [
        (arguments(), b"GET /a?b" + COPY + b"\r\n"),
        (arguments()[:4], b"GET /a?b" + COPY + b"\r\n"),
        (arguments(body=(DataType.NULL, None)), b"GET /a?b" + COPY + b"\r\n"),
        (
            arguments(headers=(DataType.STRING, "host: x.org\r\nx-a: b\r\n\r\n")),
            b"GET /a?b" + COPY + b"\r\n",
        ),
        (
            arguments("PROPFIND", body=(DataType.BINARY, b"\0body\xff")),
            b"PROPFIND /a?b" + COPY + b"content-length: 6\r\n\r\n\0body\xff",
        ),
        (
            arguments("POST", body=(DataType.STRING, "text")),
            b"POST /a?b" + COPY + b"content-length: 4\r\n\r\ntext",
        ),
    ],
)
def test_a_message_is_acknowledged_and_its_request_copied(
    run: Run, capfd: pytest.CaptureFixture[str], given: Sequence[Argument], copy: bytes
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            async with mirror(server.port) as engine:
                reply = await engine.notify(*given)
                assert isinstance(reply, Acknowledged)
                assert reply.actions == ()
                await until(lambda: bool(server.requests))
            assert server.requests == [copy]

    run(scenario())
    assert '/a?b HTTP/1.1" 200 ' in capfd.readouterr().out


def test_each_target_gets_a_copy(run: Run) -> None:
    async def scenario() -> None:
        async with origin() as one, origin() as two:
            async with mirror(one.port, two.port) as engine:
                await engine.notify(*arguments())
            assert one.requests == two.requests == [b"GET /a?b" + COPY + b"\r\n"]

    run(scenario())


def test_without_a_target_requests_are_acknowledged(run: Run) -> None:
    async def scenario() -> None:
        async with mirror() as engine:
            assert isinstance(await engine.notify(*arguments()), Acknowledged)

    run(scenario())


def test_an_acknowledgement_waits_for_no_target(run: Run) -> None:
    async def scenario() -> None:
        async with origin(lambda request: []) as server, mirror(server.port, drain=0) as engine:
            for _ in range(200):
                assert isinstance(await engine.notify(*arguments()), Acknowledged)
            await server.stop()
            assert isinstance(await engine.notify(*arguments()), Acknowledged)
            await server.start(server.port)

    run(scenario())


def test_a_delay_holds_back_each_message_and_no_other(run: Run) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with origin() as server, mirror(server.port, delay=0.3) as engine:
            before = loop.time()
            await engine.notify_at_once(20, *arguments())
            assert 0.29 <= loop.time() - before < 2
            await until(lambda: len(server.requests) == 20)

    run(scenario())


def test_a_delay_of_a_whole_second_is_not_taken_for_lateness(run: Run) -> None:
    async def scenario() -> None:
        async with origin() as server, mirror(server.port, delay=1) as engine:
            assert isinstance(await engine.notify(*arguments()), Acknowledged)
            await until(lambda: len(server.requests) == 1)

    run(scenario())


@pytest.mark.parametrize(
    "ip",
    [
        Argument("ip", DataType.IPV4, IPv4Address("192.0.2.1")),
        Argument("ip", DataType.IPV6, IPv6Address("2001:db8::1")),
    ],
)
def test_check_client_ip_gives_a_score_at_random(run: Run, ip: Argument) -> None:
    async def scenario() -> None:
        async with mirror() as engine:
            ip_score = VariableEncoder(Scope.SESS, "ip_score", DataType.UINT32)
            scores = [ip_score.set(score) for score in range(101)]
            seen = set()
            for _ in range(50):
                reply = await engine.notify(ip, message="check-client-ip")
                assert isinstance(reply, Acknowledged)
                [action] = reply.actions
                seen.add(scores.index(action))
            assert len(seen) > 1

    run(scenario())


def test_the_test_message_has_each_argument_logged_with_its_type(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with mirror() as engine:
            reply = await engine.notify(
                Argument("arg1", DataType.STRING, "a\nb"),
                Argument("arg2", DataType.NULL, None),
                Argument("", DataType.UINT32, 7),
                Argument("arg4", DataType.BOOL, True),
                Argument("arg5", DataType.BINARY, b"\x00\xff"),
                Argument("arg6", DataType.IPV4, IPv4Address("192.0.2.1")),
                message="test",
            )
            assert isinstance(reply, Acknowledged)
            assert reply.actions == ()
            await until(lambda: "test[5]" in caplog.text)

    caplog.set_level(logging.INFO, logger="spoakit.mirror")
    run(scenario())
    assert [line for line in caplog.messages if line.startswith("test[")] == [
        "test[0] name='arg1' type=STRING: 'a\\nb'",
        "test[1] name='arg2' type=NULL: None",
        "test[2] name='' type=UINT32: 7",
        "test[3] name='arg4' type=BOOL: True",
        "test[4] name='arg5' type=BINARY: b'\\x00\\xff'",
        "test[5] name='arg6' type=IPV4: IPv4Address('192.0.2.1')",
    ]


def test_a_reload_keeps_targets_makes_new_ones_and_drains_the_others(run: Run) -> None:
    async def scenario() -> None:
        async with origin() as kept, origin() as removed, origin() as new:
            wanted = settings_for(kept.port, removed.port)
            live = reloadable_settings(lambda: wanted)
            async with mirror(live=live) as engine:
                await engine.notify(*arguments())
                await until(lambda: len(kept.requests) == len(removed.requests) == 1)
                wanted = settings_for(new.port, kept.port)
                await engine.notify(*arguments())
                engine.server.run_observers()  # as before each reload
                live.reload()
                await asyncio.sleep(0)
                await engine.notify(*arguments())
                await until(lambda: len(new.requests) == 1 and len(kept.requests) == 3)
            assert len(removed.requests) == 2  # what had come before was sent
            assert kept.connections <= 2

    run(scenario())


def test_a_reload_that_cannot_be_read_changes_nothing(run: Run) -> None:
    async def scenario() -> None:
        async with origin() as server:
            wanted = [settings_for(server.port)]

            def read() -> MirrorSettings:
                if not wanted:
                    raise ConfigurationError("mirror.toml, line 1: nothing there")
                return wanted[0]

            live = reloadable_settings(read)
            async with mirror(live=live) as engine:
                wanted.clear()
                with pytest.raises(ConfigurationError):
                    live.reload()
                await engine.notify(*arguments())
                await until(lambda: len(server.requests) == 1)

    run(scenario())


def test_a_certificate_that_cannot_be_read_is_found_before_anything_changes(
    certificate: Path,
) -> None:
    def read() -> MirrorSettings:
        url = TargetURL.parse("https://localhost:1/")
        return MirrorSettings((TargetSettings(url, tls=TlsSettings(ca_file=str(certificate))),))

    live = reloadable_settings(read)
    in_force = live.current
    certificate.write_text("no certificate")
    with pytest.raises(ConfigurationError, match="ca-file"):
        live.reload()
    assert live.current is in_force


def test_a_renewed_certificate_makes_other_settings(certificate: Path) -> None:
    before = TlsSettings(certificate=str(certificate))
    assert before == TlsSettings(certificate=str(certificate))
    certificate.write_text(certificate.read_text() + "\n")
    assert before != TlsSettings(certificate=str(certificate))


def test_a_target_that_cannot_be_made_leaves_all_as_they_are(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as kept, origin() as new:
            wanted = settings_for(kept.port)
            live = reloadable_settings(lambda: wanted)
            async with mirror(live=live) as engine:
                wanted = settings_for(new.port, free_port())
                made: list[object] = []
                make = Mirror._make

                def make_one(self: Mirror, settings: TargetSettings) -> Target:
                    if made:
                        raise ConfigurationError("ca_file: absent.pem: No such file")
                    made.append(settings)
                    return make(self, settings)

                monkeypatch.setattr(Mirror, "_make", make_one)
                live.reload()
                await until(lambda: "reload refused, going on as before: ca_file" in caplog.text)
                await engine.notify(*arguments())
                await until(lambda: len(kept.requests) == 1)
            assert new.requests == []

    run(scenario())


def test_targets_that_differ_by_their_names_are_each_kept(run: Run) -> None:
    async def scenario() -> None:
        async with origin() as server:
            [one] = settings_for(server.port).targets
            wanted = MirrorSettings((one, structs.replace(one, name="another")))
            live = reloadable_settings(lambda: wanted)
            async with mirror(live=live) as engine:
                live.reload()
                await asyncio.sleep(0)
                await engine.notify(*arguments())
            assert len(server.requests) == 2

    run(scenario())


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (MirrorSettings(processing_delay=0.5), "processing delay"),
        (MirrorSettings(drain=60), "drain"),
    ],
)
def test_what_takes_a_restart_is_said_and_stays(
    caplog: pytest.LogCaptureFixture, other: MirrorSettings, what: str
) -> None:
    wanted = MirrorSettings()
    live = reloadable_settings(lambda: wanted)
    wanted = other
    live.reload()
    assert f"a changed {what} needs a restart" in caplog.text
    assert live.current == MirrorSettings()

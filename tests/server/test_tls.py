"""SPOP over TLS: who gets in, who does not, and that neither holds up the other."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import spoakit
from spoakit import Action, Agent
from spoakit.exceptions import ConfigurationError
from spoakit.logs import forget_throttled
from spoakit.server.server import TLS_FAILURES
from spoakit.server.settings import (
    Drain,
    Limits,
    Listen,
    ListenTls,
    LoopName,
    ServerSettings,
    TcpAddress,
)
from spoakit.server.tls import server_context
from spoakit.spop import (
    Acknowledged,
    Disconnected,
    EngineConnection,
    EngineHello,
    Event,
    Message,
    Opened,
)
from spoakit.testing import AgentServer
from spoakit.testing.agent_server import DEFAULT_SETTINGS
from tests.support.certificates import Pem, make_authority, make_certificate
from tests.support.ports import free_port
from tests.support.processes import children_of
from tests.support.waiting import TIMEOUT, wait_until


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory, authority: Pem) -> Pem:
    return make_certificate(tmp_path_factory.mktemp("agent"), "agent", authority)


@pytest.fixture
def agent() -> Agent:
    agent = Agent("tls")
    number = agent.variable("txn.number", int)

    @agent.message("ask")
    def ask() -> Action:
        return number.set(7)

    return agent


@pytest.fixture(params=["uvloop", "asyncio"])
def settings(request: pytest.FixtureRequest, pem: Pem) -> ServerSettings:
    loop: LoopName = request.param
    tls = ListenTls(str(pem.certificate), str(pem.key))
    return ServerSettings(
        listen=Listen((TcpAddress("127.0.0.1", 0),), tls=tls),
        drain=Drain(timeout=TIMEOUT),
        loop=loop,
    )


@pytest.fixture(autouse=True)
def _unthrottled() -> None:
    forget_throttled()


class TlsEngine:
    """An engine's end of a TLS connection."""

    def __init__(self, port: int, authority: Pem, own: Pem | None = None) -> None:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)
        plain = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        try:
            self.socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        except BaseException:
            plain.close()
            raise
        self._engine = EngineConnection(EngineHello(16380))

    def hello(self) -> Event:
        self._engine.send_hello()
        return self.read()

    def ask(self) -> Event:
        [answer] = self.ask_and_read(1)
        return answer

    def ask_and_read(self, count: int) -> list[Event]:
        self._engine.send_notify([Message("ask")], stream_id=1)
        return self.read_all(count)

    def read(self) -> Event:
        [event] = self.read_all(1)
        return event

    def read_all(self, count: int) -> list[Event]:
        """Send what is due, and return so many events."""
        self.socket.sendall(self._engine.data_to_send())
        events = [*self._engine.events_received()]
        while len(events) < count:
            received = self.socket.recv(65536)
            if not received:
                raise ConnectionAbortedError
            self._engine.receive_data(received)
            events += self._engine.events_received()
        return events

    def close(self) -> None:
        self.socket.close()


def gets_in(port: int, authority: Pem, own: Pem | None) -> bool:
    try:
        with closing(TlsEngine(port, authority, own)) as engine:
            engine.hello()  # with TLS 1.3 a client hears of a refusal when it reads
    except OSError:
        return False
    return True


def failures(server: AgentServer) -> float:
    return server.metrics.value(TLS_FAILURES.name)


def wait_for_failures(server: AgentServer, count: int) -> None:
    wait_until(lambda: failures(server) >= count)


def test_frames_go_over_tls_and_the_end_is_told(
    agent: Agent, settings: ServerSettings, authority: Pem
) -> None:
    with AgentServer(agent, settings=settings) as server:
        engine = TlsEngine(server.port, authority)
        assert isinstance(engine.hello(), Opened)
        for _ in range(3):
            answer = engine.ask()
            assert isinstance(answer, Acknowledged)
            assert len(answer.actions) == 1
    with closing(engine):
        assert isinstance(engine.read(), Disconnected)
        assert engine.socket.recv(1) == b""
    assert failures(server) == 0


def test_an_engine_that_leaves_is_let_go(
    agent: Agent, settings: ServerSettings, authority: Pem
) -> None:
    with AgentServer(agent, settings=settings) as server:
        with closing(TlsEngine(server.port, authority)) as engine:
            engine.hello()
        wait_until(lambda: server.call(lambda: not server.server.connection_count))


def test_a_connection_that_has_had_its_frames_is_closed(
    agent: Agent, settings: ServerSettings, authority: Pem
) -> None:
    with AgentServer(agent, settings=replace(settings, limits=Limits(frames=1))) as server:
        with closing(TlsEngine(server.port, authority)) as engine:
            engine.hello()
            answer, farewell = engine.ask_and_read(2)
            assert isinstance(answer, Acknowledged)
            assert isinstance(farewell, Disconnected)
            assert engine.socket.recv(1) == b""
        wait_until(lambda: server.call(lambda: not server.server.connection_count))


def test_plain_spop_costs_its_connection_alone_and_is_told_of(
    agent: Agent,
    settings: ServerSettings,
    authority: Pem,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with AgentServer(agent, settings=settings) as server:
        with closing(TlsEngine(server.port, authority)) as engine:
            engine.hello()
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as plain:
                    plain.sendall(b"\0\0\0\x7f" + bytes(127))
                    while plain.recv(100):
                        pass
            wait_for_failures(server, 3)
            assert isinstance(engine.ask(), Acknowledged)
        wait_until(lambda: server.call(lambda: not server.server.connection_count))
    told = [message for message in caplog.messages if "TLS with 127.0.0.1:" in message]
    assert 1 <= len(told) <= 2


def test_a_handshake_that_does_not_come_is_not_waited_for(
    agent: Agent, settings: ServerSettings
) -> None:
    limited = replace(settings, limits=Limits(hello_timeout=0.2))
    with (
        AgentServer(agent, settings=limited) as server,
        socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as silent,
    ):
        assert silent.recv(1) == b""
        wait_for_failures(server, 1)


def test_a_drain_does_not_wait_for_handshakes(agent: Agent, settings: ServerSettings) -> None:
    with AgentServer(agent, settings=settings) as server:
        silent = socket.create_connection(("127.0.0.1", server.port), TIMEOUT)
        wait_until(lambda: server.call(lambda: server.server.connection_count))
        before = time.monotonic()
    assert time.monotonic() - before < 2
    silent.close()


def test_with_an_authority_only_its_certificates_get_in(
    agent: Agent, settings: ServerSettings, pem: Pem, authority: Pem, tmp_path: Path
) -> None:
    tls = ListenTls(str(pem.both), ca=str(authority.certificate))
    checked = replace(settings, listen=replace(settings.listen, tls=tls))
    known = make_certificate(tmp_path, "engine", authority)
    stranger = make_certificate(tmp_path, "stranger", make_authority(tmp_path))
    with AgentServer(agent, settings=checked) as server:
        with closing(TlsEngine(server.port, authority, known)) as engine:
            engine.hello()
            assert isinstance(engine.ask(), Acknowledged)
        for own in (None, stranger):
            assert not gets_in(server.port, authority, own)
        wait_for_failures(server, 2)


def test_each_server_has_the_certificate_that_is_in_its_file(
    agent: Agent, authority: Pem, tmp_path: Path
) -> None:
    live = tmp_path / "live.pem"
    for name in ("first", "second"):
        own = make_certificate(tmp_path, name, authority)
        live.write_bytes(own.both.read_bytes())
        tls = ListenTls(str(live))
        listen = Listen((TcpAddress("127.0.0.1", 0),), tls=tls)
        with AgentServer(agent, settings=replace(DEFAULT_SETTINGS, listen=listen)) as server:
            served = ssl.get_server_certificate(("127.0.0.1", server.port), timeout=TIMEOUT)
        assert served in own.certificate.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_share_the_context_that_was_made_before_they_were_forked(
    authority: Pem, tmp_path: Path
) -> None:
    own = make_certificate(tmp_path, "agent", authority)
    (tmp_path / "agents.py").write_text(
        "from spoakit import Agent\none = Agent('one')\n"
        "@one.message('nothing')\ndef nothing() -> None: ...\n"
    )
    port = free_port()
    command = f"-m spoakit.cli.spoakit run agents:one -a 127.0.0.1 -p {port} -n 2 --drain 0"
    with subprocess.Popen(
        [sys.executable, *command.split(), "--tls-cert", own.both],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(spoakit.__file__).parent.parent)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            while "listening on" not in process.stderr.readline():
                assert process.poll() is None
            own.both.unlink()
            context = ssl.create_default_context(cafile=str(authority.certificate))
            # Connections take turns, so each goes to another worker than the one before.
            first = handshake_with(port, context, None)
            second = handshake_with(port, context, first.session)
            assert second.session_reused
            for each in (first, second):
                each.close()
            [worker, _] = children_of(process.pid)
            os.kill(worker, signal.SIGKILL)
            # Its successor reads no file either.
            wait_until(
                lambda: worker not in (now := children_of(process.pid)) and len(now) == 2,
                "a successor",
            )
            for _ in range(2):
                handshake_with(port, context, None).close()
        finally:
            process.terminate()
            process.wait(TIMEOUT)


def handshake_with(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> ssl.SSLSocket:
    """Return a connection whose HELLO has been answered, and so whose session is known."""
    plain = socket.create_connection(("127.0.0.1", port), TIMEOUT)
    engine = context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)
    hello = EngineConnection(EngineHello(16380))
    hello.send_hello()
    engine.sendall(hello.data_to_send())
    assert engine.recv(4096)
    return engine


def test_files_that_cannot_be_used_are_named(agent: Agent, pem: Pem, tmp_path: Path) -> None:
    (tmp_path / "broken.pem").write_text("no certificate")
    broken = str(tmp_path / "broken.pem")
    absent = str(tmp_path / "absent.pem")
    good = str(pem.both)
    for tls, reason in (
        (ListenTls(absent), f"tls certificate {absent}: No such file"),
        (ListenTls(broken), f"tls certificate {broken}: it must be a PEM file"),
        (ListenTls(good, absent), f"tls certificate {good} with key {absent}: No such file"),
        (ListenTls(good, ca=absent), f"tls ca {absent}: No such file"),
        (ListenTls(good, ca=broken), f"tls ca {broken}: it must be a PEM file"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            AgentServer(agent, settings=ServerSettings(listen=Listen(tls=tls)))


def test_a_key_with_a_password_is_refused_and_nobody_asked(pem: Pem, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", pem.key, "-aes128", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigurationError, match=f"with key {locked}: it must be a PEM file"):
        server_context(ListenTls(str(pem.certificate), str(locked)))

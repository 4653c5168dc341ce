import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.events import SettingsAcknowledged
from h2.settings import SettingCodes

from spoakit.apps.mirror.config.schema import Timeouts, TlsSettings
from tests.support.copier import Run
from tests.support.http2_peer import Peer, Target, answer_nothing, frame, listening
from tests.support.origin import OK, origin
from tests.support.waiting import until

Copying = Callable[..., Any]

GOAWAY = 7  # RFC 9113, 6.8


def test_requests_share_a_connection_and_are_logged(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with listening() as server:
            async with copying(server.port, http="2", connections=1) as mirror:
                for number in range(300):
                    mirror.get(b"/%d" % number)
                await mirror.answered(300)
                mirror.copy(b"POST", b"/", b"host: h\r\n\r\n", b"hello")
                await mirror.answered(301)
            assert len(server.peers) == 1
            assert server.requests()[-1].body == b"hello"
            lines = mirror.lines()
            assert len(lines) == 301
            assert all(' HTTP/2" 200 ' in line and line.endswith(" ok") for line in lines)
            assert " 5/2 " in lines[-1]

    run(scenario())


def test_no_more_are_on_their_way_than_the_target_takes(run: Run, copying: Copying) -> None:
    most = 0

    def response(peer: Peer, stream_id: int) -> None:
        nonlocal most
        most = max(most, peer.h2.open_inbound_streams)
        asyncio.get_running_loop().call_later(0.001, peer.response, stream_id)

    async def scenario() -> None:
        few = {SettingCodes.MAX_CONCURRENT_STREAMS: 3}
        async with listening(response, settings=few) as server:
            async with copying(server.port, http="2", connections=2) as mirror:
                for _ in range(100):
                    mirror.get()
                await mirror.answered(100)
            assert most == 3
            assert len(server.peers) == 2

    run(scenario())


def test_a_refused_request_is_sent_once_more(run: Run, copying: Copying) -> None:
    refused: set[int] = set()

    def response(peer: Peer, stream_id: int) -> None:
        if len(refused) < 5:
            refused.add(stream_id)
            peer.h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
        else:
            peer.response(stream_id)

    async def scenario() -> None:
        async with listening(response) as server, copying(server.port, http="2") as mirror:
            for _ in range(5):
                mirror.get(method=b"POST")
            await mirror.answered(5)
            assert mirror.target.counters.retried == 5
            assert mirror.target.counters.failed == 0

    run(scenario())


@pytest.mark.parametrize("is_refusing", [True, False], ids=["refused", "goaway"])
def test_a_target_that_takes_nothing_gets_each_request_twice(
    run: Run, copying: Copying, is_refusing: bool
) -> None:
    def response(peer: Peer, stream_id: int) -> None:
        if is_refusing:
            peer.h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
        else:
            peer.write(frame(GOAWAY, bytes(8)))

    async def scenario() -> None:
        async with listening(response) as server, copying(server.port, http="2") as mirror:
            mirror.get()
            await until(lambda: mirror.target.counters.failed == 1)
            assert mirror.target.counters.retried == 1
            assert len(server.requests()) == 2

    run(scenario())


def test_a_target_that_takes_few_on_each_connection_gets_all(run: Run, copying: Copying) -> None:
    def response(peer: Peer, stream_id: int) -> None:
        if stream_id == 1:
            peer.response(stream_id)
            peer.write(frame(GOAWAY, stream_id.to_bytes(4) + bytes(4)))

    async def scenario() -> None:
        async with listening(response) as server, copying(server.port, http="2") as mirror:
            for number in range(10):
                mirror.get(b"/%d" % number, method=b"POST")
            await mirror.answered(10)
            assert mirror.target.counters.failed == 0
            assert len(server.peers) == 10

    run(scenario())


@pytest.mark.parametrize("code", [ErrorCodes.NO_ERROR, ErrorCodes.ENHANCE_YOUR_CALM])
def test_a_target_that_refuses_all_requests_is_left_alone_for_a_while(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture, code: ErrorCodes
) -> None:
    caplog.set_level(logging.INFO, logger="spoakit.mirror")
    refuses = True

    def response(peer: Peer, stream_id: int) -> None:
        if refuses:
            peer.write(frame(GOAWAY, bytes(4) + code.to_bytes(4)))
        else:
            peer.response(stream_id)

    async def scenario() -> None:
        nonlocal refuses
        timeouts = Timeouts(min_backoff=0.05, max_backoff=0.2)
        async with (
            listening(response) as server,
            copying(server.port, http="2", timeouts=timeouts) as mirror,
        ):
            for number in range(200):
                mirror.get(b"/%d" % number)
                await asyncio.sleep(0.005)
            # One request for each attempt, of which there are few.
            assert len(server.peers) < 30
            assert mirror.target.counters.failed < 30
            refuses = False
            await mirror.answered(200 - mirror.target.counters.failed)
            assert mirror.target.counters.dropped == 0

    run(scenario())
    assert caplog.text.count("; copies wait\n") == 1
    assert "the target ended the connection" in caplog.text
    assert "responds again after" in caplog.text


def test_nothing_is_lost_when_the_target_goes_away(run: Run, copying: Copying) -> None:
    gone: list[Peer] = []

    def response(peer: Peer, stream_id: int) -> None:
        if stream_id == 41 and not gone:
            gone.append(peer)
            peer.write(frame(GOAWAY, (41).to_bytes(4) + bytes(4)))
        if stream_id <= 41 or peer not in gone:
            peer.response(stream_id)

    async def scenario() -> None:
        async with listening(response) as server, copying(server.port, http="2") as mirror:
            for number in range(200):
                mirror.get(b"/%d" % number)
            await mirror.answered(200)
            assert mirror.target.counters.failed == 0
            assert mirror.target.counters.retried > 0

    run(scenario())


def test_requests_do_not_wait_for_a_slow_answer_of_a_target_that_goes_away(
    run: Run, copying: Copying
) -> None:
    def response(peer: Peer, stream_id: int) -> None:
        if server[0].peers[0] is peer:  # which never answers
            peer.write(frame(GOAWAY, stream_id.to_bytes(4) + bytes(4)))
        else:
            peer.response(stream_id)

    server = []

    async def scenario() -> None:
        async with listening(response) as target, copying(target.port, http="2", drain=0) as mirror:
            server.append(target)
            mirror.get()
            await until(lambda: bool(target.requests()))
            await target.peer.pinged()
            mirror.get()
            await mirror.answered(1)
            assert mirror.target.counters.failed == 0

    run(scenario())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"greeting": b""}, "no SETTINGS within 0.1 s"),
        ({"settings": {SettingCodes.MAX_CONCURRENT_STREAMS: 0}}, "allowed no request within 0.1 s"),
    ],
    ids=["silent", "no streams"],
)
def test_a_target_that_allows_no_request_has_failed(
    run: Run,
    copying: Copying,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    error: str,
) -> None:
    async def scenario() -> None:
        timeouts = Timeouts(connect=0.1, min_backoff=0.01, max_backoff=0.01)
        async with (
            listening(**options) as server,
            copying(server.port, http="2", timeouts=timeouts, drain=0) as mirror,
        ):
            for _ in range(10):
                mirror.get()
            await until(lambda: mirror.target.counters.connect_failures == 3)
            assert error in caplog.text
            assert len(server.peers) <= 4

    run(scenario())


def test_streams_that_are_allowed_later_are_used(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        none = {SettingCodes.MAX_CONCURRENT_STREAMS: 0}
        async with listening(settings=none) as server, copying(server.port, http="2") as mirror:
            mirror.get()
            await until(lambda: bool(server.peers and server.peer.has(SettingsAcknowledged)))
            server.peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
            server.peer.flush()
            await mirror.answered(1)

    run(scenario())


def test_an_overdue_answer_fails_and_the_others_come(run: Run, copying: Copying) -> None:
    def response(peer: Peer, stream_id: int) -> None:
        if stream_id != 1:
            peer.response(stream_id)

    async def scenario() -> None:
        timeouts = Timeouts(first_byte=0.3)
        async with (
            listening(response) as server,
            copying(server.port, http="2", timeouts=timeouts) as mirror,
        ):
            for _ in range(10):
                mirror.get()
            await mirror.answered(9)
            counters = mirror.target.counters
            while not counters.failed:
                mirror.get()
                await mirror.answered(counters.received - 1)
            assert mirror.target.counters.failed == 1
            assert len(server.peers) == 1

    run(scenario())


def test_a_silent_target_is_given_up_and_tried_by_one_connection(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        timeouts = Timeouts(first_byte=0.1, min_backoff=5, max_backoff=5)
        async with (
            listening(answer_nothing) as server,
            copying(server.port, http="2", timeouts=timeouts, drain=0) as mirror,
        ):
            for _ in range(10):
                mirror.get()
            await until(lambda: mirror.target.counters.failed == 10)
            mirror.get()
            assert len(server.peers) == 1

    run(scenario())
    assert caplog.text.count("; copies wait\n") == 1


def test_of_requests_to_a_silent_target_the_first_alone_may_be_overdue(
    run: Run, copying: Copying
) -> None:
    async def scenario() -> None:
        timeouts = Timeouts(first_byte=0.2, min_backoff=5, max_backoff=5)
        async with (
            listening(answer_nothing) as server,
            copying(server.port, http="2", timeouts=timeouts, drain=0) as mirror,
        ):
            mirror.get()
            await until(lambda: len(server.requests()) == 1)
            await asyncio.sleep(0.1)  # the others are overdue that much later
            mirror.get()
            mirror.get()
            await until(lambda: mirror.target.counters.failed == 3)

    run(scenario())


def test_connections_end_when_they_are_unused_or_old(run: Run, copying: Copying) -> None:
    async def scenario(pool: dict[str, float]) -> None:
        async with listening() as server, copying(server.port, http="2", **pool) as mirror:
            mirror.get()
            await mirror.answered(1)
            await until(lambda: server.peers[0].is_lost)
            mirror.get()
            await mirror.answered(2)
            assert len(server.peers) == 2

    run(scenario({"keep_alive": 0.1}))
    run(scenario({"keep_alive": 60.0, "lifetime": 0.2}))


def test_a_target_that_does_not_speak_http2_is_said(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        async with (
            listening(greeting=greeting) as server,
            copying(server.port, http="2", drain=0) as mirror,
        ):
            mirror.get()
            await until(lambda: "does not speak HTTP/2" in caplog.text)

    run(scenario())


class EitherHttp(asyncio.Protocol):
    """A target's end that speaks what was negotiated, HTTP/1.1 as simply as can be."""

    def __init__(self, target: Target) -> None:
        self._peer: Peer | None = Peer(target)
        self._target = target

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        if transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
            assert self._peer is not None
            self._peer.connection_made(transport)
        else:
            self._peer = None

    def data_received(self, data: bytes) -> None:
        if self._peer is not None:
            self._peer.data_received(data)
        else:
            self._transport.write(OK * data.count(b"\r\n\r\n"))


@asynccontextmanager
async def negotiating(certificate: Path, *alpn: str) -> AsyncIterator[Target]:
    """Run a target that offers some versions of HTTP over TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    target = Target()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EitherHttp(target), "127.0.0.1", 0, ssl=context)
    target.port = server.sockets[0].getsockname()[1]
    try:
        yield target
    finally:
        server.close()


@pytest.mark.parametrize(
    ("http", "alpn", "versions"),
    [
        ("auto", ("h2", "http/1.1"), {b"1.1": "1.1", b"2.0": "2", b"3.0": "2"}),
        ("auto", ("http/1.1",), {b"1.1": "1.1", b"2.0": "1.1"}),
        ("auto", (), {b"1.1": "1.1", b"2.0": "1.1"}),
        ("auto", ("h2",), {b"1.1": "2", b"2.0": "2", b"1.0": "2"}),
        ("1.1", ("h2", "http/1.1"), {b"1.1": "1.1", b"2.0": "1.1"}),
        ("2", ("h2", "http/1.1"), {b"1.1": "2", b"2.0": "2"}),
    ],
)
def test_what_came_over_http2_goes_on_over_it_where_the_target_can(
    run: Run,
    copying: Copying,
    certificate: Path,
    http: str,
    alpn: tuple[str, ...],
    versions: dict[bytes, str],
) -> None:
    async def scenario() -> None:
        tls = TlsSettings(ca_file=str(certificate))
        async with negotiating(certificate, *alpn) as server:
            name = {"scheme": "https", "server": "localhost"}
            async with copying(server.port, tls=tls, http=http, **name) as mirror:
                for count, version in enumerate(versions, 1):
                    mirror.get(version=version)
                    await mirror.answered(count)
            assert [
                line.partition(" HTTP/")[2].partition('"')[0] for line in mirror.lines()
            ] == list(versions.values())
            for seen in server.requests():
                assert (b":scheme", b"https") in seen.fields

    run(scenario())


NO_APPLICATION_PROTOCOL = b"\x15\3\3\0\2\2\x78"
"""The alert by which many servers refuse a client without HTTP/2 (RFC 7301, 3.2)."""


class Refuser(asyncio.Protocol):
    """Refuses a ClientHello that does not offer h2, and passes all others on to a port."""

    def __init__(self, port: int, refusal: bytes, refused: list[bytes]) -> None:
        self._port = port
        self._refusal = refusal
        self._refused = refused
        self._relay: Relay | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if self._relay is not None:
            self._relay.send(data)
        elif b"\2h2" in data:
            loop = asyncio.get_running_loop()
            self._relay = Relay(self._transport, data)
            relay = self._relay
            self._task = loop.create_task(
                loop.create_connection(lambda: relay, "127.0.0.1", self._port)
            )
        else:
            self._refused.append(data)
            self._transport.write(self._refusal)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._relay is not None:
            self._relay.close()


class Relay(asyncio.Protocol):
    """The other side of a `Refuser`."""

    def __init__(self, front: Any, data: bytes) -> None:
        self._front = front
        self._waiting = data
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._waiting)

    def send(self, data: bytes) -> None:
        if self._transport is None:
            self._waiting += data
        else:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._front.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._front.close()


@asynccontextmanager
async def refusing(port: int, refusal: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run a `Refuser`; give its port and the ClientHellos it refused."""
    refused: list[bytes] = []
    loop = asyncio.get_running_loop()
    front = await loop.create_server(lambda: Refuser(port, refusal, refused), "127.0.0.1", 0)
    try:
        yield front.sockets[0].getsockname()[1], refused
    finally:
        front.close()


@pytest.mark.parametrize("refusal", [NO_APPLICATION_PROTOCOL, b""], ids=["alert", "end"])
def test_a_target_that_refuses_clients_without_http2_gets_all_over_it(
    run: Run, copying: Copying, certificate: Path, refusal: bytes
) -> None:
    async def scenario() -> None:
        tls = TlsSettings(ca_file=str(certificate))
        name = {"scheme": "https", "server": "localhost", "tls": tls}
        pool = {"connections": 1, "lifetime": 0.3}
        async with (
            negotiating(certificate, "h2", "http/1.1") as server,
            refusing(server.port, refusal) as (port, refused),
        ):
            async with copying(port, **pool, **name) as mirror:
                for number in range(20):
                    mirror.get(b"/%d" % number)
                await mirror.answered(20)
                # What is known of the target outlives the connection.
                await until(lambda: not any(each.count for each in mirror.target._pools))
                mirror.get()
                await mirror.answered(21)
                counters = mirror.target.counters
                assert (counters.failed, counters.connect_failures) == (0, 0)
            assert len(refused) == 1
            assert all(' HTTP/2" 200 ' in line for line in mirror.lines())

    run(scenario())


def test_http2_that_cannot_be_negotiated_is_said(
    run: Run, copying: Copying, certificate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        tls = TlsSettings(ca_file=str(certificate))
        async with negotiating(certificate, "http/1.1") as server:
            name = {"scheme": "https", "server": "localhost", "drain": 0}
            async with copying(server.port, tls=tls, http="2", **name) as mirror:
                mirror.get()
                await until(lambda: "does not speak HTTP/2 (ALPN)" in caplog.text)

    run(scenario())


def test_without_tls_http2_is_spoken_only_on_request(run: Run, copying: Copying) -> None:
    async def scenario() -> None:
        async with origin() as server, copying(server.port) as mirror:
            mirror.get(version=b"2.0")
            await mirror.answered(1)
            assert server.requests == [b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"]

    run(scenario())


def test_the_end_waits_for_the_answers(run: Run, copying: Copying) -> None:
    def response(peer: Peer, stream_id: int) -> None:
        asyncio.get_running_loop().call_later(0.05, peer.response, stream_id)

    async def scenario() -> None:
        async with listening(response) as server:
            async with copying(server.port, http="2") as mirror:
                for _ in range(300):
                    mirror.get()
            assert mirror.target.counters.responses == 300

    run(scenario())

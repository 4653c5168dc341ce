"""A gRPC call's status is not HTTP's: what it does to the log, the counters and the circuit."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from spoakit.apps.mirror.config.schema import Timeouts
from spoakit.apps.mirror.http.grpc import grpc_failure
from spoakit.apps.mirror.http.http2_response import Http2Response
from tests.support.copier import Run
from tests.support.http2_peer import Fields, Peer, get, listening
from tests.support.waiting import until

Copying = Callable[..., Any]

CALL = b"content-type: application/grpc+proto\r\n"


def failure(
    status: bytes | None,
    message: bytes = b"",
    http: int = 200,
    fields: bytes = CALL,
) -> str | None:
    """Return the text of the failure that a response tells of."""
    response = Http2Response(get(b"/s/m", b"POST", bytes(5), fields), 1, 0.0)
    response.status = http
    response.grpc_status = status
    response.grpc_message = message
    outcome = grpc_failure(response)
    return None if outcome is None else outcome.log_text.decode("latin-1")


@pytest.mark.parametrize(
    ("status", "message", "text"),
    [
        (b"0", b"", None),
        (b"0", b"fine", None),
        (b"14", b"", "grpc-status 14"),
        (b"14", b"connection%20refused%21", "grpc-status 14: connection refused!"),
        (b"2", b"%C3%A4 %E2%82%AC", "grpc-status 2: \xe4 ?"),
        (b"2", b"100% %zz", "grpc-status 2: 100% %zz"),
        (b"2", b"a%0d%0a200 1/1 ok%1b[31m", "grpc-status 2: a 200 1/1 ok [31m"),
        (b"2", b"x" * 10_000, "grpc-status 2: " + "x" * 200),
        (b"2", b"%78" * 10_000, "grpc-status 2: " + "x" * 200),
        (b"2", b"%0a" * 10, "grpc-status 2"),
        (b"\xff\n9" + b"9" * 100, b"", "grpc-status ? " + "9" * 18),
        (b"", b"", "grpc-status "),
        (None, b"", "grpc-status missing"),
    ],
)
def test_a_status_other_than_0_is_a_failure(
    status: bytes | None, message: bytes, text: str | None
) -> None:
    assert failure(status, message) == (text if text is None else text.strip())


@pytest.mark.parametrize("http", [404, 503])
def test_without_a_grpc_status_the_one_of_http_counts(http: int) -> None:
    assert failure(None, http=http) is None
    assert failure(b"14", http=http) == "grpc-status 14"


@pytest.mark.parametrize("fields", [b"", b"accept: application/grpc\r\n"])
def test_only_a_call_has_a_grpc_status(fields: bytes) -> None:
    assert failure(b"14", fields=fields) is None
    assert failure(None, fields=fields) is None


def call(mirror: Any) -> None:
    """Copy a gRPC call."""
    mirror.copy(b"POST", b"/s/m", b"host: h\r\n" + CALL + b"\r\n", b"\0\0\0\0\0")


@pytest.mark.parametrize("is_trailers_only", [True, False])
@pytest.mark.parametrize("status", [b"14", None])
def test_a_failed_call_is_logged_and_counted_and_the_target_is_well(
    run: Run, copying: Copying, status: bytes | None, is_trailers_only: bool
) -> None:
    last: Fields = [] if status is None else [(b"grpc-status", status), (b"grpc-message", b"%21")]

    def response(peer: Peer, stream_id: int) -> None:
        head: Fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
        if is_trailers_only:
            peer.response(stream_id, head + last, b"")
            return
        peer.h2.send_headers(stream_id, head)
        peer.h2.send_data(stream_id, b"abc", end_stream=not last)
        if last:
            peer.h2.send_headers(stream_id, last, end_stream=True)

    async def scenario() -> None:
        async with listening(response) as server:
            async with copying(server.port, http="2") as mirror:
                for _ in range(20):
                    call(mirror)
                counters = mirror.target.counters
                await until(lambda: counters.failed == 20)
                assert counters.failures == {"grpc": 20}
                assert (counters.responses, counters.retried, counters.dropped) == (0, 0, 0)
                assert all(pool.health.trouble is None for pool in mirror.target._pools)
            assert len(server.peers) == 1
            assert len(server.requests()) == 20
            size = 0 if is_trailers_only else 3
            text = "grpc-status missing" if status is None else "grpc-status 14: !"
            for line in mirror.lines():
                assert re.search(rf' HTTP/2" 200 5/{size} .* {text}$', line)

    run(scenario())


def test_a_failed_call_ends_a_trouble(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    """A target that answers a probe works, whatever it thinks of the call."""
    is_silent = True

    def response(peer: Peer, stream_id: int) -> None:
        if not is_silent:
            peer.response(stream_id, [(b":status", b"200"), (b"grpc-status", b"5")], b"")

    async def scenario() -> None:
        nonlocal is_silent
        timeouts = Timeouts(first_byte=0.3, min_backoff=0.01, max_backoff=0.02)
        async with (
            listening(response) as server,
            copying(server.port, http="2", timeouts=timeouts) as mirror,
        ):
            [pool] = mirror.target._pools
            call(mirror)
            await until(lambda: pool.health.trouble is not None)
            is_silent = False
            for _ in range(10):
                call(mirror)
            await until(lambda: mirror.target.counters.failed == 11)
            assert mirror.target.counters.failures == {"timeout": 1, "grpc": 10}
            assert pool.health.trouble is None

    run(scenario())

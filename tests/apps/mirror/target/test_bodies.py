"""Bodies that are cut, suspect or too large."""

import pytest

from spoakit.apps.mirror.config.schema import Truncated, TruncatedSuspect
from tests.support.copier import Copying, Run
from tests.support.origin import origin


@pytest.mark.parametrize(("truncated", "sent"), [("send", b""), ("mark", b"x-mirror-truncated: 4")])
def test_a_cut_body_may_be_copied_all_the_same(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture, truncated: Truncated, sent: bytes
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            rewrite = {"truncated": truncated}
            async with copying(server.port, **rewrite) as mirror:
                for _ in range(3):
                    mirror.copy(b"POST", b"/", b"host: h\r\ncontent-length: 9\r\n\r\n", b"short")
                await mirror.answered(3)
                assert mirror.target.counters.cut_bodies == 3
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            assert body == b"short"
            assert b"content-length: 5" in head
            assert sent in head

    run(scenario())
    assert caplog.text.count("5 bytes of a body of 9 were received") == 1
    assert "tune.bufsize" in caplog.text
    assert "-m" in caplog.text


CHUNKED = b"host: h\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS = b"host: h\r\n\r\n"


@pytest.mark.parametrize(
    ("lines", "body", "reason", "setting"),
    [
        (CHUNKED, b"", "not_waited_for", "'option http-buffer-request'"),
        (ENDLESS, bytes(15_203), "probably_cut", "raise tune.bufsize, and max-frame-size"),
    ],
)
@pytest.mark.parametrize("what", ["send", "skip"])
def test_a_body_that_is_suspect_is_counted_and_told_of_once(
    run: Run,
    copying: Copying,
    caplog: pytest.LogCaptureFixture,
    lines: bytes,
    body: bytes,
    reason: str,
    setting: str,
    what: TruncatedSuspect,
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            rewrite = {"truncated_suspect": what}
            async with copying(server.port, **rewrite) as mirror:
                for _ in range(3):
                    mirror.copy(b"PUT", b"/suspect", lines, body, max_frame_size=16380)
                mirror.copy(b"PUT", b"/whole", lines, b"x", max_frame_size=16380)
                counters = mirror.target.counters
                sent = 3 if what == "send" else 0
                await mirror.answered(sent + 1)
                assert counters.suspect_bodies == {reason: 3}
                assert (counters.body_suspect, counters.cut_bodies) == (3 - sent, 0)
            suspects = [each for each in server.requests if b"/suspect" in each]
            assert [each.partition(b"\r\n\r\n")[2] for each in suspects] == [body] * sent

    run(scenario())
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert setting in warning.getMessage()
    assert ("not copied" in warning.getMessage()) is (what == "skip")


def test_each_reason_to_suspect_a_body_is_told_of(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server, copying(server.port) as mirror:
            for _ in range(2):
                mirror.copy(b"PUT", b"/", CHUNKED, b"", max_frame_size=16380)
                mirror.copy(b"PUT", b"/", ENDLESS, bytes(15_203), max_frame_size=16380)
                mirror.get()
            await mirror.answered(6)

    run(scenario())
    assert caplog.text.count("http-buffer-request") == caplog.text.count("tune.bufsize") == 1


def test_without_bodies_none_is_cut_or_suspect(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            rewrite = {"body": "none", "truncated_suspect": "skip"}
            async with copying(server.port, **rewrite) as mirror:
                mirror.copy(b"PUT", b"/", CHUNKED)
                mirror.copy(b"PUT", b"/", ENDLESS, bytes(15_203), max_frame_size=16380)
                mirror.copy(b"PUT", b"/", b"host: h\r\ncontent-length: 9\r\n\r\n", b"short")
                await mirror.answered(3)
                counters = mirror.target.counters
                assert (counters.suspect_bodies, counters.cut_bodies) == ({}, 0)
            for each in server.requests:
                head, _, body = each.partition(b"\r\n\r\n")
                assert (body, head.lower().count(b"content-length: 0")) == (b"", 1)

    run(scenario())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_body_that_is_too_large_is_not_copied(
    run: Run, copying: Copying, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with origin() as server:
            async with copying(server.port, max_body=10) as mirror:
                for size in (10, 11, 12):
                    mirror.copy(b"PUT", b"/", b"host: h\r\n\r\n", bytes(size))
                # It is too large, and cut as well: one reason is enough.
                mirror.copy(b"PUT", b"/", b"host: h\r\ncontent-length: 11\r\n\r\n", b"short")
                await mirror.answered(1)
                counters = mirror.target.counters
                assert (counters.body_too_large, counters.malformed) == (3, 0)
                assert (counters.body_cut, counters.cut_bodies) == (0, 0)
            assert len(server.requests) == 1

    run(scenario())
    assert caplog.text.count("body of 11 bytes is larger than max-body, 10") == 1
    assert "body of 12" not in caplog.text

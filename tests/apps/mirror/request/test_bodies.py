"""spoakit.apps.mirror._request_builder_cy: bodies that are cut, suspect, missing or too large."""

from types import ModuleType
from typing import Any

import pytest

from tests.support.request_building import HOST, Fields, build, wire


@pytest.mark.parametrize("size", [9, 100])
def test_a_body_shorter_than_haproxy_says_is_cut(building: ModuleType, size: int) -> None:
    chunked = (HOST, (b"transfer-encoding", b"chunked"))
    with pytest.raises(building.TruncatedBodyError, match=f"5 bytes of a body of {size}"):
        build(building, chunked, body=b"hello", size=size)
    copy = build(building, chunked, body=b"hello", size=size, truncated="send")
    assert copy.missing == size - 5
    assert copy.wire.endswith(b"content-length: 5\r\n\r\nhello")
    # What it says is the end of the chunk that it was in, and not of the body.
    marked = wire(building, chunked, body=b"hello", size=size, truncated="mark")
    assert marked.endswith(b"\r\nx-mirror-truncated: unknown\r\n\r\nhello")
    assert build(building, chunked, body=b"hello", size=5).missing == 0


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (b"\0\0\0\0\5hello", 0),
        (b"\0\0\0\0\0", 0),
        (b"\1\0\0\0\1a\0\0\0\0\2bc", 0),
        (b"\0\0\0\1\0hello", 251),
        (b"\1\0\0\0\1a\0\0\0\0\2b", 1),
        (b"\0\xff\xff\xff\xffhello", 0xFFFFFFFF - 5),
        (b"\0", 4),
    ],
)
def test_a_grpc_message_that_is_shorter_than_it_says_is_cut(
    building: ModuleType, body: bytes, missing: int
) -> None:
    call = (HOST, (b"content-type", b"application/grpc+proto"))
    copy = build(building, call, method=b"POST", body=body, size=len(body), truncated="send")
    assert copy.missing == missing
    other = (HOST, (b"content-type", b"text/plain"))
    assert build(building, other, method=b"POST", body=body, size=len(body)).missing == 0


CHUNKED = (b"transfer-encoding", b"chunked")
FRAME_SIZE = 16380


@pytest.mark.parametrize(
    ("fields", "body", "suspect"),
    [
        ((HOST, CHUNKED), b"", "not_waited_for"),
        ((HOST, (b"Transfer-Encoding", b"gzip, chunked")), b"", "not_waited_for"),
        ((HOST, CHUNKED), b"x", ""),
        ((HOST, CHUNKED), None, ""),
        ((HOST,), b"", ""),
        ((HOST, (b"content-length", b"0")), b"", ""),
        ((HOST,), bytes(14_000), ""),
        ((HOST,), bytes(15_203), "probably_cut"),
        # Each field takes more of the buffer than of the frame.
        ((HOST, *((b"x-field", b"some value"),) * 40), bytes(14_170), "probably_cut"),
        ((HOST, CHUNKED), bytes(15_203), "probably_cut"),
        ((HOST,), bytes(16_200), "probably_cut"),
        ((HOST, (b"content-length", b"15203")), bytes(15_203), ""),
        # In fragments.
        ((HOST,), bytes(40_000), ""),
    ],
)
def test_a_body_that_is_probably_not_all_of_it_is_suspect(
    building: ModuleType, fields: Fields, body: bytes | None, suspect: str
) -> None:
    method = b"POST" if body else b"GET"
    arguments: dict[str, Any] = {"method": method, "body": body, "max_frame_size": FRAME_SIZE}
    copy = build(building, fields, **arguments)
    assert (copy.suspect, copy.missing) == (suspect, 0)
    assert copy.as_retried().suspect == suspect
    assert copy.body_size == len(body or b"")
    assert build(building, fields, body_kept="none", **arguments).suspect == ""
    if suspect:
        with pytest.raises(building.SuspectBodyError) as caught:
            build(building, fields, truncated_suspect="skip", **arguments)
        assert caught.value.reason == suspect
    else:
        assert build(building, fields, truncated_suspect="skip", **arguments).wire == copy.wire


def test_all_that_came_in_a_frame_counts_for_its_size(building: ModuleType) -> None:
    def suspect(size: int, **more: Any) -> str:
        copy = build(building, body=bytes(size), max_frame_size=FRAME_SIZE, **more)
        return str(copy.suspect)

    assert suspect(8_000) == ""
    assert suspect(8_000, target=b"/" + b"x" * 7_500) == "probably_cut"
    assert suspect(8_000, fields=(HOST, (b"x", b"y" * 7_500))) == "probably_cut"
    # The largest that is not suspect, and the smallest that is.
    sizes = [size for size in range(14_000, 16_000) if suspect(size)]
    assert sizes == list(range(sizes[0], 16_000))
    assert 15_000 < sizes[0] < 15_203


def test_without_the_frames_size_only_an_empty_body_is_suspect(building: ModuleType) -> None:
    assert build(building, body=bytes(16_000)).suspect == ""
    assert build(building, (HOST, CHUNKED)).suspect == "not_waited_for"


def test_a_body_that_is_known_to_be_cut_is_not_suspect_besides(building: ModuleType) -> None:
    arguments: dict[str, Any] = {"body": bytes(15_203), "max_frame_size": FRAME_SIZE}
    copy = build(building, (HOST, CHUNKED), size=20_000, truncated="send", **arguments)
    assert (copy.suspect, copy.missing) == ("", 4_797)


@pytest.mark.parametrize(
    ("fields", "body", "size", "expected"),
    [
        ((HOST,), b"", -1, b""),
        ((HOST,), b"hello", -1, b"content-length: 0\r\n"),
        ((HOST, (b"Content-Length", b"5")), b"hello", 5, b"Content-Length: 0\r\n"),
        ((HOST, (b"content-length", b"100")), b"hello", 100, b"content-length: 0\r\n"),
        ((HOST, CHUNKED), b"hello", 99, b"content-length: 0\r\n"),
        ((HOST, CHUNKED), b"", -1, b"content-length: 0\r\n"),
    ],
)
def test_copies_without_bodies_say_so_and_none_is_missing(
    building: ModuleType, fields: Fields, body: bytes, size: int, expected: bytes
) -> None:
    digest = (b"content-digest", b"sha-256=:x:")
    copy = build(
        building, (*fields, digest), method=b"POST", body=body, size=size, body_kept="none"
    )
    head = sorted(copy.wire.removeprefix(b"POST / HTTP/1.1\r\n").splitlines(keepends=True))
    rest = [b"\r\n", b"content-digest: sha-256=:x:\r\n", b"host: h\r\n"]
    assert head == sorted(rest + ([expected] if expected else []))
    assert (copy.missing, copy.body_size, copy.suspect) == (0, 0, "")


def test_a_grpc_call_without_its_message_has_nothing_missing(building: ModuleType) -> None:
    call = (HOST, (b"content-type", b"application/grpc"))
    assert build(building, call, body=b"\0\0\0\1\0hello", body_kept="none").missing == 0


@pytest.mark.parametrize(
    ("fields", "body", "size"),
    [
        ((HOST,), b"hello", -1),
        ((HOST, (b"content-length", b"5")), b"hello", 5),
        ((HOST, (b"content-length", b"5")), b"", -1),
        ((HOST, CHUNKED), b"h", 5),
        ((HOST, (b"content-length", b"5")), None, -1),
        ((HOST, (b"content-type", b"application/grpc")), b"\0\0\0\0\0", -1),
    ],
)
@pytest.mark.parametrize("kept", ["keep", "none"])
def test_a_body_larger_than_the_largest_is_refused(
    building: ModuleType, fields: Fields, body: bytes | None, size: int, kept: str
) -> None:
    arguments: dict[str, Any] = {"body": body, "size": size, "body_kept": kept}
    with pytest.raises(building.BodyTooLargeError, match=r"body of 5 bytes is larger than .*, 4"):
        build(building, fields, max_body=4, **arguments)
    build(building, fields, max_body=5, truncated="send", **arguments)


def test_with_a_largest_body_of_nothing_requests_without_one_are_copied(
    building: ModuleType,
) -> None:
    assert build(building, max_body=0).wire == build(building).wire
    with pytest.raises(building.BodyTooLargeError):
        build(building, body=b"x", max_body=0)

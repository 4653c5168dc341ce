"""spoakit.apps.mirror._request_builder_cy: fields and paths that a target wants changed."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spoakit.apps.mirror.config.schema import HeaderSettings, PathSettings
from tests.support.request_building import (
    HOST,
    Fields,
    binary,
    build,
    builder,
    original,
    text,
    wire,
)

REFERENCE = Path(__file__).parents[4] / "docs" / "reference" / "mirror-configuration.md"


@pytest.mark.parametrize(
    ("rewrite", "expected"),
    [
        ({"host": "target"}, (b"fallback:81",)),
        ({"host": "other.example:8080"}, (b"other.example:8080",)),
        ({"host": "keep"}, (b"h", b"h2")),
    ],
)
def test_the_host_is_kept_or_replaced(
    building: ModuleType, rewrite: dict[str, Any], expected: tuple[bytes, ...]
) -> None:
    fields = (HOST, (b"a", b"1"), (b"Host", b"h2"))
    head = wire(building, fields, **rewrite)
    hosts = [line[6:] for line in head.split(b"\r\n") if line.lower().startswith(b"host: ")]
    assert tuple(hosts) == expected
    none = wire(building, ((b"a", b"1"),), target=b"http://named/", **rewrite)
    assert (b"host: named\r\n" in none) is (rewrite["host"] == "keep")


def test_fields_are_set_added_and_removed(building: ModuleType) -> None:
    fields = (HOST, (b"X-Set", b"1"), (b"x-gone", b"1"), (b"x-set", b"2"), (b"x-add", b"1"))
    rules = HeaderSettings(
        set=(("x-set", "new"),), add=(("x-add", "2"),), remove=("X-Gone", "x-none")
    )
    expected = (HOST, (b"x-add", b"1"), (b"x-set", b"new"), (b"x-add", b"2"))
    assert wire(building, fields, headers=rules) == b"GET / HTTP/1.1\r\n" + text(expected)


def test_secrets_are_left_out(building: ModuleType) -> None:
    secret = (b"Authorization", b"cookie", b"Proxy-Authorization", b"X-API-Key", b"x-auth-token")
    fields = (HOST, *((name, b"s3cret") for name in secret), (b"accept", b"*/*"))
    copy = wire(building, fields, headers=HeaderSettings(secrets="strip"))
    assert copy == b"GET / HTTP/1.1\r\n" + text((HOST, (b"accept", b"*/*")))


def test_a_copy_is_marked_once(building: ModuleType) -> None:
    fields = (HOST, (b"X-Mirrored", b"by another"))
    copy = wire(building, fields, marker=("x-mirrored", "1"))
    assert copy == b"GET / HTTP/1.1\r\n" + text((HOST, (b"x-mirrored", b"1")))


@pytest.mark.parametrize("binary_form", [True, False])
@pytest.mark.parametrize("name", [b"X-Mirrored", b"x-mirrored", b"X-MIRRORED"])
@pytest.mark.parametrize("value", [b"yes", b" yes\t"])
def test_a_marked_request_is_not_copied_again(
    building: ModuleType, binary_form: bool, name: bytes, value: bytes
) -> None:
    fields = (HOST, (name, b"by another"), (name, value))
    block = binary(fields) if binary_form else text(fields)
    maker = builder(
        building, marker=("X-Mirrored", "yes"), headers=HeaderSettings(remove=("x-mirrored",))
    )
    marked = original(b"GET", b"/", block, binary=binary_form)
    plain = original(b"GET", b"/", binary((HOST,)), binary=True)
    for _ in range(2):  # what a builder remembers of fields is no other way
        maker.build(plain)
        with pytest.raises(building.LoopedRequestError, match="X-Mirrored: yes"):
            maker.build(marked)


@pytest.mark.parametrize(
    ("marker", "field"),
    [
        (("x-mirrored", "1"), (b"x-mirrored", b"2")),
        (("x-mirrored", "yes"), (b"x-mirrored", b"YES")),
        (("x-mirrored", "yes"), (b"x-mirrored", b"yes, no")),
        (("x-mirrored", "1"), (b"x-mirror", b"1")),
        (("x-mirrored", "1"), (b"x-mirrored", b"")),
        (None, (b"x-mirrored", b"1")),
    ],
)
def test_only_the_whole_marker_counts(
    building: ModuleType, marker: tuple[str, str] | None, field: tuple[bytes, bytes]
) -> None:
    assert wire(building, (HOST, field), marker=marker)


def test_an_empty_marker_marks_too(building: ModuleType) -> None:
    with pytest.raises(building.LoopedRequestError):
        build(building, (HOST, (b"x-mirrored", b"")), marker=("X-Mirrored", ""))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((HOST,), b"host: h\r\nx-forwarded-for: 192.0.2.7\r\n"),
        ((), b"host: fallback:81\r\nx-forwarded-for: 192.0.2.7\r\n"),
        (((b"X-Forwarded-For", b"a"), HOST), b"X-Forwarded-For: a, 192.0.2.7\r\nhost: h\r\n"),
        (
            ((b"x-forwarded-for", b"a"), (b"x-forwarded-for", b"b")),
            b"host: fallback:81\r\nx-forwarded-for: a\r\nx-forwarded-for: b, 192.0.2.7\r\n",
        ),
        (
            ((b"x-forwarded-for", b"a"), (b"connection", b"x-hop"), HOST),
            b"x-forwarded-for: a\r\nhost: h\r\nx-forwarded-for: 192.0.2.7\r\n",
        ),
    ],
)
def test_the_client_is_forwarded(building: ModuleType, fields: Fields, expected: bytes) -> None:
    copy = wire(building, fields, source=b"192.0.2.7", forwarded_for=True)
    assert copy == b"GET / HTTP/1.1\r\n" + expected + b"\r\n"
    assert b"192.0.2.7" not in wire(building, fields, source=b"192.0.2.7")
    assert b"192.0.2.7" not in wire(building, fields, forwarded_for=True)


def test_a_request_gets_an_id_unless_it_has_one(building: ModuleType) -> None:
    assert b"\r\nx-request-id: 7\r\n" in wire(building, request_id=b"7", adds_id=True)
    kept = wire(building, ((b"X-Request-Id", b"6"),), request_id=b"7", adds_id=True)
    assert b"X-Request-Id: 6\r\n" in kept
    assert b"7" not in kept.partition(b"\r\n")[2]


@pytest.mark.parametrize(
    ("path", "target", "expected"),
    [
        ({"strip_prefix": "/api"}, b"/api/x?y", b"/base/x?y"),
        ({"strip_prefix": "/api/"}, b"/api", b"/base/"),
        ({"strip_prefix": "/api"}, b"/api?y", b"/base/?y"),
        ({"strip_prefix": "/api"}, b"/apix", b"/base/apix"),
        ({"add_prefix": "/v2/"}, b"/x", b"/base/v2/x"),
        ({"strip_prefix": "/api", "add_prefix": "/v2"}, b"/api/x", b"/base/v2/x"),
        (
            {"pattern": r"^/u/(\d+)", "replace": r"/users/\1"},
            b"/u/7?a",
            b"/base/users/7?a",
        ),
        ({"pattern": "a", "replace": "b"}, b"/aa", b"/base/ba"),
        ({"pattern": "^/x", "replace": ""}, b"/xy", b"/base/y"),
        ({"pattern": "a", "replace": "b"}, b"http://h/aa", b"/base/ba"),
    ],
)
def test_paths_are_rewritten(
    building: ModuleType, path: dict[str, str], target: bytes, expected: bytes
) -> None:
    copy = build(building, target=target, base="/base/", path=PathSettings(**path))
    assert copy.target == expected
    assert copy.wire.startswith(b"GET " + expected + b" HTTP/1.1\r\n")


def test_the_reference_names_the_secrets(building: ModuleType) -> None:
    secrets = REFERENCE.read_text().partition("#### Secrets\n")[2].partition(":")
    named = re.findall("`([a-z-]+)`", secrets[2].partition(".")[0])
    assert [name.encode() for name in named] == list(building._SECRETS)

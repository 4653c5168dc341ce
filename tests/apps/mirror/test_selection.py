import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.agent.headers import Headers
from spoakit.apps.mirror.config.schema import MatchSettings, TargetSettings
from spoakit.apps.mirror.selection import Selector
from spoakit.apps.mirror.url import TargetURL

VALUES = 200_000
URL = TargetURL.parse("http://h")


def matching(**rules: Any) -> TargetSettings:
    return TargetSettings(URL, match=MatchSettings(**rules))


def sampling(sample: float = 100, sample_by: str = "") -> TargetSettings:
    return TargetSettings(URL, sample=sample, sample_by=sample_by)


def headers(*lines: str) -> Headers:
    text = "".join(f"{line}\r\n" for line in (*lines, ""))
    return Headers(text.encode("utf-8", "surrogateescape"), binary=False)


NONE = headers()


def takes(
    selection: TargetSettings, method: bytes = b"GET", target: bytes = b"/", fields: Headers = NONE
) -> bool:
    return Selector(selection).selects(method, target, fields)


def keys_taken(sample: float, keys: Iterable[int] = range(VALUES)) -> set[int]:
    selector = Selector(sampling(sample=sample, sample_by="key"))
    return {key for key in keys if selector.selects(b"GET", b"/", NONE, b"user-%d" % key)}


def assert_share(taken: int, percent: float) -> None:
    """Hold a count within five standard deviations: off by chance once in two million runs."""
    share = percent / 100
    expected = VALUES * share
    assert abs(taken - expected) <= 5 * (expected * (1 - share)) ** 0.5 + 1


# What matches.


def test_without_rules_all_are_taken_and_nobody_needs_to_ask() -> None:
    selector = Selector(sampling())
    assert selector.selects_all
    assert selector.selects(b"ANY", b"*", NONE)


@pytest.mark.parametrize(
    "selection",
    [
        sampling(sample=99.999),
        sampling(sample=0),
        matching(methods=("GET",)),
        matching(path=""),
        matching(host=("a",)),
        matching(header=(("a", ""),)),
    ],
)
def test_with_a_rule_it_must_be_asked(selection: TargetSettings) -> None:
    assert not Selector(selection).selects_all


def test_a_key_alone_is_no_rule() -> None:
    assert Selector(sampling(sample_by="key")).selects_all


def test_methods_are_compared_with_their_case() -> None:
    selection = matching(methods=("GET", "PURGE"))
    assert takes(selection, b"GET")
    assert takes(selection, b"PURGE")
    assert not takes(selection, b"get")
    assert not takes(selection, b"POST")


@pytest.mark.parametrize(
    ("expression", "target", "taken"),
    [
        ("^/api/", b"/api/x", True),
        ("^/api/", b"/x/api/", False),
        ("debug=1$", b"/x?debug=1", True),
        ("^/api/", b"http://h/api/x", True),
        ("^http", b"http://h/api/x", False),
        (r"^/\?a$", b"http://h?a", True),
        ("^/$", b"http://h", True),
        (r"^\*$", b"*", True),
        (r"^/\?u=http://x/api/$", b"/?u=http://x/api/", True),
    ],
)
def test_the_path_is_searched_with_its_query(expression: str, target: bytes, taken: bool) -> None:
    assert takes(matching(path=expression), target=target) is taken


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("example.org", True),
        ("EXAMPLE.org:8080", True),
        ("example.org.", True),
        ("www.example.org", False),
        ("a.example.com", True),
        ("a.b.Example.Com:443", True),
        ("example.com", False),
        (".example.com", False),
        ("badexample.com", False),
        ("[2001:DB8::1]", True),
        ("[2001:db8::1]:80", True),
        ("[2001:db8::2]:80", False),
        ("[2001:db8::1", False),
        ("", False),
    ],
)
def test_hosts_are_names_or_wildcards_without_case_and_port(host: str, taken: bool) -> None:
    selection = matching(host=("example.org", "*.example.com", "[2001:db8::1]"))
    assert takes(selection, fields=headers(f"Host: {host}")) is taken


def test_a_request_without_a_host_is_for_none() -> None:
    assert not takes(matching(host=("example.org",)))


@pytest.mark.parametrize(
    ("target", "taken"),
    [
        (b"http://example.org/", True),
        (b"https://user@EXAMPLE.org:443?a", True),
        (b"http://other/", False),
        (b"/http://example.org/", False),
    ],
)
def test_the_host_of_a_complete_url_goes_before_the_header(target: bytes, taken: bool) -> None:
    selection = matching(host=("example.org",))
    other = "other" if taken else "example.org"
    fields = headers("host: " + ("other" if target.startswith(b"/") else other))
    assert takes(selection, target=target, fields=fields) is taken


def test_every_header_rule_must_be_met_by_one_of_the_fields_of_its_name() -> None:
    selection = matching(header=(("X-Tenant", "^acme$"), ("accept", "json")))
    accept = "Accept: application/json"
    assert takes(selection, fields=headers("x-tenant: other", "X-TENANT: acme", accept))
    assert not takes(selection, fields=headers("x-tenant: acme"))
    assert not takes(selection, fields=headers("x-tenant: acme2", accept))
    assert not takes(selection, fields=headers(accept))


def test_values_are_searched_as_the_bytes_they_came_as() -> None:
    fields = Headers(b"a: \xff!\r\n\r\n", binary=False)
    assert takes(matching(header=(("a", "^.!$"),)), fields=fields)


def test_fields_are_not_read_where_no_rule_needs_them() -> None:
    broken = Headers(b"no field", binary=False)
    match = MatchSettings(path="^/a", methods=("GET",))
    selection = TargetSettings(URL, match=match, sample=50, sample_by="key")
    assert not takes(selection, target=b"/b", fields=broken)
    assert not takes(sampling(sample=0), fields=broken)


@pytest.mark.parametrize(
    "selection",
    [
        matching(host=("a",)),
        matching(header=(("a", "b"),)),
        sampling(sample=0.001, sample_by="cookie:a"),
    ],
)
def test_malformed_fields_are_left_to_the_one_who_counts_them(selection: TargetSettings) -> None:
    assert takes(selection, fields=Headers(b"no field", binary=False))


# What is sampled.


@pytest.mark.parametrize("sample", [0, 0.001, 0.5, 33.3, 99.999, 100])
def test_the_share_of_requests_sampled_one_by_one_is_that_asked_for(sample: float) -> None:
    selector = Selector(sampling(sample=sample))
    assert_share(sum(selector.selects(b"GET", b"/", NONE) for _ in range(VALUES)), sample)


@pytest.mark.parametrize("sample", [0, 0.001, 0.5, 33.3, 99.999, 100])
def test_the_share_of_values_is_that_asked_for(sample: float) -> None:
    assert_share(len(keys_taken(sample)), sample)


def test_without_the_value_requests_are_sampled_one_by_one() -> None:
    selector = Selector(sampling(sample=20, sample_by="key"))
    for key in (None, b""):
        assert_share(sum(selector.selects(b"GET", b"/", NONE, key) for _ in range(VALUES)), 20)


@given(st.binary(min_size=1), st.floats(0.001, 99.999))
def test_all_requests_with_one_value_share_its_fate(value: bytes, sample: float) -> None:
    selection = sampling(sample=sample, sample_by="src")
    fates = {
        Selector(selection).selects(method, b"/%d" % number, NONE, b"%d" % number, value)
        for method in (b"GET", b"POST")
        for number in range(5)
    }
    assert len(fates) == 1


@given(st.binary(min_size=1), st.floats(0.001, 100), st.floats(0.001, 100))
def test_a_larger_sample_has_all_of_a_smaller_one(value: bytes, one: float, other: float) -> None:
    small, large = (
        Selector(sampling(sample=sample, sample_by="key")).selects(b"GET", b"/", NONE, value)
        for sample in sorted((one, other))
    )
    assert large or not small


def test_a_value_has_the_same_fate_wherever_it_comes_from() -> None:
    by = {
        kind: Selector(sampling(sample=50, sample_by=kind))
        for kind in ("key", "src", "cookie:id", "header:x-id")
    }
    for number in range(100):
        value = f"user-{number}"
        fields = headers(f"Cookie: a=b; id={value}", f"X-Id: {value}")
        raw = value.encode()
        fates = {each.selects(b"GET", b"/", fields, raw, raw) for each in by.values()}
        assert len(fates) == 1


def test_the_fate_of_a_value_is_the_same_in_every_process() -> None:
    here = sorted(keys_taken(5, range(400)))
    assert here[:5] == [13, 24, 37, 56, 124]  # and in every version: who is sampled stays sampled
    program = (
        "from spoakit.apps.mirror.selection import Selector, TargetSettings, Headers\n"
        "from spoakit.apps.mirror.url import TargetURL\n"
        "url = TargetURL.parse('http://h')\n"
        "takes = Selector(TargetSettings(url, sample=5, sample_by='key')).selects\n"
        "none = Headers(b'\\r\\n', False)\n"
        "print([n for n in range(400) if takes(b'GET', b'/', none, b'user-%d' % n)])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == str(here)


def fate(*lines: str, sample_by: str = "cookie:id") -> list[bool]:
    """Return what becomes of a request in samples of 1 to 99 %, which tells its value."""
    fields = headers(*lines)
    return [
        Selector(sampling(sample=percent, sample_by=sample_by)).selects(b"GET", b"/", fields)
        for percent in range(1, 100)
    ]


def fate_of(value: bytes) -> list[bool]:
    return [
        Selector(sampling(sample=percent, sample_by="key")).selects(b"GET", b"/", NONE, value)
        for percent in range(1, 100)
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ("Cookie: id=v42",),
        ("cookie: a=1; id=v42; b=2",),
        ("cookie: a=1;id=v42",),
        ("cookie:   id = v42 ;",),
        ('cookie: id="v42"',),
        ("cookie: a=1", "cookie: id=v42"),
        ("cookie: id=v42; id=other",),
        ("cookie: ID=other; xid=other; id=v42",),
        ("cookie: id; =; ;; a=id=other; id=v42",),
    ],
)
def test_a_cookie_is_found_as_rfc_6265_has_it(lines: tuple[str, ...]) -> None:
    assert fate(*lines) == fate_of(b"v42")


def test_a_cookies_value_may_have_signs_of_equality_and_any_bytes() -> None:
    assert fate("cookie: id=a=b==") == fate_of(b"a=b==")
    assert fate("cookie: id=\udcff") == fate_of(b"\xff")


def test_a_header_to_sample_by_has_no_case_in_its_name() -> None:
    assert fate("X-USER: v42", "x-user: other", sample_by="header:X-User") == fate_of(b"v42")

import gzip
import json
from io import BytesIO
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources import json_list
from spoakit.apps.iprep.sources.entries import Entries
from spoakit.apps.iprep.sources.json_list import JsonPath, JsonReader
from spoakit.apps.iprep.sources.limits import ListLimits, MinPrefix

AWS = {
    "syncToken": "1",
    "prefixes": [
        {"ip_prefix": "3.5.140.0/22", "region": "ap-northeast-2", "service": "AMAZON"},
        {"ip_prefix": "15.230.0.4/32", "region": "us-east-2", "service": "AMAZON"},
    ],
    "ipv6_prefixes": [{"ipv6_prefix": "2600:1f14::/35", "service": "EC2"}],
}
GOOGLE = {"prefixes": [{"ipv6Prefix": "2001:4860:4801::/64"}, {"ipv4Prefix": "66.249.64.0/27"}]}
GITHUB = {
    "verifiable_password_authentication": False,
    "ssh_keys": ["ssh-ed25519 AAAA"],
    "hooks": ["192.30.252.0/22", "2a0a:a440::/29"],
    "web": ["192.30.252.0/22"],
}
CLOUDFLARE = {
    "result": {"ipv4_cidrs": ["173.245.48.0/20"], "ipv6_cidrs": ["2400:cb00::/32"]},
    "success": True,
}
FASTLY = {"addresses": ["23.235.32.0/20"], "ipv6_addresses": ["2a04:4e40::/32"]}


def read(document: object, *select: str, max_size: int = 10_000_000) -> Entries:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return JsonReader(select).read(BytesIO(data), max_size)


@pytest.mark.parametrize(
    ("document", "select", "counts"),
    [
        (AWS, ("prefixes[].ip_prefix", "ipv6_prefixes[].ipv6_prefix"), (2, 1)),
        (GOOGLE, ("prefixes[].ipv4Prefix", "prefixes[].ipv6Prefix"), (1, 1)),
        (GITHUB, ("hooks[]",), (1, 1)),
        (CLOUDFLARE, ("result.ipv4_cidrs[]", "result.ipv6_cidrs[]"), (1, 1)),
        (FASTLY, ("addresses[]", "ipv6_addresses[]"), (1, 1)),
        (["8.8.8.8", "2001:4860::1"], ("[]",), (1, 1)),
        ([["8.8.8.8"], ["8.8.4.4"]], ("[][]",), (2, 0)),
        ([{"a": [{"b c": "8.8.8.8"}]}], ("[].a[].b c",), (1, 0)),
        ("8.8.8.8", ("x",), None),
    ],
)
def test_paths_lead_to_ranges(
    document: Any, select: tuple[str, ...], counts: tuple[int, int] | None
) -> None:
    if counts is None:
        with pytest.raises(SourceError, match=r"^there is nothing at 'x' \(select\)$"):
            read(document, *select)
        return
    entries = read(document, *select)
    assert (len(entries.first4), len(entries.first6[0])) == counts
    assert (entries.failed, entries.warnings) == (0, [])


def test_values_that_are_not_ranges_are_refused_with_their_paths() -> None:
    document = {"a": ["8.8.8.8", "x", 5, None, True, {}, [], "0.0.0.0/0", " 8.8.4.4 "]}
    entries = read(document, "a[]")
    assert [str(IPv4Address(each)) for each in entries.first4] == ["8.8.8.8", "8.8.4.4"]
    assert list(map(str, entries.errors)) == [
        "value 2: a[]: 'x' is not an address",
        "value 3: a[]: it is of the type number, not a text",
        "value 4: a[]: it is of the type null, not a text",
        "value 5: a[]: it is of the type boolean, not a text",
        "value 6: a[]: it is of the type object, not a text",
        "value 7: a[]: it is of the type array, not a text",
        "value 8: a[]: '0.0.0.0/0' is larger than a /6 (min-prefix)",
    ]


def test_a_path_that_leads_nowhere_is_a_warning_beside_others() -> None:
    entries = read(AWS, "prefixes[].ip_prefix", "prefixes[].ipv6_prefix")
    assert entries.warnings == ["there is nothing at 'prefixes[].ipv6_prefix' (select)"]
    with pytest.raises(SourceError, match="none of its 1 values can be used; value 1: prefixes: "):
        read(AWS, "prefixes")


def test_limits_are_the_settings() -> None:
    entries = JsonReader(["[]"], ListLimits(MinPrefix(0))).read(BytesIO(b'["0.0.0.0/0"]'))
    assert len(entries) == 1


@pytest.mark.parametrize("data", [b"", b"{", b'["8.8.8.8"', b"<html>", b'["\xff"]', b"[" * 100_000])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(SourceError, match="it is not JSON: "):
        read(data, "[]")


def test_a_document_may_be_compressed_and_begin_with_a_mark() -> None:
    data = b"\xef\xbb\xbf" + json.dumps(GITHUB).encode()
    assert len(read(data, "hooks[]")) == len(read(gzip.compress(data), "hooks[]")) == 2


def test_documents_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps(["8.8.8.8"] * 10_000).encode()
    with pytest.raises(SourceError, match=r"larger than 1000 bytes \(max-size\)"):
        read(data, "[]", max_size=1000)
    monkeypatch.setattr(json_list, "MAX_JSON", 100_000)
    with pytest.raises(SourceError, match="larger than 100000 bytes, the most for a JSON document"):
        read(gzip.compress(data), "[]")


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a[0]", "a[", "a]", "a.[]", "[]a"])
def test_what_is_not_a_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a path of names, dots and"):
        JsonPath(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=20,
)
STEPS = st.lists(st.sampled_from(["[]", "a", "b", "c"]), min_size=1, max_size=4)


@given(JSON, STEPS)
def test_paths_find_what_following_them_finds(document: Any, steps: list[str]) -> None:
    text = steps[0] + "".join(step if step == "[]" else f".{step}" for step in steps[1:])
    found = [document]
    for step in steps:
        if step == "[]":
            found = [item for each in found if isinstance(each, list) for item in each]
        else:
            found = [each[step] for each in found if isinstance(each, dict) and step in each]
    assert list(JsonPath(text).find(document)) == found

import json
import re
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.config.loader import check_files, read_config, settings_of
from spoakit.apps.iprep.config.schema import (
    AnswerSettings,
    AuditSettings,
    BanSettings,
    ControlSettings,
    ForwardedSettings,
    PolicySettings,
    ReputationSettings,
)
from spoakit.apps.iprep.config.sources import (
    DatabaseSettings,
    DnsblSettings,
    FeedSettings,
    FeedTls,
    SourceSettings,
)
from spoakit.apps.iprep.sources.limits import ListLimits, MinPrefix
from spoakit.apps.iprep.sources.lists import Columns
from spoakit.exceptions import ConfigurationError

REFERENCE = Path(__file__).parents[4] / "docs" / "reference" / "iprep-configuration.md"
FILES = ("ca.pem", "blocked.txt", "partners.txt", "abuse.csv", "GeoLite2-Country.mmdb")

Read = Callable[[str], ReputationSettings]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Give `read(text)`, which reads a file with that text beside some lists."""
    for name in FILES:
        (tmp_path / name).touch()
    (tmp_path / "secret").write_text("from a file\n")

    def read(text: str) -> ReputationSettings:
        path = tmp_path / "iprep.toml"
        path.write_text(text)
        return read_config(path)

    return read


FULL = """
cache = "cache"
policy.allow = ["192.0.2.7"]
policy.block-private = true
policy.combine = "weighted"
policy.unknown = 50
policy.nat64 = []
answers = { variables = ["ip_score", "ip_asn"], scope = "txn" }
forwarded = { argument = "xff", trusted = ["10.0.0.0/8"], header = "forwarded" }
bans = { path = "bans.db", max-time = "1d", message = true, ipv6-prefix = 56 }
audit = { path = "audit.log", threshold = 20, sample = 0.5 }
control = { path = "socket", mode = "0660", owner = "root", group = "0" }

[[source]]
name = "list"
type = "list"
score = 5
weight = 0.5
category = "spam"
allow = false
failed = "closed"
mode = "observe"
url = "https://example.com/list"
max-age = "2d"
interval = "2m"
timeout = 5
max-size = "1MiB"
max-shrink = 10
may-be-empty = true
allow-html = true
headers = { Auth-Key = "hush", X-Other = "@secret" }
min-prefix = { ipv4 = 9, ipv6 = 19 }
max-share = 7
tls = { ca-file = "ca.pem" }

[[source]]
name = "drop"
type = "drop"
path = "blocked.txt"
min-prefix = 8

[[source]]
name = "csv"
type = "csv"
path = "abuse.csv"
columns = { address = "a", last = 2, score = "s", category = "c" }
best = 0
worst = 10
delimiter = ";"
filter = { action = ["ban", "x"], 3 = ["y"] }
scores = { spam = 7 }

[[source]]
name = "json"
type = "json"
path = "partners.txt"
select = ["prefixes[].ip_prefix", "[]"]

[[source]]
name = "db"
type = "mmdb"
path = "GeoLite2-Country.mmdb"
field = "a.b"
provides = "country"
scores = { XX = 3 }

[[source]]
name = "dns"
type = "dnsbl"
zone = "bl.example"
deadline = "50ms"
nameservers = ["127.0.0.1:5353"]
cache-size = 10
min-ttl = 1
max-ttl = 2
max-pending = 3
scores = { "127.0.0.2" = 9, "127.0.0.4-127.0.0.7" = 8 }
test = false

[[source]]
name = "httpbl"
type = "dnsbl"
zone = "httpbl.example"
key = "secret"
octet = 3
best = 0
worst = 100
test = "127.1.10.1"
"""


def test_every_key_becomes_a_setting(read: Read, tmp_path: Path) -> None:
    assert read(FULL) == ReputationSettings(
        (
            SourceSettings(
                "list",
                "list",
                url="https://example.com/list",
                score=5,
                weight=0.5,
                category="spam",
                failed="closed",
                mode="observe",
                max_age=2 * 86400,
                feed=FeedSettings(
                    interval=120,
                    timeout=5,
                    max_size=1024**2,
                    max_shrink=10,
                    may_be_empty=True,
                    allow_html=True,
                    headers=(("Auth-Key", "hush"), ("X-Other", "from a file")),
                    tls=FeedTls(str(tmp_path / "ca.pem")),
                ),
                limits=ListLimits(MinPrefix(9, 19), 7),
            ),
            SourceSettings(
                "drop", "drop", str(tmp_path / "blocked.txt"), limits=ListLimits(MinPrefix(8, 16))
            ),
            SourceSettings(
                "csv",
                "csv",
                str(tmp_path / "abuse.csv"),
                scores=(("spam", 7),),
                columns=Columns(
                    "a", 2, "s", "c", 0, 10, ";", (("action", ("ban", "x")), (3, ("y",)))
                ),
            ),
            SourceSettings(
                "json",
                "json",
                str(tmp_path / "partners.txt"),
                select=("prefixes[].ip_prefix", "[]"),
            ),
            SourceSettings(
                "db",
                "mmdb",
                str(tmp_path / "GeoLite2-Country.mmdb"),
                scores=(("XX", 3),),
                database=DatabaseSettings("a.b", "country"),
            ),
            SourceSettings(
                "dns",
                "dnsbl",
                scores=(("127.0.0.2", 9), ("127.0.0.4-127.0.0.7", 8)),
                dnsbl=DnsblSettings(
                    "bl.example", 0.05, ("127.0.0.1:5353",), 10, 1, 2, 3, test=None
                ),
            ),
            SourceSettings(
                "httpbl",
                "dnsbl",
                dnsbl=DnsblSettings(
                    "httpbl.example",
                    key="secret",
                    octet=3,
                    best=0,
                    worst=100,
                    test="127.1.10.1",
                ),
            ),
        ),
        PolicySettings(("192.0.2.7",), True, "weighted", 50, ()),
        AnswerSettings(("ip_score", "ip_asn"), "txn"),
        ForwardedSettings("xff", ("10.0.0.0/8",), "forwarded"),
        BanSettings(str(tmp_path / "bans.db"), 86400, True, 56),
        ControlSettings(str(tmp_path / "socket"), 0o660, "root", "0"),
        str(tmp_path / "cache"),
        AuditSettings(str(tmp_path / "audit.log"), 20, 0.5),
    )


SECRETS = [
    ({"Auth Key": "hush"}, "headers: 'Auth Key' is not the name of a header"),
    ({"": "hush"}, "headers: '' is not the name of a header"),
    ({"A": ""}, "headers.A: its value is not 1 to 8192 visible characters"),
    ({"A": "hush\nB: c"}, "headers.A: its value is not 1 to 8192 visible characters"),
    ({"A": "hush\u00e4"}, "headers.A: its value is not 1 to 8192 visible characters"),
    ({"A": " hush"}, "headers.A: its value is not 1 to 8192 visible characters"),
    ({"A": "hush" * 2049}, "headers.A: its value is not 1 to 8192 visible characters"),
    ({"A": "@two"}, "headers.A: its value is not 1 to 8192 visible characters"),
    ({"A": "@large"}, "is larger than 16384 bytes"),
    ({"A": "@none"}, "none' cannot be read: No such file or directory"),
    ({"A": "@"}, "cannot be read: Is a directory"),
    ({"A": "hush", "a": "hush"}, "headers.a: it is there twice"),
    ({"Host": "hush"}, "headers.Host: it cannot be chosen"),
    ({"if-none-match": "hush"}, "headers.if-none-match: it cannot be chosen"),
]


@pytest.mark.parametrize(("headers", "error"), SECRETS)
def test_no_error_of_a_header_shows_its_value(
    read: Read, tmp_path: Path, headers: dict[str, str], error: str
) -> None:
    (tmp_path / "two").write_text("hush\nhush\n")
    (tmp_path / "large").write_text("hush" * 5000)
    table = ", ".join(f"{json.dumps(name)} = {json.dumps(text)}" for name, text in headers.items())
    with pytest.raises(ConfigurationError) as caught:
        read(f"cache = 'c'\n{FEED}headers = {{ {table} }}\n")
    assert error in str(caught.value)
    assert "source[1].headers" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_header_may_come_from_the_environment(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEED_KEY", "hush")
    [source] = read(f"cache = 'c'\n{FEED}headers = {{ Auth-Key = '${{FEED_KEY}}' }}\n").sources
    assert source.feed.headers == (("Auth-Key", "hush"),)


def test_a_url_with_a_user_and_a_header_that_says_another_is_refused(read: Read) -> None:
    text = FEED.replace("http://x", "http://me:hush@x")
    with pytest.raises(ConfigurationError, match="the url has a user, too; give one of them"):
        read(f"cache = 'c'\n{text}headers = {{ authorization = 'hush' }}\n")


def test_values_that_are_numbers_of_networks_may_have_letters(read: Read) -> None:
    text = """
        [[source]]
        name = "asn"
        type = "mmdb"
        path = "blocked.txt"
        scores = { AS15169 = 3, as64500 = 4, 64501 = 5 }
        """
    [source] = read(text + "provides = 'asn'\n").sources
    assert source.scores == (("15169", 3), ("64500", 4), ("64501", 5))
    [source] = read(text + "field = 'asn'\n").sources
    assert source.scores == (("AS15169", 3), ("as64500", 4), ("64501", 5))


LIST = '[[source]]\nname = "mine"\ntype = "list"\n'
FILE = f'{LIST}path = "blocked.txt"\n'
FEED = f"{LIST}url = 'http://x'\n"
CSV = f"{FILE}".replace('"list"', '"csv"')
JSON = f"{FILE}".replace('"list"', '"json"')
DNS = '[[source]]\nname = "dns"\ntype = "dnsbl"\nzone = "bl.example"\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a = \n", "line 1, column 5: Invalid value"),
        ("polcy = {}", "there is no key 'polcy'"),
        ("control = { is-default = true }", "control: there is no key 'is-default'"),
        (f"{FILE}feed = {{ timeout = 1 }}", "source[1]: there is no key 'feed' (the source"),
        (f"{FILE}columns = {{}}", "source[1]: there is no key 'columns' (the source"),
        (f"{FILE}scores = {{}}", "source[1]: there is no key 'scores' (the source"),
        (f"{CSV}columns = {{ best = 1 }}", "source[1].columns: there is no key 'best'"),
        (f"{CSV}columns = 1", "source[1].columns: Expected `table`, got `int`"),
        (f"{CSV}scores = {{ a = '1' }}", "source[1].scores[...]: Expected `int`, got `str`"),
        (f"{DNS}path = 'x'", "source[1]: there is no key 'path' (the source 'dns')"),
        ("policy = { unknown = 101 }", "policy.unknown: 101 is not in the range 0 to 100"),
        ("policy = { allow = ['::', 'x'] }", "policy.allow[2]: 'x' is not an address"),
        ("policy = { combine = 'sum' }", "policy.combine: 'sum' is not one of lowest, weighted"),
        ("answers = { variables = ['x'] }", "answers.variables: 'x' is not one of ip_score"),
        ("answers = { variables = [] }", "answers.variables: there is none"),
        ("answers = { scope = 'x' }", "answers.scope: 'x' is not one of proc, sess, txn"),
        ("forwarded = { argument = 'x' }", "forwarded.trusted: it is empty"),
        ("forwarded = { header = 'via' }", "forwarded.header: 'via' is not one of x-forwarded-for"),
        ("bans = { ipv6-prefix = 47 }", "bans.ipv6-prefix: 47 is not in the range 48 to 128"),
        ("policy = { nat64 = ['::/0'] }", "policy.nat64[1]: '::/0' is not an IPv6 network"),
        ("bans = { message = true }", "bans.message: there is no bans.path"),
        ("bans = { max-time = 0 }", "bans.max-time: 0.0 is not in the range 1 to"),
        ("bans = { path = '' }", "bans.path: '' is not a name"),
        ('cache = "a\\u0000b"', r"cache: 'a\x00b' is not a name"),
        ("audit = { threshold = 20 }", "audit.threshold: there is no audit.path to write to"),
        ("audit = { path = 'a', threshold = 102 }", "audit.threshold: 102 is not in the range"),
        ("audit = { path = 'a', sample = 101 }", "audit.sample: 101.0 is not in the range 0 to"),
        ("control = { path = true }", "control.path: true is neither a path nor false"),
        ("control = { group = '' }", "control.group: '' is not 1 to 255 printable"),
        ("control = { path = '' }", "control.path: '' is not a name"),
        ("[source]\nname = 'a'", "source: there may be several; write [[source]]"),
        ("control = { mode = '888' }", "control.mode: '888' is not a text such as"),
        (
            "[[source]]\nname = 'a'",
            "source[1]: it needs a type: list, drop, csv, json, mmdb, dnsbl",
        ),
        ("[[source]]\ntype = 'x'", "source[1].type: 'x' is not one of list, drop"),
        ("[[source]]\ntype = 'list'", "source[1]: the key 'name' is missing"),
        (LIST, "source[1].path: there must be either a path or a url (the source"),
        (f"{LIST}zone = 'x'", "source[1]: there is no key 'zone' (the source 'mine')"),
        (f"{LIST}path = ''", "source[1].path: '' is not a name"),
        (f"{FILE}min-prefix = 33", "source[1].min-prefix: 33 is not in the range 0 to 32"),
        (f"{FILE}min-prefix = -1", "source[1].min-prefix: -1 is not in the range 0 to 32"),
        (f"{FILE}min-prefix = {{ ipv4 = 33 }}", "min-prefix.ipv4: 33 is not in the range 0 to 32"),
        (f"{FILE}min-prefix = {{ ipv6 = 129 }}", "min-prefix.ipv6: 129 is not in the range 0 to"),
        (f"{FILE}min-prefix = {{ ipv5 = 1 }}", "source[1].min-prefix: there is no key 'ipv5'"),
        (f"{FILE}max-share = 101", "source[1].max-share: 101.0 is not in the range 0 to 100"),
        (f"{JSON}", "source[1]: the key 'select' is missing"),
        (f"{JSON}select = []", "source[1].select: it has 0 paths, not 1 to 100"),
        (f"{JSON}select = ['a', 'a[0]']", "source[1].select[2]: 'a[0]' is not a path of names"),
        (f"{CSV}filter = {{ action = [] }}", "source[1].filter.action: there is no value in it"),
        (f"{CSV}filter = {{ 0 = ['a'] }}", "source[1].columns: 0 is not in the range 1 to 1000"),
        (f"{CSV}filter = {{ '' = ['a'] }}", "source[1].columns: '' is not 1 to 255 printable"),
        (f"{LIST}url = 'ftp://x'", "source[1].url: 'ftp://x' is not an http:// or https:// URL"),
        (f"{LIST}url = 'http://me:pass/word@x/'", "url: 'http://***@x/' is not an http:// or"),
        (f"{LIST}url = 'https://x'\ntls = {{ ca-file = '' }}", "tls.ca-file: '' is not a name"),
        (f"{LIST}url = 'http://x'", "cache: source[1] has a url, and needs a folder"),
        (f"{FILE}score = 101", "source[1].score: 101 is not in the range 0 to 100 (the source"),
        (f"{FILE}interval = 1", "source[1].interval: 1.0 is not in the range 60.0 to"),
        (f"{FILE}failed = 'x'", "source[1].failed: 'x' is not one of open, closed"),
        (f"{FILE}failed = 'closed'\nallow = true", "cannot fail closed"),
        (f"{FILE}{FILE}", "source[2].name: 'mine' is that of source[1] too"),
        (
            f"cache = 'a'\n{FEED}{FEED.replace('mine', 'other')}max-shrink = 9",
            "source[2].url: it is that of source[1] too, which is downloaded once for both; give",
        ),
        (f"{DNS}zone2 = 1", "source[1]: there is no key 'zone2'"),
        (f"{DNS}nameservers = ['x']", "source[1].nameservers: 'x' is not an address"),
        (f"{DNS}nameservers = ['127.0.0.1:0']", "nameservers: '127.0.0.1:0' is not an address"),
        (f"{DNS}scores = {{ a = 1 }}", "source[1].scores: 'a' is not an address of 127.0.0.0/8"),
        (f"{DNS}scores = {{ '8.8.8.8' = 1 }}", "source[1].scores: '8.8.8.8' is not an address of"),
        (f"{DNS}scores = {{ a = 101 }}", "source[1].scores.a: 101 is not in the range"),
        (f"{DNS}scores = {{ '127.0.0.4/24' = 1 }}", "scores: '127.0.0.4/24' is not an address of"),
        (f"{DNS}scores = {{ '127.0.0.4-128.0.0.1' = 1 }}", "nor a range or network of them"),
        (f"{DNS}scores = {{ '::1' = 1 }}", "scores: '::1' is not an address of"),
        (f"{DNS}scores = {{ '127.0.0.1' = 1 }}", "scores: '127.0.0.1' is a DNSBL's refusal to"),
        (f"{DNS}scores = {{ '127.255.255.254' = 1 }}", "is a DNSBL's refusal to answer, never a"),
        (f"{DNS}octet = 1", "source[1].octet: 1 is not in the range 2 to 4"),
        (f"{DNS}octet = 3\nscores = {{ '127.0.0.2' = 1 }}", "source[1].octet: scores come from it"),
        (f"{DNS}octet = 3\nbest = 0", "source[1].best: 0.0 is worst too"),
        (f"{DNS}test = true", "source[1].test: true is neither an address nor false"),
        (f"{DNS}test = 'x'", "source[1].test: 'x' is not an address; give one that the zone"),
        (f"{DNS}test = ''", "source[1].test: '' is not an address"),
        (f"{DNS}test = '::ffff:127.0.0.1'", "test: '::ffff:127.0.0.1' is never listed"),
        (f"{DNS}key = ''", "source[1].key: it is not 1 to 63 letters, digits"),
        (f"{DNS}max-ttl = 1", "source[1].max-ttl: 1.0 is not in the range 60.0 to"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_reason(
    read: Read, text: str, error: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"iprep\.toml: ") as caught:
        read(text)
    assert error in str(caught.value)


@pytest.mark.parametrize("key", ["hush hush", "hush.hush", "-hush", "hush" * 16, "hush\n"])
def test_a_key_is_not_shown_by_its_error(read: Read, key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"source\[1\]\.key: ") as caught:
        read(f"{DNS}key = {json.dumps(key)}")
    assert "hush" not in str(caught.value)


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted(set(re.findall(r"^\s*([a-z-]+) = ", FULL, re.M)))
TYPES = st.sampled_from(["list", "drop", "csv", "json", "mmdb", "dnsbl"])


@given(TYPES, st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=4))
def test_no_value_of_any_key_raises_anything_else(kind: str, values: dict[str, Any]) -> None:
    table = {"name": "a", "type": kind, "zone" if kind == "dnsbl" else "url": "http://h"} | values
    with suppress(ConfigurationError):
        settings_of({"source": [table]} | values, Path("/none"))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f"{LIST}path = 'none'", "none' cannot be read: No such file or directory (the source"),
        (f"{LIST}path = '.'", "cannot be read: Is a directory (the source 'mine')"),
        (f"{FEED}tls = {{ ca-file = 'none' }}", "source[1].tls.ca-file: '"),
    ],
)
def test_files_of_sources_are_read_when_they_are_there(read: Read, text: str, error: str) -> None:
    """Neither the start nor a command is stopped by a list that is not there; a check says so."""
    settings = read(f"cache = 'a'\n{text}")
    with pytest.raises(ConfigurationError, match=r"^source\[1\]\.") as caught:
        check_files(settings)
    assert error in str(caught.value)


def test_files_that_can_be_read_pass_the_check(read: Read) -> None:
    check_files(read(FULL))


# The reference.


@pytest.mark.parametrize(
    "text", re.findall(r"^```toml\n(.*?)^```", REFERENCE.read_text(), re.M | re.S)
)
def test_the_examples_of_the_reference_are_right(
    read: Read, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPBL_KEY", "secret")
    assert read(text).sources


def keys_of(table: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the keys of a table, with those of the tables in it behind a dot."""
    keys = set()
    for key, value in table.items():
        if key == "source":
            keys |= set().union(*(keys_of(source) for source in value))
        elif isinstance(value, dict) and key not in ("scores", "headers", "filter"):
            keys |= keys_of(value, f"{prefix}{key}.")
        else:
            keys.add(f"{prefix}{key}")
    return keys


def test_the_reference_has_every_key() -> None:
    described = set(re.findall(r"^\| `([a-z0-9.-]+)` \|", REFERENCE.read_text(), re.M))
    assert described == keys_of(tomllib.loads(FULL))

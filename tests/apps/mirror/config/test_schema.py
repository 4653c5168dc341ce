from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from spoakit.apps.mirror.config.schema import (
    HeaderSettings,
    LogSettings,
    MatchSettings,
    MirrorSettings,
    PathSettings,
    QueueSettings,
    TargetSettings,
    Timeouts,
    TlsSettings,
)
from spoakit.apps.mirror.url import TargetURL
from spoakit.exceptions import ConfigurationError

URL = TargetURL.parse("http://h")
target = partial(TargetSettings, URL)


def test_the_defaults_bound_everything() -> None:
    settings = TargetSettings(URL)
    assert settings.queue == QueueSettings(65_536, 32 * 1024 * 1024, "drop-oldest", 0)
    assert (settings.rate, settings.interface, settings.local_ports) == (None, None, None)
    assert (settings.connections, settings.keep_alive, settings.lifetime) == (64, 60, 300)
    assert settings.timeouts == Timeouts(5, 10, 10, 0.1, 10)


def test_the_defaults_change_nothing_and_verify_certificates() -> None:
    assert target() == target(host="keep", marker=None, truncated="skip", sample=100)
    assert target().headers == HeaderSettings((), (), (), "keep")
    assert target().path == PathSettings("", None, "", "")
    assert target().match == MatchSettings((), None, (), ())
    assert target().tls.verify


@pytest.mark.parametrize(
    ("kind", "option", "attribute", "low", "high"),
    [
        (QueueSettings, "queue.length", "length", 1, 10_000_000),
        (QueueSettings, "queue.bytes", "bytes", 1024, 16 * 1024**3),
        (target, "rate", "rate", 0.001, 10_000_000),
        (target, "connections", "connections", 1, 10_000),
        (target, "keep-alive", "keep_alive", 0.001, 86400),
        (target, "lifetime", "lifetime", 0.001, 86400),
        (Timeouts, "timeouts.connect", "connect", 0.001, 86400),
        (Timeouts, "timeouts.first-byte", "first_byte", 0.001, 86400),
        (Timeouts, "timeouts.total", "total", 0.001, 86400),
        (MirrorSettings, "drain", "drain", 0, 86400),
        (MirrorSettings, "processing-delay", "processing_delay", 0, 1),
        (target, "sample", "sample", 0, 100),
        (LogSettings, "log.sample", "sample", 0, 100),
    ],
)
def test_a_number_out_of_its_range_is_named_with_the_range(
    kind: Callable[..., Any], option: str, attribute: str, low: float, high: float
) -> None:
    kind(**{attribute: low})
    kind(**{attribute: high})
    for wrong in (low - 1, high + 1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError) as caught:
            kind(**{attribute: wrong})
        assert str(caught.value) == f"{option}: {wrong!r} is not in the range {low} to {high}"


def test_the_backoff_has_its_range_too_and_grows() -> None:
    with pytest.raises(ConfigurationError, match=r"^timeouts.min-backoff: 0 is not in the range"):
        Timeouts(min_backoff=0)
    with pytest.raises(ConfigurationError, match=r"^timeouts.max-backoff: 86401 is not in the "):
        Timeouts(max_backoff=86401)
    with pytest.raises(
        ConfigurationError, match=r"min-backoff: 2 is above timeouts.max-backoff, 1"
    ):
        Timeouts(min_backoff=2, max_backoff=1)


@pytest.mark.parametrize("kind", [target, LogSettings])
def test_the_smallest_sample_is_one_in_a_hundred_thousand(kind: Callable[..., Any]) -> None:
    kind(sample=0.001)
    with pytest.raises(ConfigurationError, match=r"0.0009 is neither 0 nor at least 0.001 percent"):
        kind(sample=0.0009)


@pytest.mark.parametrize("text", ["", "src", "key", "cookie:session", "header:X-User"])
def test_a_sample_is_made_coherent_by_what_is_known(text: str) -> None:
    assert target(sample_by=text).sample_by == text


WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (target, {"sample_by": "ip"}, "sample-by: 'ip' is not one of src, key, cookie:NAME"),
    (target, {"sample_by": "cookie"}, "sample-by: 'cookie' is not one of"),
    (target, {"sample_by": "src:x"}, "sample-by: 'src:x' is not one of"),
    (target, {"sample_by": "cookie:"}, "sample-by: '' is not a token"),
    (target, {"sample_by": "header:a b"}, "sample-by: 'a b' is not a token"),
    (MatchSettings, {"methods": ("GET", "G T")}, "match.methods: 'G T' is not a token"),
    (MatchSettings, {"methods": ("",)}, "match.methods: '' is not a token"),
    (MatchSettings, {"path": "("}, "match.path: '(' is not a regular expression"),
    (MatchSettings, {"path": r"(?=a)"}, "match.path: '(?=a)' is not a regular expression of RE2"),
    (MatchSettings, {"host": ("a:80",)}, "match.host: 'a:80' is not a host name"),
    (MatchSettings, {"host": ("*",)}, "match.host: '*' is not a host name"),
    (MatchSettings, {"host": ("a.*.b",)}, "match.host: 'a.*.b' is not a host name"),
    (MatchSettings, {"header": (("a:", "x"),)}, "match.header: 'a:' is not a token"),
    (MatchSettings, {"header": (("a", "["),)}, "match.header.a: '[' is not a regular expression"),
    (target, {"host": ""}, "host: '' is not a host name"),
    (target, {"host": "a b"}, "host: 'a b' is not a host name"),
    (target, {"host": "a\r\nb"}, r"host: 'a\r\nb' is not a host name"),
    (target, {"host": "a:0"}, "host: 'a:0' is not a host name"),
    (target, {"host": "a:65536"}, "a port of 1 to 65535"),
    (HeaderSettings, {"remove": ("a b",)}, "headers.remove: 'a b' is not a token"),
    (HeaderSettings, {"remove": ("Host",)}, "headers.remove: 'Host' cannot be left out"),
    (HeaderSettings, {"remove": ("content-length",)}, "'content-length' cannot be left out"),
    (
        HeaderSettings,
        {"set": (("a", "b\r\nc: d"),)},
        "headers.set: the value of 'a' has a CR",
    ),
    (HeaderSettings, {"set": (("a", "b\0"),)}, "NUL"),
    (HeaderSettings, {"set": (("a", " b"),)}, "has white space at an end"),
    (HeaderSettings, {"set": (("a", "1"), ("A", "2"))}, "headers.set: 'A' is there twice"),
    (HeaderSettings, {"set": (("", "b"),)}, "headers.set: '' is not a token"),
    (
        HeaderSettings,
        {"add": (("Content-Length", "5"),)},
        "headers.add: 'Content-Length' is the mirror's",
    ),
    (
        HeaderSettings,
        {"add": (("Transfer-Encoding", "x"),)},
        "'Transfer-Encoding' is the mirror's own",
    ),
    (HeaderSettings, {"add": (("Host", "x"),)}, "headers.add: 'Host' is set by the option host"),
    (target, {"marker": ("X Y", "1")}, "marker: 'X Y' is not a token"),
    (target, {"marker": ("Connection", "1")}, "marker: 'Connection' is the mirror's own"),
    (PathSettings, {"pattern": "*"}, "path.pattern: '*' is not a regular expression"),
    (PathSettings, {"pattern": "a", "replace": r"\1"}, "path.replace: "),
    (PathSettings, {"replace": "/a"}, "path.replace: there is no path.pattern"),
    (PathSettings, {"strip_prefix": "api"}, "path.strip-prefix: 'api' is not a path"),
    (PathSettings, {"add_prefix": "/a?b"}, "path.add-prefix: '/a?b' is not a path"),
    (PathSettings, {"add_prefix": "/a b"}, "path.add-prefix: '/a b' is not a path"),
    (target, {"truncated": "drop"}, "truncated: 'drop' is not one of skip, send, mark"),
    (
        target,
        {"truncated_suspect": "mark"},
        "truncated-suspect: 'mark' is not one of send, skip",
    ),
    (target, {"body": "None"}, "body: 'None' is not one of keep, none"),
    (target, {"max_body": -1}, "max-body: -1 is not in the range 0 to 17179869184"),
    (target, {"max_body": 2**34 + 1}, "max-body: 17179869185 is not in the range 0 to"),
    (
        QueueSettings,
        {"overflow": "x"},
        "queue.overflow: 'x' is not one of drop-oldest, drop-newest",
    ),
    (target, {"interface": ""}, "interface: '' is not 1 to 255 printable characters"),
    (target, {"interface": "a\n"}, "interface: 'a\\n' is not 1 to 255 printable"),
    (target, {"local_ports": (0, 5)}, "local-ports: 0-5 is not a range of ports from 1 to"),
    (target, {"local_ports": (6, 5)}, "local-ports: 6-5 is not a range of ports"),
    (target, {"local_ports": (5, 65536)}, "local-ports: 5-65536 is not a range of ports"),
    (TlsSettings, {"key": "k"}, "tls.key: there is no tls.certificate that it is for"),
    (TlsSettings, {"ca_file": ""}, "tls.ca-file: '' is not a file's name"),
    (TlsSettings, {"certificate": "a\0"}, "tls.certificate: 'a\\x00' is not a file's name"),
    (TlsSettings, {"server_name": "a b"}, "tls.server-name: 'a b' is not a host name"),
    (TlsSettings, {"server_name": "a..b"}, "tls.server-name: 'a..b' is not a host name"),
    (TlsSettings, {"server_name": ".a"}, "tls.server-name: '.a' is not a host name"),
    (TlsSettings, {"server_name": f"{'a' * 64}.b"}, "is not a host name"),
    (TlsSettings, {"server_name": ".".join("a" * 128)}, "is not a host name"),
    (TlsSettings, {"server_name": "[::1]"}, "an address without brackets"),
    (TlsSettings, {"server_name": "::x"}, "is not a host name"),
    (MatchSettings, {"host": ("a..b",)}, "match.host: 'a..b' is not a host name"),
    (MatchSettings, {"host": ("::1",)}, "match.host: '::1' is not a host name"),
    (MatchSettings, {"host": ("[::1",)}, "is not a host name"),
    (MatchSettings, {"host": ("[a]",)}, "is not a host name"),
    (LogSettings, {"format": "xml"}, "log.format: 'xml' is not one of text, json"),
    (target, {"http": "3"}, "http: '3' is not one of auto, 1.1, 2"),
    (target, {"name": "a\nb"}, "name: 'a\\nb' is not 1 to 255 printable"),
    (target, {"name": "a" * 256}, "is not 1 to 255 printable"),
]


@pytest.mark.parametrize(("kind", "values", "error"), WRONG)
def test_what_cannot_be_is_refused_with_its_option_and_value(
    kind: Callable[..., Any], values: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind(**values)
    assert error in str(caught.value)


def test_names_that_know_no_case_are_made_lower_case() -> None:
    selection = MatchSettings(host=("*.Example.COM", "[2001:DB8::1]"), header=(("X-A", "B"),))
    assert selection.host == ("*.example.com", "[2001:db8::1]")
    assert selection.header == (("x-a", "B"),)


def test_prefixes_lose_the_slashes_at_their_ends() -> None:
    rewrite = PathSettings(strip_prefix="/api/", add_prefix="/")
    assert (rewrite.strip_prefix, rewrite.add_prefix) == ("/api", "")


def test_what_a_copy_may_be_told_is_taken() -> None:
    target(host="[2001:db8::1]:8080", marker=("X-Mirrored", "1"))
    HeaderSettings(
        remove=("Upgrade",),
        set=(("X-A", ""), ("X-B", "caf\u00e9 \tx")),
        add=(("Via", "1.1 mirror"), ("Via", "1.1 other")),
    )
    PathSettings(pattern=r"^/(v\d)/", replace=r"/\1/")


def test_there_are_no_more_connections_than_ports_to_connect_from() -> None:
    assert target(local_ports=(20000, 20007)).connections == 8
    assert target(connections=4, local_ports=(20000, 20007)).connections == 4


@pytest.mark.parametrize("name", ["a", "a_b.example.", "192.0.2.1", "2001:db8::1", "a" * 63])
def test_names_and_addresses_are_asked_for_and_verified(name: str) -> None:
    assert TlsSettings(server_name=name).server_name == name


def test_a_target_is_named_after_its_url_unless_it_has_a_name() -> None:
    assert TargetSettings(URL).name == "http://h/"
    assert TargetSettings(URL, name="staging").name == "staging"
    assert TargetSettings(TargetURL.parse(f"http://h/{'a' * 300}")).name.endswith("aaa/")


def test_two_targets_of_one_name_are_refused() -> None:
    first, other = TargetSettings(URL), TargetSettings(URL, name="other")
    MirrorSettings((first, other))
    with pytest.raises(ConfigurationError) as caught:
        MirrorSettings((first, other, TargetSettings(URL)))
    assert str(caught.value) == (
        "target[3].name: 'http://h/' is that of target[1] too; give each a name of its own"
    )


def test_there_are_a_hundred_targets_at_most() -> None:
    targets = tuple(TargetSettings(URL, name=str(number)) for number in range(101))
    MirrorSettings(targets[:100])
    with pytest.raises(ConfigurationError, match="target: there are 101, more than 100"):
        MirrorSettings(targets)


@pytest.mark.parametrize(
    "kind",
    [
        MatchSettings,
        HeaderSettings,
        PathSettings,
        QueueSettings,
        Timeouts,
        TlsSettings,
        TargetSettings,
        LogSettings,
        MirrorSettings,
    ],
)
def test_every_attribute_is_documented(kind: Any) -> None:
    for name in kind.__struct_fields__:
        assert f"        {name}: " in kind.__doc__.partition("Attributes:")[2], name

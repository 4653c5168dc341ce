import pytest

from spoakit.agent.headers import Headers
from spoakit.apps.mirror._request_cy import IncomingRequest, RequestBuilder
from spoakit.apps.mirror.config.settings import Rewrite
from spoakit.apps.mirror.url import TargetURL
from spoakit.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://localhost:8100/", TargetURL("http", "localhost", 8100, "localhost:8100")),
        ("http://localhost", TargetURL("http", "localhost", 80, "localhost")),
        (
            "https://EXAMPLE.org/a/b//",
            TargetURL("https", "example.org", 443, "EXAMPLE.org", "/a/b"),
        ),
        ("http://a_b.example.", TargetURL("http", "a_b.example.", 80, "a_b.example.")),
        ("HTTP://[2001:db8::1]:81", TargetURL("http", "2001:db8::1", 81, "[2001:db8::1]:81")),
    ],
)
def test_a_url_is_read(text: str, expected: TargetURL) -> None:
    assert TargetURL.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not start with http"),
        ("foo", "does not start with http"),
        ("ftp://x/", "does not start with http"),
        ("http://", "names no host"),
        ("http:///a", "names no host"),
        ("http://:80/", "names no host"),
        ("http://a..b/", "'a..b' is not a host name or address"),
        ("http://a<b/", "is not a host name"),
        (f"http://{'a' * 64}/", "is not a host name"),
        ("http://h:0/", "port is not 1 to 65535"),
        ("http://h:65536/", "out of range"),
        ("http://h:x/", "Port could not be cast"),
        ("http://[::1/", "Invalid IPv6"),
        ("http://user:pw@h/", "user and password"),
        ("http://h/?", "query and fragment"),
        ("http://h/#a", "query and fragment"),
        ("http://h/a b", "percent-encoded"),
        ("http://h/a\r\nb", "percent-encoded"),
        ("http://h/caf\u00e9", "percent-encoded"),
    ],
)
def test_what_is_no_url_of_a_target_is_named_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match="invalid mirror URL") as caught:
        TargetURL.parse(text)
    assert repr(text) in str(caught.value)
    assert reason in str(caught.value)


def test_a_url_is_shown_as_it_was_given() -> None:
    url = TargetURL.parse("http://h:80/a")
    assert url.origin == "http://h:80"
    assert str(url) == "http://h:80/a/"


@pytest.mark.parametrize(
    ("path", "base_path"),
    [
        ("", ""),
        ("/", ""),
        ("//", ""),
        ("/a", "/a"),
        ("/a/", "/a"),
        ("/a//", "/a"),
        ("//a", "/a"),
        ("/a/b/", "/a/b"),
        ("/a//b/", "/a//b"),
        ("/a%2F/", "/a%2F"),
    ],
)
def test_a_base_path_goes_in_front_once_whatever_the_slashes(path: str, base_path: str) -> None:
    url = TargetURL.parse(f"http://h{path}")
    assert url.base_path == base_path
    request = RequestBuilder(url, Rewrite()).build(
        IncomingRequest(b"GET", b"/x?y", b"1.1", Headers(b"", False))
    )
    assert request.target == f"{base_path}/x?y".encode()

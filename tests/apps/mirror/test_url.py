from base64 import b64encode
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.agent.headers import Headers
from spoakit.apps.mirror._request_builder_cy import RequestBuilder
from spoakit.apps.mirror._request_cy import IncomingRequest
from spoakit.apps.mirror.config.schema import HeaderSettings, MirrorSettings, TargetSettings
from spoakit.apps.mirror.http.http2_head import parse_head
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
        ("http://", "has no host"),
        ("http:///a", "has no host"),
        ("http://:80/", "has no host"),
        ("http://a..b/", "its host is not a host name or address"),
        ("http://a<b/", "is not a host name"),
        (f"http://{'a' * 64}/", "is not a host name"),
        ("http://h:0/", "port is not 1 to 65535"),
        ("http://h:65536/", "its port (1 to 65535) is malformed"),
        ("http://h:x/", "its port (1 to 65535) is malformed"),
        ("http://[::1/", "its host or its port"),
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


@pytest.mark.parametrize(
    ("userinfo", "pair"),
    [
        ("me:secret", "me:secret"),
        ("me", "me:"),
        ("me:", "me:"),
        (":secret", ":secret"),
        ("me:se:cret", "me:se:cret"),
        ("me:se@cret", "me:se@cret"),
        ("m%40e:se%2Fc%3Aret%25", "m@e:se/c:ret%"),
        ("m%C3%A4:%E2%82%AC", "m\u00e4:\u20ac"),
    ],
)
def test_user_and_password_are_an_authorization_and_not_shown(userinfo: str, pair: str) -> None:
    url = TargetURL.parse(f"https://{userinfo}@h:81/base")
    assert url.authorization == f"Basic {b64encode(pair.encode()).decode()}"
    assert (url.host, url.port, url.authority, url.base_path) == ("h", 81, "h:81", "/base")
    settings = TargetSettings(url)
    assert settings.name == str(url) == "https://h:81/base/"
    assert url.origin == "https://h:81"
    for shown in (repr(url), str(url), repr(settings), repr(MirrorSettings((settings,)))):
        assert f"{userinfo}@" not in shown
        assert "se:cret" not in shown
        assert url.authorization not in shown
        assert b64encode(pair.encode()).decode() not in shown


def test_urls_of_other_passwords_are_others() -> None:
    assert TargetURL.parse("http://a:b@h") != TargetURL.parse("http://a:c@h")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://secret%3A:secret@h/", "its user has a colon"),
        ("http://secret%0A:secret@h/", "control character"),
        ("http://me:secret%C2%85@h/", "control character"),
        ("http://me:secret%FF@h/", "not UTF-8"),
        ("http://@h/", "user and password are empty"),
        ("http://:@h/", "user and password are empty"),
        ("http://me:secret/secret@h/", "its host or its port"),
        ("http://me:secret#secret@h/", "its host or its port"),
        ("http://me:secret?secret@h/", "its host or its port"),
        ("http://secret<#secret@h/", "its host is not a host name"),
        ("http://me:secret[@h/", "its host or its port"),
        ("http://me:[secret]@h/", ""),
        ("http://me:secret@h:secret@x:y/", "its host or its port"),
        ("http://me:secret@/", "has no host"),
        ("http://me:secret@h/?a", "query and fragment"),
        ("http://me:secret @h/", "percent-encoded"),
        ("http://me:secret\n@h/", "percent-encoded"),
        ("http://me:secret\u00e9@h/", "percent-encoded"),
        ("me:secret@h", "does not start with http"),
        ("ftp://me:secret@h", "does not start with http"),
        ("http:/me:secret@h", "has no host"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_its_secrets(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TargetURL.parse(text)
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_password_is_ever_shown(user: str, password: str) -> None:
    secret = f"#{password}#"  # in a form that no other part of a text has
    text = f"http://{quote(user, safe='')}:{secret}@h:1"
    for url in (text, f"http://{quote(user, safe='')}:{quote(secret, safe='')}@h:1"):
        try:
            shown = repr(TargetURL.parse(url)) + str(TargetURL.parse(url))
        except ConfigurationError as error:
            shown = str(error)
        assert secret not in shown
        assert repr(secret)[1:-1] not in shown
        assert quote(secret, safe="") not in shown


FIELDS = b"Host: h\r\nauthorization: Bearer original\r\nX: 1\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [HeaderSettings(), HeaderSettings(secrets="strip"), HeaderSettings(remove=("authorization",))],
)
@pytest.mark.parametrize("version", [b"1.1", b"2.0"])
def test_the_urls_authorization_replaces_the_originals(
    version: bytes, headers: HeaderSettings
) -> None:
    url = TargetURL.parse("http://me:secret@target:81")
    builder = RequestBuilder(TargetSettings(url, headers=headers, host="target"))
    original = IncomingRequest(b"GET", b"/", version, Headers(FIELDS, False))
    request = builder.build(original)
    assert request.wire == (
        b"GET / HTTP/1.1\r\nHost: target:81\r\nX: 1\r\nAuthorization: Basic bWU6c2VjcmV0\r\n\r\n"
    )
    fields = parse_head(request, b"http")
    assert (b":authority", b"target:81") in fields
    assert fields[-1] == (b"authorization", b"Basic bWU6c2VjcmV0")
    assert builder.build(IncomingRequest(b"GET", b"/", version, Headers(b"", False))).wire == (
        b"GET / HTTP/1.1\r\nhost: target:81\r\nAuthorization: Basic bWU6c2VjcmV0\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        (
            {"headers": HeaderSettings(set=(("AUTHORIZATION", "x"),))},
            "headers.set: 'AUTHORIZATION'",
        ),
        (
            {"headers": HeaderSettings(add=(("Authorization", "x"),))},
            "headers.add: 'Authorization'",
        ),
        ({"marker": ("authorization", "x")}, "marker: 'authorization'"),
    ],
)
def test_two_authorizations_are_refused(settings: dict[str, Any], option: str) -> None:
    assert TargetSettings(TargetURL.parse("http://h"), **settings)
    with pytest.raises(ConfigurationError, match=f"^{option} is what the user and password of url"):
        TargetSettings(TargetURL.parse("http://me@h"), **settings)


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
    request = RequestBuilder(TargetSettings(url)).build(
        IncomingRequest(b"GET", b"/x?y", b"1.1", Headers(b"", False))
    )
    assert request.target == f"{base_path}/x?y".encode()

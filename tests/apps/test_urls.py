import pytest

from spoakit.apps.urls import shown_text, shown_url, without_user, without_users


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.com/list@1.txt", "https://example.com/list@1.txt"),
        ("https://me:secret@example.com:81/list", "https://***@example.com:81/list"),
        ("https://secret@example.com", "https://***@example.com"),
        ("https://example.com/list?key=secret&a=b", "https://example.com/list?***"),
        ("http://me:se@cret@example.com/?a=//b@c", "http://***@example.com/?***"),
        ("", ""),
    ],
)
def test_secrets_are_not_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://me:se/cret@host:x/",
        "//secret@",
        "http://me:se?cret@h",
        "ftp://me:secret@h?a",
        "me:secret@h",
        "http:/me:secret@h",
        "http://me:se\ncret@h\nsecret@h",
        "http://h?a=\nsecret",
    ],
)
def test_nor_are_they_of_what_is_no_url(text: str) -> None:
    shown = shown_text(text)
    assert "se" not in shown
    assert "cret" not in shown


def test_users_are_not_shown_in_a_text_with_urls() -> None:
    text = "unrecognized arguments: http://me:secret@h/ and me@h, --x=https://me:s@cret@h"
    assert without_users(text) == (
        "unrecognized arguments: http://***@h/ and me@h, --x=https://***@h"
    )


@pytest.mark.parametrize(
    ("url", "without", "authorization"),
    [
        ("https://h:1/a?b", "https://h:1/a?b", None),
        ("https://me:pass@h:1/a?b", "https://h:1/a?b", "Basic bWU6cGFzcw=="),
        ("http://me@[::1]/", "http://[::1]/", "Basic bWU6"),
        ("http://me:p%40@h/", "http://h/", "Basic bWU6cEA="),
        ("http://me:p@@h/", "http://h/", "Basic bWU6cEA="),
    ],
)
def test_users_become_a_header(url: str, without: str, authorization: str | None) -> None:
    assert without_user(url) == (without, authorization)

import gzip
import os
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest

from spoakit.apps.iprep.config.sources import (
    DatabaseSettings,
    FeedSettings,
    FeedTls,
    SourceSettings,
)
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources import files
from spoakit.apps.iprep.sources.feeds import Feed, Outcome
from spoakit.apps.iprep.sources.lists import Columns, PlainReader
from tests.support.certificates import Pem, make_authority, make_certificate
from tests.support.iprep_sources import write_database
from tests.support.web_server import LIST, Page, web_server

pytestmark = pytest.mark.slow


@pytest.fixture
def page() -> Iterator[Page]:
    with web_server() as page:
        yield page


@pytest.fixture
def authority(tmp_path: Path) -> Pem:
    return make_authority(tmp_path)


@pytest.fixture
def secure(tmp_path: Path, authority: Pem) -> Iterator[Page]:
    """Serve a page over HTTPS."""
    with web_server(make_certificate(tmp_path, "server", authority)) as page:
        yield page


def count(path: Path) -> int:
    with open(path, "rb") as file:
        return len(PlainReader().read(file))


def feed_of(page: Page, folder: Path, **settings: Any) -> Feed:
    return Feed(page.url, FeedSettings(**settings), folder / "feeds", count)


def make_due(feed: Feed) -> None:
    path = feed.path.with_suffix(".json")
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(feed.state(), due=0)))


def refused(feed: Feed, reason: str) -> None:
    """Hold that a feed is refused for a reason, and that its copy stays."""
    before = feed.path.read_bytes() if feed.path.exists() else None
    with pytest.raises(SourceError, match=reason) as caught:
        feed.fetch()
    assert (feed.path.read_bytes() if feed.path.exists() else None) == before
    assert feed.state().error == str(caught.value)
    assert not list(feed.path.parent.glob("*.new"))


def test_a_feed_is_downloaded_and_kept(page: Page, tmp_path: Path) -> None:
    feed = feed_of(page, tmp_path)
    assert feed.fetch() is Outcome.NEW
    assert feed.path.read_bytes() == LIST
    again = feed_of(page, tmp_path)
    assert again.state().entries == 100
    assert again.path.read_bytes() == LIST


def test_what_has_not_changed_is_not_sent_again(page: Page, tmp_path: Path) -> None:
    page.headers = {"ETag": '"1"', "Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}
    feed = feed_of(page, tmp_path)
    feed.fetch()
    checked = feed.state().checked
    make_due(feed)
    assert feed.fetch() is Outcome.UNCHANGED
    assert page.asked[1]["If-None-Match"] == '"1"'
    assert page.asked[1]["If-Modified-Since"] == "Sat, 01 Jan 2022 00:00:00 GMT"
    assert feed.state().checked > checked
    make_due(feed)
    page.headers = {"ETag": '"2"'}
    assert feed.fetch() is Outcome.NEW


def test_a_copy_that_was_removed_is_downloaded_anew(page: Page, tmp_path: Path) -> None:
    page.headers = {"ETag": '"1"'}
    feed = feed_of(page, tmp_path)
    feed.fetch()
    feed.path.unlink()
    make_due(feed)
    assert feed.fetch() is Outcome.NEW


def test_nothing_is_asked_for_before_it_is_due_and_chance_puts_it_off(
    page: Page, tmp_path: Path
) -> None:
    feed = feed_of(page, tmp_path, interval=1000)
    start = time.time()
    feed.fetch()
    assert feed_of(page, tmp_path).fetch() is Outcome.NOT_DUE
    assert len(page.asked) == 1
    assert start + 1000 <= feed.state().due <= time.time() + 1100


def test_a_failure_is_not_repeated_at_once(page: Page, tmp_path: Path) -> None:
    page.status = 503
    feed = feed_of(page, tmp_path)
    refused(feed, "the server answered 503 Service Unavailable")
    assert feed.fetch() is Outcome.NOT_DUE
    assert feed.state().due > time.time() + 50


def test_processes_do_not_download_at_the_same_time(page: Page, tmp_path: Path) -> None:
    page.pause = 0.2
    outcomes: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(feed_of(page, tmp_path).fetch()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(page.asked) == 1
    assert outcomes.count(Outcome.NEW) == 1
    assert set(outcomes) <= {Outcome.NEW, Outcome.BUSY, Outcome.NOT_DUE}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"\xef\xbb\xbf\n <!DOCTYPE html>\n192.0.2.1\n", {}),
        (gzip.compress(b"<html>\n192.0.2.1\n", mtime=0), {}),
        (LIST, {"Content-Type": "text/html; charset=utf-8"}),
    ],
)
def test_html_is_refused(page: Page, tmp_path: Path, body: bytes, headers: dict[str, str]) -> None:
    feed = feed_of(page, tmp_path)
    feed.fetch()
    make_due(feed)
    page.body, page.headers = body, headers
    refused(feed, "the server answered with a page of HTML")


def test_what_is_cut_off_is_refused(page: Page, tmp_path: Path) -> None:
    page.size = 5000
    refused(feed_of(page, tmp_path), "it is cut off: 1000 of 5000 bytes came")


def test_gzip_that_is_cut_off_is_refused(page: Page, tmp_path: Path) -> None:
    page.body = gzip.compress(os.urandom(1000).hex().encode())[:-5]
    refused(feed_of(page, tmp_path), "it is cut off: its gzip has no end")


def test_what_is_too_large_is_refused(page: Page, tmp_path: Path) -> None:
    page.body = LIST * 10
    refused(feed_of(page, tmp_path, max_size=5000), "it is larger than 5000 bytes")


def test_what_shrinks_by_more_than_the_limit_is_refused(page: Page, tmp_path: Path) -> None:
    feed = feed_of(page, tmp_path, max_shrink=20)
    feed.fetch()
    make_due(feed)
    page.body = b"192.0.2.1\n" * 79
    refused(feed, "it shrank from 100 entries to 79, by more than 20 percent")
    make_due(feed)
    page.body = b"192.0.2.1\n" * 80
    assert feed.fetch() is Outcome.NEW


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it has no entries; may-be-empty = true takes it"),
        (b"# none today\n", "it has no entries; may-be-empty = true takes it"),
        (b"x\n", "none of its 1 lines"),
    ],
)
def test_what_has_no_entries_is_refused(
    page: Page, tmp_path: Path, body: bytes, reason: str
) -> None:
    page.body = body
    refused(feed_of(page, tmp_path), reason)


def test_a_server_that_drips_is_given_up(page: Page, tmp_path: Path) -> None:
    page.body, page.pause = LIST * 100, 0.05
    refused(feed_of(page, tmp_path, timeout=0.2), r"it took longer than 0\.2 s \(timeout\)")


def test_a_server_that_hangs_is_given_up(page: Page, tmp_path: Path) -> None:
    page.pause = 1
    refused(feed_of(page, tmp_path, timeout=0.1), r"it took longer than 0\.1 s \(timeout\)")


def test_a_server_whose_headers_trickle_is_given_up(page: Page, tmp_path: Path) -> None:
    page.trickles = True
    refused(feed_of(page, tmp_path, timeout=0.3), r"it took longer than 0\.3 s \(timeout\)")


def test_a_server_that_is_not_there_is_named_with_the_reason(tmp_path: Path) -> None:
    feed = Feed("http://127.0.0.1:1/", FeedSettings(), tmp_path, count)
    refused(feed, "it cannot be downloaded: .*refused")


def test_a_redirection_leads_to_http_only(page: Page, tmp_path: Path) -> None:
    page.status, page.headers = 302, {"Location": "file:///etc/passwd"}
    refused(feed_of(page, tmp_path), "the server answered 302")


def test_a_state_that_is_damaged_is_none(page: Page, tmp_path: Path) -> None:
    feed = feed_of(page, tmp_path)
    feed.fetch()
    feed.path.with_suffix(".json").write_bytes(b"{")
    assert feed.fetch() is Outcome.NEW


def test_a_copy_that_vanished_is_due_at_once_but_not_where_the_server_fails(
    page: Page, tmp_path: Path
) -> None:
    feed = feed_of(page, tmp_path)
    feed.fetch()
    feed.path.unlink()
    page.status = 503
    refused(feed, "503")
    assert feed.fetch() is Outcome.NOT_DUE


def test_an_interval_that_was_made_shorter_holds_at_once(page: Page, tmp_path: Path) -> None:
    feed_of(page, tmp_path, interval=86_400).fetch()
    assert feed_of(page, tmp_path, interval=86_400).fetch() is Outcome.NOT_DUE
    assert feed_of(page, tmp_path, interval=3600).fetch() is Outcome.NEW


def test_a_feed_comes_over_https_from_whom_the_authority_vouches_for(
    secure: Page, authority: Pem, tmp_path: Path
) -> None:
    feed = feed_of(secure, tmp_path, tls=FeedTls(str(authority.certificate)))
    assert feed.fetch() is Outcome.NEW
    assert feed.path.read_bytes() == LIST


UNKNOWN = (
    "it cannot be downloaded: the server's certificate does not verify: .*certificate.*"
    r"\(tls\.ca-file names whom to trust"
)


def test_a_certificate_that_does_not_verify_is_refused(
    secure: Page, authority: Pem, tmp_path: Path
) -> None:
    refused(feed_of(secure, tmp_path), UNKNOWN)
    other = make_authority(tmp_path, "other")
    secure.url += "?other"
    refused(feed_of(secure, tmp_path, tls=FeedTls(str(other.certificate))), UNKNOWN)
    assert not secure.asked


def test_a_certificate_for_somebody_else_is_refused(authority: Pem, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other", authority, "DNS:lists.example")
    with web_server(other) as secure:
        feed = feed_of(secure, tmp_path, tls=FeedTls(str(authority.certificate)))
        refused(feed, "does not verify: .*not valid for '127.0.0.1'")
    assert not secure.asked


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_authorities_that_cannot_be_read_are_named(
    secure: Page, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    refused(feed_of(secure, tmp_path, tls=FeedTls(str(path))), r"tls\.ca-file: '.*/ca\.pem': ")


def test_a_redirection_does_not_lead_from_https_to_http(
    secure: Page, page: Page, authority: Pem, tmp_path: Path
) -> None:
    secure.status, secure.headers = 302, {"Location": page.url}
    feed = feed_of(secure, tmp_path, tls=FeedTls(str(authority.certificate)))
    refused(feed, "the server redirects from https:// to a URL that is not")
    assert not page.asked


def test_a_user_and_a_password_are_sent_but_not_to_whom_one_is_redirected_to(
    page: Page, tmp_path: Path
) -> None:
    with web_server() as other:
        page.status, page.headers = 302, {"Location": other.url}
        page.url = page.url.replace("//", "//me%40here:p%3Ass:w%C3%B6rd@")
        assert feed_of(page, tmp_path).fetch() is Outcome.NEW
    expected = b64encode("me@here:p:ss:wörd".encode()).decode()
    assert [headers.get("Authorization") for headers in page.asked] == [f"Basic {expected}"]
    assert ["Authorization" in headers for headers in other.asked] == [False]
    assert page.asked[0]["Host"] == page.url.rpartition("@")[2].removesuffix("/list")


def test_a_wrong_password_is_named_without_it(page: Page, tmp_path: Path) -> None:
    page.status = 401
    page.url = page.url.replace("//", "//me:secret@")
    feed = feed_of(page, tmp_path)
    refused(feed, "the server answered 401 Unauthorized")
    assert "secret" not in feed.state().error


def test_those_who_read_a_url_in_different_ways_have_copies_of_their_own(
    page: Page, tmp_path: Path
) -> None:
    page.body = b"192.0.2.1\n192.0.2.2\n"

    def source(name: str, column: int | None = None) -> SourceSettings:
        if column is None:
            return SourceSettings(name, "list", url=page.url)
        return SourceSettings(name, "csv", url=page.url, columns=Columns(column))

    def feed(name: str, column: int | None = None) -> Feed:
        made = files.feed_of(source(name, column), str(tmp_path))
        assert made is not None
        return made

    assert feed("a").fetch() is Outcome.NEW
    assert feed("b").fetch() is Outcome.NOT_DUE
    assert feed("c", 1).fetch() is Outcome.NEW
    page.body = b"x,192.0.2.1\n"
    assert feed("c", 2).fetch() is Outcome.NEW  # and not shrunk
    assert feed("a").state().entries == 2


# --- lists that shrink -------------------------------------------------------------------


def entries(number: int) -> bytes:
    return b"".join(b"192.0.2.%d\n" % index for index in range(number)) or b"# none\n"


@pytest.mark.parametrize(("before", "now"), [(3, 1), (99, 1), (99, 0), (1, 0)])
def test_a_short_list_may_lose_any_of_its_entries(
    page: Page, tmp_path: Path, before: int, now: int
) -> None:
    page.body = entries(before)
    feed = feed_of(page, tmp_path)
    feed.fetch()
    make_due(feed)
    page.body = entries(now)
    assert feed.fetch() is Outcome.NEW
    assert feed.state().entries == now
    make_due(feed)  # and the same again, after one that had none
    page.body = entries(now) + b"# again\n"
    assert feed.fetch() is Outcome.NEW


def test_a_long_list_may_not_become_empty_unless_it_may_be(page: Page, tmp_path: Path) -> None:
    feed = feed_of(page, tmp_path, max_shrink=100)
    feed.fetch()
    make_due(feed)
    page.body = entries(0)
    refused(feed, "it shrank from 100 entries to none; may-be-empty = true takes it, and so does")
    make_due(feed)
    assert feed_of(page, tmp_path, may_be_empty=True).fetch() is Outcome.NEW


def test_a_list_that_may_be_empty_may_be_so_at_first(page: Page, tmp_path: Path) -> None:
    page.body, page.headers = entries(0), {"ETag": '"1"'}
    feed = feed_of(page, tmp_path, may_be_empty=True)
    assert feed.fetch() is Outcome.NEW
    make_due(feed)
    assert feed.fetch() is Outcome.UNCHANGED


# --- what servers answer -----------------------------------------------------------------


@pytest.mark.parametrize("status", [204, 206])
def test_what_is_not_the_whole_list_is_refused(page: Page, tmp_path: Path, status: int) -> None:
    page.status = status
    refused(feed_of(page, tmp_path), f"the server answered {status} ")


def test_a_list_that_its_server_calls_html_may_be_allowed(page: Page, tmp_path: Path) -> None:
    page.headers = {"Content-Type": "text/html"}
    refused(feed_of(page, tmp_path), "allow-html = true takes a list of this type")
    page.headers, page.body = {"Content-Type": "text/html"}, b"<html>\n192.0.2.1\n"
    feed = feed_of(page, tmp_path, allow_html=True)
    make_due(feed)
    refused(feed, "the server answered with a page of HTML$")
    make_due(feed)
    page.body = LIST
    assert feed.fetch() is Outcome.NEW


def later(seconds: float) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (429, "7200", 7200),
        (503, "7200", 7200),
        (429, "date 7200", 7200),
        (429, "86400", 86_400),
        (429, "999999999", 86_400),
        (429, "9" * 500, 86_400),
        (503, "date 864000", 86_400),
        (429, "1", 360),  # and never sooner than after any failure
        (429, "-5", 360),
        (429, "date -7200", 360),
        (429, "soon", 360),
        (503, "Wed, 99 Nov 99999 99:99:99 GMT", 360),
        (404, "7200", 360),
    ],
)
def test_a_server_may_ask_for_a_pause_of_a_day_at_most(
    page: Page, tmp_path: Path, status: int, text: str, expected: float
) -> None:
    if text.startswith("date "):
        text = later(float(text[5:]))
    page.status, page.headers = status, {"Retry-After": text}
    feed = feed_of(page, tmp_path, interval=3600)
    start = time.time()
    refused(feed, f"the server answered {status}")
    assert start + expected - 5 <= feed.state().due <= time.time() + expected * 1.1
    assert feed_of(page, tmp_path, interval=3600).fetch() is Outcome.NOT_DUE
    assert len(page.asked) == 1
    make_due(feed)
    page.status = 200
    assert feed.fetch() is Outcome.NEW
    assert feed.state().retry_after == 0


CUT = b"192.0.2.1\n45.199.0.0/2"


@pytest.mark.parametrize(
    ("framing", "body", "copy"),
    [
        ("close", CUT, b"192.0.2.1\n"),
        ("close", CUT + b"4\n", CUT + b"4\n"),
        ("close", b"192.0.2.1\n" + b"#" * 200_000, b"192.0.2.1\n"),
        ("length", CUT, CUT),
        ("chunked", CUT, CUT),
    ],
)
def test_a_last_line_that_may_be_cut_off_is_not_used(
    page: Page, tmp_path: Path, framing: Any, body: bytes, copy: bytes
) -> None:
    page.framing, page.body = framing, body
    feed = feed_of(page, tmp_path)
    assert feed.fetch() is Outcome.NEW
    assert feed.path.read_bytes() == copy


def test_a_line_that_may_be_cut_off_and_is_the_only_one_is_none(page: Page, tmp_path: Path) -> None:
    page.framing, page.body = "close", b"45.199.0.0/2"
    refused(feed_of(page, tmp_path), "it has no entries")


def test_what_has_no_lines_is_not_cut(page: Page, tmp_path: Path) -> None:
    page.framing, page.body = "close", gzip.compress(LIST)
    feed = feed_of(page, tmp_path)
    assert feed.fetch() is Outcome.NEW
    assert feed.path.read_bytes() == page.body
    page.url += "2"
    page.body = b"\n\x00no text"
    feed = Feed(page.url, FeedSettings(), tmp_path, lambda _: 1, has_lines=False)
    assert feed.fetch() is Outcome.NEW
    assert feed.path.read_bytes() == page.body


def test_a_database_that_crashes_its_reader_is_refused(page: Page, tmp_path: Path) -> None:
    write_database(tmp_path / "db", {"8.8.8.0/24": {"iso_code": "US"}})
    page.body = (tmp_path / "db").read_bytes()
    database = DatabaseSettings("value.iso_code")
    source = SourceSettings("db", "mmdb", url=page.url, database=database)
    feed = files.feed_of(source, str(tmp_path))
    assert feed is not None
    assert feed.fetch() is Outcome.NEW
    assert feed.path.read_bytes() == page.body
    make_due(feed)
    page.body = page.body.replace(b"\x48iso_code", b"\x00iso_code")
    refused(feed, "it is damaged: ")


# --- headers -----------------------------------------------------------------------------

SECRET = (("Auth-Key", "hush-hush"), ("user-agent", "me/1"))


def test_headers_are_sent_and_shown_nowhere(page: Page, tmp_path: Path) -> None:
    feed = feed_of(page, tmp_path, headers=SECRET)
    assert feed.fetch() is Outcome.NEW
    [asked] = page.asked
    assert asked["Auth-Key"] == "hush-hush"
    assert asked["User-Agent"] == "me/1"
    assert "hush" not in repr(FeedSettings(headers=SECRET))
    page.status = 403
    make_due(feed)
    refused(feed, "403")
    assert all(b"hush" not in path.read_bytes() for path in feed.path.parent.iterdir())


def test_headers_go_to_their_server_only(page: Page, tmp_path: Path) -> None:
    with web_server() as other:
        page.status, page.headers = 302, {"Location": other.url}
        assert feed_of(page, tmp_path, headers=SECRET).fetch() is Outcome.NEW
    assert [headers.get("Auth-Key") for headers in page.asked] == ["hush-hush"]
    assert ["Auth-Key" in headers for headers in other.asked] == [False]


def test_headers_go_along_where_a_server_redirects_to_itself(page: Page, tmp_path: Path) -> None:
    page.status, page.headers = 302, {"Location": "/there"}
    feed = feed_of(page, tmp_path, headers=SECRET)
    with pytest.raises(SourceError, match="302"):  # as it redirects without an end
        feed.fetch()
    assert len(page.asked) > 1
    assert {headers.get("Auth-Key") for headers in page.asked} == {"hush-hush"}

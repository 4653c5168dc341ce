import gzip
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from spoakit.apps.iprep.config.schema import PolicySettings, ReputationSettings
from spoakit.apps.iprep.config.sources import FeedSettings, SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.snapshot.builder import build_snapshot
from spoakit.apps.iprep.snapshot.manifest import (
    ALLOWED,
    PRIVATE,
    Snapshot,
    SourceReport,
    manifest_of,
)
from spoakit.apps.iprep.sources.entries import Value
from spoakit.apps.iprep.sources.feeds import Feed
from spoakit.apps.iprep.sources.files import feed_of
from spoakit.apps.iprep.sources.limits import ListLimits, MinPrefix
from spoakit.apps.iprep.sources.lists import Columns
from spoakit.apps.iprep.table._table_cy import Table, TableError
from tests.support.iprep_sources import database, dnsbl, feed, mine, put, write_database
from tests.support.web_server import Page, web_server

pytestmark = pytest.mark.slow


class Shop:
    """Makes one snapshot after another."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "snapshots"
        self.folder.mkdir()
        self.snapshot: Snapshot | None = None

    def build(self, *sources: SourceSettings, **more: Any) -> tuple[SourceReport, ...]:
        settings = ReputationSettings(sources, cache=str(self.folder.parent / "cache"), **more)
        self.snapshot = build_snapshot(self.folder, settings, self.snapshot)
        return self.snapshot.reports

    def marks(self, address: str) -> dict[int, int]:
        """Return which sources have an address, by their numbers, and the places of the values."""
        assert self.snapshot is not None
        table = Table.open(self.folder / self.snapshot.table)
        return dict(table.combination(table.lookup(ip_address(address))))

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def page() -> Iterator[Page]:
    with web_server() as page:
        yield page


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "list.txt"
    path.write_text("8.8.8.0/24\n2001:4860::/32\n")
    return path


def test_an_edition_has_what_the_sources_have(shop: Shop, path: Path) -> None:
    [report] = shop.build(mine(path))
    assert report == SourceReport(loaded=True, entries=2, modified=path.stat().st_mtime)
    for address in ("8.8.8.8", "::ffff:8.8.8.8", "2001:4860::1"):
        assert shop.marks(address) == {0: 0}
    assert shop.marks("8.8.9.8") == {}


def test_without_sources_there_is_an_snapshot(shop: Shop) -> None:
    assert shop.build() == ()
    assert shop.marks("8.8.8.8") == {}
    assert set(shop.marks("10.1.2.3")) == {PRIVATE}


def test_the_policys_addresses_are_in_the_table(shop: Shop, path: Path) -> None:
    shop.build(mine(path), policy=PolicySettings(allow=("8.8.8.0-8.8.8.7", "2001:4860::/64")))
    assert set(shop.marks("8.8.8.7")) == {0, ALLOWED}
    assert set(shop.marks("8.8.8.8")) == {0}
    assert set(shop.marks("2001:4860::1")) == {0, ALLOWED}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: data,
        gzip.compress,
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: gzip.compress(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")),
    ],
)
def test_gzip_byte_order_marks_and_line_ends_make_no_difference(
    shop: Shop, path: Path, wrap: Callable[[bytes], bytes]
) -> None:
    path.write_bytes(wrap(b"# comment\n8.8.8.0/24\n\n2001:4860::/32"))
    [report] = shop.build(mine(path))
    assert (report.entries, report.failed_lines, report.error) == (2, 0, "")
    assert shop.marks("8.8.8.8") == {0: 0}


def test_of_a_list_that_is_partly_broken_the_rest_is_used(shop: Shop, path: Path) -> None:
    path.write_text("8.8.8.0/24\n" + "".join(f"wrong{number}\n" for number in range(20)))
    [report] = shop.build(mine(path))
    assert report.entries == 1
    assert report.failed_lines == 20
    assert len(report.line_errors) == 10
    assert report.line_errors[0] == "line 2: 'wrong0' is not an address"
    assert report.line_errors[9].startswith("line 11: 'wrong9'")
    assert report.error == ""


def test_bits_behind_a_prefix_are_counted(shop: Shop, path: Path) -> None:
    path.write_text("8.8.8.8/24\n")
    [report] = shop.build(mine(path))
    assert report.masked == 1
    assert shop.marks("8.8.8.1") == {0: 0}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty; a list that is meant to be so needs a comment in it"),
        (b"nonsense\n", "none of its 1 lines"),
        (gzip.compress(b"8.8.8.8\n" * 1000, mtime=0)[:-9], "it is cut off: its gzip has no end"),
        (None, "it cannot be read: No such file or directory"),
    ],
    ids=["empty", "nonsense", "cut", "removed"],
)
def test_what_cannot_be_used_leaves_what_was_read_before(
    shop: Shop, path: Path, content: bytes | None, reason: str
) -> None:
    [before] = shop.build(mine(path))
    if content is None:
        path.unlink()
    else:
        put(path, content)
    [report] = shop.build(mine(path))
    assert report.error.startswith(f"{path}: {reason}")
    assert report.error.endswith("; what was read of it before stays in use")
    assert (report.loaded, report.entries) == (True, 2)
    assert report.modified == before.modified
    assert shop.marks("8.8.8.8") == {0: 0}
    put(path, "9.9.9.9\n")
    [report] = shop.build(mine(path))
    assert report.error == ""
    assert shop.marks("8.8.8.8") == {}
    assert shop.marks("9.9.9.9") == {0: 0}


def test_what_was_never_read_is_not_loaded(shop: Shop, tmp_path: Path) -> None:
    [report] = shop.build(mine(tmp_path / "none"))
    assert not report.loaded
    assert report.error == (
        f"{tmp_path / 'none'}: it cannot be read: No such file or directory; "
        "nothing of it is in use"
    )
    (tmp_path / "none").write_text("8.8.8.8\n")
    [report] = shop.build(mine(tmp_path / "none"))
    assert report.loaded


def test_a_list_may_be_made_empty_on_purpose(shop: Shop, path: Path) -> None:
    shop.build(mine(path))
    put(path, "# nobody today\n")
    [report] = shop.build(mine(path))
    assert (report.loaded, report.entries, report.error) == (True, 0, "")
    assert shop.marks("8.8.8.8") == {}


@pytest.mark.parametrize("kind", ["list", "mmdb"])
def test_a_pipe_is_not_waited_for(shop: Shop, tmp_path: Path, kind: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    [report] = shop.build(mine(pipe) if kind == "list" else database(pipe, None))
    assert report.error == f"{pipe}: it is not a regular file; nothing of it is in use"


@pytest.mark.parametrize("damage", [b"", b"\x80\x05", b"\x80\x05cos\nnone\n.", b"garbage" * 99])
def test_what_was_kept_and_is_damaged_is_read_anew(shop: Shop, path: Path, damage: bytes) -> None:
    shop.build(mine(path))
    [kept] = shop.folder.glob("source-*")
    kept.write_bytes(damage)
    [report] = shop.build(mine(path))
    assert (report.entries, report.error) == (2, "")


def test_a_full_disk_leaves_what_there_was(
    shop: Shop, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.build(mine(path))
    files = {file.name: file.read_bytes() for file in shop.folder.iterdir()}
    put(path, "9.9.9.9\n")

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            shop.build(mine(path))
    left = {file.name: file.read_bytes() for file in shop.folder.iterdir()}
    assert files.items() <= left.items()
    put(path, "")
    [report] = shop.build(mine(path))
    assert report.entries == 2
    assert not list(shop.folder.glob("*.new"))


def test_a_folder_that_is_gone_is_an_error(shop: Shop, path: Path) -> None:
    shop.folder.rmdir()
    with pytest.raises((OSError, TableError)):
        shop.build(mine(path))


def test_what_is_not_used_any_more_is_removed_one_edition_later(shop: Shop, path: Path) -> None:
    database_path = path.with_name("db.mmdb")
    write_database(database_path, {"8.8.8.0/24": "US"})
    shop.build(mine(path), database(database_path, "country"))
    assert len(shop.files) == 4
    (shop.folder / "table-1.99.part").write_bytes(b"killed")
    (shop.folder / "source-1.new").write_bytes(b"killed")
    shop.build()
    # Somebody may just have read what belongs to the snapshot before.
    assert "table-1" in shop.files
    assert len(list(shop.folder.glob("source-*"))) == 1
    shop.build()
    assert shop.files == {manifest_of(shop.folder).name, "table-2", "table-3"}


def test_a_database_is_copied_once_for_each_version(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "db.mmdb"
    write_database(path, {"8.8.8.0/24": "US"})
    source = database(path, "country")
    [first] = shop.build(source)
    copied = (shop.folder / first.file).stat().st_ino
    assert shop.build(source) == (first,)
    assert (shop.folder / first.file).stat().st_ino == copied
    write_database(path, {"8.8.8.0/24": "XX"})
    [second] = shop.build(source)
    assert second.file != first.file
    assert (shop.folder / first.file).exists()  # the snapshot before has it
    shop.build(source)
    assert not (shop.folder / first.file).exists()


def test_a_database_that_is_damaged_leaves_the_one_before(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "db.mmdb"
    write_database(path, {"8.8.8.0/24": "US"})
    source = database(path, "country")
    [first] = shop.build(source)
    data = path.read_bytes()
    metadata = data.rindex(b"\xab\xcd\xefMaxMind.com") + 70  # a text that is not UTF-8
    garbled = data[:metadata] + b"\xff" + data[metadata + 1 :]
    for content in (b"", b"<html>" * 100, data[:-300], garbled):
        put(path, content)
        for _ in range(3):  # however often
            [report] = shop.build(source)
            assert report.file == first.file
            assert report.modified == first.modified
            assert report.error.startswith(f"{path}: it is not a database in MaxMind's format")
            assert report.error.endswith("; what was read of it before stays in use")
    path.unlink()
    [report] = shop.build(source)
    assert (report.file, report.loaded) == (first.file, True)
    assert "it cannot be read: No such file" in report.error


def test_a_database_that_crashes_its_reader_is_its_sources_failure_alone(
    shop: Shop, tmp_path: Path, path: Path
) -> None:
    broken = tmp_path / "db.mmdb"
    write_database(broken, {"9.9.9.0/24": {"iso_code": "US"}})
    data = broken.read_bytes()
    put(broken, data.replace(b"\x48iso_code", b"\x00iso_code"))
    sources = database(broken, "country", field="value.iso_code"), mine(path)
    failed, good = shop.build(*sources)
    assert not failed.loaded
    assert f"{broken}: it is damaged: " in failed.error
    assert (good.entries, good.error) == (2, "")
    put(broken, data)
    failed, _ = shop.build(*sources)
    assert (failed.loaded, failed.error) == (True, "")
    put(broken, data.replace(b"\x48iso_code", b"\x00iso_code"))
    kept, _ = shop.build(*sources)
    assert kept.file == failed.file
    assert "it is damaged: " in kept.error


def test_what_is_odd_about_a_database_is_known_of_each_field(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "db.mmdb"
    write_database(path, {"8.8.8.0/24": "US"})
    sources = database(path, "country"), database(path, "country", "other", field="none")
    for _ in range(2):
        good, odd = shop.build(*sources)
        assert (good.loaded, good.warning) == (True, "")
        assert (odd.loaded, odd.warning) == (True, "none of its networks has the field 'none'")
    assert good.file == odd.file


def test_a_copy_of_a_database_that_is_damaged_is_made_anew(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "db.mmdb"
    write_database(path, {"8.8.8.0/24": "US"})
    [report] = shop.build(database(path, "country"))
    copy = shop.folder / report.file
    put(copy, b"damaged")
    [report] = shop.build(database(path, "country"))
    assert copy.read_bytes() == path.read_bytes()
    assert report.error == ""


def test_a_failed_edition_leaves_the_databases_of_the_one_before(
    shop: Shop, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database_path = path.with_name("db.mmdb")
    write_database(database_path, {"8.8.8.0/24": "US"})
    [first] = shop.build(database(database_path, "country"))
    content = (shop.folder / first.file).read_bytes()
    write_database(database_path, {"8.8.8.0/24": "XX"})
    with monkeypatch.context() as patched:
        patched.setattr("spoakit.apps.iprep.snapshot.builder.publish", _fail)
        with pytest.raises(OSError, match="No space"):
            shop.build(database(database_path, "country"))
    assert (shop.folder / first.file).read_bytes() == content


def _fail(*_: object) -> Snapshot:
    raise OSError(28, "No space left on device")


def test_networks_numbers_need_a_database_that_knows_them(shop: Shop, tmp_path: Path) -> None:
    drop, asn = tmp_path / "asndrop.json", tmp_path / "asn.mmdb"
    drop.write_text('{"asn": 64500}\n{"asn": 64501}\n{"type": "metadata", "records": 2}\n')
    source = SourceSettings("drop", "drop", str(drop))
    [report] = shop.build(source)
    assert "its 2 numbers of networks are of no use without a source of the type 'mmdb'" in (
        report.error
    )
    assert [number for number, _ in report.asns] == [64500, 64501]
    write_database(asn, {"8.8.8.0/24": 64500})
    report, _ = shop.build(source, database(asn, "asn"))
    assert report.error == ""


@pytest.mark.parametrize("now", [10, 0])
def test_a_file_that_shrinks_by_more_than_the_limit_leaves_what_there_was(
    shop: Shop, path: Path, now: int
) -> None:
    def write(number: int) -> None:
        put(path, "".join(f"8.8.8.{index}\n" for index in range(number)) or "# none\n")

    write(100)
    shop.build(mine(path))
    write(now)
    [report] = shop.build(mine(path))
    assert report.entries == 100
    assert "it shrank from 100 entries to" in report.error
    assert "what was read of it before stays in use" in report.error
    allowed = FeedSettings(max_shrink=100, may_be_empty=True)
    [report] = shop.build(mine(path, feed=allowed))
    assert (report.entries, report.error) == (now, "")


def test_a_short_file_may_shrink_to_nothing(shop: Shop, path: Path) -> None:
    for content, entries in (("8.8.8.1\n8.8.8.2\n8.8.8.3\n", 3), ("8.8.8.1\n", 1), ("# none\n", 0)):
        put(path, content)
        [report] = shop.build(mine(path))
        assert (report.entries, report.error) == (entries, "")


def test_a_csvs_values_are_in_the_report(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "abuse.csv"
    path.write_text("ip,confidence,kind\n8.8.8.8,10,spam\n9.9.9.9,90,scan\n")
    columns = Columns("ip", None, "confidence", "kind")
    [report] = shop.build(SourceSettings("abuse", "csv", str(path), columns=columns))
    value = report.values[shop.marks("9.9.9.9")[0]]
    assert (value.score, value.category) == (90, "scan")


def test_a_dnsbl_has_nothing_to_read(shop: Shop) -> None:
    assert shop.build(dnsbl("127.0.0.1")) == (SourceReport(loaded=True),)


def test_one_file_may_be_several_sources(shop: Shop, path: Path) -> None:
    reports = shop.build(mine(path), mine(path, "again", score=50))
    assert [report.entries for report in reports] == [2, 2]
    assert shop.marks("8.8.8.8") == {0: 0, 1: 0}


def test_a_downloads_age_is_that_of_the_last_question(shop: Shop, tmp_path: Path) -> None:
    source = feed("http://127.0.0.1:1/list")
    copy = feed_of(source, str(tmp_path / "cache"))
    assert copy is not None
    copy.path.parent.mkdir()
    copy.path.write_text("8.8.8.8\n")
    os.utime(copy.path, (1, 1))
    checked = time.time() - 100
    copy.path.with_suffix(".json").write_text(f'{{"checked": {checked}}}')
    [report] = shop.build(source)
    assert (report.entries, report.modified) == (1, checked)


def test_a_feed_without_a_copy_is_named_with_the_reason(shop: Shop, page: Page) -> None:
    source = feed(page.url.replace("//", "//me:secret@"))
    shown = page.url.replace("//", "//***@")
    [report] = shop.build(source)
    assert report.error == f"{shown}: it has not been downloaded yet; nothing of it is in use"
    page.status = 404
    copy = feed_of(source, str(shop.folder.parent / "cache"))
    assert copy is not None
    with pytest.raises(SourceError):
        copy.fetch()
    [report] = shop.build(source)
    assert report.error == f"{shown}: the server answered 404 Not Found; nothing of it is in use"


def test_a_database_may_be_in_gzip(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "db.mmdb"
    write_database(path, {"8.8.8.0/24": "US"})
    content = path.read_bytes()
    path.write_bytes(gzip.compress(content))
    [report] = shop.build(database(path, "country"))
    assert report.error == ""
    assert (shop.folder / report.file).read_bytes() == content


# --- lists that have too much ---------------------------------------------------------------

FIVE_PERCENT = "16.0.0.0/6\n12.0.0.0/6\n20.0.0.0/6\n"
EXCESS = (
    "it has 5.44 percent of all public IPv4 addresses, more than max-share = 5; raise that if it "
    "is meant"
)


def download(shop: Shop, source: SourceSettings) -> Feed:
    """Return a feed that has been asked for."""
    feed = feed_of(source, str(shop.folder.parent / "cache"))
    assert feed is not None
    with suppress(SourceError):
        feed.fetch()
    return feed


def test_a_download_with_too_many_addresses_is_refused(shop: Shop, page: Page) -> None:
    page.body = FIVE_PERCENT.encode()
    source = feed(page.url)
    assert download(shop, source).state().error == EXCESS
    [report] = shop.build(source)
    assert (report.loaded, report.entries) == (False, 0)
    assert shop.marks("16.8.8.8") == {}
    copy = download(shop, source)
    copy.path.write_bytes(page.body)  # one that was downloaded when it was allowed
    [report] = shop.build(source)
    assert report.error == f"{copy.path}: {EXCESS}; nothing of it is in use"
    [report] = shop.build(feed(page.url, limits=ListLimits(max_share=6)))
    assert (report.entries, report.error, report.warning) == (3, "", "")


def test_one_to_allow_with_too_many_is_warned_of(shop: Shop, page: Page) -> None:
    page.body = FIVE_PERCENT.encode()
    source = feed(page.url, allow=True)
    assert download(shop, source).state().error == ""
    [report] = shop.build(source)
    assert (report.entries, report.error, report.warning) == (3, "", EXCESS)
    # Those that are not to be allowed any more are read anew, and not what was kept of them.
    [report] = shop.build(feed(page.url))
    assert (report.entries, EXCESS in report.error) == (0, True)


def test_a_file_with_too_many_is_warned_of(shop: Shop, path: Path) -> None:
    path.write_text(FIVE_PERCENT)
    for _ in range(2):  # what is kept of it says so as well
        [report] = shop.build(mine(path))
        assert (report.entries, report.error, report.warning) == (3, "", EXCESS)
    assert shop.marks("16.8.8.8") == {0: 0}


def test_other_limits_hold_for_a_file_that_did_not_change(shop: Shop, path: Path) -> None:
    path.write_text("8.8.8.0/24\n8.8.0.0/16\n")
    assert [report.entries for report in shop.build(mine(path))] == [2]
    [report] = shop.build(mine(path, limits=ListLimits(MinPrefix(24))))
    assert (report.entries, report.failed_lines) == (1, 1)


# --- files that are not there ---------------------------------------------------------------


def test_a_file_is_used_as_soon_as_it_is_there(shop: Shop, path: Path) -> None:
    path.unlink()
    for _ in range(2):
        [report] = shop.build(mine(path))
        assert (report.loaded, report.entries) == (False, 0)
        assert "it cannot be read: No such file or directory; nothing of it" in report.error
    path.write_text("8.8.8.8\n")
    [report] = shop.build(mine(path))
    assert (report.loaded, report.entries, report.error) == (True, 1, "")


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_of_duplicates_the_worst_score_holds(shop: Shop, tmp_path: Path, reverse: bool) -> None:
    rows = [
        "8.8.8.1,100,",
        "8.8.8.1,1,scan",
        "8.8.8.1,50,",
        "8.8.8.2,40,",
        "8.8.8.2,,",  # the source's own score: 5
        "8.8.8.3,3,",
        "8.8.8.3,,",
        "8.8.8.4,10,",
        "8.8.8.4,,good",  # its category's score: 90
        "2001:4860::/32,70,",
        "2001:4860::/32,20,",
        "8.8.8.0/24,0,",  # another range: the innermost holds
    ]
    path = tmp_path / "abuse.csv"
    path.write_text("\n".join(reversed(rows) if reverse else rows))
    source = SourceSettings(
        "abuse",
        "csv",
        str(path),
        score=5,
        scores=(("good", 90),),
        columns=Columns(1, None, 2, 3),
    )
    [report] = shop.build(source)
    found = {
        address: report.values[shop.marks(address)[0]]
        for address in ("8.8.8.1", "8.8.8.2", "8.8.8.3", "8.8.8.4", "2001:4860::1", "8.8.8.9")
    }
    assert found == {
        "8.8.8.1": Value(1, "scan"),
        "8.8.8.2": Value(None, ""),
        "8.8.8.3": Value(3, ""),
        "8.8.8.4": Value(10, ""),
        "2001:4860::1": Value(20, ""),
        "8.8.8.9": Value(0, ""),
    }


def test_a_json_document_is_a_source(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "ip-ranges.json"
    path.write_text('{"prefixes": [{"ip_prefix": "8.8.8.0/24"}, {"ip_prefix": "x"}]}')
    select = ("prefixes[].ip_prefix", "ipv6_prefixes[].ipv6_prefix")
    [report] = shop.build(SourceSettings("aws", "json", str(path), select=select, allow=True))
    assert (report.entries, report.failed_lines, report.error) == (1, 1, "")
    assert report.line_errors == ("value 2: prefixes[].ip_prefix: 'x' is not an address",)
    assert report.warning == "there is nothing at 'ipv6_prefixes[].ipv6_prefix' (select)"
    # With other paths it is read anew.
    [report] = shop.build(SourceSettings("aws", "json", str(path), select=select[1:]))
    assert report.error.startswith(f"{path}: there is nothing at 'ipv6_prefixes[].ipv6_prefix'")

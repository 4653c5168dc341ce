import gzip
import io
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from spoakit.apps.iprep.config.settings import DatabaseSettings, Provides, SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.scoring.policy import Listing
from spoakit.apps.iprep.sources.mmdb import Database, copy_database

RECORDS: dict[str, dict[str, Any]] = {
    "8.8.8.0/24": {
        "country": {"iso_code": "US"},
        "autonomous_system_number": 64500,
        "is_anonymous": True,
        "names": ["first", "second"],
    },
    "9.9.9.0/24": {"country": {"iso_code": "XX"}, "is_anonymous": False},
    "2001:db8::/32": {"country": {"iso_code": "YY"}},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    writer = MMDBWriter(6, "Test", ipv4_compatible=True)
    for network, record in RECORDS.items():
        writer.insert_network(IPSet([network]), record)
    path = tmp_path_factory.mktemp("mmdb") / "test.mmdb"
    writer.to_db_file(str(path))
    return path


def source(
    field: str, provides: Provides | None = None, scores: tuple[tuple[str, int], ...] = ()
) -> SourceSettings:
    return SourceSettings(
        "db", "mmdb", "test.mmdb", scores=scores, database=DatabaseSettings(field, provides)
    )


@pytest.fixture
def opened(path: Path) -> Iterator[list[Database]]:
    """Hold databases, which are closed behind the test."""
    databases: list[Database] = []
    yield databases
    for database in databases:
        database.close()


def open_it(opened: list[Database], path: Path, settings: SourceSettings) -> Database:
    opened.append(Database(settings, path))
    return opened[-1]


@pytest.mark.parametrize(
    ("field", "address", "value"),
    [
        ("country.iso_code", "8.8.8.8", "US"),
        ("country.iso_code", "::ffff:8.8.8.8", "US"),
        ("country.iso_code", "2001:db8::1", "YY"),
        ("country.iso_code", "7.7.7.7", ""),
        ("autonomous_system_number", "8.8.8.8", "64500"),
        ("autonomous_system_number", "9.9.9.9", ""),
        ("is_anonymous", "8.8.8.8", "true"),
        ("is_anonymous", "9.9.9.9", ""),
        ("names.1", "8.8.8.8", "second"),
        ("names.2", "8.8.8.8", ""),
        ("country", "8.8.8.8", ""),
        ("country.iso_code.x", "8.8.8.8", ""),
    ],
)
def test_any_field_can_be_looked_up(
    opened: list[Database], path: Path, field: str, address: str, value: str
) -> None:
    assert open_it(opened, path, source(field)).value(ip_address(address)) == value


def test_who_has_the_value_is_listed(opened: list[Database], path: Path) -> None:
    database = open_it(opened, path, source("is_anonymous"))
    assert database.say(database.value(ip_address("8.8.8.8"))).state is Listing.LISTED
    assert database.say(database.value(ip_address("9.9.9.9"))).state is Listing.ABSENT


def test_with_scores_only_their_values_are_listed(opened: list[Database], path: Path) -> None:
    database = open_it(opened, path, source("country.iso_code", "country", (("XX", 30),)))
    say = database.say(database.value(ip_address("9.9.9.9")))
    assert (say.state, say.category) == (Listing.LISTED, "XX")
    assert database.say(database.value(ip_address("8.8.8.8"))).state is Listing.ABSENT


def test_what_only_provides_lists_nobody(opened: list[Database], path: Path) -> None:
    database = open_it(opened, path, source("country.iso_code", "country"))
    assert database.say(database.value(ip_address("9.9.9.9"))).state is Listing.ABSENT


def test_a_database_of_ipv4_knows_nothing_of_ipv6(opened: list[Database], tmp_path: Path) -> None:
    writer = MMDBWriter(4, "Test")
    writer.insert_network(IPSet(["8.8.8.0/24"]), {"a": "b"})
    writer.to_db_file(str(tmp_path / "4.mmdb"))
    database = open_it(opened, tmp_path / "4.mmdb", source("a"))
    assert database.value(ip_address("2001:db8::1")) == ""
    assert database.value(ip_address("::ffff:8.8.8.8")) == "b"


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="it cannot be opened: No such file"):
        Database(source("a"), tmp_path / "none")
    for content in (b"", b"<html>" * 100):
        (tmp_path / "wrong").write_bytes(content)
        with pytest.raises(SourceError, match="it is no database in MaxMind's format, or damaged"):
            Database(source("a"), tmp_path / "wrong")


# As it is shipped.

MIB = 1024**2


def tar(**files: bytes) -> bytes:
    """Return an archive with files whose names begin with a folder."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(f"GeoLite2_20260101/{name.replace('_', '.')}")
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def test_a_database_is_copied_as_it_is_and_out_of_gzip_and_tar(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    archive = tar(COPYRIGHT_txt=b"me", GeoLite2_mmdb=data, README_txt=b"a" * 1000)
    for shipped in (data, gzip.compress(data), archive, gzip.compress(archive)):
        (tmp_path / "shipped").write_bytes(shipped)
        copy_database(tmp_path / "shipped", tmp_path / "copy", MIB)
        assert (tmp_path / "copy").read_bytes() == data
    assert {each.name for each in tmp_path.iterdir()} == {"shipped", "copy"}


def sparse(size: int) -> bytes:
    """Return an archive with a database that is larger than the archive."""
    member = tarfile.TarInfo("a.mmdb")
    member.pax_headers = {
        "GNU.sparse.map": f"{size - 1},1",
        "GNU.sparse.size": str(size),
        "GNU.sparse.realsize": str(size),
    }
    return member.tobuf(tarfile.PAX_FORMAT) + b"\0" * 10_240


@pytest.mark.parametrize(
    ("shipped", "reason"),
    [
        (b"a" * (MIB + 1), r"larger than 1048576 bytes \(max-size\)"),
        (gzip.compress(b"a" * (MIB + 1)), r"larger than 1048576 bytes \(max-size\)"),
        (gzip.compress(b"abc" * 1000)[:-9], "its gzip has no end"),
        (tar(list_txt=b"192.0.2.1"), "a tar archive without a file whose name ends in .mmdb"),
        (sparse(10**12), "a tar archive without a file"),
        (tar(a_mmdb=b"a" * 2000)[:1500], "its tar archive is damaged: unexpected end of data"),
    ],
    ids=["large", "large in gzip", "cut off", "another archive", "sparse", "cut off in tar"],
)
def test_what_is_shipped_in_another_way_is_refused(
    tmp_path: Path, shipped: bytes, reason: str
) -> None:
    (tmp_path / "shipped").write_bytes(shipped)
    with pytest.raises(SourceError, match=reason):
        copy_database(tmp_path / "shipped", tmp_path / "copy", MIB)


def test_no_damage_to_an_archive_raises_anything_else(path: Path, tmp_path: Path) -> None:
    whole = bytearray(tar(COPYRIGHT_txt=b"me", GeoLite2_mmdb=path.read_bytes()))
    for place in range(0, 2048, 7):
        for byte in (0, 0x80, 0xFF):
            damaged = whole.copy()
            damaged[place] = byte
            (tmp_path / "shipped").write_bytes(damaged)
            with suppress(SourceError):
                copy_database(tmp_path / "shipped", tmp_path / "copy", MIB)

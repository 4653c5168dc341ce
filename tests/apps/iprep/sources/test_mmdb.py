import gzip
import io
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import maxminddb
import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from spoakit.apps.iprep.config.sources import DatabaseSettings, Provides, SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.scoring.policy import Listing
from spoakit.apps.iprep.sources.mmdb import Database, check_database, copy_database

pytestmark = pytest.mark.slow

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
        with pytest.raises(
            SourceError, match="it is not a database in MaxMind's format, or damaged"
        ):
            Database(source("a"), tmp_path / "wrong")


def write(path: Path, records: Mapping[str, Any]) -> None:
    writer = MMDBWriter(6, "Test", ipv4_compatible=True)
    for network, record in records.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))


@pytest.mark.parametrize(
    ("value", "provides", "text"),
    [
        ("AS15169", "asn", "15169"),
        ("as15169", "asn", "15169"),
        ("15169", "asn", "15169"),
        ("AS", "asn", "AS"),
        ("AS15169", None, "AS15169"),
        ("U\nS", "country", ""),
        ("U\x85S", None, ""),
        ("caf\u00e9", None, "caf\u00e9"),
    ],
)
def test_values_are_texts_that_can_be_used(
    opened: list[Database], tmp_path: Path, value: str, provides: Provides | None, text: str
) -> None:
    write(tmp_path / "db", {"8.8.8.0/24": {"a": value}})
    database = open_it(opened, tmp_path / "db", source("a", provides))
    assert database.value(ip_address("8.8.8.8")) == text


# Reading all of it.


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [24, 28, 32])
def test_the_walk_finds_an_address_of_each_record(
    opened: list[Database], tmp_path: Path, size: int, version: int
) -> None:
    path = tmp_path / "db"
    networks = ["1.2.3.4/32", "8.8.0.0/17", "8.8.8.0/24", "255.255.255.255/32"]
    networks += ["2001:db8::/32", "ffff::1/128"] if version == 6 else []
    writer = MMDBWriter(version, "Test", ipv4_compatible=version == 6)
    for network in networks:
        writer.insert_network(IPSet([network]), {"value": network})
    writer.to_db_file(str(path))
    resize(path, size)
    database = open_it(opened, path, source("value"))
    found = {database.value(address) for address in database.samples(path)}
    assert found == set(networks)


def resize(path: Path, size: int) -> None:
    """Write a database's tree with records of another size."""
    data = path.read_bytes()
    with closing(maxminddb.open_database(path, maxminddb.MODE_FILE)) as reader:
        metadata = reader.metadata()
    width = metadata.record_size // 4
    tree = bytearray()
    for node in range(metadata.node_count):
        left, right = records_of(data[node * width : (node + 1) * width])
        if size == 28:
            middle = (left >> 24) << 4 | right >> 24
            tree += (left & 0xFFFFFF).to_bytes(3, "big") + bytes((middle,))
            tree += (right & 0xFFFFFF).to_bytes(3, "big")
        else:
            tree += left.to_bytes(size // 8, "big") + right.to_bytes(size // 8, "big")
    key = b"record_size"
    start = data.rindex(key) + len(key)
    assert data[start] in (0xA1, 0xA2, 0xC1)
    rest = bytearray(data[metadata.node_count * width :])
    place = start - metadata.node_count * width
    rest[place + (data[start] & 31)] = size
    path.write_bytes(bytes(tree) + bytes(rest))


def records_of(node: bytes) -> tuple[int, int]:
    assert len(node) in (6, 7, 8)
    if len(node) == 7:
        return (node[3] >> 4) << 24 | int.from_bytes(node[:3], "big"), (
            node[3] & 15
        ) << 24 | int.from_bytes(node[4:], "big")
    half = len(node) // 2
    return int.from_bytes(node[:half], "big"), int.from_bytes(node[half:], "big")


def test_a_good_database_passes(path: Path) -> None:
    assert check_database(source("country.iso_code"), path) == ""
    assert check_database(source("is_anonymous"), path) == ""


def test_a_field_that_is_found_nowhere_is_odd(path: Path) -> None:
    odd = check_database(source("country.iso"), path)
    assert odd == "none of its networks has the field 'country.iso'"


def test_values_with_control_characters_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "db", {"8.8.8.0/24": {"a": "U\nS"}, "9.9.9.0/24": {"a": "US"}})
    odd = check_database(source("a"), tmp_path / "db")
    assert odd == "1 of its values have control characters, and are not used"


def crashing(path: Path) -> bytes:
    """Return a database in which one changed byte makes the reader in C crash: a key is a number.

    It opens, and looks up all networks but those that have this value.
    """
    data = path.read_bytes()
    assert data.count(b"\x48iso_code") == 1
    return data.replace(b"\x48iso_code", b"\x00iso_code")


def unbounded(path: Path) -> bytes:
    """Return a database whose values have each other in them, ten to the power of fifteen times."""
    data = path.read_bytes()
    metadata = data.rindex(b"\xab\xcd\xefMaxMind.com")
    start = data.index(b"\0" * 16, 0, metadata) + 16
    arrays = b"\x42US" + b"".join(
        b"\x0a\x04" + bytes((0x20, 3 + 22 * (number - 1) if number else 0)) * 10
        for number in range(11)
    )
    first = len(arrays) - 22
    return data[:start] + arrays + bytes((0x20, first)) * 100 + data[metadata:]


@pytest.mark.parametrize("damage", [crashing, unbounded])
def test_damage_that_ends_the_reader_ends_the_check_alone(
    path: Path, tmp_path: Path, damage: Callable[[Path], bytes]
) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(damage(path))
    with pytest.raises(SourceError, match="it is damaged: "):
        check_database(source("country.iso_code"), broken)


def test_a_tree_that_points_behind_the_file_is_damage(path: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"\xff\xff\xff" + path.read_bytes()[3:])
    with pytest.raises(SourceError, match="its tree points behind the file's end"):
        check_database(source("country.iso_code"), tmp_path / "broken")


@pytest.mark.parametrize("key", [b"node_count", b"record_size"])
def test_a_tree_that_is_not_in_the_file_is_damage(path: Path, tmp_path: Path, key: bytes) -> None:
    data = bytearray(path.read_bytes())
    start = data.rindex(key) + len(key) + 1
    size = data[start - 1] & 31
    data[start : start + size] = b"\xff" * size
    (tmp_path / "broken").write_bytes(data)
    with pytest.raises(SourceError, match="damaged"):
        check_database(source("country.iso_code"), tmp_path / "broken")


def test_no_damage_of_the_metadata_raises_anything_else(
    opened: list[Database], path: Path, tmp_path: Path
) -> None:
    data, broken = path.read_bytes(), tmp_path / "broken"
    for place in range(data.rindex(b"\xab\xcd\xefMaxMind.com"), len(data)):
        for byte in (0, 0x20, 0x3F, 0x45, 0x80, 0xE0, 0xFF):
            broken.write_bytes(data[:place] + bytes((byte,)) + data[place + 1 :])
            with suppress(SourceError):
                open_it(opened, broken, source("a"))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -XCPU $$", "took more than 300 s of CPU time"),
        ("kill -SEGV $$", "was ended by SIGSEGV"),
        ("exit 3", "ended with 3"),
    ],
)
def test_how_a_check_ended_is_the_reason(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nulimit -c 0\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(SourceError, match=reason):
        check_database(source("country.iso_code"), path)


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

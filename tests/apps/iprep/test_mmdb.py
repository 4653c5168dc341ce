from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.mmdb import Database
from spoakit.apps.iprep.policy import State
from spoakit.apps.iprep.settings import DatabaseSettings, Provides, SourceSettings

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
    assert database.say(database.value(ip_address("8.8.8.8"))).state is State.LISTED
    assert database.say(database.value(ip_address("9.9.9.9"))).state is State.ABSENT


def test_with_scores_only_their_values_are_listed(opened: list[Database], path: Path) -> None:
    database = open_it(opened, path, source("country.iso_code", "country", (("XX", 30),)))
    say = database.say(database.value(ip_address("9.9.9.9")))
    assert (say.state, say.category) == (State.LISTED, "XX")
    assert database.say(database.value(ip_address("8.8.8.8"))).state is State.ABSENT


def test_what_only_provides_lists_nobody(opened: list[Database], path: Path) -> None:
    database = open_it(opened, path, source("country.iso_code", "country"))
    assert database.say(database.value(ip_address("9.9.9.9"))).state is State.ABSENT


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
        with pytest.raises(SourceError, match="it cannot be opened: "):
            Database(source("a"), tmp_path / "wrong")

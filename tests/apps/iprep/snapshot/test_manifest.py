import os
from pathlib import Path

import pytest

from spoakit.apps.iprep.config.schema import PolicySettings, ReputationSettings
from spoakit.apps.iprep.config.sources import DatabaseSettings, DnsblSettings, SourceSettings
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.snapshot.builder import build_snapshot
from spoakit.apps.iprep.snapshot.manifest import lock, manifest_of, read_snapshot
from spoakit.apps.iprep.sources.lists import Columns

EVERYTHING = ReputationSettings(
    sources=(
        SourceSettings("list", "list", "/nonexistent/list", max_age=5),
        SourceSettings("csv", "csv", "/nonexistent/csv", columns=Columns("ip", 2, None, "kind")),
        SourceSettings("bl", "dnsbl", dnsbl=DnsblSettings("bl.example", 0.5, ("::1",))),
        SourceSettings(
            "db",
            "mmdb",
            "/nonexistent/db",
            scores=(("XX", 30), ("café", 0)),
            database=DatabaseSettings("country.iso_code", "country"),
        ),
    ),
    policy=PolicySettings(allow=("192.0.2.0/24",), combine="weighted"),
)


def test_before_the_first_there_is_none(tmp_path: Path) -> None:
    assert read_snapshot(tmp_path) is None


def test_what_was_made_is_read_with_all_its_settings(tmp_path: Path) -> None:
    made = build_snapshot(tmp_path, EVERYTHING, None)
    assert made.settings == EVERYTHING
    assert read_snapshot(tmp_path) == made
    assert made.size == (tmp_path / made.table).stat().st_size
    # What DNSBLs are known by.
    assert hash(made.settings.sources[2]) == hash(EVERYTHING.sources[2])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"generation": 1}'])
def test_one_that_is_damaged_is_said_to_be(tmp_path: Path, content: bytes) -> None:
    manifest_of(tmp_path).write_bytes(content)
    with pytest.raises(SourceError, match=r"snapshot\.json is damaged"):
        read_snapshot(tmp_path)


def test_one_with_settings_that_cannot_be_is_damaged(tmp_path: Path) -> None:
    build_snapshot(tmp_path, EVERYTHING, None)
    path = manifest_of(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"combine":"weighted"', b'"combine":"best"'))
    with pytest.raises(SourceError, match=r"snapshot\.json is damaged"):
        read_snapshot(tmp_path)


def test_one_that_cannot_be_read_is_said_to_be(tmp_path: Path) -> None:
    manifest_of(tmp_path).mkdir()
    with pytest.raises(SourceError, match=r"snapshot\.json: Is a directory"):
        read_snapshot(tmp_path)


def test_a_lock_is_one_processs_until_it_is_closed(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "wb") as one, open(tmp_path / "lock", "wb") as other:
        assert lock(one)
        assert not lock(other)
        one.close()
        assert lock(other)
    descriptor = os.open(tmp_path, os.O_RDONLY)  # a folder can be locked as well
    assert lock(descriptor)
    os.close(descriptor)

import pytest

from spoakit.apps.iprep.config.schema import MAX_SOURCES, ReputationSettings
from spoakit.apps.iprep.config.sources import DatabaseSettings, DnsblSettings, SourceSettings
from spoakit.apps.iprep.sources.lists import Columns
from spoakit.exceptions import ConfigurationError


@pytest.mark.parametrize("zone", ["", ".", "a b", "a..b", "x." * 100, "-.x"])
def test_a_zone_is_a_domain_that_leaves_room_for_an_address(zone: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^zone: .* is not a domain"):
        DnsblSettings(zone)


def test_a_zone_leaves_room_for_its_key() -> None:
    zone = ".".join(["a" * 61] * 3)  # of the 189 characters that there are
    assert DnsblSettings(zone).zone == zone
    with pytest.raises(ConfigurationError, match="is not a domain of at most 182 characters"):
        DnsblSettings(zone, key="secret")


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(
        SourceSettings("a", "dnsbl", dnsbl=DnsblSettings("a", key="secret"))
    )


@pytest.mark.parametrize("columns", [Columns(0), Columns(""), Columns(delimiter=";;")])
def test_columns_are_names_or_numbers_from_1(columns: Columns) -> None:
    with pytest.raises(ConfigurationError, match=r"^(columns|delimiter): "):
        SourceSettings("a", "csv", "a", columns=columns)


def test_the_best_number_is_not_the_worst() -> None:
    with pytest.raises(ConfigurationError, match=r"best: 1 is worst too"):
        SourceSettings("a", "csv", "a", columns=Columns(best=1, worst=1))


def test_a_field_has_no_empty_names() -> None:
    with pytest.raises(ConfigurationError, match=r"field: 'a\.\.b' has an empty name"):
        DatabaseSettings("a..b")


def test_sources_are_bounded() -> None:
    sources = tuple(SourceSettings(f"{n}", "list", "a") for n in range(MAX_SOURCES + 1))
    with pytest.raises(ConfigurationError, match="source: there are 65, more than 64"):
        ReputationSettings(sources)

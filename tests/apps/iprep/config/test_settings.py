import pytest

from spoakit.apps.iprep.config.settings import (
    MAX_SOURCES,
    DatabaseSettings,
    DnsblSettings,
    ReputationSettings,
    SourceSettings,
)
from spoakit.apps.iprep.sources.lists import Columns
from spoakit.exceptions import ConfigurationError


@pytest.mark.parametrize("zone", ["", ".", "a b", "a..b", "x." * 100, "-.x"])
def test_a_zone_is_a_domain_that_leaves_room_for_an_address(zone: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^zone: .* is not a domain"):
        DnsblSettings(zone)


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

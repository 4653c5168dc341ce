from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.config.sources import DnsblSettings, SourceSettings
from spoakit.apps.iprep.config.units import CODES
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.scoring.policy import Listing, score_of
from spoakit.apps.iprep.sources.dnsbl_codes import CodeReader, is_listing


def reader(scores: dict[str, int] | None = None, **dnsbl: Any) -> CodeReader:
    settings = DnsblSettings("bl.example", **dnsbl)
    return CodeReader(
        SourceSettings(
            "bl", "dnsbl", score=50, scores=tuple((scores or {}).items()), dnsbl=settings
        )
    )


def score(codes: CodeReader, *texts: str) -> int | None:
    result = codes.read(map(IPv4Address, texts))
    return score_of(result) if result.state is Listing.LISTED else None


def test_without_scores_any_code_gives_the_sources() -> None:
    assert score(reader(), "127.0.0.2") == 50
    assert score(reader(), "127.9.8.7") == 50
    assert score(reader()) is None


def test_with_scores_codes_that_are_not_named_do_not_count() -> None:
    zen = reader({"127.0.0.2": 10, "127.0.0.4-127.0.0.7": 20})
    assert score(zen, "127.0.0.10") is None
    assert score(zen, "127.0.0.10", "127.0.0.4") == 20
    assert [score(zen, f"127.0.0.{n}") for n in range(2, 9)] == [10, None, 20, 20, 20, 20, None]


def test_the_smallest_range_holds_and_of_several_codes_the_lowest_score() -> None:
    codes = reader({"127.0.0.0/8": 60, "127.0.0.0/24": 40, "127.0.0.3": 90})
    assert score(codes, "127.0.0.3") == 90
    assert score(codes, "127.0.0.4") == 40
    assert score(codes, "127.0.0.3", "127.0.1.1", "127.0.0.4") == 40
    assert codes.read([IPv4Address("127.0.0.4")]).category == "127.0.0.4"


@pytest.mark.parametrize(
    ("settings", "scores"),
    [
        # http:BL: the higher the threat, the worse.
        (
            {"octet": 3, "best": 0, "worst": 100},
            {"127.3.5.1": 95, "127.1.100.1": 0, "127.1.255.1": 0},
        ),
        # Sender Score: the higher, the better.
        ({"octet": 4}, {"127.0.4.90": 90, "127.0.4.0": 0}),
        # DNSWL: 0 to 3.
        ({"octet": 4, "worst": 0, "best": 3}, {"127.0.5.3": 100, "127.0.5.2": 67}),
    ],
)
def test_an_octet_may_be_a_number(settings: dict[str, Any], scores: dict[str, int]) -> None:
    codes = reader(**settings)
    assert {text: score(codes, text) for text in scores} == scores


@pytest.mark.parametrize("code", ["127.0.0.1", "127.255.255.254", "127.255.255.0", "192.0.2.1"])
@pytest.mark.parametrize("settings", [{}, {"octet": 4}, {"scores": {"127.0.0.0/8": 10}}])
def test_a_refusal_is_never_a_listing(code: str, settings: dict[str, Any]) -> None:
    assert not is_listing(IPv4Address(code))
    with pytest.raises(SourceError, match=f"it answered {code}, which is an error"):
        reader(**settings).read([IPv4Address("127.0.0.2"), IPv4Address(code)])


CODE = st.integers(0, 2**24 - 1).map(lambda n: CODES[n]).filter(is_listing)
RANGES = st.dictionaries(
    st.sampled_from(["127.0.0.0/8", "127.0.0.2", "127.7.0.0/16"]), st.integers(0, 100)
)
SETTINGS = st.builds(lambda scores: {"scores": scores}, RANGES) | st.builds(
    lambda octet, best, worst: {"octet": octet, "best": best, "worst": worst},
    st.integers(2, 4),
    st.integers(0, 300),
    st.integers(-300, -1),
)


@given(SETTINGS, st.lists(CODE, max_size=4))
def test_no_answer_has_a_lower_score_than_the_worst(
    settings: dict[str, Any], codes: list[IPv4Address]
) -> None:
    tested = reader(**settings)
    result = tested.read(codes)
    if result.state is Listing.LISTED:
        assert score_of(result) >= score_of(tested.worst)

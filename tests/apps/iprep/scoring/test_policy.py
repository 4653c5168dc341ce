from collections.abc import Iterator
from ipaddress import IPv4Address
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.config.schema import PolicySettings
from spoakit.apps.iprep.config.sources import DnsblSettings, Failed, Mode, SourceSettings
from spoakit.apps.iprep.scoring.policy import Listing, Policy, Rule, SourceResult, Verdict, score_of
from spoakit.apps.iprep.sources.dnsbl_codes import CodeReader


def source(
    name: str = "a",
    score: int = 0,
    weight: float = 1.0,
    *,
    allow: bool = False,
    failed: Failed = "open",
    mode: Mode = "enforce",
    category: str = "",
    scores: tuple[tuple[str, int], ...] = (),
) -> SourceSettings:
    return SourceSettings(
        name,
        "csv",
        "file",
        score=score,
        weight=weight,
        allow=allow,
        failed=failed,
        mode=mode,
        category=category,
        scores=scores,
    )


def listed(say: SourceSettings, score: int | None = None, category: str = "") -> SourceResult:
    return SourceResult(say, Listing.LISTED, score, category)


LOWEST = Policy(PolicySettings())
WEIGHTED = Policy(PolicySettings(combine="weighted", unknown=90))


def test_an_address_that_no_source_has_gets_the_score_for_unknown_ones() -> None:
    says = (SourceResult(source(), Listing.ABSENT),)
    assert WEIGHTED.judge(says) == Verdict(90, Rule.UNKNOWN, results=says)


def test_the_lowest_score_wins_and_names_its_source() -> None:
    says = (listed(source("a", 40)), listed(source("b", 20, category="spam")))
    assert LOWEST.judge(says) == Verdict(20, Rule.LOWEST, "b", "spam", says)


def test_weights_take_from_the_score_for_unknown_ones() -> None:
    says = (listed(source("a", 50, 0.2)), listed(source("b", 0, 0.3)))
    assert WEIGHTED.judge(says) == Verdict(50, Rule.WEIGHTED, "b", "", says)


def test_an_entrys_score_is_above_its_categorys_and_that_above_the_sources() -> None:
    one = source(score=30, scores=(("tor", 20),))
    assert score_of(listed(one, 10, "tor")) == 10
    assert score_of(listed(one, None, "tor")) == 20
    assert score_of(listed(one, None, "spam")) == 30


def test_who_is_allowed_is_so_whatever_others_say() -> None:
    says = (listed(source("a", 0)), listed(source("friends", allow=True)))
    assert LOWEST.judge(says) == Verdict(100, Rule.ALLOW, "friends", "", says)
    assert LOWEST.judge(says[:1], allowed=True, private=True).rule is Rule.ALLOW
    assert LOWEST.judge(says[:1]).rule is Rule.LOWEST


def test_who_is_not_of_the_public_internet_is_blocked_only_if_that_is_said() -> None:
    says = (listed(source("a", 7)),)
    assert LOWEST.judge(says, private=True) == Verdict(100, Rule.PRIVATE, results=says)
    policy = Policy(PolicySettings(block_private=True))
    assert policy.judge(says, private=True).score == 7


def test_a_source_that_failed_says_nothing_or_that_it_has_everybody() -> None:
    opened, closed = source("a", 5), source("b", 5, failed="closed")
    assert LOWEST.judge([SourceResult(opened, Listing.FAILED)]).rule is Rule.UNKNOWN
    verdict = LOWEST.judge([SourceResult(closed, Listing.FAILED)])
    assert (verdict.score, verdict.source) == (5, "b")


SOURCES = st.builds(
    source,
    st.sampled_from("abcd"),
    st.integers(0, 100),
    st.floats(0, 100),
    failed=st.sampled_from(["open", "closed"]),
)
SAYS = st.lists(
    st.builds(SourceResult, SOURCES, st.sampled_from(Listing), st.none() | st.integers(0, 100)),
    max_size=6,
)
POLICIES = st.builds(
    lambda combine, unknown, private: Policy(
        PolicySettings(combine=combine, unknown=unknown, block_private=private)
    ),
    st.sampled_from(["lowest", "weighted"]),
    st.integers(0, 100),
    st.booleans(),
)


@given(POLICIES, st.booleans(), SAYS)
def test_a_verdict_is_a_score_with_its_reasons(
    policy: Policy, private: bool, says: list[SourceResult]
) -> None:
    verdict = policy.judge(says, private=private)
    assert 0 <= verdict.score <= 100
    assert verdict.results == tuple(says)
    assert (verdict.source == "") == (verdict.rule in (Rule.UNKNOWN, Rule.PRIVATE))


@given(POLICIES, SAYS)
def test_the_order_of_the_says_does_not_change_the_score(
    policy: Policy, says: list[SourceResult]
) -> None:
    assert abs(policy.judge(says).score - policy.judge(says[::-1]).score) <= 1


@given(st.sampled_from(["lowest", "weighted"]), SAYS, SAYS)
def test_who_is_listed_by_more_has_no_better_score(
    combine: str, says: list[SourceResult], more: list[SourceResult]
) -> None:
    policy = LOWEST if combine == "lowest" else WEIGHTED
    before = policy.judge(says)
    if before.rule is not Rule.UNKNOWN or combine == "weighted":
        assert policy.judge(says + more).score <= before.score


@given(SAYS)
def test_the_lowest_is_that_of_one_who_counts(says: list[SourceResult]) -> None:
    verdict = LOWEST.judge(says)
    counting = {
        score_of(say)
        for say in says
        if say.state is Listing.LISTED
        or (say.state is Listing.FAILED and say.source.failed == "closed")
    }
    assert verdict.score == min(counting, default=100)


@given(POLICIES, st.booleans(), SAYS)
def test_who_is_allowed_by_a_source_has_the_best_score(
    policy: Policy, private: bool, says: list[SourceResult]
) -> None:
    friend = listed(source("friends", allow=True))
    verdict = policy.judge([*says, friend], private=private)
    assert (verdict.score, verdict.rule, verdict.source) == (100, Rule.ALLOW, "friends")


def test_a_source_that_is_observed_does_not_count_and_what_it_would_do_is_known() -> None:
    says = (
        listed(source("a", 40)),
        listed(source("b", 10, mode="observe")),
        listed(source("c", 60, mode="observe")),
        listed(source("d", allow=True, mode="observe")),
        SourceResult(source("e", mode="observe"), Listing.ABSENT),
        SourceResult(source("f", mode="observe"), Listing.FAILED),
        SourceResult(source("g", 5, failed="closed", mode="observe"), Listing.FAILED),
    )
    assert LOWEST.judge(says) == Verdict(
        40, Rule.LOWEST, "a", "", says, (("b", 10), ("c", 40), ("d", 100), ("g", 5))
    )
    assert LOWEST.judge(says, allowed=True).observed == tuple((name, 100) for name in "bcdg")
    assert WEIGHTED.judge(says[1:2]) == Verdict(
        90, Rule.UNKNOWN, results=says[1:2], observed=(("b", 0),)
    )


@given(
    scores=st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=6),
    combined=st.booleans(),
)
def test_verdicts_are_as_if_what_is_observed_were_not_there(
    scores: list[tuple[int, bool]], combined: bool
) -> None:
    policy = WEIGHTED if combined else LOWEST
    says = [
        listed(source(str(number), score, mode="observe" if observed else "enforce"))
        for number, (score, observed) in enumerate(scores)
    ]
    enforced = [say for say in says if say.source.mode == "enforce"]
    verdict, without = policy.judge(says), policy.judge(enforced)
    assert (verdict.score, verdict.rule, verdict.source) == (
        without.score,
        without.rule,
        without.source,
    )
    assert [name for name, _ in verdict.observed] == [
        say.source.name for say in says if say.source.mode == "observe"
    ]


# --- verdicts that no DNSBL can change ---------------------------------------------------

CODES = [IPv4Address(f"127.0.1.{n}") for n in (0, 2, 100, 255)]  # the ends of an octet, too
CODE_SETTINGS: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.fixed_dictionaries(
    {"scores": st.dictionaries(st.sampled_from(list(map(str, CODES))), st.integers(0, 100))}
)


def dnsbl(
    score: int = 0,
    weight: float = 1.0,
    failed: str = "open",
    scores: dict[str, int] | None = None,
    octet: int | None = None,
) -> SourceSettings:
    """Return a DNSBL; one of those to allow if it fails "allow"."""
    return SourceSettings(
        "bl",
        "dnsbl",
        score=score,
        weight=weight,
        allow=failed == "allow",
        failed="closed" if failed == "closed" else "open",
        scores=tuple((scores or {}).items()),
        dnsbl=DnsblSettings("bl.example", octet=octet),
    )


DNSBLS = st.lists(
    st.builds(
        lambda settings, more: dnsbl(**settings, **more),
        st.fixed_dictionaries(
            {
                "score": st.integers(0, 100),
                "weight": st.sampled_from([0.0, 0.5, 1.0]),
                "failed": st.sampled_from(["open", "closed", "allow"]),
            }
        ),
        CODE_SETTINGS | st.just({"octet": 4}),
    ),
    max_size=2,
)


def results_of(source: SourceSettings) -> list[SourceResult]:
    """Return all that a DNSBL can result in."""
    reader = CodeReader(source)
    others = (Listing.ABSENT, Listing.FAILED, Listing.OUT)
    return [SourceResult(source, state) for state in others] + [
        reader.read([code]) for code in CODES
    ]


def judged(
    policy: Policy, says: list[SourceResult], dnsbls: list[SourceSettings], **more: bool
) -> tuple[Verdict, bool, Iterator[Verdict]]:
    """Return the verdict without DNSBLs, whether it is decided, and all verdicts with them."""
    unasked = [SourceResult(source, Listing.NOT_ASKED) for source in dnsbls]
    verdict = policy.judge([*says, *unasked], **more)
    decided = policy.is_decided(verdict, [CodeReader(source).worst for source in dnsbls])
    combinations = product(*map(results_of, dnsbls))
    return verdict, decided, (policy.judge([*says, *each], **more) for each in combinations)


@given(POLICIES, SAYS, DNSBLS)
def test_no_answer_of_a_dnsbl_changes_a_score_that_is_decided(
    policy: Policy, says: list[SourceResult], dnsbls: list[SourceSettings]
) -> None:
    verdict, decided, possible = judged(policy, says, dnsbls)
    if decided:
        assert {each.score for each in possible} == {verdict.score}


@given(SAYS, DNSBLS)
def test_a_verdict_that_is_not_decided_can_be_changed(
    says: list[SourceResult], dnsbls: list[SourceSettings]
) -> None:
    verdict, decided, possible = judged(LOWEST, says, dnsbls)
    if not decided:
        assert {(each.score, each.rule) for each in possible} != {(verdict.score, verdict.rule)}


@given(POLICIES, SAYS, DNSBLS)
def test_who_is_allowed_needs_no_dnsbl(
    policy: Policy, says: list[SourceResult], dnsbls: list[SourceSettings]
) -> None:
    _, decided, possible = judged(policy, says, dnsbls, allowed=True)
    assert decided
    assert {(each.score, each.rule) for each in possible} == {(100, Rule.ALLOW)}


@pytest.mark.parametrize(
    ("combine", "score", "asked", "decided"),
    [
        ("lowest", 20, dnsbl(20), True),
        ("lowest", 21, dnsbl(20), False),
        ("lowest", 20, dnsbl(90, scores={"127.0.0.2": 20, "127.0.0.3": 70}), True),
        ("lowest", 20, dnsbl(0, scores={"127.0.0.2": 20}), True),
        ("lowest", 20, dnsbl(0, scores={"127.0.0.2": 20}, failed="closed"), False),
        ("lowest", 0, dnsbl(octet=4), True),
        ("lowest", 1, dnsbl(octet=4), False),
        ("lowest", 0, dnsbl(failed="allow"), False),
        ("weighted", 0, dnsbl(), True),
        ("weighted", 50, dnsbl(), False),
        ("weighted", 50, dnsbl(weight=0), True),
        ("weighted", 50, dnsbl(100), True),
        ("weighted", 0, dnsbl(failed="allow"), False),
    ],
)
def test_what_a_dnsbl_can_change(
    combine: Any, score: int, asked: SourceSettings, decided: bool
) -> None:
    policy = Policy(PolicySettings(combine=combine))
    verdict = policy.judge([listed(source("a", score))])
    assert policy.is_decided(verdict, [CodeReader(asked).worst]) is decided


def test_who_is_not_of_the_public_internet_or_banned_needs_no_dnsbl() -> None:
    worst = [CodeReader(dnsbl()).worst]
    assert LOWEST.is_decided(LOWEST.judge([], private=True), worst)
    assert LOWEST.is_decided(Verdict(50, Rule.BAN), worst)
    assert not LOWEST.is_decided(LOWEST.judge([]), worst)
    assert LOWEST.is_decided(LOWEST.judge([]), [])

from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.config.settings import Failed, Mode, PolicySettings, SourceSettings
from spoakit.apps.iprep.scoring.policy import Listing, Policy, Rule, SourceResult, Verdict, score_of


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

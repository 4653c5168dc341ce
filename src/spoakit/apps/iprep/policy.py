"""From what each source says of an address to its score. Nothing here is asked or kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from spoakit.apps.iprep.settings import MAX_SCORE, PolicySettings, SourceSettings


class State(Enum):
    """What a source says of an address."""

    LISTED = "listed"
    ABSENT = "absent"
    FAILED = "failed"


class Rule(Enum):
    """What decided about an address."""

    ALLOW = "allow"
    BAN = "ban"
    PRIVATE = "private"
    LOWEST = "lowest"
    WEIGHTED = "weighted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Say:
    """What one source says of an address.

    Attributes:
        source: who says it.
        state: whether it has the address, has not, or could not be asked.
        score: 0 (worst) to 100, of an address that is listed; None for the source's own.
        category: its kind; "" for the source's own.
    """

    source: SourceSettings
    state: State
    score: int | None = None
    category: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The score of an address and how it came about.

    Attributes:
        score: 0 (worst) to 100.
        rule: what decided.
        source: the name of the source that did, with `Rule.WEIGHTED` of the one that took most;
            "" for none.
        category: what it says is the kind of the address; "" for nothing.
        says: what all sources said.
    """

    score: int
    rule: Rule
    source: str = ""
    category: str = ""
    says: tuple[Say, ...] = ()


class Policy:
    """Makes verdicts as the settings say.

    Args:
        settings: how says make a score.
    """

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings

    def judge(
        self, says: Iterable[Say], *, allowed: bool = False, private: bool = False
    ) -> Verdict:
        """Return the verdict on an address.

        First come those that are allowed, then those that are not of the public Internet, then
        the sources. It depends on nothing else, so that who asks often can keep it.

        Args:
            says: what each source says of the address.
            allowed: whether it is in `PolicySettings.allow`.
            private: whether it is not of the public Internet.
        """
        says = tuple(says)
        if allowed:
            return Verdict(MAX_SCORE, Rule.ALLOW, says=says)
        for say in says:
            if say.source.allow and say.state is State.LISTED:
                return Verdict(MAX_SCORE, Rule.ALLOW, say.source.name, _category(say), says)
        if private and not self._settings.block_private:
            return Verdict(self._settings.unknown, Rule.PRIVATE, says=says)
        counting = [say for say in says if _counts(say)]
        if not counting:
            return Verdict(self._settings.unknown, Rule.UNKNOWN, says=says)
        if self._settings.combine == "lowest":
            return _lowest(counting, says)
        return self._weighted(counting, says)

    def _weighted(self, counting: Sequence[Say], says: tuple[Say, ...]) -> Verdict:
        heaviest = max(counting, key=_weight)  # the first of equal ones
        score = self._settings.unknown - sum(map(_weight, counting))
        return Verdict(
            max(0, round(score)), Rule.WEIGHTED, heaviest.source.name, _category(heaviest), says
        )


def _lowest(counting: Sequence[Say], says: tuple[Say, ...]) -> Verdict:
    worst = min(counting, key=score_of)  # the first of equal ones
    return Verdict(score_of(worst), Rule.LOWEST, worst.source.name, _category(worst), says)


def score_of(say: Say) -> int:
    """Return the score that a source gives an address: its own, its category's, the source's."""
    if say.score is not None:
        return say.score
    for category, score in say.source.scores:
        if category == say.category:
            return score
    return say.source.score


def _counts(say: Say) -> bool:
    """Whether a say is one about the score: of a source that has the address or failed closed."""
    if say.state is State.FAILED:
        return say.source.failed == "closed"
    return say.state is State.LISTED and not say.source.allow


def _weight(say: Say) -> float:
    return (MAX_SCORE - score_of(say)) * say.source.weight


def _category(say: Say) -> str:
    return say.category or say.source.category

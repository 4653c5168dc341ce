"""Meaning of a DNSBL's codes, the addresses that it answers with (RFC 5782, 2). Asks nothing."""

from collections.abc import Iterable
from ipaddress import IPv4Address

from spoakit.apps.iprep.config.sources import MAX_SCORE, SourceSettings
from spoakit.apps.iprep.config.units import CODES, ERROR_CODES, NEVER_LISTED, parse_codes
from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.scoring.policy import Listing, SourceResult, score_of


class CodeReader:
    """Reader of one DNSBL's codes.

    Args:
        source: the DNSBL.

    Attributes:
        worst: the result with the lowest score that an answer, or its failure, can have.
    """

    def __init__(self, source: SourceSettings) -> None:
        assert source.dnsbl is not None
        self._source = source
        self._settings = source.dnsbl
        named = [(*parse_codes(name), score) for name, score in source.scores]
        # The smallest range that has a code holds, as in lists.
        self._ranges = sorted(named, key=lambda each: each[1] - each[0])
        self.worst = SourceResult(source, Listing.LISTED, min(self._possible_scores()))

    def read(self, codes: Iterable[IPv4Address]) -> SourceResult:
        """Return the result of an answer: that of the code with the lowest score, if one counts.

        Raises:
            SourceError: the DNSBL refuses to answer, or another server answered in its place.
        """
        results = []
        for code in codes:
            if not is_listing(code):
                raise SourceError(f"it answered {code}, which is an error and never a listing")
            score = self._score(code)
            if score is not None:
                results.append(SourceResult(self._source, Listing.LISTED, score, str(code)))
        return min(results, key=score_of, default=SourceResult(self._source, Listing.ABSENT))

    def _score(self, code: IPv4Address) -> int | None:
        """Return the score of a code, None of one that does not count."""
        if self._settings.octet is not None:
            return self._scaled(code.packed[self._settings.octet - 1])
        if not self._ranges:
            return self._source.score
        number = int(code)
        found = (score for first, last, score in self._ranges if first <= number <= last)
        return next(found, None)

    def _scaled(self, value: int) -> int:
        best, worst = self._settings.best, self._settings.worst
        return round(MAX_SCORE * min(max((value - worst) / (best - worst), 0.0), 1.0))

    def _possible_scores(self) -> list[int]:
        """Return all scores that a result can have."""
        if self._settings.octet is not None:
            scores = [self._scaled(value) for value in range(256)]
        else:
            scores = [score for _, _, score in self._ranges] or [self._source.score]
        return scores + [self._source.score] * (self._source.failed == "closed")


def is_listing(code: IPv4Address) -> bool:
    """Return whether an address is one by which a DNSBL lists."""
    return code in CODES and code not in ERROR_CODES and code != NEVER_LISTED

"""The list that tables are compared with, and what is read of the contenders."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from benchmarks.blocklist import Blocklist, text_of
from benchmarks.contenders import OwnTable, PlainBisect, build, measured
from benchmarks.goals import goals
from benchmarks.haproxy_map import parsed_pools
from benchmarks.measure import BenchmarkError
from benchmarks.results import Case, Measurement, Results, Scenario

SMALL = Blocklist(addresses=300, networks=200, networks6=500)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def test_the_list_is_the_same_each_time_and_all_of_it_are_prefixes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    SMALL.write(first)
    SMALL.write(second)
    assert first.read_text() == second.read_text()
    assert first.read_text().startswith("#")
    networks = [ip_network(line) for line in _lines(first)]  # strict: no host bits
    assert len(networks) == len(SMALL) == 1000
    assert sum(network.version == 6 for network in networks) == 500


def test_half_the_list_has_half_of_each_kind() -> None:
    assert SMALL.scaled(0.5) == Blocklist(150, 100, 250)


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ((4, 0xC0000201, 32), "192.0.2.1"),
        ((4, 0xC0000200, 24), "192.0.2.0/24"),
        ((6, 0x20010DB8 << 96, 32), "2001:db8::/32"),
        ((6, 0x20010DB8 << 96 | 1, 128), "2001:db8::1"),
    ],
)
def test_prefixes_are_written_as_lists_have_them(prefix: tuple[int, int, int], text: str) -> None:
    assert text_of(prefix) == text


def test_at_least_half_of_the_questions_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "list"
    SMALL.write(path)
    networks = [ip_network(line) for line in _lines(path)]
    asked = SMALL.questions(200)
    listed = [any(address in network for network in networks) for address in asked]
    assert len(asked) == 200
    assert 100 <= sum(listed) < 200


def test_the_table_and_bisect_find_the_same(tmp_path: Path) -> None:
    path = tmp_path / "list"
    SMALL.write(path)
    build(path, tmp_path)
    table, bisect = OwnTable(tmp_path).load(path), PlainBisect().load(path)
    listed = [ip_network(line)[0] for line in _lines(path)]
    assert all(table(address) and bisect(address) for address in listed)
    public = ip_address("9.9.9.9")
    assert not table(public)
    assert not bisect(public)


def test_a_contender_has_all_figures(tmp_path: Path) -> None:
    path, questions = tmp_path / "list", tmp_path / "questions"
    SMALL.write(path)
    questions.write_text("".join(f"{address}\n" for address in SMALL.questions(1000)))
    figures = measured(PlainBisect(), path, questions)
    assert set(figures) == {
        *("memory MB", "peak MB", "load s", "lookup us", "warm lookup us", "lookups/s")
    }
    assert figures["load s"] > 0
    assert figures["peak MB"] > 5


def test_what_haproxy_reports_of_its_pools_is_read() -> None:
    assert parsed_pools("Uptime: 1\nPoolAlloc_bytes: 1048576\nPoolUsed_bytes: 5\n") == 1.0
    with pytest.raises(BenchmarkError, match="has no PoolAlloc_bytes"):
        parsed_pools("Unknown command")


def test_goals_of_the_table_are_those_of_the_whole_list() -> None:
    results = Results(figures={"iprep-table": {"spoakit": {"load s": [5.0, 7.0, 4.0]}}})
    whole = [str(goal) for goal in goals(results, [])]
    assert "  ok     table, loaded from text in s: 5 (<= 6)" in whole
    part = [str(goal) for goal in goals(results, [], whole_list=False)]
    assert "  -     table, loaded from text in s: not measured (<= 6)" in part


def test_a_case_is_measured_in_no_more_rounds_than_it_says() -> None:
    results = Results()
    cases = [
        Case("often", lambda: Measurement({"x": 1.0})),
        Case("once", lambda: Measurement({"x": 2.0}), max_rounds=1),
    ]
    results.run(Scenario("name", "title", cases), 3)
    assert results.figures["name"] == {"often": {"x": [1.0] * 3}, "once": {"x": [2.0]}}

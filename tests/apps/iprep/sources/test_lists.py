import gzip
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.exceptions import SourceError
from spoakit.apps.iprep.sources import lists
from spoakit.apps.iprep.sources.entries import Entries, Value
from spoakit.apps.iprep.sources.limits import ListLimits, MinPrefix
from spoakit.apps.iprep.sources.lists import Columns, CsvReader, DropReader, ListReader, PlainReader
from tests.support.forms import Form


@pytest.fixture(autouse=True)
def _each_form(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = form("spoakit.apps.iprep.sources._lists_cy")
    monkeypatch.setattr(lists, "read_common_lines", hot.read_common_lines)


def ranges(entries: Entries) -> set[str]:
    """Return the ranges as "first-last"."""
    found = {
        f"{IPv4Address(first)}-{IPv4Address(last)}"
        for first, last in zip(entries.first4, entries.last4, strict=True)
    }
    for number, low in enumerate(entries.first6[1]):
        first = entries.first6[0][number] << 64 | low
        last = entries.last6[0][number] << 64 | entries.last6[1][number]
        found.add(f"{IPv6Address(first)}-{IPv6Address(last)}")
    return found


PLAIN = b"""\
\xef\xbb\xbf# firehol_level1
;
192.0.2.7\r
198.51.100.9/24 ; SBL1
203.0.113.5-203.0.113.8
 2001:db8::1 # spaces

2001:db8:1::/48
::ffff:192.0.2.9
0.0.0.0/2
192.0.2.7
192.0.2.300
192.0.2.1-2001:db8::1
nonsense"""


def test_a_plain_list_has_addresses_networks_ranges_and_comments() -> None:
    entries = PlainReader().read(BytesIO(PLAIN))
    assert ranges(entries) == {
        "192.0.2.7-192.0.2.7",
        "198.51.100.0-198.51.100.255",
        "203.0.113.5-203.0.113.8",
        "2001:db8::1-2001:db8::1",
        "2001:db8:1::-2001:db8:1:ffff:ffff:ffff:ffff:ffff",
        "192.0.2.9-192.0.2.9",
    }
    assert (len(entries), entries.lines, entries.masked, entries.failed) == (7, 14, 1, 4)


def test_lines_that_do_not_parse_are_named_with_their_numbers() -> None:
    entries = PlainReader().read(BytesIO(PLAIN))
    assert list(map(str, entries.errors)) == [
        "line 10: '0.0.0.0/2' is larger than a /6 (min-prefix)",
        "line 12: '192.0.2.300' is not an address",
        "line 13: '192.0.2.1-2001:db8::1' begins in IPv4 and ends in IPv6",
        "line 14: 'nonsense' is not an address",
    ]


def test_of_many_wrong_lines_the_first_ten_are_kept() -> None:
    entries = PlainReader().read(BytesIO(b"192.0.2.1\n" + b"x\n" * 100_000 + b"192.0.2.2\n"))
    assert (len(entries), entries.failed, len(entries.errors)) == (2, 100_000, 10)
    assert [error.line for error in entries.errors] == list(range(2, 12))


def test_lines_are_counted_across_pieces() -> None:
    lines = [b"192.0.2.1"] * 200_000
    lines[150_000] = b"x"
    entries = PlainReader().read(BytesIO(b"\n".join(lines)))
    assert [error.line for error in entries.errors] == [150_001]
    assert entries.lines == 200_000


def test_a_list_may_be_empty_or_have_comments_alone() -> None:
    for data in (b"", b"# nothing\n\n"):
        assert len(PlainReader().read(BytesIO(data))) == 0


@pytest.mark.parametrize("reader", [PlainReader(), DropReader(), CsvReader(Columns())])
def test_a_file_of_which_nothing_can_be_used_is_refused(reader: ListReader) -> None:
    with pytest.raises(SourceError, match="none of its 2 lines can be used; line 1: "):
        reader.read(BytesIO(b"<html>\n</html>\n"))


@pytest.mark.parametrize("reader", [PlainReader(), CsvReader(Columns())])
def test_lists_may_be_compressed(reader: ListReader) -> None:
    entries = reader.read(BytesIO(gzip.compress(b"192.0.2.1\r\n::1\r\n")))
    assert ranges(entries) == {"192.0.2.1-192.0.2.1", "::1-::1"}


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for reader in (PlainReader(), DropReader(), CsvReader(Columns(score=2))):
        try:
            entries = reader.read(BytesIO(data))
        except SourceError:
            continue
        assert len(entries) + entries.failed <= entries.lines


# A /24 of which the last digit is missing, and of what follows the bits that are set are missing.
CUT = [b"45.199.0.0/2", b"45.199.0.0/12", b"2a00:1450:4001::/4", b"2a00:1450:4001::/24"]


@pytest.mark.parametrize("line", CUT)
def test_a_line_whose_prefix_is_cut_off_is_refused(line: bytes) -> None:
    for reader, data in (
        (PlainReader(), b"8.8.8.8\n" + line),
        (PlainReader(), b"8.8.8.8\n" + line + b" # comment\r\n"),
        (CsvReader(Columns()), b"8.8.8.8,x\n" + line + b",x\n"),
        (
            DropReader(),
            b'{"cidr":"8.8.8.8"}\n{"cidr":"%b"}\n{"type":"metadata","records":2}\n' % line,
        ),
    ):
        entries = reader.read(BytesIO(data))
        assert ranges(entries) == {"8.8.8.8-8.8.8.8"}
        assert (entries.failed, entries.masked) == (1, 0)
        assert str(entries.errors[0]).startswith(f"line 2: '{line.decode()}' ")


def test_the_shortest_prefixes_are_settings() -> None:
    data = b"0.0.0.0/0\n8.0.0.0/7\n8.8.8.0/24\n8.8.8.0/23\n::/0\n2001:4860::/32\n"
    counts = []
    for limits in (ListLimits(), ListLimits(MinPrefix(0, 0)), ListLimits(MinPrefix(24, 32))):
        for reader in (PlainReader(limits), CsvReader(Columns(), limits)):
            entries = reader.read(BytesIO(data))
            assert len(entries) + entries.failed == 6
            counts.append(len(entries))
    assert counts == [4, 4, 6, 6, 2, 2]


def test_networks_with_bits_behind_a_long_prefix_are_masked_and_counted() -> None:
    entries = PlainReader().read(BytesIO(b"8.8.8.8/16\n2001:4860::8/32\n8.8.8.8/24 # x\n"))
    assert ranges(entries) == {
        "8.8.0.0-8.8.255.255",
        "8.8.8.0-8.8.8.255",
        "2001:4860::-2001:4860:ffff:ffff:ffff:ffff:ffff:ffff",
    }
    assert (entries.masked, entries.failed) == (3, 0)


DROP = b"""\
{"cidr":"192.0.2.0/24","sblid":"SBL1","rir":"arin"}
{"cidr":"2001:db8::/32","sblid":"SBL2","rir":"ripencc"}
{"cidr":"nonsense"}
{"asn":64500,"rir":"apnic","domain":"example.com","cc":"XX","asname":"X"}
{"asn":0}
[]
{
{"type":"metadata","timestamp":1,"size":2,"records":7}
"""


def test_drop_lists_have_networks_or_numbers_of_networks() -> None:
    entries = DropReader().read(BytesIO(DROP))
    assert ranges(entries) == {
        "192.0.2.0-192.0.2.255",
        "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    }
    assert list(entries.asns) == [64500]
    assert [error.line for error in entries.errors] == [3, 5, 6, 7]
    assert len(entries) == 3


def test_a_drop_list_with_fewer_records_than_it_names_is_cut_off() -> None:
    lines = DROP.splitlines(keepends=True)
    with pytest.raises(SourceError, match="it is cut off: it has 6 of the 7 records it names"):
        DropReader().read(BytesIO(b"".join(lines[1:])))


def test_a_drop_list_without_its_last_line_is_cut_off() -> None:
    for cut in (b'{"cidr": "192.0.2.0/24"}\n', b'{"cidr": "192.0.2.0/24"}\n{"type": "meta', b"\n"):
        with pytest.raises(SourceError, match="cut off: it has no line of the type 'metadata'"):
            DropReader().read(BytesIO(cut))


CSV = b"""\
# made today
# "ip", confidence, kind
192.0.2.1,100,spam
"192.0.2.0/24", 50 ,"scan, brute force"
2001:db8::1,0,
192.0.2.2,x,spam
192.0.2.3
192.0.2.4,nan,
192.0.2.5,1000,spam
"""


def test_columns_are_found_by_name_and_scores_scaled() -> None:
    columns = Columns("ip", score="confidence", category="kind", best=0, worst=100)
    entries = CsvReader(columns).read(BytesIO(CSV))
    assert entries.values == (Value(0, "spam"), Value(50, "scan, brute force"), Value(100, ""))
    assert list(entries.values4) == [0, 1, 0]
    assert list(entries.values6) == [2]
    assert list(map(str, entries.errors)) == [
        "line 6: 'x' is not a number",
        "line 7: it has 1 columns, of which 3 are needed",
        "line 8: 'nan' is not a number",
    ]


def test_empty_columns_count_also_at_the_ends_of_a_line() -> None:
    columns = Columns("ip", score="confidence", category="kind", delimiter="\t", best=0, worst=100)
    data = (
        b"seen\tip\tconfidence\tkind\n"
        b"\t8.8.8.1\t100\tbotnet\r\n"
        b"\t8.8.8.2\t100\t\r\n"
        b"\t8.8.8.3\t\t\n"
        b"now\t8.8.8.4\t \tbotnet\n"
        b"\t\t\t\n"
        b"   \n"
    )
    entries = CsvReader(columns).read(BytesIO(data))
    values = {
        str(IPv4Address(first)): entries.values[value]
        for first, value in zip(entries.first4, entries.values4, strict=True)
    }
    assert values == {
        "8.8.8.1": Value(0, "botnet"),
        "8.8.8.2": Value(0, ""),
        "8.8.8.3": Value(None, ""),
        "8.8.8.4": Value(None, "botnet"),
    }
    assert entries.failed == 0


def test_a_first_column_without_a_name_is_one() -> None:
    entries = CsvReader(Columns("ip", delimiter="\t")).read(BytesIO(b"\tip\n1\t8.8.8.1\n"))
    assert ranges(entries) == {"8.8.8.1-8.8.8.1"}


CROWDSEC = b"""\
id,source,ip,reason,action,country,as,events_count,expiration,simulated,alert_id
1,crowdsec,Ip:8.8.8.1,crowdsecurity/ssh-bf,ban,DE,3320 T,6,3h59m,false,1
2,crowdsec,Ip:8.8.8.2,crowdsecurity/http-probing,captcha,DE,3320 T,6,3h59m,false,2
3,cscli,Range:8.8.4.0/24,"manual, by me",ban,,,1,23h,false,3
4,crowdsec,Ip:2001:4860::1,crowdsecurity/ssh-bf,ban,US,15169 G,6,3h,false,4
5,crowdsec,Ip:8.8.8.5,crowdsecurity/ssh-bf,ban,US,15169 G,6,3h,true,5
6,cscli,Country:XX,manual,ban,,,1,23h,false,6
7,short
"""


@pytest.mark.parametrize(
    "columns",
    [
        Columns("ip", filter=(("action", ("ban",)), ("simulated", ("false", "no")))),
        Columns(3, filter=((5, ("ban", "x")), (10, ("false",)))),
    ],
)
def test_crowdsecs_decisions_are_read_and_filtered_by_columns(columns: Columns) -> None:
    entries = CsvReader(columns).read(BytesIO(CROWDSEC))
    assert ranges(entries) == {
        "8.8.8.1-8.8.8.1",
        "8.8.4.0-8.8.4.255",
        "2001:4860::1-2001:4860::1",
    }
    assert list(map(str, entries.errors)) == [
        "line 7: 'Country:XX' is not an address",
        "line 8: it has 2 columns, of which 10 are needed",
    ]


def test_lines_that_a_filter_leaves_out_are_not_refused() -> None:
    columns = Columns("ip", filter=(("action", ("throttle",)),))
    entries = CsvReader(columns).read(BytesIO(CROWDSEC))
    assert (len(entries), entries.skipped, entries.failed) == (0, 6, 1)


def test_a_column_to_filter_by_that_is_not_there_is_named() -> None:
    columns = Columns("ip", filter=(("actoin", ("ban",)),))
    with pytest.raises(SourceError, match="no column 'actoin' in its first line: 'id', 'source'"):
        CsvReader(columns).read(BytesIO(CROWDSEC))


def test_columns_are_found_by_number() -> None:
    columns = Columns(2, 3, category=1, delimiter=";")
    entries = CsvReader(columns).read(BytesIO(b"a;192.0.2.1;192.0.2.9\nb;::1;::2\n"))
    assert ranges(entries) == {"192.0.2.1-192.0.2.9", "::1-::2"}
    assert entries.values == (Value(None, "a"), Value(None, "b"))


def test_without_a_score_or_category_there_are_no_values() -> None:
    entries = CsvReader(Columns("ip")).read(BytesIO(b"when,ip\n1,192.0.2.1\n"))
    assert (entries.values, list(entries.values4), len(entries)) == ((), [], 1)


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(SourceError, match="no column 'ip' in its first line: 'when', 'address'"):
        CsvReader(Columns("ip")).read(BytesIO(b"when,address\n1,192.0.2.1\n"))


def test_a_quote_that_is_not_closed_costs_its_line_alone() -> None:
    entries = CsvReader(Columns()).read(BytesIO(b'"192.0.2.1\n192.0.2.2\n'))
    assert "192.0.2.2-192.0.2.2" in ranges(entries)


def test_a_line_that_is_too_long_is_one_that_does_not_parse() -> None:
    entries = CsvReader(Columns()).read(BytesIO(b"1" * 500_000 + b"\n192.0.2.2\n"))
    assert list(map(str, entries.errors)) == ["line 1: it is longer than 65536 bytes"]
    assert ranges(entries) == {"192.0.2.2-192.0.2.2"}

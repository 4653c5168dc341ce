import pytest

from spoakit.apps.iprep.addresses import parse_range
from spoakit.apps.iprep.sources.entries import MAX_VALUES, Entries, Value, ValuedEntries


def test_ipv6_addresses_are_kept_in_two_halves() -> None:
    entries = Entries()
    entries.add(parse_range("2001:db8::1-2001:db8::2"))
    assert [list(half) for half in entries.first6] == [[0x20010DB8 << 32], [1]]
    assert [list(half) for half in entries.last6] == [[0x20010DB8 << 32], [2]]
    assert len(entries) == 1


def test_a_lower_place_is_a_worse_value() -> None:
    entries = Entries()
    valued = ValuedEntries(entries)
    for text, value in (("192.0.2.1", Value(70)), ("192.0.2.2", Value(None, "tor"))):
        valued.add(parse_range(text), value)
    valued.add(parse_range("::1"), Value(5, "spam"))
    valued.add_asn(64500, Value(70))
    valued.finish()
    assert entries.values == (Value(5, "spam"), Value(70), Value(None, "tor"))
    assert list(entries.values4) == [1, 2]
    assert list(entries.values6) == [0]
    assert list(entries.asn_values) == [1]


def test_values_are_bounded() -> None:
    valued = ValuedEntries(Entries())
    for number in range(MAX_VALUES):
        valued.add_asn(number, Value(0, str(number)))
    valued.add_asn(1, Value(0, "0"))
    with pytest.raises(ValueError, match="'x' is one more than 65535 different categories"):
        valued.add_asn(1, Value(0, "x"))

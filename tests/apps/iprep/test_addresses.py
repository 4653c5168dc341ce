from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.addresses import (
    PRIVATE,
    address_of,
    number_of,
    parse_number,
    parse_range,
    unmapped,
)


def is_public(version: int, number: int) -> bool:
    return not any(kind == version and first <= number <= last for kind, first, last, _ in PRIVATE)


@given(st.ip_addresses())
def test_an_address_is_its_number(address: object) -> None:
    one = ip_address(str(address))
    version, number = parse_number(str(one))
    assert (version, number) == number_of(one)
    if version == one.version:
        assert address_of(version, number) == one


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_network_is_the_range_of_its_addresses(address: object, prefix: int) -> None:
    network = ip_network(f"{address}/{prefix}", strict=False)
    version, first, last, masked = parse_range(f"{address}/{prefix}")
    assert (version, first, last) == (4, int(network[0]), int(network[-1]))
    assert masked == (str(network[0]) != str(address))


def test_ranges_may_have_spaces_around_their_dash() -> None:
    assert parse_range("192.0.2.1 - 192.0.2.9") == (4, 0xC0000201, 0xC0000209, False)
    assert parse_range("::1-::3") == (6, 1, 3, False)


def test_ipv4_mapped_into_ipv6_is_ipv4() -> None:
    assert parse_range("::ffff:192.0.2.0/120") == (4, 0xC0000200, 0xC00002FF, False)
    assert parse_range("::ffff:192.0.2.0/64")[0] == 6
    assert unmapped(ip_address("::ffff:192.0.2.1")) == ip_address("192.0.2.1")
    assert unmapped(ip_address("::1")) == ip_address("::1")
    assert parse_range("::/0") == (6, 0, 2**128 - 1, False)


@given(st.ip_addresses(v=4))
def test_public_are_the_addresses_of_the_internets_hosts(address: object) -> None:
    one = ip_address(str(address))
    if one not in ip_network("192.0.0.0/24"):  # in which single addresses differ by Python's age
        assert is_public(4, int(one)) == (one.is_global and not one.is_multicast)


@pytest.mark.parametrize("text", ["64:ff9b::808:808", "2001:4860::1", "2a00::", "3ffe::1"])
def test_public_addresses_of_ipv6(text: str) -> None:
    assert is_public(6, int(ip_address(text)))


@pytest.mark.parametrize("text", ["::", "::1", "2001:db8::1", "fc00::", "fe80::1", "ff02::1"])
def test_other_addresses_of_ipv6(text: str) -> None:
    assert not is_public(6, int(ip_address(text)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not an address"),
        ("192.0.2", "'192.0.2' is not an address"),
        ("192.0.2.01", "is not an address"),
        ("192.0.2.256", "is not an address"),
        ("fe80::1%eth0", "is not an address"),
        ("192.0.2.1\0", "is not an address"),
        ("\uff1192.0.2.1", "is not an address"),
        ("192.0.2.1/33", "'33' is not the length of a prefix, 0 to 32"),
        ("192.0.2.1/", "'' is not the length of a prefix"),
        ("::/129", "'129' is not the length of a prefix, 0 to 128"),
        ("192.0.2.9-192.0.2.1", "ends before it begins"),
        ("192.0.2.1-::1", "begins in IPv4 and ends in IPv6"),
    ],
)
def test_what_is_no_range_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_range(text)

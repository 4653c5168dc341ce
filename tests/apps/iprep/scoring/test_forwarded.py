from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.scoring.forwarded import Trusted
from spoakit.exceptions import ConfigurationError

TRUSTED = Trusted(("10.0.0.0/8", "192.0.2.1-192.0.2.9", "2001:db8::/32", "10.1.0.0/16"))


@pytest.mark.parametrize(
    ("source", "header", "client"),
    [
        ("10.0.0.1", "8.8.8.8", "8.8.8.8"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "7.7.7.7, 8.8.8.8", "8.8.8.8"),
        ("10.0.0.1", "7.7.7.7, 8.8.8.8, 10.9.9.9,192.0.2.5", "8.8.8.8"),
        ("10.0.0.1", "10.2.2.2, 10.3.3.3", "10.2.2.2"),
        ("8.8.4.4", "7.7.7.7", "8.8.4.4"),
        ("192.0.2.10", "7.7.7.7", "192.0.2.10"),
        ("2001:db8::1", "2001:4860::1", "2001:4860::1"),
        ("10.0.0.1", "8.8.8.8:1234", "8.8.8.8"),
        ("10.0.0.1", "[2001:4860::1]:1234", "2001:4860::1"),
        ("10.0.0.1", "[2001:4860::1]", "2001:4860::1"),
        ("10.0.0.1", "\t 8.8.8.8 ", "8.8.8.8"),
        ("10.0.0.1", "::ffff:8.8.8.8", "8.8.8.8"),
        ("10.0.0.1", "7.7.7.7, ::ffff:10.1.1.1", "7.7.7.7"),
        # What stands before what cannot be read is not believed.
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "7.7.7.7, unknown, 10.2.2.2", "10.2.2.2"),
        ("10.0.0.1", "7.7.7.7, _hidden, 8.8.8.8", "8.8.8.8"),
        ("10.0.0.1", "7.7.7.7,,", "10.0.0.1"),
        ("10.0.0.1", "08.8.8.8", "10.0.0.1"),
        ("10.0.0.1", "8.8.8.8/24", "10.0.0.1"),
        ("10.0.0.1", "8.8.8.8\0", "10.0.0.1"),
        ("10.0.0.1", "é", "10.0.0.1"),
        ("10.0.0.1", "[", "10.0.0.1"),
        ("10.0.0.1", "fe80::1%eth0", "10.0.0.1"),
    ],
)
def test_the_last_address_that_is_no_proxys_counts(source: str, header: str, client: str) -> None:
    assert TRUSTED.client_of(ip_address(source), [header]) == ip_address(client)


def test_no_more_than_64_proxies_are_believed() -> None:
    chain = ", ".join(f"10.0.0.{number}" for number in range(100))
    found = TRUSTED.client_of(ip_address("10.9.9.9"), [f"8.8.8.8, {chain}"])
    assert found == ip_address("10.0.0.36")
    at_most = ", ".join(["8.8.8.8", *["10.0.0.1"] * 63])
    assert TRUSTED.client_of(ip_address("10.9.9.9"), [at_most]) == ip_address("8.8.8.8")
    assert TRUSTED.client_of(ip_address("10.9.9.9"), ["," * 1_000_000]) == ip_address("10.9.9.9")


def test_with_nobody_trusted_the_source_is_the_client() -> None:
    assert Trusted(()).client_of(ip_address("10.0.0.1"), ["8.8.8.8"]) == ip_address("10.0.0.1")


def test_what_is_no_range_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"forwarded\.trusted\[2\]: 'proxy'"):
        Trusted(("10.0.0.0/8", "proxy"))


networks = st.one_of(
    st.builds(
        lambda number, prefix: ip_network((number, prefix), strict=False),
        st.integers(2**32, 2**128 - 1).map(lambda number: number | 1 << 127),
        st.integers(1, 128),
    ),
    st.builds(
        lambda number, prefix: ip_network((number, prefix), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
)
addresses = st.one_of(
    st.integers(0, 2**32 - 1).map(ip_address),
    st.integers(1 << 127, 2**128 - 1).map(ip_address),
)


@given(st.lists(networks, max_size=8), addresses)
def test_who_is_trusted_is_found_as_by_looking_at_all(
    trusted: list[object], number: object
) -> None:
    address = ip_address(str(number))
    expected = any(address in ip_network(str(network)) for network in trusted)
    assert (address in Trusted(tuple(map(str, trusted)))) == expected


@given(st.text(max_size=200))
def test_any_header_has_an_answer(header: str) -> None:
    TRUSTED.client_of(ip_address("10.0.0.1"), [header])

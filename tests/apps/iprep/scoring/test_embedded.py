from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.config.schema import PolicySettings
from spoakit.apps.iprep.scoring.embedded import EmbeddedAddresses, severity
from spoakit.apps.iprep.scoring.policy import Rule, Verdict
from spoakit.exceptions import ConfigurationError

WELL_KNOWN = EmbeddedAddresses(PolicySettings().nat64)


@pytest.mark.parametrize(
    ("prefix", "address"),
    # RFC 6052, 2.4: 192.0.2.33 behind prefixes of each length.
    [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
    ],
)
def test_a_translated_address_carries_one_of_ipv4(prefix: str, address: str) -> None:
    found = EmbeddedAddresses((prefix,)).ipv4_of(IPv6Address(address))
    assert found == IPv4Address("192.0.2.33")
    assert EmbeddedAddresses(()).ipv4_of(IPv6Address(address)) is None


def test_6to4_carries_one_too_and_others_do_not() -> None:
    assert WELL_KNOWN.ipv4_of(IPv6Address("2002:c000:221::1")) == IPv4Address("192.0.2.33")
    for address in ("64:ff9b:1::192.0.2.33", "64:ff9b::1:192.0.2.33", "2003:c000:221::", "::1"):
        assert WELL_KNOWN.ipv4_of(IPv6Address(address)) is None


@given(st.integers(0, 2**128 - 1))
def test_the_well_known_prefix_is_found_as_by_looking(number: int) -> None:
    address = IPv6Address(number)
    assert (WELL_KNOWN.ipv4_of(address) is not None) == (
        address in ip_network("64:ff9b::/96") or address in ip_network("2002::/16")
    )


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("64:ff9b::192.0.2.1", "192.0.2.1/32"),
        ("2002:c000:201:5::1", "192.0.2.1/32"),
        ("2001:db8:1:2:3::4", "2001:db8:1::/56"),
    ],
)
def test_a_client_is_banned_by_its_network(address: str, network: str) -> None:
    assert WELL_KNOWN.network_of(ip_address(address), 56) == ip_network(network)


@pytest.mark.parametrize("prefix", ["64:ff9b::/95", "10.0.0.0/8", "64:ff9b::1/96", "nonsense"])
def test_what_is_not_a_translators_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match=r"policy\.nat64\[2\]: .* is not an IPv6 network"):
        PolicySettings(nat64=("64:ff9b::/96", prefix))


def test_of_the_verdicts_on_one_client_the_most_severe_holds() -> None:
    verdicts = [
        Verdict(100, Rule.ALLOW),
        Verdict(0, Rule.BAN),
        Verdict(5, Rule.LOWEST),
        Verdict(80, Rule.WEIGHTED),
        Verdict(50, Rule.UNKNOWN),
        Verdict(60, Rule.PRIVATE),
    ]
    assert sorted(reversed(verdicts), key=severity) == verdicts

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit.apps.iprep.addresses import PRIVATE, parse_range
from spoakit.apps.iprep.sources import limits
from spoakit.apps.iprep.sources.entries import Entries
from spoakit.apps.iprep.sources.limits import ListLimits, MinPrefix
from spoakit.exceptions import ConfigurationError


def entries(*ranges: str) -> Entries:
    found = Entries()
    for each in ranges:
        found.add(parse_range(each))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "8.0.0.0/6",
        "8.0.0.0-11.255.255.255",
        "2600::/12",
        "45.199.7.0/16",
        "2a00:1::1/32",
        "224.0.0.0/3",
        "10.0.0.0-10.255.255.255",
        "4000::/2",
    ],
)
def test_what_real_lists_have_is_taken(text: str) -> None:
    assert ListLimits().parse(text) == parse_range(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0.0.0/0", "'0.0.0.0/0' is larger than a /6 (min-prefix)"),
        ("45.199.0.0/2", "'45.199.0.0/2' is larger than a /6 (min-prefix)"),
        ("8.0.0.0-12.0.0.0", "'8.0.0.0-12.0.0.0' is larger than a /6 (min-prefix)"),
        ("::/0", "'::/0' is larger than a /12 (min-prefix)"),
        ("2000::/11", "'2000::/11' is larger than a /12 (min-prefix)"),
        ("::ffff:0:0/96", "'::ffff:0:0/96' is larger than a /6 (min-prefix)"),
        ("45.199.0.0/12", "'45.199.0.0/12' has bits set behind a prefix shorter than /16, "),
        ("10.1.0.0/8", "'10.1.0.0/8' has bits set behind a prefix shorter than /16, "),
        ("2a00:1::/20", "'2a00:1::/20' has bits set behind a prefix shorter than /32, "),
    ],
)
def test_what_is_too_large_or_seems_to_be_cut_off_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"is larger|has bits") as caught:
        ListLimits().parse(text)
    assert str(caught.value).startswith(reason)


def test_the_shortest_prefixes_are_settings() -> None:
    assert ListLimits(MinPrefix(0, 0)).parse("0.0.0.0/0")
    assert ListLimits(MinPrefix(0, 0)).parse("::/0")
    with pytest.raises(ValueError, match="larger than a /32"):
        ListLimits(MinPrefix(32, 128)).parse("8.8.8.8/31")
    for prefixes in ((-1, 0), (33, 0), (0, -1), (0, 129)):
        with pytest.raises(ConfigurationError, match="min-prefix"):
            ListLimits(MinPrefix(*prefixes))
    with pytest.raises(ConfigurationError, match="max-share"):
        ListLimits(max_share=101)


NETWORKS = st.one_of(
    st.builds(
        lambda address, length: IPv4Network((address, length), strict=False),
        st.ip_addresses(v=4),
        st.integers(0, 32),
    ),
    st.builds(
        lambda address, length: IPv6Network((address, length), strict=False),
        st.integers(2**48, 2**128 - 1),
        st.integers(0, 128),
    ),
)


@given(NETWORKS, st.integers(0, 32), st.integers(0, 128))
def test_networks_of_free_bits_that_are_not_checked_are_never_refused(
    network: IPv4Network | IPv6Network, prefix4: int, prefix6: int
) -> None:
    limits = ListLimits(MinPrefix(prefix4, prefix6))
    free = network.max_prefixlen - network.prefixlen
    if free <= limits.unchecked_bits[0 if network.version == 4 else 1]:
        limits.parse(f"{network[-1]}/{network.prefixlen}")


def test_a_share_of_the_public_addresses_is_too_large() -> None:
    limits = ListLimits()
    assert limits.excess(entries()) == ""
    assert limits.excess(entries("8.0.0.0/6", "12.0.0.0/7")) == ""
    assert limits.excess(entries("12.0.0.0/6", "16.0.0.0/6", "20.0.0.0/6")) == (
        "it has 5.44 percent of all public IPv4 addresses, more than max-share = 5; "
        "raise that if it is meant"
    )
    assert "12.5 percent of all public IPv6 addresses" in limits.excess(entries("2400::/6"))
    assert ListLimits(max_share=6).excess(entries("12.0.0.0/6", "16.0.0.0/6", "20.0.0.0/6")) == ""
    assert ListLimits(max_share=0).excess(entries("8.8.8.8")) != ""


def test_each_public_address_counts_once() -> None:
    doubled = ("8.0.0.0/6", "8.0.0.0/6", "8.8.0.0/16", "9.0.0.0-11.255.255.255")
    assert ListLimits().excess(entries(*doubled)) == ""
    special = ("10.0.0.0/8", "224.0.0.0/3", "100.64.0.0/10", "4000::/2", "e000::/3")
    assert ListLimits(max_share=0).excess(entries(*special)) == ""


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=12))
def test_the_size_of_ranges_is_that_of_the_set_of_their_addresses(
    ranges: list[tuple[int, int]],
) -> None:
    firsts = [first for first, _ in ranges]
    lasts = [first + more for first, more in ranges]
    addresses = {
        a for first, last in zip(firsts, lasts, strict=True) for a in range(first, last + 1)
    }
    assert limits._size(firsts, lasts) == len(addresses)


def test_everything_is_a_hundred_percent() -> None:
    for everything in ("0.0.0.0/0", "::/0"):
        excess = ListLimits(max_share=99.9).excess(entries(everything))
        assert excess.startswith("it has 100 percent of all public")


def test_special_addresses_are_those_that_sources_do_not_count_for() -> None:
    for version, first, last, _ in PRIVATE:
        found = Entries()
        found.add((version, first, last, False))
        assert ListLimits(max_share=0).excess(found) == ""

import time
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoakit import Headers
from spoakit.apps.iprep.scoring.forwarded import Trusted, lines_of
from spoakit.exceptions import ConfigurationError
from spoakit.spop.messages import Argument, Message

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


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["8.8.8.8", "10.1.1.1"], "8.8.8.8"),
        (["7.7.7.7, 8.8.8.8", "10.1.1.1, 10.2.2.2", "10.3.3.3"], "8.8.8.8"),
        (["7.7.7.7", "8.8.8.8"], "8.8.8.8"),
        (["7.7.7.7", "nonsense", "10.1.1.1"], "10.1.1.1"),
        (["7.7.7.7", "", "10.1.1.1"], "10.1.1.1"),
        ([], "10.0.0.1"),
    ],
)
def test_all_lines_of_a_header_are_one_list(lines: list[str], client: str) -> None:
    assert TRUSTED.client_of(ip_address("10.0.0.1"), lines) == ip_address(client)


def test_the_64_proxies_may_be_in_several_lines() -> None:
    lines = ["8.8.8.8", *["10.0.0.1, 10.0.0.2"] * 31, "10.0.0.3"]
    assert TRUSTED.client_of(ip_address("10.9.9.9"), lines) == ip_address("8.8.8.8")
    too_many = [*lines, "10.0.0.4"]
    assert TRUSTED.client_of(ip_address("10.9.9.9"), too_many) == ip_address("10.0.0.1")


FORWARDED = Trusted(("10.0.0.0/8", "2001:db8::/32"), "forwarded")


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["for=8.8.8.8"], "8.8.8.8"),
        (["For=8.8.8.8;Proto=https;by=10.0.0.2"], "8.8.8.8"),
        (['proto=https ; host="a, for=7.7.7.7" ; for=8.8.8.8;'], "8.8.8.8"),
        (['for="[2001:4860::1]:4711"'], "2001:4860::1"),
        (['for="[2001:4860::1]"'], "2001:4860::1"),
        (['for="8.8.8.8:4711"'], "8.8.8.8"),
        (["for=8.8.8.8:4711"], "8.8.8.8"),  # a proxy that leaves the quotes out
        (['for="8.8.8\\.8"'], "8.8.8.8"),  # RFC 9110, 5.6.4
        (["for=7.7.7.7, for=8.8.8.8, for=10.1.1.1"], "8.8.8.8"),
        (["for=7.7.7.7, for=8.8.8.8", 'for="[2001:db8::7]";proto=http'], "8.8.8.8"),
        # What a proxy does not tell ends the walk, at the last address that is known.
        (["for=8.8.8.8, for=unknown"], "10.0.0.1"),
        (["for=8.8.8.8, for=_hidden, for=10.1.1.1"], "10.1.1.1"),
        (['for=8.8.8.8, for="_hidden:_port"'], "10.0.0.1"),
        (["for=8.8.8.8, proto=https"], "10.0.0.1"),
        (["for=8.8.8.8,"], "10.0.0.1"),
        (["for=8.8.8.8;for=9.9.9.9"], "10.0.0.1"),
        (["for= 8.8.8.8"], "10.0.0.1"),
        (["8.8.8.8"], "10.0.0.1"),
        ([""], "10.0.0.1"),
        (['for="[2001:4860::1]x"'], "10.0.0.1"),
        # What a client writes cannot hide what proxies append to it.
        (['for="7.7.7.7, for=8.8.8.8, for=10.1.1.1'], "8.8.8.8"),
        (['x="\\", for="8.8.8.8", for="10.1.1.1"'], "8.8.8.8"),
        (['x=\\, for="8.8.8.8"'], "8.8.8.8"),
        (['", for="8.8.8.8"'], "8.8.8.8"),
        (['for="7.7.7.7', "for=8.8.8.8"], "8.8.8.8"),
        (['"7.7.7.7", for=10.1.1.1'], "10.1.1.1"),
        (['7.7.7.7", for=10.1.1.1'], "10.1.1.1"),
    ],
)
def test_forwarded_is_read_from_its_end(lines: list[str], client: str) -> None:
    assert FORWARDED.client_of(ip_address("10.0.0.1"), lines) == ip_address(client)


def quoted(text: str) -> str:
    return '"' + "".join(f"\\{each}" if each in '"\\' else each for each in text) + '"'


values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)


@given(values, st.lists(st.lists(values, max_size=3), max_size=3))
def test_no_client_hides_what_proxies_append(invented: str, proxies: list[list[str]]) -> None:
    """Whatever it sends, and whatever proxies quote in other parameters."""
    line = f"{invented}, for=8.8.8.8"
    for parameters in proxies:
        others = "".join(f";x{n}={quoted(text)}" for n, text in enumerate(parameters))
        line += f", for=10.1.1.1{others}"
    assert FORWARDED.client_of(ip_address("10.0.0.1"), [line]) == ip_address("8.8.8.8")


@given(st.text('for=";,\\ 18.[]:', max_size=60))
def test_any_forwarded_has_an_answer(header: str) -> None:
    FORWARDED.client_of(ip_address("10.0.0.1"), [header])


@pytest.mark.parametrize("line", ['\\"' * 8000, "," * 16_000, '"' * 16_000, "for=" * 4000])
def test_a_long_forwarded_costs_little(line: str) -> None:
    start = time.process_time()
    FORWARDED.client_of(ip_address("10.0.0.1"), [line, "for=10.1.1.1"])
    assert time.process_time() - start < 0.05


def test_lines_come_in_several_arguments_or_in_a_block() -> None:
    block = Headers.of(
        ("Host", "a"), ("X-Forwarded-For", "7.7.7.7"), ("x-forwarded-for", "8.8.8.8")
    ).encode()
    message = Message(
        "check",
        (
            Argument.of("", ip_address("10.0.0.1")),
            Argument.of("xff", None),
            Argument.of("xff", "6.6.6.6"),
            Argument.of("other", "5.5.5.5"),
            Argument.of("xff", block),
        ),
    )
    assert lines_of(message, "xff", "x-forwarded-for") == ["6.6.6.6", "7.7.7.7", "8.8.8.8"]
    with pytest.raises(ValueError, match=r"not a req\.hdrs_bin block"):
        lines_of(Message("check", (Argument.of("xff", b"8.8.8.8"),)), "xff", "x-forwarded-for")


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

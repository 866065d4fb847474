"""Addresses: which network they are in, and whose they are behind proxies."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_gateway.auth.netlist import caller_address, net_list, parse_address, parse_network

TRUSTED = net_list(("10.0.0.0/8", "fd00::/8"))


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        (" 192.0.2.7 ", "192.0.2.7/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_network_is_read_and_ipv4_in_ipv6_is_ipv4(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize("text", ["", "x", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/", "1.2.3", "::/129", "10.0.0.0/8/8"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        parse_network(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:1234", "192.0.2.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ('"[2001:db8::1]"', "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ("192.0.2.256", None),
    ],
)
def test_an_address_is_read_from_a_hop(text: str, address: str | None) -> None:
    assert parse_address(text) == (None if address is None else ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("198.51.100.1", [], "198.51.100.1"),
        ("198.51.100.1", ["192.0.2.7"], "198.51.100.1"),  # nobody's proxy: what it says does not count
        ("10.1.1.1", ["192.0.2.7"], "192.0.2.7"),
        ("::ffff:10.1.1.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.1.1.1", ["203.0.113.9, 192.0.2.7"], "192.0.2.7"),  # the caller wrote the first itself
        ("10.1.1.1", ["192.0.2.7, 10.2.2.2, fd00::5"], "192.0.2.7"),
        ("10.1.1.1", ["192.0.2.7", "10.2.2.2"], "192.0.2.7"),
        ("10.1.1.1", ["10.3.3.3"], "10.3.3.3"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", ["192.0.2.7, unknown"], None),
        (None, ["192.0.2.7"], None),
    ],
)
def test_the_caller_is_the_first_hop_from_the_right_that_is_no_proxy_of_ours(
    peer: str | None, forwarded: list[str], address: str | None
) -> None:
    found = caller_address(peer, forwarded, TRUSTED)
    assert found == (None if address is None else ipaddress.ip_address(address))


@given(st.lists(st.text(max_size=30), max_size=5))
def test_no_header_can_claim_another_address_than_the_one_that_our_proxy_saw(written: list[str]) -> None:
    """Whatever a caller writes into its header, our proxy appends the address that it was called from."""
    seen = ipaddress.ip_address("192.0.2.7")
    assert caller_address("10.1.1.1", [*written, str(seen)], TRUSTED) == seen
    assert caller_address("10.1.1.1", [", ".join([*written, str(seen)])], TRUSTED) == seen
    assert caller_address("192.0.2.7", written, TRUSTED) == seen


def test_a_header_of_any_length_is_read_in_bounded_steps() -> None:
    hops = ", ".join(["10.0.0.1"] * 100_000)
    assert caller_address("10.1.1.1", [hops], TRUSTED) in TRUSTED


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_list_holds_what_its_networks_hold(address: ipaddress.IPv4Address, length: int) -> None:
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    assert address in net_list((str(network),))
    assert parse_address(f"::ffff:{address}") in net_list((str(network),))
    assert address not in net_list(())

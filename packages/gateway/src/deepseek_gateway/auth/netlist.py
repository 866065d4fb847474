"""Where a request comes from: address lists, and the caller's address behind proxies.

Source: RFC 7239, section 8.1, on why forwarded addresses count only as far as each hop is trusted.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOPS = 32
"""Forwarded addresses that are read at most: nobody has more proxies."""

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class NetList:
    """Networks, such as those that a key may be used from. An empty list holds no address."""

    networks: tuple[Network, ...]

    def __contains__(self, address: object) -> bool:
        return any(address in network for network in self.networks)

    def __str__(self) -> str:
        return ", ".join(str(network) for network in self.networks)


@lru_cache(maxsize=4096)
def net_list(texts: tuple[str, ...]) -> NetList:
    """The list of these networks, remembered: keys bring the same texts with each request.

    Raises:
        ValueError: one is no network.
    """
    return NetList(tuple(parse_network(text) for text in texts))


def parse_network(text: str) -> Network:
    """The network `10.0.0.0/8`, `2001:db8::/32`, or of one address. IPv4 in IPv6 (`::ffff:10.0.0.0/104`) is IPv4.

    Raises:
        ValueError: it is none; the message says what to write.
    """
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is no network: write 10.0.0.0/8, 2001:db8::/32 or one address") from None
    given, slash, _ = text.strip().partition("/")
    if slash and ipaddress.ip_address(given) != network.network_address:
        raise ValueError(f"{text[:80]!r} has bits beyond its prefix: write {network}")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        assert mapped is not None
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def parse_address(text: str) -> Address | None:
    """The address in a peer name or a forwarded hop: bare, in brackets, with a port or a zone. None: it is none."""
    host = text.strip().strip('"')
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def caller_address(peer: str | None, forwarded: Iterable[str], trusted: NetList) -> Address | None:
    """The address of the nearest caller that is not one of our proxies.

    Each proxy appends the address it was called from, so `X-Forwarded-For` is read from its right end, and only as long
    as the hop that wrote an entry is trusted: what a caller wrote into the header itself is never reached.

    Args:
        peer: the connection's other end; None on a unix socket.
        forwarded: values of the `X-Forwarded-For` headers, in their order.
        trusted: our proxies.

    Returns:
        None when it cannot be told: a trusted proxy wrote something that is no address, or there is no peer.
    """
    address = None if peer is None else parse_address(peer)
    if address is None or address not in trusted:
        return address
    for hop in _from_the_right(list(forwarded)):
        address = parse_address(hop)
        if address is None or address not in trusted:
            return address
    return address


def _from_the_right(headers: Sequence[str]) -> list[str]:
    hops: list[str] = []
    for value in reversed(headers):
        hops += [hop for hop in reversed(value.rsplit(",", MAX_HOPS)) if hop.strip()]
    return hops[:MAX_HOPS]

"""Whose address a request comes from: the peer's, or, through proxies that the settings name, the one that those tell.

Promise: `X-Forwarded-For` is believed from the right, and only as long as whoever added the entry is a trusted proxy; a client
cannot put an address before its own. What is no address there ends the reading: the last one that is known is taken.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_HOPS = 20


def client(peer: str | None, forwarded: Sequence[str], proxies: Sequence[Network]) -> str:
    """`forwarded` are the `X-Forwarded-For` headers in their order. Empty when the peer has no address.

    >>> client("10.0.0.1", ["203.0.113.9, 198.51.100.7"], [ipaddress.ip_network("10.0.0.0/8")])
    '198.51.100.7'
    >>> client("192.0.2.1", ["203.0.113.9"], [ipaddress.ip_network("10.0.0.0/8")])
    '192.0.2.1'
    """
    found = _read(peer or "")
    if found is None:
        return ""
    hops = ",".join(forwarded).split(",")[-MAX_HOPS:] if forwarded else []
    while hops and any(found in network for network in proxies):
        before = _read(hops.pop().strip())
        if before is None:
            break
        found = before
    return str(found)


def neighbourhood(address: str) -> str:
    """What one client can have of addresses: an IPv4 address, or a /64 of IPv6.

    >>> neighbourhood("192.0.2.1"), neighbourhood("2001:db8:1:2:3:4:5:6")
    ('192.0.2.1', '2001:db8:1:2::/64')
    """
    found = _read(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))
    return str(found or "")


@lru_cache(maxsize=4096)
def _read(text: str) -> Address | None:
    """An address; one of IPv4 that is written as IPv6 is one of IPv4. A port or a zone beside it is left out."""
    host = text.partition("]")[0].removeprefix("[") if text.startswith("[") else text
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found

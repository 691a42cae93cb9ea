"""Which internet addresses are everybody's."""

from __future__ import annotations

import ipaddress

NAT64 = ipaddress.ip_network("64:ff9b::/96")  # its last 32 bits are an IPv4 address


def is_public(address: str) -> bool:
    """Whether an IP address can be reached by everybody, the one that it may contain too."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 6:
        inner = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in NAT64:
            inner.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
        if found.is_site_local:  # given up in 2004, and private wherever it is still used
            return False
        if any(each is not None and not is_public(str(each)) for each in inner):
            return False
    return found.is_global and not found.is_multicast

"""Which network addresses may be connected to: public ones, and none that leads into the network of the service.

Pure. Owns the rule. Never resolves a name. Invariant: an address that stands for another one (IPv4 in IPv6, NAT64,
6to4, Teredo) is refused, whichever it stands for; what is not known to be public is not.
"""

import ipaddress

# Global unicast (RFC 4291, 2.4): mapped, compatible, NAT64 and local addresses lie outside.
GLOBAL = ipaddress.IPv6Network("2000::/3")
# 6to4 (RFC 3056), Teredo (RFC 4380) and other protocol assignments, and documentation (RFC 9637).
STANDING_FOR_OTHERS = tuple(ipaddress.IPv6Network(text) for text in ("2002::/16", "2001::/23", "3fff::/20"))
# The relays of 6to4 (RFC 7526).
RELAYS = ipaddress.IPv4Network("192.88.99.0/24")


def is_public(text: str) -> bool:
    """Return whether `text` is an address on the public internet.

    >>> [is_public(text) for text in ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")]
    [True, True]
    >>> [is_public(text) for text in ("10.0.0.1", "169.254.169.254", "::ffff:8.8.8.8", "64:ff9b::808:808", "fe80::1%1")]
    [False, False, False, False, False]
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address not in RELAYS
    stands = any(address in network for network in STANDING_FOR_OTHERS)
    return address.scope_id is None and address in GLOBAL and not stands

"""Host names and origins of web pages, as settings hold them.

Owns their syntax and their form for comparison. Never reads a request: :mod:`keepfit_gateway.auth.cross_site` compares.
"""

import ipaddress
import re
from contextlib import suppress

from keepfit.errors import SettingsError

ANY = "*"
NAME = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?"
ADDRESS = r"[0-9a-f:]*:[0-9a-f:.]*"
FLAGS = re.IGNORECASE | re.ASCII
HOST = re.compile(rf"{NAME}|{ADDRESS}|\[{ADDRESS}\]", FLAGS)
ORIGIN = re.compile(rf"null|[a-z][a-z0-9+.-]*://(?:{NAME}|\[{ADDRESS}\])(?::[1-9][0-9]{{0,4}})?", FLAGS)
# A browser leaves these out of an origin.
DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def parse_hosts(text: str) -> frozenset[str]:
    """Return the host names of KEEPFIT_ALLOWED_HOSTS in the form of :func:`host_name`, or ``*``.

    Raises
    ------
    SettingsError
        If an entry is no host name.

    >>> sorted(parse_hosts("GW.example., [fd00::1]"))
    ['fd00::1', 'gw.example']
    """
    entries = _entries("KEEPFIT_ALLOWED_HOSTS", text, HOST, "a host name without a port: gateway.example.com")
    return frozenset(map(host_name, entries))


def parse_origins(text: str) -> frozenset[str]:
    """Return the origins of KEEPFIT_CORS_ORIGINS in the form of :func:`origin_of`, or ``*``.

    Raises
    ------
    SettingsError
        If an entry is no origin.

    >>> sorted(parse_origins("HTTPS://App.example:443, http://app.example:8080 null"))
    ['http://app.example:8080', 'https://app.example', 'null']
    """
    entries = _entries("KEEPFIT_CORS_ORIGINS", text, ORIGIN, "an origin: https://app.example.com")
    return frozenset(map(origin_of, entries))


def origin_of(text: str) -> str:
    """Return an origin in the form to compare, which is that of browsers: in lower case, without a default port.

    >>> origin_of("http://GW.example:80"), origin_of("http://gw.example:443")
    ('http://gw.example', 'http://gw.example:443')
    """
    origin = text.lower()
    return origin.removesuffix(DEFAULT_PORTS.get(origin.partition("://")[0], ""))


def host_name(host: str) -> str:
    """Return a host in the form to compare: in lower case, without brackets and without the dot of the DNS root.

    >>> host_name("[FD00:0:0::1]"), host_name("Localhost.")
    ('fd00::1', 'localhost')
    """
    name = host.lower().strip("[]").removesuffix(".")
    if ":" in name:
        with suppress(ValueError):
            return str(ipaddress.ip_address(name))
    return name


def is_loopback(host: str) -> bool:
    """Return whether a host name or address means this machine.

    >>> is_loopback("localhost"), is_loopback("::ffff:127.0.0.1"), is_loopback("10.0.0.1")
    (True, True, False)
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _entries(setting: str, text: str, form: re.Pattern[str], meaning: str) -> list[str]:
    entries = [entry for entry in re.split(r"[\s,]+", text) if entry]
    for entry in entries:
        if entry != ANY and not form.fullmatch(entry):
            hint = "" if entry.isascii() else " Browsers send names in ASCII: https://xn--bcher-kva.example."
            raise SettingsError(f"{setting}: {entry!r} is neither {meaning}, nor *.{hint}")
    return entries

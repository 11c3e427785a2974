"""Addresses that services listen on: their URLs, and why one cannot be used.

Owns the texts about the settings of a host and a port. Never listens. Invariant: a URL of an IPv6 address has brackets,
and a client on this machine can connect to :func:`url_to_connect`.
"""

import errno
import socket
from collections.abc import Mapping

from keepfit.errors import SettingsError

# What a client connects to where a gateway listens on all addresses.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - these are compared, not bound # nosec B104
REASONS = {
    errno.EADDRINUSE: "the port is in use; choose another one with {port}",
    errno.EADDRNOTAVAIL: "{host} is not an address of this machine; use 127.0.0.1, ::1, 0.0.0.0 or ::",
    errno.EACCES: "this user may not use the port; choose one from 1024 to 65535 with {port}",
}
UNRESOLVED = "{host} is neither an address nor a name that can be resolved; use 127.0.0.1, ::1, 0.0.0.0 or ::"
# How the settings of an address are named in these texts.
GATEWAY = {"host": "KEEPFIT_HOST", "port": "KEEPFIT_PORT, or with --port of `keepfit up`"}


def http_url(host: str, port: int) -> str:
    """Return the URL of an address.

    >>> http_url("::1", 8000), http_url("localhost", 80)
    ('http://[::1]:8000', 'http://localhost:80')
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def url_to_connect(host: str, port: int) -> str:
    """Return the URL at which a client on this machine reaches a gateway that listens on `host`.

    >>> url_to_connect("0.0.0.0", 8000), url_to_connect("127.0.0.2", 8000)
    ('http://127.0.0.1:8000', 'http://127.0.0.2:8000')
    """
    return http_url(LOOPBACK.get(host, host), port)


def listen_error(
    host: str, port: int, error: OSError | UnicodeError, names: Mapping[str, str] = GATEWAY
) -> SettingsError:
    """Return the error of an address that cannot be listened on; it says what would be right, and in which setting."""
    if isinstance(error, socket.gaierror | UnicodeError):
        reason = UNRESOLVED.format(**names)
    elif error.errno in REASONS:
        reason = REASONS[error.errno].format(**names)
    else:
        reason = str(error.strerror or error)
    return SettingsError(f"Cannot listen on {http_url(host, port).removeprefix('http://')}: {reason}.")


def check_listening(host: str, port: int) -> None:
    """Check that a gateway can listen on an address; nothing listens on it afterwards.

    Raises
    ------
    SettingsError
        If it cannot: the port is in use, or the host is no address of this machine.
    """
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                # As the gateway does: connections of an earlier one that are still closing do not matter.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise listen_error(host, port, error) from None

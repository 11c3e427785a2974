"""The port on which all processes of one gateway listen.

Owns its sockets: the kernel gives each new connection to one of the processes (SO_REUSEPORT), and to none that has
died. Never accepts a connection. Invariant: no other program has the port, neither at the start nor while all processes
are dead.

SO_REUSEPORT by itself would let two gateways share a port by mistake, as processes of one user. So the port is first
taken by a socket without it, which fails if any program listens there. A *reservation*, a socket without SO_REUSEADDR
that does not listen, then holds the port for as long as the gateway runs: every other gateway begins with a socket that
conflicts with it. Both options count at the time of the other bind (Linux: `inet_csk_bind_conflict`), so there is no
moment without one of the two sockets. Only a program of the same user that sets SO_REUSEPORT on its own could join.
"""

import contextlib
import socket
import sys
from collections.abc import Iterator
from typing import Any

from keepfit.backends import addresses
from keepfit.errors import SettingsError

Address = tuple[int, int, int, Any]


class SharedPort:
    """The addresses of `host`, all with one port; port 0 takes a free one.

    Raises
    ------
    SettingsError
        If they cannot be listened on, or the system cannot share a port.
    """

    def __init__(self, host: str, port: int) -> None:
        if sys.platform != "linux":
            raise SettingsError("KEEPFIT_GATEWAY_PROCESSES above 1 needs Linux, which gives each process its share.")
        self._host = host
        self._reservations: list[socket.socket] = []
        self._addresses: list[Address] = []
        self.port = port
        try:
            self._reserve()
        except (OSError, UnicodeError) as error:
            self.close()
            raise addresses.listen_error(host, self.port, error) from None

    @property
    def url(self) -> str:
        """URL of the gateway."""
        host: str = self._addresses[0][3][0]
        return addresses.http_url(host, self.port)

    def _reserve(self) -> None:
        found = socket.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, (name, _, *rest) in dict.fromkeys(found):
            with _bindable(family, kind, protocol) as first:
                first.bind((name, self.port, *rest))
                # Two sockets with SO_REUSEADDR may be bound to one address, but only one of them listens.
                first.listen()
                self.port = first.getsockname()[1]
                first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                self._addresses.append((family, kind, protocol, (name, self.port, *rest)))
                reservation = self._bound(self._addresses[-1])
                self._reservations.append(reservation)
                reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)

    def listeners(self) -> list[socket.socket]:
        """Return new sockets for one process, bound to the addresses; raise OSError if that fails."""
        with contextlib.ExitStack() as opened:
            found = [opened.enter_context(self._bound(address)) for address in self._addresses]
            opened.pop_all()
        return found

    @staticmethod
    def _bound(address: Address) -> socket.socket:
        family, kind, protocol, name = address
        with contextlib.ExitStack() as opened:
            found = opened.enter_context(_bindable(family, kind, protocol))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            found.bind(name)
            opened.pop_all()
        return found

    def close(self) -> None:
        """Release the port in this process."""
        while self._reservations:
            self._reservations.pop().close()


def _bindable(family: int, kind: int, protocol: int) -> socket.socket:
    """Return a socket that can be bound while connections of an earlier gateway are still closing."""
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return found


@contextlib.contextmanager
def shared_port(host: str, port: int) -> Iterator[SharedPort]:
    """Hold a port while the block runs; raises as :class:`SharedPort`."""
    opened = SharedPort(host, port)
    try:
        yield opened
    finally:
        opened.close()

"""Free ports for servers on loopback."""

import socket

import pytest

from keepfit.errors import UnavailableError
from keepfit.local import servers


def test_a_port_is_returned_once_and_nothing_listens_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ports, each is returned once, also if the search begins at the last one; one in use is left out."""
    for first in (0, 1):
        low, high = sorted(servers.free_port() for _ in range(2))
        monkeypatch.setattr(servers, "PORTS", range(low, high + 1, high - low))
        monkeypatch.setattr(servers, "_returned_ports", set())
        monkeypatch.setattr(servers.secrets, "randbelow", lambda _, first=first: first)
        with socket.create_server(("127.0.0.1", high)):
            assert servers.free_port() == low
            with pytest.raises(UnavailableError, match=f"No port from {low} to {high} is free"):
                servers.free_port()
        monkeypatch.undo()

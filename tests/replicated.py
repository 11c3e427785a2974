"""A replicated Redis for tests: real Valkey servers, one of them the primary, and sentinels that replace it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from keepfit.local.servers import accepts, free_port, redis_command
from tests import servers

NAME = "keepfit"
# Of the servers, and of the sentinels.
PASSWORD, SENTINEL_PASSWORD = "of-servers", "of-sentinels"
DOWN_AFTER_MS = 600


class Replicated:
    """Running servers by port, and the sentinels that watch them."""

    def __init__(self, folder: Path, stack: ExitStack, count: int, sentinels: int) -> None:
        self._folder = folder
        self._stack = stack
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.sentinels: list[int] = []
        self.ports = [free_port() for _ in range(count)]
        for port in self.ports:
            self.start(port)
        self.sentinels = [self._sentinel(sentinels // 2 + 1) for _ in range(sentinels)]
        servers.wait_until(self.is_complete, "replication")

    @property
    def url(self) -> str:
        """The address for keepfit."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://:{PASSWORD}@{hosts}/0?master={NAME}&sentinel_password={SENTINEL_PASSWORD}"

    def start(self, port: int) -> None:
        """Start a server: the first one is the primary, another one a replica."""
        command = [*redis_command(port, self._folder / str(port)), "--repl-diskless-sync-delay", "0"]
        command += ["--requirepass", PASSWORD, "--primaryauth", PASSWORD]
        # Sentinels make a former primary a replica by themselves, but only after ten seconds.
        primary = self.primary() if self.sentinels else self.ports[0]
        if port != primary:
            command += ["--replicaof", "127.0.0.1", str(primary)]
        log = self._folder / f"{port}.log"
        self._processes[port] = self._stack.enter_context(servers.running(command, log, lambda: accepts(port)))

    def _sentinel(self, quorum: int) -> int:
        port = free_port()
        file = self._folder / f"sentinel-{port}.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"requirepass {SENTINEL_PASSWORD}\nsentinel sentinel-pass {SENTINEL_PASSWORD}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self.ports[0]} {quorum}\nsentinel auth-pass {NAME} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}\nsentinel failover-timeout {NAME} 3000\n"
        )
        binary = redis_command(port, self._folder / "none")[0]
        log = file.with_suffix(".log")
        self._stack.enter_context(servers.running([binary, str(file), "--sentinel"], log, lambda: accepts(port)))
        return port

    def primary(self) -> int:
        """Return the port of the primary, as the first sentinel knows it."""
        with redis.Redis(port=self.sentinels[0], password=SENTINEL_PASSWORD, decode_responses=True) as sentinel:
            return int(sentinel.sentinel_get_master_addr_by_name(NAME)[1])

    def is_complete(self) -> bool:
        """Whether all other servers are replicas of the primary, and have all that it has."""
        with redis.Redis(port=self.primary(), password=PASSWORD, decode_responses=True) as primary:
            try:
                found = primary.info("replication")
            except redis.RedisError:
                return False
        replicas = [value for name, value in found.items() if name.startswith("slave") and isinstance(value, dict)]
        return found["role"] == "master" and [one["state"] for one in replicas] == ["online"] * (len(self.ports) - 1)

    def kill_primary(self) -> int:
        """Kill the primary, wait for the next one, and return the port of the one that was killed."""
        port = self.primary()
        self._processes[port].kill()
        self._processes[port].wait()
        servers.wait_until(lambda: self.primary() != port, "the failover")
        return port

    def pause(self, port: int, signal_: signal.Signals) -> None:
        """Stop or continue a server."""
        os.kill(self._processes[port].pid, signal_)

    def replicas(self) -> list[int]:
        """Return the ports of the replicas."""
        primary = self.primary()
        return [port for port in self.ports if port != primary]


@contextmanager
def replicated(folder: Path, count: int = 2, sentinels: int = 1) -> Iterator[Replicated]:
    """Run servers and sentinels until the block ends."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        yield Replicated(folder, stack, count, sentinels)

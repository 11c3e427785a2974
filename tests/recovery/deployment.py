"""A deployment whose processes can be killed, paused and started again, each by its own process id.

Owns servers (two Redis, MongoDB) and services (supervisor of workers, gateways, snapshotter) as separate processes,
without `keepfit up`, which would start a dead server again at once.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keepfit.local.servers import accepts, answers, free_port, mongo_command, redis_command
from keepfit.settings import Settings
from tests import servers
from tests.conftest import SIGNING_KEYS

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class ManagedProcess:
    """A process that can be stopped and started again with its data on disk."""

    command: list[str]
    log: Path
    port: int
    environment: dict[str, str] | None = None
    ready: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    _running: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        """Start it, and wait until it is ready."""

        def is_ready() -> bool:
            if self.ready:
                return answers(f"http://127.0.0.1:{self.port}{self.ready}")
            return not self.port or accepts(self.port)

        self.process = self._running.enter_context(
            servers.running(self.command, self.log, is_ready, self.environment, stop=signal.SIGTERM)
        )

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """End it with SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """End it with SIGTERM, as a parent process does."""
        self._running.close()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the process while the block runs: connections are refused."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Pause the process while the block runs: connections are accepted, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """Return the processor time of it and its children so far, in seconds."""
        return sum(_cpu_s(pid) for pid in (self.pid, *self.children()))

    def children(self) -> list[int]:
        """Return the process ids of its children."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def lines(self) -> list[str]:
        """Return the lines that it has logged."""
        return self.log.read_text(errors="replace").splitlines()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log events of this name."""
        found = [json.loads(line) for line in self.lines() if line.startswith("{")]
        return [event for event in found if event["event"] == name]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@dataclass(slots=True)
class Deployment:
    """All processes of one deployment."""

    folder: Path
    settings: Settings
    store: ManagedProcess
    queue: ManagedProcess
    mongo: ManagedProcess
    workers: ManagedProcess
    gateways: Sequence[ManagedProcess]
    snapshotter: ManagedProcess
    more_queues: Sequence[ManagedProcess] = ()

    @property
    def queues(self) -> Sequence[ManagedProcess]:
        """All servers of the queue."""
        return (self.queue, *self.more_queues)

    @property
    def services(self) -> Sequence[ManagedProcess]:
        """The processes of keepfit."""
        return (self.workers, *self.gateways, self.snapshotter)

    @property
    def urls(self) -> list[str]:
        """The URLs of the gateways."""
        return [f"http://127.0.0.1:{gateway.port}" for gateway in self.gateways]


def service(
    folder: Path, name: str, arguments: Sequence[str], environment: dict[str, str], port: int = 0
) -> ManagedProcess:
    """Return a process of keepfit that is not started yet."""
    command = [sys.executable, "-m", "keepfit", "--data", str(folder), *arguments]
    own = {"KEEPFIT_PORT": str(port)} if port else {}
    ready = "/livez" if port else ""
    return ManagedProcess(command, folder / f"{name}.log", port, {**os.environ, **environment, **own}, ready)


@contextmanager
def deployed(folder: Path, queues: int = 1, **settings: str) -> Iterator[Deployment]:
    """Run a deployment with two workers (at least one for each server of the queue) and two gateways."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = {name: free_port() for name in ("store", "queue", "mongo")}
    store = ManagedProcess(redis_command(ports["store"], folder / "store"), folder / "store.log", ports["store"])
    queue, *more = (
        ManagedProcess(redis_command(port, folder / name, durable=False), folder / f"{name}.log", port)
        for name, port in (("queue", ports["queue"]), *((f"queue-{n}", free_port()) for n in range(2, queues + 1)))
    )
    urls = [f"redis://127.0.0.1:{server.port}/0" for server in (queue, *more)]
    mongo = ManagedProcess(mongo_command(ports["mongo"], folder / "mongo"), folder / "mongo.log", ports["mongo"])
    named = {
        "store_url": f"redis://127.0.0.1:{ports['store']}/0",
        ("queue_urls" if more else "queue_url"): ",".join(urls),
        "mongo_url": f"mongodb://127.0.0.1:{ports['mongo']}/keepfit",
        "snapshot_url": (folder / "snapshots").as_uri(),
        "signing_keys": SIGNING_KEYS,
        **settings,
    }
    environment = {f"KEEPFIT_{name.upper()}": value for name, value in named.items()}
    workers = service(folder, "workers", ["worker"], environment)
    gateways = [service(folder, f"gateway{i}", ["gateway"], environment, free_port()) for i in range(2)]
    snapshotter = service(folder, "snapshotter", ["snapshot", "--every", "1s"], environment)
    parts = (store, queue, *more, mongo, workers, *gateways, snapshotter)
    try:
        for part in parts:
            part.start()
        for gateway in gateways:
            url = f"http://127.0.0.1:{gateway.port}/readyz"
            servers.wait_until(lambda url=url: answers(url), "readiness")
        yield Deployment(folder, Settings(**named), store, queue, mongo, workers, gateways, snapshotter, more)
    finally:
        for part in reversed(parts):
            if part.process is not None and part.process.poll() is None:
                os.kill(part.pid, signal.SIGCONT)
            part.close()

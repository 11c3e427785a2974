"""A stack of processes into which the harness injects faults one by one.

Owns the processes and how to restart each. Never decides which fault is injected. Invariant: a process that is started
here is stopped here, by its process id; a killed process restarts with the same port and data.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import redis.asyncio

from keepfit.local.servers import accepts, answers, free_port, mongo_command, redis_command
from keepfit.local.stack import end_with_parent
from tests.faults.proxy import Proxy

START_S_MAX = 60.0
SIGNING_KEYS = "faults:" + "5e" * 32


class ServerProcess:
    """One process: its command, its log, and the check that it is ready."""

    def __init__(
        self, command: list[str], log: Path, ready: Callable[[], bool], environment: Mapping[str, str]
    ) -> None:
        self._command = command
        self.log = log
        self._ready = ready
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the process id of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process without waiting until it is ready."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._environment},
                preexec_fn=end_with_parent,  # noqa: PLW1509 - as in `keepfit up`
            )

    async def wait_ready(self) -> None:
        """Wait until the process is ready."""
        deadline = time.monotonic() + START_S_MAX
        while not await asyncio.to_thread(self._ready):
            assert self._process is not None
            assert self._process.poll() is None, (
                f"{self._command} ended: {self.log.read_text(errors='replace')[-2000:]}"
            )
            assert time.monotonic() < deadline, f"{self._command} was not ready (see {self.log})"
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        """Kill the process with SIGKILL and wait until it is dead."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the process with SIGTERM; kill it after 30 s."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


class Stack:
    """Store, queue, MongoDB server, gateways and one supervisor with its workers.

    `worker_command` replaces `keepfit worker`, for the control that must fail.
    """

    def __init__(
        self,
        folder: Path,
        workers: int,
        gateways: int,
        lease_ttl_s: float,
        worker_command: list[str] | None = None,
    ) -> None:
        self.lease_ttl_s = lease_ttl_s
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.store_port, self.queue_port, mongo_port = free_port(), free_port(), free_port()
        self._workers = workers
        self._mongo_port = mongo_port
        self._worker_command = worker_command or [sys.executable, "-m", "keepfit", "--data", str(folder), "worker"]
        self.store = self._server("store", redis_command(self.store_port, folder / "store"), self.store_port)
        queue_command = redis_command(self.queue_port, folder / "queue", durable=False)
        self.queue = self._server("queue", queue_command, self.queue_port)
        self.mongo = self._server("mongo", mongo_command(mongo_port, folder / "mongo"), mongo_port)
        self.gateway_ports = [free_port() for _ in range(gateways)]
        self.gateways: list[ServerProcess] = []
        self.supervisor: ServerProcess | None = None
        # Without the proxies: the harness must see the actual state.
        self.store_client = redis.asyncio.Redis(port=self.store_port, socket_timeout=5)
        self.queue_client = redis.asyncio.Redis(port=self.queue_port, socket_timeout=5)
        self._names: dict[str, int] = {}
        self._read = 0

    def _server(self, name: str, command: list[str], port: int) -> ServerProcess:
        return ServerProcess(command, self._folder / f"{name}.log", partial(accepts, port), {})

    @property
    def urls(self) -> list[str]:
        """Return the URLs of the gateways."""
        return [f"http://127.0.0.1:{port}" for port in self.gateway_ports]

    async def start_servers(self) -> None:
        """Start store, queue and MongoDB, and wait until they are ready."""
        for process in (self.store, self.queue, self.mongo):
            process.start()
        for process in (self.store, self.queue, self.mongo):
            await process.wait_ready()

    async def start_services(self, store: Proxy, queue: Proxy, environment: Mapping[str, str]) -> None:
        """Start gateways and workers, which reach store and queue only through the proxies."""
        settings = {
            "KEEPFIT_STORE_URL": f"redis://127.0.0.1:{store.port}/0",
            "KEEPFIT_QUEUE_URL": f"redis://127.0.0.1:{queue.port}/0",
            "KEEPFIT_MONGO_URL": f"mongodb://127.0.0.1:{self._mongo_port}/keepfit",
            "KEEPFIT_SNAPSHOT_URL": (self._folder / "snapshots").as_uri(),
            "KEEPFIT_SIGNING_KEYS": SIGNING_KEYS,
            "KEEPFIT_WORKERS": str(self._workers),
            "KEEPFIT_LEASE_TTL_S": str(self.lease_ttl_s),
            # The verification reads all learned requests.
            "KEEPFIT_REPLAY_BYTES_MAX": str(2**30),
            **environment,
        }
        self.supervisor = ServerProcess(
            self._worker_command, self._folder / "workers.log", self._all_workers_run, settings
        )
        for number, port in enumerate(self.gateway_ports):
            command = [sys.executable, "-m", "keepfit", "--data", str(self._folder), "gateway"]
            ready = partial(answers, f"http://127.0.0.1:{port}/readyz")
            log = self._folder / f"gateway-{number}.log"
            self.gateways.append(ServerProcess(command, log, ready, {**settings, "KEEPFIT_PORT": str(port)}))
        for process in (self.supervisor, *self.gateways):
            process.start()
        for process in (self.supervisor, *self.gateways):
            await process.wait_ready()

    def _all_workers_run(self) -> bool:
        return len(self.workers()) == self._workers

    def workers(self) -> list[int]:
        """Return the process ids of the workers, oldest first."""
        assert self.supervisor is not None
        pid = self.supervisor.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def pid_of(self, worker: str) -> int | None:
        """Return the process id of a worker by its name in the supervisor's log; None if the worker is gone."""
        for document in self.worker_log(since=self._read):
            if document.get("event") == "worker_started":
                self._names[document["worker"]] = document["pid"]
        pid = self._names.get(worker)
        return pid if pid in self.workers() else None

    def worker_log(self, since: int = 0) -> list[dict[str, object]]:
        """Return the log documents of supervisor and workers from offset `since` on, and remember the end offset."""
        assert self.supervisor is not None
        with self.supervisor.log.open("rb") as file:
            file.seek(since)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read = since + len(whole) + len(newline)
        documents = []
        for line in whole.splitlines():
            try:
                document = msgspec.json.decode(line)
            except msgspec.DecodeError:
                continue  # a traceback, or text of RQ
            if isinstance(document, dict):
                documents.append(document)
        return documents

    async def stop_services(self) -> None:
        """Stop the gateways, then the workers; the servers continue to run."""
        for pid in self.workers() if self.supervisor and self.supervisor.alive() else []:
            os.kill(pid, signal.SIGCONT)
        for process in (*self.gateways, *([self.supervisor] if self.supervisor else [])):
            await asyncio.to_thread(process.stop)

    async def stop(self) -> None:
        """Stop everything."""
        await self.stop_services()
        await self.store_client.aclose()
        await self.queue_client.aclose()
        for process in (self.store, self.queue, self.mongo):
            await asyncio.to_thread(process.stop)

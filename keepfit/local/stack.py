"""Run keepfit on one machine: each service and server as a child process, data and logs under one folder.

Owns `keepfit up`: the list of processes, the order in which they start and stop, and the restart of a dead one. Never
runs two stacks on one folder. Invariants: servers stop after the processes that write to them; the next stack continues
with the data that a killed stack left.
"""

import ctypes
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from keepfit.errors import SettingsError, UnavailableError
from keepfit.local.servers import accepts, answers, free_port, mongo_command, redis_command
from keepfit.settings import Settings, load

START_S_MAX = 60.0
STOP_S_MAX = 30.0
POLL_S = 0.2
# Restarting does not help a process that dies more often than this in this time.
DEATHS_MAX, DEATHS_WITHIN_S = 5, 30.0
PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class ManagedProcess:
    """One child process: how to start it, and how to check that it is ready.

    Processes of one `stage` start and stop together: 0 servers, 1 workers, 2 gateway and snapshotter.
    """

    name: str
    stage: int
    command: list[str]
    ready: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)


class Stack:
    """All processes of keepfit under the folder `data`, with a server of its own for each URL that is not set."""

    def __init__(self, data: Path, port: int, workers: int) -> None:
        self.data = data.resolve()
        for name in ("logs", "redis", "queue", "mongo", "snapshots"):
            (self.data / name).mkdir(parents=True, exist_ok=True)
        settings = load()
        self._port = port or free_port()
        variables = {"KEEPFIT_HOST": settings.host, "KEEPFIT_PORT": str(self._port), "KEEPFIT_WORKERS": str(workers)}
        self._processes: list[ManagedProcess] = []
        variables |= self._add_servers(settings)
        if "snapshot_url" not in settings.model_fields_set:
            variables["KEEPFIT_SNAPSHOT_URL"] = (self.data / "snapshots").as_uri()
        if settings.row_log_url:
            # `keepfit restore` on this folder needs it too, from any shell.
            variables["KEEPFIT_ROW_LOG_URL"] = settings.row_log_url
        if "signing_keys" not in settings.model_fields_set:
            variables["KEEPFIT_SIGNING_KEYS"] = self._local_key("signing-keys")
        if "upload_keys" not in settings.model_fields_set:
            variables["KEEPFIT_UPLOAD_KEYS"] = self._local_key("upload-keys")
        self.environment: Mapping[str, str] = variables
        self.url = f"http://127.0.0.1:{self._port}"
        self._add_services(settings)
        self._stopping = False

    def _add_servers(self, settings: Settings) -> dict[str, str]:
        variables = {}
        if "store_url" not in settings.model_fields_set:
            port = free_port()
            variables["KEEPFIT_STORE_URL"] = f"redis://127.0.0.1:{port}/0"
            self._processes.append(
                ManagedProcess("redis", 0, redis_command(port, self.data / "redis"), lambda: accepts(port))
            )
            if settings.queue_url is None:
                # Worker requests are worthless once their gateway is gone: no write needs to reach the disk.
                queue_port = free_port()
                variables["KEEPFIT_QUEUE_URL"] = f"redis://127.0.0.1:{queue_port}/0"
                command = redis_command(queue_port, self.data / "queue", durable=False)
                self._processes.append(ManagedProcess("queue", 0, command, lambda: accepts(queue_port)))
        if "mongo_url" not in settings.model_fields_set:
            mongo_port = free_port()
            variables["KEEPFIT_MONGO_URL"] = f"mongodb://127.0.0.1:{mongo_port}/keepfit"
            mongo = mongo_command(mongo_port, self.data / "mongo")
            self._processes.append(ManagedProcess("mongo", 0, mongo, lambda: accepts(mongo_port)))
        return variables

    def _local_key(self, name: str) -> str:
        """Return the folder's key of this name; make it at the first use.

        Without its signing key, the data of a folder cannot be read again.
        """
        path = self.data / name
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"local:{secrets.token_hex(32)}")
        return path.read_text().strip()

    def _add_services(self, settings: Settings) -> None:
        command = [sys.executable, "-m", "keepfit", "--data", str(self.data)]
        every = f"{settings.snapshot_every_s:.6f}s"
        self._processes += [
            ManagedProcess("workers", 1, [*command, "worker"], lambda: True),
            ManagedProcess("gateway", 2, [*command, "gateway"], lambda: answers(f"{self.url}/readyz")),
            ManagedProcess("snapshotter", 2, [*command, "snapshot", "--every", every], lambda: True),
        ]

    def run(self, started: Callable[["Stack"], None]) -> None:
        """Start all processes, call `started`, restart dead ones until SIGTERM or Ctrl-C; then stop them in order.

        Raises
        ------
        SettingsError
            If another stack uses the folder, or another process the port.
        UnavailableError
            If a process does not start, or dies too often.
        """
        signal.signal(signal.SIGTERM, self._request_stop)
        signal.signal(signal.SIGINT, self._request_stop)
        with locked(self.data) as lock:
            if accepts(self._port):
                raise SettingsError(f"Port {self._port} is in use; choose another one with --port.")
            try:
                self._write_environment()
                for stage in self._stages():
                    for managed in stage:
                        self._start(managed, lock)
                    for managed in stage:
                        self._wait_ready(managed)
                if not self._stopping:
                    started(self)
                while not self._stopping:
                    self._restart_dead(lock)
                    time.sleep(POLL_S)
            finally:
                self._stop()

    def _stages(self) -> list[list[ManagedProcess]]:
        return [[managed for managed in self._processes if managed.stage == stage] for stage in range(3)]

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _write_environment(self) -> None:
        """Write the settings to the file that other `keepfit` commands on this folder read."""
        path = self.data / "env"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in self.environment.items()))

    def _start(self, managed: ManagedProcess, lock: IO[str]) -> None:
        with (self.data / "logs" / f"{managed.name}.log").open("ab") as output:
            managed.process = subprocess.Popen(
                managed.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
                # The children hold the lock too: while one of them lives, no other stack can start on this folder.
                pass_fds=(lock.fileno(),),
                # Ctrl-C must not reach the children: this process stops them in order.
                process_group=0,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has one thread
            )
        self._write_pids()

    def _write_pids(self) -> None:
        pids = {managed.name: managed.process.pid for managed in self._processes if managed.process is not None}
        text = json.dumps({"url": self.url, "pid": os.getpid(), "parts": pids})
        temporary = self.data / "up.json.new"
        temporary.write_text(text)
        temporary.replace(self.data / "up.json")

    def _wait_ready(self, managed: ManagedProcess) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not managed.ready() and not self._stopping:
            if managed.process is not None and managed.process.poll() is not None:
                raise UnavailableError(f"{managed.name} exited at its start: {self._last_line(managed)}")
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{managed.name} was not ready within {START_S_MAX:g} s: {self._last_line(managed)}"
                )
            time.sleep(0.05)

    def _last_line(self, managed: ManagedProcess) -> str:
        path = self.data / "logs" / f"{managed.name}.log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1][:300] if lines else 'no output'} (in {path})"

    def _restart_dead(self, lock: IO[str]) -> None:
        for managed in self._processes:
            if managed.process is None or managed.process.poll() is None:
                continue
            now = time.monotonic()
            managed.deaths = [at for at in managed.deaths if now - at < DEATHS_WITHIN_S] + [now]
            if len(managed.deaths) > DEATHS_MAX:
                raise UnavailableError(f"{managed.name} keeps dying: {self._last_line(managed)}")
            self._start(managed, lock)

    def _stop(self) -> None:
        """Stop gateway and snapshotter, then the workers, then the servers."""
        for stage in reversed(self._stages()):
            processes = [managed.process for managed in stage if managed.process is not None]
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(STOP_S_MAX)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        (self.data / "up.json").unlink(missing_ok=True)


def end_with_parent() -> None:
    """Make Linux terminate this child when its parent dies. Elsewhere the lock shows that children are left."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def locked(data: Path) -> Iterator[IO[str]]:
    """Lock the folder for one stack.

    Raises
    ------
    SettingsError
        If another stack holds the lock, or a process of one that is still stopping.
    """
    with (data / "lock").open("a") as lock:
        deadline = time.monotonic() + STOP_S_MAX / 2
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                running = _running_stack(data)
                if running or time.monotonic() > deadline:
                    raise SettingsError(f"{data} is in use by {running or 'a process that does not stop'}.") from None
                time.sleep(POLL_S)
        yield lock


def _running_stack(data: Path) -> str:
    """Describe the stack that runs on the folder; '' if its `keepfit up` is gone."""
    try:
        record = json.loads((data / "up.json").read_text())
        os.kill(record["pid"], 0)
    except (OSError, ValueError, KeyError):
        return ""
    return f"another `keepfit up` (pid {record['pid']}, {record['url']})"

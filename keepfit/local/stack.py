"""Run keepfit on one machine: each service and server as a child process, data and logs under one folder.

Owns `keepfit up`: the list of processes, the order in which they start and stop, and the restart of a dead one. Never
runs two stacks on one folder. Invariants: servers stop after the processes that write to them; the next stack continues
with the data that a killed stack left.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from keepfit import child_environment, hash_seed
from keepfit.backends.addresses import check_listening, url_to_connect
from keepfit.backends.files import open_regular, open_to_append, write_file
from keepfit.child_processes import signal_at_death_of_parent
from keepfit.errors import UnavailableError
from keepfit.local.data_folder import (
    FREE_SPACE,
    local_key,
    locked,
    prepare,
    remove_record,
    settings_file,
    usable,
    write_record,
)
from keepfit.local.probes import check_reachable
from keepfit.local.servers import accepts, free_port, keepfit_command, mongo_command, redis_command, why_not_ready
from keepfit.settings import Settings

START_S_MAX = 60.0
STOP_S_MAX = 30.0
POLL_S = 0.2
# Restarting does not help a process that dies more often than this in this time.
DEATHS_MAX, DEATHS_WITHIN_S = 5, 30.0
# With less, a file system with blocks of the usual sizes has no space for another file.
FREE_BYTES_MIN = 64 * 2**10
# The stage of the processes that are not of keepfit.
SERVERS = 0
# How much of the log of a process that failed is shown.
LINES_SHOWN_MAX, LINE_LENGTH_MAX = 20, 300


@dataclass(slots=True)
class ManagedProcess:
    """One child process: how to start it, and how to find out whether it is ready.

    Processes of one `stage` start and stop together: 0 servers, 1 workers, 2 gateway and snapshotter. `problem` returns
    why it is not ready, "" if it is. `log_start` is the size of its log when it was started.
    """

    name: str
    stage: int
    command: list[str]
    problem: Callable[["ManagedProcess"], str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    log_start: int = 0
    deaths: list[float] = field(default_factory=list)

    def output(self) -> str:
        """Return what it has logged since its last start; "" if its log was deleted."""
        try:
            with open_regular(self.log, self.log.parent) as log:
                log.seek(self.log_start)
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def has_ended(self) -> bool:
        """Whether it was started and does not run any more."""
        return self.process is not None and self.process.poll() is not None


class Stack:
    """All processes of keepfit under the folder `data`, with a server of its own for each URL that is not set.

    `settings` are those of the environment; port 0 takes a free one. `show_log` is called with the end of the log of a
    process that failed. Its caller holds the lock of the folder (:func:`locked`).

    Raises
    ------
    SettingsError
        If the folder cannot be used, a key in it is damaged, or a server has to be started and is not installed.
    """

    def __init__(self, data: Path, settings: Settings, show_log: Callable[[str], None]) -> None:
        self.data = data
        self._show_log = show_log
        prepare(self.data)
        self._settings = settings
        self._port = settings.port or free_port(settings.host)
        variables = {
            "KEEPFIT_HOST": settings.host,
            "KEEPFIT_PORT": str(self._port),
            "KEEPFIT_WORKERS": str(settings.workers),
            "KEEPFIT_GATEWAY_PROCESSES": str(settings.gateway_processes),
        }
        self._processes: list[ManagedProcess] = []
        variables |= self._add_servers(settings)
        if "snapshot_url" not in settings.model_fields_set:
            variables["KEEPFIT_SNAPSHOT_URL"] = (self.data / "snapshots").as_uri()
        if settings.row_log_url:
            # `keepfit restore` on this folder needs it too, from any shell.
            variables["KEEPFIT_ROW_LOG_URL"] = settings.row_log_url
        if "signing_keys" not in settings.model_fields_set:
            variables["KEEPFIT_SIGNING_KEYS"] = local_key(self.data / "signing-keys")
        if "upload_keys" not in settings.model_fields_set:
            variables["KEEPFIT_UPLOAD_KEYS"] = local_key(self.data / "upload-keys")
        seed = hash_seed.chosen(settings_file(self.data))
        if seed != hash_seed.DEFAULT:
            # The next stack on this folder and `keepfit restore` go on with it.
            variables[hash_seed.NAME] = seed
        self.environment: Mapping[str, str] = variables
        self.url = url_to_connect(settings.host, self._port)
        self._add_services(settings)
        self._stopping = False

    def _add(self, name: str, stage: int, command: list[str], problem: Callable[[ManagedProcess], str]) -> None:
        log = self.data / "logs" / f"{name}.log"
        self._processes.append(ManagedProcess(name, stage, command, problem, log))

    def _add_servers(self, settings: Settings) -> dict[str, str]:
        variables = {}
        if "store_url" not in settings.model_fields_set:
            port = free_port()
            variables["KEEPFIT_STORE_URL"] = f"redis://127.0.0.1:{port}/0"
            self._add("redis", 0, redis_command(port, self.data / "redis"), accepts_on(port))
            if not (settings.queue_url or settings.queue_urls):
                # Worker requests are worthless once their gateway is gone: no write needs to reach the disk.
                port = free_port()
                variables["KEEPFIT_QUEUE_URL"] = f"redis://127.0.0.1:{port}/0"
                self._add("queue", 0, redis_command(port, self.data / "queue", durable=False), accepts_on(port))
        if "mongo_url" not in settings.model_fields_set:
            port = free_port()
            variables["KEEPFIT_MONGO_URL"] = f"mongodb://127.0.0.1:{port}/keepfit"
            self._add("mongo", 0, mongo_command(port, self.data / "mongo"), accepts_on(port))
        return variables

    def _add_services(self, settings: Settings) -> None:
        every = f"{settings.snapshot_every_s:.6f}s"
        snapshotter = keepfit_command(self.data, "snapshot", "--every", every)
        self._add("workers", 1, keepfit_command(self.data, "worker"), has_logged("worker_started"))
        all_listen = has_logged("gateway_listening")
        self._add(
            "gateway", 2, keepfit_command(self.data, "gateway"),
            lambda managed: all_listen(managed) or why_not_ready(f"{self.url}/readyz"),
        )  # fmt: skip
        self._add("snapshotter", 2, snapshotter, has_logged("snapshotter_started"))

    def run(self, lock: IO[Any], started: Callable[["Stack"], None]) -> None:
        """Start all processes, call `started`, restart dead ones until SIGTERM or Ctrl-C; then stop them in order.

        `lock` is the lock of the folder.

        Raises
        ------
        SettingsError
            If the gateway cannot listen, or a server that is not ours cannot be reached.
        UnavailableError
            If a process does not start, or dies too often.
        """
        signal.signal(signal.SIGTERM, self._request_stop)
        signal.signal(signal.SIGINT, self._request_stop)
        check_listening(self._settings.host, self._port)
        check_reachable(self._settings)
        servers, *services = self._stages()
        try:
            self._write_environment()
            for stage in (servers, [managed for services_of_stage in services for managed in services_of_stage]):
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
        text = "".join(f"{name}={value}\n" for name, value in self.environment.items())
        with usable(self.data):
            write_file(self.data / "env", text)

    def _start(self, managed: ManagedProcess, lock: IO[Any]) -> None:
        with usable(self.data):
            output = open_to_append(managed.log, self.data)
        with output:
            managed.log_start = output.tell()
            try:
                managed.process = subprocess.Popen(
                    managed.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment_of(managed),
                    # The children hold the lock too: while one of them lives, no other stack can start on this folder.
                    pass_fds=(lock.fileno(),),
                    # Ctrl-C must not reach the children: this process stops them in order.
                    process_group=0,
                    # What the servers write, only the owner can read.
                    umask=0o077,
                    preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has one thread
                )
            except OSError as error:
                raise UnavailableError(f"{managed.name} cannot be started: {error}") from None
        self._write_pids()

    def _environment_of(self, managed: ManagedProcess) -> dict[str, str]:
        """Return the environment of a process: without the secrets that it does not need."""
        variables = {**os.environ, hash_seed.NAME: hash_seed.DEFAULT, **self.environment}
        if managed.stage == SERVERS:
            return child_environment.basic(variables)
        return child_environment.of_service(managed.name, variables, self._settings)

    def _write_pids(self) -> None:
        pids = {managed.name: managed.process.pid for managed in self._processes if managed.process is not None}
        with usable(self.data):
            write_record(self.data, self.url, pids)

    def _wait_ready(self, managed: ManagedProcess) -> None:
        """Wait until a process is ready; meanwhile no started process may end."""
        deadline = time.monotonic() + START_S_MAX
        while not self._stopping and (problem := managed.problem(managed)):
            for each in self._processes:
                if each.has_ended and not self._stopping:
                    raise self._failure(each, "ended at its start")
            if time.monotonic() > deadline:
                raise self._failure(managed, f"was not ready within {START_S_MAX:g} s ({problem})")
            time.sleep(0.05)

    def _failure(self, managed: ManagedProcess, why: str) -> UnavailableError:
        """Return the error of a process, with the last error in its log; show the end of a longer log."""
        lines = managed.output().strip().splitlines()
        if len(lines) > 1:
            self._show_log("\n".join(lines[-LINES_SHOWN_MAX:]))
        errors = [line for line in lines if not is_routine(line)] or lines
        last = errors[-1][:LINE_LENGTH_MAX] if errors else "it logged nothing"
        full = ""
        with suppress(OSError):
            if shutil.disk_usage(self.data).free < FREE_BYTES_MIN:
                full = f"; the disk of {self.data} is full: {FREE_SPACE}"
        return UnavailableError(f"{managed.name} {why}: {last} (log: {managed.log}){full}")

    def _restart_dead(self, lock: IO[Any]) -> None:
        for managed in self._processes:
            if not managed.has_ended:
                continue
            now = time.monotonic()
            managed.deaths = [at for at in managed.deaths if now - at < DEATHS_WITHIN_S] + [now]
            if len(managed.deaths) > DEATHS_MAX:
                raise self._failure(managed, "keeps dying")
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
        remove_record(self.data)


def is_routine(line: str) -> bool:
    """Return whether a line of a service's log says that nothing is wrong.

    >>> is_routine('{"event": "gateway_stopped", "level": "info"}'), is_routine("keepfit: Redis is unavailable.")
    (True, False)
    """
    try:
        return bool(json.loads(line)["level"] in ("debug", "info"))
    except (ValueError, TypeError, KeyError):
        return False


def accepts_on(port: int) -> Callable[[ManagedProcess], str]:
    """Return a check that a server accepts connections on a loopback port."""
    return lambda _: "" if accepts(port) else f"nothing accepts connections on port {port}"


def has_logged(event: str) -> Callable[[ManagedProcess], str]:
    """Return a check that a service has logged this event since its start."""
    return lambda managed: "" if f'"event": "{event}"' in managed.output() else f"it has not logged {event}"


def end_with_parent() -> None:
    """Make Linux terminate this child when its parent dies. Elsewhere the lock shows that children are left."""
    signal_at_death_of_parent(signal.SIGTERM)


def run_stack(
    data: Path, settings: Settings, started: Callable[[Stack], None], show_log: Callable[[str], None]
) -> None:
    """Run a stack on the folder `data` until SIGTERM or Ctrl-C; raise what :class:`Stack` and :func:`locked` raise."""
    data = data.absolute()
    with locked(data) as lock:
        Stack(data, settings, show_log).run(lock, started)

"""The process that runs a pull job, and what the supervisor does about such processes.

Owns when one starts, how it ends, and which job it takes. Never learns or predicts, so that no model waits for a
source. Invariants: a process runs one job at a time, and ends when none waits; the jobs of a dead process are released
as soon as its supervisor sees the death; on SIGTERM it ends after the present chunk.
"""

import asyncio
import os
import signal
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

import structlog
from redis import Redis

from keepfit import child_processes
from keepfit.backends import queue_servers, redis_clients, redis_keys, redis_scripts
from keepfit.errors import UnavailableError
from keepfit.ingest.pull import Pull
from keepfit.jobs import messages, run_queue
from keepfit.jobs.messages import WorkerRequest
from keepfit.rowlog.row_log import open_log
from keepfit.rows import arrow
from keepfit.settings import Settings
from keepfit.store import pull_jobs
from keepfit_workers import memory

log = structlog.get_logger(__name__)

RESTORE_TIMEOUT_S = 60.0
RESTORE_POLL_S = 0.1
# After a process could not start, the next one waits.
RESTART_PAUSE_S = 1.0


class PullProcesses:
    """The processes of one supervisor that run pull jobs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: dict[str, BaseProcess] = {}
        self._dead: list[str] = []
        self._wanted = 0
        self._start_not_before_s = 0.0

    @property
    def sentinels(self) -> list[int]:
        """What becomes ready when a process ends."""
        return [process.sentinel for process in self._running.values()]

    def start_missing(self) -> None:
        """Start a process for each job that waits, within the limit; no connection may be open."""
        while self._wanted > 0 and len(self._running) < self._settings.pulls:
            if time.monotonic() < self._start_not_before_s:
                return
            self._wanted -= 1
            name = f"pull.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
            self._running[name] = child_processes.fork(name, run, self._settings, name, os.getpid())
            log.info("pull_process_started", process=name, pid=self._running[name].pid)

    def remove_dead(self) -> None:
        """Note which processes have ended."""
        for name, process in list(self._running.items()):
            if process.exitcode is None:
                continue
            del self._running[name]
            if process.exitcode:
                log.warning("pull_process_died", process=name, pid=process.pid, exitcode=process.exitcode)
                self._dead.append(name)
                self._start_not_before_s = time.monotonic() + RESTART_PAUSE_S

    def look_after(self, store: Redis) -> None:
        """Release the jobs of dead processes, and see how many jobs wait; raises UnavailableError without Redis."""
        while self._dead:
            pull_jobs.release_of(store, self._dead[0])
            self._dead.pop(0)
        self._wanted = len(pull_jobs.claimable(store))

    def stop(self) -> None:
        """Have the processes end after their present chunk."""
        self._wanted = 0
        for process in self._running.values():
            process.terminate()

    def __len__(self) -> int:
        return len(self._running)


class _Service:
    """What a pull asks of workers: to restore a model, and to learn."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, name

    async def restore(self, model_hash: str) -> None:
        """Have a worker restore a model; raises NotFoundError if it does not exist, UnavailableError without answer."""
        request = WorkerRequest(1, self._name, model_hash, "restore")
        entry = run_queue.make_entry(model_hash, RESTORE_TIMEOUT_S, messages.encode(request))
        queue = redis_clients.queue_sync(queue_servers.first_up(model_hash, self._settings))
        try:
            await self._ask(queue, entry)
        finally:
            queue.close()

    async def _ask(self, queue: Redis, entry: bytes) -> None:
        await asyncio.to_thread(self._push, queue, entry)
        deadline_s = time.monotonic() + RESTORE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            (element,) = await asyncio.to_thread(redis_scripts.run, queue, ("LPOP", redis_keys.replies(self._name)))
            if element is not None:
                messages.decode_replies(element)[0].raise_error()
                return
            await asyncio.sleep(RESTORE_POLL_S)
        raise UnavailableError("No worker has restored the model in time.")

    async def notify(self, model_hash: str) -> None:
        """Notify the learn queue; without Redis the sweep of the workers finds the rows."""
        with suppress(UnavailableError):
            await asyncio.to_thread(run_queue.enqueue_model, self._settings, model_hash)

    def _push(self, queue: Redis, entry: bytes) -> None:
        settings = self._settings
        with redis_scripts.unavailable():
            run_queue.enqueue_lease(
                queue, run_queue.PREDICT, settings.lease_ttl_s, [entry], settings.predict_entries_max
            )


def run(settings: Settings, name: str, supervisor: int) -> None:
    """Run jobs until none waits or SIGTERM; the body of a process, whose supervisor has the process id `supervisor`."""
    stopped: list[int] = []

    def stop(signum: int, frame: Any) -> None:
        stopped.append(signum)

    signal.signal(signal.SIGTERM, stop)
    # Ctrl-C reaches the whole process group; the supervisor stops its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    child_processes.end_with(supervisor)
    memory.limit_process(memory.bytes_max(settings))
    if arrow.AVAILABLE:
        arrow.use_system_memory()
    asyncio.run(_run(settings, name, stopped))


async def _run(settings: Settings, name: str, stopped: list[int]) -> None:
    store, sync_store = redis_clients.store_async(settings), redis_clients.store_sync(settings)
    service = _Service(settings, name)
    # One thread reads: each more would have a heap of its own, which keeps what it has had.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "pull"))
    try:
        while not stopped:
            job = _claim_next(sync_store, f"{name} {uuid.uuid4().hex[:8]}")
            if job is None:
                return
            found, holder = job
            rows_log = await asyncio.to_thread(open_log, settings.row_log_url)
            await Pull(store, settings, service, rows_log, found, holder, lambda: bool(stopped)).run()
    except UnavailableError as error:
        log.warning("pull_process_stops", process=name, reason=str(error))
    finally:
        sync_store.close()
        await store.aclose()


def _claim_next(store: Redis, holder: str) -> tuple[pull_jobs.PullJob, str] | None:
    """Claim the job that has waited longest; None if none waits."""
    for name in pull_jobs.claimable(store):
        (claimed,) = redis_scripts.run(store, pull_jobs.claim(name, holder))
        if claimed:
            job = pull_jobs.read(store, name)
            if job is not None:
                return job, holder
    return None

"""The supervisor: starts worker processes, replaces dead ones, and puts their work back at once.

Owns the processes of one machine or pod. Never runs a job. Invariant: the death of a worker is detected within
milliseconds (the supervisor waits for its process, without polling), and the work it had claimed is back in its run
queue before its successor starts.
"""

import gc
import multiprocessing as mp
import os
import signal
import socket
import time
import uuid
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType

import structlog
from redis.exceptions import RedisError

from keepfit.backends import redis_clients
from keepfit.errors import KeepfitError
from keepfit.observability.outage import Outage
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit_workers import jobs, sweep, worker

log = structlog.get_logger(__name__)

SWEEP_S = 1.0
# Interval of attempts while Redis is unavailable: work that waits for Redis must not wait for the sweep as well.
OUTAGE_SWEEP_S = 0.25
# A worker that died sooner than this is replaced after a pause, so that a failing start does not become a fork loop.
EARLY_DEATH_S = 0.5
RESTART_PAUSE_S = 1.0


class Supervisor:
    """`settings.workers` worker processes, kept alive until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings) -> None:
        # A wrong key is reported here, in one line, instead of by every worker that fails on it.
        Keyring.from_text(settings.signing_keys.get_secret_value())
        self._settings = settings
        self._context = mp.get_context("fork")
        self._workers: dict[str, tuple[BaseProcess, float]] = {}
        self._dead: list[str] = []
        self._stopping = False
        self._woken, self._wake = mp.Pipe(duplex=False)
        self._start_not_before = 0.0
        self._reaped_left_behind = False
        self._outage = Outage("redis", "dead workers are not reaped, and pending requests without a hint are not found")
        self._parent = os.getppid()

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT; then let each worker finish its current batch."""
        signal.signal(signal.SIGTERM, self._request_stop)
        signal.signal(signal.SIGINT, self._request_stop)
        jobs.warm_up()
        # Objects that all workers share are frozen: no worker scans them for garbage or copies their memory pages.
        gc.collect()
        gc.freeze()
        while not self._stopping and os.getppid() == self._parent:
            self._start_missing()
            sentinels = [process.sentinel for process, _ in self._workers.values()]
            wait([self._woken, *sentinels], timeout=OUTAGE_SWEEP_S if self._outage.active else SWEEP_S)
            self._remove_dead()
            self._reap_and_sweep()
        self._stop_workers()

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._wake.send_bytes(b"stop")

    def _start_missing(self) -> None:
        while len(self._workers) < self._settings.workers and not self._stopping:
            if time.monotonic() < self._start_not_before:
                return
            name = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
            process = self._context.Process(target=worker.run, args=(self._settings, name), name=name)
            # SIGTERM is blocked until the child has handlers of its own; the inherited one would have no effect there.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            process.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            self._workers[name] = (process, time.monotonic())
            log.info("worker_started", worker=name, pid=process.pid)

    def _remove_dead(self) -> None:
        for name, (process, started) in list(self._workers.items()):
            if process.exitcode is None:
                continue
            log.warning("worker_died", worker=name, pid=process.pid, exitcode=process.exitcode)
            del self._workers[name]
            self._dead.append(name)
            if time.monotonic() - started < EARLY_DEATH_S:
                self._start_not_before = time.monotonic() + RESTART_PAUSE_S

    def _reap_and_sweep(self) -> None:
        """Reap dead workers and sweep; while Redis is unavailable, both are deferred."""
        store, queue = redis_clients.store_sync(self._settings), redis_clients.queue_sync(self._settings)
        ttl_s = self._settings.lease_ttl_s
        try:
            if not self._reaped_left_behind:
                sweep.reap_left_behind(store, queue, ttl_s)
                self._reaped_left_behind = True
            while self._dead:
                sweep.reap(store, queue, self._dead[0], ttl_s)
                self._dead.pop(0)
            sweep.sweep(store, queue, ttl_s, after_outage=self._outage.active)
            self._outage.end()
        except (KeepfitError, RedisError) as error:
            self._outage.begin(error)
        except Exception:
            # Redis holds a record that RQ did not write. Leases end at their deadlines in any case, so the workers are
            # not reaped again and again.
            log.exception("sweep_failed")
            self._reaped_left_behind = True
            self._dead.clear()
        finally:
            # No connection may be open while the next worker is forked.
            store.close()
            queue.close()

    def _stop_workers(self) -> None:
        for process, _ in self._workers.values():
            process.terminate()
        for name, (process, _) in self._workers.items():
            process.join()
            log.info("worker_stopped", worker=name, exitcode=process.exitcode)


def run(settings: Settings) -> None:
    """Run the supervisor until SIGTERM or SIGINT."""
    Supervisor(settings).run()

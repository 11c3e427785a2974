"""The supervisor: starts worker processes, restarts a dead one, and hands its work on at once.

Owns the processes of one machine or pod. Never runs a job. Invariant: a worker's death is known within milliseconds
(its process is waited for, not polled), and what it had in hand is back in its room before its successor starts.
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
# How often to look for a Redis that is away: what waits for it shall not wait for us.
AWAY_SWEEP_S = 0.25
# A worker that dies as soon as it starts must not turn this into a fork bomb.
YOUNG_S = 0.5
RESTART_PAUSE_S = 1.0


class Supervisor:
    """`settings.workers` worker processes, kept alive until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings) -> None:
        # Said here, in one line, instead of by every worker that dies of it.
        Keyring.from_text(settings.signing_keys.get_secret_value())
        self._settings = settings
        self._context = mp.get_context("fork")
        self._workers: dict[str, tuple[BaseProcess, float]] = {}
        self._dead: list[str] = []
        self._stopping = False
        self._woken, self._wake = mp.Pipe(duplex=False)
        self._not_before = 0.0
        self._looked_back = False
        self._outage = Outage("redis", "dead workers are not buried, and nobody looks for forgotten mail")
        self._parent = os.getppid()

    def run(self) -> None:
        """Supervise until told to stop; then let each worker finish the batch in hand."""
        signal.signal(signal.SIGTERM, self._request_stop)
        signal.signal(signal.SIGINT, self._request_stop)
        jobs.warm_up()
        # What all workers share stays, so none has to go through it for garbage, nor gets pages of its own for it.
        gc.collect()
        gc.freeze()
        while not self._stopping and os.getppid() == self._parent:
            self._start_missing()
            sentinels = [process.sentinel for process, _ in self._workers.values()]
            wait([self._woken, *sentinels], timeout=AWAY_SWEEP_S if self._outage.active else SWEEP_S)
            self._collect_dead()
            self._look_after()
        self._stop_workers()

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._wake.send_bytes(b"stop")

    def _start_missing(self) -> None:
        while len(self._workers) < self._settings.workers and not self._stopping:
            if time.monotonic() < self._not_before:
                return
            name = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
            process = self._context.Process(target=worker.run, args=(self._settings, name), name=name)
            # Until the child has handlers of its own, a SIGTERM must wait: it would run ours there, to no effect.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            process.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            self._workers[name] = (process, time.monotonic())
            log.info("worker_started", worker=name, pid=process.pid)

    def _collect_dead(self) -> None:
        for name, (process, started) in list(self._workers.items()):
            if process.exitcode is None:
                continue
            log.warning("worker_died", worker=name, pid=process.pid, exitcode=process.exitcode)
            del self._workers[name]
            self._dead.append(name)
            if time.monotonic() - started < YOUNG_S:
                self._not_before = time.monotonic() + RESTART_PAUSE_S

    def _look_after(self) -> None:
        """Bury the dead and sweep; where Redis is away, the dead wait for it to come back."""
        store, queue = redis_clients.store_sync(self._settings), redis_clients.queue_sync(self._settings)
        ttl_s = self._settings.lease_ttl_s
        try:
            if not self._looked_back:
                sweep.bury_left_behind(store, queue, ttl_s)
                self._looked_back = True
            while self._dead:
                sweep.bury(store, queue, self._dead[0], ttl_s)
                self._dead.pop(0)
            sweep.sweep(store, queue, ttl_s, after_outage=self._outage.active)
            self._outage.end()
        except (KeepfitError, RedisError) as error:
            self._outage.begin(error)
        except Exception:
            # Somebody wrote what RQ does not write. Leases end at their deadlines all the same, so nothing is buried
            # again and again.
            log.exception("sweep_crashed")
            self._looked_back = True
            self._dead.clear()
        finally:
            # No connection may be open when the next worker is forked.
            store.close()
            queue.close()

    def _stop_workers(self) -> None:
        for process, _ in self._workers.values():
            process.terminate()
        for name, (process, _) in self._workers.items():
            process.join()
            log.info("worker_stopped", worker=name, exitcode=process.exitcode)


def run(settings: Settings) -> None:
    """Run the supervisor until it is told to stop."""
    Supervisor(settings).run()

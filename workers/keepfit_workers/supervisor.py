"""The supervisor: starts worker processes, renews what they hold, replaces dead ones, and puts their work back at once.

Owns the processes of one machine or pod. Never runs a job. Invariants: the death of a worker is detected within
milliseconds (the supervisor waits for its process, without polling), and the work it had claimed is back in its run
queue before its successor starts; a worker keeps its lease as long as it lives, whatever its code does; a call over its
time is ended by killing its worker.
"""

import gc
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

import structlog
from redis import Redis
from redis.exceptions import RedisError

from keepfit import child_processes, hash_seed
from keepfit.backends import redis_clients
from keepfit.backends.backoff import Backoff
from keepfit.child_processes import RESTART_PAUSE_S, StopRequest
from keepfit.errors import KeepfitError
from keepfit.observability.alive_file import AliveFile
from keepfit.observability.outage import Outage
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.store.commit import Harm
from keepfit_workers import heartbeat, jobs, metrics, sweep, worker
from keepfit_workers.activity import Activity, Doing
from keepfit_workers.metrics import WorkerMetrics
from keepfit_workers.metrics_page import MetricsProcess
from keepfit_workers.pulling import PullProcesses

log = structlog.get_logger(__name__)

SWEEP_S = 1.0
# Pause after the first failure in a row to reach a Redis: 0.13 to 0.25 s, because work that waits for Redis must not
# wait for the sweep as well; after each further one twice as long, up to the interval of the sweep.
RETRY_PAUSE_S = 0.25
# A worker that died sooner than this, and before it did anything, failed to start: it is replaced after a pause. What a
# model does to its workers ends by itself: they are replaced at once.
EARLY_DEATH_S = 0.5
# A killed process ends at once, unless the kernel holds it, for example in a read of a disk that does not answer.
KILLED_S_MAX = 1.0
# The supervisor looks at its workers each second, if Redis answers: after so much more it has been stopped itself.
LATE_S = 30.0


@dataclass(slots=True)
class Child:
    """A worker process; `number` is that of its part of the metrics.

    `stopped_at_s` is the moment since which a signal has stopped it, 0 if it runs. `excused_s` is how much of its call,
    which began at `call_since_s`, does not count: the worker could not run.
    """

    name: str
    number: int
    process: BaseProcess
    activity: Activity
    started_s: float = field(default_factory=time.monotonic)
    stopped_at_s: float = 0.0
    is_overdue: bool = False
    call_since_s: float = 0.0
    excused_s: float = 0.0
    seen_s: float = field(default_factory=time.monotonic)
    row_rate: heartbeat.RowRate = field(default_factory=lambda: heartbeat.RowRate(time.monotonic()))

    def death(self, exitcode: int) -> sweep.Death:
        """Return how this worker ended, and what it did then."""
        harm = Harm.TIME if self.is_overdue else Harm.DEATH
        return sweep.Death(self.name, harm if exitcode else None, self.activity.read(), exitcode)

    def failed_to_start(self, now_s: float) -> bool:
        """Return whether this worker, which is dead at the moment `now_s`, died at once, before it did anything."""
        return now_s - self.started_s < EARLY_DEATH_S and self.activity.read() == Doing()

    def silent_s(self, now_s: float) -> float:
        """Return the seconds for which the call has shown no progress, without those in which it could not run.

        Counted from one call of this method to the next: a late one says that this process was stopped as well.
        """
        doing = self.activity.read()
        if doing.since_s != self.call_since_s:
            self.call_since_s, self.excused_s = doing.since_s, 0.0
            self.seen_s = max(self.seen_s, doing.since_s)
        elif doing.step:
            passed_s = now_s - self.seen_s
            self.excused_s += passed_s if heartbeat.is_stopped(self.process.pid or 0) else max(passed_s - LATE_S, 0.0)
        self.seen_s = now_s
        return doing.silent_s(now_s) - self.excused_s

    def beat(self, now_s: float) -> heartbeat.Beat:
        """Return the heartbeat of this worker at the moment `now_s`."""
        if not heartbeat.is_stopped(self.process.pid or 0):
            self.stopped_at_s = 0.0
        elif not self.stopped_at_s:
            self.stopped_at_s = now_s
        # At least a moment: a worker that stopped just now is stopped, too.
        stopped_s = max(now_s - self.stopped_at_s, 1e-3) if self.stopped_at_s else 0.0
        doing = self.activity.read()
        return heartbeat.Beat(self.name, doing, stopped_s, self.row_rate.per_s(now_s, doing.rows_learned))


class Supervisor:
    """`settings.workers` worker processes, kept alive until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings) -> None:
        # A wrong key is reported here, in one line, instead of by every worker that fails on it.
        Keyring.from_text(settings.signing_keys.get_secret_value())
        self._settings = settings
        self._alive_file = AliveFile(settings.alive_file)
        self._workers: dict[str, Child] = {}
        self._pulls = PullProcesses(settings)
        self._metrics_process = MetricsProcess(settings, settings.workers)
        self._metrics = WorkerMetrics(self._metrics_process.supervisor)
        self._dead: list[sweep.Death] = []
        self._stop = StopRequest()
        self._start_not_before = 0.0
        self._beat_every_s = settings.lease_ttl_s / 3
        self._next_beat_s = self._next_sweep_s = self._expire_after_s = 0.0
        self._reaped_left_behind = False
        self._outage = Outage("redis", "leases are not renewed, dead workers not reaped, lost hints not found")
        self._backoff = Backoff(RETRY_PAUSE_S, SWEEP_S)
        self._parent = os.getppid()

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT; then let each worker finish its current batch."""
        self._stop.listen()
        jobs.warm_up()
        # Objects that all workers share are frozen: no worker scans them for garbage or copies their memory pages.
        gc.collect()
        gc.freeze()
        while not self._stop.made and os.getppid() == self._parent:
            self._start_missing()
            self._wait()
            self._look_after()
        self._stop_workers()

    def _start_missing(self) -> None:
        if not self._stop.made:
            self._pulls.start_missing()
            self._metrics_process.start_missing(os.getpid())
        while len(self._workers) < self._settings.workers and not self._stop.made:
            if time.monotonic() < self._start_not_before:
                return
            name = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
            activity = Activity()
            number = min(set(range(self._settings.workers)) - {child.number for child in self._workers.values()})
            counts = self._metrics_process.workers[number]
            process = child_processes.fork(name, worker.run, self._settings, name, activity, counts, os.getpid())
            counts.runs = True
            self._workers[name] = Child(name, number, process, activity)
            log.info("worker_started", worker=name, pid=process.pid)

    def _wait(self) -> None:
        """Wait until a worker dies, a stop is requested, or the next heartbeat or sweep is due."""
        self._alive_file.touch()
        due_s = min(self._next_beat_s, self._next_sweep_s) - time.monotonic()
        workers = [child.process.sentinel for child in self._workers.values()]
        self._stop.wait([*workers, *self._pulls.sentinels, *self._metrics_process.sentinels], max(due_s, 0.0))

    def _look_after(self) -> None:
        """Kill workers over their time, note dead ones, and, with Redis: renew, reap and sweep."""
        self._kill_overdue()
        self._remove_dead()
        store, queue = redis_clients.store_sync(self._settings), redis_clients.queue_sync(self._settings)

        def beat() -> None:
            self._beat_if_due(store, queue)

        try:
            beat()
            self._reap_and_sweep(store, queue, beat)
            self._outage.end()
            self._backoff.reset()
        except (KeepfitError, RedisError) as error:
            self._outage.begin(error)
            self._next_sweep_s = time.monotonic() + self._backoff.next_s()
        finally:
            # No connection may be open while the next worker is forked.
            store.close()
            queue.close()

    def _beat_if_due(self, store: Redis, queue: Redis) -> None:
        """Renew what the workers hold, unless that was done a moment ago."""
        now_s = time.monotonic()
        if now_s < self._next_beat_s:
            return
        beats = [child.beat(now_s) for child in self._workers.values()]
        # Also after a failure: the next attempt is that of the next pass.
        self._next_beat_s = now_s + self._beat_every_s
        heartbeat.renew(store, queue, beats, self._settings.lease_ttl_s)

    def _kill_overdue(self) -> None:
        """Kill the workers whose call has taken longer than a call may; nothing else ends native code."""
        now_s = time.monotonic()
        for child in self._workers.values():
            doing, seconds = child.activity.read(), child.silent_s(now_s)
            if seconds > self._settings.call_timeout_s and child.process.exitcode is None:
                log.error(
                    "call_timed_out", worker=child.name, hash=doing.model, step=doing.step, seconds=round(seconds, 3)
                )
                child.is_overdue = True
                child.process.kill()
                child.process.join(KILLED_S_MAX)

    def _remove_dead(self) -> None:
        self._pulls.remove_dead()
        self._metrics_process.remove_dead()
        for name, child in list(self._workers.items()):
            exitcode = child.process.exitcode
            if exitcode is None:
                continue
            del self._workers[name]
            self._metrics_process.workers[child.number].runs = False
            if self._stop.made and not exitcode:
                log.info("worker_stopped", worker=name, exitcode=exitcode)
                continue
            log.warning("worker_died", worker=name, pid=child.process.pid, exitcode=exitcode)
            if exitcode:
                self._metrics.add(metrics.DEATHS, "killed" if child.is_overdue else "died")
            self._dead.append(child.death(exitcode))
            if child.failed_to_start(time.monotonic()):
                self._start_not_before = time.monotonic() + RESTART_PAUSE_S

    def _reap_and_sweep(self, store: Redis, queue: Redis, beat: Callable[[], None]) -> None:
        """Reap dead workers and sweep, with a heartbeat in between; while Redis is unavailable, all are deferred."""
        ttl_s = self._settings.lease_ttl_s
        try:
            if not self._reaped_left_behind:
                pids = {name: child.process.pid or 0 for name, child in self._workers.items()}
                sweep.reap_left_behind(store, queue, ttl_s, {**pids, "": os.getpid()})
                self._reaped_left_behind = True
            while self._dead:
                sweep.reap(store, queue, self._dead[0], ttl_s)
                self._dead.pop(0)
                beat()
            self._pulls.look_after(store)
            if time.monotonic() >= self._next_sweep_s:
                self._next_sweep_s = time.monotonic() + SWEEP_S
                if self._outage.active:
                    # Other supervisors have lost Redis as well: their leases have expired, and they will renew them.
                    self._expire_after_s = time.monotonic() + ttl_s
                expire = time.monotonic() >= self._expire_after_s
                sweep.sweep(store, queue, ttl_s, after_outage=self._outage.active, expire=expire, beat=beat)
        except (KeepfitError, RedisError):
            raise
        except Exception:
            # Redis holds a record that RQ did not write. Leases end at their deadlines in any case, so the workers are
            # not reaped again and again.
            log.exception("sweep_failed")
            self._reaped_left_behind = True
            self._dead.clear()

    def _stop_workers(self) -> None:
        """Let each worker finish its current batch; it keeps its lease meanwhile."""
        self._stop.made = True
        for child in self._workers.values():
            child.process.terminate()
        self._pulls.stop()
        while self._workers or self._pulls:
            self._wait()
            self._look_after()
        self._metrics_process.stop()


def run(settings: Settings) -> None:
    """Run the supervisor until SIGTERM or SIGINT, in a process whose string hashes are those of every worker.

    If this process has others, it is replaced first (:mod:`keepfit.hash_seed`), before anything is started.
    """
    # `keepfit worker` has done so before it imported this module. The settings are in the variables, not in a folder.
    hash_seed.restart_unless_fixed(["--data", os.devnull, "worker"], settings.variables())
    Supervisor(settings).run()

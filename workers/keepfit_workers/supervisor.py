"""The supervisor: starts worker processes, renews what they hold, replaces dead ones, and puts their work back at once.

Owns the processes of one machine or pod. Never runs a job. Invariants: the death of a worker is detected within
milliseconds (the supervisor waits for its process, without polling), and the work it had claimed is back in its run
queue before its successor starts; a worker keeps its lease as long as it lives, whatever its code does; a call over its
time is ended by killing its worker.
"""

import gc
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess

import structlog
from redis import Redis
from redis.exceptions import RedisError

from keepfit import child_processes, hash_seed
from keepfit.backends import queue_servers, redis_clients
from keepfit.child_processes import RESTART_PAUSE_S, StopRequest
from keepfit.errors import KeepfitError
from keepfit.jobs import run_queue
from keepfit.observability.alive_file import AliveFile
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.store.commit import Harm
from keepfit_workers import heartbeat, jobs, metrics, sweep, worker
from keepfit_workers.activity import Activity, Doing
from keepfit_workers.metrics import WorkerMetrics
from keepfit_workers.metrics_page import MetricsProcess
from keepfit_workers.pulling import PullProcesses
from keepfit_workers.queue_care import QueueCare

log = structlog.get_logger(__name__)

# Workers of a server that has been away for so long go to the others: a restart is quicker.
MOVE_AFTER_S = 2.0
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
    care: QueueCare
    is_moving: bool = False
    started_s: float = field(default_factory=time.monotonic)
    stopped_at_s: float = 0.0
    is_overdue: bool = False
    call_since_s: float = 0.0
    excused_s: float = 0.0
    seen_s: float = field(default_factory=time.monotonic)
    row_rate: heartbeat.RowRate = field(default_factory=lambda: heartbeat.RowRate(time.monotonic()))

    def move(self) -> None:
        """Stop this worker after its current batch, so that another one is started for another server."""
        if not self.is_moving:
            self.is_moving = True
            log.info("worker_moves", worker=self.name, server=self.care.name)
            self.process.terminate()

    def ended_as_requested(self, exitcode: int) -> bool:
        """Return whether the worker was to move; it may end by the signal while it waits for its server."""
        return self.is_moving and exitcode in (0, -signal.SIGTERM)

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
        servers = queue_servers.settings_of(settings)
        # Each server has a worker of each supervisor, so that none is without.
        settings = settings.model_copy(update={"workers": max(settings.workers, len(servers))})
        self._settings = settings
        self._cares = [
            QueueCare(one.model_copy(update={"workers": settings.workers}), is_alone=len(servers) == 1)
            for one in servers
        ]
        self._alive_file = AliveFile(settings.alive_file)
        self._workers: dict[str, Child] = {}
        self._pulls = PullProcesses(settings)
        self._metrics_process = MetricsProcess(settings, settings.workers)
        self._metrics = WorkerMetrics(self._metrics_process.supervisor)
        self._stop = StopRequest()
        self._start_not_before = 0.0
        self._up = {care.name for care in self._cares}
        self._lost_hints = False
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
            care = min([care for care in self._cares if care.is_up] or self._cares, key=self._count)
            process = child_processes.fork(name, worker.run, care.settings, name, activity, counts, os.getpid())
            counts.runs = True
            self._workers[name] = Child(name, number, process, activity, care)
            log.info("worker_started", worker=name, pid=process.pid)

    def _wait(self) -> None:
        """Wait until a worker dies, a stop is requested, or the next heartbeat or sweep is due."""
        self._alive_file.touch()
        due_s = min(care.due_s for care in self._cares) - time.monotonic()
        workers = [child.process.sentinel for child in self._workers.values()]
        self._stop.wait([*workers, *self._pulls.sentinels, *self._metrics_process.sentinels], max(due_s, 0.0))

    def _look_after(self) -> None:
        """Kill workers over their time, note dead ones, and, with Redis: renew, reap and sweep."""
        self._kill_overdue()
        self._remove_dead()
        for care in self._cares:
            care.probe()
        up = {care.name for care in self._cares if care.is_up}
        self._lost_hints, self._up = self._lost_hints or up != self._up, up
        self._move_workers(time.monotonic())
        store = redis_clients.store_sync(self._settings)
        queues = {care.name: care.client() for care in self._cares}
        try:
            # The heartbeats first: no server's sweep delays those of the others.
            for care in [care for care in self._cares if self._attempt(care, partial(self._beat, care, store, queues))]:
                if not care.is_up:
                    self._attempt(care, partial(care.release_locks, store))
                elif self._attempt(care, partial(self._reap_and_sweep, care, store, queues)):
                    care.succeed()
        finally:
            # No connection may be open while the next worker is forked.
            for client in (store, *queues.values()):
                client.close()

    def _attempt(self, care: QueueCare, act: Callable[[], object]) -> bool:
        """Do something that needs Redis; return whether that was possible."""
        try:
            act()
        except (KeepfitError, RedisError) as error:
            care.fail(error)
            return False
        return True

    def _beat(self, care: QueueCare, store: Redis, queues: Mapping[str, Redis]) -> None:
        """Renew what the workers of one server hold, if that is due."""

        def beats(now_s: float) -> list[heartbeat.Beat]:
            return [child.beat(now_s) for child in self._workers.values() if child.care is care]

        care.beat_if_due(store, queues[care.name], beats)

    def _move_workers(self, now_s: float) -> None:
        """Stop workers whose server is away, and one of a server that has more than one worker more than another.

        A successor of each is started where the fewest workers are.
        """
        up = [care for care in self._cares if care.is_up]
        if len(self._cares) == 1 or not up:
            return
        for child in self._workers.values():
            if not child.care.is_up and child.care.away_s(now_s) > MOVE_AFTER_S:
                child.move()
        counts = {care.name: self._count(care) for care in up}
        fewest, most = min(up, key=lambda care: counts[care.name]), max(up, key=lambda care: counts[care.name])
        complete = len(self._workers) == self._settings.workers
        moving = any(child.is_moving for child in self._workers.values())
        if counts[most.name] > counts[fewest.name] + 1 and complete and not moving:
            # One without a lease, if there is any: it ends at once.
            there = [child for child in self._workers.values() if child.care is most]
            min(there, key=lambda child: bool(child.activity.read().lease)).move()

    def _count(self, care: QueueCare) -> int:
        return sum(child.care is care and not child.is_moving for child in self._workers.values())

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
            moved = child.ended_as_requested(exitcode)
            if (self._stop.made and not exitcode) or (moved and not exitcode and child.care.is_up):
                log.info("worker_stopped", worker=name, exitcode=exitcode)
                continue
            if moved:
                log.info("worker_stopped", worker=name, exitcode=exitcode)
                child.care.dead.append(child.death(0))
                continue
            log.warning("worker_died", worker=name, pid=child.process.pid, exitcode=exitcode)
            if exitcode:
                self._metrics.add(metrics.DEATHS, "killed" if child.is_overdue else "died")
            child.care.dead.append(child.death(exitcode))
            if child.failed_to_start(time.monotonic()):
                self._start_not_before = time.monotonic() + RESTART_PAUSE_S

    def _reap_and_sweep(self, care: QueueCare, store: Redis, queues: Mapping[str, Redis]) -> None:
        """Reap dead workers and sweep, with a heartbeat in between; while Redis is unavailable, all are deferred."""
        queue, first = queues[care.name], next(one for one in self._cares if one.is_up)
        pids = {name: child.process.pid or 0 for name, child in self._workers.items()}

        def beat() -> None:
            self._beat(care, store, queues)
            for other in self._cares:
                if other is not care:
                    self._attempt(other, partial(self._beat, other, store, queues))

        try:
            care.reap(store, queue, pids, beat)
            if care is not first:
                care.sweep_if_due(store, queue, beat, search=False)
                return
            # One search for pending requests serves all servers.
            self._pulls.look_after(store)
            notify = partial(self._notify, queues) if len(self._cares) > 1 else None
            if care.sweep_if_due(store, queue, beat, notify=notify, lost_hints=self._lost_hints):
                self._lost_hints = False
        except (KeepfitError, RedisError):
            raise
        except Exception:
            # Leases end at their deadlines in any case, so the workers are not reaped again and again.
            log.exception("sweep_failed")
            care.give_up()

    def _notify(self, queues: Mapping[str, Redis], models: Sequence[str]) -> None:
        """Notify the learn queues of models with pending requests, each on its server."""
        up = [care for care in self._cares if care.is_up]
        usable = [care for care in up if care.has_workers] or up
        names = [care.name for care in usable]
        for care in usable:
            own = [model_hash for model_hash in models if names[queue_servers.pick(model_hash, names)] == care.name]
            if own:
                enqueue = partial(run_queue.enqueue_lease, queues[care.name], run_queue.LEARN)
                self._attempt(care, partial(enqueue, self._settings.lease_ttl_s, own))

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

"""The RQ worker that runs keepfit's leases in its own process.

Owns how one worker process starts, waits and stops. Never forks for a job: a fork takes 10 ms and loses the cached
bundles. Invariants: SIGTERM stops it between jobs and between batches, never inside one; while Redis is unavailable it
waits, keeps its cached bundles, and does not exit.
"""

import os
import signal
import time
from typing import Any

import structlog
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, StopRequested
from rq.job import Job
from rq.utils import now

from keepfit import child_processes
from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.backoff import Backoff
from keepfit.errors import UnavailableError
from keepfit.jobs import rq_jobs
from keepfit.observability import process_memory
from keepfit.observability.outage import REMIND_S, LogThrottle, Outage
from keepfit.observability.process_counts import ProcessCounts
from keepfit.settings import Settings
from keepfit_workers import context as contexts
from keepfit_workers import heartbeat, memory, registered, sweep
from keepfit_workers.activity import Activity
from keepfit_workers.context import WorkerContext

log = structlog.get_logger(__name__)

IDLE_WAIT_S = 1
# Share of the memory limit above which a worker is replaced between two jobs.
REPLACED_AT = 0.75
# Pause after the first failure in a row to reach the queue's Redis: 0.1 to 0.2 s; after each further one twice as long.
RETRY_PAUSE_S, RETRY_PAUSE_S_MAX = 0.2, 1.0
UNAVAILABLE = (RedisError, UnavailableError)


class LeaseWorker(SimpleWorker):
    """A SimpleWorker that stops only between jobs, ends with its supervisor, and survives outages of Redis."""

    def __init__(self, context: WorkerContext, name: str) -> None:
        self.context = context
        super().__init__(
            [rq_jobs.queue_of(self.context.queue)],
            name=name,
            connection=self.context.queue,
            job_class=rq_jobs.LeaseJob,
            queue_class=rq_jobs.LeaseQueue,
            serializer=rq_jobs.SERIALIZER,
            worker_ttl=heartbeat.record_ttl_s(context.settings.lease_ttl_s),
            log_job_description=False,
        )
        self._supervisor = os.getppid()
        self._queue_outage = Outage("queue", "this worker waits for it")
        self._queue_backoff = Backoff(RETRY_PAUSE_S, RETRY_PAUSE_S_MAX)
        self._store_outage = Outage("store", "models stay locked for a while")
        self._aborted_leases: list[str] = []
        self._aborted = LogThrottle(REMIND_S)
        self._has_worked = False

    def request_stop(self, signum: int, frame: Any) -> None:
        """Request a stop after the current job; RQ's own handler would raise in the middle of a dequeue."""
        self._stop_requested = True
        self.context.stopping = True

    def install_signal_handlers(self) -> None:
        """Handle SIGTERM with :meth:`request_stop`, and ignore SIGINT."""
        signal.signal(signal.SIGTERM, self.request_stop)
        # Ctrl-C reaches the whole process group; the supervisor stops its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    _install_signal_handlers = install_signal_handlers

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Wait for a job, and check once a second whether to stop.

        RQ's own method backs off up to a minute while Redis is unavailable, and cannot be stopped meanwhile.
        """
        while not self._stop_requested and os.getppid() == self._supervisor and not self._is_too_large():
            try:
                self._recover()
                found = self._next()
            except UNAVAILABLE as error:
                self._queue_outage.begin(error)
                time.sleep(self._queue_backoff.next_s())
                continue
            self._queue_outage.end()
            self._queue_backoff.reset()
            if found is not None:
                return found
        raise StopRequested

    def subscribe(self) -> None:
        """Ignore RQ's commands: any client that may publish in Redis could stop workers. Signals stop them here."""

    def check_for_suspension(self, burst: bool) -> None:
        """Ignore RQ's suspension: a key in Redis must not stop all workers."""

    def run_maintenance_tasks(self) -> None:
        """Delete expired job records; RQ's own method would also read records and groups that any client can write."""
        jobs = self.queues[0]
        for registry in (jobs.finished_job_registry, jobs.failed_job_registry, jobs.started_job_registry):
            self.connection.zremrangebyscore(registry.key, 0, time.time())
        registered.remove_lost(self.context.store, self.connection)
        self.last_cleaned_at = now()  # type: ignore[assignment]

    def register_birth(self) -> None:
        """Register this worker, and announce it."""
        super().register_birth()  # type: ignore[no-untyped-call]
        registered.announce(self.context.store, "worker_joined", self.name)

    def register_death(self) -> None:
        """Remove this worker, which has ended as requested, from the register, and announce it."""
        super().register_death()  # type: ignore[no-untyped-call]
        registered.announce(self.context.store, "worker_left", self.name)

    def _next(self) -> tuple[Job, Queue] | None:
        """Wait up to a second for a job."""
        super().heartbeat(self.worker_ttl)
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        try:
            found = self.queue_class.dequeue_any(
                self._ordered_queues,
                IDLE_WAIT_S,
                connection=self.connection,
                job_class=self.job_class,
                serializer=self.serializer,
                death_penalty_class=self.death_penalty_class,
            )
        except DequeueTimeout:
            return None
        if found is not None:
            found[0].redis_server_version = self.get_redis_server_version()  # type: ignore[no-untyped-call]
        return found

    def _recover(self) -> None:
        """Repeat the steps that failed while Redis was unavailable."""
        register = redis_keys.RQ_WORKERS
        known = redis_scripts.run(self.connection, ("SISMEMBER", register, self.key), ("HEXISTS", self.key, "pid"))
        if known != [1, 1]:
            # RQ's register was lost, or the record of this worker has expired while it was stopped.
            self.connection.delete(self.key)
            self.register_birth()
        try:
            while self._aborted_leases:
                sweep.end_lease(self.context.store, self.connection, self._aborted_leases[-1], None)
                self._aborted_leases.pop()
            self.context.run_deferred_unlocks()
        except UnavailableError as error:
            # Jobs that need no store can still be served; the others fail with the outage as their reason.
            self._store_outage.begin(error)
        else:
            if not self.context.is_backing_off:
                self._store_outage.end()

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a lease. An outage of Redis aborts the lease, and the worker continues."""
        self._has_worked = True
        try:
            super().execute_job(job, queue)
        except UNAVAILABLE as error:
            self._queue_outage.begin(error)
            self._aborted_leases.append(job.id)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log why a job failed; an outage of a dependency is not a defect of the job and needs no traceback."""
        if isinstance(exc_info[1], UNAVAILABLE):
            more = self._aborted.due("lease_aborted")
            if more is not None:
                log.warning("lease_aborted", lease=job.id, reason=str(exc_info[1]), more=more)
        else:
            # RQ's own method would log the message of the error, which may quote a row.
            log.error("job_failed", job=job.id, exc_info=exc_info)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Send RQ's heartbeat, if Redis is available. During a job the supervisor sends it, and sooner than RQ asks."""
        try:
            super().heartbeat(self.worker_ttl, pipeline)
        except RedisError as error:
            self._queue_outage.begin(error)

    def _is_too_large(self) -> bool:
        """Return whether this process is so near its memory limit that it is replaced; never before its first job."""
        if not self._has_worked:
            return False
        resident, most = process_memory.resident_bytes(), self.context.memory_bytes_max
        if resident <= REPLACED_AT * most:
            return False
        log.warning("worker_too_large", worker=self.name, resident_bytes=resident, bytes_max=most)
        return True


def run(settings: Settings, name: str, activity: Activity, counts: ProcessCounts, supervisor: int) -> None:
    """Run jobs until SIGTERM; the body of a worker process, whose supervisor has the process id `supervisor`.

    What it does it counts in `counts`.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Without its supervisor, nothing renews the lease of a long call.
    child_processes.end_with(supervisor)
    context = contexts.start(settings, name, activity, counts)
    memory.limit_process(context.memory_bytes_max)
    if not _wait_for_queue(context):
        return
    worker = LeaseWorker(context, name)
    worker.install_signal_handlers()
    try:
        worker.work(logging_level="WARNING")
    except RedisError as error:
        log.warning("worker_deregistration_failed", worker=name, reason=str(error))
    context.close()


def _wait_for_queue(context: WorkerContext) -> bool:
    """Wait until the queue's Redis answers, because RQ's worker cannot be created without it.

    Returns False if the supervisor ended meanwhile.
    """
    outage, supervisor = Outage("queue", "this worker waits for it"), os.getppid()
    backoff = Backoff(RETRY_PAUSE_S, RETRY_PAUSE_S_MAX)
    while os.getppid() == supervisor:
        try:
            context.queue.ping()
        except RedisError as error:
            outage.begin(error)
            time.sleep(backoff.next_s())
        else:
            outage.end()
            return True
    return False

"""The RQ worker that runs keepfit's leases in its own process.

Owns how one worker process starts, waits and stops. Never forks for a job: a fork costs 10 ms and forgets the bundles
held. Invariants: SIGTERM stops it between jobs and between batches, never inside one; a Redis that is away makes it
wait, with what it holds, and neither end nor give up.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.exceptions import DequeueTimeout, StopRequested
from rq.job import Job
from rq.utils import now
from rq.worker_registration import clean_worker_registry

from keepfit.backends import redis_keys
from keepfit.errors import UnavailableError
from keepfit.jobs import rq_jobs
from keepfit.observability.outage import Outage
from keepfit.settings import Settings
from keepfit_workers import context as process
from keepfit_workers import sweep
from keepfit_workers.context import WorkerContext

log = structlog.get_logger(__name__)

WORKER_TTL_S = 30
IDLE_LOOK_S = 1
AWAY_LOOK_S = 0.2
AWAY = (RedisError, UnavailableError)


class LeaseWorker(SimpleWorker):
    """A SimpleWorker that stops only between jobs, and when its supervisor is gone; and that outlives its Redis."""

    def __init__(self, context: WorkerContext, name: str) -> None:
        self.context = context
        super().__init__(
            [rq_jobs.queue_of(self.context.queue)],
            name=name,
            connection=self.context.queue,
            job_class=rq_jobs.LeaseJob,
            queue_class=rq_jobs.LeaseQueue,
            serializer=rq_jobs.SERIALIZER,
            worker_ttl=WORKER_TTL_S,
            log_job_description=False,
        )
        self._supervisor = os.getppid()
        self._queue_outage = Outage("queue", "this worker waits for it")
        self._store_outage = Outage("store", "models stay locked for a while")
        self._broken_off: list[str] = []
        self._has_worked = False

    def request_stop(self, signum: int, frame: Any) -> None:
        """Note that the worker is to stop; RQ's own handler would raise in the middle of a dequeue."""
        self._stop_requested = True
        self.context.stopping = True

    def install_signal_handlers(self) -> None:
        """Handle SIGTERM here from now on."""
        signal.signal(signal.SIGTERM, self.request_stop)
        # Ctrl-C reaches the whole process group; the supervisor decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    _install_signal_handlers = install_signal_handlers

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Wait for a job, looking up once a second whether to stop.

        RQ's own way waits longer and longer for a Redis that is away, up to a minute, and cannot be stopped meanwhile.
        """
        while not self._stop_requested and os.getppid() == self._supervisor and not self._is_too_large():
            try:
                self._clear_up()
                found = self._next()
            except AWAY as error:
                self._queue_outage.begin(error)
                time.sleep(AWAY_LOOK_S)
                continue
            self._queue_outage.end()
            if found is not None:
                return found
        raise StopRequested

    def subscribe(self) -> None:
        """Listen for no commands: whoever may publish in Redis could stop workers by RQ's; a signal stops them here."""

    def check_for_suspension(self, burst: bool) -> None:
        """Go on in any case: a key in Redis that makes all workers stand still is nobody's order here."""

    def run_maintenance_tasks(self) -> None:
        """Forget what ended long ago; RQ's own way would look into records, groups and limits of anybody's making."""
        jobs = self.queues[0]
        for registry in (jobs.finished_job_registry, jobs.failed_job_registry, jobs.started_job_registry):
            self.connection.zremrangebyscore(registry.key, 0, time.time())
        with suppress(UnicodeDecodeError):
            clean_worker_registry(jobs)
        self.last_cleaned_at = now()  # type: ignore[assignment]

    def _next(self) -> tuple[Job, Queue] | None:
        """Wait a second for a job."""
        super().heartbeat()
        if self.should_run_maintenance_tasks:
            self.run_maintenance_tasks()
        try:
            found = self.queue_class.dequeue_any(
                self._ordered_queues,
                IDLE_LOOK_S,
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

    def _clear_up(self) -> None:
        """Make good what could not be done while Redis was away."""
        if not self.connection.sismember(redis_keys.RQ_WORKERS, self.key):
            # RQ's register came back without us.
            self.connection.delete(self.key)
            self.register_birth()  # type: ignore[no-untyped-call]
        try:
            while self._broken_off:
                sweep.end_lease(self.context.store, self.connection, self._broken_off[-1])
                self._broken_off.pop()
            self.context.settle()
        except UnavailableError as error:
            # Others may be served without the store: they are told that it is away.
            self._store_outage.begin(error)
        else:
            self._store_outage.end()

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a lease; a Redis that goes away meanwhile breaks it off, and the worker goes on."""
        self._has_worked = True
        try:
            super().execute_job(job, queue)
        except AWAY as error:
            self._queue_outage.begin(error)
            self._broken_off.append(job.id)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log what a job failed of; a part that is away is no mistake of the job's and needs no traceback."""
        if isinstance(exc_info[1], AWAY):
            log.warning("lease_broken_off", lease=job.id, reason=str(exc_info[1]))
        else:
            super().handle_exception(job, *exc_info)

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """Show a sign of life, where Redis can be told of it."""
        try:
            super().heartbeat(*args, **kwargs)
        except RedisError as error:
            self._queue_outage.begin(error)

    def _is_too_large(self) -> bool:
        """Tell whether this process is to make room for a fresh one; never before it has done some work."""
        most = self.context.settings.worker_memory_bytes_max
        if not most or not self._has_worked:
            return False
        resident = resident_bytes()
        if resident <= most:
            return False
        log.warning("worker_too_large", worker=self.name, resident_bytes=resident, bytes_max=most)
        return True


def resident_bytes() -> int:
    """Memory that this process holds, in bytes; 0 where the system does not tell (it is Linux that does)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def run(settings: Settings, name: str) -> None:
    """Work until told to stop; the body of a worker process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    context = process.start(settings, name)
    if not _wait_for_queue(context):
        return
    worker = LeaseWorker(context, name)
    worker.install_signal_handlers()
    try:
        worker.work(logging_level="WARNING")
    except RedisError as error:
        log.warning("worker_not_signed_off", worker=name, reason=str(error))
    context.close()


def _wait_for_queue(context: WorkerContext) -> bool:
    """Wait until the queue's Redis answers, because RQ's worker cannot even be made without; False if nobody waits."""
    outage, supervisor = Outage("queue", "this worker waits for it"), os.getppid()
    while os.getppid() == supervisor:
        try:
            context.queue.ping()
        except RedisError as error:
            outage.begin(error)
            time.sleep(AWAY_LOOK_S)
        else:
            outage.end()
            return True
    return False

"""The RQ worker that runs keepfit's leases in its own process.

Owns how one worker process starts and stops. Never forks for a job: a fork costs 10 ms and forgets the bundles held.
Invariant: SIGTERM stops it between jobs and between batches, never inside one.
"""

import os
import signal
import time
from contextlib import suppress
from typing import Any

import structlog
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested
from rq.job import Job
from rq.utils import now
from rq.worker_registration import clean_worker_registry

from keepfit import keys, queue
from keepfit.settings import Settings
from workers import process

log = structlog.get_logger(__name__)

WORKER_TTL_S = 30
IDLE_LOOK_S = 1


class LeaseWorker(SimpleWorker):
    """A SimpleWorker that stops only between jobs, and when its supervisor is gone."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.context = process.start(settings, name)
        super().__init__(
            [queue.queue_of(self.context.queue)],
            name=name,
            connection=self.context.queue,
            job_class=queue.LeaseJob,
            queue_class=queue.LeaseQueue,
            serializer=queue.SERIALIZER,
            worker_ttl=WORKER_TTL_S,
            log_job_description=False,
        )
        self._supervisor = os.getppid()

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
        """Wait for a job, looking up once a second whether to stop."""
        while not self._stop_requested and os.getppid() == self._supervisor:
            self._register_again()
            found = super().dequeue_job_and_maintain_ttl(IDLE_LOOK_S, IDLE_LOOK_S)
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

    def _register_again(self) -> None:
        """Enter RQ's register of workers once more where Redis came back without it."""
        if not self.connection.sismember(keys.RQ_WORKERS, self.key):
            self.connection.delete(self.key)
            self.register_birth()  # type: ignore[no-untyped-call]


def run(settings: Settings, name: str) -> None:
    """Work until told to stop; the body of a worker process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    worker = LeaseWorker(settings, name)
    worker.install_signal_handlers()
    worker.work(logging_level="WARNING")
    worker.context.close()

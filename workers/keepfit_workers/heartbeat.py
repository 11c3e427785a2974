"""The heartbeat of a worker: renews its lease and its lock during long calls.

Owns one thread. Never takes a lease or a lock. Invariant: a lease or lock is renewed only between its registration and
its release, so that a worker that has finished does not keep either alive.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from redis import Redis
from redis.exceptions import RedisError

from keepfit.backends import redis_scripts
from keepfit.errors import KeepfitError
from keepfit.jobs import run_queue
from keepfit.jobs.run_queue import RunQueue
from keepfit.settings import Settings
from keepfit.store.commit import InboxConsumer

log = structlog.get_logger(__name__)


class Heartbeat:
    """A thread that renews what the worker holds, so that a long call is not mistaken for a dead worker."""

    def __init__(self, settings: Settings, worker_name: str, consumer: InboxConsumer, queue: Redis) -> None:
        self._ttl_s = settings.lease_ttl_s
        self._worker_name = worker_name
        self._consumer = consumer
        self._queue = queue
        self._guard = threading.Lock()
        self._lease: tuple[RunQueue, str] | None = None
        self._lock: tuple[str, str] | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    @contextmanager
    def renewing_lease(self, queue: RunQueue, lease: str) -> Iterator[None]:
        """Renew a lease on a run queue inside the `with` block."""
        with self._guard:
            self._lease = (queue, lease)
        try:
            yield
        finally:
            with self._guard:
                self._lease = None

    @contextmanager
    def renewing_lock(self, model_hash: str, token: str) -> Iterator[None]:
        """Renew the lock of a model inside the `with` block."""
        with self._guard:
            self._lock = (model_hash, token)
        try:
            yield
        finally:
            with self._guard:
                self._lock = None

    def stop(self) -> None:
        """Stop renewing."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._ttl_s / 3):
            with self._guard:
                try:
                    if self._lease:
                        claim = run_queue.claim(*self._lease, self._ttl_s, self._worker_name, renew=True)
                        redis_scripts.run(self._queue, claim)
                    if self._lock:
                        self._consumer.renew(*self._lock)
                except (KeepfitError, RedisError) as error:
                    log.warning("heartbeat_failed", reason=str(error))

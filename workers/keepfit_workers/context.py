"""The context of one worker process: connections, keys, bundles and activity.

Owns the process-wide object that the RQ jobs use (:func:`start`, :func:`current`). Never holds state that must survive:
everything here can be lost at any instruction.
"""

import math
import time
from collections.abc import Sequence

import structlog

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.backends.backoff import Backoff
from keepfit.errors import UnavailableError
from keepfit.jobs import run_queue
from keepfit.observability.process_counts import ProcessCounts
from keepfit.recipe import uploads
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.store.commit import InboxConsumer
from keepfit_workers import memory, metrics
from keepfit_workers.activity import Activity
from keepfit_workers.bundle_cache import Bundles
from keepfit_workers.computing import MODELS_MAX, ChunkSizes
from keepfit_workers.heartbeat import lock_ttl_s
from keepfit_workers.metrics import WorkerMetrics
from keepfit_workers.past_bundles import PastBundles
from keepfit_workers.resources import LazyResources
from keepfit_workers.scorers import EncodedScorers

log = structlog.get_logger(__name__)

# Pause after the first failure in a row of the store: 0.25 to 0.5 s; after each further one twice as long, up to 10 s.
STORE_PAUSE_S, STORE_PAUSE_S_MAX = 0.5, 10.0


class WorkerContext:
    """Everything that the jobs of one worker process share."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        activity: Activity | None = None,
        counts: ProcessCounts | None = None,
    ) -> None:
        self.settings = settings
        self.name = name
        self.memory_bytes_max = memory.bytes_max(settings)
        self.activity = activity or Activity()
        self.metrics = WorkerMetrics(counts)
        self.keyring = Keyring.from_text(settings.signing_keys.get_secret_value())
        self.queue = redis_clients.queue_sync(settings)
        self.store = redis_clients.store_sync(settings)
        self.consumer = InboxConsumer(
            self.store,
            lock_ttl_s(settings.lease_ttl_s),
            settings.replay_bytes_max,
            settings.bundle_bytes_max,
            settings.idempotency_ttl_s,
        )
        upload_keys = uploads.upload_keyring(settings.upload_keys.get_secret_value())
        self.bundles = Bundles(self.consumer, self.keyring, upload_keys, settings.bundle_cache_bytes_max, self.activity)
        self.past_bundles = PastBundles(self.bundles.cache)
        self.scorers = EncodedScorers()
        self.resources = LazyResources(settings, self.store, self.activity)
        # Number of requests that one claim takes at most, for each slow model of the last claim.
        self.request_limits: dict[str, int] = {}
        self.chunk_sizes = ChunkSizes()
        # The longest time that the questions of one claim have taken, by model.
        self.longest_s: dict[str, float] = {}
        # When the last questions were answered, by the monotonic clock.
        self.asked_s = -math.inf
        self._deferred_unlocks: list[tuple[str, str]] = []
        self._store_backoff = Backoff(STORE_PAUSE_S, STORE_PAUSE_S_MAX)
        self._retry_at_s = 0.0
        self.stopping = False
        # Rows that this process has committed.
        self.rows_learned = 0

    def close(self) -> None:
        """Close the connections."""
        self.resources.close()
        self.queue.close()
        self.store.close()

    def set_request_limits(self, limits: Sequence[bytes]) -> None:
        """Store which models of the last claim are slow; `limits` alternates hashes and numbers of requests.

        The number of a very slow model is stored as 0.
        """
        self.request_limits = {
            model.decode(): 0 if limit == run_queue.VERY_SLOW else int(limit)
            for model, limit in zip(limits[::2], limits[1::2], strict=True)
        }

    def note_duration(self, model_hash: str, seconds: float) -> None:
        """Record how long the questions of a claim about a model took."""
        if len(self.longest_s) >= MODELS_MAX:
            self.longest_s.clear()
        self.longest_s[model_hash] = max(seconds, self.longest_s.get(model_hash, 0.0))

    def defer_unlock(self, model_hash: str, lease: str) -> None:
        """Remember that `lease` may still hold the lock of a model, because the store was unavailable during its turn.

        The store may go on to refuse every write while it answers reads, as it does when it is out of memory. So the
        model is tried again after a pause, which grows with each failure in a row.
        """
        self._deferred_unlocks.append((model_hash, lease))
        self._retry_at_s = time.monotonic() + self._store_backoff.next_s()

    def note_out_of_memory(self, model_hash: str) -> None:
        """Log and count that the memory of this process did not suffice for a call of a model."""
        self.metrics.add(metrics.OUT_OF_MEMORY)
        log.warning("out_of_memory", hash=model_hash)

    def note_turn(self) -> None:
        """Record a turn in which the store was available: the next failure is the first in a row."""
        self._store_backoff.reset()

    @property
    def is_backing_off(self) -> bool:
        """Whether deferred unlocks wait for the end of a pause."""
        return bool(self._deferred_unlocks) and time.monotonic() < self._retry_at_s

    def run_deferred_unlocks(self) -> None:
        """Release the locks that could not be released before, and enqueue leases for the work behind them.

        Does nothing before the pause of :meth:`defer_unlock` is over.

        Raises
        ------
        UnavailableError
            If the store (or the queue's Redis) is still unavailable; the remaining unlocks stay deferred.
        """
        while self._deferred_unlocks and not self.is_backing_off:
            model_hash, lease = self._deferred_unlocks[-1]
            self.consumer.unlock(model_hash, lease, force=True)
            run_queue.enqueue_lease(self.queue, run_queue.LEARN, self.settings.lease_ttl_s, [model_hash])
            self._deferred_unlocks.pop()

    def has_waiting_work(self) -> bool:
        """Return whether questions wait for an answer, or a lease for a worker; also if the queue's Redis is away.

        Then the lease cannot go on, and the turn at the model ends with its lock released: another server of the queue
        may have its next rows.
        """
        questions = redis_keys.queued_models(run_queue.PREDICT.name)
        try:
            return any(redis_scripts.run(self.queue, ("LLEN", redis_keys.RQ_QUEUE), ("LLEN", questions)))
        except UnavailableError:
            return True


_current: WorkerContext | None = None


def start(
    settings: Settings, name: str, activity: Activity | None = None, counts: ProcessCounts | None = None
) -> WorkerContext:
    """Make this process a worker process; `name` is the worker's name in RQ, `activity` what its supervisor reads.

    `counts` is where it counts what it does.
    """
    global _current  # noqa: PLW0603 - RQ calls jobs by name, so their context can only belong to the process
    _current = WorkerContext(settings, name, activity, counts)
    return _current


def current() -> WorkerContext:
    """Return the context of this worker process."""
    if _current is None:
        raise RuntimeError("keepfit's jobs run in keepfit's workers: start them with `keepfit worker`.")
    return _current

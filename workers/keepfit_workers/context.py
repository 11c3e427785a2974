"""The context of one worker process: connections, keys, bundles and heartbeat.

Owns the process-wide object that the RQ jobs use (:func:`start`, :func:`current`). Never holds state that must survive:
everything here can be lost at any instruction.
"""

from collections.abc import Sequence

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.jobs import run_queue
from keepfit.recipe import uploads
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.store.commit import InboxConsumer
from keepfit_workers.bundle_cache import Bundles
from keepfit_workers.heartbeat import Heartbeat
from keepfit_workers.resources import LazyResources


class WorkerContext:
    """Everything that the jobs of one worker process share."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.keyring = Keyring.from_text(settings.signing_keys.get_secret_value())
        self.queue = redis_clients.queue_sync(settings)
        self.store = redis_clients.store_sync(settings)
        self.consumer = InboxConsumer(self.store, settings.lease_ttl_s, settings.replay_bytes_max)
        upload_keys = uploads.upload_keyring(settings.upload_keys.get_secret_value())
        self.bundles = Bundles(self.consumer, self.keyring, upload_keys, settings.bundle_cache_bytes_max)
        self.heartbeat = Heartbeat(settings, name, self.consumer, self.queue)
        self.resources = LazyResources(settings)
        # Number of requests that one claim takes at most, for each slow model of the last claim.
        self.request_limits: dict[str, int] = {}
        self._deferred_unlocks: list[tuple[str, str]] = []
        self.stopping = False

    def close(self) -> None:
        """Stop the heartbeat and close the connections."""
        self.heartbeat.stop()
        self.resources.close()
        self.queue.close()
        self.store.close()

    def set_request_limits(self, limits: Sequence[bytes]) -> None:
        """Store which models of the last claim are slow; `limits` alternates hashes and numbers of requests."""
        self.request_limits = {limits[i].decode(): int(limits[i + 1]) for i in range(0, len(limits), 2)}

    def defer_unlock(self, model_hash: str, lease: str) -> None:
        """Remember that `lease` still holds the lock of a model, because the store was unavailable at its release."""
        self._deferred_unlocks.append((model_hash, lease))

    def run_deferred_unlocks(self) -> None:
        """Release the locks that could not be released before, and enqueue leases for the work behind them.

        Raises
        ------
        UnavailableError
            If the store (or the queue's Redis) is still unavailable; the remaining unlocks stay deferred.
        """
        while self._deferred_unlocks:
            model_hash, lease = self._deferred_unlocks[-1]
            self.consumer.unlock(model_hash, lease, force=True)
            run_queue.enqueue_lease(self.queue, run_queue.LEARN, self.settings.lease_ttl_s, [model_hash])
            self._deferred_unlocks.pop()

    def has_waiting_jobs(self) -> bool:
        """Return whether a lease waits for a worker."""
        (jobs,) = redis_scripts.run(self.queue, ("LLEN", redis_keys.RQ_QUEUE))
        return bool(jobs)


_current: WorkerContext | None = None


def start(settings: Settings, name: str) -> WorkerContext:
    """Make this process a worker process; `name` is the worker's name in RQ."""
    global _current  # noqa: PLW0603 - RQ calls jobs by name, so their context can only belong to the process
    _current = WorkerContext(settings, name)
    return _current


def current() -> WorkerContext:
    """Return the context of this worker process."""
    if _current is None:
        raise RuntimeError("keepfit's jobs run in keepfit's workers: start them with `keepfit worker`.")
    return _current

"""What one worker process has: connections, keys, the bundles it holds unpickled, and its pulse.

Owns the process-wide context that the RQ jobs run in (:func:`start`, :func:`current`). Never holds state that matters:
everything here can be lost at any instruction. Invariant: a cached bundle is used only under the digest that the store
names at that moment.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from redis import Redis
from redis.exceptions import RedisError

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.errors import CorruptBundleError, EnvelopeError, KeepfitError, StaleModelError
from keepfit.jobs import run_queue
from keepfit.jobs.run_queue import RunQueue
from keepfit.model import object_bundle, serialization
from keepfit.model.bundle import Bundle
from keepfit.recipe import uploads
from keepfit.recipe.recipe import from_text
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from keepfit.settings import Settings
from keepfit.store.commit import Claimed, InboxConsumer, Loaded
from keepfit_workers.resources import LazyResources

log = structlog.get_logger(__name__)

# Models of which is remembered what the log was told of them.
TOLD_MAX = 10_000


@dataclass(slots=True)
class BundleCache:
    """Unpickled bundles by hash, least recently used out first, bounded by the bytes of their pickles."""

    bytes_max: int
    _held: OrderedDict[str, tuple[str, Bundle, int]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def digest(self, model_hash: str) -> str:
        """Digest of the bundle held for a model, '' for none."""
        held = self._held.get(model_hash)
        return held[0] if held else ""

    def get(self, model_hash: str, digest: str) -> Bundle | None:
        """Return the bundle of exactly this digest, if it is held."""
        held = self._held.get(model_hash)
        if held is None or held[0] != digest:
            return None
        self._held.move_to_end(model_hash)
        return held[1]

    def put(self, model_hash: str, digest: str, bundle: Bundle, size_bytes: int) -> None:
        """Hold a bundle, and let go of others where there is no room."""
        self.drop(model_hash)
        self._held[model_hash] = (digest, bundle, size_bytes)
        self._bytes += size_bytes
        while self._bytes > self.bytes_max and self._held:
            self.drop(next(iter(self._held)))

    def clear(self) -> None:
        """Let go of all bundles."""
        self._held.clear()
        self._bytes = 0

    def drop(self, model_hash: str) -> None:
        """Let go of a model's bundle."""
        held = self._held.pop(model_hash, None)
        if held:
            self._bytes -= held[2]


@dataclass(slots=True)
class Unreadable:
    """Bundles that this process cannot load, by hash: of which generation and digest, and why."""

    _noted: dict[str, tuple[int, str, EnvelopeError]] = field(default_factory=dict)

    def note(self, model: Claimed | Loaded, reason: EnvelopeError) -> None:
        """Note that the bundle of a model cannot be loaded, and log it."""
        log.warning("bundle_unreadable", hash=model.hash, version=model.version, reason=str(reason))
        if len(self._noted) >= TOLD_MAX:
            self._noted.clear()
        self._noted[model.hash] = (model.generation, model.digest, type(reason)(str(reason)))

    def find(self, model_hash: str) -> tuple[int, str] | None:
        """Generation and digest of a model's bundle that could not be loaded."""
        known = self._noted.get(model_hash)
        return known and known[:2]

    def check(self, model: Claimed | Loaded) -> None:
        """Raise why, if it is known that this bundle cannot be loaded."""
        if self.find(model.hash) == (model.generation, model.digest):
            raise self._noted[model.hash][2].with_traceback(None)


class Heartbeat:
    """A thread that renews the lease and lock in hand, so that a long call is not taken for a death."""

    def __init__(self, settings: Settings, name: str, ledger: InboxConsumer, queue: Redis) -> None:
        self._ttl_s = settings.lease_ttl_s
        self._name = name
        self._ledger = ledger
        self._queue = queue
        self._guard = threading.Lock()
        self._lease: tuple[RunQueue, str] | None = None
        self._model: tuple[str, str] | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def lease(self, lease: tuple[RunQueue, str] | None) -> None:
        """Name the lease to renew from now on."""
        with self._guard:
            self._lease = lease

    def model(self, model: tuple[str, str] | None) -> None:
        """Name the lock to renew from now on, as (hash, token)."""
        with self._guard:
            self._model = model

    def stop(self) -> None:
        """Renew nothing any more."""
        self._stopped.set()

    def _beat(self) -> None:
        while not self._stopped.wait(self._ttl_s / 3):
            with self._guard:
                try:
                    if self._lease:
                        redis_scripts.run(
                            self._queue, run_queue.claim(*self._lease, self._ttl_s, self._name, renew=True)
                        )
                    if self._model:
                        self._ledger.renew(*self._model)
                except (KeepfitError, RedisError) as error:
                    log.warning("pulse_missed", reason=str(error))


class WorkerContext:
    """Context of the jobs of one worker process."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.keyring = Keyring.from_text(settings.signing_keys.get_secret_value())
        self.uploads = uploads.keyring_of(settings.upload_keys.get_secret_value())
        self.queue = redis_clients.queue_sync(settings)
        self.store = redis_clients.store_sync(settings)
        self.ledger = InboxConsumer(self.store, self.keyring, settings.lease_ttl_s, settings.replay_bytes_max)
        self.cache = BundleCache(settings.bundle_cache_bytes_max)
        self.pulse = Heartbeat(settings, name, self.ledger, self.queue)
        self.remote = LazyResources(settings)
        self.unreadable = Unreadable()
        self._told: set[str] = set()
        # Questions that a claim took of slow models at most, as the last claim said.
        self.turns: dict[str, int] = {}
        self._owed: list[tuple[str, str]] = []
        self.stopping = False

    def close(self) -> None:
        """Stop the pulse and close the connections."""
        self.pulse.stop()
        self.remote.close()
        self.queue.close()
        self.store.close()

    def note_turns(self, bounds: Sequence[bytes]) -> None:
        """Take in which models of the last claim are slow: hash and number of questions, in turn."""
        self.turns = {bounds[i].decode(): int(bounds[i + 1]) for i in range(0, len(bounds), 2)}

    def owe(self, model_hash: str, lease: str) -> None:
        """Note that `lease` still holds a model's lock, because the store was away when it should have let go."""
        self._owed.append((model_hash, lease))

    def settle(self) -> None:
        """Let go of the locks that are owed, and send for a lease on what waits behind them.

        Raises
        ------
        UnavailableError
            If the store (or the queue) is still away; what is owed stays owed.
        """
        while self._owed:
            model_hash, lease = self._owed[-1]
            self.ledger.unlock(model_hash, lease, force=True)
            run_queue.ring(self.queue, run_queue.LEARN, self.settings.lease_ttl_s, [model_hash])
            self._owed.pop()

    def wanted(self) -> bool:
        """Tell whether a lease waits for a worker."""
        (jobs,) = redis_scripts.run(self.queue, ("LLEN", redis_keys.RQ_QUEUE))
        return bool(jobs)

    def digest(self, model_hash: str) -> str:
        """Digest of the model's bundle that need not be read again: it is held, or cannot be loaded; '' for none."""
        unreadable = self.unreadable.find(model_hash)
        return self.cache.digest(model_hash) or (unreadable[1] if unreadable else "")

    def cannot_read(self, model_hash: str) -> bool:
        """Tell whether the model's bundle still is one that could not be loaded here."""
        unreadable = self.unreadable.find(model_hash)
        if unreadable is None:
            return False
        (live,) = redis_scripts.run(self.store, ("HMGET", redis_keys.state(model_hash), "generation", "digest"))
        return bool(live == [str(unreadable[0]).encode(), unreadable[1].encode()])

    def bundle(self, model: Claimed | Loaded) -> Bundle:
        """Return the model's bundle: the one held, or the one just read, or a new one of its recipe.

        Raises
        ------
        CorruptBundleError
            If it is not what was committed; :mod:`keepfit_workers.restoring` puts it right.
        EnvelopeError
            If this process cannot load it; what could not be loaded once is not tried again.
        """
        held = self.cache.get(model.hash, model.digest)
        if held is not None:
            return held
        self.unreadable.check(model)
        try:
            return self._read(model)
        except CorruptBundleError:
            raise
        except EnvelopeError as error:
            self.unreadable.note(model, error)
            raise

    def _read(self, model: Claimed | Loaded) -> Bundle:
        recipe = from_text(model.recipe_text)
        if not model.digest:
            return object_bundle.begin(recipe, self.uploads)
        data = model.data
        if not data:
            # The cache let go of it after its digest was sent; read it again.
            again = self.ledger.load({model.hash: ""}).get(model.hash)
            if again is None or again.digest != model.digest:
                raise StaleModelError(f"The model {model.hash} changed while it was read.")
            data = again.data
        try:
            header, bundle = serialization.unseal(data, self.keyring, recipe, model.hash)
        except EnvelopeError as error:
            if envelope.digest_of(data) == model.digest:
                raise
            became = "damaged" if data else "gone"
            raise CorruptBundleError(f"The live bundle of the model {model.hash} is {became}.") from error
        self._note_differences(header)
        self.cache.put(model.hash, model.digest, bundle, len(data))
        return bundle

    def _note_differences(self, header: Header) -> None:
        """Log, once for each model, that its bundle was written by another patch release."""
        others = envelope.differences(header)
        if others and header.hash not in self._told:
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told.add(header.hash)
            log.info("bundle_of_other_release", hash=header.hash, version=header.version, versions=others)


_current: WorkerContext | None = None


def start(settings: Settings, name: str) -> WorkerContext:
    """Make this process a worker process; `name` is the worker's in RQ."""
    global _current  # noqa: PLW0603 - RQ calls jobs by name; what they work with can only be the process's
    _current = WorkerContext(settings, name)
    return _current


def current() -> WorkerContext:
    """Return the context of this worker process."""
    if _current is None:
        raise RuntimeError("keepfit's jobs run in keepfit's workers: start them with `keepfit worker`.")
    return _current

"""Bundles of one worker process: unpickled, cached, and checked against the digest that the store names.

Owns the cache of unpickled bundles and the record of bundles that this process cannot load. Never writes to the store.
Invariant: a cached bundle is used only under the digest that the store names at that moment. Bundles come from Redis
through :class:`~keepfit.store.commit.InboxConsumer`; learning and predicting use them.
"""

import math
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import structlog

from keepfit.errors import CorruptBundleError, EnvelopeError, StaleModelError, UnloadableError
from keepfit.model import object_bundle, serialization
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import from_text
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from keepfit.store.commit import Claimed, InboxConsumer, Loaded
from keepfit_workers.activity import CALL, LOAD, Activity

log = structlog.get_logger(__name__)

# Models that the process remembers having logged a message about.
LOGGED_MODELS_MAX = 10_000


@dataclass(slots=True)
class BundleCache:
    """Unpickled bundles by hash. Evicts the least recently used; bounded by the bytes of their pickles."""

    bytes_max: int
    _bundles: OrderedDict[str, tuple[str, Bundle, int]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    @property
    def count(self) -> int:
        """Number of cached bundles."""
        return len(self._bundles)

    def digest(self, model_hash: str) -> str:
        """Return the digest of the cached bundle of a model, '' if none is cached."""
        cached = self._bundles.get(model_hash)
        return cached[0] if cached else ""

    def get(self, model_hash: str, digest: str) -> Bundle | None:
        """Return the cached bundle with exactly this digest, or None."""
        cached = self._bundles.get(model_hash)
        if cached is None or cached[0] != digest:
            return None
        self._bundles.move_to_end(model_hash)
        return cached[1]

    def put(self, model_hash: str, digest: str, bundle: Bundle, size_bytes: int) -> None:
        """Cache a bundle, and evict others while the cache exceeds its bound."""
        self.drop(model_hash)
        self._bundles[model_hash] = (digest, bundle, size_bytes)
        self._bytes += size_bytes
        while self._bytes > self.bytes_max and self._bundles:
            self.drop(next(iter(self._bundles)))

    def clear(self, but: str = "") -> bool:
        """Drop all bundles; return whether there were any, besides that of the model `but`."""
        had_others = bool(self._bundles.keys() - {but})
        self._bundles.clear()
        self._bytes = 0
        return had_others

    def drop(self, model_hash: str) -> None:
        """Drop the bundle of a model."""
        cached = self._bundles.pop(model_hash, None)
        if cached:
            self._bytes -= cached[2]


@dataclass(slots=True)
class UnreadableBundles:
    """Bundles that this process cannot load, by hash: generation, digest, the reason, and until when it holds."""

    _reasons: dict[str, tuple[int, str, EnvelopeError, float]] = field(default_factory=dict)

    def add(self, model: Claimed | Loaded, reason: EnvelopeError, seconds: float = math.inf) -> None:
        """Record that the bundle of a model cannot be loaded for some seconds, and log it."""
        log.warning("bundle_unreadable", hash=model.hash, version=model.version, reason=str(reason))
        if len(self._reasons) >= LOGGED_MODELS_MAX:
            self._reasons.clear()
        until_s = time.monotonic() + seconds
        self._reasons[model.hash] = (model.generation, model.digest, type(reason)(str(reason)), until_s)

    def find(self, model_hash: str) -> tuple[int, str] | None:
        """Return generation and digest of the bundle of a model that could not be loaded."""
        known = self._reasons.get(model_hash)
        return known[:2] if known and time.monotonic() < known[3] else None

    def check(self, model: Claimed | Loaded) -> None:
        """Raise the recorded reason if this bundle is known to be unreadable."""
        if self.find(model.hash) == (model.generation, model.digest):
            raise self._reasons[model.hash][2].with_traceback(None)


class Bundles:
    """The bundles of one worker process, read from the store as needed."""

    def __init__(
        self,
        consumer: InboxConsumer,
        keyring: Keyring,
        uploads: Keyring | None,
        cache_bytes_max: int,
        activity: Activity,
    ) -> None:
        self.cache = BundleCache(cache_bytes_max)
        self.unreadable = UnreadableBundles()
        self._consumer = consumer
        self._keyring = keyring
        self._uploads = uploads
        self._activity = activity
        self._logged: set[str] = set()

    def digest(self, model_hash: str) -> str:
        """Return the digest of the bundle that need not be read again: it is cached, or unreadable; '' for none."""
        unreadable = self.unreadable.find(model_hash)
        return self.cache.digest(model_hash) or (unreadable[1] if unreadable else "")

    def is_unreadable(self, model_hash: str) -> bool:
        """Return whether the live bundle of a model is still one that this process could not load."""
        unreadable = self.unreadable.find(model_hash)
        return unreadable is not None and self._consumer.is_live(model_hash, *unreadable)

    def get(self, model: Claimed | Loaded) -> Bundle:
        """Return the bundle of a model: the cached one, or the one just read, or a new one made from its recipe.

        Raises
        ------
        CorruptBundleError
            If it is not what was committed; :mod:`keepfit_workers.restoring` repairs it.
        UnloadableError
            If workers died while they loaded it.
        EnvelopeError
            If this process cannot load it. A bundle that failed to load once is not tried again.
        """
        cached = self.cache.get(model.hash, model.digest)
        if cached is None:
            cached = self._load(model)
        # What follows is a call of this bundle.
        self._activity.begin(CALL, model.hash)
        return cached

    def reload(self, model: Claimed | Loaded) -> Bundle:
        """Return the bundle as it is stored; the cached one was changed."""
        self.cache.drop(model.hash)
        return self.get(model)

    def open(self, model: Claimed, data: bytes) -> Bundle:
        """Return the bundle of a model that the replay process has sealed; the cached one is dropped."""
        self.cache.drop(model.hash)
        recipe = from_text(model.recipe_text)
        self._activity.begin(CALL, model.hash)
        return serialization.unseal(data, self._keyring, recipe, model.hash, self._uploads)[1]

    def _load(self, model: Claimed | Loaded) -> Bundle:
        self.unreadable.check(model)
        seconds = self._consumer.unloadable_s(model)
        if seconds:
            error = UnloadableError(
                f"Several workers died, or one hung, while they loaded the model {model.hash}; it is tried again in "
                f"{seconds} s, or once it is restored. Pending requests are safe."
            )
            self.unreadable.add(model, error, seconds)
            raise error
        self._activity.begin(LOAD, model.hash, model.generation, model.digest)
        try:
            return self._read(model)
        except CorruptBundleError:
            raise
        except EnvelopeError as error:
            self.unreadable.add(model, error)
            raise

    def _read(self, model: Claimed | Loaded) -> Bundle:
        recipe = from_text(model.recipe_text)
        if not model.digest:
            return object_bundle.new_bundle(recipe, self._uploads)
        data = model.data
        if not data:
            # The cache evicted the bundle after its digest was sent; read it again.
            latest = self._consumer.load({model.hash: ""}).get(model.hash)
            if latest is None or latest.digest != model.digest:
                raise StaleModelError(f"The model {model.hash} changed while it was read.")
            data = latest.data
        try:
            header, bundle = serialization.unseal(data, self._keyring, recipe, model.hash, self._uploads)
        except EnvelopeError as error:
            if envelope.digest_of(data) == model.digest:
                self._keyring.check_signer(data, envelope.BUNDLE)
                raise
            state = "damaged" if data else "missing"
            raise CorruptBundleError(f"The live bundle of the model {model.hash} is {state}.") from error
        _check_header(header, model)
        self._log_differences(header)
        self.cache.put(model.hash, model.digest, bundle, len(data))
        return bundle

    def _log_differences(self, header: Header) -> None:
        """Log, once per model, that another patch release wrote its bundle."""
        differences = envelope.differences(header)
        if differences and header.hash not in self._logged:
            if len(self._logged) >= LOGGED_MODELS_MAX:
                self._logged.clear()
            self._logged.add(header.hash)
            log.info("bundle_of_other_release", hash=header.hash, version=header.version, versions=differences)


def _check_header(header: Header, model: Claimed | Loaded) -> None:
    """Check that a signed bundle of the model is the one of its present state, and not an earlier one put back.

    Its generation may be an earlier one: a restore installs the bundle of a snapshot as it is, in a new generation.

    Raises
    ------
    EnvelopeError
        If the header names a later generation, or another version, number of rows or last sequence than the state.
    """
    pairs = {
        "generation": (header.generation, min(header.generation, model.generation)),
        "version": (header.version, model.version),
        "rows_seen": (header.rows_seen, model.rows_seen),
    }
    if isinstance(model, Claimed):
        pairs["sequence"] = (header.sequence, model.learned)
    for name, (signed, stored) in pairs.items():
        if signed != stored:
            raise EnvelopeError(
                f"The live bundle of the model {model.hash} is signed for the {name} {signed}; its state has {stored}."
            )

"""The prediction cache: answers kept in memory while the model has the version that computed them.

Owns the answers, their memory, and the newest version that this gateway has observed of each model, by which
:mod:`keepfit_gateway.prediction.scorers` decides too. Never sends, reads or waits:
:mod:`keepfit_gateway.learning.commit_feed` reports commits, handlers store answers. Invariant: a found answer was
computed by the newest observed version of its model, and the subscription that reports newer versions was alive less
than the staleness bound ago; only :meth:`Cache.find_stale` returns others. `docs/concepts/prediction-cache.md` has the
reasons.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

# A raw request: its path with the query, and its body.
Raw = tuple[str, bytes]

# A larger answer costs its computation and transfer more than its lookup, and would evict thousands of small ones.
ANSWER_BYTES_MAX = 256 * 1024
# Spellings of the same rows (other spaces, another order of keys, by metadata) that are recognised by their bytes.
ALIASES_MAX = 4
# Stale answers that one call frees: some ten microseconds, so that a commit of a popular model does not block the loop.
SWEEP_COUNT = 64

# Slots of one byte in which the last key that was seen there leaves a mark.
SEEN_SLOTS = 1 << 16

# Memory of Python objects and tables in addition to the bytes and strings themselves. Measured, and held by a test.
ANSWER_OVERHEAD_BYTES = 475
ALIAS_OVERHEAD_BYTES = 212
MODEL_OVERHEAD_BYTES = 450


@dataclass(slots=True, eq=False)
class Subscription:
    """One uninterrupted life of the subscription to commits.

    At `fresh_until_s` (`time.monotonic()`) what was cached during it becomes stale, or has become stale.
    """

    live: bool = True
    fresh_until_s: float = -math.inf


class VersionHolder(Protocol):
    """What keeps a model watched beside its requests and answers: its scorer."""

    def replaced(self, at_s: float) -> None:
        """Note that a newer version of the model was observed, and that it could be expected since `at_s`."""


@dataclass(slots=True, eq=False)
class VersionKeys:
    """Keys of the answers of one version of a model. No longer live as soon as another version is observed."""

    live: bool = True
    keys: set[bytes] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class WatchedModel:
    """State of one model, from before its first worker request until its last answer and its scorer leave the memory.

    `newest` is the newest observed (generation, version); the deletion is the last version of a generation. It is valid
    only while `subscription`, the one that was live when watching began, is live. `counted` says whether the cache
    counts its memory; with a `holder`, that counts it.
    """

    model_hash: str
    subscription: Subscription
    cache: "Cache"
    requests: int = 0
    newest: tuple[int, float] | None = None
    current: VersionKeys = field(default_factory=VersionKeys)
    holder: VersionHolder | None = None
    counted: bool = False

    def is_fresh(self, now_s: float) -> bool:
        """Return whether every commit up to a moment within the staleness bound was observed since watching began."""
        return now_s < self.subscription.fresh_until_s

    def __enter__(self) -> Self:
        """Begin a worker request."""
        self.requests += 1
        return self

    def __exit__(self, *_: object) -> None:
        """End a worker request. Stop watching the model if it has no other request, no answer and no scorer."""
        self.requests -= 1
        self.cache.release(self)


@dataclass(slots=True, eq=False)
class CachedAnswer:
    """An answer about some rows: the body of a 200 response, its ETag, and the `time.monotonic()` of its arrival."""

    watched: WatchedModel
    version_keys: VersionKeys
    key: bytes
    generation: int
    body: bytes
    etag: str
    made_at_s: float
    size: int
    rows: int = 1
    aliases: tuple[Raw, ...] = ()


class Cache:
    """Answers of all models. Evicts the least recently used first; with `bytes_max` 0 it keeps none.

    `hits`, `misses` (of answers that were looked for), `dropped` (answers invalidated by a newer version or by an
    interruption of the subscription) and `bytes` are for metrics.
    """

    def __init__(self, bytes_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_max = bytes_max
        self._clock = clock
        self._models: dict[str, WatchedModel] = {}
        self._answers: OrderedDict[bytes, CachedAnswer] = OrderedDict()
        self._by_alias: dict[Raw, CachedAnswer] = {}
        # Invalid, and freed step by step: keys of overtaken versions, and models of interrupted subscriptions.
        self._stale: list[VersionKeys] = []
        self._orphaned: list[dict[str, WatchedModel]] = []
        self._subscription = Subscription(live=False)
        self.hits = self.misses = self.dropped = self.bytes = 0
        self._seen = bytearray(SEEN_SLOTS)
        # Models of the hits since :meth:`take_used`.
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def fresh(self) -> bool:
        """Whether every commit up to a moment within the staleness bound has been observed."""
        return self._clock() < self._subscription.fresh_until_s

    def valid_until(self, until_s: float) -> None:
        """Record that the subscription is alive, and answers are valid until then (`time.monotonic()`)."""
        if not self._subscription.live:
            self._subscription = Subscription()
        self._subscription.fresh_until_s = until_s

    def invalidate_all(self) -> None:
        """Record an interruption of the subscription: invalidate all answers, also those that are being computed.

        They stay for :meth:`find_stale` until there is a new subscription or the space is needed.
        """
        ended = self._subscription
        ended.live = False
        ended.fresh_until_s = min(ended.fresh_until_s, self._clock())
        if self._models:
            self._orphaned.append(self._models)
            self._models = {}
        self._sweep()

    def observe_version(self, model_hash: str, generation: int, version: float) -> None:
        """Record that a model has this version. Invalidate answers of earlier ones."""
        watched = self._models.get(model_hash)
        if watched is not None:
            self._observe(watched, (generation, version))
            self.release(watched)
        self._sweep()

    def watch(self, model_hash: str) -> WatchedModel:
        """Return a context manager that observes versions of a model during a worker request.

        Enter it before the request is sent; otherwise a commit may be missed.
        """
        watched = self._models.get(model_hash)
        if watched is None:
            watched = WatchedModel(model_hash, self._subscription, self)
            if self._subscription.live:
                self._models[model_hash] = watched
                self._count(watched)
        return watched

    def watched(self, model_hash: str) -> WatchedModel | None:
        """Return the state of a model that is watched now."""
        return self._models.get(model_hash)

    def hold(self, watched: WatchedModel, holder: VersionHolder) -> None:
        """Keep a model watched until :meth:`end_hold`, or until the subscription ends. Its memory is the holder's."""
        self._uncount(watched)
        watched.holder = holder

    def end_hold(self, watched: WatchedModel) -> None:
        """End what :meth:`hold` began."""
        watched.holder = None
        if self._models.get(watched.model_hash) is watched:
            self._count(watched)
            self.release(watched)
            self._shrink()

    def newest(self, model_hash: str) -> tuple[int, float] | None:
        """Return the newest (generation, version) of a model; None if it is not known for certain."""
        watched = self._models.get(model_hash)
        return watched.newest if watched is not None and self.fresh else None

    def find(
        self, key: bytes, generation: int, age_s_max: float = math.inf, bytes_max: float = math.inf
    ) -> CachedAnswer | None:
        """Return the answer for `key` and `generation` if it arrived at most `age_s_max` ago and is not longer.

        Counts a hit. A miss is counted by :meth:`count_miss` once the answer is computed: until then it may be looked
        for several times.
        """
        answer = self._answers.get(key)
        if answer is None or answer.generation != generation:
            return None
        return self._used_if(answer, age_s_max, bytes_max)

    def find_raw(self, raw: Raw, age_s_max: float = math.inf, bytes_max: float = math.inf) -> CachedAnswer | None:
        """Return the answer for the exact bytes of a request, as :meth:`find` does."""
        answer = self._by_alias.get(raw)
        return None if answer is None else self._used_if(answer, age_s_max, bytes_max)

    def count_miss(self) -> None:
        """Note that an answer that was looked for is computed instead."""
        self.misses += 1

    def find_stale(self, key: bytes, generation: int) -> tuple[CachedAnswer, float] | None:
        """Return the answer for `key` and `generation` even if it is stale, and the `time.monotonic()` of that."""
        answer = self._answers.get(key)
        if answer is None or answer.generation != generation or not answer.version_keys.live:
            return None
        return answer, answer.watched.subscription.fresh_until_s

    def note_used(self, model_hash: str) -> None:
        """Note that this gateway has answered for a model without asking a worker."""
        self._used.add(model_hash)

    def take_used(self) -> set[str]:
        """Return the models for which this gateway has answered without asking a worker since the last call."""
        used, self._used = self._used, set()
        return used

    def age_s(self, answer: CachedAnswer) -> float:
        """Return the seconds since an answer arrived."""
        return self._clock() - answer.made_at_s

    def seen(self, key: bytes) -> bool:
        """Return whether an answer for `key` was looked for lately, with few mistakes, and note that it was now."""
        # No mark is 0, which an unused slot has.
        slot, mark = key[0] << 8 | key[1], key[2] | 1
        if self._seen[slot] == mark:
            return True
        self._seen[slot] = mark
        return False

    def store(
        self, watched: WatchedModel, version: tuple[int, int], key: bytes, body: bytes, etag: str, rows: int = 1
    ) -> CachedAnswer | None:
        """Store an answer about `rows` rows. Return it, or None if it is outdated or too large."""
        size = ANSWER_OVERHEAD_BYTES + len(key) + len(body) + len(etag)
        if (
            not self.is_newest(watched, version)
            or len(body) > ANSWER_BYTES_MAX
            or size + MODEL_OVERHEAD_BYTES > self._bytes_max
        ):
            return None
        before = self._answers.get(key)
        if before is not None:
            self._remove(before)
        answer = CachedAnswer(watched, watched.current, key, version[0], body, etag, self._clock(), size, rows)
        self._answers[key] = answer
        answer.version_keys.keys.add(key)
        self.bytes += size
        self._shrink()
        return answer

    def is_newest(self, watched: WatchedModel, version: tuple[int, int]) -> bool:
        """Observe the version in the reply to a worker request; return whether no newer one was observed.

        False if the subscription was interrupted since the request began.
        """
        if not watched.subscription.live:
            return False
        self._observe(watched, version)
        return version == watched.newest

    def alias(self, answer: CachedAnswer, raw: Raw) -> None:
        """Find `answer` also by the exact bytes of a request from now on."""
        if self._answers.get(answer.key) is not answer or len(answer.aliases) >= ALIASES_MAX or raw in self._by_alias:
            return
        size = ALIAS_OVERHEAD_BYTES + len(raw[0]) + len(raw[1])
        answer.aliases = (*answer.aliases, raw)
        answer.size += size
        self.bytes += size
        self._by_alias[raw] = answer
        self._shrink()

    def release(self, watched: WatchedModel) -> None:
        """Stop watching a model that has no worker request, no answer and no scorer."""
        idle = not watched.requests and not watched.current.keys and watched.holder is None
        if idle and self._models.get(watched.model_hash) is watched:
            del self._models[watched.model_hash]
            self._uncount(watched)

    def _count(self, watched: WatchedModel) -> None:
        watched.counted = True
        self.bytes += MODEL_OVERHEAD_BYTES

    def _uncount(self, watched: WatchedModel) -> None:
        if watched.counted:
            watched.counted = False
            self.bytes -= MODEL_OVERHEAD_BYTES

    def _used_if(self, answer: CachedAnswer, age_s_max: float, bytes_max: float) -> CachedAnswer | None:
        """Return an answer and count a hit if it is valid, young and short enough."""
        now_s = self._clock()
        if (
            not answer.version_keys.live
            or not answer.watched.is_fresh(now_s)
            or now_s - answer.made_at_s > age_s_max
            or len(answer.body) > bytes_max
        ):
            return None
        self.hits += 1
        self._used.add(answer.watched.model_hash)
        self._answers.move_to_end(answer.key)
        return answer

    def _observe(self, watched: WatchedModel, version: tuple[int, float]) -> None:
        # Messages and answers overtake each other: a version older than an observed one carries no information.
        if watched.newest is None or watched.newest < version:
            if watched.newest is not None and watched.holder is not None:
                watched.holder.replaced(min(self._clock(), watched.subscription.fresh_until_s))
            watched.newest = version
            self._invalidate(watched)

    def _invalidate(self, watched: WatchedModel) -> None:
        """Mark all answers of a model as stale. They are freed step by step."""
        if watched.current.keys:
            watched.current.live = False
            self.dropped += len(watched.current.keys)
            self._stale.append(watched.current)
            watched.current = VersionKeys()

    def _shrink(self) -> None:
        self._sweep()
        while self.bytes > self._bytes_max and self._answers:
            if self._stale or self._orphaned:
                self._sweep(needed=True)
            else:
                self._remove(next(iter(self._answers.values())))

    def _sweep(self, *, needed: bool = False) -> None:
        """Free some stale answers; those of an interrupted subscription only once there is a new one, or if `needed`.

        What is `needed` is their space.
        """
        orphans = needed or self._subscription.live
        for _ in range(SWEEP_COUNT if self._stale or self._orphaned else 0):
            while self._stale and not self._stale[-1].keys:
                self._stale.pop()
            while self._orphaned and not self._orphaned[-1]:
                self._orphaned.pop()
            if self._stale:
                self._remove(self._answers[self._stale[-1].keys.pop()])
            elif self._orphaned and orphans:
                watched = self._orphaned[-1].popitem()[1]
                self._invalidate(watched)
                self._uncount(watched)
            else:
                return

    def _remove(self, answer: CachedAnswer) -> None:
        del self._answers[answer.key]
        for raw in answer.aliases:
            del self._by_alias[raw]
        answer.version_keys.keys.discard(answer.key)
        self.bytes -= answer.size
        self.release(answer.watched)

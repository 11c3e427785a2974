"""Predictions kept in memory, to be given again while the model's version is the one they were computed at.

Owns the answers, their memory, and what this gateway has heard of versions. Never asks, reads or waits: commits come
from :mod:`keepfit_gateway.learning.commit_feed`, answers from the handler. Invariant: what is given out was computed at
the newest version heard of its model, and the subscription that would have told of a newer one was alive less than the
bound of staleness ago. `docs/concepts/prediction-cache.md` has the reasons.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from keepfit.jobs.messages import Operation
from keepfit.rows.rows import Rows

# Raw request: its path with the query, and its body.
Raw = tuple[str, bytes]

# Larger answers cost their computing and sending, not their asking; one of them would push out thousands of small ones.
ANSWER_BYTES_MAX = 256 * 1024
# Forms in which the same rows are asked for (other spaces, another order of keys, by metadata) that are known by sight.
RAWS_MAX = 4
# Dead answers that one call frees: a few ten microseconds, so that no commit of a much asked model holds up the loop.
SWEEP_COUNT = 64

# What Python and the tables take beside the bytes and strings themselves; measured, and held by a test.
KEPT_BYTES = 475
RAW_BYTES = 212
WATCHED_BYTES = 450


@dataclass(slots=True, eq=False)
class Hearing:
    """One stretch of time in which the subscription lived without a break."""

    live: bool = True


@dataclass(slots=True, eq=False)
class Page:
    """Keys of a model's answers at one version; dead as soon as another version is heard of."""

    live: bool = True
    keys: set[bytes] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Watched:
    """What is known of one model, from before a question is asked of it to the last answer that is kept.

    `newest` is the newest (generation, version) heard; the last version of a generation is infinite, its deletion. It
    counts only as long as `hearing`, the one in which watching began, lives.
    """

    model_hash: str
    hearing: Hearing
    cache: "Cache"
    asking: int = 0
    newest: tuple[int, float] | None = None
    page: Page = field(default_factory=Page)

    def __enter__(self) -> Self:
        """Begin to ask."""
        self.asking += 1
        return self

    def __exit__(self, *_: object) -> None:
        """Stop asking, and forget the model if that was all."""
        self.asking -= 1
        self.cache.leave(self)


@dataclass(slots=True, eq=False)
class Kept:
    """An answer: the body of a 200, its ETag, and the `time.monotonic()` at which it came."""

    watched: Watched
    page: Page
    key: bytes
    generation: int
    body: bytes
    etag: str
    made_at_s: float
    size: int
    raws: tuple[Raw, ...] = ()


def key_of(model_hash: str, operation: Operation, rows: Rows) -> bytes:
    """Name a question by what decides its answer but for the version: 32 bytes, SHA-256 of model, operation, rows."""
    begin = f"{model_hash} {operation} ".encode()
    if rows.n == 1:
        return hashlib.sha256(begin + rows.encode(), usedforsecurity=False).digest()
    digest = hashlib.sha256(begin, usedforsecurity=False)
    for piece in rows.pieces():
        digest.update(piece)
    return digest.digest()


class Cache:
    """Answers of all models, the least recently used leaving first; `bytes_max` of 0 keeps none.

    `hits`, `misses` (look-ups), `dropped` (answers whose version was overtaken or could not be vouched for) and `bytes`
    are for metrics.
    """

    def __init__(self, bytes_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_max = bytes_max
        self._clock = clock
        self._models: dict[str, Watched] = {}
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._raw: dict[Raw, Kept] = {}
        self._dead: list[Page] = []
        self._orphans: list[dict[str, Watched]] = []
        self._hearing = Hearing(live=False)
        self._fresh_until_s = -math.inf
        self.hits = self.misses = self.dropped = self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def fresh(self) -> bool:
        """Whether every commit up to a moment within the bound of staleness has been heard."""
        return self._clock() < self._fresh_until_s

    def valid_until(self, until_s: float) -> None:
        """Note that the subscription is alive, and vouches for what is kept until then (`time.monotonic()`)."""
        if not self._hearing.live and self._bytes_max:
            self._hearing = Hearing()
        self._fresh_until_s = until_s

    def invalidate_all(self) -> None:
        """Note that the subscription broke: what is known cannot be relied on, nor what is being asked just now."""
        self._hearing.live = False
        self._fresh_until_s = -math.inf
        if self._models:
            self._orphans.append(self._models)
            self._models = {}
        self._sweep()

    def observe_version(self, model_hash: str, generation: int, version: float) -> None:
        """Take in that a model has this version; what was computed at an earlier one is given no more."""
        watched = self._models.get(model_hash)
        if watched is not None:
            self._hear(watched, (generation, version))
            self.leave(watched)
        self._sweep()

    def watch(self, model_hash: str) -> Watched:
        """Note what is heard of a model within ``with``, while it is asked; begin before, or a commit may be missed."""
        watched = self._models.get(model_hash)
        if watched is None:
            watched = Watched(model_hash, self._hearing, self)
            if self._hearing.live:
                self._models[model_hash] = watched
                self.bytes += WATCHED_BYTES
        return watched

    def newest(self, model_hash: str) -> tuple[int, float] | None:
        """Newest (generation, version) of a model, None where that is not known for sure."""
        watched = self._models.get(model_hash)
        return watched.newest if watched is not None and self.fresh else None

    def find(self, key: bytes, generation: int, age_s_max: float = math.inf) -> Kept | None:
        """Look up the answer to a question, shaped for `generation`, that came at most `age_s_max` ago."""
        kept = self._valid(self._kept.get(key))
        if kept is None or kept.generation != generation or self._clock() - kept.made_at_s > age_s_max:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return kept

    def find_raw(self, raw: Raw, age_s_max: float = math.inf) -> Kept | None:
        """Look up the answer to a request by its very bytes; not finding it is no miss yet."""
        kept = self._valid(self._raw.get(raw))
        if kept is None or self._clock() - kept.made_at_s > age_s_max:
            return None
        self.hits += 1
        self._kept.move_to_end(kept.key)
        return kept

    def age_s(self, kept: Kept) -> float:
        """Seconds since an answer came."""
        return self._clock() - kept.made_at_s

    def keep(self, watched: Watched, version: tuple[int, int], key: bytes, body: bytes, etag: str) -> Kept | None:
        """Keep an answer of this (generation, version), unless it came too late; return it if it is kept."""
        if not watched.hearing.live:
            return None
        self._hear(watched, version)
        size = KEPT_BYTES + len(key) + len(body) + len(etag)
        if version != watched.newest or len(body) > ANSWER_BYTES_MAX or size + WATCHED_BYTES > self._bytes_max:
            return None
        before = self._kept.get(key)
        if before is not None:
            self._remove(before)
        kept = Kept(watched, watched.page, key, version[0], body, etag, self._clock(), size)
        self._kept[key] = kept
        kept.page.keys.add(key)
        self.bytes += size
        self._shrink()
        return kept

    def alias(self, kept: Kept, raw: Raw) -> None:
        """Know a request by its very bytes from now on, as one that `kept` answers."""
        if self._kept.get(kept.key) is not kept or len(kept.raws) >= RAWS_MAX or raw in self._raw:
            return
        size = RAW_BYTES + len(raw[0]) + len(raw[1])
        kept.raws = (*kept.raws, raw)
        kept.size += size
        self.bytes += size
        self._raw[raw] = kept
        self._shrink()

    def _valid(self, kept: Kept | None) -> Kept | None:
        if kept is None or not kept.page.live or not kept.watched.hearing.live or not self.fresh:
            return None
        return kept

    def _hear(self, watched: Watched, version: tuple[int, float]) -> None:
        # Messages and answers overtake each other; what is older than something heard says nothing.
        if watched.newest is None or watched.newest < version:
            watched.newest = version
            self._turn(watched)

    def _turn(self, watched: Watched) -> None:
        """Begin a new page; the answers on the old one are dead from now on and are freed bit by bit."""
        if watched.page.keys:
            watched.page.live = False
            self.dropped += len(watched.page.keys)
            self._dead.append(watched.page)
            watched.page = Page()

    def leave(self, watched: Watched) -> None:
        """Forget a model that nobody asks and of which nothing is kept."""
        idle = not watched.asking and not watched.page.keys
        if idle and self._models.get(watched.model_hash) is watched:
            del self._models[watched.model_hash]
            self.bytes -= WATCHED_BYTES

    def _shrink(self) -> None:
        if self._dead or self._orphans:
            self._sweep()
        while self.bytes > self._bytes_max and self._kept:
            if self._dead or self._orphans:
                self._sweep()
            else:
                self._remove(next(iter(self._kept.values())))

    def _sweep(self) -> None:
        """Free some dead answers, and models of a hearing that is over."""
        for _ in range(SWEEP_COUNT):
            while self._dead and not self._dead[-1].keys:
                self._dead.pop()
            while self._orphans and not self._orphans[-1]:
                self._orphans.pop()
            if self._dead:
                self._remove(self._kept[self._dead[-1].keys.pop()])
            elif self._orphans:
                self._turn(self._orphans[-1].popitem()[1])
                self.bytes -= WATCHED_BYTES
            else:
                return

    def _remove(self, kept: Kept) -> None:
        del self._kept[kept.key]
        for raw in kept.raws:
            del self._raw[raw]
        kept.page.keys.discard(kept.key)
        self.bytes -= kept.size
        self.leave(kept.watched)

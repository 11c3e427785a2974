"""The scorers that this gateway holds: with them it computes predictions itself, without a worker.

Owns their memory, when a worker is asked for one, and which models are followed. Never decides by itself what is
current: :mod:`keepfit_gateway.prediction.cache` observes versions, and a held scorer keeps its model watched there.
Invariant: a found scorer is of the newest observed version of its model, in the subscription that was live when it was
asked for, and that is fresh; only :meth:`Scorers.find_stale` returns others. Scorers come with the replies of workers,
and from :mod:`keepfit_gateway.learning.commit_feed`. `docs/concepts/prediction-cache.md` has the reasons.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable

import structlog

from keepfit.errors import KeepfitError
from keepfit.recipe.recipe import Recipe
from keepfit.scoring.scorer import Scorer
from keepfit.store.models import Model
from keepfit_gateway.prediction.cache import MODEL_OVERHEAD_BYTES, Cache, WatchedModel

log = structlog.get_logger(__name__)

# A reply without a scorer: the model is asked for none during this time. Which models have one changes rarely.
REFUSED_S = 30.0
# A model is followed while its scorer is used and its version changed within this time.
CHANGING_S = 5.0
# Uses within this time after a noted one are not noted.
USE_NOTED_S = 0.1
# Decoding this much takes a quarter of a millisecond at most, if it holds the labels of categories.
INLINE_BYTES_MAX = 8 * 1024
# The first question about a model asks for a scorer of this size at most: most models that are asked for once are asked
# for again, and a small scorer adds little to the loading of a bundle.
FIRST_BYTES_MAX = 8 * 1024
# Memory of Python objects and tables in addition to the scorer itself. Measured, and held by a test.
HELD_OVERHEAD_BYTES = 500

# A generation and a version.
Version = tuple[int, int]


class HeldScorer:
    """What this gateway knows about the scorer of one model; the model is watched as long as it is held.

    `data`, still encoded, or `scorer` is the newest scorer that came, of `version`; both are empty if none came yet.
    `source` is the watching during which it came. `answered` is the version of the last reply of a worker during the
    present watching, if there was one.
    """

    __slots__ = (
        "answered", "asking", "changed_s", "data", "model_hash", "refused_until_s", "replaced_s", "scorer", "size",
        "source", "undecodable", "used_s", "version", "watched",
    )  # fmt: skip

    def __init__(self, model_hash: str, watched: WatchedModel) -> None:
        self.model_hash = model_hash
        self.watched = watched
        self.source: WatchedModel | None = None
        self.version: Version = (0, 0)
        self.data = b""
        self.scorer: Scorer | None = None
        self.size = HELD_OVERHEAD_BYTES + MODEL_OVERHEAD_BYTES
        self.answered: Version | None = None
        self.undecodable: Version | None = None
        self.asking = False
        self.refused_until_s = self.changed_s = self.used_s = -math.inf
        self.replaced_s = math.inf

    def replaced(self, at_s: float) -> None:
        """Note that a newer version of the model was observed, and that it could be expected since `at_s`."""
        self.changed_s = at_s
        self.replaced_s = min(self.replaced_s, at_s)


class Scorers:
    """Scorers of all models. Evicts the least recently used first; with a bound of 0 bytes there are none.

    `scorer_bytes_max` is the size of an encoded scorer that is asked for. `decode` is that of :mod:`keepfit.scoring`.
    """

    def __init__(
        self,
        cache: Cache,
        decode: Callable[[bytes, Recipe], Scorer],
        bytes_max: int,
        scorer_bytes_max: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._decode = decode
        self._bytes_max = bytes_max
        self._scorer_bytes_max = scorer_bytes_max if bytes_max else 0
        self._clock = clock
        self._held: OrderedDict[str, HeldScorer] = OrderedDict()
        self._used: set[str] = set()
        # Memory, and number of scorers, which not every record has; for metrics.
        self.bytes = self.count = 0

    @property
    def enabled(self) -> bool:
        """Whether this gateway uses scorers."""
        return self._scorer_bytes_max > 0

    def begin_question(self, watched: WatchedModel) -> int:
        """Return the size of a scorer to ask the worker for, beside an answer; 0: do not ask.

        It is asked for with the first question about a model, if it is small, and with the second one within a
        version, so that a model that learns between any two questions pays once; and by one question at a time.
        """
        if not self.enabled or not watched.subscription.live:
            return 0
        held = self._current(watched) or self._hold(watched)
        self._touch(held)
        first = held.answered is None
        repeated = held.answered == watched.newest != held.undecodable
        if held.asking or not (first or repeated) or self._clock() < held.refused_until_s:
            return 0
        held.asking = True
        return min(FIRST_BYTES_MAX, self._scorer_bytes_max) if first else self._scorer_bytes_max

    async def decode_large(self, data: bytes, recipe: Recipe) -> Scorer | None:
        """Decode a large scorer outside of the event loop; None if it is small, or invalid."""
        if len(data) <= INLINE_BYTES_MAX:
            return None
        try:
            return await asyncio.to_thread(self._decode, data, recipe)
        except KeepfitError:
            # Its first use reports it.
            return None

    def end_question(
        self,
        watched: WatchedModel,
        asked: int,
        version: Version | None = None,
        data: bytes = b"",
        scorer: Scorer | None = None,
    ) -> None:
        """Note the reply to a question; `asked` is what :meth:`begin_question` returned. No version: it failed.

        `data` is the encoded scorer, `scorer` the decoded one if :meth:`decode_large` has decoded it.
        """
        held = self._current(watched)
        if held is not None and asked:
            held.asking = False
        if version is None or not self.enabled or not self._cache.is_newest(watched, version):
            return
        if held is None:
            held = self._hold(watched)
        held.answered = version
        if data or asked == self._scorer_bytes_max:
            self._take(held, watched, version, data)
            if scorer is not None and held.data is data:
                self._keep(held, scorer)
        self._touch(held)

    def publish(self, model_hash: str, version: Version, data: bytes) -> None:
        """Take the scorer that was published with a commit, if the model's scorer was used lately."""
        self._cache.observe_version(model_hash, *version)
        watched = self._cache.watched(model_hash)
        held = None if watched is None else self._current(watched)
        if held is None or watched is None or self._clock() - held.used_s > CHANGING_S:
            return
        if self._cache.is_newest(watched, version):
            self._take(held, watched, version, data)

    def find(self, model: Model) -> tuple[Scorer, WatchedModel] | None:
        """Return the scorer of the newest version of a model, and the watching that proves it; None if there is none.

        There is none too if it is not certain which version is the newest.
        """
        held = self._held.get(model.hash)
        if held is None:
            return None
        source, now_s = held.source, self._clock()
        if (
            source is None
            or held.version != source.newest
            or held.version[0] != model.generation
            or not source.is_fresh(now_s)
        ):
            return None
        scorer = held.scorer or self._decoded(held, model.recipe)
        if scorer is None:
            return None
        if now_s >= held.used_s + USE_NOTED_S:
            held.used_s = now_s
            self._used.add(model.hash)
            self._cache.note_used(model.hash)
            self._held.move_to_end(model.hash)
        return scorer, source

    def find_stale(self, model: Model) -> tuple[Scorer, float] | None:
        """Return the last scorer of this generation, current or not, and the `time.monotonic()` of its staleness."""
        held = self._held.get(model.hash)
        if held is None or held.source is None or held.version[0] != model.generation:
            return None
        stale_since_s = min(held.replaced_s, held.source.subscription.fresh_until_s)
        scorer = held.scorer or self._decoded(held, model.recipe)
        if scorer is None:
            return None
        self._held.move_to_end(model.hash)
        return scorer, stale_since_s

    def take_followed(self) -> list[str]:
        """Return the models whose scorer was used since the last call while their version keeps changing."""
        used, self._used = self._used, set()
        since_s = self._clock() - CHANGING_S
        return [name for name in used if (held := self._held.get(name)) is not None and held.changed_s >= since_s]

    def _current(self, watched: WatchedModel) -> HeldScorer | None:
        """Return what is held by `watched`."""
        held = self._held.get(watched.model_hash)
        return held if held is not None and watched.holder is held else None

    def _hold(self, watched: WatchedModel) -> HeldScorer:
        """Return what is held of a model, now by `watched`; a scorer of an earlier subscription stays stale."""
        held = self._held.get(watched.model_hash)
        if held is None:
            held = self._held[watched.model_hash] = HeldScorer(watched.model_hash, watched)
            self.bytes += held.size
        else:
            self._cache.end_hold(held.watched)
            held.watched, held.asking, held.answered = watched, False, None
        self._cache.hold(watched, held)
        return held

    def _take(self, held: HeldScorer, watched: WatchedModel, version: Version, data: bytes) -> None:
        """Hold the scorer of the newest version instead of an older one; without `data` there is none."""
        if not data or HELD_OVERHEAD_BYTES + MODEL_OVERHEAD_BYTES + len(data) > self._bytes_max:
            held.refused_until_s = self._clock() + REFUSED_S
            return
        self.count += held.source is None
        held.source, held.version, held.data, held.scorer = watched, version, data, None
        held.replaced_s = math.inf
        self._resize(held, len(data))

    def _decoded(self, held: HeldScorer, recipe: Recipe) -> Scorer | None:
        """Decode a scorer when it is first used; drop one that is invalid, or too large."""
        try:
            scorer = self._decode(held.data, recipe)
        except KeepfitError as error:
            self._reject(held, str(error))
            return None
        return self._keep(held, scorer)

    def _keep(self, held: HeldScorer, scorer: Scorer) -> Scorer | None:
        """Hold a decoded scorer instead of its bytes; None if it is invalid or too large."""
        if (scorer.generation, scorer.version) != held.version:
            self._reject(held, f"It is of version {scorer.version} of generation {scorer.generation}.")
            return None
        if HELD_OVERHEAD_BYTES + MODEL_OVERHEAD_BYTES + scorer.size_bytes > self._bytes_max:
            held.refused_until_s = self._clock() + REFUSED_S
            self._drop(held)
            return None
        held.scorer, held.data = scorer, b""
        self._resize(held, scorer.size_bytes)
        return scorer

    def _reject(self, held: HeldScorer, reason: str) -> None:
        """Log why a scorer cannot be used, and ask for no other one of this version."""
        log.warning("scorer_invalid", hash=held.model_hash, version=held.version[1], reason=reason)
        held.undecodable = held.version
        self._drop(held)

    def _drop(self, held: HeldScorer) -> None:
        self.count -= 1
        held.source, held.scorer, held.data = None, None, b""
        self._resize(held, 0)

    def _resize(self, held: HeldScorer, size: int) -> None:
        size += HELD_OVERHEAD_BYTES + MODEL_OVERHEAD_BYTES
        self.bytes += size - held.size
        held.size = size
        self._touch(held)

    def _touch(self, held: HeldScorer) -> None:
        """Make this the most recently used, and evict others while the bound is exceeded."""
        self._held.move_to_end(held.model_hash)
        while self.bytes > self._bytes_max:
            _, oldest = self._held.popitem(last=False)
            self.bytes -= oldest.size
            self.count -= oldest.source is not None
            self._cache.end_hold(oldest.watched)

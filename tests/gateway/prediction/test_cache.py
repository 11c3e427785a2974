"""The cache of predictions as a structure: what it gives out is right, and it costs what it says."""

import math
import os
import tracemalloc
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keepfit.recipe import recipe
from keepfit.rows import shaping
from keepfit_gateway.learning.commit_feed import DELETED
from keepfit_gateway.prediction.cache import (
    ALIASES_MAX,
    ANSWER_BYTES_MAX,
    ANSWER_OVERHEAD_BYTES,
    MODEL_OVERHEAD_BYTES,
    SWEEP_COUNT,
    Cache,
    key_of,
)
from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import REGRESSOR

ROOMY = 1 << 24
MODEL, OTHER = "a" * 64, "b" * 64
PATH = f"/v1/models/{MODEL}/predict"


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def listening(bytes_max: int = ROOMY) -> Cache:
    """Return a cache whose subscription lives for ever."""
    cache = Cache(bytes_max)
    cache.valid_until(math.inf)
    return cache


def put(cache: Cache, key: bytes, version: tuple[int, int] = (1, 1), model: str = MODEL, body: bytes = b"{}") -> bool:
    """Ask and answer at once, known by its bytes too; tell whether the answer was kept."""
    with cache.watch(model) as watched:
        kept = cache.store(watched, version, key, body, 'W/"e"')
        if kept is not None:
            cache.alias(kept, (PATH, key))
    return kept is not None


def test_equal_rows_are_one_question() -> None:
    """1 and 1.0, and another order of columns, give the same key; another operation, model or value another one."""
    plain, shoes = recipe.parse(dict(REGRESSOR)), recipe.parse(SHOES_RECIPE)

    def key(X: list[object], of: recipe.Recipe = plain, model: str = MODEL, proba: bool = False) -> bytes:
        return key_of(model, "proba" if proba else "predict", shaping.shape(of, X, learning=False))

    assert key([[1, 2]]) == key([[1.0, 2.0]])
    assert key([{"make": "a", "year": 1}], shoes) == key([{"year": 1, "make": "a"}], shoes) == key([["a", 1.0]], shoes)
    others = [key([[1, 2]]), key([[1, 3]]), key([[1], [2]]), key([[1, 2]], model=OTHER), key([[1, 2]], proba=True)]
    assert len(set(others)) == len(others)


def test_an_answer_is_given_until_its_version_is_overtaken() -> None:
    """What is kept is found by key and by bytes, until another version is heard of, also in an answer."""
    cache = listening()
    put(cache, b"k" * 32)
    assert cache.find(b"k" * 32, 1) is cache.find_raw((PATH, b"k" * 32)) is not None
    assert cache.find(b"k" * 32, 2) is None
    cache.observe_version(MODEL, 1, 1)
    cache.observe_version(OTHER, 1, 9)
    assert cache.find(b"k" * 32, 1) is not None
    cache.observe_version(MODEL, 1, 2)
    assert cache.find(b"k" * 32, 1) is cache.find_raw((PATH, b"k" * 32)) is None
    put(cache, b"k" * 32, (1, 2))
    assert put(cache, b"l" * 32, (1, 3))
    assert cache.find(b"k" * 32, 1) is None
    assert (cache.hits, cache.misses, cache.dropped, len(cache)) == (3, 3, 2, 1)


def test_a_late_answer_is_not_kept() -> None:
    """A commit heard while a question is under way outlives it: the answer of the version before comes too late."""
    cache = listening()
    with cache.watch(MODEL) as watched:
        cache.observe_version(MODEL, 1, 6)
        assert cache.store(watched, (1, 5), b"k" * 32, b"{}", "e") is None
    with cache.watch(MODEL) as watched:
        cache.observe_version(MODEL, 1, DELETED)
        assert cache.store(watched, (1, 7), b"k" * 32, b"{}", "e") is None
        assert cache.store(watched, (2, 0), b"k" * 32, b"{}", "e") is not None


@pytest.mark.parametrize("again", [True, False])
def test_what_was_asked_before_a_break_is_not_kept_after_it(again: bool) -> None:
    """An answer whose question was asked before the subscription broke may have missed a commit."""
    cache = listening()
    put(cache, b"k" * 32)
    with cache.watch(MODEL) as watched:
        cache.invalidate_all()
        if again:
            cache.valid_until(math.inf)
        assert cache.store(watched, (1, 1), b"l" * 32, b"{}", "e") is None
    assert cache.find(b"k" * 32, 1) is cache.newest(MODEL) is None
    assert (cache.bytes, len(cache), cache.dropped) == (0, 0, 1)
    assert put(cache, b"k" * 32) is again


def test_nothing_is_given_while_nobody_vouches_for_it() -> None:
    """Past the time that the subscription vouches for nothing is given; after its next sign of life it is again."""
    clock = Clock()
    cache = Cache(ROOMY, clock)
    assert not put(cache, b"k" * 32)
    cache.valid_until(clock.now_s + 2)
    put(cache, b"k" * 32)
    clock.now_s += 1.5
    kept = cache.find(b"k" * 32, 1)
    assert kept is not None
    assert cache.age_s(kept) == 1.5
    assert cache.find(b"k" * 32, 1, age_s_max=1.4) is cache.find_raw((PATH, b"k" * 32), age_s_max=1.4) is None
    clock.now_s += 0.5
    assert cache.find(b"k" * 32, 1) is cache.find_raw((PATH, b"k" * 32)) is cache.newest(MODEL) is None
    cache.valid_until(clock.now_s + 2)
    assert cache.find(b"k" * 32, 1) is kept


def test_the_least_recently_used_leaves_first() -> None:
    """Over the bound the answer that was not used for longest goes, with all that led to it."""
    cache = listening()
    put(cache, bytes(32))
    each = cache.bytes - MODEL_OVERHEAD_BYTES
    cache = listening(MODEL_OVERHEAD_BYTES + 3 * each)
    for i in range(3):
        put(cache, bytes([i]) * 32)
    assert cache.find_raw((PATH, bytes(32))) is not None
    put(cache, bytes([3]) * 32)
    assert [cache.find_raw((PATH, bytes([i]) * 32)) is not None for i in range(4)] == [True, False, True, True]
    assert cache.bytes == MODEL_OVERHEAD_BYTES + 3 * each


def test_what_is_too_large_is_not_kept() -> None:
    """A huge answer pushes out nothing, and a bound of 0 keeps nothing at all."""
    cache = listening()
    put(cache, b"k" * 32)
    assert not put(cache, b"l" * 32, body=bytes(ANSWER_BYTES_MAX + 1))
    assert cache.find(b"k" * 32, 1) is not None
    for bytes_max in (0, ANSWER_OVERHEAD_BYTES):
        assert not put(listening(bytes_max), b"k" * 32)


def test_one_answer_has_few_aliases() -> None:
    """The same rows written in ever other ways do not fill the memory."""
    cache = listening()
    with cache.watch(MODEL) as watched:
        kept = cache.store(watched, (1, 1), b"k" * 32, b"{}", "e")
    assert kept is not None
    for i in range(10):
        cache.alias(kept, (PATH, bytes(i)))
        cache.alias(kept, (PATH, bytes(i)))
    assert [cache.find_raw((PATH, bytes(i))) is kept for i in range(10)] == [True] * ALIASES_MAX + [False] * (
        10 - ALIASES_MAX
    )


@pytest.mark.parametrize("broken", [True, False])
def test_many_dead_answers_are_freed_bit_by_bit(broken: bool) -> None:
    """A commit or a break drops thousands of answers at once, and frees some with each call after it."""
    cache = listening()
    for i in range(10 * SWEEP_COUNT):
        put(cache, i.to_bytes(32, "big"))
    if broken:
        cache.invalidate_all()
    else:
        cache.observe_version(MODEL, 1, 2)
    assert cache.find(bytes(32), 1) is None
    assert cache.dropped == 10 * SWEEP_COUNT
    assert len(cache) >= 8 * SWEEP_COUNT
    for _ in range(10):
        cache.observe_version(OTHER, 1, 1)
    assert (cache.bytes, len(cache)) == (0, 0)


@pytest.mark.parametrize(("models", "body_bytes", "raws"), [(1, 140, 0), (1, 140, 4), (2000, 140, 1), (20, 4000, 1)])
def test_the_count_of_bytes_is_honest(models: int, body_bytes: int, raws: int) -> None:
    """What the cache says it holds is within a factor of 1.5 of what Python has allocated for it."""
    cache = listening(1 << 30)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for i in range(4000):
            with cache.watch(f"{i % models:064x}") as watched:
                body, etag = os.urandom(body_bytes), f'W/"1-1-{os.urandom(16).hex()}"'
                kept = cache.store(watched, (1, 1), os.urandom(32), body, etag)
                assert kept is not None
                for number in range(raws):
                    cache.alias(kept, (f"/v1/models/{i:064x}/predict?{number}", os.urandom(body_bytes // 2)))
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / 1.5 < cache.bytes < used * 1.5


BOUND_S = 2.0
QUESTIONS = st.integers(0, 2)
MODELS = st.sampled_from([MODEL, OTHER])
Version = tuple[int, float]


@dataclass(slots=True, eq=False)
class Asked:
    """A question under way."""

    model: str
    question: int
    watching: ExitStack
    watched: object
    computed: Version | None = None


@dataclass(slots=True)
class Truth:
    """What Redis holds of a model, and when each version was overtaken."""

    version: Version = (1, 0)
    over_at_s: dict[Version, float] = field(default_factory=dict)


class Untidy(Cache):
    """A cache that frees what is dead as late as it may, so that something may go wrong with it."""

    def _sweep(self) -> None:
        if self.bytes > self._bytes_max:
            super()._sweep()


class CacheAgainstTruth(RuleBasedStateMachine):
    """Commits, answers, breaks and pings in any order, against a Redis that is two dictionaries and a pipe."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = Untidy(MODEL_OVERHEAD_BYTES * 2 + 4 * (ANSWER_OVERHEAD_BYTES + 500), self.clock)
        self.truth = {MODEL: Truth(), OTHER: Truth()}
        self.heard: dict[str, Version] = {}
        # What was published or asked on the subscription and not read yet: commits, and the times of pings.
        self.pipe: list[tuple[str, Version] | float] | None = None
        self.vouched_s = -math.inf
        self.under_way: list[Asked] = []
        self.live()

    def publish(self, model: str, version: Version) -> None:
        """Change a model, and tell of it."""
        truth = self.truth[model]
        truth.over_at_s[truth.version] = self.clock.now_s
        truth.version = version
        if self.pipe is not None:
            self.pipe.append((model, version))

    @invariant()
    def gives_what_is_right(self) -> None:
        """Whatever is looked up is not found, or right."""
        for question in range(3):
            for raw in (True, False):
                self.check(MODEL, question, raw)
                self.check(OTHER, question + 10, raw)

    def check(self, model: str, question: int, raw: bool) -> None:
        """Look up a question; what is found must be right."""
        key = question.to_bytes(32, "big")
        kept = self.cache.find_raw((model, key)) if raw else self.cache.find(key, self.truth[model].version[0])
        if kept is None:
            return
        name, asked, generation, version = kept.body.decode().split()
        found = int(generation), int(version)
        assert (name, asked) == (model, str(question))
        assert self.pipe is not None
        assert self.clock.now_s < self.vouched_s
        assert found == self.heard[model]
        assert self.clock.now_s < self.truth[model].over_at_s.get(found, math.inf) + BOUND_S

    @rule(model=MODELS, question=QUESTIONS)
    def ask(self, model: str, question: int) -> None:
        """Begin to ask."""
        watching = ExitStack()
        watched = watching.enter_context(self.cache.watch(model))
        self.under_way.append(Asked(model, question + 10 * (model == OTHER), watching, watched))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        """Compute an answer by the version that is live now."""
        asked = data.draw(st.sampled_from(self.under_way))
        asked.computed = self.truth[asked.model].version

    @precondition(lambda self: any(asked.computed for asked in self.under_way))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """Take in an answer, which may be late."""
        self.take(data.draw(st.sampled_from([asked for asked in self.under_way if asked.computed])))

    @rule(model=MODELS, question=QUESTIONS)
    def ask_and_answer(self, model: str, question: int) -> None:
        """Ask and answer at once, whatever is kept."""
        question += 10 * (model == OTHER)
        watching = ExitStack()
        watched = watching.enter_context(self.cache.watch(model))
        self.under_way.append(Asked(model, question, watching, watched, self.truth[model].version))
        self.take(self.under_way[-1])

    def take(self, asked: Asked) -> None:
        """Take in an answer."""
        self.under_way.remove(asked)
        assert asked.computed is not None
        generation, version = asked.computed
        with asked.watching:
            if version != DELETED:
                body = f"{asked.model} {asked.question} {generation} {version}".encode()
                key = asked.question.to_bytes(32, "big")
                kept = self.cache.store(asked.watched, (generation, int(version)), key, body, "etag")  # type: ignore[arg-type]
                if kept is not None:
                    self.heard[asked.model] = max(self.heard.get(asked.model, (0, 0)), asked.computed)
                    self.cache.alias(kept, (asked.model, key))

    @rule(model=MODELS)
    def commit(self, model: str) -> None:
        """Commit a version."""
        generation, version = self.truth[model].version
        self.publish(model, (generation + 1, 0) if version == DELETED else (generation, version + 1))

    @rule(model=MODELS)
    def delete(self, model: str) -> None:
        """Delete a model."""
        generation, _ = self.truth[model].version
        self.publish(model, (generation, DELETED))

    @rule()
    def live(self) -> None:
        """Have the subscription live and read to its end."""
        self.connect()
        self.ping()
        while self.pipe:
            self.read()

    @precondition(lambda self: self.pipe is not None)
    @rule()
    def ping(self) -> None:
        """Ask for a sign of life."""
        assert self.pipe is not None
        self.pipe.append(self.clock.now_s)

    @precondition(lambda self: self.pipe)
    @rule()
    def read(self) -> None:
        """Read what came first over the subscription."""
        assert self.pipe is not None
        message = self.pipe.pop(0)
        if isinstance(message, float):
            self.vouched_s = message + BOUND_S
            self.cache.valid_until(self.vouched_s)
        else:
            model, version = message
            self.heard[model] = max(self.heard.get(model, (0, 0)), version)
            self.cache.observe_version(model, *version)

    @rule()
    def disconnect(self) -> None:
        """Break the subscription, with all that was in it."""
        self.pipe, self.vouched_s = None, -math.inf
        self.heard.clear()
        self.cache.invalidate_all()

    @rule()
    def connect(self) -> None:
        """Subscribe, if that is not so; what is published from now on comes through."""
        if self.pipe is None:
            self.pipe = [self.clock.now_s]

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.9]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.now_s += seconds

    @invariant()
    def is_bounded_and_counts_right(self) -> None:
        """Bytes are what is kept, within the bound but for models that are only asked."""
        cache = self.cache
        watched = len(cache._models) + sum(map(len, cache._orphans))
        assert cache.bytes == sum(kept.size for kept in cache._kept.values()) + watched * MODEL_OVERHEAD_BYTES
        only_asked = sum(not model.page.keys for model in cache._models.values()) + sum(map(len, cache._orphans))
        assert cache.bytes - only_asked * MODEL_OVERHEAD_BYTES <= cache._bytes_max
        assert {raw for kept in cache._kept.values() for raw in kept.raws} == cache._raw.keys()
        assert all(watched.asking or watched.page.keys for watched in cache._models.values())

    def teardown(self) -> None:
        """See that nothing is left of anything once it is over."""
        for asked in self.under_way:
            asked.watching.close()
        self.cache.invalidate_all()
        while self.cache._dead or self.cache._orphans:
            Cache._sweep(self.cache)
        assert (self.cache.bytes, len(self.cache), self.cache._raw) == (0, 0, {})


TestCacheAgainstTruth = CacheAgainstTruth.TestCase
TestCacheAgainstTruth.__doc__ = "What is given out is of the newest version heard, whatever happens in whatever order."
TestCacheAgainstTruth.settings = hypothesis_settings(max_examples=60, stateful_step_count=50, deadline=None)

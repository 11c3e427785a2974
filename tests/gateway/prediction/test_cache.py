"""The prediction cache as a data structure: its answers are valid, and its count of bytes is right."""

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
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the current time in seconds."""
        return self.now_s


def subscribed(bytes_max: int = ROOMY) -> Cache:
    """Return a cache whose subscription is never interrupted."""
    cache = Cache(bytes_max)
    cache.valid_until(math.inf)
    return cache


def put(cache: Cache, key: bytes, version: tuple[int, int] = (1, 1), model: str = MODEL, body: bytes = b"{}") -> bool:
    """Store an answer and its alias. Return whether the answer was stored."""
    with cache.watch(model) as watched:
        answer = cache.store(watched, version, key, body, 'W/"e"')
        if answer is not None:
            cache.alias(answer, (PATH, key))
    return answer is not None


def test_equal_rows_have_one_key() -> None:
    """1 and 1.0, and another order of columns, give the same key; another operation, model or value a different one."""
    plain, shoes = recipe.parse(dict(REGRESSOR)), recipe.parse(SHOES_RECIPE)

    def key(X: list[object], of: recipe.Recipe = plain, model: str = MODEL, proba: bool = False) -> bytes:
        return key_of(model, "proba" if proba else "predict", shaping.shape(of, X, learning=False))

    assert key([[1, 2]]) == key([[1.0, 2.0]])
    assert key([{"make": "a", "year": 1}], shoes) == key([{"year": 1, "make": "a"}], shoes) == key([["a", 1.0]], shoes)
    others = [key([[1, 2]]), key([[1, 3]]), key([[1], [2]]), key([[1, 2]], model=OTHER), key([[1, 2]], proba=True)]
    assert len(set(others)) == len(others)


def test_an_answer_is_found_until_a_newer_version_is_observed() -> None:
    """An answer is found by key and by alias until a commit or another answer shows a newer version."""
    cache = subscribed()
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


def test_an_outdated_answer_is_not_stored() -> None:
    """An answer of an earlier version than the one observed during its request is not stored."""
    cache = subscribed()
    with cache.watch(MODEL) as watched:
        cache.observe_version(MODEL, 1, 6)
        assert cache.store(watched, (1, 5), b"k" * 32, b"{}", "e") is None
    with cache.watch(MODEL) as watched:
        cache.observe_version(MODEL, 1, DELETED)
        assert cache.store(watched, (1, 7), b"k" * 32, b"{}", "e") is None
        assert cache.store(watched, (2, 0), b"k" * 32, b"{}", "e") is not None


@pytest.mark.parametrize("resubscribed", [True, False])
def test_an_answer_requested_before_an_interruption_is_not_stored(resubscribed: bool) -> None:
    """An answer requested before an interruption of the subscription is not stored: a commit may have been missed."""
    cache = subscribed()
    put(cache, b"k" * 32)
    with cache.watch(MODEL) as watched:
        cache.invalidate_all()
        if resubscribed:
            cache.valid_until(math.inf)
        assert cache.store(watched, (1, 1), b"l" * 32, b"{}", "e") is None
    assert cache.find(b"k" * 32, 1) is cache.newest(MODEL) is None
    assert (cache.bytes, len(cache), cache.dropped) == (0, 0, 1)
    assert put(cache, b"k" * 32) is resubscribed


def test_nothing_is_found_after_the_staleness_bound() -> None:
    """Nothing is found after the time until which answers are valid; the next ping makes them valid again."""
    clock = Clock()
    cache = Cache(ROOMY, clock)
    assert not put(cache, b"k" * 32)
    cache.valid_until(clock.now_s + 2)
    put(cache, b"k" * 32)
    clock.now_s += 1.5
    answer = cache.find(b"k" * 32, 1)
    assert answer is not None
    assert cache.age_s(answer) == 1.5
    assert cache.find(b"k" * 32, 1, age_s_max=1.4) is cache.find_raw((PATH, b"k" * 32), age_s_max=1.4) is None
    clock.now_s += 0.5
    assert cache.find(b"k" * 32, 1) is cache.find_raw((PATH, b"k" * 32)) is cache.newest(MODEL) is None
    cache.valid_until(clock.now_s + 2)
    assert cache.find(b"k" * 32, 1) is answer


def test_the_least_recently_used_answer_is_evicted_first() -> None:
    """Above the bound the answer with the oldest use is evicted, with its aliases."""
    cache = subscribed()
    put(cache, bytes(32))
    each = cache.bytes - MODEL_OVERHEAD_BYTES
    cache = subscribed(MODEL_OVERHEAD_BYTES + 3 * each)
    for i in range(3):
        put(cache, bytes([i]) * 32)
    assert cache.find_raw((PATH, bytes(32))) is not None
    put(cache, bytes([3]) * 32)
    assert [cache.find_raw((PATH, bytes([i]) * 32)) is not None for i in range(4)] == [True, False, True, True]
    assert cache.bytes == MODEL_OVERHEAD_BYTES + 3 * each


def test_a_too_large_answer_is_not_stored() -> None:
    """A huge answer evicts nothing, and a bound of 0 disables the cache."""
    cache = subscribed()
    put(cache, b"k" * 32)
    assert not put(cache, b"l" * 32, body=bytes(ANSWER_BYTES_MAX + 1))
    assert cache.find(b"k" * 32, 1) is not None
    for bytes_max in (0, ANSWER_OVERHEAD_BYTES):
        assert not put(subscribed(bytes_max), b"k" * 32)


def test_the_aliases_of_an_answer_are_limited() -> None:
    """An answer has at most ALIASES_MAX aliases, so spellings of the same rows do not fill the memory."""
    cache = subscribed()
    with cache.watch(MODEL) as watched:
        answer = cache.store(watched, (1, 1), b"k" * 32, b"{}", "e")
    assert answer is not None
    for i in range(10):
        cache.alias(answer, (PATH, bytes(i)))
        cache.alias(answer, (PATH, bytes(i)))
    assert [cache.find_raw((PATH, bytes(i))) is answer for i in range(10)] == [True] * ALIASES_MAX + [False] * (
        10 - ALIASES_MAX
    )


@pytest.mark.parametrize("interrupted", [True, False])
def test_stale_answers_are_freed_step_by_step(interrupted: bool) -> None:
    """A commit or an interruption invalidates thousands of answers at once; each later call frees some of them."""
    cache = subscribed()
    for i in range(10 * SWEEP_COUNT):
        put(cache, i.to_bytes(32, "big"))
    if interrupted:
        cache.invalidate_all()
    else:
        cache.observe_version(MODEL, 1, 2)
    assert cache.find(bytes(32), 1) is None
    assert cache.dropped == 10 * SWEEP_COUNT
    assert len(cache) >= 8 * SWEEP_COUNT
    for _ in range(10):
        cache.observe_version(OTHER, 1, 1)
    assert (cache.bytes, len(cache)) == (0, 0)


@pytest.mark.parametrize(("models", "body_bytes", "aliases"), [(1, 140, 0), (1, 140, 4), (2000, 140, 1), (20, 4000, 1)])
def test_the_count_of_bytes_matches_the_allocated_memory(models: int, body_bytes: int, aliases: int) -> None:
    """The cache's count of bytes is within a factor of 1.5 of the memory that Python has allocated for it."""
    cache = subscribed(1 << 30)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for i in range(4000):
            with cache.watch(f"{i % models:064x}") as watched:
                body, etag = os.urandom(body_bytes), f'W/"1-1-{os.urandom(16).hex()}"'
                answer = cache.store(watched, (1, 1), os.urandom(32), body, etag)
                assert answer is not None
                for number in range(aliases):
                    cache.alias(answer, (f"/v1/models/{i:064x}/predict?{number}", os.urandom(body_bytes // 2)))
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / 1.5 < cache.bytes < used * 1.5


BOUND_S = 2.0
QUESTIONS = st.integers(0, 2)
MODELS = st.sampled_from([MODEL, OTHER])
Version = tuple[int, float]


@dataclass(slots=True, eq=False)
class Pending:
    """A worker request without an answer."""

    model: str
    question: int
    watching: ExitStack
    watched: object
    computed: Version | None = None


@dataclass(slots=True)
class Truth:
    """The version of a model in Redis, and when each earlier one was replaced."""

    version: Version = (1, 0)
    replaced_at_s: dict[Version, float] = field(default_factory=dict)


class LateSweeper(Cache):
    """A cache that frees stale answers as late as possible, so that a wrong use of them shows."""

    def _sweep(self) -> None:
        if self.bytes > self._bytes_max:
            super()._sweep()


class CacheAgainstTruth(RuleBasedStateMachine):
    """Commits, answers, interruptions and pings in any order, against a model of Redis: two dictionaries and a pipe."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = LateSweeper(MODEL_OVERHEAD_BYTES * 2 + 4 * (ANSWER_OVERHEAD_BYTES + 500), self.clock)
        self.truth = {MODEL: Truth(), OTHER: Truth()}
        self.observed: dict[str, Version] = {}
        # Unread messages of the subscription: commits, and the times of pings.
        self.pipe: list[tuple[str, Version] | float] | None = None
        self.valid_until_s = -math.inf
        self.pending: list[Pending] = []
        self.live()

    def publish(self, model: str, version: Version) -> None:
        """Change the version of a model and publish it."""
        truth = self.truth[model]
        truth.replaced_at_s[truth.version] = self.clock.now_s
        truth.version = version
        if self.pipe is not None:
            self.pipe.append((model, version))

    @invariant()
    def answers_are_valid(self) -> None:
        """A lookup finds a valid answer or nothing."""
        for question in range(3):
            for raw in (True, False):
                self.check(MODEL, question, raw)
                self.check(OTHER, question + 10, raw)

    def check(self, model: str, question: int, raw: bool) -> None:
        """Look up a key; a found answer must be valid."""
        key = question.to_bytes(32, "big")
        answer = self.cache.find_raw((model, key)) if raw else self.cache.find(key, self.truth[model].version[0])
        if answer is None:
            return
        name, named, generation, version = answer.body.decode().split()
        found = int(generation), int(version)
        assert (name, named) == (model, str(question))
        assert self.pipe is not None
        assert self.clock.now_s < self.valid_until_s
        assert found == self.observed[model]
        assert self.clock.now_s < self.truth[model].replaced_at_s.get(found, math.inf) + BOUND_S

    @rule(model=MODELS, question=QUESTIONS)
    def ask(self, model: str, question: int) -> None:
        """Begin a worker request."""
        watching = ExitStack()
        watched = watching.enter_context(self.cache.watch(model))
        self.pending.append(Pending(model, question + 10 * (model == OTHER), watching, watched))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        """Compute an answer with the live version."""
        request = data.draw(st.sampled_from(self.pending))
        request.computed = self.truth[request.model].version

    @precondition(lambda self: any(request.computed for request in self.pending))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """Receive an answer, which may be late."""
        self.receive(data.draw(st.sampled_from([request for request in self.pending if request.computed])))

    @rule(model=MODELS, question=QUESTIONS)
    def ask_and_answer(self, model: str, question: int) -> None:
        """Send a worker request and receive its answer at once."""
        question += 10 * (model == OTHER)
        watching = ExitStack()
        watched = watching.enter_context(self.cache.watch(model))
        self.pending.append(Pending(model, question, watching, watched, self.truth[model].version))
        self.receive(self.pending[-1])

    def receive(self, request: Pending) -> None:
        """Receive an answer."""
        self.pending.remove(request)
        assert request.computed is not None
        generation, version = request.computed
        with request.watching:
            if version != DELETED:
                body = f"{request.model} {request.question} {generation} {version}".encode()
                key = request.question.to_bytes(32, "big")
                answer = self.cache.store(request.watched, (generation, int(version)), key, body, "etag")  # type: ignore[arg-type]
                if answer is not None:
                    self.observed[request.model] = max(self.observed.get(request.model, (0, 0)), request.computed)
                    self.cache.alias(answer, (request.model, key))

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
        """Subscribe, and read the subscription to its end."""
        self.connect()
        self.ping()
        while self.pipe:
            self.read()

    @precondition(lambda self: self.pipe is not None)
    @rule()
    def ping(self) -> None:
        """Send a ping."""
        assert self.pipe is not None
        self.pipe.append(self.clock.now_s)

    @precondition(lambda self: self.pipe)
    @rule()
    def read(self) -> None:
        """Read the next message of the subscription."""
        assert self.pipe is not None
        message = self.pipe.pop(0)
        if isinstance(message, float):
            self.valid_until_s = message + BOUND_S
            self.cache.valid_until(self.valid_until_s)
        else:
            model, version = message
            self.observed[model] = max(self.observed.get(model, (0, 0)), version)
            self.cache.observe_version(model, *version)

    @rule()
    def disconnect(self) -> None:
        """Interrupt the subscription and lose its unread messages."""
        self.pipe, self.valid_until_s = None, -math.inf
        self.observed.clear()
        self.cache.invalidate_all()

    @rule()
    def connect(self) -> None:
        """Subscribe, if there is no subscription."""
        if self.pipe is None:
            self.pipe = [self.clock.now_s]

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.9]))
    def wait(self, seconds: float) -> None:
        """Advance the clock."""
        self.clock.now_s += seconds

    @invariant()
    def bytes_are_counted_and_bounded(self) -> None:
        """The count of bytes is exact, and within the bound except for models without an answer."""
        cache = self.cache
        watched = len(cache._models) + sum(map(len, cache._orphaned))
        assert cache.bytes == sum(answer.size for answer in cache._answers.values()) + watched * MODEL_OVERHEAD_BYTES
        without_answer = sum(not model.current.keys for model in cache._models.values())
        without_answer += sum(map(len, cache._orphaned))
        assert cache.bytes - without_answer * MODEL_OVERHEAD_BYTES <= cache._bytes_max
        assert {raw for answer in cache._answers.values() for raw in answer.aliases} == cache._by_alias.keys()
        assert all(watched.requests or watched.current.keys for watched in cache._models.values())

    def teardown(self) -> None:
        """Check that nothing is left after an interruption and a complete sweep."""
        for request in self.pending:
            request.watching.close()
        self.cache.invalidate_all()
        while self.cache._stale or self.cache._orphaned:
            Cache._sweep(self.cache)
        assert (self.cache.bytes, len(self.cache), self.cache._by_alias) == (0, 0, {})


TestCacheAgainstTruth = CacheAgainstTruth.TestCase
TestCacheAgainstTruth.__doc__ = "A found answer is of the newest observed version, for any order of events."
TestCacheAgainstTruth.settings = hypothesis_settings(max_examples=60, stateful_step_count=50, deadline=None)

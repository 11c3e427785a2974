"""The prediction cache as a data structure: its answers are valid, and its count of bytes is right."""

import hashlib
import math
import os
import tracemalloc

import pytest

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
)
from keepfit_gateway.prediction.keys import key_of
from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import REGRESSOR
from tests.gateway.prediction.doubles import Clock

ROOMY = 1 << 24
MODEL, OTHER = "a" * 64, "b" * 64
PATH = f"/v1/models/{MODEL}/predict"


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
    assert (cache.hits, cache.dropped, len(cache)) == (3, 2, 1)


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


def test_keys_that_were_seen_lately_are_known() -> None:
    """The second request for a key finds it seen, unless another key has taken its place; few others are."""
    cache = subscribed()
    keys = [hashlib.sha256(bytes([i])).digest() for i in range(200)]
    assert sum(map(cache.seen, keys)) < 10
    assert sum(map(cache.seen, keys)) > 190


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
    assert put(cache, b"k" * 32) is resubscribed
    assert len(cache) == 1


def test_answers_of_an_interrupted_subscription_are_found_as_stale() -> None:
    """During an interruption the last answers are found as stale ones, since it began; afterwards they are freed."""
    clock = Clock()
    cache = Cache(ROOMY, clock)
    cache.valid_until(clock.now_s + 2)
    put(cache, b"k" * 32)
    put(cache, b"l" * 32, model=OTHER)
    cache.observe_version(OTHER, 1, 2)
    found = cache.find_stale(b"k" * 32, 1)
    assert found is not None
    assert (found[0] is cache.find(b"k" * 32, 1), found[1]) == (True, clock.now_s + 2)
    clock.now_s += 1
    cache.invalidate_all()
    clock.now_s += 60
    found = cache.find_stale(b"k" * 32, 1)
    assert found is not None
    assert found[1] == clock.now_s - 60
    assert cache.find(b"k" * 32, 1) is cache.find_stale(b"k" * 32, 2) is cache.find_stale(b"l" * 32, 1) is None
    cache.valid_until(clock.now_s + 2)
    cache.observe_version(OTHER, 1, 3)
    assert (cache.find_stale(b"k" * 32, 1), cache.bytes, len(cache)) == (None, 0, 0)


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
        cache.valid_until(math.inf)
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


def test_no_new_key_counts_as_seen() -> None:
    """The first of any keys in their slots was not looked for before, whatever its bytes are."""
    cache = Cache(1 << 20)
    assert not any(cache.seen(bytes([slot, 0, mark]) + bytes(13)) for slot, mark in enumerate(range(256)))

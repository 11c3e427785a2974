"""The scorers of a gateway as a data structure: when one is asked for, used, stale, followed and dropped."""

import math
import os
import tracemalloc

import pytest
import structlog

from keepfit_gateway.learning.commit_feed import DELETED
from keepfit_gateway.prediction.cache import MODEL_OVERHEAD_BYTES, Cache
from keepfit_gateway.prediction.scorers import (
    CHANGING_S,
    FIRST_BYTES_MAX,
    HELD_OVERHEAD_BYTES,
    REFUSED_S,
    USE_NOTED_S,
    Scorers,
)
from tests.gateway.prediction.doubles import INVALID, Clock, NamedScorer, decode, encoded, model_of

ROOMY = 1 << 24
SIZE_MAX = 1000
MODEL, OTHER = "a" * 64, "b" * 64
RECORD_BYTES = HELD_OVERHEAD_BYTES + MODEL_OVERHEAD_BYTES


@pytest.fixture(autouse=True)
def _note_every_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock stand still between two uses that count."""
    monkeypatch.setattr("keepfit_gateway.prediction.scorers.USE_NOTED_S", 0.0)


class Gateway:
    """The caches of a gateway whose subscription is never interrupted unless the test does that."""

    def __init__(self, bytes_max: int = ROOMY, cache_bytes_max: int = ROOMY, scorer_bytes_max: int = SIZE_MAX) -> None:
        self.clock = Clock()
        self.cache = Cache(cache_bytes_max, self.clock)
        self.cache.valid_until(math.inf)
        self.scorers = Scorers(self.cache, decode, bytes_max, scorer_bytes_max, self.clock)

    def ask(
        self, version: tuple[int, int] = (1, 1), data: bytes | None = None, model: str = MODEL, size: int = 100
    ) -> int:
        """Ask a worker, which answers with this version and scorer; return the size of a scorer that was asked for.

        The worker sends no scorer of more than that size.
        """
        with self.cache.watch(model) as watched:
            asked = self.scorers.begin_question(watched)
            sent = encoded(model, version, size) if data is None else data
            self.scorers.end_question(watched, asked, version, sent if size <= asked else b"")
        return asked

    def found(self, model: str = MODEL, generation: int = 1) -> tuple[int, int] | None:
        """Return the generation and version of the scorer that may be used now."""
        found = self.scorers.find(model_of(model, generation))
        return None if found is None else (found[0].generation, found[0].version)

    def stale_since_s(self, model: str = MODEL) -> float | None:
        """Return since when the last scorer is stale."""
        found = self.scorers.find_stale(model_of(model))
        return None if found is None else found[1]


@pytest.mark.parametrize("cache_bytes_max", [ROOMY, 0])
def test_a_scorer_is_asked_for_with_the_first_question_and_the_second_of_a_later_version(cache_bytes_max: int) -> None:
    """The scorer comes with the first answer about a model, and with the second one within each newer version."""
    gateway = Gateway(cache_bytes_max=cache_bytes_max)
    assert (gateway.ask(), gateway.found()) == (SIZE_MAX, (1, 1))
    gateway.cache.observe_version(MODEL, 1, 2)
    assert gateway.found() is None
    # A model that learns between any two questions.
    for version in range(2, 6):
        assert gateway.ask((1, version)) == 0
        gateway.cache.observe_version(MODEL, 1, version + 1)
    assert (gateway.ask((1, 6)), gateway.ask((1, 6)), gateway.found()) == (0, SIZE_MAX, (1, 6))


def test_the_first_question_asks_for_a_small_scorer() -> None:
    """A large scorer comes with the second answer: the first question is for small ones, and refuses no other."""
    gateway = Gateway(scorer_bytes_max=3 * FIRST_BYTES_MAX)
    large = 2 * FIRST_BYTES_MAX
    assert (gateway.ask(size=large), gateway.found()) == (FIRST_BYTES_MAX, None)
    assert (gateway.ask(size=large), gateway.found()) == (3 * FIRST_BYTES_MAX, (1, 1))


def test_after_a_failed_question_the_next_one_is_the_first() -> None:
    """A question that failed tells nothing of the model, whatever version was observed meanwhile."""
    gateway = Gateway(scorer_bytes_max=2 * FIRST_BYTES_MAX)
    for version in (0, 3):
        if version:
            gateway.cache.observe_version(MODEL, 1, version)
        with gateway.cache.watch(MODEL) as watched:
            asked = gateway.scorers.begin_question(watched)
            gateway.scorers.end_question(watched, asked)
        assert asked == FIRST_BYTES_MAX
    assert (gateway.ask((1, 3)), gateway.found()) == (FIRST_BYTES_MAX, (1, 3))


def test_without_a_bound_no_scorer_is_asked_for() -> None:
    """With a bound of 0 bytes for one or for all scorers, none is asked for and nothing is held."""
    for gateway in (Gateway(bytes_max=0), Gateway(scorer_bytes_max=0)):
        assert [gateway.ask() for _ in range(4)] == [0] * 4
        assert (gateway.scorers.enabled, gateway.scorers.bytes, gateway.cache.watched(MODEL)) == (False, 0, None)


def test_one_question_at_a_time_asks_for_the_scorer() -> None:
    """While a question that asks for the scorer waits, others do not ask; after a failure the next one does."""
    gateway = Gateway()
    with gateway.cache.watch(MODEL) as watched:
        asked = gateway.scorers.begin_question(watched)
        assert (asked, gateway.ask()) == (SIZE_MAX, 0)
        gateway.scorers.end_question(watched, asked)
    assert (gateway.ask(), gateway.found()) == (SIZE_MAX, (1, 1))


def test_a_model_without_a_scorer_is_not_asked_for_one_again_soon() -> None:
    """After a reply without a scorer the model is asked for none for a while, whatever its version."""
    gateway = Gateway()
    assert gateway.ask(data=b"") == SIZE_MAX
    assert [gateway.ask((1, version)) for version in (1, 1, 2, 2)] == [0] * 4
    gateway.clock.now_s += REFUSED_S
    assert (gateway.ask((1, 2)), gateway.found()) == (SIZE_MAX, (1, 2))


def test_a_scorer_of_another_generation_is_not_used() -> None:
    """A scorer is not used with the recipe of another generation, and not after the deletion of its model."""
    gateway = Gateway()
    gateway.ask()
    assert (gateway.found(generation=2), gateway.scorers.find_stale(model_of(MODEL, 2))) == (None, None)
    gateway.cache.observe_version(MODEL, 1, DELETED)
    assert gateway.found() is None


def test_a_reply_that_was_overtaken_brings_no_scorer() -> None:
    """A scorer that comes after a newer version was observed, or after an interruption, is not held."""
    gateway = Gateway()
    for overtake in (lambda: gateway.cache.observe_version(MODEL, 1, 2), gateway.cache.invalidate_all):
        with gateway.cache.watch(MODEL) as watched:
            asked = gateway.scorers.begin_question(watched)
            overtake()
            gateway.scorers.end_question(watched, asked, (1, 1), encoded(MODEL, (1, 1)))
        assert (gateway.found(), gateway.stale_since_s()) == (None, None)


def test_no_scorer_of_an_earlier_subscription_becomes_current_again() -> None:
    """After an interruption a scorer stays stale, even if the same version is observed: Redis may have lost commits."""
    gateway = Gateway()
    gateway.ask()
    interrupted_s = gateway.clock.now_s
    gateway.cache.invalidate_all()
    gateway.clock.now_s += 5
    assert (gateway.found(), gateway.stale_since_s()) == (None, interrupted_s)
    gateway.cache.valid_until(math.inf)
    gateway.cache.observe_version(MODEL, 1, 1)
    assert (gateway.found(), gateway.stale_since_s()) == (None, interrupted_s)
    assert gateway.ask() == SIZE_MAX
    assert (gateway.found(), gateway.stale_since_s()) == ((1, 1), math.inf)


def test_a_scorer_is_stale_since_a_newer_version_could_be_known() -> None:
    """It is stale since the newer version was observed, or since the staleness bound if that was earlier."""
    gateway = Gateway()
    gateway.ask()
    gateway.clock.now_s += 1
    gateway.cache.observe_version(MODEL, 1, 2)
    gateway.clock.now_s += 1
    gateway.cache.observe_version(MODEL, 1, 3)
    assert gateway.stale_since_s() == gateway.clock.now_s - 1
    gateway.ask((1, 3))
    gateway.ask((1, 3))
    gateway.cache.valid_until(gateway.clock.now_s + 2)
    gateway.clock.now_s += 10
    assert (gateway.found(), gateway.stale_since_s()) == (None, gateway.clock.now_s - 8)
    gateway.cache.observe_version(MODEL, 1, 4)
    gateway.cache.valid_until(math.inf)
    assert gateway.stale_since_s() == gateway.clock.now_s - 8


def test_published_scorers_of_used_models_are_taken() -> None:
    """A published scorer replaces the one before at once if that was used lately, and is ignored otherwise."""
    gateway = Gateway()
    gateway.scorers.publish(MODEL, (1, 1), encoded(MODEL, (1, 1)))
    assert gateway.scorers.bytes == 0
    gateway.ask()
    assert gateway.found() == (1, 1)
    gateway.scorers.publish(MODEL, (1, 2), encoded(MODEL, (1, 2)))
    assert gateway.found() == (1, 2)
    # A reply has overtaken the message.
    gateway.ask((1, 4))
    gateway.scorers.publish(MODEL, (1, 3), encoded(MODEL, (1, 3)))
    assert gateway.found() is None
    gateway.scorers.publish(MODEL, (1, 4), encoded(MODEL, (1, 4)))
    assert gateway.found() == (1, 4)
    gateway.clock.now_s += CHANGING_S + 1
    gateway.scorers.publish(MODEL, (1, 5), encoded(MODEL, (1, 5)))
    assert (gateway.found(), gateway.stale_since_s()) == (None, gateway.clock.now_s)


def test_models_are_followed_while_they_are_used_and_change() -> None:
    """A model is followed if its scorer was used since the last call and its version changed within a few seconds."""
    gateway = Gateway()
    for model in (MODEL, OTHER):
        gateway.ask(model=model)
    gateway.found()
    gateway.found(OTHER)
    assert gateway.scorers.take_followed() == []
    gateway.found()
    gateway.cache.observe_version(MODEL, 1, 2)
    assert gateway.scorers.take_followed() == [MODEL]
    assert gateway.scorers.take_followed() == []
    gateway.scorers.publish(MODEL, (1, 3), encoded(MODEL, (1, 3)))
    gateway.clock.now_s += CHANGING_S - 1
    gateway.found()
    assert gateway.scorers.take_followed() == [MODEL]
    gateway.clock.now_s += 2
    gateway.found()
    assert gateway.scorers.take_followed() == []


def test_models_whose_scorer_is_used_count_as_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of which only the scorer is used does not count as idle; uses in quick succession count as one."""
    monkeypatch.setattr("keepfit_gateway.prediction.scorers.USE_NOTED_S", USE_NOTED_S)
    gateway = Gateway()
    gateway.ask()
    assert gateway.cache.take_used() == set()
    for waited_s, used in ((0, {MODEL}), (USE_NOTED_S / 2, set()), (USE_NOTED_S, {MODEL})):
        gateway.clock.now_s += waited_s
        assert gateway.found() == (1, 1)
        assert gateway.cache.take_used() == used


@pytest.mark.parametrize("data", [INVALID, encoded(MODEL, (1, 7))])
def test_an_invalid_scorer_is_logged_once(data: bytes) -> None:
    """A scorer that cannot be decoded, or is of another version, is logged once, and no other is asked for."""
    gateway = Gateway()
    gateway.ask(data=data)
    with structlog.testing.capture_logs() as logged:
        assert (gateway.found(), gateway.found(), gateway.stale_since_s()) == (None, None, None)
    assert [(line["event"], line["hash"], line["version"]) for line in logged] == [("scorer_invalid", MODEL, 1)]
    assert gateway.scorers.count == 0
    assert gateway.ask() == gateway.ask() == 0
    gateway.cache.observe_version(MODEL, 1, 2)
    assert (gateway.ask((1, 2)), gateway.ask((1, 2)), gateway.found()) == (0, SIZE_MAX, (1, 2))


def test_the_least_recently_used_scorer_is_evicted_first() -> None:
    """Above the bound the scorer with the oldest use is evicted, and its model is no longer watched."""
    gateway = Gateway(3 * (RECORD_BYTES + 100))
    models = [f"{i:064x}" for i in range(4)]
    for model in models[:3]:
        gateway.ask(model=model)
        assert gateway.found(model) is not None
    assert gateway.scorers.bytes == 3 * (RECORD_BYTES + 100)
    gateway.found(models[0])
    gateway.ask(model=models[3])
    assert [gateway.found(model) is not None for model in models] == [True, False, True, True]
    assert gateway.cache.watched(models[1]) is None
    assert gateway.cache.bytes == 0


def test_a_scorer_larger_than_the_memory_is_refused() -> None:
    """A scorer that would take all the memory evicts nothing, and is not asked for again soon."""
    gateway = Gateway(2 * RECORD_BYTES + 200)
    gateway.ask(model=OTHER)
    assert gateway.found(OTHER) is not None
    gateway.ask(data=encoded(MODEL, (1, 1), RECORD_BYTES + 201))
    assert (gateway.found(), gateway.found(OTHER), gateway.ask()) == (None, (1, 1), 0)
    assert gateway.scorers.count == 1


@pytest.mark.parametrize("size", [0, 100, 4000])
def test_the_count_of_bytes_matches_the_allocated_memory(size: int) -> None:
    """The count of bytes is within a factor of 1.5 of the memory that Python has allocated for the records."""

    def decode_bytes(data: bytes, _: object) -> NamedScorer:
        scorer = NamedScorer("", 1, 1, size)
        scorer.model = os.urandom(max(size - 200, 0)).decode("latin-1")
        return scorer

    cache = Cache(0)
    cache.valid_until(math.inf)
    scorers = Scorers(cache, decode_bytes, 1 << 30, 1 << 20)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for i in range(2000):
            model = model_of(f"{i:064x}")
            with cache.watch(f"{i:064x}") as watched:
                asked = scorers.begin_question(watched)
                scorers.end_question(watched, asked, (1, int("1")), b"x" if size else b"")
            assert (scorers.find(model) is not None) == (size > 0)
            del model
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / 1.5 < scorers.bytes < used * 1.5
    assert scorers.count == (2000 if size else 0)

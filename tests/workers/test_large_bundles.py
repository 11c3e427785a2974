"""Bundles that are larger than one may be, and a store that refuses every write."""

from typing import Any

import pytest
import redis
import redis.asyncio

from keepfit import identity
from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.errors import InvalidError, TooLargeError, UnavailableError
from keepfit.model.recipe_check import check
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store.models import Install, Store
from keepfit_workers import context as contexts
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from tests.factories import accept

RECIPE = parse({"estimator": "SGDRegressor", "features": {"make": "category"}, "encoding": "ordinal"})
METADATA = {"type": "large bundles"}
HASH = identity.hash_of(METADATA)
BUNDLE_BYTES_MAX = 200_000


@pytest.fixture
async def model(store: Store) -> str:
    """Install a model with a category column."""
    await store.install(Install(HASH, identity.canonical(METADATA).decode(), RECIPE.text(), generation=1))
    return HASH


async def send(store: Store, *labels: str) -> None:
    """Accept one request with a row for each label."""
    described = await store.describe(HASH)
    assert described is not None
    rows = shape(RECIPE, [[label] for label in labels], [1.0] * len(labels), learning=True)
    await accept(store, described, rows)


@pytest.mark.parametrize("before", [0, 1, 3])
async def test_the_request_that_makes_a_bundle_too_large_is_put_aside(
    store: Store, client: redis.Redis, settings: Settings, model: str, before: int
) -> None:
    """Its dead letter has the size; the requests around it are learned, in the same batch or later."""
    context = WorkerContext(settings.model_copy(update={"bundle_bytes_max": BUNDLE_BYTES_MAX}), "test")
    for number in range(before):
        await send(store, f"label {number}")
    await send(store, *(f"{number:01000}" for number in range(300)))
    await send(store, "later")
    while learn(context, model, "lease"):
        pass
    after = await store.describe(model)
    assert after is not None
    assert (after.rows_seen, after.learned, after.inbox) == (before + 1, before + 2, 0)
    entries: Any = client.xrange(redis_keys.dead(model))
    ((_, letter),) = entries
    assert b"bytes; it may have 200000" in letter[b"reason"]
    assert int(letter[b"sequence"]) == before + 1
    context.close()


async def test_a_dead_letter_is_committed_although_the_bundle_is_above_a_lowered_limit(
    store: Store, context: WorkerContext, settings: Settings, model: str
) -> None:
    """A model that was larger before the limit was lowered puts requests aside and does not block."""
    await send(store, *(f"{number:01000}" for number in range(300)))
    assert not learn(context, model, "lease")
    await send(store, "later")
    lowered = WorkerContext(settings.model_copy(update={"bundle_bytes_max": BUNDLE_BYTES_MAX}), "test")
    assert not learn(lowered, model, "lease")
    after = await store.describe(model)
    assert after is not None
    assert (after.rows_seen, after.learned, after.inbox) == (300, 2, 0)
    lowered.close()


async def test_a_value_that_redis_would_not_take_is_not_sent(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error of the value and not an outage; many values that are large together are sent."""
    monkeypatch.setattr(redis_scripts, "VALUE_BYTES_MAX", 1000)
    small: list[redis_scripts.Command] = [("SET", f"kf:test:{number}", bytes(600)) for number in range(5)]
    with redis_clients.store_sync(settings) as client:
        with pytest.raises(TooLargeError, match="1001 bytes; Redis takes up to 1000"):
            redis_scripts.run(client, *small, ("SET", "kf:test:large", bytes(1001)))
        assert redis_scripts.run(client, *small) == [b"OK"] * 5
        assert not client.exists("kf:test:large")
    opened = redis_clients.store_async(settings)
    with pytest.raises(TooLargeError):
        await redis_scripts.run_async(opened, ("SET", "kf:test:large", "x" * 1001))
    assert await redis_scripts.run_async(opened, *small) == [b"OK"] * 5
    await opened.aclose()


@pytest.mark.parametrize(
    "recipe",
    [
        {"estimator": "SGDClassifier", "features": {"c": "category"}, "encoding": "hash", "n_features": 1_000_000,
         "classes": [f"class {number}" for number in range(10_000)]},
        {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [20_000, 20_000]}},
        {"estimator": "OneVsOneClassifier", "params": {"estimator": {"SGDClassifier": {}}},
         "features": {"c": "category"}, "encoding": "onehot",
         "classes": [f"class {number}" for number in range(2000)]},
        {"estimator": "IncrementalPCA", "params": {"n_components": 5000},
         "features": {"c": {"type": "category", "max_categories": 20_000}}},
    ],
    ids=["classes", "units", "pairs", "components"],
)  # fmt: skip
def test_a_recipe_whose_model_no_redis_can_hold_is_refused(recipe: dict[str, Any]) -> None:
    """The size of the coefficients is known before a row is learned."""
    with pytest.raises(InvalidError, match=r"needs at least \d+ bytes"):
        check(recipe)
    if "classes" in recipe:
        check({**recipe, "classes": recipe["classes"][:20]})


async def test_a_store_that_refuses_writes_is_asked_less_and_less(
    store: Store, context: WorkerContext, client: redis.Redis, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each failure in a row the model waits longer before its lease is enqueued again; a turn ends the row."""
    clock = [1000.0]
    monkeypatch.setattr(contexts.time, "monotonic", lambda: clock[0])
    await send(store, "one")
    pauses = []
    client.config_set("maxmemory", 1)
    try:
        for _ in range(12):
            with pytest.raises(UnavailableError, match="OOM"):
                learn(context, model, "lease")
            context.run_deferred_unlocks()
            assert client.zcard(redis_keys.LEASES) == 0
            pauses.append(context._retry_at_s - clock[0])
    finally:
        client.config_set("maxmemory", 0)
    assert max(pauses[:2]) <= 1.0
    assert all(5.0 <= pause <= 10.0 for pause in pauses[-3:])
    clock[0] += 10.0
    context.run_deferred_unlocks()
    assert client.zcard(redis_keys.LEASES) == 1
    assert not learn(context, model, "lease")
    context.defer_unlock(model, "lease")
    assert context._retry_at_s - clock[0] <= 0.5

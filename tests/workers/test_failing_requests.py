"""Requests that take their workers along, or that no estimator can learn: found, put aside, and never in the way."""

import asyncio
from typing import Any

import numpy as np
import pytest
import redis

from keepfit import identity
from keepfit.backends import redis_keys
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store.models import Install, Model, Store
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import ATTEMPTS_MAX, learn
from keepfit_workers.sweep import end_lease
from tests.factories import accept

REQUESTS = 300
# Requests of a batch are tried twice, then halved until one is alone: 300, 300, 150, 75, 37, 18, 9, 4, 2.
HALVINGS = 9
POISON = 666.0


class Killed(BaseException):
    """What stands for the death of a worker: nothing of it is caught."""


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """Let every worker die that learns a row of 666."""
    original = Bundle.partial_fit_unchecked

    def taught(bundle: Bundle, rows: Rows) -> None:
        if POISON in rows.number_matrix():
            raise Killed
        original(bundle, rows)

    monkeypatch.setattr(Bundle, "partial_fit_unchecked", taught)
    return Killed


async def make(store: Store, **more: Any) -> Model:
    """Make a model of one column."""
    metadata = {"type": "poison", **{name: str(value) for name, value in more.items()}}
    text = identity.canonical(metadata).decode()
    recipe = parse({"estimator": "SGDRegressor", **more})
    model_hash = identity.hash_of(metadata)
    await store.install(Install(model_hash, text, recipe.text(), generation=1))
    return await described(store, model_hash)


async def described(store: Store, model_hash: str) -> Model:
    """Read a model's state."""
    model = await store.describe(model_hash)
    assert model is not None
    return model


async def send(store: Store, model: Model, value: float) -> int:
    """Have one row accepted; return its sequence."""
    rows = shape(model.recipe, [[value]], [value / 10], learning=True)
    return (await accept(store, model, rows)).sequence


def work(context: WorkerContext, model: Model, client: redis.Redis) -> int:
    """Learn all that waits, with a new worker for each that dies, as a supervisor does; return the deaths."""
    for deaths in range(3 * REQUESTS):
        lease = f"lease-{deaths}"
        try:
            while learn(context, model.hash, lease):
                pass
        except Killed:
            context.bundles.cache.drop(model.hash)
            client.rpush(redis_keys.claimed("learn", lease), model.hash)
            end_lease(client, client, lease)
        else:
            return deaths
    raise AssertionError("the poison was never found")


def dead(client: redis.Redis, model: Model) -> list[dict[bytes, bytes]]:
    """Entries that were put aside."""
    return [fields for _, fields in client.xrange(redis_keys.dead(model.hash))]  # type: ignore[misc, union-attr]


@pytest.mark.usefixtures("deadly")
@pytest.mark.parametrize(("at", "updates"), [(0, "exact"), (137, "exact"), (137, "merged"), (REQUESTS - 1, "exact")])
async def test_one_of_many_that_kills_is_found_by_halving(
    store: Store, context: WorkerContext, client: redis.Redis, updates: str, at: int
) -> None:
    """One deadly request among hundreds costs a few workers, not hundreds; all others are learned in order."""
    model = await make(store, updates=updates)
    values = [float(i % 50) / 50 for i in range(REQUESTS)]
    values[at] = POISON
    for value in values:
        await send(store, model, value)
    assert work(context, model, client) <= HALVINGS + ATTEMPTS_MAX
    after = await described(store, model.hash)
    assert (after.rows_seen, after.learned, after.inbox) == (REQUESTS - 1, REQUESTS, 0)
    (kept,) = dead(client, model)
    assert int(kept[b"sequence"]) == at + 1
    assert b"workers died" in kept[b"reason"]
    if updates == "exact":
        expected = Bundle.new(model.recipe)
        for value in values:
            if value != POISON:
                expected.partial_fit(shape(model.recipe, [[value]], [value / 10], learning=True))
        held = context.bundles.cache.get(model.hash, after.digest)
        assert held is not None
        assert np.array_equal(held.estimator.coef_, expected.estimator.coef_)


@pytest.mark.usefixtures("deadly")
async def test_two_that_kill_are_both_found(store: Store, context: WorkerContext, client: redis.Redis) -> None:
    """After the first deadly request is put aside, the second one is found in the same way."""
    model = await make(store)
    for i in range(64):
        await send(store, model, POISON if i in (20, 21) else 1.0)
    assert work(context, model, client) <= 2 * (7 + ATTEMPTS_MAX)
    assert [int(kept[b"sequence"]) for kept in dead(client, model)] == [21, 22]
    assert (await described(store, model.hash)).rows_seen == 62


@pytest.mark.usefixtures("deadly")
async def test_one_death_makes_nothing_suspect(store: Store, context: WorkerContext, client: redis.Redis) -> None:
    """After a first death the same requests are read together once more, and those that came since are not."""
    model = await make(store)
    for i in range(8):
        await send(store, model, POISON if i == 7 else 1.0)
    sizes = []
    for _ in range(4):
        taken = context.consumer.claim(model.hash, "dies", "")
        assert taken is not None
        sizes.append(len(taken.entries))
        client.delete(redis_keys.lock(model.hash))
        await send(store, model, 1.0)
    assert sizes == [8, 8, 4, 2]


@pytest.mark.usefixtures("deadly")
async def test_rows_that_came_after_the_death_are_not_suspect(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """A request that kills alone is tried alone again, however much came in behind it."""
    model = await make(store)
    await send(store, model, POISON)
    with pytest.raises(Killed):
        learn(context, model.hash, "first")
    client.delete(redis_keys.lock(model.hash))
    for _ in range(5):
        await send(store, model, 1.0)
    taken = context.consumer.claim(model.hash, "second", "")
    assert taken is not None
    assert ([entry.sequence for entry in taken.entries], taken.attempts) == ([1], 2)


async def test_a_request_that_needs_too_much_memory_is_put_aside(
    store: Store, context: WorkerContext, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that runs out of memory lives on; after some tries the request is put aside and the next is learned."""
    model = await make(store)
    original = Bundle.partial_fit_unchecked

    def taught(bundle: Bundle, rows: Rows) -> None:
        if POISON in rows.number_matrix():
            raise MemoryError
        original(bundle, rows)

    monkeypatch.setattr(Bundle, "partial_fit_unchecked", taught)
    await send(store, model, POISON)
    await send(store, model, 1.0)
    for _ in range(ATTEMPTS_MAX + 3):
        learn(context, model.hash, "lease")
    after = await described(store, model.hash)
    assert (after.rows_seen, after.inbox) == (1, 0)
    assert b"memory" in dead(client, model)[0][b"reason"]


async def test_trouble_that_is_not_the_requests_never_puts_them_aside(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """A bundle that cannot be read for a long time holds its mail up; mended, all of it is learned."""
    model = await make(store)
    await send(store, model, 1.0)
    assert not learn(context, model.hash, "lease")
    live = client.get(redis_keys.bundle(model.hash))
    assert isinstance(live, bytes)
    context.bundles.cache.drop(model.hash)
    client.set(redis_keys.bundle(model.hash), live[:-1] + bytes([live[-1] ^ 1]))
    await send(store, model, 2.0)
    for _ in range(ATTEMPTS_MAX + 1):
        # What would put it right, if the model were registered, runs a loop of its own.
        assert not await asyncio.to_thread(learn, context, model.hash, "lease")
    client.set(redis_keys.bundle(model.hash), live)
    assert not learn(context, model.hash, "lease")
    after = await described(store, model.hash)
    assert (after.rows_seen, after.inbox) == (2, 0)
    assert dead(client, model) == []


@pytest.mark.parametrize("updates", ["exact", "merged"])
async def test_rows_that_make_the_model_infinite_are_put_aside(
    store: Store, context: WorkerContext, client: redis.Redis, updates: str
) -> None:
    """Rows that would leave an infinite coefficient are put aside, saying which; later rows go on from before them."""
    model = await make(store, params={"eta0": 1e280, "learning_rate": "constant"}, updates=updates)
    await send(store, model, 0.0)
    bad = await send(store, model, 1e38)
    await send(store, model, 0.0)
    while learn(context, model.hash, "lease"):
        pass
    after = await described(store, model.hash)
    assert (after.rows_seen, after.inbox) == (2, 0)
    (kept,) = dead(client, model)
    assert int(kept[b"sequence"]) == bad
    assert b"finite" in kept[b"reason"] or b"overflow" in kept[b"reason"]
    held = context.bundles.cache.get(model.hash, after.digest)
    assert held is not None
    assert np.isfinite(held.estimator.coef_).all()


async def test_what_is_put_aside_says_when_and_what(
    store: Store, context: WorkerContext, client: redis.Redis, settings: Settings
) -> None:
    """An entry is named by generation and sequence and has its time, its size and its rows."""
    metadata = {"type": "poison", "counts": True}
    recipe = parse({"estimator": "MultinomialNB", "classes": ["a", "b"]})
    model_hash = identity.hash_of(metadata)
    await store.install(Install(model_hash, identity.canonical(metadata).decode(), recipe.text(), generation=7))
    model = await described(store, model_hash)
    rows = shape(recipe, [[-1.0]], ["a"], learning=True)
    await accept(store, model, rows)
    assert not learn(context, model_hash, "lease")
    ((name, kept),) = client.xrange(redis_keys.dead(model_hash))  # type: ignore[misc, union-attr]
    seconds, _ = client.time()  # type: ignore[misc]
    assert name == b"7-1"
    assert (kept[b"generation"], kept[b"sequence"], kept[b"big"]) == (b"7", b"1", b"")
    assert kept[b"rows"] == rows.encode()
    assert int(kept[b"size"]) == len(rows.encode())
    assert abs(int(kept[b"at"]) / 1000 - seconds) < 60

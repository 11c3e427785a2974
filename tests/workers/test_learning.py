"""Learning in one worker process, without RQ around it: what is done with requests that cannot be learned."""

import asyncio
from typing import Any

import pytest
import redis
import structlog

from keepfit import identity
from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.model.bundle import Bundle
from keepfit.observability import request_id
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store import inbox
from keepfit.store.inbox import Accepted
from keepfit.store.models import Install, Model, Store
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import ATTEMPTS_MAX, learn
from tests.factories import accept

COUNTS = {"estimator": "MultinomialNB", "classes": ["a", "b"]}


async def make(store: Store, document: dict[str, Any]) -> Model:
    """Make a model of a recipe."""
    metadata = {"type": "test", "recipe": document}
    model_hash = identity.hash_of(metadata)
    text = identity.canonical(metadata).decode()
    await store.install(Install(model_hash, text, parse(document).text(), generation=1))
    model = await store.describe(model_hash)
    assert model is not None
    return model


async def send(store: Store, model: Model, X: list[list[float]], y: list[Any] | None) -> int:
    """Have rows accepted; return their sequence."""
    return (await accept(store, model, shape(model.recipe, X, y, learning=True))).sequence


async def change(store: Store, model: Model, params: dict[str, Any]) -> None:
    """Have a change of parameters accepted."""
    line = ScriptConnection(store._store)
    (outcome,), _ = await inbox.accept(line, Settings(), [inbox.make_change(model.hash, model.generation, params)])
    await line.close()
    assert isinstance(outcome, Accepted)


async def described(store: Store, model: Model) -> Model:
    """Read the model's state anew."""
    again = await store.describe(model.hash)
    assert again is not None
    return again


def learn_all(context: WorkerContext, model_hash: str) -> None:
    """Learn for as many turns as it takes: how much fits into one depends on what else the machine does."""
    while learn(context, model_hash, "lease"):
        pass


@pytest.mark.parametrize("updates", ["exact", "merged"])
async def test_a_request_that_the_estimator_refuses_is_put_aside_and_the_others_are_learned(
    store: Store, context: WorkerContext, client: redis.Redis, updates: str
) -> None:
    """Negative counts are refused by MultinomialNB: that request is kept aside, all around it are learned."""
    model = await make(store, {**COUNTS, "updates": updates})
    good = [([1.0, 2.0], "a"), ([3.0, 0.0], "b"), ([0.0, 4.0], "a")]
    await send(store, model, [good[0][0]], [good[0][1]])
    request_id.sent.set("from-the-client")
    bad = await send(store, model, [[-1.0, 2.0]], ["b"])
    request_id.sent.set("")
    for X, y in good[1:]:
        await send(store, model, [X], [y])
    with structlog.testing.capture_logs() as logged:
        learn_all(context, model.hash)
    (told,) = (line for line in logged if line["event"] == "request_put_aside")
    assert (told["sequence"], told["request_id"]) == (bad, "from-the-client")
    after = await described(store, model)
    assert (after.rows_seen, after.inbox) == (3, 0)
    ((_, kept),) = client.xrange(redis_keys.dead(model.hash))  # type: ignore[misc, union-attr]
    assert int(kept[b"sequence"]) == bad
    assert b"Negative values" in kept[b"reason"]
    expected = _learned(model.recipe, good)
    held = context.bundles.cache.get(model.hash, after.digest)
    assert held is not None
    assert (held.estimator.feature_count_ == expected.estimator.feature_count_).all()


def _learned(recipe: Recipe, rows: list[tuple[list[float], Any]]) -> Bundle:
    bundle = Bundle.new(recipe)
    for X, y in rows:
        bundle.partial_fit(shape(recipe, [X], [y], learning=True))
    return bundle


async def test_a_model_claimed_after_the_order_to_stop_goes_back_into_the_room(
    store: Store, context: WorkerContext
) -> None:
    """A worker that is to stop says that mail is left, so that the next lease learns it and nobody has to sweep."""
    model = await make(store, {"estimator": "SGDRegressor"})
    await send(store, model, [[1.0]], [2.0])
    context.stopping = True
    assert learn(context, model.hash, "lease")
    assert (await described(store, model)).inbox == 1


async def test_merged_requests_become_one_call(store: Store, context: WorkerContext) -> None:
    """With "merged" all that waits is one partial_fit call and one version."""
    model = await make(store, {"estimator": "SGDRegressor", "updates": "merged"})
    for i in range(50):
        await send(store, model, [[float(i), 1.0]], [float(i % 7)])
    learn_all(context, model.hash)
    after = await described(store, model)
    assert (after.version, after.rows_seen) == (1, 50)
    held = context.bundles.cache.get(model.hash, after.digest)
    whole = Bundle.new(model.recipe)
    rows = [[float(i), 1.0] for i in range(50)]
    whole.partial_fit(shape(model.recipe, rows, [float(i % 7) for i in range(50)], learning=True))
    assert held is not None
    assert (held.estimator.coef_ == whole.estimator.coef_).all()


@pytest.mark.parametrize("updates", ["exact", "merged"])
async def test_a_change_is_made_between_the_rows_before_and_after_it(
    store: Store, context: WorkerContext, client: redis.Redis, updates: str
) -> None:
    """All that waits is one commit: rows, a change, rows, which are joined up to the change only."""
    model = await make(store, {"estimator": "SGDRegressor", "updates": updates})
    whole = Bundle.new(model.recipe)
    for number in range(3):
        if number:
            params = {"eta0": number / 10, "alpha": 0.5}
            await change(store, model, params)
            whole.change(params)
        batch = [[float(number), i] for i in range(4)]
        for row in batch:
            await send(store, model, [row], [1.0])
        parts = [batch] if updates == "merged" else [[row] for row in batch]
        for part in parts:
            whole.partial_fit(shape(model.recipe, part, [1.0] * len(part), learning=True))
    learn_all(context, model.hash)
    after = await described(store, model)
    assert (after.version, after.rows_seen, after.inbox) == (1, 12, 0)
    assert after.changed == {"eta0": 0.2, "alpha": 0.5}
    held = context.bundles.cache.get(model.hash, after.digest)
    assert held is not None
    assert (held.estimator.coef_ == whole.estimator.coef_).all()
    assert held.estimator.t_ == whole.estimator.t_ == 13.0
    # Accepted, as a gateway of another version might have done, and no parameter of it.
    await change(store, model, {"alfa": 1})
    await send(store, model, [[1.0, 1.0]], [1.0])
    learn_all(context, model.hash)
    ((_, kept),) = client.xrange(redis_keys.dead(model.hash))  # type: ignore[misc, union-attr]
    assert b"there is no 'alfa'" in kept[b"reason"]
    last = await described(store, model)
    assert (last.rows_seen, last.changed) == (13, after.changed)


async def test_a_request_that_takes_its_workers_along_is_put_aside(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """After too many workers died at the same request it is put aside, and the next one is learned."""
    model = await make(store, {"estimator": "SGDRegressor"})
    await send(store, model, [[1.0]], [1.0])
    await send(store, model, [[2.0]], [2.0])
    client.hset(redis_keys.state(model.hash), "attempts", ATTEMPTS_MAX)
    learn_all(context, model.hash)
    after = await described(store, model)
    assert (after.rows_seen, after.learned) == (1, 2)
    ((_, kept),) = client.xrange(redis_keys.dead(model.hash))  # type: ignore[misc, union-attr]
    assert b"workers died" in kept[b"reason"]


async def test_a_model_locked_by_another_is_left_alone(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """A lease that finds a model locked does nothing; the holder sees the mail when it lets go."""
    model = await make(store, {"estimator": "SGDRegressor"})
    await send(store, model, [[1.0]], [1.0])
    client.set(redis_keys.lock(model.hash), "another", ex=10)
    learn_all(context, model.hash)
    assert (await described(store, model)).inbox == 1


async def test_a_forged_bundle_is_never_unpickled_and_its_mail_stays(
    store: Store, context: WorkerContext, client: redis.Redis, tmp_path: Any
) -> None:
    """A pickle that nobody signed, put into Redis, is refused; rows wait until somebody mends it."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "ran"), "w"))

    import pickle  # noqa: PLC0415 - what an attacker would use

    model = await make(store, {"estimator": "SGDRegressor"})
    await send(store, model, [[1.0]], [1.0])
    learn_all(context, model.hash)
    live = client.get(redis_keys.bundle(model.hash))
    assert isinstance(live, bytes)
    context.bundles.cache.drop(model.hash)
    client.set(redis_keys.bundle(model.hash), live[:-200] + pickle.dumps(Bomb()))
    await send(store, model, [[2.0]], [2.0])
    # What would put it right runs a loop of its own.
    await asyncio.to_thread(learn_all, context, model.hash)
    assert not (tmp_path / "ran").exists()
    assert (await described(store, model)).inbox == 1
    client.set(redis_keys.bundle(model.hash), live)
    learn_all(context, model.hash)
    assert (await described(store, model)).rows_seen == 2


async def test_the_cache_is_never_believed_over_the_store(
    store: Store, context: WorkerContext, settings: Settings
) -> None:
    """A worker that holds an old bundle learns on from the one another worker committed."""
    model = await make(store, {"estimator": "SGDRegressor"})
    other = WorkerContext(settings, "test")
    rows = [([float(i)], float(i % 3)) for i in range(6)]
    for i, (X, y) in enumerate(rows):
        await send(store, model, [X], [y])
        learn((context, other)[i % 2], model.hash, "lease")
    other.close()
    after = await described(store, model)
    assert after.rows_seen == 6
    held = context.bundles.cache.get(model.hash, after.digest) or other.bundles.cache.get(model.hash, after.digest)
    assert held is not None
    assert (held.estimator.coef_ == _learned(model.recipe, rows).estimator.coef_).all()

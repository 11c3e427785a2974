"""Learning in one worker process, called without RQ: commits, parameter changes, dead letters, locks."""

import asyncio
import math
from typing import Any

import pytest
import redis
import structlog

from keepfit import identity
from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import MissingRequestsError, UnavailableError
from keepfit.jobs import run_queue
from keepfit.model.bundle import Bundle
from keepfit.observability import request_id
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store import inbox
from keepfit.store.inbox import Accepted
from keepfit.store.models import Install, Model, Store
from keepfit_workers import learning, restoring
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import ATTEMPTS_MAX, learn
from tests.factories import accept

COUNTS = {"estimator": "MultinomialNB", "classes": ["a", "b"]}


async def make(store: Store, document: dict[str, Any]) -> Model:
    """Install a model with this recipe."""
    metadata = {"type": "test", "recipe": document}
    model_hash = identity.hash_of(metadata)
    text = identity.canonical(metadata).decode()
    await store.install(Install(model_hash, text, parse(document).text(), generation=1))
    model = await store.describe(model_hash)
    assert model is not None
    return model


async def send(store: Store, model: Model, X: list[list[float]], y: list[Any] | None) -> int:
    """Accept rows as one request; return its sequence."""
    return (await accept(store, model, shape(model.recipe, X, y, learning=True))).sequence


async def change(store: Store, model: Model, params: dict[str, Any]) -> None:
    """Accept a change of parameters."""
    connection = ScriptConnection(store._store)
    (outcome,), _ = await inbox.accept(
        connection, Settings(), [inbox.make_change(model.hash, model.generation, params)]
    )
    await connection.close()
    assert isinstance(outcome, Accepted)


async def described(store: Store, model: Model) -> Model:
    """Read the model's state again."""
    again = await store.describe(model.hash)
    assert again is not None
    return again


def learn_all(context: WorkerContext, model_hash: str) -> None:
    """Learn until no request is pending: how much one turn learns depends on the load of the machine."""
    while learn(context, model_hash, "lease"):
        pass


@pytest.mark.parametrize("updates", ["exact", "merged"])
async def test_a_request_that_the_estimator_refuses_becomes_a_dead_letter(
    store: Store, context: WorkerContext, client: redis.Redis, updates: str
) -> None:
    """MultinomialNB refuses negative counts: that request becomes a dead letter, the other ones are learned."""
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
    (event,) = (each for each in logged if each["event"] == "request_put_aside")
    assert (event["sequence"], event["request_id"]) == (bad, "from-the-client")
    after = await described(store, model)
    assert (after.rows_seen, after.inbox) == (3, 0)
    ((_, letter),) = client.xrange(redis_keys.dead(model.hash))  # type: ignore[misc, union-attr]
    assert int(letter[b"sequence"]) == bad
    assert b"Negative values" in letter[b"reason"]
    expected = _learned(model.recipe, good)
    cached = context.bundles.cache.get(model.hash, after.digest)
    assert cached is not None
    assert (cached.estimator.feature_count_ == expected.estimator.feature_count_).all()


def _learned(recipe: Recipe, rows: list[tuple[list[float], Any]]) -> Bundle:
    bundle = Bundle.new(recipe)
    for X, y in rows:
        bundle.partial_fit(shape(recipe, [X], [y], learning=True))
    return bundle


async def test_a_model_claimed_during_shutdown_returns_to_the_run_queue(store: Store, context: WorkerContext) -> None:
    """A stopping worker reports pending requests, so that the next lease learns them without waiting for a sweep."""
    model = await make(store, {"estimator": "SGDRegressor"})
    await send(store, model, [[1.0]], [2.0])
    context.stopping = True
    assert learn(context, model.hash, "lease")
    assert (await described(store, model)).inbox == 1


async def test_merged_requests_become_one_call(store: Store, context: WorkerContext) -> None:
    """With "merged" all pending requests are one partial_fit call and one version."""
    model = await make(store, {"estimator": "SGDRegressor", "updates": "merged"})
    for i in range(50):
        await send(store, model, [[float(i), 1.0]], [float(i % 7)])
    learn_all(context, model.hash)
    after = await described(store, model)
    assert (after.version, after.rows_seen) == (1, 50)
    cached = context.bundles.cache.get(model.hash, after.digest)
    whole = Bundle.new(model.recipe)
    rows = [[float(i), 1.0] for i in range(50)]
    whole.partial_fit(shape(model.recipe, rows, [float(i % 7) for i in range(50)], learning=True))
    assert cached is not None
    assert (cached.estimator.coef_ == whole.estimator.coef_).all()


@pytest.mark.parametrize("updates", ["exact", "merged"])
async def test_a_change_applies_between_the_rows_before_and_after_it(
    store: Store, context: WorkerContext, client: redis.Redis, updates: str
) -> None:
    """Rows, a change and rows are one commit; requests are merged only up to the next change."""
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
        calls = [batch] if updates == "merged" else [[row] for row in batch]
        for rows in calls:
            whole.partial_fit(shape(model.recipe, rows, [1.0] * len(rows), learning=True))
    learn_all(context, model.hash)
    after = await described(store, model)
    assert (after.version, after.rows_seen, after.inbox) == (1, 12, 0)
    assert after.changed == {"eta0": 0.2, "alpha": 0.5}
    cached = context.bundles.cache.get(model.hash, after.digest)
    assert cached is not None
    assert (cached.estimator.coef_ == whole.estimator.coef_).all()
    assert cached.estimator.t_ == whole.estimator.t_ == 13.0
    # A gateway of another version may have accepted a parameter that the estimator does not have.
    await change(store, model, {"alfa": 1})
    await send(store, model, [[1.0, 1.0]], [1.0])
    learn_all(context, model.hash)
    ((_, letter),) = client.xrange(redis_keys.dead(model.hash))  # type: ignore[misc, union-attr]
    assert b"there is no 'alfa'" in letter[b"reason"]
    last = await described(store, model)
    assert (last.rows_seen, last.changed) == (13, after.changed)


async def test_a_request_that_killed_its_workers_becomes_a_dead_letter(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """After ATTEMPTS_MAX claims without a commit the request becomes a dead letter, and the next one is learned."""
    model = await make(store, {"estimator": "SGDRegressor"})
    await send(store, model, [[1.0]], [1.0])
    await send(store, model, [[2.0]], [2.0])
    client.hset(redis_keys.state(model.hash), "attempts", ATTEMPTS_MAX)
    learn_all(context, model.hash)
    after = await described(store, model)
    assert (after.rows_seen, after.learned) == (1, 2)
    ((_, letter),) = client.xrange(redis_keys.dead(model.hash))  # type: ignore[misc, union-attr]
    assert b"workers died" in letter[b"reason"]


async def test_a_model_locked_by_another_lease_is_skipped(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """A lease skips a locked model; the holder of the lock finds the pending request when it unlocks."""
    model = await make(store, {"estimator": "SGDRegressor"})
    await send(store, model, [[1.0]], [1.0])
    client.set(redis_keys.lock(model.hash), "another", ex=10)
    learn_all(context, model.hash)
    assert (await described(store, model)).inbox == 1


async def test_a_forged_bundle_is_not_unpickled_and_its_requests_stay_pending(
    store: Store, context: WorkerContext, client: redis.Redis, tmp_path: Any
) -> None:
    """A worker refuses an unsigned pickle in Redis; requests stay pending until the bundle is replaced."""

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
    # The repair runs an event loop of its own.
    await asyncio.to_thread(learn_all, context, model.hash)
    assert not (tmp_path / "ran").exists()
    assert (await described(store, model)).inbox == 1
    client.set(redis_keys.bundle(model.hash), live)
    learn_all(context, model.hash)
    assert (await described(store, model)).rows_seen == 2


async def test_a_cached_bundle_is_used_only_if_it_is_the_stored_one(
    store: Store, context: WorkerContext, settings: Settings
) -> None:
    """A worker with an older bundle in its cache continues from the one that another worker committed."""
    model = await make(store, {"estimator": "SGDRegressor"})
    other = WorkerContext(settings, "test")
    rows = [([float(i)], float(i % 3)) for i in range(6)]
    for i, (X, y) in enumerate(rows):
        await send(store, model, [X], [y])
        learn((context, other)[i % 2], model.hash, "lease")
    other.close()
    after = await described(store, model)
    assert after.rows_seen == 6
    cached = context.bundles.cache.get(model.hash, after.digest) or other.bundles.cache.get(model.hash, after.digest)
    assert cached is not None
    assert (cached.estimator.coef_ == _learned(model.recipe, rows).estimator.coef_).all()


async def test_a_model_that_changes_while_it_is_read_is_unlocked(
    store: Store, context: WorkerContext, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn ends if the bundle whose digest was sent was evicted and has changed; the next turn learns at once."""
    model = await make(store, {"estimator": "SGDRegressor"})
    await send(store, model, [[1.0]], [1.0])
    learn_all(context, model.hash)
    await send(store, model, [[2.0]], [2.0])
    with monkeypatch.context() as patch:
        digest = context.bundles.digest(model.hash)
        context.bundles.cache.clear()
        patch.setattr(context.bundles, "digest", lambda model_hash: digest)
        patch.setattr(context.consumer, "load", lambda known: {})
        assert learn(context, model.hash, "first")
    assert not client.exists(redis_keys.lock(model.hash))
    assert not learn(context, model.hash, "second")
    assert (await described(store, model)).rows_seen == 2


async def test_redis_may_be_unavailable_after_a_repair_has_failed(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair that lacks requests has that reason also if its record of them needs a Redis that does not answer."""

    def lacking(act: Any, *_: Any) -> Any:
        raise MissingRequestsError("requests 1 to 2 are not retained")

    def unavailable(known: dict[str, str]) -> Any:
        raise UnavailableError("Redis is unavailable")

    monkeypatch.setattr(context.resources, "run", lacking)
    monkeypatch.setattr(context.consumer, "load", unavailable)
    assert isinstance(restoring.repair(context, "0" * 64), MissingRequestsError)


async def test_learning_is_brief_while_questions_are_asked(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn claims few requests and commits soon; without questions it learns all that wait in one commit."""
    monkeypatch.setattr(learning, "BRIEF_ENTRIES_MAX", 2)
    model = await make(store, {"estimator": "SGDRegressor"})
    for value in range(8):
        await send(store, model, [[float(value)]], [1.0])
    context.asked_s = math.inf
    with monkeypatch.context() as patch:
        # A turn has one commit.
        patch.setattr(learning, "_turn_is_over", lambda context, elapsed_s: over.pop())
        for seconds, learned in ((-1.0, 1), (60.0, 3)):
            over = [True, False]
            patch.setattr(learning, "LEARN_S", seconds)
            assert learn(context, model.hash, "lease")
            assert (await described(store, model)).learned == learned
    context.asked_s = -math.inf
    before = await described(store, model)
    assert not learn(context, model.hash, "lease")
    after = await described(store, model)
    assert (after.learned, after.version) == (8, before.version + 1)


def test_a_turn_ends_soon_if_questions_or_jobs_wait(context: WorkerContext) -> None:
    """Not before the time of a slice; without them it has the time of a turn."""
    for name in (redis_keys.queued_models(run_queue.PREDICT.name), redis_keys.RQ_QUEUE):
        assert not learning._turn_is_over(context, 2 * learning.LEARN_S)
        context.queue.rpush(name, "waits")
        assert not learning._turn_is_over(context, learning.LEARN_S / 2)
        assert learning._turn_is_over(context, 2 * learning.LEARN_S)
        context.queue.delete(name)
    assert learning._turn_is_over(context, 2 * learning.TURN_S)


async def test_a_model_that_takes_long_to_learn_is_noted(
    store: Store, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next claim knows it as a very slow one, until one of its requests is quick."""
    model = await make(store, {"estimator": "SGDRegressor"})
    limits = redis_keys.request_limits(run_queue.LEARN.name)
    for very_slow_s, was, noted in ((-1.0, None, True), (-1.0, 0, True), (60.0, None, True), (60.0, 0, False)):
        monkeypatch.setattr(learning, "VERY_SLOW_S", very_slow_s)
        context.request_limits = {} if was is None else {model.hash: was}
        await send(store, model, [[1.0]], [1.0])
        assert not learn(context, model.hash, "lease")
        assert context.queue.hget(limits, model.hash) == (run_queue.VERY_SLOW if noted else None)
    assert not learn(context, model.hash, "lease")

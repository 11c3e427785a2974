"""Requests that kill workers or that the estimator refuses become dead letters; later requests are learned."""

import asyncio
from typing import Any

import numpy as np
import pytest
import redis

from keepfit import identity
from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import InvalidError
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import parse
from keepfit.rows import acceptance
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store import inbox
from keepfit.store.commit import Harm
from keepfit.store.models import Install, Model, Store
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import ATTEMPTS_MAX, learn
from keepfit_workers.sweep import end_lease
from tests.factories import accept, commit_bundle

REQUESTS = 300
# A batch is tried twice, then halved until one request is alone: 300, 300, 150, 75, 37, 18, 9, 4, 2.
HALVINGS = 9
POISON = 666.0


class Killed(BaseException):
    """Stands for the death of a worker: no handler catches it."""


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """Kill every worker that learns a row of 666."""
    original = Bundle.partial_fit_unchecked

    def learn_or_fail(bundle: Bundle, rows: Rows) -> None:
        if POISON in rows.number_matrix():
            raise Killed
        original(bundle, rows)

    monkeypatch.setattr(Bundle, "partial_fit_unchecked", learn_or_fail)
    return Killed


async def make(store: Store, **more: Any) -> Model:
    """Install a model of one column."""
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
    """Accept one row; return its sequence."""
    rows = shape(model.recipe, [[value]], [value / 10], learning=True)
    return (await accept(store, model, rows)).sequence


def work(context: WorkerContext, model: Model, client: redis.Redis) -> int:
    """Learn all pending requests, with a new worker after each death, as a supervisor does; return the deaths."""
    for deaths in range(3 * REQUESTS):
        lease = f"lease-{deaths}"
        try:
            while learn(context, model.hash, lease):
                pass
        except Killed:
            context.bundles.cache.drop(model.hash)
            client.rpush(redis_keys.claimed(lease), model.hash)
            end_lease(client, client, lease, Harm.DEATH)
        else:
            return deaths
    raise AssertionError("the poison request was never found")


def dead_letters(client: redis.Redis, model: Model) -> list[dict[bytes, bytes]]:
    """Return the fields of the dead letters."""
    return [fields for _, fields in client.xrange(redis_keys.dead(model.hash))]  # type: ignore[misc, union-attr]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(("at", "updates"), [(0, "exact"), (137, "exact"), (137, "merged"), (REQUESTS - 1, "exact")])
async def test_a_poison_request_in_a_batch_is_found_by_halving(
    store: Store, context: WorkerContext, client: redis.Redis, updates: str, at: int
) -> None:
    """One poison request among 300 kills at most 9 + ATTEMPTS_MAX workers; all others are learned in order."""
    model = await make(store, updates=updates)
    values = [float(i % 50) / 50 for i in range(REQUESTS)]
    values[at] = POISON
    for value in values:
        await send(store, model, value)
    assert work(context, model, client) <= HALVINGS + ATTEMPTS_MAX
    after = await described(store, model.hash)
    assert (after.rows_seen, after.learned, after.inbox) == (REQUESTS - 1, REQUESTS, 0)
    (letter,) = dead_letters(client, model)
    assert int(letter[b"sequence"]) == at + 1
    assert b"workers died" in letter[b"reason"]
    if updates == "exact":
        expected = Bundle.new(model.recipe)
        for value in values:
            if value != POISON:
                expected.partial_fit(shape(model.recipe, [[value]], [value / 10], learning=True))
        cached = context.bundles.cache.get(model.hash, after.digest)
        assert cached is not None
        assert np.array_equal(cached.estimator.coef_, expected.estimator.coef_)


@pytest.mark.usefixtures("poison")
async def test_two_poison_requests_are_both_found(store: Store, context: WorkerContext, client: redis.Redis) -> None:
    """After the first poison request became a dead letter, the second one is found in the same way."""
    model = await make(store)
    for i in range(64):
        await send(store, model, POISON if i in (20, 21) else 1.0)
    assert work(context, model, client) <= 2 * (7 + ATTEMPTS_MAX)
    assert [int(letter[b"sequence"]) for letter in dead_letters(client, model)] == [21, 22]
    assert (await described(store, model.hash)).rows_seen == 62


@pytest.mark.usefixtures("poison")
async def test_the_batch_is_claimed_whole_once_more_after_a_death(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """After a first death the same requests are claimed together once more; requests accepted since are left out."""
    model = await make(store)
    for i in range(8):
        await send(store, model, POISON if i == 7 else 1.0)
    sizes = []
    for _ in range(4):
        claimed = context.consumer.claim(model.hash, "dies", "")
        assert claimed is not None
        sizes.append(len(claimed.entries))
        context.consumer.unlock(model.hash, "dies", force=True, harm=Harm.DEATH)
        await send(store, model, 1.0)
    assert sizes == [8, 8, 4, 2]


@pytest.mark.usefixtures("poison")
async def test_requests_accepted_after_a_death_are_not_claimed_with_the_suspect(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """A request that killed a worker alone is tried alone again, however many requests were accepted after it."""
    model = await make(store)
    await send(store, model, POISON)
    with pytest.raises(Killed):
        learn(context, model.hash, "first")
    context.consumer.unlock(model.hash, "first", force=True, harm=Harm.DEATH)
    for _ in range(5):
        await send(store, model, 1.0)
    claimed = context.consumer.claim(model.hash, "second", "")
    assert claimed is not None
    assert ([entry.sequence for entry in claimed.entries], claimed.attempts) == ([1], 1)


async def test_an_expired_lock_is_no_death(store: Store, context: WorkerContext, client: redis.Redis) -> None:
    """However often a lease expires while a worker learns a request, the request is learned and never put aside."""
    model = await make(store)
    await send(store, model, 1.0)
    for number in range(2 * ATTEMPTS_MAX):
        claimed = context.consumer.claim(model.hash, f"lease-{number}", "")
        assert claimed is not None
        assert claimed.attempts == 0
        client.delete(redis_keys.lock(model.hash))
        if number % 2:
            # The sweep ends the lease of a worker that its supervisor has heard of.
            client.rpush(redis_keys.claimed(f"lease-{number}"), model.hash)
            end_lease(client, client, f"lease-{number}", None)
    assert not learn(context, model.hash, "last")
    assert (await described(store, model.hash)).rows_seen == 1
    assert dead_letters(client, model) == []


async def test_a_death_counts_although_the_lock_has_expired(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """The supervisor may report a death late; if another worker has claimed the requests since, it counts nothing."""
    model = await make(store)
    await send(store, model, 1.0)
    for expected, claims in ((1, ["a"]), (2, ["b"]), (2, ["c", "d"])):
        for lease in claims:
            context.consumer.claim(model.hash, lease, "")
            client.delete(redis_keys.lock(model.hash))
        for _ in range(2):
            context.consumer.unlock(model.hash, claims[0], force=True, harm=Harm.DEATH)
        claimed = context.consumer.claim(model.hash, "last", "")
        assert claimed is not None
        assert claimed.attempts == expected
        context.consumer.unlock(model.hash, "last", force=True)


async def test_a_request_that_needs_too_much_memory_becomes_a_dead_letter(
    store: Store, context: WorkerContext, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker survives the MemoryError; after several tries the request is dead, and the next one is learned."""
    model = await make(store)
    original = Bundle.partial_fit_unchecked

    def learn_or_fail(bundle: Bundle, rows: Rows) -> None:
        if POISON in rows.number_matrix():
            raise MemoryError
        original(bundle, rows)

    monkeypatch.setattr(Bundle, "partial_fit_unchecked", learn_or_fail)
    await send(store, model, POISON)
    await send(store, model, 1.0)
    for _ in range(ATTEMPTS_MAX + 3):
        learn(context, model.hash, "lease")
    after = await described(store, model.hash)
    assert (after.rows_seen, after.inbox) == (1, 0)
    assert b"memory" in dead_letters(client, model)[0][b"reason"]


async def test_an_unreadable_bundle_makes_no_dead_letters(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """While the bundle is unreadable its requests stay pending; once it is readable, all of them are learned."""
    model = await make(store)
    await send(store, model, 1.0)
    assert not learn(context, model.hash, "lease")
    live = client.get(redis_keys.bundle(model.hash))
    assert isinstance(live, bytes)
    context.bundles.cache.drop(model.hash)
    client.set(redis_keys.bundle(model.hash), live[:-1] + bytes([live[-1] ^ 1]))
    await send(store, model, 2.0)
    for _ in range(ATTEMPTS_MAX + 1):
        # The repair, which would succeed if the model were registered, runs an event loop of its own.
        assert not await asyncio.to_thread(learn, context, model.hash, "lease")
    client.set(redis_keys.bundle(model.hash), live)
    assert not learn(context, model.hash, "lease")
    after = await described(store, model.hash)
    assert (after.rows_seen, after.inbox) == (2, 0)
    assert dead_letters(client, model) == []


@pytest.mark.parametrize("updates", ["exact", "merged"])
async def test_rows_that_make_a_coefficient_infinite_become_a_dead_letter(
    store: Store, context: WorkerContext, client: redis.Redis, updates: str
) -> None:
    """The reason names the overflow; later rows are learned on top of the state before the refused request."""
    model = await make(store, params={"eta0": 1e280, "learning_rate": "constant"}, updates=updates)
    await send(store, model, 0.0)
    bad = await send(store, model, 1e38)
    await send(store, model, 0.0)
    while learn(context, model.hash, "lease"):
        pass
    after = await described(store, model.hash)
    assert (after.rows_seen, after.inbox) == (2, 0)
    (letter,) = dead_letters(client, model)
    assert int(letter[b"sequence"]) == bad
    assert b"finite" in letter[b"reason"] or b"overflow" in letter[b"reason"]
    cached = context.bundles.cache.get(model.hash, after.digest)
    assert cached is not None
    assert np.isfinite(cached.estimator.coef_).all()


async def test_a_width_counts_from_the_first_learned_request(
    store: Store, context: WorkerContext, client: redis.Redis
) -> None:
    """After a refused first request any width is accepted; the first learned one decides about those behind it."""
    model = await make(store, estimator="MultinomialNB", classes=["a", "b"])

    async def send_row(*values: float) -> None:
        await accept(store, model, shape(model.recipe, [list(values)], ["a"], learning=True))

    await send_row(-1.0, 1.0, 1.0)
    # Waits behind the request that is refused later.
    await send_row(2.0, 1.0, 1.0)
    with pytest.raises(InvalidError, match="have 2 values where the model has 3"):
        await send_row(1.0, 2.0)
    claimed = context.consumer.claim(model.hash, "lease", "")
    assert claimed is not None
    bundle = context.bundles.get(claimed)
    commit_bundle(context.consumer, context.keyring, claimed, bundle, 1, "lease", "ValueError: Negative values")
    await send_row(1.0, 2.0)
    while learn(context, model.hash, "lease"):
        pass
    after = await described(store, model.hash)
    assert (after.rows_seen, after.inbox) == (1, 0)
    refused, late = dead_letters(client, model)
    assert b"Negative" in refused[b"reason"]
    assert b"X has 2 features" in late[b"reason"]
    with pytest.raises(InvalidError, match="have 2 values where the model has 3"):
        await send_row(1.0, 2.0)


async def test_a_change_of_parameters_does_not_end_the_width_of_pending_rows(
    store: Store, context: WorkerContext
) -> None:
    """Rows that wait behind a change decide the width of later rows before any is learned."""
    model = await make(store)
    change = inbox.make_change(model.hash, model.generation, {"alpha": 0.5})
    connection = ScriptConnection(store.client)
    await inbox.accept(connection, context.settings, [change])
    claimed = context.consumer.claim(model.hash, "lease", "")
    assert claimed is not None
    await send(store, model, 1.0)
    bundle = context.bundles.get(claimed)
    bundle.change({"alpha": 0.5})
    assert commit_bundle(context.consumer, context.keyring, claimed, bundle, 1, "lease").version == 1
    with pytest.raises(InvalidError, match="have 2 values where the model has 1"):
        await accept(store, model, shape(model.recipe, [[1.0, 2.0]], [1.0], learning=True))
    await connection.close()


async def test_a_dead_letter_has_time_size_and_rows(
    store: Store, context: WorkerContext, client: redis.Redis, settings: Settings
) -> None:
    """Its id is generation and sequence; its fields are those two, the time, the size and the rows."""
    metadata = {"type": "poison", "counts": True}
    recipe = parse({"estimator": "MultinomialNB", "classes": ["a", "b"]})
    model_hash = identity.hash_of(metadata)
    await store.install(Install(model_hash, identity.canonical(metadata).decode(), recipe.text(), generation=7))
    model = await described(store, model_hash)
    rows = shape(recipe, [[-1.0]], ["a"], learning=True)
    await accept(store, model, rows)
    assert not learn(context, model_hash, "lease")
    ((name, letter),) = client.xrange(redis_keys.dead(model_hash))  # type: ignore[misc, union-attr]
    seconds, _ = client.time()  # type: ignore[misc]
    assert name == b"7-1"
    assert (letter[b"generation"], letter[b"sequence"], letter[b"big"]) == (b"7", b"1", b"")
    assert Rows.decode(letter[b"rows"]) == rows
    assert abs(seconds - acceptance.accepted_s(letter[b"rows"])) < 60
    assert int(letter[b"size"]) == len(letter[b"rows"]) == len(rows.encode()) + 9
    assert abs(int(letter[b"at"]) / 1000 - seconds) < 60

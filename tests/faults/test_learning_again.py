"""Workers die, and Redis is lost, while a model learns all rows again with new code: each is learned once, in order."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import ConflictError, UnavailableError
from keepfit.jobs import run_queue
from keepfit.model.serialization import unseal
from keepfit.recipe import uploads
from keepfit.recipe.recipe import Recipe, parse
from keepfit.restore import learning_again
from keepfit.restore.requests import RestoreRequest
from keepfit.restore.restorer import Restorer
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.snapshots.save import save
from keepfit.store import inbox
from keepfit.store.dead_letters import DeadLetters
from keepfit_workers import restoring
from tests.factories import Workshop, dump_local, workshop
from tests.faults import acts
from tests.faults.conftest import UPLOAD_KEYS
from tests.faults.test_points import KILLED, LEASE, learned, push, recover

ROW_LOG = True
SOURCE = """import numpy as np
class Walk:
    def __init__(self): self.steps = []
    def partial_fit(self, X, y):
        if float(y[-1]) in REJECTED: raise ValueError("cannot learn this")
        self.steps.append(float(y[-1]) * FACTOR + np.random.random())
    def predict(self, X): return [sum(self.steps)] * len(X)
"""
OLD, NEW = f"FACTOR, REJECTED = 1.0, [-2.0]\n{SOURCE}", f"FACTOR, REJECTED = 100.0, []\n{SOURCE}"


def loop(factor: float, *targets: float) -> list[float]:
    """Return what a new object learns from these targets, one request each, with the seeds that the guide names."""
    steps: list[float] = []
    for number, target in enumerate(targets):
        np.random.seed(number)
        steps.append(target * factor + np.random.random())
    return steps


@pytest.fixture
def recipe() -> Recipe:
    """Return the recipe of an object with the old code."""
    return parse({"object": dump_local(OLD, UPLOAD_KEYS)}, uploads.upload_keyring(UPLOAD_KEYS))


async def send(shop: Workshop, model_hash: str, *sent: float | str, logged: bool = True) -> list[int]:
    """Accept targets, one request each, or the text of new code, and log them; return their sequences."""
    sequences = []
    for each in sent:
        model, connection = await shop.model(model_hash), ScriptConnection(shop.store.client)
        if isinstance(each, str):
            change = {"object": each, "state": "learn_again"}
            request = inbox.make_change(model_hash, model.generation, change)
        else:
            rows = shape(model.recipe, [[0.0]], [each], learning=True)
            made = inbox.make_small_request(model_hash, model.generation, rows)
            assert made is not None
            request = made
        ((outcome,), _, calls) = await inbox.accept_logged(connection, shop.settings, [request])
        await connection.close()
        assert isinstance(outcome, inbox.Accepted)
        if logged:
            write(shop, [call for call, _ in calls])
        sequences.append(outcome.sequence)
    return sequences


def write(shop: Workshop, calls: Any) -> None:
    """Write calls to the row log."""
    assert shop.resources.row_log is not None
    shop.resources.row_log.write(calls)


async def retry(shop: Workshop, model_hash: str) -> int:
    """Retry all dead letters, as a gateway does; return their number."""
    letters = DeadLetters(shop.store.client)
    retried = await letters.retry(await shop.model(model_hash), shop.settings, None, logged=True)
    write(shop, retried.calls)
    return len(retried.sequences)


async def work(deployment: Settings, shop: Workshop, model_hash: str) -> None:
    """Learn what is pending, in a thread: a worker has an event loop of its own."""
    push(shop, run_queue.LEARN, model_hash)
    await asyncio.to_thread(recover, deployment, partial(learned, shop, model_hash))


def opened(shop: Workshop, model_hash: str, recipe: Recipe) -> Any:
    """Return the live bundle."""
    return unseal(shop.data(model_hash), shop.keyring, recipe, model_hash)[1]


def steps(shop: Workshop, model_hash: str, recipe: Recipe) -> list[float]:
    """Return what the live object has learned."""
    return list(opened(shop, model_hash, recipe).estimator.steps)


def dead(shop: Workshop, model_hash: str) -> int:
    """Return the number of dead letters."""
    return int(shop.redis.xlen(redis_keys.dead(model_hash)))  # type: ignore[arg-type]


async def restored(shop: Workshop, model_hash: str, wanted: RestoreRequest | None = None) -> Any:
    """Delete everything about a model in Redis, and restore it."""
    shop.lose(model_hash)
    restorer = Restorer(shop.resources, shop.settings)
    try:
        registered = await shop.registry.find(model_hash)
        assert registered is not None
        return await restorer.restore(registered, wanted or RestoreRequest())
    finally:
        restorer.close()


@pytest.mark.parametrize("point", ["commit.sealed", "commit.done"])
async def test_a_worker_can_die_while_it_learns_again(
    deployment: Settings, shop: Workshop, recipe: Recipe, point: str
) -> None:
    """All rows are as in a new model of the new code, also after a loss of Redis; a dead letter has its first place."""
    model_hash = await shop.make(recipe)
    await send(shop, model_hash, 1.0, -2.0, 3.0)
    await work(deployment, shop, model_hash)
    assert (steps(shop, model_hash, recipe), dead(shop, model_hash)) == (loop(1.0, 1.0, 3.0), 1)
    await save(shop.resources, model_hash)
    await send(shop, model_hash, dump_local(NEW, UPLOAD_KEYS), 5.0)
    push(shop, run_queue.LEARN, model_hash)
    assert acts.exit_code_of(f"{point}:1:kill", acts.learn, deployment, LEASE) == KILLED
    if point == "commit.done":
        # Committed, and in no snapshot.
        live = opened(shop, model_hash, recipe)
        assert (live.rows_seen, live.estimator.steps) == (3, loop(100.0, 1.0, -2.0, 3.0))
        assert (await restored(shop, model_hash)).replayed == 4
        fresh_hash = await shop.make(
            parse({"object": dump_local(NEW, UPLOAD_KEYS)}, uploads.upload_keyring(UPLOAD_KEYS))
        )
        await send(shop, fresh_hash, 1.0, -2.0, 3.0, 5.0)
        await work(deployment, shop, fresh_hash)
        again, fresh = opened(shop, model_hash, recipe), opened(shop, fresh_hash, recipe)
        assert again.estimator.steps == fresh.estimator.steps == loop(100.0, 1.0, -2.0, 3.0, 5.0)
        assert (again.rows_seen, again.metrics(), again.columns) == (4, fresh.metrics(), fresh.columns)
        return
    await asyncio.to_thread(recover, deployment, partial(learned, shop, model_hash))
    expected = loop(100.0, 1.0, -2.0, 3.0, 5.0)
    model = await shop.model(model_hash)
    assert (steps(shop, model_hash, recipe), dead(shop, model_hash)) == (expected, 0)
    assert (model.rows_seen, model.learned, model.inbox) == (4, 5, 0)
    await send(shop, model_hash, 6.0)
    data = unseal(shop.data(model_hash), shop.keyring, recipe, model_hash)
    assert (await restored(shop, model_hash)).sequence == 6
    assert steps(shop, model_hash, recipe) == loop(100.0, 1.0, -2.0, 3.0, 5.0, 6.0)
    assert data[1].changed == (await shop.model(model_hash)).changed


async def test_a_dead_letter_is_learned_once_however_often_it_was_retried(
    deployment: Settings, shop: Workshop, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its first place if it was retried before the change, and that of the retry if it was retried after it."""
    monkeypatch.setattr(restoring, "save_learned_again", lambda context, model_hash: None)
    model_hash = await shop.make(recipe)
    await send(shop, model_hash, 1.0, -2.0, 3.0)
    await work(deployment, shop, model_hash)
    assert await retry(shop, model_hash) == 1
    await work(deployment, shop, model_hash)
    assert dead(shop, model_hash) == 1
    await send(shop, model_hash, -2.0, 4.0)
    await work(deployment, shop, model_hash)
    assert dead(shop, model_hash) == 2
    await send(shop, model_hash, dump_local(NEW, UPLOAD_KEYS))
    applied, retried = learning_again.apply, 0

    async def retry_meanwhile(*args: Any) -> Any:
        nonlocal retried
        replayed = await applied(*args)
        if not retried:
            async with workshop(deployment) as other:
                retried = await retry(other, model_hash)
        return replayed

    monkeypatch.setattr(learning_again, "apply", retry_meanwhile)
    await work(deployment, shop, model_hash)
    assert retried == 2
    expected = loop(100.0, 1.0, 3.0, 4.0, -2.0, -2.0)
    assert (steps(shop, model_hash, recipe), dead(shop, model_hash)) == (expected, 0)
    await restored(shop, model_hash)
    assert steps(shop, model_hash, recipe) == expected
    # All of it once more, from the first row on, with both retries in the row log.
    await send(shop, model_hash, dump_local(NEW, UPLOAD_KEYS), 5.0)
    await work(deployment, shop, model_hash)
    expected = loop(100.0, 1.0, -2.0, 3.0, -2.0, 4.0, 5.0)
    assert steps(shop, model_hash, recipe) == expected
    await restored(shop, model_hash)
    assert (steps(shop, model_hash, recipe), dead(shop, model_hash)) == (expected, 0)


async def test_rows_that_the_new_code_rejects_are_left_out(
    deployment: Settings, shop: Workshop, recipe: Recipe
) -> None:
    """A dead letter that fails again stays one; code that cannot be loaded changes nothing, and can be mended."""
    model_hash = await shop.make(recipe)
    await send(shop, model_hash, 1.0, -2.0, 3.0, 4.0)
    await work(deployment, shop, model_hash)
    await send(
        shop, model_hash, dump_local("class Walk:\n    def __setstate__(self, state): 1 / 0\n" + OLD, UPLOAD_KEYS)
    )
    strict = NEW.replace("[]\n", "[3.0, -2.0]\n", 1)
    await send(shop, model_hash, dump_local(strict, UPLOAD_KEYS))
    await work(deployment, shop, model_hash)
    assert (steps(shop, model_hash, recipe), dead(shop, model_hash)) == (loop(100.0, 1.0, 4.0), 1)
    assert (await shop.model(model_hash)).rows_seen == 2


async def test_code_whose_model_is_too_large_removes_no_dead_letter(
    deployment: Settings, shop: Workshop, recipe: Recipe
) -> None:
    """Rows are learned again without an error, but the bundle may not be stored: the dead letters stay."""
    model_hash = await shop.make(recipe)
    await send(shop, model_hash, 1.0, -2.0)
    await work(deployment, shop, model_hash)
    large = NEW.replace("self.steps = []", "self.steps, self.ballast = [], bytes(200_000)")
    await send(shop, model_hash, dump_local(large, UPLOAD_KEYS))
    await work(deployment.model_copy(update={"bundle_bytes_max": 100_000}), shop, model_hash)
    assert (steps(shop, model_hash, recipe), dead(shop, model_hash)) == (loop(1.0, 1.0), 2)
    assert await retry(shop, model_hash) == 2


async def test_too_many_dead_letters_are_refused(
    deployment: Settings, shop: Workshop, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with more dead letters than one script may remove learns nothing again, and keeps them."""
    model_hash = await shop.make(recipe)
    await send(shop, model_hash, 1.0, -2.0, -2.0)
    await work(deployment, shop, model_hash)
    monkeypatch.setattr(learning_again, "DEAD_LETTERS_MAX", 1)
    with pytest.raises(ConflictError, match="has 2 dead letters; it can learn again with 1 at most"):
        await learning_again.check(shop.resources, model_hash)
    await send(shop, model_hash, dump_local(NEW, UPLOAD_KEYS), 4.0)
    await work(deployment, shop, model_hash)
    assert (steps(shop, model_hash, recipe), dead(shop, model_hash)) == (loop(1.0, 1.0, 4.0), 3)


async def test_what_the_row_log_lacks_is_not_forgotten(
    deployment: Settings, shop: Workshop, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a row is not in the log, nothing is learned again: the answer to the question and the dead letter say so."""
    monkeypatch.setattr(learning_again, "WRITTEN_S_MAX", 0.0)
    monkeypatch.setattr(learning_again, "ASKED_S_MAX", 0.0)
    model_hash = await shop.make(recipe)
    await send(shop, model_hash, 1.0)
    assert await learning_again.check(shop.resources, model_hash) == 1
    await send(shop, model_hash, 2.0, logged=False)
    await send(shop, model_hash, 3.0)
    with pytest.raises(ConflictError, match="request 2 is not in it"):
        await learning_again.check(shop.resources, model_hash)
    await send(shop, model_hash, dump_local(NEW, UPLOAD_KEYS), 4.0)
    await work(deployment, shop, model_hash)
    assert steps(shop, model_hash, recipe) == loop(1.0, 1.0, 2.0, 3.0, 4.0)
    ((_, letter),) = shop.redis.xrange(redis_keys.dead(model_hash))  # type: ignore[misc]
    assert b"request 2 is not in it" in letter[b"reason"]
    without = replace(shop.resources, row_log=None)
    with pytest.raises(ConflictError, match="There is no row log"):
        await learning_again.check(without, model_hash)


async def test_a_restore_orders_what_was_learned_again(deployment: Settings, shop: Workshop, recipe: Recipe) -> None:
    """A version from before the change has its code; the pending change is then made, without forgotten rows."""
    model_hash = await shop.make(recipe)
    await send(shop, model_hash, 1.0)
    await work(deployment, shop, model_hash)
    version = (await save(shop.resources, model_hash) or {})["version"]
    await send(shop, model_hash, 2.0)
    await work(deployment, shop, model_hash)
    await send(shop, model_hash, dump_local(NEW, UPLOAD_KEYS), 3.0)
    restorer = Restorer(shop.resources, shop.settings)
    try:
        await restorer.restore_or_rewind(model_hash, RestoreRequest(version=version))
        assert steps(shop, model_hash, recipe) == loop(1.0, 1.0)
        await work(deployment, shop, model_hash)
        assert steps(shop, model_hash, recipe) == loop(100.0, 1.0, 3.0)
        await restorer.restore_or_rewind(model_hash, RestoreRequest(version=version))
    finally:
        restorer.close()
    assert (steps(shop, model_hash, recipe), (await shop.model(model_hash)).changed) == (loop(1.0, 1.0), {})


async def test_an_unavailable_row_log_postpones_it(
    deployment: Settings, shop: Workshop, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the log cannot be read, the change and the rows after it wait; then they are learned."""
    model_hash = await shop.make(recipe)
    await send(shop, model_hash, 1.0, dump_local(NEW, UPLOAD_KEYS), 2.0)
    tried, reads = [], learning_again.list_row_log

    async def unavailable(resources: Any) -> Any:
        tried.append(steps(shop, model_hash, recipe))
        if len(tried) == 1:
            raise UnavailableError("The storage does not answer.")
        return await reads(resources)

    monkeypatch.setattr(learning_again, "list_row_log", unavailable)
    await work(deployment, shop, model_hash)
    assert tried == [loop(1.0, 1.0), loop(1.0, 1.0)]
    assert steps(shop, model_hash, recipe) == loop(100.0, 1.0, 2.0)


async def test_a_paused_worker_removes_no_dead_letter_of_a_rewound_model(
    deployment: Settings, shop: Workshop, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a restore rewinds the model while it learns again, its dead letters stay until it is done."""
    model_hash = await shop.make(recipe)
    await send(shop, model_hash, 1.0)
    await work(deployment, shop, model_hash)
    version = (await save(shop.resources, model_hash) or {})["version"]
    await send(shop, model_hash, -2.0, 3.0)
    await work(deployment, shop, model_hash)
    await send(shop, model_hash, dump_local(NEW, UPLOAD_KEYS))
    applied, rewound = learning_again.apply, []

    async def rewind_meanwhile(*args: Any) -> Any:
        replayed = await applied(*args)
        if not rewound:
            async with workshop(deployment) as other:
                restorer = Restorer(other.resources, other.settings)
                rewound.append(await restorer.restore_or_rewind(model_hash, RestoreRequest(version=version)))
                restorer.close()
        return replayed

    monkeypatch.setattr(learning_again, "apply", rewind_meanwhile)
    await work(deployment, shop, model_hash)
    assert (steps(shop, model_hash, recipe), dead(shop, model_hash)) == (loop(100.0, 1.0), 1)
    assert await retry(shop, model_hash) == 1
    await work(deployment, shop, model_hash)
    assert steps(shop, model_hash, recipe) == loop(100.0, 1.0, -2.0)

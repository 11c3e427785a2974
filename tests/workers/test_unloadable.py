"""Bundles whose loading kills workers, in one worker process: they are not loaded, and nothing of the model is lost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from keepfit.backends import redis_keys, redis_scripts
from keepfit.jobs import messages
from keepfit.jobs.messages import WorkerRequest
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store.commit import Harm
from keepfit.store.unloadable import DEATHS_MAX, RETRY_S
from keepfit_workers import bundle_cache, restoring, sweep
from keepfit_workers.activity import LOAD, RESTORE, Doing
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from keepfit_workers.predicting import answer_all
from tests.factories import SHOES, Workshop, claimed_entry, workshop

TTL_S = 6.0


class Killed(BaseException):
    """Stands for the death of a worker: no handler catches it."""


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def died(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> list[Doing]:
    """Kill every worker that unpickles a bundle; return what each did then, as its supervisor reads it."""
    found: list[Doing] = []

    def kill(*_: Any) -> Any:
        found.append(context.activity.read())
        raise Killed

    monkeypatch.setattr(bundle_cache.serialization, "unseal", kill)
    return found


async def predict(context: WorkerContext, shop: Workshop, model_hash: str) -> Any:
    """Ask one question; return its reply."""
    model = await shop.model(model_hash)
    rows = shape(model.recipe, SHOES, learning=False)
    entry = messages.encode(WorkerRequest(1, "g", model_hash, "predict", model.generation, rows))
    redis_scripts.run(context.queue, *await asyncio.to_thread(answer_all, context, [claimed_entry(entry)]))
    (batch,) = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    context.queue.delete(redis_keys.replies("g"))
    (reply,) = messages.decode_replies(batch)
    return reply


async def test_a_bundle_that_kills_its_workers_is_not_loaded_again(
    shop: Workshop, context: WorkerContext, died: list[Doing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three deaths its rows wait, its questions get an error at once, and another generation is loaded again."""
    model_hash = await shop.learned()
    await shop.accept(model_hash)
    with structlog.testing.capture_logs() as logged:
        for number in range(DEATHS_MAX):
            with pytest.raises(Killed):
                learn(context, model_hash, f"lease {number}")
            assert (died[-1].step, died[-1].model, died[-1].locked) == (LOAD, model_hash, model_hash)
            sweep.reap(shop.redis, context.queue, sweep.Death(f"worker {number}", Harm.DEATH, died[-1]), TTL_S)
    assert [entry["hash"] for entry in logged if entry["event"] == "bundle_unloadable"] == [model_hash]
    with structlog.testing.capture_logs() as logged:
        assert not learn(context, model_hash, "lease")
        reply = await predict(context, shop, model_hash)
        assert (reply.error[0], "tried again in" in reply.error[1]) == ("UnloadableError", True)
        assert (await predict(context, shop, model_hash)).error == reply.error
    assert [entry["event"] for entry in logged] == ["bundle_unreadable"]
    with monkeypatch.context() as patch:
        # Not even its requests are read again.
        patch.setattr(context.consumer, "claim", None)
        assert not learn(context, model_hash, "lease")
    assert len(died) == DEATHS_MAX
    state = shop.redis.hgetall(redis_keys.state(model_hash))
    assert (state[b"accepted"], state[b"learned"], state[b"attempts"]) == (b"2", b"1", b"0")
    assert not shop.redis.exists(redis_keys.lock(model_hash), redis_keys.dead(model_hash))

    monkeypatch.undo()
    shop.redis.hset(redis_keys.state(model_hash), "generation", 2)
    assert not learn(context, model_hash, "lease")
    assert (await shop.model(model_hash)).rows_seen == 2 * len(SHOES)


async def test_an_unloadable_bundle_is_tried_again_after_a_while(
    shop: Workshop, context: WorkerContext, died: list[Doing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single load that hung marks the bundle; once the mark has ended, a worker that knew it loads the bundle."""
    model_hash = await shop.learned()
    await shop.accept(model_hash)
    with pytest.raises(Killed):
        learn(context, model_hash, "lease")
    sweep.reap(shop.redis, context.queue, sweep.Death("worker", Harm.TIME, died[-1]), TTL_S)
    assert not learn(context, model_hash, "next")
    monkeypatch.undo()
    assert (await predict(context, shop, model_hash)).error[0] == "UnloadableError"
    shop.redis.delete(redis_keys.UNLOADABLE)
    now_s = bundle_cache.time.monotonic()
    monkeypatch.setattr(bundle_cache.time, "monotonic", lambda: now_s + RETRY_S)
    assert (await predict(context, shop, model_hash)).error is None
    assert not learn(context, model_hash, "last")
    assert (await shop.model(model_hash)).inbox == 0


async def test_a_bundle_whose_repair_kills_its_workers_is_not_repaired_again(
    shop: Workshop, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deaths in the repair of a damaged bundle count like those in loading it, whether rows or questions wait."""
    model_hash = await shop.learned()
    await shop.accept(model_hash)
    shop.redis.delete(redis_keys.bundle(model_hash))
    died: list[Doing] = []

    async def kill(*_: Any) -> None:
        died.append(context.activity.read())
        raise Killed

    monkeypatch.setattr(restoring.repairs, "repair", kill)
    for number in range(DEATHS_MAX):
        work = predict(context, shop, model_hash) if number == 1 else asyncio.to_thread(learn, context, model_hash, "l")
        with pytest.raises(Killed):
            await work
        assert (died[-1].step, died[-1].model) == (RESTORE, model_hash)
        sweep.reap(shop.redis, context.queue, sweep.Death(f"worker {number}", Harm.DEATH, died[-1]), TTL_S)
    assert not await asyncio.to_thread(learn, context, model_hash, "lease")
    assert (await predict(context, shop, model_hash)).error[0] == "UnloadableError"
    assert len(died) == DEATHS_MAX
    state = shop.redis.hgetall(redis_keys.state(model_hash))
    assert (state[b"accepted"], state[b"learned"], state[b"attempts"]) == (b"2", b"1", b"0")

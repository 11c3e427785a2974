"""Bundles whose loading kills workers, in one worker process: they are not loaded, and nothing of the model is lost."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from keepfit.backends import redis_keys, redis_scripts
from keepfit.history import Document, RegistryEntry
from keepfit.jobs import messages
from keepfit.jobs.messages import RestoreOptions, WorkerRequest
from keepfit.restore import reader
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring
from keepfit.store.commit import Harm
from keepfit.store.unloadable import DEATHS_MAX, RETRY_S
from keepfit_workers import bundle_cache, resources, restoring, sweep
from keepfit_workers.activity import LOAD, RESTORE, Doing
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from keepfit_workers.predicting import answer_all
from tests.factories import SHOES, Workshop, claimed_entry

TTL_S = 6.0


class Killed(BaseException):
    """Stands for the death of a worker: no handler catches it."""


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


@dataclass
class FatalSnapshots:
    """The models whose snapshots kill the workers that load them, and what each worker did then."""

    hashes: set[str] = field(default_factory=set)
    died: list[Doing] = field(default_factory=list)


@pytest.fixture
def fatal(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> FatalSnapshots:
    """Kill every worker that loads a snapshot of certain models: none at first."""
    found, verify = FatalSnapshots(), reader.verify

    def kill(data: bytes, keyring: Keyring, registered: RegistryEntry, document: Document) -> Any:
        if registered.hash not in found.hashes:
            return verify(data, keyring, registered, document)
        found.died.append(context.activity.read())
        raise Killed

    monkeypatch.setattr(reader, "verify", kill)
    return found


async def restore(context: WorkerContext, *hashes: str, version: int | None = None) -> list[Any]:
    """Send a question to restore for each model, or to restore a version; return the errors of the replies."""
    operation: messages.Operation = "restore" if version is None else "put_back"
    options = None if version is None else RestoreOptions(version=version)
    entries = [
        claimed_entry(messages.encode(WorkerRequest(number, "g", each, operation, restore_options=options)))
        for number, each in enumerate(hashes)
    ]
    redis_scripts.run(context.queue, *await asyncio.to_thread(answer_all, context, entries))
    batches = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    context.queue.delete(redis_keys.replies("g"))
    replies = sorted((reply for batch in batches for reply in messages.decode_replies(batch)), key=lambda each: each.id)
    return [reply.error for reply in replies]


async def test_a_snapshot_that_kills_its_workers_is_not_loaded_again(
    shop: Workshop, context: WorkerContext, fatal: FatalSnapshots
) -> None:
    """After three deaths, which no question counts, a lost model gets an error that names the snapshot; others none."""
    doomed, other = await shop.learned(), await shop.learned()
    await shop.snapshotter.run_pass()
    document = await shop.registry.newest(doomed, 1)
    assert document is not None
    shop.lose(doomed)
    shop.lose(other)
    fatal.hashes.add(doomed)
    with structlog.testing.capture_logs() as logged:
        for number in range(DEATHS_MAX):
            with pytest.raises(Killed):
                await restore(context, doomed)
            death = sweep.Death(f"worker {number}", Harm.DEATH, fatal.died[-1])
            assert (death.doing.step, death.doing.model, death.doing.digest) == (LOAD, doomed, document["sha256"])
            assert death.harm_of_requests is None
            sweep.reap(shop.redis, context.queue, death, TTL_S)
    assert [entry["hash"] for entry in logged if entry["event"] == "bundle_unloadable"] == [doomed]
    error, none = await restore(context, doomed, other)
    assert (error[0], none) == ("UnloadableError", None)
    assert f"the snapshot of version 1, generation 1, of the model {doomed}; it is tried again in" in error[1]
    assert len(fatal.died) == DEATHS_MAX
    assert await shop.registry.newest(doomed, 1) == document, "it counts as damaged"

    # Named, it is tried all the same, and a death counts for the request.
    with pytest.raises(Killed):
        await restore(context, doomed, version=1)
    assert sweep.Death("worker", Harm.DEATH, fatal.died[-1]).harm_of_requests is Harm.DEATH
    fatal.hashes.clear()
    assert await restore(context, doomed, version=1) == [None]
    assert (await predict(context, shop, doomed)).error is None


async def test_a_snapshot_that_is_not_loaded_for_a_repair_counts_for_the_live_bundle(
    shop: Workshop, context: WorkerContext, fatal: FatalSnapshots
) -> None:
    """A worker that dies while it loads the snapshot of a repair was repairing the live bundle."""
    doomed = await shop.learned()
    await shop.snapshotter.run_pass()
    shop.redis.delete(redis_keys.bundle(doomed))
    fatal.hashes.add(doomed)
    with pytest.raises(Killed):
        await predict(context, shop, doomed)
    fatal.hashes.clear()
    assert (fatal.died[-1].step, fatal.died[-1].model) == (RESTORE, doomed)


async def test_a_load_shows_no_progress(
    shop: Workshop, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a snapshot is loaded, the event loop goes on, and the supervisor sees a silent call all the same."""
    monkeypatch.setattr(resources, "PROGRESS_S", 0.001)
    lost = await shop.learned()
    await shop.snapshotter.run_pass()
    shop.lose(lost)
    verify, ticks = reader.verify, []
    go_on = context.resources._guard.go_on
    monkeypatch.setattr(context.resources._guard, "go_on", lambda: (ticks.append(1), go_on()))

    def hang(*given: Any) -> Any:
        before, seen = context.activity.read(), len(ticks)
        while len(ticks) < seen + 5:
            time.sleep(0.001)
        assert context.activity.read() == before
        assert (before.step, before.progress_s) == (LOAD, 0.0)
        return verify(*given)

    monkeypatch.setattr(reader, "verify", hang)
    assert await restore(context, lost) == [None]

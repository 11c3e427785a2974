"""Idle models leave Redis when their snapshot is good, and come back with their next use; nothing accepted is lost."""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.blobs import open_storage
from keepfit.errors import SettingsError, UnavailableError
from keepfit.restore import restorer as restores
from keepfit.restore.requests import RestoreRequest
from keepfit.restore.restorer import Restorer
from keepfit.rows import shaping
from keepfit.settings import Settings
from keepfit.snapshots import idle as idle_snapshots
from keepfit.snapshots import save as saving
from keepfit.snapshots.idle import IdleRules, unload_idle
from keepfit.store import idle
from keepfit.store.dead_letters import DeadLetters
from tests.factories import SHOES, SIZES, Workshop, accept, workshop

DAY_S = 86_400
RULES = IdleRules(DAY_S, DAY_S)


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


async def age(shop: Workshop, model_hash: str, seconds: int = DAY_S) -> None:
    """Make the last use of a model lie in the past."""
    name = redis_keys.bundle(model_hash)
    client: Any = shop.store.client
    data = await client.dump(name)
    await client.execute_command("RESTORE", name, 0, data, "REPLACE", "IDLETIME", seconds)


async def saved(shop: Workshop, **metadata: Any) -> str:
    """Make a model that has learned and is saved, and whose last use was a day ago."""
    model_hash = await shop.learned(**metadata)
    assert await saving.save(shop.resources, model_hash) is not None
    await age(shop, model_hash)
    return model_hash


async def unload(shop: Workshop, rules: IdleRules = RULES) -> int:
    """Run one pass over all models, of which none fails."""
    unloaded = await unload_idle(shop.resources, rules, 0)
    assert (unloaded.cursor, unloaded.failed) == (0, {})
    return unloaded.count


async def is_live(shop: Workshop, model_hash: str) -> bool:
    """Return whether Redis has the model."""
    return await shop.store.describe(model_hash) is not None


async def keys_of(shop: Workshop, model_hash: str) -> set[str]:
    """Return the keys of a model in Redis, but for those of calls, which expire by themselves."""
    client: Any = shop.store.client
    names = {name.decode() async for name in client.scan_iter(match=f"kf:{{{model_hash}}}:*")}
    return {name for name in names if ":idem:" not in name}


async def test_an_idle_model_leaves_and_comes_back(shop: Workshop) -> None:
    """An idle model leaves Redis but for a record that expires; the next use restores it, and it learns on."""
    model_hash, used = await saved(shop), await shop.learned(brand="used")
    await saving.save(shop.resources, used)
    before, predicted = await shop.model(model_hash), await shop.predict(model_hash)
    await age(shop, model_hash)
    assert await unload(shop) == 1
    assert await is_live(shop, used)
    assert await keys_of(shop, model_hash) == {redis_keys.idle(model_hash)}
    ttl_s = await shop.store.client.ttl(redis_keys.idle(model_hash))
    assert 0 < ttl_s <= DAY_S
    restored = await restores.restore(shop.resources, model_hash)
    assert restored.document is not None
    after = await shop.model(model_hash)
    assert await shop.predict(model_hash) == predicted
    assert (after.version, after.rows_seen, after.learned, after.metrics, after.snapshot) == (
        before.version, before.rows_seen, before.learned, before.metrics, before.snapshot
    )  # fmt: skip
    assert (after.generation, after.origin) == (before.generation + 1, before.origin)
    assert redis_keys.idle(model_hash) not in await keys_of(shop, model_hash)
    await shop.learn(model_hash)
    assert (await shop.model(model_hash)).rows_seen == before.rows_seen + len(SHOES)
    # It leaves again, with what it has learned since.
    await saving.save(shop.resources, model_hash)
    await age(shop, model_hash)
    assert await unload(shop) == 1
    await restores.restore(shop.resources, model_hash)
    assert (await shop.model(model_hash)).rows_seen == before.rows_seen + len(SHOES)


async def pending(shop: Workshop, model_hash: str) -> None:
    """Accept a request."""
    await shop.accept(model_hash)


async def unsaved(shop: Workshop, model_hash: str) -> None:
    """Learn more than the snapshot has."""
    await shop.learn(model_hash)
    await age(shop, model_hash)


async def locked(shop: Workshop, model_hash: str) -> None:
    """Let a worker hold the lock."""
    await shop.store.client.set(redis_keys.lock(model_hash), "lease")


async def dead_letter(shop: Workshop, model_hash: str) -> None:
    """Put a request aside, and save the model after it."""
    await shop.store.client.xadd(redis_keys.dead(model_hash), {"reason": "no"}, id="1-9")


async def predicted(shop: Workshop, model_hash: str) -> None:
    """Predict, as a worker that has the bundle in memory."""
    shop.consumer.load({model_hash: (await shop.model(model_hash)).digest})


async def cached(shop: Workshop, model_hash: str) -> None:
    """Predict from the cache of a gateway, which notes it."""
    await redis_scripts.run_async(shop.store.client, *idle.touch([model_hash]))


async def marked(shop: Workshop, model_hash: str) -> None:
    """Let a worker begin a commit."""
    await shop.store.mark_changed(model_hash, 1, 2)


async def deleted(shop: Workshop, model_hash: str) -> None:
    """Delete the model from the registry: its deletion from Redis follows."""
    await shop.registry.unregister(model_hash)


BUSY: list[Callable[[Workshop, str], Awaitable[None]]] = [
    pending, unsaved, locked, dead_letter, predicted, cached, marked, deleted,
]  # fmt: skip


@pytest.mark.parametrize("happens", BUSY, ids=lambda happens: happens.__name__)
async def test_a_model_in_use_stays(shop: Workshop, happens: Callable[[Workshop, str], Awaitable[None]]) -> None:
    """A model stays that was used, has requests or dead letters, is locked, or is not saved as it is."""
    model_hash = await saved(shop)
    await happens(shop, model_hash)
    assert await unload(shop) == 0
    assert await is_live(shop, model_hash)


@pytest.mark.parametrize("happens", [pending, unsaved, locked, dead_letter, predicted, cached])
async def test_what_happens_after_the_check_keeps_the_model(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Workshop, str], Awaitable[None]]
) -> None:
    """The script compares again: what happens between the check of the snapshot and the deletion keeps the model."""
    model_hash, script = await saved(shop), idle.unload

    async def late(*args: Any) -> bool:
        await happens(shop, model_hash)
        return await script(*args)

    monkeypatch.setattr(idle, "unload", late)
    assert await unload(shop) == 0
    assert await is_live(shop, model_hash)
    assert redis_keys.idle(model_hash) not in await keys_of(shop, model_hash)


async def test_two_snapshotters_and_a_restore_in_between(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshotter that is paused before the script does not delete the model that came back meanwhile."""
    model_hash, script = await saved(shop), idle.unload

    async def overtaken(*args: Any) -> bool:
        assert await script(*args)
        await restores.restore(shop.resources, model_hash)
        await age(shop, model_hash)
        return await script(*args)

    monkeypatch.setattr(idle, "unload", overtaken)
    assert await unload(shop) == 0
    assert await is_live(shop, model_hash)


async def test_a_paused_restore_does_not_bring_back_an_older_state(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a restore is paused, the model comes back, learns and leaves: the restore begins again and finds it all."""
    model_hash = await saved(shop)
    assert await unload(shop) == 1
    restorer, install, rows = Restorer(shop.resources), shop.store.install, 0

    async def paused(new: Any) -> bool:
        nonlocal rows
        monkeypatch.undo()
        await restores.restore(shop.resources, model_hash)
        await shop.learn(model_hash)
        rows = (await shop.model(model_hash)).rows_seen
        assert await saving.save(shop.resources, model_hash) is not None
        await age(shop, model_hash)
        assert await unload(shop) == 1
        return await install(new)

    monkeypatch.setattr(type(shop.store), "install", lambda _, new: paused(new))
    registered = await shop.registry.find(model_hash)
    assert registered is not None
    newest = await shop.registry.newest(model_hash, registered.born)
    try:
        await restorer.restore(registered, preferred=newest)
    finally:
        restorer.close()
    assert (await shop.model(model_hash)).rows_seen == rows == 2 * len(SHOES)


async def test_a_restore_that_was_planned_before_finds_the_newest_snapshot(shop: Workshop) -> None:
    """A restore whose snapshot was chosen before the model learned and left again does not use that snapshot."""
    model_hash = await saved(shop)
    registered = await shop.registry.find(model_hash)
    assert registered is not None
    chosen = await shop.registry.newest(model_hash, registered.born)
    await shop.learn(model_hash)
    assert await saving.save(shop.resources, model_hash) is not None
    await age(shop, model_hash)
    assert await unload(shop) == 1
    restorer = Restorer(shop.resources)
    try:
        await restorer.restore(registered, preferred=chosen)
    finally:
        restorer.close()
    assert (await shop.model(model_hash)).rows_seen == 2 * len(SHOES)


async def test_a_repeated_call_is_recognized_after_the_model_was_away(shop: Workshop) -> None:
    """An Idempotency-Key from before the model left still stands for its call, however often the model left."""
    model_hash = await shop.make()
    rows = shaping.shape((await shop.model(model_hash)).recipe, SHOES, SIZES, learning=True)
    first = await accept(shop.store, await shop.model(model_hash), rows, "c:mine")
    shop.work(model_hash)
    await saving.save(shop.resources, model_hash)
    for _ in range(2):
        await age(shop, model_hash)
        assert await unload(shop) == 1
        await restores.restore(shop.resources, model_hash)
        again = await accept(shop.store, await shop.model(model_hash), rows, "c:mine")
        assert again.sequence == first.sequence
        model = await shop.model(model_hash)
        assert (model.inbox, model.rows_seen) == (0, len(SHOES))


async def test_removed_dead_letters_stay_known(shop: Workshop) -> None:
    """That a dead letter was once discarded is known after the model was away: its request was not learned."""
    model_hash = await saved(shop)
    await shop.store.client.hset(redis_keys.state(model_hash), "removed", "1")
    assert await unload(shop) == 1
    await restores.restore(shop.resources, model_hash)
    model = await shop.model(model_hash)
    assert await DeadLetters(shop.store.client).find_reason(model_hash, model.generation, 1) == (None, True)


async def test_an_older_snapshot_begins_its_own_sequences(shop: Workshop) -> None:
    """An older snapshot of an idle model, restored on request, has not learned the later calls: they are unknown."""
    model_hash = await saved(shop)
    rows = shaping.shape((await shop.model(model_hash)).recipe, SHOES, SIZES, learning=True)
    await accept(shop.store, await shop.model(model_hash), rows, "c:mine")
    shop.work(model_hash)
    await saving.save(shop.resources, model_hash)
    await age(shop, model_hash)
    assert await unload(shop) == 1
    restorer, registered = Restorer(shop.resources), await shop.registry.find(model_hash)
    assert registered is not None
    try:
        await restorer.restore(registered, RestoreRequest(version=1))
    finally:
        restorer.close()
    await accept(shop.store, await shop.model(model_hash), rows, "c:mine")
    assert (await shop.model(model_hash)).inbox == 1


async def test_a_missing_blob_keeps_the_model_and_is_replaced(shop: Workshop) -> None:
    """If the snapshot is not in the storage the model stays, and the next pass saves it again."""
    model_hash = await saved(shop)
    document = (await shop.registry.documents())[0]
    shop.storage.put(saving.path_of(document), b"damaged")
    with capture_logs() as logs:
        assert await unload(shop) == 0
    assert [(line["event"], line["hash"]) for line in logs] == [("snapshot_corrupt", model_hash)]
    assert await shop.store.changed() == [model_hash]
    assert await saving.save(shop.resources, model_hash) is not None
    await age(shop, model_hash)
    assert await unload(shop) == 1


async def test_without_a_storage_or_a_registry_nothing_leaves(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the storage or MongoDB is unavailable no model leaves, and no snapshot is marked as damaged."""
    model_hash = await saved(shop)

    def unavailable(*_: Any) -> Any:
        raise UnavailableError("away")

    for owner, name in ((type(shop.storage), "digest"), (type(shop.registry), "newest")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, unavailable)
            unloaded = await unload_idle(shop.resources, RULES, 0)
            assert (unloaded.count, str(unloaded.failed[model_hash])) == (0, "away")
    assert await is_live(shop, model_hash)
    assert len(await shop.registry.documents()) == 1


async def unreadable_state(shop: Workshop, _: pytest.MonkeyPatch, model_hash: str) -> None:
    """Give the model a recipe that this release cannot read: it is not needed."""
    await shop.store.client.hset(redis_keys.state(model_hash), "recipe", "{}")


async def unreadable_key(shop: Workshop, _: pytest.MonkeyPatch, model_hash: str) -> None:
    """Replace the inbox by a key of another type, which every command refuses."""
    await shop.store.client.set(redis_keys.inbox(model_hash), "no stream")


async def unreadable_blob(shop: Workshop, patch: pytest.MonkeyPatch, model_hash: str) -> None:
    """Let reading its blob fail."""
    digest = type(shop.storage).digest

    def fails(storage: Any, path: str) -> str | None:
        if path.startswith(model_hash):
            raise RuntimeError("a fault of the disk")
        return digest(storage, path)

    patch.setattr(type(shop.storage), "digest", fails)


@pytest.mark.parametrize(
    ("happens", "leave", "failed"),
    [(unreadable_state, 3, []), (unreadable_key, 2, []), (unreadable_blob, 2, ["a fault of the disk"])],
)
async def test_a_failure_of_one_model_does_not_keep_the_others(
    shop: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Workshop, pytest.MonkeyPatch, str], Awaitable[None]],
    leave: int,
    failed: list[str],
) -> None:
    """Whatever cannot be read of one model, the others leave in the same pass, and the next pass begins after them."""
    hashes = [await saved(shop, number=number) for number in range(3)]
    await happens(shop, monkeypatch, hashes[1])
    unloaded = await unload_idle(shop.resources, RULES, 0)
    assert (unloaded.count, unloaded.cursor) == (leave, 0)
    assert [str(error) for error in unloaded.failed.values()] == failed
    assert [await is_live(shop, each) for each in hashes] == [False, leave == 2, False]


async def test_an_outage_ends_the_pass(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After failures in a row the storage counts as unavailable: the other models are not tried."""
    for number in range(3):
        await saved(shop, number=number)
    monkeypatch.setattr(idle_snapshots, "AT_ONCE", 1)
    monkeypatch.setattr(idle_snapshots, "UNAVAILABLE_COUNT", 2)
    tried = []

    def unavailable(_: Any, path: str) -> str:
        tried.append(path)
        raise UnavailableError("away")

    monkeypatch.setattr(type(shop.storage), "digest", unavailable)
    unloaded = await unload_idle(shop.resources, RULES, 0)
    assert (unloaded.count, len(unloaded.failed), len(tried)) == (0, 2, 2)


async def test_a_snapshot_in_another_storage_keeps_the_model(shop: Workshop, tmp_path: Path) -> None:
    """A model whose snapshot is in another storage than that of the settings stays, and its snapshot is not marked."""
    model_hash = await saved(shop)
    moved = dataclasses.replace(shop.resources, storage=open_storage(tmp_path.as_uri()))
    unloaded = await unload_idle(moved, RULES, 0)
    assert unloaded.count == 0
    assert f"{tmp_path.as_uri()} does not have it" in str(unloaded.failed[model_hash])
    assert await is_live(shop, model_hash)
    assert len(await shop.registry.documents()) == 1


async def test_a_pass_continues_where_the_one_before_ended(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that look at a part of the keys each look at all of them, one after the other."""
    for number in range(3):
        await saved(shop, number=number)
    await shop.store.client.mset({f"another key {number}": "" for number in range(100)})
    monkeypatch.setattr(idle, "SCAN_COUNT", 1)
    monkeypatch.setattr(idle_snapshots, "LOOKED_AT_MAX", 1)
    passes = [await unload_idle(shop.resources, RULES, 0)]
    while passes[-1].cursor:
        passes.append(await unload_idle(shop.resources, RULES, passes[-1].cursor))
    assert len(passes) > 1
    assert sum(each.count for each in passes) == 3


async def test_a_new_model_under_the_same_hash_is_not_held_up(shop: Workshop) -> None:
    """After an idle model was deleted, the record that it left does not refuse a new one, which knows no old call."""
    model_hash = await saved(shop, session="same")
    assert await unload(shop) == 1
    await shop.registry.unregister(model_hash)
    assert await shop.make(session="same") == model_hash
    model = await shop.model(model_hash)
    assert (model.rows_seen, model.origin) == (0, model.generation)


async def test_0_means_never_and_passes_continue(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 0 nothing leaves; a pass deletes a bounded number, and the next one the others."""
    for number in range(3):
        await saved(shop, number=number)
    assert await unload(shop, IdleRules(0)) == 0
    monkeypatch.setattr(idle_snapshots, "UNLOADED_MAX", 2)
    assert [await unload(shop) for _ in range(3)] == [2, 1, 0]


async def test_a_redis_that_does_not_count_uses_is_reported(shop: Workshop) -> None:
    """With an LFU policy Redis does not know the last use: nothing leaves, and the error says why."""
    await saved(shop)
    client: Any = shop.store.client
    await client.config_set("maxmemory-policy", "allkeys-lfu")
    try:
        with pytest.raises(SettingsError, match=r"LFU.* Set its maxmemory-policy to noeviction"):
            await unload(shop)
    finally:
        await client.config_set("maxmemory-policy", "noeviction")

"""Repair of live bundles that are damaged or gone, from a snapshot and the retained requests."""

import io
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import MissingRequestsError, NotConfirmedError
from keepfit.model.serialization import unseal
from keepfit.recipe.recipe import from_text
from keepfit.restore import replay_source
from keepfit.restore.bulk import ModelFilter, restore_many
from keepfit.restore.repair import RepairResult, repair
from keepfit.restore.requests import RestoreRequest
from keepfit.restore.restorer import Restorer
from keepfit.rows.shaping import shape
from keepfit.security.envelope import BUNDLE, digest_of
from keepfit.settings import Settings
from keepfit.snapshots import save as saving
from keepfit.store import inbox
from keepfit.store.commit import InboxConsumer
from keepfit.store.inbox import Accepted
from keepfit.store.models import Model
from tests.factories import SHOES, Workshop, commit_bundle, workshop

Harm = Callable[[bytes], bytes | None]


def flip(place: int) -> Harm:
    """Flip one bit of the byte at `place`."""
    return lambda data: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :] if place != -1 else data[:-1] + b"?"


# Damage to every part of an envelope (see keepfit.security.envelope), and other states of the key.
HARMS: dict[str, Harm] = {
    "gone": lambda data: None,
    "empty": lambda data: b"",
    "magic": flip(1),
    "format": flip(4),
    "length of the key's id": flip(5),
    "id of the key": flip(7),
    "signature": flip(20),
    "length of the header": flip(45),
    "header": flip(80),
    "payload": flip(-9),
    "last byte": flip(-1),
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
}


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def restorer(shop: Workshop) -> Iterator[Restorer]:
    """Return a restorer without a row log."""
    opened = Restorer(shop.resources)
    yield opened
    opened.close()


def content(shop: Workshop, model: Model) -> bytes:
    """Return the content of a live bundle, to the bit: pickled without the memo of shared objects."""
    bundle = unseal(shop.data(model.hash), shop.keyring, model.recipe, model.hash)[1]
    written = io.BytesIO()
    pickler = pickle.Pickler(written)
    pickler.fast = True
    pickler.dump((bundle.columns, bundle.labels, bundle.estimator, bundle.prequential, bundle.waiting, bundle.changed))
    return written.getvalue()


def harm(shop: Workshop, model_hash: str, how: Harm) -> None:
    """Damage the live bundle."""
    left = how(shop.data(model_hash))
    if left is None:
        shop.redis.delete(redis_keys.bundle(model_hash))
    else:
        shop.redis.set(redis_keys.bundle(model_hash), left)


async def save(shop: Workshop, model_hash: str) -> None:
    """Save a model."""
    assert await saving.save(shop.resources, model_hash)


async def put_aside(shop: Workshop, model_hash: str) -> None:
    """Accept a request and put it aside as a dead letter."""
    await shop.accept(model_hash)
    taken = shop.consumer.claim(model_hash, "t", "")
    assert taken is not None
    bundle = unseal(taken.data, shop.keyring, from_text(taken.recipe_text), model_hash)[1]
    assert (
        commit_bundle(shop.consumer, shop.keyring, taken, bundle, len(taken.entries), "t", "ValueError: no").version > 0
    )


async def change(shop: Workshop, model_hash: str, **params: Any) -> None:
    """Accept a change of parameters."""
    connection = ScriptConnection(shop.store._store)
    generation = (await shop.model(model_hash)).generation
    (outcome,), _ = await inbox.accept(connection, shop.settings, [inbox.make_change(model_hash, generation, params)])
    await connection.close()
    assert isinstance(outcome, Accepted)


async def learned_since_snapshot(shop: Workshop) -> str:
    """Create a model that has learned much since its snapshot and has a pending request."""
    model_hash = await shop.learned()
    await save(shop, model_hash)
    await shop.learn(model_hash)
    await change(shop, model_hash, C=0.25)
    await shop.learn(model_hash, [["vans", 1990]], [7.0])
    await put_aside(shop, model_hash)
    await shop.learn(model_hash, SHOES * 10_000, [1.0, 2.0, 3.0] * 10_000)
    await shop.learn(model_hash)
    await shop.accept(model_hash, [["puma", 1999]], [2.0])
    return model_hash


async def test_a_damaged_bundle_is_repaired(shop: Workshop, restorer: Restorer) -> None:
    """Requests learned since the snapshot are learned again, to the bit, and pending ones are learned after them."""
    model_hash = await learned_since_snapshot(shop)
    before = await shop.model(model_hash)
    was, snapshot = content(shop, before), await shop.registry.newest(model_hash, 0)
    assert await repair(restorer, model_hash) is None
    harm(shop, model_hash, HARMS["payload"])
    assert await repair(restorer, model_hash) == RepairResult(snapshot, 5, 7, saved=True)
    after = await shop.model(model_hash)
    assert content(shop, after) == was
    same = ("version", "rows_seen", "learned", "inbox", "metrics", "changed", "origin")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    assert after.generation > before.generation
    assert shop.redis.xlen(redis_keys.dead(model_hash)) == 1
    # Saved at once: no request is retained any more.
    assert (after.retained.cut, after.retained.large) == (after.learned, ())
    shop.work(model_hash)
    assert (await shop.model(model_hash)).rows_seen == before.rows_seen + 1


async def test_damage_anywhere_in_a_bundle_is_repaired(shop: Workshop, restorer: Restorer) -> None:
    """One flipped bit in any part of the envelope, a truncated or a missing bundle: each is found and repaired."""
    model_hash = await shop.learned()
    for name, how in HARMS.items():
        await shop.learn(model_hash)
        was = content(shop, await shop.model(model_hash))
        harm(shop, model_hash, how)
        done = await repair(restorer, model_hash)
        assert done is not None, name
        # The first replay starts from the recipe.
        assert done.requests == (1 if done.document else 2)
        assert content(shop, await shop.model(model_hash)) == was, name


async def test_without_a_snapshot_all_requests_are_replayed(shop: Workshop, restorer: Restorer) -> None:
    """Without a snapshot the replay starts from the recipe, also for a model that was deleted and created again."""
    model_hash = await shop.learned(session="a")
    await shop.registry.unregister(model_hash)
    await shop.store.delete(model_hash)
    assert await shop.make(session="a") == model_hash
    await shop.learn(model_hash, [["nike", 2000]], [2.0])
    was = content(shop, await shop.model(model_hash))
    harm(shop, model_hash, HARMS["gone"])
    assert await repair(restorer, model_hash) is not None
    assert content(shop, await shop.model(model_hash)) == was


async def test_a_rewound_model_is_repaired_from_the_rewound_state(shop: Workshop, restorer: Restorer) -> None:
    """Forgotten requests stay forgotten; requests learned since are replayed, whether the rewind was saved or not."""
    model_hash = await shop.learned()
    await save(shop, model_hash)
    await shop.learn(model_hash, [["forgotten", 1900]], [9.0])
    await save(shop, model_hash)
    await shop.learn(model_hash, [["forgotten", 1901]], [9.0])
    registered = await shop.registry.find(model_hash)
    assert registered is not None
    live = await shop.model(model_hash)
    # What Restorer.rewind does, interrupted before the save.
    source = await replay_source.read_source(restorer.reader, registered, RestoreRequest(version=1))
    await restorer.replace_live(registered, live, source, follow=False)
    for _ in range(2):
        await shop.learn(model_hash)
        was = content(shop, await shop.model(model_hash))
        harm(shop, model_hash, HARMS["payload"])
        assert await repair(restorer, model_hash) is not None
        assert content(shop, await shop.model(model_hash)) == was


async def test_a_restored_model_is_repaired(shop: Workshop, restorer: Restorer) -> None:
    """After a loss of Redis requests are retained on top of the restored snapshot, whose document is older."""
    model_hash = await shop.learned()
    await save(shop, model_hash)
    shop.lose(model_hash)
    registered = await shop.registry.find(model_hash)
    assert registered is not None
    await restorer.restore(registered)
    await shop.learn(model_hash)
    was = content(shop, await shop.model(model_hash))
    harm(shop, model_hash, HARMS["gone"])
    assert await repair(restorer, model_hash) is not None
    assert content(shop, await shop.model(model_hash)) == was


async def test_the_row_log_continues_after_a_repair(settings: Settings, tmp_path: Path) -> None:
    """A repair and rows accepted since survive a loss of Redis: the row log continues after the repair."""
    logged = settings.model_copy(update={"row_log_url": (tmp_path / "rows").as_uri()})
    async with workshop(logged) as shop:
        row_log = shop.resources.row_log
        restorer = Restorer(shop.resources, logged)

        async def send(size: float) -> None:
            model, connection = await shop.model(model_hash), ScriptConnection(shop.store.client)
            rows = shape(model.recipe, [["nike", 2000]], [size], learning=True)
            asked = await inbox.make_request(shop.store.client, model_hash, model.generation, rows, logged=True)
            _, _, calls = await inbox.accept_logged(connection, logged, [asked])
            await connection.close()
            assert row_log is not None
            row_log.write([call for call, _ in calls])

        model_hash = await shop.make()
        await send(1.0)
        shop.work(model_hash)
        await save(shop, model_hash)
        await send(2.0)
        shop.work(model_hash)
        # One request is accepted before the repair and learned after it, one is accepted after it.
        await send(3.0)
        harm(shop, model_hash, HARMS["gone"])
        assert await repair(restorer, model_hash) is not None
        await send(4.0)
        shop.work(model_hash)
        was = content(shop, await shop.model(model_hash))
        shop.lose(model_hash)
        registered = await shop.registry.find(model_hash)
        assert registered is not None
        assert (await restorer.restore(registered)).replayed == 2
        assert content(shop, await shop.model(model_hash)) == was
        # Redis does not retain it, the row log has it.
        await send(5.0)
        with_retention(shop, 0).work(model_hash)
        await send(6.0)
        was = content(shop, await shop.model(model_hash))
        harm(shop, model_hash, HARMS["gone"])
        with pytest.raises(MissingRequestsError, match="`--at now` all logged requests"):
            await repair(restorer, model_hash)
        (went,) = await restore_many(
            logged, ModelFilter(hash=model_hash), RestoreRequest(at=time.time()), confirm=bool, follow=True
        )
        assert went.outcome == "rewound, 1 logged rows learned again"
        after = await shop.model(model_hash)
        assert (content(shop, after), after.inbox) == (was, 1)
        restorer.close()


def with_retention(shop: Workshop, replay_bytes_max: int) -> Workshop:
    """Return a workshop whose worker retains so many bytes of requests."""
    settings = shop.settings
    return replace(shop, consumer=InboxConsumer(shop.redis, settings.lease_ttl_s, replay_bytes_max))


async def test_missing_requests_are_named_and_no_model_is_rewound_unconfirmed(
    shop: Workshop, restorer: Restorer
) -> None:
    """If the bound dropped requests the error names their sequences; only a named version or --force rewinds."""
    model_hash = await shop.learned()
    await save(shop, model_hash)
    few = with_retention(shop, 0)
    for _ in range(3):
        await few.learn(model_hash)
    await shop.accept(model_hash)
    harm(shop, model_hash, HARMS["payload"])
    broken, before = shop.redis.get(redis_keys.bundle(model_hash)), await shop.model(model_hash)
    with pytest.raises(MissingRequestsError, match="requests 2 to 4 are not retained after the last snapshot"):
        await repair(restorer, model_hash)
    with pytest.raises(NotConfirmedError):
        await restorer.restore_or_rewind(model_hash, RestoreRequest())
    meant = ModelFilter(hash=model_hash)
    (planned,) = await restore_many(shop.settings, meant, dry_run=True)
    (failed,) = await restore_many(shop.settings, meant)
    assert (planned.failed, failed.failed) == (False, True)
    assert "would be repaired" in planned.outcome
    assert "requests 2 to 4" in failed.outcome
    assert "--force" in failed.outcome
    assert await shop.model(model_hash) == before
    assert shop.redis.get(redis_keys.bundle(model_hash)) == broken
    (forced,) = await restore_many(shop.settings, meant, follow=True)
    assert (forced.outcome, forced.failed) == ("rewound", False)
    after = await shop.model(model_hash)
    assert (after.rows_seen, after.learned, after.inbox) == (3, 4, 1)
    await shop.predict(model_hash)


async def test_the_restore_command_repairs_damaged_models(shop: Workshop) -> None:
    """`keepfit restore` checks live bundles too, repairs damaged ones and leaves intact ones alone."""
    intact, damaged = await shop.learned(), await shop.learned()
    await save(shop, damaged)
    await shop.learn(damaged)
    was = content(shop, await shop.model(damaged))
    harm(shop, damaged, HARMS["gone"])
    outcomes = {each.registered.hash: each.outcome for each in await restore_many(shop.settings, ModelFilter())}
    assert outcomes == {intact: "kept: it is live", damaged: "repaired: 1 requests learned again, none forgotten"}
    assert content(shop, await shop.model(damaged)) == was


async def test_a_damaged_snapshot_prevents_a_repair(shop: Workshop, restorer: Restorer) -> None:
    """If the snapshot is damaged too, the error says so: retained requests fit no other snapshot."""
    model_hash = await shop.learned()
    await save(shop, model_hash)
    await shop.learn(model_hash)
    await save(shop, model_hash)
    await shop.learn(model_hash)
    newest = await shop.registry.newest(model_hash, 0)
    assert newest is not None
    shop.storage.put(saving.path_of(newest), b"damaged")
    harm(shop, model_hash, HARMS["gone"])
    with pytest.raises(MissingRequestsError, match="the snapshot of version 2 is damaged too"):
        await repair(restorer, model_hash)
    await shop.registry.mark_corrupt(newest)
    with pytest.raises(MissingRequestsError, match="the snapshot of version 2 does not exist"):
        await repair(restorer, model_hash)


async def test_deleted_retained_requests_are_detected(shop: Workshop, restorer: Restorer) -> None:
    """A deleted stream or deleted large rows are an error, not a model without retained requests."""
    model_hash = await learned_since_snapshot(shop)
    harm(shop, model_hash, HARMS["gone"])
    stream = shop.redis.dump(redis_keys.inbox(model_hash))
    ((_, big),) = (await shop.model(model_hash)).retained.large
    shop.redis.delete(redis_keys.inbox(model_hash))
    with pytest.raises(MissingRequestsError, match=r"some of the requests retained since request .* are gone"):
        await repair(restorer, model_hash)
    shop.redis.restore(redis_keys.inbox(model_hash), 0, stream)  # type: ignore[arg-type]
    shop.redis.delete(big)
    with pytest.raises(MissingRequestsError, match=r"some of the requests retained since request .* are gone"):
        await repair(restorer, model_hash)


async def test_an_intact_bundle_is_left_alone(shop: Workshop, restorer: Restorer) -> None:
    """A bundle as it was committed is intact, even if this process cannot load it; so is a new or deleted model."""
    learned, new = await shop.learned(), await shop.make()
    header, payload = shop.keyring.open(shop.data(learned), BUNDLE)
    other = msgspec.structs.replace(header, runtime={"python": "2.7"})
    data = shop.keyring.seal(other, payload)
    shop.redis.set(redis_keys.bundle(learned), data)
    shop.redis.hset(redis_keys.state(learned), "digest", digest_of(data))
    for model_hash in (learned, new, "0" * 64):
        assert await repair(restorer, model_hash) is None
    assert shop.data(learned) == data

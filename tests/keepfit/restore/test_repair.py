"""Live bundles that are damaged or gone: made again from a snapshot and what Redis keeps, or said why not."""

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
from keepfit.restore.bulk import Meant, restore_many
from keepfit.restore.repair import Repaired, repair
from keepfit.restore.restorer import Restorer, RestoreRequest
from keepfit.rows.shaping import shape
from keepfit.security.envelope import BUNDLE, digest_of
from keepfit.settings import Settings
from keepfit.snapshots import save as saving
from keepfit.store import inbox
from keepfit.store.commit import InboxConsumer
from keepfit.store.inbox import Accepted
from keepfit.store.models import Model
from tests.factories import SHOES, Workshop, workshop

Harm = Callable[[bytes], bytes | None]


def flip(place: int) -> Harm:
    """Turn one bit of the byte at `place`."""
    return lambda data: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :] if place != -1 else data[:-1] + b"?"


# Every part of an envelope (docs of keepfit.security.envelope), and what else may become of a key.
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
    """Open a workshop on servers of the test's own."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def restorer(shop: Workshop) -> Iterator[Restorer]:
    """Return what restores and repairs need."""
    opened = Restorer(shop.resources)
    yield opened
    opened.close()


def content(shop: Workshop, model: Model) -> bytes:
    """What a live bundle holds, to the bit: pickled without a note of what is one object in two places."""
    bundle = unseal(shop.data(model.hash), shop.keyring, model.recipe, model.hash)[1]
    written = io.BytesIO()
    pickler = pickle.Pickler(written)
    pickler.fast = True
    pickler.dump((bundle.columns, bundle.labels, bundle.estimator, bundle.running, bundle.waiting, bundle.changed))
    return written.getvalue()


def harm(shop: Workshop, model_hash: str, how: Harm) -> None:
    """Do something to the live bundle."""
    left = how(shop.data(model_hash))
    if left is None:
        shop.redis.delete(redis_keys.bundle(model_hash))
    else:
        shop.redis.set(redis_keys.bundle(model_hash), left)


async def save(shop: Workshop, model_hash: str) -> None:
    """Save a model."""
    assert await saving.save(shop.resources, model_hash)


async def put_aside(shop: Workshop, model_hash: str) -> None:
    """Accept a request and put it aside."""
    await shop.accept(model_hash)
    taken = shop.ledger.take(model_hash, "t", "")
    assert taken is not None
    bundle = unseal(taken.data, shop.keyring, from_text(taken.recipe_text), model_hash)[1]
    assert shop.ledger.commit(taken, bundle, len(taken.entries), "t", "ValueError: no").version > 0


async def change(shop: Workshop, model_hash: str, **params: Any) -> None:
    """Accept a change of parameters."""
    line = ScriptConnection(shop.store._store)
    generation = (await shop.model(model_hash)).generation
    (outcome,), _ = await inbox.put(line, shop.settings, [inbox.change(model_hash, generation, params)])
    await line.close()
    assert isinstance(outcome, Accepted)


async def taught(shop: Workshop) -> str:
    """Make a model that has learned much since its snapshot, with a request that waits."""
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


async def test_a_broken_bundle_is_made_again(shop: Workshop, restorer: Restorer) -> None:
    """All that was learned since the snapshot is learned again, to the bit, and what waits is learned after it."""
    model_hash = await taught(shop)
    before = await shop.model(model_hash)
    was, snapshot = content(shop, before), await shop.registry.newest(model_hash, 0)
    assert await repair(restorer, model_hash) is None
    harm(shop, model_hash, HARMS["payload"])
    assert await repair(restorer, model_hash) == Repaired(snapshot, 5, 7, saved=True)
    after = await shop.model(model_hash)
    assert content(shop, after) == was
    same = ("version", "rows_seen", "learned", "inbox", "metrics", "changed", "origin")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    assert after.generation > before.generation
    assert shop.redis.xlen(redis_keys.dead(model_hash)) == 1
    # Saved at once: nothing is kept any more.
    assert (after.kept.cut, after.kept.large) == (after.learned, ())
    shop.work(model_hash)
    assert (await shop.model(model_hash)).rows_seen == before.rows_seen + 1


async def test_wherever_a_bundle_is_damaged_it_is_made_again(shop: Workshop, restorer: Restorer) -> None:
    """One bit in any part of the envelope, a part of it, or nothing left: each is noticed, and put right."""
    model_hash = await shop.learned()
    for name, how in HARMS.items():
        await shop.learn(model_hash)
        was = content(shop, await shop.model(model_hash))
        harm(shop, model_hash, how)
        done = await repair(restorer, model_hash)
        assert done is not None, name
        # The first one comes on top of the recipe.
        assert done.requests == (1 if done.document else 2)
        assert content(shop, await shop.model(model_hash)) == was, name


async def test_without_a_snapshot_all_is_learned_again(shop: Workshop, restorer: Restorer) -> None:
    """What no snapshot has yet comes on top of the recipe, also in a model that was made again."""
    model_hash = await shop.learned(session="a")
    await shop.registry.unregister(model_hash)
    await shop.store.delete(model_hash)
    assert await shop.make(session="a") == model_hash
    await shop.learn(model_hash, [["nike", 2000]], [2.0])
    was = content(shop, await shop.model(model_hash))
    harm(shop, model_hash, HARMS["gone"])
    assert await repair(restorer, model_hash) is not None
    assert content(shop, await shop.model(model_hash)) == was


async def test_one_that_went_back_is_made_again_on_top_of_that(shop: Workshop, restorer: Restorer) -> None:
    """What was forgotten stays forgotten; what was learned since is learned again, saved or not when it went back."""
    model_hash = await shop.learned()
    await save(shop, model_hash)
    await shop.learn(model_hash, [["forgotten", 1900]], [9.0])
    await save(shop, model_hash)
    await shop.learn(model_hash, [["forgotten", 1901]], [9.0])
    registered = await shop.registry.find(model_hash)
    assert registered is not None
    live = await shop.model(model_hash)
    # As go_back does it, cut short before it is saved.
    past = await restorer.past(registered, RestoreRequest(version=1))
    await restorer.put_in_place(registered, live, past, follow=False)
    for _ in range(2):
        await shop.learn(model_hash)
        was = content(shop, await shop.model(model_hash))
        harm(shop, model_hash, HARMS["payload"])
        assert await repair(restorer, model_hash) is not None
        assert content(shop, await shop.model(model_hash)) == was


async def test_a_restored_model_is_made_again(shop: Workshop, restorer: Restorer) -> None:
    """After Redis was lost, what comes on top of the restored snapshot is kept, although its document is of before."""
    model_hash = await shop.learned()
    await save(shop, model_hash)
    shop.lose(model_hash)
    registered = await shop.registry.find(model_hash)
    assert registered is not None
    await restorer.bring_back(registered)
    await shop.learn(model_hash)
    was = content(shop, await shop.model(model_hash))
    harm(shop, model_hash, HARMS["gone"])
    assert await repair(restorer, model_hash) is not None
    assert content(shop, await shop.model(model_hash)) == was


async def test_a_repair_is_part_of_what_the_row_log_replays(settings: Settings, tmp_path: Path) -> None:
    """After a repair, and rows that came since, a lost Redis costs nothing: the log goes on behind it."""
    logged = settings.model_copy(update={"row_log_url": (tmp_path / "rows").as_uri()})
    async with workshop(logged) as shop:
        row_log = shop.resources.row_log
        restorer = Restorer(shop.resources, logged)

        async def teach(size: float) -> None:
            model, line = await shop.model(model_hash), ScriptConnection(shop.store.client)
            rows = shape(model.recipe, [["nike", 2000]], [size], learning=True)
            asked = await inbox.request(shop.store.client, model_hash, model.generation, rows, logged=True)
            _, _, calls = await inbox.put_to_log(line, logged, [asked])
            await line.close()
            assert row_log is not None
            row_log.write([call for call, _ in calls])

        model_hash = await shop.make()
        await teach(1.0)
        shop.work(model_hash)
        await save(shop, model_hash)
        await teach(2.0)
        shop.work(model_hash)
        # One is accepted before the repair and learned after it, one comes after it.
        await teach(3.0)
        harm(shop, model_hash, HARMS["gone"])
        assert await repair(restorer, model_hash) is not None
        await teach(4.0)
        shop.work(model_hash)
        was = content(shop, await shop.model(model_hash))
        shop.lose(model_hash)
        registered = await shop.registry.find(model_hash)
        assert registered is not None
        assert (await restorer.bring_back(registered)).replayed == 2
        assert content(shop, await shop.model(model_hash)) == was
        # What Redis does not keep is in the log.
        await teach(5.0)
        keeping(shop, 0).work(model_hash)
        await teach(6.0)
        was = content(shop, await shop.model(model_hash))
        harm(shop, model_hash, HARMS["gone"])
        with pytest.raises(MissingRequestsError, match="`--at now` to all that was logged"):
            await repair(restorer, model_hash)
        (went,) = await restore_many(
            logged, Meant(hash=model_hash), RestoreRequest(at=time.time()), agreed=bool, follow=True
        )
        assert went.outcome == "went back, 1 logged rows learned again"
        after = await shop.model(model_hash)
        assert (content(shop, after), after.inbox) == (was, 1)
        restorer.close()


def keeping(shop: Workshop, replay_bytes_max: int) -> Workshop:
    """Return a workshop that keeps so many bytes."""
    settings = shop.settings
    return replace(shop, ledger=InboxConsumer(shop.redis, shop.keyring, settings.lease_ttl_s, replay_bytes_max))


async def test_what_is_missing_is_said_and_nobody_goes_back_unasked(shop: Workshop, restorer: Restorer) -> None:
    """Where the bound let requests go, their sequences are told; only a named version or --force goes back."""
    model_hash = await shop.learned()
    await save(shop, model_hash)
    few = keeping(shop, 0)
    for _ in range(3):
        await few.learn(model_hash)
    await shop.accept(model_hash)
    harm(shop, model_hash, HARMS["payload"])
    broken, before = shop.redis.get(redis_keys.bundle(model_hash)), await shop.model(model_hash)
    with pytest.raises(MissingRequestsError, match="the requests 2 to 4 were not kept since the last snapshot"):
        await repair(restorer, model_hash)
    with pytest.raises(NotConfirmedError):
        await restorer.put_back(model_hash, RestoreRequest())
    meant = Meant(hash=model_hash)
    (planned,) = await restore_many(shop.settings, meant, dry_run=True)
    (failed,) = await restore_many(shop.settings, meant)
    assert (planned.failed, failed.failed) == (False, True)
    assert "would be repaired" in planned.outcome
    assert "the requests 2 to 4" in failed.outcome
    assert "--force" in failed.outcome
    assert await shop.model(model_hash) == before
    assert shop.redis.get(redis_keys.bundle(model_hash)) == broken
    (forced,) = await restore_many(shop.settings, meant, follow=True)
    assert (forced.outcome, forced.failed) == ("went back", False)
    after = await shop.model(model_hash)
    assert (after.rows_seen, after.learned, after.inbox) == (3, 4, 1)
    await shop.predict(model_hash)


async def test_the_command_puts_broken_models_right(shop: Workshop) -> None:
    """`keepfit restore` looks at live bundles too, and leaves those that are well alone."""
    well, broken = await shop.learned(), await shop.learned()
    await save(shop, broken)
    await shop.learn(broken)
    was = content(shop, await shop.model(broken))
    harm(shop, broken, HARMS["gone"])
    outcomes = {each.registered.hash: each.outcome for each in await restore_many(shop.settings, Meant())}
    assert outcomes == {well: "kept: it is live", broken: "repaired: 1 requests learned again, none forgotten"}
    assert content(shop, await shop.model(broken)) == was


async def test_a_damaged_snapshot_makes_no_bundle(shop: Workshop, restorer: Restorer) -> None:
    """Where the snapshot is damaged as well that is said; rows that are kept go with no other."""
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
    with pytest.raises(MissingRequestsError, match="the snapshot of version 2 is not there"):
        await repair(restorer, model_hash)


async def test_rows_that_are_gone_are_missed(shop: Workshop, restorer: Restorer) -> None:
    """A stream or large rows that somebody took away are not taken for a model that had none."""
    model_hash = await taught(shop)
    harm(shop, model_hash, HARMS["gone"])
    stream = shop.redis.dump(redis_keys.inbox(model_hash))
    ((_, big),) = (await shop.model(model_hash)).kept.large
    shop.redis.delete(redis_keys.inbox(model_hash))
    with pytest.raises(MissingRequestsError, match="some is gone too"):
        await repair(restorer, model_hash)
    shop.redis.restore(redis_keys.inbox(model_hash), 0, stream)  # type: ignore[arg-type]
    shop.redis.delete(big)
    with pytest.raises(MissingRequestsError, match="some is gone too"):
        await repair(restorer, model_hash)


async def test_a_good_bundle_is_left_alone(shop: Workshop, restorer: Restorer) -> None:
    """What is as it was committed is not broken, whoever cannot load it; nor is a model that is new or gone."""
    learned, new = await shop.learned(), await shop.make()
    header, payload = shop.keyring.open(shop.data(learned), BUNDLE)
    other = msgspec.structs.replace(header, runtime={"python": "2.7"})
    data = shop.keyring.seal(other, payload)
    shop.redis.set(redis_keys.bundle(learned), data)
    shop.redis.hset(redis_keys.state(learned), "digest", digest_of(data))
    for model_hash in (learned, new, "0" * 64):
        assert await repair(restorer, model_hash) is None
    assert shop.data(learned) == data

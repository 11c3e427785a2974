"""Bundles that no worker can load: when they are marked, for how long, and who reads the marks."""

from collections.abc import AsyncIterator

import pytest

from keepfit.backends import redis_keys
from keepfit.restore.requests import RestoreRequest
from keepfit.restore.restorer import Restorer
from keepfit.settings import Settings
from keepfit.store import listing, unloadable
from keepfit.store.unloadable import DEATHS_MAX, MARKS_MAX, RETRY_S, note_death, seconds_left
from tests.factories import Workshop, workshop

HASH = "a" * 64


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


async def test_several_deaths_of_workers_make_a_bundle_unloadable(shop: Workshop) -> None:
    """Each dead worker counts once; only that bundle is marked, and count and mark end by themselves."""
    for number in range(DEATHS_MAX):
        assert seconds_left(shop.redis, HASH, 1, "d1") == 0
        for _ in range(2):
            is_last = number == DEATHS_MAX - 1
            assert note_death(shop.redis, HASH, 1, "d1", f"worker {number}") is is_last
        assert not note_death(shop.redis, HASH, 1, "d2", "worker")
    assert RETRY_S - 60 < seconds_left(shop.redis, HASH, 1, "d1") <= RETRY_S
    others = [("b" * 64, 1, "d1"), (HASH, 2, "d1"), (HASH, 1, "d2"), (HASH, 1, "")]
    assert [seconds_left(shop.redis, *other) for other in others] == [0, 0, 0, 0]
    names = [redis_keys.UNLOADABLE, redis_keys.load_deaths(HASH, 1, "d1"), redis_keys.load_deaths(HASH, 1, "d2")]
    assert all(0 < shop.redis.ttl(name) <= RETRY_S for name in names)  # type: ignore[operator]


async def test_a_certain_cause_needs_one_death(shop: Workshop) -> None:
    """A load that hung once is not tried two times more."""
    assert note_death(shop.redis, HASH, 1, "", "worker", certain=True)
    assert seconds_left(shop.redis, HASH, 1, "") > 0


async def test_marks_are_bounded_and_end(shop: Workshop) -> None:
    """Above the bound those that end first are removed; a mark that has ended is none."""
    now_s, _ = shop.redis.time()  # type: ignore[misc]
    marks = {unloadable.mark_of(HASH, number, "d"): now_s + 10 + number for number in range(MARKS_MAX)}
    shop.redis.zadd(redis_keys.UNLOADABLE, {**marks, unloadable.mark_of("b" * 64, 1, "d"): now_s})
    assert note_death(shop.redis, HASH, MARKS_MAX, "d", "worker", certain=True)
    assert shop.redis.zcard(redis_keys.UNLOADABLE) == MARKS_MAX
    assert [bool(seconds_left(shop.redis, HASH, number, "d")) for number in (0, 1, MARKS_MAX)] == [False, True, True]
    shop.redis.zadd(redis_keys.UNLOADABLE, {unloadable.mark_of(HASH, 1, "d"): now_s - 1})
    assert not seconds_left(shop.redis, HASH, 1, "d")


async def test_documents_and_counts_name_live_bundles_only(shop: Workshop) -> None:
    """The document of a model has the reason first, until another bundle is live, the mark ends or it is deleted."""

    async def found(model_hash: str) -> tuple[bool, int]:
        warnings = listing.describe(await shop.model(model_hash))["warnings"]
        return warnings[:1] == [listing.UNLOADABLE], await unloadable.count_models(shop.store.client)

    fresh, learned, intact = await shop.make(), await shop.learned(), await shop.learned()
    for model_hash in (fresh, learned):
        model = await shop.model(model_hash)
        assert note_death(shop.redis, model_hash, model.generation, model.digest, "worker", certain=True)
    assert [await found(each) for each in (fresh, learned, intact)] == [(True, 2), (True, 2), (False, 2)]
    (page, _) = await listing.page(shop.store, shop.registry, {}, 10)
    assert {each["hash"] for each in page if listing.UNLOADABLE in each["warnings"]} == {fresh, learned}
    await shop.learn(learned)
    assert await found(learned) == (False, 1)
    mark = unloadable.mark_of(fresh, (await shop.model(fresh)).generation, "")
    shop.redis.zadd(redis_keys.UNLOADABLE, {mark: 1})
    assert await found(fresh) == (False, 0)
    shop.redis.zadd(redis_keys.UNLOADABLE, {mark: 2**40})
    assert await found(fresh) == (True, 1)
    await shop.store.delete(fresh)
    assert await unloadable.count_models(shop.store.client) == 0


async def test_a_restore_of_the_same_version_begins_another_generation(shop: Workshop) -> None:
    """An unloadable model is tried again once a version is restored, also the one that is live; nothing is lost."""
    model_hash = await shop.learned()
    await shop.snapshotter.run_pass()
    restorer = Restorer(shop.resources, shop.settings)
    before = await shop.model(model_hash)
    assert not (await restorer.restore_or_rewind(model_hash, RestoreRequest(version=1))).restored
    await shop.accept(model_hash)
    assert note_death(shop.redis, model_hash, before.generation, before.digest, "worker", certain=True)
    assert not (await restorer.restore_or_rewind(model_hash, RestoreRequest())).restored
    done = await restorer.restore_or_rewind(model_hash, RestoreRequest(version=1))
    after = await shop.model(model_hash)
    assert (done.restored, done.rows_forgotten, after.is_unloadable) == (True, 0, False)
    assert (after.generation > before.generation, after.rows_seen, after.inbox) == (True, before.rows_seen, 1)

"""Models as documents: live ones, and those that only the register and a snapshot have."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.recipe.recipe import parse
from keepfit.restore import restorer as restores
from keepfit.settings import Settings
from keepfit.store import inbox, listing
from tests.conftest import SHOES_RECIPE
from tests.factories import Workshop, workshop

FIELDS = {"hash", "metadata", "recipe", "version", "rows_seen", "metrics", "inbox", "snapshot"}


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of the test's own."""
    async with workshop(settings) as opened:
        yield opened


async def listed(shop: Workshop, **filters: str) -> list[dict[str, Any]]:
    """List all models on one page."""
    models, following = await listing.page(shop.store, shop.registry, filters, 100)
    assert following is None
    return models


async def test_a_live_model_is_described_as_it_is_now(shop: Workshop) -> None:
    """The description has exactly the promised fields; waiting requests are counted, the recipe shows its defaults."""
    model_hash = await shop.learned(session="live")
    await shop.accept(model_hash)
    described = listing.describe(await shop.model(model_hash))
    assert described.keys() == FIELDS
    assert described["hash"] == model_hash
    assert described["metadata"] == {"type": "shoes", "session": "live"}
    assert (described["version"], described["rows_seen"], described["inbox"]) == (1, 3, 1)
    assert described["recipe"] == {**SHOES_RECIPE, "max_categories": 128, "n_features": 256} | {
        "classes": None,
        "steps": None,
        "object": None,
        "window": 1000,
        "updates": "exact",
    }
    assert parse(described["recipe"]) == parse(SHOES_RECIPE)
    assert described["snapshot"] is None


async def test_a_model_in_no_redis_is_described_by_its_snapshot(shop: Workshop) -> None:
    """Lost from Redis, a saved model is listed with the very description it had when it was saved."""
    model_hash = await shop.learned()
    await shop.learn(model_hash)
    await shop.snapshotter.run_pass()
    (before,) = await listed(shop)
    assert before["snapshot"]["version"] == before["version"] == 2
    shop.lose(model_hash)
    assert await listed(shop) == [before]
    assert await shop.store.describe(model_hash) is None


async def test_what_was_changed_outlives_redis(shop: Workshop) -> None:
    """The recipe in force is that of the snapshot, where Redis has lost the model and after it was restored."""
    model_hash = await shop.learned(session="changed")
    model = await shop.model(model_hash)
    change = inbox.make_change(model_hash, model.generation, {"C": 0.125})
    line = ScriptConnection(shop.store._store)
    await inbox.accept(line, shop.settings, [change])
    await line.close()
    assert shop.work(model_hash).version == 2
    (before,) = await listed(shop, session="changed")
    assert before["recipe"]["params"] == {"C": 0.125}
    await shop.snapshotter.run_pass()
    shop.lose(model_hash)
    (asleep,) = await listed(shop, session="changed")
    assert {**asleep, "snapshot": None} == before
    await restores.restore(shop.resources, model_hash)
    restored = await shop.model(model_hash)
    assert listing.describe(restored) == asleep
    assert (restored.changed, restored.recipe.params) == ({"C": 0.125}, {"C": 0.5})
    await shop.learn(model_hash)
    assert (await shop.model(model_hash)).changed == {"C": 0.125}


async def test_a_model_that_nothing_is_left_of_is_listed_at_its_beginning(shop: Workshop) -> None:
    """A registered model without bundle and snapshot has version 0 and no metrics."""
    model_hash = await shop.learned()
    shop.lose(model_hash)
    (model,) = await listed(shop)
    assert (model["version"], model["rows_seen"], model["metrics"], model["inbox"]) == (0, 0, {}, 0)
    assert model["snapshot"] is None


async def test_pages_mix_live_models_and_others(shop: Workshop) -> None:
    """Pages go on after the hash that the one before named, until it names none, and keep the order of hashes."""
    hashes = sorted([await shop.learned(number=number) for number in range(5)])
    shop.lose(hashes[1])
    found: list[str] = []
    after: str | None = ""
    pages = 0
    while after is not None:
        models, after = await listing.page(shop.store, shop.registry, {}, 2, after)
        found += [model["hash"] for model in models]
        pages += 1
    assert (found, pages) == (hashes, 3)


async def test_a_full_last_page_is_the_last(shop: Workshop) -> None:
    """Where exactly as many models are left as a page holds, no further page is named."""
    hashes = sorted([await shop.make(number=number) for number in range(2)])
    models, following = await listing.page(shop.store, shop.registry, {}, 2)
    assert ([model["hash"] for model in models], following) == (hashes, None)


async def test_only_models_with_the_metadata_asked_for_are_listed(shop: Workshop) -> None:
    """Filters pick by metadata, and nothing that fits is an empty page."""
    boots = await shop.make(type="boots", brand="nike")
    await shop.make(type="shoes", brand="nike")
    assert [model["hash"] for model in await listed(shop, type="boots")] == [boots]
    assert len(await listed(shop, brand="nike")) == 2
    assert await listed(shop, type="hats") == []


async def test_deleted_models_are_not_listed(shop: Workshop) -> None:
    """A model that was deleted is on no page, whatever snapshots it left."""
    model_hash = await shop.learned()
    await shop.snapshotter.run_pass()
    await shop.registry.unregister(model_hash)
    await shop.store.delete(model_hash)
    assert await listed(shop) == []

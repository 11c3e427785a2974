"""Models as JSON documents: live models, and models that exist only in the registry and a snapshot."""

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

FIELDS = {"hash", "metadata", "recipe", "warnings", "version", "rows_seen", "metrics", "inbox", "snapshot"}


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


async def listed(shop: Workshop, **filters: str) -> list[dict[str, Any]]:
    """List all models on one page."""
    models, following = await listing.page(shop.store, shop.registry, filters, 100)
    assert following is None
    return models


async def test_a_live_model_is_described_by_its_current_state(shop: Workshop) -> None:
    """The description has exactly the documented fields: pending requests are counted, the recipe has its defaults."""
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


async def test_a_model_that_redis_lost_is_described_by_its_snapshot(shop: Workshop) -> None:
    """A saved model that Redis lost is listed with exactly the description that it had when it was saved."""
    model_hash = await shop.learned()
    await shop.learn(model_hash)
    await shop.snapshotter.run_pass()
    (before,) = await listed(shop)
    assert before["snapshot"]["version"] == before["version"] == 2
    shop.lose(model_hash)
    assert await listed(shop) == [before]
    assert await shop.store.describe(model_hash) is None


async def test_changed_parameters_survive_the_loss_of_redis(shop: Workshop) -> None:
    """The effective recipe is that of the snapshot, both while Redis has lost the model and after the restore."""
    model_hash = await shop.learned(session="changed")
    model = await shop.model(model_hash)
    change = inbox.make_change(model_hash, model.generation, {"C": 0.125})
    connection = ScriptConnection(shop.store._store)
    await inbox.accept(connection, shop.settings, [change])
    await connection.close()
    assert shop.work(model_hash).version == 2
    (before,) = await listed(shop, session="changed")
    assert before["recipe"]["params"] == {"C": 0.125}
    await shop.snapshotter.run_pass()
    shop.lose(model_hash)
    (lost,) = await listed(shop, session="changed")
    assert {**lost, "snapshot": None} == before
    await restores.restore(shop.resources, model_hash)
    restored = await shop.model(model_hash)
    assert listing.describe(restored) == lost
    assert (restored.changed, restored.recipe.params) == ({"C": 0.125}, {"C": 0.5})
    await shop.learn(model_hash)
    assert (await shop.model(model_hash)).changed == {"C": 0.125}


async def test_a_model_without_bundle_and_snapshot_is_listed_with_version_0(shop: Workshop) -> None:
    """A registered model without bundle and snapshot has version 0 and no metrics."""
    model_hash = await shop.learned()
    shop.lose(model_hash)
    (model,) = await listed(shop)
    assert (model["version"], model["rows_seen"], model["metrics"], model["inbox"]) == (0, 0, {}, 0)
    assert model["snapshot"] is None


async def test_pages_mix_live_models_and_others(shop: Workshop) -> None:
    """Each page continues after the hash that the page before returned, in order; the last page returns None."""
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
    """If the remaining models fill exactly one page, no further page is announced."""
    hashes = sorted([await shop.make(number=number) for number in range(2)])
    models, following = await listing.page(shop.store, shop.registry, {}, 2)
    assert ([model["hash"] for model in models], following) == (hashes, None)


async def test_filters_select_models_by_metadata(shop: Workshop) -> None:
    """Filters select models by metadata; without a match the page is empty."""
    boots = await shop.make(type="boots", brand="nike")
    await shop.make(type="shoes", brand="nike")
    assert [model["hash"] for model in await listed(shop, type="boots")] == [boots]
    assert len(await listed(shop, brand="nike")) == 2
    assert await listed(shop, type="hats") == []


async def test_deleted_models_are_not_listed(shop: Workshop) -> None:
    """A deleted model is on no page, even if snapshots of it exist."""
    model_hash = await shop.learned()
    await shop.snapshotter.run_pass()
    await shop.registry.unregister(model_hash)
    await shop.store.delete(model_hash)
    assert await listed(shop) == []

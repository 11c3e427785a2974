"""Restoring many models: which are meant, and what is said of each."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from keepfit import snapshot
from keepfit.history import Document
from keepfit.settings import Settings
from snapshotter import restore as restoring
from snapshotter.restore import Outcome, restore_many
from tests.factories import Workshop, workshop


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of the test's own."""
    async with workshop(settings) as opened:
        yield opened


async def restored(
    shop: Workshop,
    type_: str | None = None,
    model_hash: str | None = None,
    at: float | None = None,
    *,
    dry_run: bool = False,
) -> dict[str, Outcome]:
    """Restore the models that are meant; outcomes by hash."""
    outcomes = await restore_many(
        shop.settings, type_, model_hash, at, dry_run=dry_run, progress=lambda done, total: None
    )
    found = {outcome.registered.hash: outcome for outcome in outcomes}
    assert len(found) == len(outcomes)
    return found


async def saved(shop: Workshop, **metadata: Any) -> tuple[str, Document]:
    """Make a model that has learned and is saved."""
    model_hash = await shop.learned(**metadata)
    document = await snapshot.save(shop.store, shop.history, shop.storage, shop.parts.keyring, model_hash)
    assert document is not None
    return model_hash, document


async def test_all_that_are_lost_come_back_and_live_ones_are_kept(shop: Workshop) -> None:
    """Every registered model is looked at: lost ones are restored, live ones kept, those never saved begin anew."""
    lost, _ = await saved(shop)
    live, _ = await saved(shop)
    await shop.learn(live)
    never_saved = await shop.learned()
    shop.lose(lost)
    shop.lose(never_saved)
    outcomes = await restored(shop)
    assert {model_hash: (o.live_version, o.version, o.outcome, o.failed) for model_hash, o in outcomes.items()} == {
        lost: (None, 1, "restored", False),
        live: (2, 1, "kept: it is live", False),
        never_saved: (None, None, "begun anew: it had no snapshot", False),
    }
    versions = {model_hash: (await shop.model(model_hash)).version for model_hash in (lost, live, never_saved)}
    assert versions == {lost: 1, live: 2, never_saved: 0}


async def test_a_dry_run_says_the_same_and_does_nothing(shop: Workshop) -> None:
    """A dry run tells of each model what would be done, and neither Redis nor the register changes."""
    lost, _ = await saved(shop)
    live, _ = await saved(shop)
    never_saved = await shop.make()
    shop.lose(lost)
    shop.lose(never_saved)
    before = await shop.history.models({}, 10)
    outcomes = await restored(shop, dry_run=True)
    assert {model_hash: (o.live_version, o.version, o.outcome) for model_hash, o in outcomes.items()} == {
        lost: (None, 1, "would be restored"),
        live: (1, 1, "kept: it is live"),
        never_saved: (None, None, "would begin anew"),
    }
    assert await shop.store.describe_many([lost, never_saved]) == [None, None]
    assert await shop.history.models({}, 10) == before


async def test_a_type_or_a_hash_chooses(shop: Workshop) -> None:
    """Only models of the type, or the one of the hash, are touched; a hash of another type chooses nothing."""
    shoes, _ = await saved(shop)
    boots, _ = await saved(shop, type="boots")
    shop.redis.flushall()
    assert (await restored(shop, type_="boots")).keys() == {boots}
    assert (await restored(shop, type_="shoes", model_hash=boots)).keys() == set()
    assert (await restored(shop, model_hash="0" * 64)).keys() == set()
    assert await shop.store.describe(shoes) is None
    assert (await restored(shop, type_="shoes", model_hash=shoes))[shoes].outcome == "restored"


async def test_as_of_a_time_older_snapshots_are_taken(shop: Workshop) -> None:
    """With a time the newest snapshot not later is restored; a model without one that old is left alone, and said."""
    old, first = await saved(shop)
    await shop.learn(old)
    report = await shop.parts.run_pass()
    assert [document["version"] for document in report.saved] == [2]
    young, _ = await saved(shop)
    shop.redis.flushall()
    outcomes = await restored(shop, at=first["timestamp"], dry_run=True)
    assert (outcomes[old].version, outcomes[old].outcome) == (1, "would be restored")
    assert (outcomes[young].outcome, outcomes[young].failed) == ("no snapshot that old", True)
    outcomes = await restored(shop, at=first["timestamp"])
    assert (outcomes[old].version, outcomes[old].outcome) == (1, "restored")
    assert (outcomes[young].outcome, outcomes[young].failed) == ("no snapshot that old", True)
    assert (await shop.model(old)).version == 1
    assert await shop.store.describe(young) is None


async def test_trouble_with_one_model_does_not_stop_the_others(shop: Workshop, tmp_path: Path) -> None:
    """A model whose snapshots are all damaged fails by itself; one with a good older one says how many were not."""
    hopeless, document = await saved(shop)
    (tmp_path / "snapshots" / snapshot.path_of(document)).unlink()
    older, _ = await saved(shop)
    await shop.learn(older)
    (newest,) = (await shop.parts.run_pass()).saved
    (tmp_path / "snapshots" / snapshot.path_of(newest)).write_bytes(b"damaged")
    fine, _ = await saved(shop)
    shop.redis.flushall()
    outcomes = await restored(shop)
    assert outcomes[hopeless].failed
    assert outcomes[hopeless].outcome.startswith("None of the 1 snapshots of")
    assert (outcomes[older].version, outcomes[older].outcome) == (1, "restored, after 1 damaged")
    assert (outcomes[fine].version, outcomes[fine].outcome) == (1, "restored")


async def test_a_model_that_comes_back_meanwhile_is_kept(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a worker restores the same model in that moment, the outcome says so and does not claim it began anew."""
    model_hash, _ = await saved(shop)
    shop.lose(model_hash)

    async def overtaken(*args: Any) -> snapshot.Restored:
        assert not (await snapshot.restore(*args)).live
        return await snapshot.restore(*args)

    monkeypatch.setattr(restoring, "restore", overtaken)
    (outcome,) = (await restored(shop)).values()
    assert (outcome.outcome, outcome.failed) == ("kept: it came back meanwhile", False)
    assert (await shop.model(model_hash)).version == 1


async def test_more_models_than_a_page_are_all_restored(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The register is read page by page, and progress counts every model of every page."""
    monkeypatch.setattr(restoring, "PAGE", 3)
    hashes = [(await saved(shop))[0] for _ in range(7)]
    shop.redis.flushall()
    told: list[tuple[int, int]] = []
    outcomes = await restore_many(
        shop.settings, None, None, None, dry_run=False, progress=lambda done, total: told.append((done, total))
    )
    assert [outcome.registered.hash for outcome in outcomes] == sorted(hashes)
    assert told == [(done, 7) for done in range(1, 8)]
    assert None not in await shop.store.describe_many(hashes)


async def test_an_outcome_is_plain_json(shop: Workshop) -> None:
    """An outcome as a document names model, versions and what came of it."""
    model_hash, document = await saved(shop, session="json")
    (outcome,) = (await restored(shop)).values()
    assert outcome.as_dict() == {
        "hash": model_hash,
        "metadata": document["metadata"],
        "live_version": 1,
        "version": 1,
        "outcome": "kept: it is live",
    }

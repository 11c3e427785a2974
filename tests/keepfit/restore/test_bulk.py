"""Restores of many models: which are selected, and the outcome of each."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from keepfit.backends import redis_keys
from keepfit.errors import NotConfirmedError, UnavailableError
from keepfit.history import Document
from keepfit.restore import bulk
from keepfit.restore.bulk import ModelFilter, Outcome, restore_many
from keepfit.restore.reader import SnapshotReader
from keepfit.restore.requests import RestoreRequest, RestoreResult
from keepfit.restore.restorer import Restorer
from keepfit.settings import Settings
from keepfit.snapshots import save
from keepfit.times import format_time
from tests.factories import SHOES, Workshop, commit_bundle, workshop


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


async def restored(
    shop: Workshop,
    type_: str | None = None,
    model_hash: str | None = None,
    at: float | None = None,
    version: int | None = None,
    where: dict[str, str] | None = None,
    *,
    dry_run: bool = False,
    force: bool = False,
) -> dict[str, Outcome]:
    """Restore the selected models; return the outcomes by hash."""
    outcomes = await restore_many(
        shop.settings,
        ModelFilter(type_, model_hash, where or {}),
        RestoreRequest(at, version),
        dry_run=dry_run,
        confirm=lambda plans: force,
        follow=force,
    )
    found = {outcome.registered.hash: outcome for outcome in outcomes}
    assert len(found) == len(outcomes)
    return found


async def saved(shop: Workshop, **metadata: Any) -> tuple[str, Document]:
    """Create a model that has learned and is saved."""
    model_hash = await shop.learned(**metadata)
    document = await save.save(shop.resources, model_hash)
    assert document is not None
    return model_hash, document


async def test_idle_models_stay_idle(shop: Workshop) -> None:
    """Models that left Redis because nothing used them are restored only if they are named, or another snapshot is."""
    names = ("all", "hash", "version", "predecessor")
    hashes = {name: (await saved(shop, name=name))[0] for name in names}
    for name, model_hash in hashes.items():
        shop.lose(model_hash)
        generation = 0 if name == "predecessor" else 1
        shop.redis.set(redis_keys.idle(model_hash), f"{generation} {'ab' * 32} 1 ")
    outcomes = [
        await restored(shop),
        await restored(shop, model_hash=hashes["hash"]),
        await restored(shop, version=1, where={"name": "version"}),
    ]
    kept = "kept: it is idle, and comes back with its next use"
    assert {name: outcomes[0][model_hash].outcome for name, model_hash in hashes.items()} == {
        "all": kept, "hash": kept, "version": kept, "predecessor": "restored"
    }  # fmt: skip
    live = {name for name, model_hash in hashes.items() if await shop.store.describe(model_hash) is not None}
    assert live == {"hash", "version", "predecessor"}


async def test_lost_models_are_restored_and_live_ones_are_kept(shop: Workshop) -> None:
    """Of all registered models lost ones are restored, live ones kept, and unsaved ones recreated from their recipe."""
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
        never_saved: (None, None, "recreated from its recipe: it has no snapshot", False),
    }
    versions = {model_hash: (await shop.model(model_hash)).version for model_hash in (lost, live, never_saved)}
    assert versions == {lost: 1, live: 2, never_saved: 0}


async def test_a_dry_run_reports_the_plan_and_changes_nothing(shop: Workshop) -> None:
    """A dry run returns what would be done with each model, and changes neither Redis nor the registry."""
    lost, _ = await saved(shop)
    live, _ = await saved(shop)
    never_saved = await shop.make()
    shop.lose(lost)
    shop.lose(never_saved)
    before = await shop.registry.models({}, 10)
    outcomes = await restored(shop, dry_run=True)
    assert {model_hash: (o.live_version, o.version, o.outcome) for model_hash, o in outcomes.items()} == {
        lost: (None, 1, "would be restored"),
        live: (1, 1, "kept: it is live"),
        never_saved: (None, None, "would be recreated from its recipe"),
    }
    assert await shop.store.describe_many([lost, never_saved]) == [None, None]
    assert await shop.registry.models({}, 10) == before


async def test_a_type_or_a_hash_selects_models(shop: Workshop) -> None:
    """Only models of the type, or the one of the hash, are restored; a hash of another type selects nothing."""
    shoes, _ = await saved(shop)
    boots, _ = await saved(shop, type="boots")
    shop.redis.flushall()
    assert (await restored(shop, type_="boots")).keys() == {boots}
    assert (await restored(shop, type_="shoes", model_hash=boots)).keys() == set()
    assert (await restored(shop, model_hash="0" * 64)).keys() == set()
    assert await shop.store.describe(shoes) is None
    assert (await restored(shop, type_="shoes", model_hash=shoes))[shoes].outcome == "restored"


async def test_with_a_time_older_snapshots_are_restored(shop: Workshop) -> None:
    """With a time the newest snapshot not later is restored; a model without one fails and is left alone."""
    old, first = await saved(shop)
    await shop.learn(old)
    report = await shop.snapshotter.run_pass()
    assert [document["version"] for document in report.saved] == [2]
    young, _ = await saved(shop)
    shop.redis.flushall()
    missing = f"no snapshot at or before {format_time(first['timestamp'])}"
    outcomes = await restored(shop, at=first["timestamp"], dry_run=True)
    assert (outcomes[old].version, outcomes[old].outcome) == (1, "would be restored")
    assert (outcomes[young].outcome, outcomes[young].failed) == (missing, True)
    outcomes = await restored(shop, at=first["timestamp"])
    assert (outcomes[old].version, outcomes[old].outcome) == (1, "restored")
    assert (outcomes[young].outcome, outcomes[young].failed) == (missing, True)
    assert (await shop.model(old)).version == 1
    assert await shop.store.describe(young) is None


async def test_a_failure_of_one_model_does_not_stop_the_others(shop: Workshop, tmp_path: Path) -> None:
    """A model with damaged snapshots only fails alone; one with an older good snapshot reports the damaged ones."""
    hopeless, document = await saved(shop)
    (tmp_path / "snapshots" / save.path_of(document)).unlink()
    older, _ = await saved(shop)
    await shop.learn(older)
    (newest,) = (await shop.snapshotter.run_pass()).saved
    (tmp_path / "snapshots" / save.path_of(newest)).write_bytes(b"damaged")
    fine, _ = await saved(shop)
    shop.redis.flushall()
    outcomes = await restored(shop)
    assert outcomes[hopeless].failed
    assert outcomes[hopeless].outcome.startswith("None of the 1 snapshots of")
    assert (outcomes[older].version, outcomes[older].outcome) == (1, "restored, 1 damaged snapshots skipped")
    assert (outcomes[fine].version, outcomes[fine].outcome) == (1, "restored")


async def test_a_model_that_another_process_restores_is_kept(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a worker restores the same model at the same time, the outcome says that it is live."""
    model_hash, _ = await saved(shop)
    shop.lose(model_hash)

    restore = Restorer.restore

    async def overtaken(*args: Any) -> RestoreResult:
        assert not (await restore(*args)).live
        return await restore(*args)

    monkeypatch.setattr(Restorer, "restore", overtaken)
    (outcome,) = (await restored(shop)).values()
    assert (outcome.outcome, outcome.failed) == ("kept: it is live by now", False)
    assert (await shop.model(model_hash)).version == 1


async def test_all_pages_of_models_are_restored(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry is read page by page, and progress counts every model of every page."""
    monkeypatch.setattr(bulk, "PAGE", 3)
    hashes = [(await saved(shop))[0] for _ in range(7)]
    shop.redis.flushall()
    reported: list[tuple[int, int]] = []
    outcomes = await restore_many(
        shop.settings, ModelFilter(), progress=lambda done, total: reported.append((done, total))
    )
    assert [outcome.registered.hash for outcome in outcomes] == sorted(hashes)
    assert reported == [(done, 7) for done in range(1, 8)]
    assert None not in await shop.store.describe_many(hashes)


async def test_an_outcome_is_plain_json(shop: Workshop) -> None:
    """The JSON of an outcome has the model, its versions and the outcome."""
    model_hash, document = await saved(shop, session="json")
    (outcome,) = (await restored(shop)).values()
    assert outcome.as_dict() == {
        "hash": model_hash,
        "metadata": document["metadata"],
        "live_version": 1,
        "version": 1,
        "timestamp": document["timestamp"],
        "rows_forgotten": 0,
        "replayed": 0,
        "outcome": "kept: it is live",
    }


async def versions(shop: Workshop, count: int, **metadata: Any) -> tuple[str, list[Document], list[list[float]]]:
    """Create a model and save each of its first versions; return a document and predictions per version."""
    model_hash, first = await saved(shop, **metadata)
    documents, predictions = [first], [await shop.predict(model_hash)]
    for number in range(1, count):
        await shop.learn(model_hash, SHOES, [float(number)] * 3)
        (document,) = (await shop.snapshotter.run_pass()).saved
        documents.append(document)
        predictions.append(await shop.predict(model_hash))
    return model_hash, documents, predictions


async def test_a_live_model_is_rewound_only_if_confirmed(shop: Workshop) -> None:
    """Unconfirmed, nothing changes and the error has the number of rows; confirmed, the older state is live."""
    model_hash, _, predictions = await versions(shop, 3)
    before = await shop.model(model_hash)
    with pytest.raises(NotConfirmedError, match=r"1 live models .* forget 6 rows; confirm with --force"):
        await restored(shop, version=1)
    assert await shop.model(model_hash) == before
    (planned,) = (await restored(shop, version=1, dry_run=True)).values()
    assert (planned.live_version, planned.version, planned.rows_forgotten) == (3, 1, 6)
    assert planned.outcome == "would be rewound, 6 rows forgotten"
    (outcome,) = (await restored(shop, version=1, force=True)).values()
    assert (outcome.outcome, outcome.version, outcome.failed) == ("rewound", 1, False)
    model = await shop.model(model_hash)
    assert (model.version, model.rows_seen, model.generation) == (1, 3, before.generation + 1)
    assert await shop.predict(model_hash) == predictions[0]


async def test_a_rewound_state_is_the_newest_from_then_on(shop: Workshop) -> None:
    """After another loss of Redis the rewound version is restored, not the later ones that the history still has."""
    model_hash, documents, predictions = await versions(shop, 3)
    await restored(shop, version=1, force=True)
    newest = await shop.registry.newest(model_hash, 1)
    assert newest is not None
    assert (newest["generation"], newest["version"], newest["sequence"]) == (2, 1, 3)
    assert (await shop.model(model_hash)).snapshot is not None
    assert await shop.store.changed() == []
    shop.redis.flushall()
    assert (await restored(shop))[model_hash].outcome == "restored"
    assert await shop.predict(model_hash) == predictions[0]
    # The same, if Redis was empty when the older version was requested.
    shop.redis.flushall()
    assert (await restored(shop, at=documents[1]["timestamp"]))[model_hash].version == 2
    shop.redis.flushall()
    await restored(shop)
    assert await shop.predict(model_hash) == predictions[1]


async def test_pending_requests_are_learned_after_a_rewind(shop: Workshop) -> None:
    """Requests that were accepted and not learned stay in order, and are learned on top of the older version."""
    model_hash, _, _ = await versions(shop, 2)
    other, _, _ = await versions(shop, 1)
    for sizes in ([7.0, 8.0, 9.0], [1.0, 2.0, 3.0]):
        assert await shop.accept(model_hash, SHOES, sizes) == (3 if sizes[0] > 1 else 4)
        await shop.accept(other, SHOES, sizes)
    await restored(shop, model_hash=model_hash, version=1, force=True)
    assert (await shop.model(model_hash)).inbox == 2
    shop.work(model_hash)
    shop.work(other)
    assert await shop.predict(model_hash) == await shop.predict(other)
    model = await shop.model(model_hash)
    assert (model.version, model.rows_seen, model.inbox, model.learned) == (2, 9, 0, 4)
    assert await shop.accept(model_hash) == 5


async def test_a_worker_with_the_newer_bundle_cannot_commit(shop: Workshop) -> None:
    """A commit of requests claimed before the rewind is refused, and they are learned on the older state."""
    model_hash, _, _ = await versions(shop, 2)
    await shop.accept(model_hash)
    taken = shop.consumer.claim(model_hash, "slow", "")
    assert taken is not None
    await restored(shop, version=1, force=True)
    bundle = shop._unsealed(model_hash, taken.recipe_text, taken.data)
    assert commit_bundle(shop.consumer, shop.keyring, taken, bundle, 1, "slow").version == 0
    assert (await shop.model(model_hash)).version == 1
    shop.consumer.unlock(model_hash, "slow", force=True)
    assert shop.work(model_hash).version == 2


async def test_a_model_that_learns_in_the_meantime_is_rewound_only_with_follow(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A confirmation holds for the state that was shown, not for rows learned later; --force rewinds those too."""
    model_hash, _, _ = await versions(shop, 2)
    find, late = SnapshotReader.find, []

    async def find_while_learning(self: SnapshotReader, *args: Any) -> Any:
        found = await find(self, *args)
        if not late:
            late.append(await shop.learn(model_hash))
        return found

    monkeypatch.setattr(SnapshotReader, "find", find_while_learning)
    (outcome,) = await restore_many(shop.settings, ModelFilter(), RestoreRequest(version=1), confirm=lambda plans: True)
    assert outcome.failed
    assert "was at version 2 of generation 1 when it was read, and is at version 3" in outcome.outcome
    assert (await shop.model(model_hash)).version == 3
    late.clear()
    (outcome,) = (await restored(shop, version=1, force=True)).values()
    assert (outcome.outcome, (await shop.model(model_hash)).version) == ("rewound", 1)


async def test_an_interrupted_run_can_be_repeated(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run leaves no model half restored; the next run keeps finished models and restores the others."""
    monkeypatch.setattr(bulk, "CONCURRENCY", 1)
    made = [await versions(shop, 2) for _ in range(3)]
    at = made[0][1][0]["timestamp"]
    at = max(documents[0]["timestamp"] for _, documents, _ in made)
    (first, *_) = sorted(model_hash for model_hash, _, _ in made)

    class Killed(BaseException):
        """The process ends here."""

    def killed(done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        await restore_many(
            shop.settings,
            ModelFilter(),
            RestoreRequest(version=1),
            confirm=lambda plans: True,
            follow=True,
            progress=killed,
        )
    for _ in range(2):
        outcomes = await restored(shop, version=1, force=True)
    assert {outcome.outcome for outcome in outcomes.values()} == {"kept: it is at this snapshot"}
    assert first in outcomes
    outcomes = await restored(shop, at=at, dry_run=True)
    generations = {model_hash: (await shop.model(model_hash)).generation for model_hash in outcomes}
    assert set(generations.values()) == {2}
    shop.redis.zadd(redis_keys.CHANGED, {first: 1})
    await shop.snapshotter.run_pass()
    assert await shop.store.changed() == []


async def test_metadata_selects_models(shop: Workshop) -> None:
    """Only models with every given value are selected, as texts or numbers, alone or with a type or hash."""
    nike, _ = await saved(shop, brand="nike", year=2001)
    adidas, _ = await saved(shop, brand="adidas", year=2001)
    assert (await restored(shop, where={"brand": "nike"})).keys() == {nike}
    assert (await restored(shop, where={"year": "2001"})).keys() == {nike, adidas}
    assert (await restored(shop, where={"year": "2001", "brand": "puma"})).keys() == set()
    assert (await restored(shop, "boots", where={"brand": "nike"})).keys() == set()
    assert (await restored(shop, model_hash=adidas, where={"brand": "nike"})).keys() == set()
    assert (await restored(shop, model_hash=adidas, where={"brand": "adidas"})).keys() == {adidas}


async def test_a_rewind_without_storage_changes_nothing(shop: Workshop, tmp_path: Path) -> None:
    """If the storage is unavailable a live model stays as it is, and the outcome names the storage."""
    model_hash, _, _ = await versions(shop, 2)
    (tmp_path / "snapshots").rename(tmp_path / "away")
    (outcome,) = (await restored(shop, version=1, force=True)).values()
    assert outcome.failed
    assert outcome.outcome.startswith("The folder")
    assert (await shop.model(model_hash)).version == 2


async def test_an_unavailable_dependency_is_not_tried_for_every_model(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some failures in a row because a dependency is unavailable, the other models are reported as not tried."""
    monkeypatch.setattr(bulk, "CONCURRENCY", 2)
    for _ in range(5):
        await saved(shop)
    shop.redis.flushall()
    tried: list[str] = []

    def unavailable(self: Any, path: str) -> bytes:
        tried.append(path)
        raise UnavailableError("The storage is unavailable.")

    monkeypatch.setattr("keepfit.backends.blobs.LocalStorage.get", unavailable)
    outcomes = await restored(shop)
    # One more may be in progress by then.
    assert len(tried) in (2, 3)
    counts = Counter(outcome.outcome for outcome in outcomes.values())
    assert counts == {
        "The storage is unavailable.": len(tried),
        "not tried: The storage is unavailable.": 5 - len(tried),
    }
    assert all(outcome.failed for outcome in outcomes.values())


async def test_a_rewind_that_cannot_be_saved_is_reported_and_saved_later(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the storage cannot be written the model is rewound anyway, and the next pass saves it as the newest state."""
    model_hash, _, predictions = await versions(shop, 2)

    def full(self: Any, path: str, data: bytes) -> None:
        raise UnavailableError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr("keepfit.backends.blobs.LocalStorage.put", full)
        (outcome,) = (await restored(shop, version=1, force=True)).values()
    assert outcome.outcome == "rewound, to be saved by the next pass"
    assert await shop.store.changed() == [model_hash]
    assert len((await shop.snapshotter.run_pass()).saved) == 1
    shop.redis.flushall()
    await restored(shop)
    assert await shop.predict(model_hash) == predictions[0]

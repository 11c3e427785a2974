"""Saving and restoring one bundle, with a real Valkey, a real MongoDB-wire server and a real folder."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database
from structlog.testing import capture_logs

from keepfit.backends import redis_keys
from keepfit.backends.blobs import Entry, LocalStorage, open_storage
from keepfit.errors import (
    ConflictError,
    EnvelopeError,
    InvalidError,
    NotFoundError,
    RuntimeMismatchError,
    UnavailableError,
    UnknownKeyError,
)
from keepfit.history import SUMMARY_FIELDS, Document
from keepfit.restore import restorer as restores
from keepfit.restore.requests import RestoreResult
from keepfit.rows import acceptance
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.snapshots import save as saving
from keepfit.store.retained import RetentionNote
from tests.factories import SHOES, SIZES, Workshop, resigned, workshop

FIELDS = {
    "type", "timestamp", "hash", "metadata", "version", "rows_seen", "metrics", "uri", "sha256", "size_bytes",
    "runtime", "generation", "sequence", "origin", "attempt", "open_rows",
}  # fmt: skip
OTHER_SHOES, OTHER_SIZES = [["puma", 1999], ["nike", 2020]], [1.0, 2.0]
FOREIGN = Keyring.from_text("foreign:" + "ab" * 32)


class Killed(BaseException):
    """The process is killed here."""


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture(params=["local", "s3"])
async def each_shop(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop with each kind of storage."""
    if request.param == "s3":
        settings = settings.model_copy(update={"snapshot_url": request.getfixturevalue("s3_url")})
    async with workshop(settings) as opened:
        yield opened


async def save(shop: Workshop, model_hash: str) -> Document | None:
    """Save a model."""
    return await saving.save(shop.resources, model_hash)


async def saved(shop: Workshop, model_hash: str) -> Document:
    """Save a model that has something to save."""
    document = await save(shop, model_hash)
    assert document is not None
    return document


async def restore(shop: Workshop, model_hash: str, at: float | None = None) -> RestoreResult:
    """Restore a model."""
    return await restores.restore(shop.resources, model_hash, at)


async def dangling(shop: Workshop) -> list[str]:
    """Return the URIs of committed snapshots whose blob is missing or different."""
    found = []
    for document in await shop.registry.documents(limit=1000):
        data = shop.storage.get(saving.path_of(document))
        if data is None or hashlib.sha256(data).hexdigest() != document["sha256"]:
            found.append(document["uri"])
    return found


def statuses(database: Database[Document]) -> dict[int, str]:
    """Return the status of each document by its version."""
    return {document["version"]: document["status"] for document in database.history.find()}


def alter(shop: Workshop, document: Document, data: bytes) -> None:
    """Replace a snapshot's blob by other bytes."""
    shop.storage.put(saving.path_of(document), data)


def read(shop: Workshop, document: Document) -> bytes:
    """Return a snapshot's blob."""
    data = shop.storage.get(saving.path_of(document))
    assert data is not None
    return data


def replace_blob(shop: Workshop, database: Database[Document], document: Document, data: bytes) -> None:
    """Replace a snapshot's blob by other bytes, and change its document accordingly."""
    digest = hashlib.sha256(data).hexdigest()
    changed = {**document, "sha256": digest, "size_bytes": len(data)}
    changed["uri"] = shop.storage.uri(saving.path_of(changed))
    shop.storage.put(saving.path_of(changed), data)
    key = {name: document[name] for name in ("hash", "generation", "version")}
    kept = {name: changed[name] for name in ("sha256", "size_bytes", "uri")}
    assert database.history.update_one(key, {"$set": kept}).matched_count == 1


async def test_the_document_has_exactly_the_documented_fields(shop: Workshop) -> None:
    """A history document has exactly the documented fields, and they describe the live bundle."""
    model_hash = await shop.learned(brand="nike", session="fields")
    await shop.learn(model_hash, OTHER_SHOES, OTHER_SIZES)
    document = await saved(shop, model_hash)
    model = await shop.model(model_hash)
    assert document.keys() == FIELDS
    assert {name: document[name] for name in ("type", "hash", "metadata")} == {
        "type": "shoes",
        "hash": model_hash,
        "metadata": {"type": "shoes", "brand": "nike", "session": "fields"},
    }
    assert isinstance(document["timestamp"], float)
    assert (document["generation"], document["version"], document["sequence"]) == (1, 2, 2)
    assert document["rows_seen"] == model.rows_seen == 5
    assert document["metrics"] == model.metrics
    errors = {"mean_absolute_error", "baseline_mean_absolute_error", "root_mean_squared_error", "r2"}
    assert document["metrics"].keys() == {*errors, "rows", "window"}
    assert document["runtime"] == envelope.runtime()
    assert await shop.registry.documents() == [document]


async def test_the_blob_is_the_live_bundle(each_shop: Workshop) -> None:
    """The blob at the document's URI is the bundle in Redis, with the document's size and SHA-256."""
    model_hash = await each_shop.learned()
    document = await saved(each_shop, model_hash)
    data = read(each_shop, document)
    assert data == each_shop.data(model_hash)
    assert document["uri"] == f"{each_shop.settings.snapshot_url}/{saving.path_of(document)}"
    assert (document["sha256"], document["size_bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))


async def test_the_snapshot_is_noted_in_the_model(shop: Workshop) -> None:
    """After a save the live model names the snapshot and is no longer marked as changed."""
    model_hash = await shop.learned()
    assert await shop.store.changed() == [model_hash]
    document = await saved(shop, model_hash)
    assert (await shop.model(model_hash)).snapshot == {name: document[name] for name in SUMMARY_FIELDS}
    assert await shop.store.changed() == []


async def test_nothing_is_saved_twice(each_shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved bundle is not written again, and has one document."""
    model_hash = await each_shop.learned()
    document = await saved(each_shop, model_hash)

    def put(path: str, data: bytes) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(each_shop.storage, "put", put)
    assert await save(each_shop, model_hash) is None
    assert await each_shop.registry.documents() == [document]
    assert (await each_shop.model(model_hash)).snapshot == {name: document[name] for name in SUMMARY_FIELDS}


async def test_a_model_that_has_learned_nothing_is_not_saved(shop: Workshop) -> None:
    """Version 0 is the recipe, which the registry has."""
    assert await save(shop, await shop.make()) is None
    assert await shop.registry.documents() == []


async def test_a_mark_before_its_commit_stays(shop: Workshop) -> None:
    """A worker marks a model as changed before it commits; a save in between must not remove the mark."""
    model_hash = await shop.make()
    shop.redis.zadd(redis_keys.CHANGED, {model_hash: 1})
    assert await save(shop, model_hash) is None
    assert await shop.store.changed() == [model_hash]
    await shop.learn(model_hash)
    assert (await saved(shop, model_hash))["version"] == 1


async def test_the_mark_of_a_deleted_model_is_removed(shop: Workshop) -> None:
    """The next pass removes a mark that a refused commit left for a deleted model."""
    model_hash = await shop.learned()
    await shop.registry.unregister(model_hash)
    await shop.store.delete(model_hash)
    shop.redis.zadd(redis_keys.CHANGED, {model_hash: 2})
    assert await save(shop, model_hash) is None
    assert await shop.store.changed() == []


async def test_a_commit_during_the_save_is_saved_next(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit between reading the bundle and noting its snapshot leaves the model marked as changed."""
    model_hash = await shop.learned()
    await shop.accept(model_hash, OTHER_SHOES, OTHER_SIZES)
    put = shop.storage.put

    def put_while_learning(path: str, data: bytes) -> None:
        shop.work(model_hash)
        put(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(shop.storage, "put", put_while_learning)
        assert (await saved(shop, model_hash))["version"] == 1
    assert await shop.store.changed() == [model_hash]
    assert (await saved(shop, model_hash))["version"] == 2
    assert await shop.store.changed() == []


async def test_a_forged_bundle_is_not_saved(shop: Workshop, database: Database[Document], tmp_path: Path) -> None:
    """A bundle that no signing key signed is refused before anything is written, and the mark stays."""
    model_hash = await shop.learned()
    shop.redis.set(redis_keys.bundle(model_hash), resigned(shop.data(model_hash), shop.keyring, FOREIGN))
    with pytest.raises(EnvelopeError, match="signed with a key that KEEPFIT_SIGNING_KEYS does not hold"):
        await save(shop, model_hash)
    assert database.history.count_documents({}) == 0
    assert not (tmp_path / "snapshots").exists()
    assert await shop.store.changed() == [model_hash]


async def test_concurrent_saves_write_one_document(each_shop: Workshop, database: Database[Document]) -> None:
    """Several snapshotters of the same version write one document, and one of them reports it as saved."""
    model_hash = await each_shop.learned()
    answers = await asyncio.gather(*(save(each_shop, model_hash) for _ in range(4)))
    (document,) = [answer for answer in answers if answer is not None]
    assert await each_shop.registry.documents() == [document]
    assert database.history.count_documents({}) == 1
    assert await dangling(each_shop) == []
    assert await each_shop.store.changed() == []


async def test_another_bundle_of_the_same_version_is_a_conflict(shop: Workshop) -> None:
    """If Redis lost its last writes and learned other rows, the saved version stays, and the next one is saved."""
    model_hash = await shop.learned()
    before = {key: shop.redis.dump(key) for key in shop.redis.scan_iter(match=f"kf:{{{model_hash}}}:*")}
    await shop.learn(model_hash, OTHER_SHOES, OTHER_SIZES)
    first = await saved(shop, model_hash)
    for key, dumped in before.items():
        assert isinstance(dumped, bytes)
        shop.redis.restore(key, 0, dumped, replace=True)
    await shop.learn(model_hash, SHOES, SIZES)
    with pytest.raises(ConflictError, match=r"another bundle for version 2"):
        await save(shop, model_hash)
    assert await shop.store.changed() == [model_hash]
    assert (await shop.model(model_hash)).snapshot is None
    assert await shop.registry.documents() == [first]
    await shop.learn(model_hash)
    assert (await saved(shop, model_hash))["version"] == 3
    assert await dangling(shop) == []


@pytest.mark.parametrize("step", ["write_intents", "put", "commit_many", "note_snapshots"])
async def test_a_snapshotter_may_be_killed_after_each_step(
    each_shop: Workshop, database: Database[Document], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """After a kill at any step every committed document has its blob, and the next pass completes."""
    model_hash = await each_shop.learned()
    owner: object = {"put": each_shop.storage, "note_snapshots": each_shop.store}.get(step, each_shop.registry)
    real: Callable[..., Any] = getattr(owner, step)

    def killed(*args: Any) -> None:
        real(*args)
        raise Killed

    async def killed_async(noted: Any) -> None:
        await real(noted)
        if noted:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed if step == "put" else killed_async)
        with pytest.raises(BaseExceptionGroup if step == "put" else Killed):
            await save(each_shop, model_hash)
    assert statuses(database) == {1: "committed" if step in ("commit_many", "note_snapshots") else "pending"}
    assert await dangling(each_shop) == []
    assert await each_shop.store.changed() == ([] if step == "note_snapshots" else [model_hash])
    await save(each_shop, model_hash)
    (document,) = await each_shop.registry.documents()
    assert statuses(database) == {1: "committed"}
    assert await dangling(each_shop) == []
    assert await each_shop.store.changed() == []
    assert (await each_shop.model(model_hash)).snapshot == {name: document[name] for name in SUMMARY_FIELDS}


async def test_a_failed_save_leaves_the_mark(shop: Workshop, tmp_path: Path) -> None:
    """If the storage is unavailable the save is an UnavailableError, and succeeds when it is back."""
    model_hash = await shop.learned()
    (tmp_path / "snapshots").write_text("no folder")
    with pytest.raises(UnavailableError, match="snapshots cannot be written"):
        await save(shop, model_hash)
    assert await shop.registry.documents() == []
    assert await shop.store.changed() == [model_hash]
    (tmp_path / "snapshots").unlink()
    assert (await saved(shop, model_hash))["version"] == 1


async def test_a_lost_model_is_restored_as_it_was_saved(each_shop: Workshop) -> None:
    """Restored to an empty Redis, a model has version, rows, metrics and predictions of its snapshot."""
    model_hash = await each_shop.learned()
    await each_shop.learn(model_hash, OTHER_SHOES, OTHER_SIZES)
    document = await saved(each_shop, model_hash)
    before, predictions = await each_shop.model(model_hash), await each_shop.predict(model_hash)
    each_shop.redis.flushall()
    restored = await restore(each_shop, model_hash)
    assert restored == RestoreResult(model_hash, document, live=False, corrupt=0)
    after = await each_shop.model(model_hash)
    assert await each_shop.predict(model_hash) == predictions
    assert (after.version, after.rows_seen, after.metrics) == (before.version, before.rows_seen, before.metrics)
    assert (after.metadata, after.recipe, after.digest) == (before.metadata, before.recipe, before.digest)
    assert after.snapshot == {name: document[name] for name in SUMMARY_FIELDS}
    assert (after.inbox, after.generation) == (0, before.generation + 1)
    assert await each_shop.store.changed() == []


async def test_learning_continues_from_the_snapshot(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restore sequences, request digest and versions continue; predictions are those of a never lost model."""
    # The digest covers the times at which rows were accepted.
    monkeypatch.setattr(acceptance, "now_s", lambda: 1.5)
    lost, kept = await shop.learned(), await shop.learned()
    await saved(shop, lost)
    shop.lose(lost)
    await restore(shop, lost)
    assert await shop.accept(lost, OTHER_SHOES, OTHER_SIZES) == 2
    assert shop.work(lost).version == await shop.learn(kept, OTHER_SHOES, OTHER_SIZES) == 2
    assert await shop.predict(lost, SHOES + OTHER_SHOES) == await shop.predict(kept, SHOES + OTHER_SHOES)
    assert (await shop.model(lost)).metrics == (await shop.model(kept)).metrics
    assert shop.redis.hget(redis_keys.state(lost), "chain") == shop.redis.hget(redis_keys.state(kept), "chain")
    document = await saved(shop, lost)
    assert (document["generation"], document["version"], document["sequence"]) == (2, 2, 2)


async def test_a_restored_model_is_not_saved_again_before_it_learns(shop: Workshop) -> None:
    """A restored bundle is in the storage already: a save writes no second document or blob."""
    model_hash = await shop.learned()
    document = await saved(shop, model_hash)
    shop.lose(model_hash)
    await restore(shop, model_hash)
    assert await save(shop, model_hash) is None
    assert await shop.registry.documents() == [document]


@pytest.mark.parametrize(
    "recipe",
    [
        {"estimator": "SGDRegressor", "features": {"make": "category", "year": "number"}, "encoding": "onehot"},
        {"estimator": "MLPRegressor", "features": {"make": "category", "year": "number"}, "encoding": "hash"},
        {"estimator": "CategoricalNB", "features": {"make": "category", "year": "category"}, "classes": [1, 2, 3]},
        {"estimator": "GaussianNB", "features": {"make": "category", "year": "number"}, "classes": [1, 2, 3]},
        {
            "estimator": "MiniBatchKMeans",
            "params": {"n_clusters": 2},
            "features": {"make": "category", "year": "number"},
        },
    ],
    ids=lambda recipe: recipe["estimator"],
)
async def test_models_of_every_kind_are_restored(shop: Workshop, recipe: dict[str, Any]) -> None:
    """Regressors, classifiers and clusterers in every encoding are verified, restored and predict the same."""
    model_hash = await shop.make(recipe)
    await shop.learn(model_hash, SHOES, None if recipe["estimator"] == "MiniBatchKMeans" else [1, 2, 3])
    await saved(shop, model_hash)
    predictions = await shop.predict(model_hash)
    shop.lose(model_hash)
    assert (await restore(shop, model_hash)).corrupt == 0
    assert await shop.predict(model_hash) == predictions


async def test_a_live_model_is_never_overwritten(shop: Workshop) -> None:
    """A restore of a live model changes nothing, whether the snapshot is older or newer."""
    model_hash = await shop.learned()
    await saved(shop, model_hash)
    await shop.learn(model_hash, OTHER_SHOES, OTHER_SIZES)
    before = await shop.model(model_hash)
    assert await restore(shop, model_hash) == RestoreResult(model_hash, None, live=True, corrupt=0)
    assert await shop.model(model_hash) == before


async def test_a_model_without_a_snapshot_is_recreated_from_its_recipe(shop: Workshop) -> None:
    """A registered model that was never saved is created from its recipe, in a new generation."""
    model_hash = await shop.learned()
    shop.lose(model_hash)
    assert await restore(shop, model_hash) == RestoreResult(model_hash, None, live=False, corrupt=0)
    model = await shop.model(model_hash)
    assert (model.version, model.rows_seen, model.generation, model.snapshot) == (0, 0, 2, None)
    assert await shop.learn(model_hash) == 1


async def flipped(shop: Workshop, database: Database[Document], document: Document) -> None:
    """Flip one bit in the middle of the blob."""
    data = bytearray(read(shop, document))
    data[len(data) // 2] ^= 1
    alter(shop, document, bytes(data))


async def truncated(shop: Workshop, database: Database[Document], document: Document) -> None:
    """Cut off the blob's last byte."""
    alter(shop, document, read(shop, document)[:-1])


async def emptied(shop: Workshop, database: Database[Document], document: Document) -> None:
    """Truncate the blob to zero bytes."""
    alter(shop, document, b"")


async def missing(shop: Workshop, database: Database[Document], document: Document) -> None:
    """Delete the blob."""
    shop.storage.delete([Entry(saving.path_of(document))])


async def of_another_model(shop: Workshop, database: Database[Document], document: Document) -> None:
    """Replace it by a bundle of another model."""
    data = read(shop, document)
    replace_blob(shop, database, document, resigned(data, shop.keyring, shop.keyring, hash="0" * 64))


async def of_other_rows(shop: Workshop, database: Database[Document], document: Document) -> None:
    """Replace it by a correctly signed bundle of the same version with other content."""
    data = read(shop, document)
    alter(shop, document, resigned(data, shop.keyring, shop.keyring, chain="f" * 40))


async def of_an_older_version(shop: Workshop, database: Database[Document], document: Document) -> None:
    """Replace it by an older, correctly signed bundle of the same model."""
    data = read(shop, document)
    replace_blob(shop, database, document, resigned(data, shop.keyring, shop.keyring, version=1))


DAMAGES = [
    flipped, truncated, emptied, missing, of_another_model, of_other_rows, of_an_older_version,
]  # fmt: skip
Damage = Callable[[Workshop, Database[Document], Document], Awaitable[None]]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_snapshot_is_skipped(each_shop: Workshop, database: Database[Document], damage: Damage) -> None:
    """A blob that differs from the saved one is marked corrupt and logged, and the snapshot before is restored."""
    model_hash = await each_shop.learned()
    good = await saved(each_shop, model_hash)
    predictions = await each_shop.predict(model_hash)
    await each_shop.learn(model_hash, OTHER_SHOES, OTHER_SIZES)
    await damage(each_shop, database, await saved(each_shop, model_hash))
    each_shop.lose(model_hash)
    with capture_logs() as logs:
        assert await restore(each_shop, model_hash) == RestoreResult(model_hash, good, live=False, corrupt=1)
    assert statuses(database) == {1: "committed", 2: "corrupt"}
    assert await each_shop.predict(model_hash) == predictions
    (logged,) = [entry for entry in logs if entry["event"] == "snapshot_corrupt"]
    assert (logged["log_level"], logged["hash"], logged["version"]) == ("warning", model_hash, 2)
    assert logged["reason"]


@pytest.mark.parametrize(
    ("key_id", "named"),
    [
        ("foreign", "KEEPFIT_SIGNING_KEYS does not hold: 'foreign'"),
        ("test", "another key of the id 'test' than that of"),
    ],
)
async def test_an_unknown_key_does_not_mark_a_snapshot_corrupt(
    shop: Workshop, database: Database[Document], key_id: str, named: str
) -> None:
    """A snapshot signed with a key that this process lacks, whatever its id, is neither restored nor marked."""
    model_hash = await shop.learned()
    document = await saved(shop, model_hash)
    data = read(shop, document)
    other = Keyring.from_text(f"{key_id}:{'ab' * 32}")
    replace_blob(shop, database, document, resigned(data, shop.keyring, other))
    shop.lose(model_hash)
    with pytest.raises(UnknownKeyError, match=named):
        await restore(shop, model_hash)
    assert statuses(database) == {1: "committed"}


async def test_a_restored_model_keeps_the_width_of_its_rows(shop: Workshop) -> None:
    """A restored model of plain rows refuses rows of another width."""
    model_hash = await shop.make({"estimator": "SGDRegressor"})
    await shop.learn(model_hash, [[1.0, 2.0, 3.0]], [1.0])
    await saved(shop, model_hash)
    shop.lose(model_hash)
    await restore(shop, model_hash)
    with pytest.raises(InvalidError, match="2 values where the model has 3"):
        await shop.accept(model_hash, [[1.0, 2.0]], [1.0])
    assert await shop.learn(model_hash, [[4.0, 5.0, 6.0]], [2.0]) == 2


async def test_a_snapshot_of_a_predecessor_does_not_remove_the_mark(shop: Workshop) -> None:
    """A model that was deleted, created again and learned during a save is still marked as changed."""
    model_hash = await shop.make(session="again")
    for _ in range(5):
        await shop.learn(model_hash)
    before = await shop.model(model_hash)
    await shop.registry.unregister(model_hash)
    await shop.store.delete(model_hash)
    assert await shop.make(session="again") == model_hash
    await shop.learn(model_hash)
    place = (before.generation, before.version)
    late = RetentionNote(model_hash, before.generation, before.learned, before.digest, before.retained, "", place, {})
    await shop.store.note_snapshots([late])
    assert await shop.store.changed() == [model_hash]
    assert (await saved(shop, model_hash))["generation"] > before.generation


async def test_the_rest_of_a_half_deleted_model_is_not_restored(shop: Workshop) -> None:
    """After a deletion that was interrupted between registry and Redis, the recreated model starts from its recipe."""
    model_hash = await shop.make(session="half")
    await shop.learn(model_hash)
    await shop.registry.unregister(model_hash)
    assert await shop.make(session="half") == model_hash
    model = await shop.model(model_hash)
    assert (model.version, model.rows_seen, model.generation) == (0, 0, 2)


async def test_without_a_good_snapshot_nothing_is_installed(shop: Workshop, database: Database[Document]) -> None:
    """If all snapshots are damaged the restore is an UnavailableError with their number; nothing is recreated."""
    model_hash = await shop.make(session="damaged")
    for _ in range(3):
        await shop.learn(model_hash)
        await truncated(shop, database, await saved(shop, model_hash))
    shop.lose(model_hash)
    # The first restore marks them as damaged; to the next ones the model is no less lost.
    for _ in range(3):
        with pytest.raises(UnavailableError, match=f"None of the 3 snapshots of {model_hash} is good"):
            await restore(shop, model_hash)
        assert statuses(database) == dict.fromkeys((1, 2, 3), "corrupt")
        assert await shop.store.describe(model_hash) is None
    # Created again, it begins without rows.
    await shop.registry.unregister(model_hash)
    assert await shop.make(session="damaged") == model_hash
    assert (await shop.model(model_hash)).rows_seen == 0


@pytest.mark.parametrize("how", ["a file in its place", "not mounted"])
async def test_an_unavailable_storage_marks_nothing(
    shop: Workshop, database: Database[Document], tmp_path: Path, how: str
) -> None:
    """If the storage cannot be read a restore is an UnavailableError, marks nothing, and succeeds when it is back."""
    model_hash = await shop.learned()
    document = await saved(shop, model_hash)
    shop.lose(model_hash)
    (tmp_path / "snapshots").rename(tmp_path / "away")
    if how == "a file in its place":
        (tmp_path / "snapshots").write_text("no folder")
    with pytest.raises(UnavailableError, match=f"{tmp_path}/snapshots"):
        await restore(shop, model_hash)
    assert statuses(database) == {1: "committed"}
    assert await shop.store.describe(model_hash) is None
    (tmp_path / "snapshots").unlink(missing_ok=True)
    (tmp_path / "away").rename(tmp_path / "snapshots")
    assert (await restore(shop, model_hash)).document == document


async def test_a_storage_at_another_address_marks_nothing(
    shop: Workshop, database: Database[Document], tmp_path: Path
) -> None:
    """With a wrong KEEPFIT_SNAPSHOT_URL the error says where the snapshot is, and nothing is marked."""
    model_hash = await shop.learned()
    document = await saved(shop, model_hash)
    shop.lose(model_hash)
    (tmp_path / "other").mkdir()
    other = open_storage((tmp_path / "other").as_uri())
    with pytest.raises(UnavailableError, match=f"The snapshot is at {document['uri']}"):
        await restores.restore(replace(shop.resources, storage=other), model_hash)
    assert statuses(database) == {1: "committed"}


async def test_a_moved_storage_is_read(shop: Workshop, tmp_path: Path) -> None:
    """Blobs that were copied to another address are found there, although their documents name the old address."""
    model_hash = await shop.learned()
    document = await saved(shop, model_hash)
    shop.lose(model_hash)
    shutil.copytree(tmp_path / "snapshots", tmp_path / "moved")
    moved = LocalStorage((tmp_path / "moved").as_uri())
    restored = await restores.restore(replace(shop.resources, storage=moved), model_hash)
    assert restored.document == document


async def test_a_bundle_of_another_runtime_is_not_loaded(shop: Workshop, database: Database[Document]) -> None:
    """A snapshot of other versions is a RuntimeMismatchError: it is not marked, and no older one is used."""
    model_hash = await shop.learned()
    await saved(shop, model_hash)
    await shop.learn(model_hash)
    document = await saved(shop, model_hash)
    runtime = {**envelope.runtime(), "scikit-learn": "0.24.2"}
    data = read(shop, document)
    replace_blob(shop, database, document, resigned(data, shop.keyring, shop.keyring, runtime=runtime))
    shop.lose(model_hash)
    with pytest.raises(RuntimeMismatchError, match=r"written with scikit-learn 0\.24\.2"):
        await restore(shop, model_hash)
    assert statuses(database) == {1: "committed", 2: "committed"}
    assert await shop.store.describe(model_hash) is None


async def test_a_deleted_model_stays_deleted(shop: Workshop) -> None:
    """Neither a deleted nor an unknown model is restored, whatever snapshots exist."""
    model_hash = await shop.learned()
    await saved(shop, model_hash)
    await shop.registry.unregister(model_hash)
    await shop.store.delete(model_hash)
    for unknown in (model_hash, "0" * 64):
        with pytest.raises(NotFoundError, match=f"There is no model {unknown}"):
            await restore(shop, unknown)
    assert await shop.store.describe(model_hash) is None


async def test_a_recreated_model_does_not_inherit_snapshots(shop: Workshop) -> None:
    """Snapshots of a deleted model do not belong to a model created later with the same metadata."""
    model_hash = await shop.learned(session="again")
    await saved(shop, model_hash)
    await shop.registry.unregister(model_hash)
    await shop.store.delete(model_hash)
    assert await shop.make(session="again") == model_hash
    shop.lose(model_hash)
    assert (await restore(shop, model_hash)).document is None
    assert (await shop.model(model_hash)).version == 0


async def test_a_model_recreated_during_a_restore_does_not_inherit(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that began before the model was deleted and created again installs nothing of the old one."""
    model_hash = await shop.learned()
    await saved(shop, model_hash)
    shop.lose(model_hash)
    loop, get = asyncio.get_running_loop(), shop.storage.get

    async def make_again() -> None:
        registered = await shop.registry.find(model_hash)
        assert registered is not None
        await shop.registry.unregister(model_hash)
        await shop.registry.register(model_hash, registered.metadata_text, registered.recipe_text)

    def get_meanwhile(path: str) -> bytes | None:
        asyncio.run_coroutine_threadsafe(make_again(), loop).result()
        return get(path)

    monkeypatch.setattr(shop.storage, "get", get_meanwhile)
    with pytest.raises(NotFoundError, match="deleted in the meantime"):
        await restore(shop, model_hash)
    assert await shop.store.describe(model_hash) is None


async def test_a_model_is_restored_to_a_time(each_shop: Workshop) -> None:
    """With `at` the newest snapshot not later is restored and saved as the newest; the others stay."""
    model_hash = await each_shop.make()
    documents = []
    for _ in range(3):
        await each_shop.learn(model_hash)
        documents.append(await saved(each_shop, model_hash))
    each_shop.lose(model_hash)
    assert (await restore(each_shop, model_hash, documents[1]["timestamp"])).document == documents[1]
    assert (await each_shop.model(model_hash)).version == 2
    again, *others = await each_shop.registry.documents()
    assert (again["generation"], again["version"], others) == (2, 2, documents[::-1])


async def test_a_time_before_all_snapshots_restores_nothing(shop: Workshop) -> None:
    """Without a snapshot that old the restore is a NotFoundError: a recreated model would hide the others."""
    model_hash = await shop.learned()
    document = await saved(shop, model_hash)
    shop.lose(model_hash)
    with pytest.raises(NotFoundError, match="has no snapshot at or before"):
        await restore(shop, model_hash, document["timestamp"] - 1)
    assert await shop.store.describe(model_hash) is None


async def test_concurrent_restores_install_once(shop: Workshop) -> None:
    """Workers that need the same lost model at once restore it once, and all find it."""
    model_hash = await shop.learned()
    document = await saved(shop, model_hash)
    predictions = await shop.predict(model_hash)
    shop.lose(model_hash)
    answers = await asyncio.gather(*(restore(shop, model_hash) for _ in range(5)))
    assert [answer.live for answer in answers].count(False) == 1
    assert all(answer.document in (document, None) for answer in answers)
    assert await shop.predict(model_hash) == predictions
    assert await shop.accept(model_hash) == 2


async def test_an_unavailable_redis_is_an_error_of_save_and_restore(shop: Workshop) -> None:
    """If Redis does not answer, save and restore raise UnavailableError and change nothing."""
    model_hash = await shop.learned()
    document = await saved(shop, model_hash)
    shop.redis.shutdown(nosave=True)
    with pytest.raises(UnavailableError, match="Redis is unavailable"):
        await save(shop, model_hash)
    with pytest.raises(UnavailableError, match="Redis is unavailable"):
        await restore(shop, model_hash)
    assert await shop.registry.documents() == [document]


async def test_snapshots_survive_a_change_of_keys(shop: Workshop) -> None:
    """A snapshot signed with an older key is restored as long as that key is in the keyring."""
    model_hash = await shop.learned()
    await saved(shop, model_hash)
    shop.lose(model_hash)
    keyring = Keyring(FOREIGN.keys + shop.keyring.keys)
    restored = await restores.restore(replace(shop.resources, keyring=keyring), model_hash)
    assert (restored.live, restored.corrupt) == (False, 0)

"""Exports from one deployment and imports into another, with other keys."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from keepfit.errors import EnvelopeError, SettingsError, UnavailableError, UnknownKeyError
from keepfit.restore.bulk import ModelFilter, restore_many
from keepfit.restore.requests import NEWEST, RestoreRequest
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.transfer import imports
from keepfit.transfer.exports import TransferResult, export_many
from keepfit.transfer.imports import import_many, read_keyring
from tests.conftest import SIGNING_KEYS
from tests.factories import SHOES, Workshop, workshop

NEW_KEYS = "test:" + "a7" * 32
THEIRS = Keyring.from_text(SIGNING_KEYS)


@pytest.fixture
async def old(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop in the exporting deployment."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
async def new(old: Workshop, tmp_path: Path) -> AsyncIterator[Workshop]:
    """Open a workshop in the importing deployment, with its own databases on the same servers."""
    settings = old.settings.model_copy(
        update={
            "store_url": SecretStr(old.settings.store_url.get_secret_value()[:-1] + "1"),
            "mongo_url": SecretStr(old.settings.mongo_url.get_secret_value() + "new"),
            "snapshot_url": (tmp_path / "new").as_uri(),
            "signing_keys": SecretStr(NEW_KEYS),
        }
    )
    async with workshop(settings) as opened:
        yield opened


async def with_history(shop: Workshop, **metadata: Any) -> str:
    """Create a model with three snapshots, the last two of another generation, that has learned since."""
    model_hash = await shop.learned(**metadata)
    await shop.snapshotter.run_pass()
    shop.lose(model_hash)
    await restore_many(shop.settings, ModelFilter(hash=model_hash))
    for sizes in ([1.0, 2.0, 3.0], [3.0, 3.0, 1.0]):
        await shop.learn(model_hash, SHOES, sizes)
        await shop.snapshotter.run_pass()
    await shop.learn(model_hash)
    return model_hash


ALL = ModelFilter()


async def export(shop: Workshop, path: Path, models: ModelFilter = ALL, **options: Any) -> dict[str, TransferResult]:
    """Export models; return the results by hash."""
    return {result.hash: result for result in await export_many(shop.settings, path, models, **options)}


async def import_file(
    shop: Workshop, path: Path, theirs: Keyring | None = THEIRS, **options: Any
) -> dict[str, TransferResult]:
    """Import models; return the results by hash."""
    return {result.hash: result for result in await import_many(shop.settings, path, theirs, **options)}


async def test_models_are_imported_with_their_history(old: Workshop, new: Workshop, tmp_path: Path) -> None:
    """State, predictions and all snapshots are the same, signed with the new key, and models learn on alike."""
    model_hash = await with_history(old, brand="nike")
    never = await old.make()
    path = tmp_path / "export.zip"
    exported = await export(old, path)
    assert (exported[model_hash].outcome, exported[model_hash].snapshots) == ("exported", 4)
    assert exported[never].outcome == "skipped: it has learned nothing"
    imported = await import_file(new, path)
    assert {result.hash: (result.outcome, result.version) for result in imported.values()} == {
        model_hash: ("imported", 4)
    }
    before, after = await old.model(model_hash), await new.model(model_hash)
    assert (after.version, after.rows_seen, after.metrics) == (before.version, before.rows_seen, before.metrics)
    assert (after.metadata, after.recipe) == (before.metadata, before.recipe)
    assert await new.predict(model_hash) == await old.predict(model_hash)
    new.keyring.open(new.data(model_hash), envelope.BUNDLE)
    copied = ("timestamp", "version", "rows_seen", "metrics", "sequence", "runtime")
    there, here = [await shop.registry.documents(model_hash=model_hash) for shop in (old, new)]
    assert [[d[name] for name in copied] for d in here] == [[d[name] for name in copied] for d in there]
    assert len({document["generation"] for document in here}) == 2
    await old.learn(model_hash, SHOES, [9.0, 8.0, 7.0])
    await new.learn(model_hash, SHOES, [9.0, 8.0, 7.0])
    assert await new.predict(model_hash) == await old.predict(model_hash)
    # Every imported snapshot can be restored.
    for version in (1, 2, 3):
        (outcome,) = await restore_many(
            new.settings, ModelFilter(), RestoreRequest(version=version), confirm=lambda plans: True, follow=True
        )
        assert (outcome.outcome, (await new.model(model_hash)).rows_seen) == ("rewound", 3 * version)


async def test_nothing_is_imported_without_the_exporters_key(
    old: Workshop, new: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the key that signed the file nothing is unpickled or written; a key with the same id does not help."""
    await with_history(old)
    path = tmp_path / "export.zip"
    await export(old, path)
    monkeypatch.setattr(imports, "verify", None)
    with pytest.raises(EnvelopeError):
        await import_file(new, path, None)
    settings = new.settings.model_copy(update={"signing_keys": SecretStr("c:" + "00" * 32)})
    with pytest.raises(UnknownKeyError, match="KEEPFIT_IMPORT_KEYS"):
        await import_many(settings, path, Keyring.from_text("b:" + "00" * 32))
    assert await new.registry.models({}, 10) == []


async def test_existing_models_are_overwritten_only_with_force(old: Workshop, new: Workshop, tmp_path: Path) -> None:
    """An existing model is refused; with force it is replaced, and its pending requests stay."""
    model_hash = await with_history(old, session="same")
    assert await new.learned(session="same") == model_hash
    path = tmp_path / "export.zip"
    await export(old, path)
    before = await new.model(model_hash)
    for options in ({}, {"dry_run": True}):
        (result,) = (await import_file(new, path, **options)).values()
        assert result.failed
        assert result.outcome == "refused: version 1 with 3 rows, live, exists here; --force overwrites it"
    assert await new.model(model_hash) == before
    (planned,) = (await import_file(new, path, force=True, dry_run=True)).values()
    assert (planned.outcome, planned.failed) == ("would overwrite version 1 with 3 rows, live", False)
    assert await new.model(model_hash) == before
    await new.accept(model_hash)
    (result,) = (await import_file(new, path, force=True)).values()
    assert result.outcome == "imported over version 1 with 3 rows, live"
    assert await new.predict(model_hash) == await old.predict(model_hash)
    model = await new.model(model_hash)
    assert (model.version, model.inbox) == (4, 1)
    new.work(model_hash)
    await old.learn(model_hash)
    assert await new.predict(model_hash) == await old.predict(model_hash)
    # It is the newest snapshot too: another loss of Redis does not restore the old model.
    new.lose(model_hash)
    await restore_many(new.settings, ModelFilter(), NEWEST)
    assert (await new.model(model_hash)).rows_seen == 12


async def test_another_recipe_is_refused_even_with_force(old: Workshop, new: Workshop, tmp_path: Path) -> None:
    """A model that exists with another recipe is not changed."""
    await old.learned(session="same")
    await new.make({"estimator": "SGDRegressor"}, session="same")
    path = tmp_path / "export.zip"
    await export(old, path)
    (result,) = (await import_file(new, path, force=True)).values()
    assert (result.outcome, result.failed) == ("refused: it exists here with another recipe", True)


async def test_an_interrupted_import_can_be_repeated(
    old: Workshop, new: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an import was interrupted within a model, the next one imports all, and a third changes nothing."""
    hashes = [await with_history(old) for _ in range(2)]
    path = tmp_path / "export.zip"
    await export(old, path)
    put, count = type(new.storage).put, [0]

    def full_after_five(self: Any, name: str, data: bytes) -> None:
        count[0] += 1
        if count[0] > 5:
            raise UnavailableError("The disk is full.")
        put(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr("keepfit.backends.blobs.LocalStorage.put", full_after_five)
        outcomes = await import_file(new, path)
    assert [result.outcome for result in outcomes.values() if result.failed] != []
    outcomes = await import_file(new, path)
    assert not [result for result in outcomes.values() if result.failed]
    for model_hash in hashes:
        assert await new.predict(model_hash) == await old.predict(model_hash)
        assert len(await new.registry.documents(model_hash=model_hash)) == 4
    outcomes = await import_file(new, path)
    assert {result.outcome for result in outcomes.values()} == {"kept: it was imported before"}
    generations = {(await new.model(model_hash)).generation for model_hash in hashes}
    outcomes = await import_file(new, path, dry_run=True)
    assert {result.outcome for result in outcomes.values()} == {"kept: it was imported before"}
    assert {(await new.model(model_hash)).generation for model_hash in hashes} == generations


async def test_an_export_may_have_the_newest_snapshots_only(old: Workshop, new: Workshop, tmp_path: Path) -> None:
    """The file has the newest good snapshot of each model; pending requests and damaged snapshots are reported."""
    model_hash = await with_history(old)
    await old.accept(model_hash)
    result = (await export(old, tmp_path / "newest.zip", newest_only=True))[model_hash]
    assert (result.outcome, result.snapshots) == ("exported; 1 pending requests are not in the file", 1)
    (document, *_) = [document async for document in old.registry.snapshots(model_hash)]
    assert document["version"] == 4
    damaged = Path(old.settings.snapshot_url.removeprefix("file://")) / imports.path_of(document)
    damaged.write_bytes(b"damaged")
    result = (await export(old, tmp_path / "rest.zip"))[model_hash]
    assert result.outcome.startswith("exported, without 1 damaged")
    assert (result.version, result.snapshots) == (3, 3)
    assert (await import_file(new, tmp_path / "newest.zip"))[model_hash].version == 4
    assert (await new.model(model_hash)).rows_seen == 12


async def test_a_bundle_of_other_versions_is_refused_before_anything_is_saved(
    old: Workshop, new: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that this scikit-learn cannot load is refused; history and Redis stay empty."""
    model_hash = await old.learned()
    path = tmp_path / "export.zip"
    await export(old, path)
    monkeypatch.setattr(envelope, "installed", lambda name: "0.1")
    (result,) = (await import_file(new, path)).values()
    assert result.failed
    assert "was written with" in result.outcome
    assert await new.registry.documents() == []
    assert await new.store.describe(model_hash) is None


def test_a_fifo_is_no_file_of_keys(tmp_path: Path) -> None:
    """A FIFO that nothing writes to is an error at once."""
    os.mkfifo(tmp_path / "keys")
    with pytest.raises(SettingsError, match=f"^{tmp_path}/keys cannot be read: it is not a regular file"):
        read_keyring(tmp_path / "keys")


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    """A key file has one key per line, or the format of the setting; an unreadable file is an error."""
    (tmp_path / "keys").write_text(f"{SIGNING_KEYS}\nother:{'cd' * 32}\n")
    assert [name for name, _ in read_keyring(tmp_path / "keys").keys] == ["test", "other"]
    with pytest.raises(SettingsError, match=f"^{tmp_path}/none cannot be read: No such file or directory"):
        read_keyring(tmp_path / "none")
    for text, message in (
        ("\n", "holds no key"),
        ("k1:abcd", ": key 1 is not id:hex"),
        ("x" * 80, ": key 1 is not id:hex"),
    ):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(SettingsError, match=f"^{tmp_path}/keys ?{message}") as caught:
            read_keyring(tmp_path / "keys")
        assert "abcd" not in str(caught.value)

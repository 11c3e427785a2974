"""Uploaded objects as first versions: durable when they are created, and gone if they were not."""

import signal
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import skops.io
from pydantic import SecretStr
from sklearn.linear_model import SGDRegressor

from keepfit import identity
from keepfit.errors import ConflictError, TooLargeError, UnavailableError
from keepfit.history.registry import reservations
from keepfit.model import trained
from keepfit.restore.bulk import ModelFilter, restore_many
from keepfit.restore.requests import RestoreRequest
from keepfit.restore.restorer import Restorer
from keepfit.settings import Settings
from keepfit.snapshots import garbage
from keepfit.snapshots.garbage import HASH_END
from keepfit.snapshots.retention import DAY_S, Rules
from keepfit.transfer import first_version
from keepfit.transfer.exports import export_many
from keepfit.transfer.imports import import_many
from tests.factories import Workshop, workshop
from tests.faults import acts

X, Y = [[1.0, 2.0], [2.0, 1.0]], [1.0, 2.0]
HARSH = Rules(grace_s=-1)


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def named() -> dict[str, Any]:
    """Return the metadata of a model that does not exist."""
    return {"type": "shoes", "session": uuid.uuid4().hex}


def trained_learner(seed: int = 0) -> Any:
    """Train a regressor offline."""
    return SGDRegressor(random_state=seed, alpha=0.1 + seed).partial_fit(X, Y)


async def create(shop: Workshop, named: dict[str, Any], learner: Any) -> first_version.Uploaded:
    """Create a model from a trained object, as a worker does."""
    keys, bytes_max = trained.Keys(shop.keyring, None), shop.settings.bundle_bytes_max
    bundle = trained.new_bundle(skops.io.dumps(learner), keys, bytes_max)
    text = identity.canonical(named).decode()
    return await first_version.create(shop.resources, identity.hash_of(named), text, bundle, bytes_max)


def blobs(shop: Workshop, model_hash: str) -> list[str]:
    """List what the storage has of a model."""
    return [entry.path for entry in shop.storage.list("", HASH_END) if entry.path.startswith(model_hash)]


async def collect(shop: Workshop, later_s: float = 0.0) -> None:
    """Collect garbage as if it were later."""
    await garbage.collect(shop.registry, shop.storage, "", HASH_END, HARSH, time.time() + later_s)


@pytest.mark.parametrize("point", ["upload.begun", "upload.stored", "upload.saved"])
async def test_a_death_before_the_model_exists_leaves_none(shop: Workshop, named: dict[str, Any], point: str) -> None:
    """Killed before the model is registered, it does not exist; its blob is garbage, and another file may follow."""
    model_hash, text = identity.hash_of(named), identity.canonical(named).decode()
    killed = acts.exit_code_of(f"{point}:1:kill", acts.upload, shop.settings, text, skops.io.dumps(trained_learner()))
    assert killed == -signal.SIGKILL
    assert await shop.registry.find(model_hash) is None
    assert await shop.store.describe(model_hash) is None
    shop.storage.put("other/1/1", b"")
    assert len(blobs(shop, model_hash)) == (point != "upload.begun")
    await collect(shop, 40 * DAY_S if point == "upload.saved" else 1.0)
    assert blobs(shop, model_hash) == []
    created = await create(shop, named, trained_learner(1))
    assert (created.created, created.version) == (True, 1)
    assert await shop.predict(model_hash, X) == trained_learner(1).predict(X).tolist()


async def test_a_death_before_it_is_live_leaves_the_model(shop: Workshop, named: dict[str, Any]) -> None:
    """Killed after the model is registered, it is restored on its next use, and its snapshot is kept."""
    model_hash, text = identity.hash_of(named), identity.canonical(named).decode()
    data = skops.io.dumps(trained_learner())
    assert acts.exit_code_of("upload.registered:1:kill", acts.upload, shop.settings, text, data) == -signal.SIGKILL
    assert await shop.store.describe(model_hash) is None
    await restore_many(shop.settings, ModelFilter(hash=model_hash))
    assert await shop.predict(model_hash, X) == trained_learner().predict(X).tolist()
    await collect(shop, 40 * DAY_S)
    assert len(blobs(shop, model_hash)) == 1


async def test_a_model_is_restored_with_what_it_learned_since(shop: Workshop, named: dict[str, Any]) -> None:
    """A lost model comes back from its first snapshot, and from later ones with what it learned on."""
    await create(shop, named, trained_learner())
    model_hash, learner = identity.hash_of(named), trained_learner()
    for _ in range(2):
        shop.lose(model_hash)
        await restore_many(shop.settings, ModelFilter(hash=model_hash))
        assert await shop.predict(model_hash, X) == learner.predict(X).tolist()
        await shop.learn(model_hash, X, [3.0, 4.0])
        learner.partial_fit(X, [3.0, 4.0])
        await shop.snapshotter.run_pass()


async def test_without_a_good_snapshot_it_does_not_begin_untrained(shop: Workshop, named: dict[str, Any]) -> None:
    """If the only snapshot is damaged, a lost model is unavailable; none without its learned state takes its place."""
    await create(shop, named, trained_learner())
    model_hash = identity.hash_of(named)
    (path,) = blobs(shop, model_hash)
    shop.storage.put(path, b"damaged")
    shop.lose(model_hash)
    registered = await shop.registry.find(model_hash)
    assert registered is not None
    restorer = Restorer(shop.resources)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await restorer.restore(registered)
        assert await shop.store.describe(model_hash) is None
    restorer.close()


async def test_a_failure_of_the_storage_leaves_no_model(
    shop: Workshop, named: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the storage is unavailable, the upload fails; after it is back, the same file is uploaded."""

    def fail(path: str, data: bytes) -> None:
        raise UnavailableError("The storage is away.")

    with monkeypatch.context() as patched:
        patched.setattr(type(shop.storage), "put", lambda self, path, data: fail(path, data))
        with pytest.raises(UnavailableError):
            await create(shop, named, trained_learner())
    assert await shop.registry.find(identity.hash_of(named)) is None
    assert (await create(shop, named, trained_learner())).created


async def test_of_two_uploads_at_a_time_one_wins(shop: Workshop, named: dict[str, Any]) -> None:
    """A generation that was reserved before another is not activated, nor one of a model that was made meanwhile."""
    model_hash, text = identity.hash_of(named), identity.canonical(named).decode()
    first = await reservations.reserve(shop.registry, model_hash, text, "{}")
    second = await reservations.reserve(shop.registry, model_hash, text, "{}")
    assert (first, second) == (1, 2)
    assert not await reservations.activate(shop.registry, model_hash, 1)
    await shop.registry.register(model_hash, text, '{"estimator":"SGDRegressor"}')
    assert not await reservations.activate(shop.registry, model_hash, 2)
    assert await reservations.reserve(shop.registry, model_hash, text, "{}") is None
    with pytest.raises(ConflictError):
        await create(shop, named, trained_learner())


async def test_a_bundle_that_is_too_large_is_refused(shop: Workshop, named: dict[str, Any]) -> None:
    """A model whose bundle would be larger than the setting permits is not created."""
    bundle = trained.new_bundle(skops.io.dumps(trained_learner()), trained.Keys(shop.keyring, None), 10**6)
    with pytest.raises(TooLargeError):
        await first_version.create(shop.resources, identity.hash_of(named), "{}", bundle, 500)
    assert await shop.registry.find(identity.hash_of(named)) is None


async def test_the_first_version_can_be_restored_by_name(shop: Workshop, named: dict[str, Any]) -> None:
    """A model that has learned on goes back to what was uploaded."""
    await create(shop, named, trained_learner())
    model_hash = identity.hash_of(named)
    await shop.learn(model_hash, X, [30.0, 40.0])
    restorer = Restorer(shop.resources)
    await restorer.restore_or_rewind(model_hash, RestoreRequest(version=1))
    restorer.close()
    assert await shop.predict(model_hash, X) == trained_learner().predict(X).tolist()


async def test_an_exported_model_is_imported_elsewhere(shop: Workshop, named: dict[str, Any], tmp_path: Path) -> None:
    """A model that was uploaded moves to a deployment with other keys, and learns on there as here."""
    await create(shop, named, trained_learner())
    model_hash = identity.hash_of(named)
    await shop.learn(model_hash, X, [3.0, 4.0])
    await shop.snapshotter.run_pass()
    await export_many(shop.settings, tmp_path / "export.zip", ModelFilter(hash=model_hash))
    settings = shop.settings.model_copy(
        update={
            "store_url": SecretStr(shop.settings.store_url.get_secret_value()[:-1] + "1"),
            "mongo_url": SecretStr(shop.settings.mongo_url.get_secret_value() + "new"),
            "snapshot_url": (tmp_path / "new").as_uri(),
            "signing_keys": SecretStr("test:" + "a7" * 32),
        }
    )
    async with workshop(settings) as other:
        (result,) = await import_many(settings, tmp_path / "export.zip", shop.keyring)
        assert (result.outcome, result.version) == ("imported", 2)
        for each in (shop, other):
            await each.learn(model_hash, X, [5.0, 6.0])
        assert await other.predict(model_hash, X) == await shop.predict(model_hash, X)

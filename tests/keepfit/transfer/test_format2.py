"""A deployment that the last keepfit of bundle format 2 wrote: its snapshots are restored, its export file imported.

`tests/fixtures/format2/deployment/make.py` wrote the files with that version.
"""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson import json_util
from pydantic import SecretStr
from threadpoolctl import threadpool_info

from keepfit.history import Document
from keepfit.restore.bulk import ModelFilter, restore_many
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.transfer.imports import import_many
from tests.factories import Workshop, workshop

FOLDER = Path(__file__).parents[2] / "fixtures" / "format2" / "deployment"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
MODELS: dict[str, dict[str, Any]] = EXPECTED["models"]
KERNELS = {str(found["architecture"]) for found in threadpool_info() if "architecture" in found}
OTHER_KEY = "new:" + "4d" * 32


def skip_unless_loadable(documents: list[Document]) -> None:
    """Skip where a minor release differs from the one that wrote the files: no bundle of another one can be loaded."""
    for document in documents:
        for name, version in document["runtime"].items():
            if version.split(".")[:2] != envelope.installed(name).split(".")[:2]:
                pytest.skip(f"written with {name} {version}")


@pytest.fixture
async def shop(settings: Settings, tmp_path: Path) -> AsyncIterator[Workshop]:
    """Open the deployment as that version left it, with an empty Redis."""
    shutil.copytree(FOLDER / "snapshots", tmp_path / "snapshots", dirs_exist_ok=True)
    collections = json_util.loads((FOLDER / "mongo.json").read_text())
    skip_unless_loadable(collections["history"])
    with pymongo.MongoClient[Document](settings.mongo_url.get_secret_value()) as client:
        for name, documents in collections.items():
            if documents:
                client.get_default_database()[name].insert_many(documents)
    keys = {name.removeprefix("KEEPFIT_").lower(): SecretStr(text) for name, text in EXPECTED["keys"].items()}
    async with workshop(settings.model_copy(update=keys)) as opened:
        yield opened


async def check(shop: Workshop) -> None:
    """Check that all models are in their recorded state; bit for bit on a machine with the same OpenBLAS kernels."""
    for name, known in MODELS.items():
        model = await shop.model(known["hash"])
        assert (model.metadata, model.rows_seen) == (known["metadata"], known["rows_seen"]), name
        found = await shop.predict(known["hash"], known["X"])
        if set(EXPECTED["blas"]) == KERNELS:
            assert found == known["predictions"], name
            assert model.metrics == known["metrics"], name
        elif isinstance(found[0], float):
            assert found == pytest.approx(known["predictions"], rel=1e-9), name


async def test_snapshots_of_format_2_are_restored(shop: Workshop) -> None:
    """Every model is restored from its newest snapshot, and predicts bit for bit what it predicted then."""
    outcomes = await restore_many(shop.settings, ModelFilter())
    assert {outcome.registered.hash: (outcome.outcome, outcome.version) for outcome in outcomes} == {
        known["hash"]: ("restored", known["version"]) for known in MODELS.values()
    }
    await check(shop)


async def test_restored_models_of_format_2_learn_and_are_saved(shop: Workshop) -> None:
    """Models of format 2 learn, are saved in the current format, and are restored with the same predictions."""
    await restore_many(shop.settings, ModelFilter())
    predictions: dict[str, list[Any]] = {}
    for known in MODELS.values():
        target = known["predictions"][0]
        await shop.learn(known["hash"], known["X"][:2], [target, target])
        predictions[known["hash"]] = await shop.predict(known["hash"], known["X"])
    report = await shop.snapshotter.run_pass()
    assert (len(report.saved), report.failed, report.cleanup_error) == (len(MODELS), {}, "")
    shop.redis.flushall()
    await restore_many(shop.settings, ModelFilter())
    for model_hash, expected in predictions.items():
        assert (
            await shop.predict(model_hash, next(m["X"] for m in MODELS.values() if m["hash"] == model_hash)) == expected
        )


async def test_an_export_file_of_format_2_is_imported(settings: Settings) -> None:
    """An empty deployment with another signing key imports every model, and predicts bit for bit what was recorded."""
    skip_unless_loadable(json_util.loads((FOLDER / "mongo.json").read_text())["history"])
    keys = {"signing_keys": SecretStr(OTHER_KEY), "upload_keys": SecretStr(EXPECTED["keys"]["KEEPFIT_UPLOAD_KEYS"])}
    async with workshop(settings.model_copy(update=keys)) as shop:
        import_keys = Keyring.from_text(EXPECTED["keys"]["KEEPFIT_SIGNING_KEYS"])
        results = await import_many(shop.settings, FOLDER / "export.zip", import_keys)
        assert {result.hash: (result.outcome, result.version) for result in results} == {
            known["hash"]: ("imported", known["version"]) for known in MODELS.values()
        }
        await check(shop)
        assert len(await shop.registry.documents(limit=100)) == 2 * len(MODELS)

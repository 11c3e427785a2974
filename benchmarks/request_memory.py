"""`python -m benchmarks.request_memory`: how much memory a worker needs to learn a large request, in multiples of it.

Owns servers and models of its own, and measures as :mod:`benchmarks.memory` does: a process that has loaded nothing
claims a request of numbers, learns it and commits. *first* is the first request of a model, *later* comes after a
small one. The figures are relative to the rows as float64, without their target.
"""

import asyncio
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.memory import MIB, peak_of, running_servers
from benchmarks.report import table
from keepfit import identity
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.recipe import recipe
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.snapshots.resources import open_resources
from keepfit.store import inbox
from keepfit.store.models import Install

COLUMNS, CLASSES, SMALL_ROWS = 31, ["no", "yes"], 100
CASES: dict[str, dict[str, Any]] = {
    "SGDRegressor": {"estimator": "SGDRegressor"},
    "SGDRegressor with a scaler": {"estimator": "SGDRegressor", "scaler": "StandardScaler"},
    "SGDClassifier": {"estimator": "SGDClassifier", "classes": CLASSES},
    "GaussianNB with a scaler": {"estimator": "GaussianNB", "scaler": "StandardScaler", "classes": CLASSES},
    "MLPRegressor": {"estimator": "MLPRegressor"},
    "MiniBatchKMeans": {"estimator": "MiniBatchKMeans"},
    "IncrementalPCA": {"estimator": "IncrementalPCA"},
}


def random_rows(document: dict[str, Any], n: int) -> Rows:
    """Return `n` rows of random numbers, with a target if the estimator takes one."""
    values = np.random.default_rng(n).normal(size=(n, COLUMNS))
    y: Any = None
    if "classes" in document:
        y = [CLASSES[positive] for positive in (values[:, 0] > 0).tolist()]
    elif recipe.parse(document).entry.takes_y:
        y = values[:, 0].tobytes()
    return Rows(n, values.tobytes(), [], y)


async def measure(settings: Settings, document: dict[str, Any], size_bytes: int, before: int) -> float:
    """Return the memory for a request of about `size_bytes`, in multiples of it, after as many requests `before`."""
    metadata, wanted = {"type": "memory", **document, "before": before}, recipe.parse(document)
    model_hash, text = identity.hash_of(metadata), identity.canonical(metadata).decode()
    async with open_resources(settings) as resources:
        client, connection = resources.store.client, ScriptConnection(resources.store.client)
        await resources.registry.ensure_indexes()
        registered, _ = await resources.registry.register(model_hash, text, wanted.text())
        await resources.store.install(Install(model_hash, text, wanted.text(), registered.generation))
        large = size_bytes // (8 * COLUMNS)
        for n in [SMALL_ROWS] * before + [large]:
            request = await inbox.make_request(client, model_hash, registered.generation, random_rows(document, n))
            await inbox.accept(connection, settings, [request])
            found = await asyncio.to_thread(peak_of, "learn", settings.variables(), model_hash)
        model = await resources.store.describe(model_hash)
        if model is None or model.rows_seen != SMALL_ROWS * before + large:
            raise RuntimeError(f"not learned: {model}")
        await connection.close()
    return found / (8 * COLUMNS * large)


def main(size_mib: Annotated[int, typer.Option(help="Approximate size of the rows in MiB.")] = 128) -> None:
    """Measure the memory that large requests need, in multiples of their rows."""
    lines = []
    with running_servers() as settings:
        for title, document in CASES.items():
            factors = [asyncio.run(measure(settings, document, size_mib * MIB, before)) for before in (0, 1)]
            lines.append([title, *(f"{factor:.1f}" for factor in factors)])
    Console().print(table(["estimator", "first", "later"], lines), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

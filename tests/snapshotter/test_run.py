"""Passes of the snapshotter: in this process for their results, as real processes for signals and kills."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest
from structlog.testing import capture_logs

from keepfit.backends import redis_keys
from keepfit.errors import UnavailableError
from keepfit.history import Document
from keepfit.history.registry import snapshot_upkeep
from keepfit.local.servers import free_port
from keepfit.restore.bulk import ModelFilter, restore_many
from keepfit.security import envelope
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.snapshots import save
from keepfit.snapshots.idle import IdleRules, Unloaded
from keepfit.snapshots.resources import Resources, open_resources
from keepfit.snapshots.save import SaveLimits
from keepfit_snapshotter import run
from keepfit_snapshotter.run import PassLimits, Snapshotter, run_once
from tests import servers
from tests.factories import Workshop, resigned, workshop

FOREIGN = Keyring.from_text("foreign:" + "ab" * 32)


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as open_shop:
        yield open_shop


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment of a process with these settings."""
    return {
        **os.environ,
        "KEEPFIT_STORE_URL": settings.store_url.get_secret_value(),
        "KEEPFIT_MONGO_URL": settings.mongo_url.get_secret_value(),
        "KEEPFIT_SNAPSHOT_URL": settings.snapshot_url,
        "KEEPFIT_SIGNING_KEYS": settings.signing_keys.get_secret_value(),
    }


@contextmanager
def snapshotter(settings: Settings, log: Path, every: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `keepfit snapshot --every …`; kill it at the end if it still runs."""
    command = [sys.executable, "-m", "keepfit", "--data", str(log.parent), "snapshot", "--every", every]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment(settings))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def committed(settings: Settings) -> list[Document]:
    """Return all committed documents, read without keepfit."""
    with pymongo.MongoClient[Document](settings.mongo_url.get_secret_value()) as client:
        return list(client.get_default_database().history.find({"status": "committed"}))


def without_blob(shop: Workshop, documents: list[Document]) -> list[str]:
    """Return the URIs of snapshots whose blob is missing or different."""
    found = []
    for document in documents:
        data = shop.storage.get(save.path_of(document))
        if data is None or hashlib.sha256(data).hexdigest() != document["sha256"]:
            found.append(document["uri"])
    return found


async def test_a_pass_saves_only_changed_models(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred models only the five that learned since the last pass are saved; a third pass reads none."""
    hashes = [await shop.learned() for _ in range(100)]
    first = await shop.snapshotter.run_pass()
    assert sorted(document["hash"] for document in first.saved) == sorted(hashes)
    read, written = Counter[str](), Counter[str]()
    bundles, put = shop.store.bundles, shop.storage.put

    async def counted_bundles(some: Sequence[str]) -> object:
        read.update(some)
        return await bundles(some)

    def counted_put(path: str, data: bytes) -> None:
        written[path] += 1
        put(path, data)

    monkeypatch.setattr(shop.store, "bundles", counted_bundles)
    monkeypatch.setattr(shop.storage, "put", counted_put)
    changed = hashes[10:15]
    for model_hash in changed:
        await shop.learn(model_hash)
    second = await shop.snapshotter.run_pass()
    assert sorted(document["hash"] for document in second.saved) == sorted(changed)
    assert {document["version"] for document in second.saved} == {2}
    assert read == Counter(changed)
    assert sorted(written) == sorted(save.path_of(document) for document in second.saved)
    third = await shop.snapshotter.run_pass()
    assert (third.saved, third.failed, third.unchanged) == ([], {}, 0)
    assert read == Counter(changed)
    assert len(await shop.registry.documents(limit=1000)) == 105


async def test_a_pass_unloads_idle_models_and_notes_where_it_ended(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass looks for idle models from where the last one ended, also after failures, which the log says once."""
    begun = []

    async def unload(_: Any, __: Any, cursor: int) -> Unloaded:
        begun.append(cursor)
        return Unloaded(2, 7, {"ab12": UnavailableError("away"), "cd34": UnavailableError("away, too")})

    monkeypatch.setattr(run, "unload_idle", unload)
    passes = Snapshotter(shop.resources, PassLimits(idle=IdleRules(1)))
    with capture_logs() as logs:
        reports = [await passes.run_pass() for _ in range(2)]
    assert begun == [0, 7]
    assert [(report.unloaded, report.cleanup_error) for report in reports] == [(2, "away")] * 2
    assert (
        logs
        == [{"event": "unloading_failed", "log_level": "warning", "failed": 2, "hash": "ab12", "reason": "away"}] * 2
    )


async def test_a_pass_reports_its_progress(shop: Workshop) -> None:
    """Progress counts every model, whether it was saved, unchanged or failed."""
    forged, *_ = [await shop.learned() for _ in range(5)]
    shop.redis.set(redis_keys.bundle(forged), b"forged")
    idle = await shop.make()
    shop.redis.zadd(redis_keys.CHANGED, {idle: 1})
    reported: list[tuple[int, int]] = []
    report = await shop.snapshotter.run_pass(lambda done, total: reported.append((done, total)))
    assert reported == [(done, 6) for done in range(1, 7)]
    assert (len(report.saved), len(report.failed), report.unchanged) == (4, 1, 1)
    assert report.seconds > 0


async def test_a_pass_without_changes_saves_nothing(shop: Workshop) -> None:
    """Without changed models a pass saves nothing and reports no progress."""
    report = await shop.snapshotter.run_pass(lambda done, total: pytest.fail("progress over nothing"))
    assert (report.saved, report.failed, report.unchanged) == ([], {}, 0)


async def test_a_failure_of_one_model_does_not_stop_the_others(shop: Workshop) -> None:
    """A forged bundle, an unknown key and a damaged state each fail alone, are reported, and tried again."""
    hashes = [await shop.learned() for _ in range(16)]
    forged, foreign, broken, wrong = hashes[:4]
    good = shop.data(forged)
    shop.redis.set(redis_keys.bundle(forged), good[:-1] + b"?")
    shop.redis.set(redis_keys.bundle(foreign), resigned(shop.data(foreign), shop.keyring, FOREIGN))
    shop.redis.hset(redis_keys.state(broken), "metrics", "{")
    shop.redis.delete(redis_keys.bundle(wrong))
    shop.redis.rpush(redis_keys.bundle(wrong), "not a string")
    report = await shop.snapshotter.run_pass()
    assert sorted(document["hash"] for document in report.saved) == sorted(hashes[4:])
    assert report.failed.keys() == {forged, foreign, broken, wrong}
    assert "Signature mismatch" in report.failed[forged]
    assert "key that KEEPFIT_SIGNING_KEYS does not hold" in report.failed[foreign]
    assert "DecodeError" in report.failed[broken]
    assert "WRONGTYPE" in report.failed[wrong]
    shop.redis.set(redis_keys.bundle(forged), good)
    again = await shop.snapshotter.run_pass()
    assert [document["hash"] for document in again.saved] == [forged]


async def test_concurrent_snapshotters_save_each_version_once(shop: Workshop, settings: Settings) -> None:
    """Overlapping passes write one document per version, and one of them reports it as saved."""
    hashes = [await shop.learned() for _ in range(40)]
    async with open_resources(settings) as other:
        reports = await asyncio.gather(shop.snapshotter.run_pass(), Snapshotter(other).run_pass())
    assert sorted(document["hash"] for report in reports for document in report.saved) == sorted(hashes)
    assert [report.failed for report in reports] == [{}, {}]
    documents = committed(settings)
    assert sorted(document["hash"] for document in documents) == sorted(hashes)
    assert without_blob(shop, documents) == []
    assert await shop.store.changed() == []


async def test_passes_run_while_workers_learn(shop: Workshop, settings: Settings) -> None:
    """Models that learn during passes have only good snapshots; a pass after the last commit saves all."""
    hashes = [await shop.make() for _ in range(4)]
    learned = threading.Event()

    async def learn() -> None:
        async with workshop(settings) as worker:
            for _ in range(10):
                for model_hash in hashes:
                    await worker.learn(model_hash)
        learned.set()

    learning = threading.Thread(target=lambda: asyncio.run(learn()))
    learning.start()
    while not learned.is_set():
        assert (await shop.snapshotter.run_pass()).failed == {}
    learning.join()
    assert (await shop.snapshotter.run_pass()).failed == {}
    documents = committed(settings)
    assert without_blob(shop, documents) == []
    assert max(Counter((found["hash"], found["version"]) for found in documents).values()) == 1
    for model_hash in hashes:
        newest = await shop.registry.newest(model_hash, 0)
        assert newest is not None
        assert (newest["version"], newest["sha256"]) == (10, envelope.digest_of(shop.data(model_hash)))


async def test_a_single_pass_creates_the_indexes(settings: Settings, shop: Workshop) -> None:
    """A single pass, as a CronJob runs it, needs only the settings."""
    model_hash = await shop.learned()
    report = await run_once(settings)
    assert [document["hash"] for document in report.saved] == [model_hash]


async def test_sigterm_ends_the_loop_after_the_current_pass(shop: Workshop, settings: Settings, tmp_path: Path) -> None:
    """On SIGTERM during a pass the snapshotter finishes the pass and exits with code 0."""
    for _ in range(80):
        await shop.learned()
    log = tmp_path / "snapshotter.log"
    with snapshotter(settings, log, "1s") as process:
        servers.wait_until(lambda: bool(committed(settings)), "the first snapshot")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert len(committed(settings)) == 80
    assert '"saved": 80' in log.read_text()


async def test_the_loop_survives_unavailable_servers(settings: Settings, tmp_path: Path) -> None:
    """Started before Redis, the snapshotter logs that, continues, and saves when Redis is there."""
    port = free_port()
    late = settings.model_copy(update={"store_url": type(settings.store_url)(f"redis://127.0.0.1:{port}/0")})
    log = tmp_path / "snapshotter.log"
    with snapshotter(late, log, "0.1s") as process:
        servers.wait_until(lambda: log.exists() and b"Redis is unavailable" in log.read_bytes(), "the log line")
        with servers.valkey(tmp_path / "late", port):
            async with workshop(late) as shop:
                model_hash = await shop.learned()
                servers.wait_until(lambda: bool(committed(late)), "the first snapshot")
            assert [document["hash"] for document in committed(late)] == [model_hash]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert "Traceback" not in log.read_text()


async def test_a_killed_snapshotter_leaves_no_document_without_a_blob(
    shop: Workshop, settings: Settings, tmp_path: Path
) -> None:
    """After kill -9 during a pass every committed document has its blob, and the next pass saves the rest."""
    hashes = [await shop.learned() for _ in range(80)]
    with snapshotter(settings, tmp_path / "snapshotter.log", "1s") as process:
        servers.wait_until(lambda: bool(committed(settings)), "the first snapshot")
        process.kill()
    assert without_blob(shop, committed(settings)) == []
    report = await shop.snapshotter.run_pass()
    assert report.failed == {}
    documents = committed(settings)
    assert Counter(document["hash"] for document in documents) == Counter(hashes)
    assert without_blob(shop, documents) == []
    assert await shop.store.changed() == []


async def test_models_are_restored_from_s3(settings: Settings, s3_url: str) -> None:
    """Models saved to a real S3 and lost from Redis are restored with the same predictions."""
    in_s3 = settings.model_copy(update={"snapshot_url": s3_url})
    async with workshop(in_s3) as shop:
        hashes = [await shop.learned() for _ in range(3)]
        predictions = {model_hash: await shop.predict(model_hash) for model_hash in hashes}
        report = await shop.snapshotter.run_pass()
        assert {document["hash"] for document in report.saved} == set(hashes)
        assert all(document["uri"].startswith(f"{s3_url}/{document['hash']}/1/1-") for document in report.saved)
        shop.redis.flushall()
        outcomes = await restore_many(in_s3, ModelFilter())
        assert [outcome.outcome for outcome in outcomes] == ["restored"] * 3
        assert {model_hash: await shop.predict(model_hash) for model_hash in hashes} == predictions


# Many models, and their garbage.


async def make_copies(shop: Workshop, count: int) -> None:
    """Register models and write them to Redis as copies of one saved model."""
    model_hash = await shop.learned()
    await shop.snapshotter.run_pass()
    state, bundle = shop.redis.dump(redis_keys.state(model_hash)), shop.redis.dump(redis_keys.bundle(model_hash))
    assert isinstance(state, bytes)
    assert isinstance(bundle, bytes)
    hashes = [f"{number:064x}" for number in range(count)]
    pipe = shop.redis.pipeline(transaction=False)
    for one in hashes:
        pipe.restore(redis_keys.state(one), 0, state)
        pipe.restore(redis_keys.bundle(one), 0, bundle)
    pipe.execute()
    with pymongo.MongoClient[Document](shop.settings.mongo_url.get_secret_value()) as client:
        models = client.get_default_database().models
        entry = models.find_one()
        assert entry is not None
        # More than one pass collects garbage of; registering all would take half of the test's time.
        models.insert_many([{**entry, "_id": one} for one in hashes[:500]])


async def test_a_pass_over_ten_thousand_models_reads_only_changed_ones(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10,000 models 100 changed: 100 bundles are read, 100 blobs and documents written, garbage of 200 collected."""
    await make_copies(shop, 9_900)
    changed = [await shop.learned() for _ in range(100)]
    counted = Counter[str]()

    def count(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def counting(*args: Any) -> Any:
            counted[name] += len(args[0]) if isinstance(args[0], list) else 1
            return real(*args)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in (
        (shop.registry, "write_intents"), (shop.registry, "commit_many"), (shop.registry, "find"),
        (shop.storage, "put"), (shop.storage, "get"), (shop.store, "note_snapshots"),
    ):  # fmt: skip
        count(owner, name)
    collected_hashes = []
    lifetimes = snapshot_upkeep.list_lifetimes

    async def counted_lifetimes(*args: Any) -> list[snapshot_upkeep.ModelLifetime]:
        collected_hashes.extend(found := await lifetimes(*args))
        return found

    monkeypatch.setattr(snapshot_upkeep, "list_lifetimes", counted_lifetimes)
    before = commands(shop)
    report = await shop.snapshotter.run_pass()
    executed = commands(shop) - before
    assert sorted(document["hash"] for document in report.saved) == sorted(changed)
    assert executed["get"] == executed["strlen"] == 100
    assert executed["hmget"] <= 300
    # The blob that names the history is read only if this slice has blobs.
    assert counted.pop("get", 0) <= 1
    assert counted == dict.fromkeys(("write_intents", "commit_many", "put", "note_snapshots"), 100)
    assert len(collected_hashes) == shop.settings.garbage_entries_max


def commands(shop: Workshop) -> Counter[str]:
    """Return the number of commands that Redis has executed, by name."""
    stats: Any = shop.redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): found["calls"] for name, found in stats.items()})


async def test_garbage_of_every_model_is_collected_in_turn(settings: Settings) -> None:
    """Each pass continues after the last, includes deleted models, and starts again after the last model."""
    few = settings.model_copy(update={"garbage_entries_max": 2, "garbage_grace_s": 0, "retention_all_s": 0})
    async with workshop(few) as shop:
        hashes = [await shop.make() for _ in range(5)]
        for model_hash in hashes:
            shop.storage.put(f"{model_hash}/1/1-lost", b"x")
        await shop.registry.unregister(hashes[0])
        after = []
        for _ in range(4):
            after.append((await shop.store.collection())[0])
            assert (await shop.snapshotter.run_pass()).cleanup_error == ""
        assert after == ["", sorted(hashes)[1], sorted(hashes)[3], ""]
        assert list(shop.storage.list("", "g")) == []


async def test_a_failed_collection_is_reported_and_affects_nothing_else(shop: Workshop) -> None:
    """A pass whose collection fails saves changed models; the snapshot state says why, until one succeeds."""
    first = await shop.learned()
    await shop.snapshotter.run_pass()
    owner = shop.storage.get("keepfit-history")
    shop.storage.put("keepfit-history", b"another")
    await shop.learn(first)
    report = await shop.snapshotter.run_pass()
    assert [document["version"] for document in report.saved] == [2]
    state = await shop.store.snapshot_state()
    assert (state.failed, state.reason) == (0, "")
    assert state.uncollected == report.cleanup_error
    assert "holds the snapshots of another history" in state.uncollected
    assert owner is not None
    shop.storage.put("keepfit-history", owner)
    assert (await shop.snapshotter.run_pass()).cleanup_error == ""
    assert (await shop.store.snapshot_state()).uncollected == ""


async def test_bundles_in_memory_and_concurrent_writes_are_bounded(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many models changed, the settings bound the bytes in memory and the blobs written at once."""
    bounded = settings.model_copy(update={"snapshot_entries_max": 2, "snapshot_bytes_max": 10_000})
    async with workshop(bounded) as shop:
        hashes = [await shop.learned() for _ in range(12)]
        size = len(shop.data(hashes[0]))
        bundles, put = shop.store.bundles, shop.storage.put
        together: list[int] = []
        writing = threading.Semaphore(2)

        async def counted(some: Sequence[str]) -> object:
            together.append(len(some))
            return await bundles(some)

        def one_of_two(path: str, data: bytes) -> None:
            assert writing.acquire(blocking=False)
            put(path, data)
            writing.release()

        monkeypatch.setattr(shop.store, "bundles", counted)
        monkeypatch.setattr(shop.storage, "put", one_of_two)
        report = await shop.snapshotter.run_pass()
        assert (len(report.saved), sum(together)) == (12, 12)
        assert 1 <= max(together) <= max(1, 5_000 // size)


async def test_a_large_bundle_is_saved_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a bundle of more than half of the limit is saved, no other one is in memory."""
    async with workshop(settings) as shop:
        hashes = [await shop.learned() for _ in range(3)]
        for number, model_hash in enumerate(hashes[1:]):
            # Two of the bundles are larger than half of the limit.
            await shop.learn(model_hash, [[f"{number} {label:0200}", 2001] for label in range(40)], [1.0] * 40)
        sizes = {model_hash: len(shop.data(model_hash)) for model_hash in hashes}
        bytes_max = 2 * sizes[hashes[0]]
        assert min(sizes[each] for each in hashes[1:]) > bytes_max // 2
        saved, held = run.save_many, 0

        async def counted(resources: Resources, some: Sequence[str], limits: SaveLimits) -> object:
            nonlocal held
            size = sum(sizes[each] for each in some)
            held += size
            assert held <= bytes_max or held == size
            # Another group has the time to begin.
            await asyncio.sleep(0)
            try:
                return await saved(resources, some, limits)
            finally:
                held -= size

        monkeypatch.setattr(run, "save_many", counted)
        report = await Snapshotter(shop.resources, PassLimits(bytes_max=bytes_max)).run_pass()
        assert (len(report.saved), report.failed, held) == (3, {}, 0)

"""The row log: written calls are found until they expire, compaction or not, and damage is reported."""

import asyncio
import itertools
import random
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from keepfit.backends.blobs import Entry
from keepfit.errors import CorruptLogError, SettingsError, UnavailableError
from keepfit.history import Registry
from keepfit.history.registry import snapshot_upkeep
from keepfit.history.registry.snapshot_upkeep import Coverage
from keepfit.restore.requests import RestoreRequest
from keepfit.restore.restorer import Restorer
from keepfit.rowlog import compaction, row_log
from keepfit.rowlog.compaction import CompactionResult
from keepfit.rowlog.row_log import Call, RowLog, minute_of, open_log
from keepfit.settings import Settings
from keepfit.snapshots import save as saving
from keepfit_snapshotter.run import run_once
from tests.factories import Workshop, workshop

MODELS = ("ab" * 32, "cd" * 32, "ef" * 32)
# The begin of a minute.
THEN = 1_700_000_040.0
HOUR_S, DAY_S = 3600.0, 86_400.0


@pytest.fixture(params=["local", "s3"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> RowLog:
    """Create a row log in each kind of storage."""
    opened = open_log((tmp_path / "log").as_uri() if request.param == "local" else request.getfixturevalue("s3_url"))
    assert opened is not None
    opened.probe()
    return opened


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


def call(model_hash: str, sequence: int, at: float = THEN, origin: int = 1, **other: Any) -> Call:
    """Return a call of two requests."""
    payloads = (b"rows %d" % sequence, b"rows %d" % (sequence + 1))
    return Call(
        model_hash, origin, sequence, at, **{"digest": f"d{sequence}", "name": "", "payloads": payloads, **other}
    )


def reopen(log: RowLog) -> RowLog:
    """Open the log again, as another process does."""
    return RowLog(log.storage)


def set_coverage(of: Callable[[str], Coverage | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let snapshots cover what `of` returns for each model, None for a model that is not registered."""

    async def find_coverage(registry: Registry, hashes: Iterable[str], since_s: float) -> dict[str, Coverage]:
        found = {model_hash: of(model_hash) for model_hash in hashes}
        return {model_hash: cover for model_hash, cover in found.items() if cover is not None}

    monkeypatch.setattr(snapshot_upkeep, "find_coverage", find_coverage)


async def compact(log: RowLog, now_s: float, keep_s: float = 7 * DAY_S) -> CompactionResult:
    """Compact the log; its coverage needs no history."""
    unused: Any = None
    return await compaction.compact(log, unused, now_s, keep_s)


def folders(log: RowLog) -> dict[str, int]:
    """Return the number of objects in each folder of a minute."""
    found: dict[str, int] = {}
    for path in log.paths("n", "o~"):
        folder = path.partition("/")[0]
        found[folder] = found.get(folder, 0) + 1
    return found


def test_written_calls_are_found(log: RowLog) -> None:
    """A view has all calls of a model that any process wrote before it, and none of another model."""
    a, b, _ = MODELS
    calls = [call(a, 1), call(b, 1, name="c:mine"), call(a, 3, at=THEN + 90, payloads=(b"\0" * 100_000,))]
    log.write(calls[:2])
    before = reopen(log).view()
    log.write(calls[2:])
    assert (before.calls(a, None), before.calls(b, None)) == (calls[:1], calls[1:2])
    view = reopen(log).view()
    assert sorted(view.calls(a, None), key=lambda found: found.sequence) == [calls[0], calls[2]]
    assert view.calls(MODELS[2], 0.0) == []
    assert folders(log) == {f"n{minute_of(THEN)}": 1, f"n{minute_of(THEN + 90)}": 1}


def test_a_missing_log_is_not_an_empty_one(tmp_path: Path, s3_url: str) -> None:
    """Listing a log that does not exist is an error; the first probe of a gateway creates it."""
    assert open_log("") is None
    with pytest.raises(SettingsError, match="KEEPFIT_ROW_LOG_URL: 'http://x'"):
        open_log("http://x")
    for url in ((tmp_path / "log").as_uri(), s3_url):
        log = open_log(url)
        assert log is not None
        with pytest.raises(UnavailableError, match=r"does not exist|There is no row log"):
            log.view()
        log.probe()
        assert log.view().calls(MODELS[0], 0.0) == []


async def test_minutes_are_merged_moved_and_deleted(log: RowLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Covered calls are moved and deleted when they are old enough; uncovered calls stay, whatever their age."""
    a, b, c = MODELS
    # One of the two requests of b's call.
    learned = {a: 2, b: 1}
    set_coverage(lambda model: Coverage(1, upto={1: learned[model]}) if model in learned else None, monkeypatch)
    calls = [call(a, 1), call(b, 1), call(c, 1), call(a, 3, at=THEN + 59)]
    repeats = [call(a, 1, at=THEN + 30), call(b, 1, at=THEN - 2)]
    for each in [*calls, *repeats]:
        log.write([each])
    minute = minute_of(THEN)
    early = reopen(log).view()
    assert await compact(log, THEN + 179) == CompactionResult()
    assert (await compact(log, THEN + 180)).merged == 5
    assert folders(log) == {f"n{minute_of(THEN - 2)}": 1, f"n{minute}": 1, f"o{minute}": 1}
    # A view from before the compaction finds everything: its owner may not know of later snapshots.
    assert {found.sequence for found in early.calls(a, None)} == {1, 3}
    for view in (early, reopen(log).view()):
        assert calls[3] in view.calls(a, None)
        assert view.calls(c, None) == [calls[2]]
        assert {found.sequence for found in view.calls(a, THEN)} == {1, 3}
    assert reopen(log).view().calls(a, None) == [calls[3]]
    assert reopen(log).view().calls(a, THEN + 60) == [calls[3]]
    # The first of two repeats is kept.
    (first,) = (found for found in reopen(log).view().calls(a, THEN) if found.sequence == 1)
    assert first.at == THEN
    # Nothing is new, so nothing is written again.
    before = log.paths("n", "o~")
    assert (await compact(log, THEN + 400), log.paths("n", "o~")) == (CompactionResult(), before)
    learned.update({a: 4, b: 2})
    assert (await compact(log, THEN + 500)).merged == 2
    assert reopen(log).view().calls(a, None) == reopen(log).view().calls(b, None) == []
    assert {found.sequence for found in reopen(log).view().calls(a, THEN)} == {1, 3}
    # Unfinished files and covered calls expire; uncovered calls never do.
    assert (await compact(log, THEN + DAY_S, keep_s=DAY_S - 59)).expired == 1
    assert (await compact(log, THEN + DAY_S, keep_s=DAY_S - 60)).expired == 2
    assert [*folders(log)] == [f"n{minute}"]
    assert reopen(log).view().calls(c, None) == [calls[2]]


async def test_a_damaged_object_is_reported_and_left_alone(log: RowLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """No view skips it, whatever the model; compaction processes the other objects and reports it."""
    set_coverage(lambda model: None, monkeypatch)
    for sequence in (1, 3, 5):
        log.write([call(MODELS[0], sequence)])
    path = sorted(log.paths("n", "n~"))[1]
    good = log.storage.get(path) or b""
    for bad in (good[:-1], good[:60] + bytes([good[60] ^ 1]) + good[61:], b""):
        log.storage.put(path, bad)
        for model in MODELS[:2]:
            with pytest.raises(CorruptLogError, match=path.replace("+", ".")):
                reopen(log).view().calls(model, None)
    with capture_logs() as logged:
        assert await compact(reopen(log), THEN + HOUR_S) == CompactionResult(merged=2, damaged=1)
    assert [line["event"] for line in logged] == ["row_log_damaged"]
    assert path in log.paths("n", "n~")
    # After an operator has moved it away the log is readable.
    log.storage.put("aside", bad)
    log.storage.delete([Entry(path)])
    assert len(reopen(log).view().calls(MODELS[0], None)) == 2


async def test_no_call_is_lost_or_invented_under_concurrent_writes_and_compactions(
    log: RowLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three writers, two compactions and snapshots at once, each view has all earlier uncovered calls.

    A view that asks for covered calls too has all earlier calls.
    """
    covered = dict.fromkeys(MODELS, 0)
    set_coverage(lambda model: Coverage(1, upto={1: covered[model]}), monkeypatch)
    written: dict[str, set[int]] = {model: set() for model in MODELS}
    count = 120 if log.storage.url.startswith("file") else 25
    writing = threading.Event()
    writing.set()

    def write(model: str) -> None:
        mine, chance = reopen(log), random.Random(model)
        for sequence in range(1, 2 * count, 2):
            mine.write([call(model, sequence, at=THEN + sequence % 7 * 20)])
            written[model].add(sequence)
            covered[model] = max(sequence + 1 - chance.randrange(30), covered[model])

    def merge(now_s: float) -> None:
        mine = reopen(log)
        while writing.is_set():
            asyncio.run(compact(mine, now_s))
            # The clock advances slowly: merged objects stay unchanged while others list.
            now_s += 20

    def view() -> None:
        mine = reopen(log)
        while writing.is_set():
            for model in MODELS:
                before = set(written[model])
                listed = mine.view()
                # The newest snapshot is read after the listing.
                upto = covered[model]
                now = {found.sequence for found in listed.calls(model, None)}
                assert {sequence for sequence in before if sequence + 1 > upto} <= now
                every = {found.sequence for found in listed.calls(model, THEN - 60)}
                assert before | now <= every <= set(range(1, 2 * count, 2))

    with ThreadPoolExecutor(6) as threads:
        others = [threads.submit(view), *(threads.submit(merge, THEN + 1000 + late) for late in (0, 10))]
        writers = [threads.submit(write, model) for model in MODELS]
        await asyncio.to_thread(wait, writers)
        writing.clear()
        for each in (*writers, *others):
            each.result()
    end = reopen(log).view()
    for model in MODELS:
        found = end.calls(model, 0.0)
        assert {each.sequence for each in found} == written[model]
        assert set(map(_plain, found)) == {_plain(call(model, n)) for n in written[model]}


def _plain(found: Call) -> tuple[Any, ...]:
    return found.hash, found.origin, found.sequence, found.digest, found.name, found.payloads


def test_a_view_reads_each_object_once_for_many_models(log: RowLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many models share one read of each object that fits into memory; else each reads the objects it is in."""
    for sequence in range(1, 9, 2):
        log.write([call(model, sequence) for model in MODELS[: 1 + sequence // 4]])
    read: list[str] = []
    get = type(log.storage).get

    def count(storage: Any, path: str) -> bytes | None:
        read.append(path)
        return get(storage, path)

    monkeypatch.setattr(type(log.storage), "get", count)
    view = reopen(log).view()
    for model in MODELS * 3:
        view.calls(model, None)
    assert len(read) == 1 + 4
    read.clear()
    small = RowLog(log.storage, cache_bytes_max=0).view()
    for model, objects in zip(MODELS, (4, 2, 0), strict=True):
        read.clear()
        assert len(small.calls(model, None)) == objects
        assert len(read) == objects + (4 if model == MODELS[0] else 0)


def test_coverage_of_a_call() -> None:
    """A snapshot covers its sequences; with an origin it also covers everything of earlier origins."""
    cover = Coverage(born=3)
    assert not cover.covers(3, 1)
    assert cover.covers(2, 99)
    # An imported snapshot has a higher generation, and pending requests may be learned on top of it.
    cover.add({"generation": 7, "sequence": 50})
    assert (cover.covers(3, 1), cover.covers(7, 50), cover.covers(7, 51)) == (False, True, False)
    cover.add({"generation": 9, "origin": 3, "sequence": 10})
    cover.add({"generation": 4, "origin": 3, "sequence": 8})
    assert (cover.covers(3, 10), cover.covers(3, 11), cover.covers(9, 1)) == (True, False, False)
    cover.add({"generation": 9, "origin": 9, "sequence": 12})
    assert (cover.covers(3, 11), cover.covers(9, 12), cover.covers(9, 13)) == (True, True, False)


async def test_snapshots_have_the_origin_of_their_sequences(shop: Workshop) -> None:
    """Coverage is right after a save, a rewind, a restore, a deletion and a new creation of the model."""
    model_hash = await shop.learned(a=1)

    async def covered() -> Coverage:
        found = await snapshot_upkeep.find_coverage(shop.registry, [model_hash, "0" * 64], 0.0)
        assert found.keys() == {model_hash}
        return found[model_hash]

    assert not (await covered()).covers(1, 1)
    assert await save(shop, model_hash) == (1, 1, 1)
    await shop.accept(model_hash)
    assert ((await covered()).covers(1, 1), (await covered()).covers(1, 2)) == (True, False)
    await shop.learn(model_hash)
    assert await save(shop, model_hash) == (1, 1, 3)
    restorer = Restorer(shop.resources)
    assert (await restorer.restore_or_rewind(model_hash, RestoreRequest(version=1))).restored
    # After a rewind its sequences continue: forgotten requests must not be replayed.
    newest = await shop.registry.newest(model_hash, 1)
    assert newest is not None
    assert (newest["generation"], newest["origin"], newest["sequence"]) == (2, 1, 3)
    shop.lose(model_hash)
    await restorer.restore_or_rewind(model_hash, RestoreRequest())
    await shop.learn(model_hash)
    generation = (await shop.model(model_hash)).generation
    assert not (await covered()).covers(generation, 4)
    assert await save(shop, model_hash) == (generation, generation, 4)
    assert ((await covered()).covers(generation, 4), (await covered()).covers(1, 99)) == (True, True)
    await shop.registry.unregister(model_hash)
    assert (await covered()).covers(generation + 5, 1)
    await shop.make(a=1, session=(await shop.model(model_hash)).metadata["session"])
    assert not (await covered()).covers(generation + 1, 1)
    # Snapshots from before the call was accepted are not read.
    assert not (await snapshot_upkeep.find_coverage(shop.registry, [model_hash], time.time() + 60))[model_hash].upto


async def test_a_pass_compacts_the_log(settings: Settings, tmp_path: Path) -> None:
    """A pass moves the calls that it has saved; it reports a damaged or unavailable log, and saves models anyway."""
    logged = settings.model_copy(update={"row_log_url": (tmp_path / "log").as_uri()})
    log = open_log(logged.row_log_url)
    assert log is not None
    async with workshop(logged) as shop:
        model_hash = await shop.learned()
        for sequence in (1, 2):
            log.write([call(model_hash, sequence, at=time.time() - 300, payloads=(b"rows",))])
        report = await run_once(logged)
        assert (len(report.saved), report.compacted, report.cleanup_error) == (1, CompactionResult(merged=2), "")
        assert [found.sequence for found in reopen(log).view().calls(model_hash, None)] == [2]
        (path,) = log.paths("n", "n~")
        log.storage.put(path.replace("/m", "/"), b"damaged")
        report = await run_once(logged)
        assert (report.compacted.damaged, report.cleanup_error) == (1, "1 objects of the row log are damaged")
        assert (await shop.store.snapshot_state()).uncollected == report.cleanup_error
        shutil.rmtree(tmp_path / "log")
        (tmp_path / "log").write_text("no folder")
        await shop.learn(model_hash)
        report = await run_once(logged)
        assert len(report.saved) == 1
        assert "log" in report.cleanup_error


async def save(shop: Workshop, model_hash: str) -> tuple[int, int, int]:
    """Save a model; return generation, origin and sequence of its document."""
    document = await saving.save(shop.resources, model_hash)
    assert document is not None
    return document["generation"], document["origin"], document["sequence"]


def test_names_of_minutes_sort_by_time() -> None:
    """Names sort as times do, and the name before a folder sorts after the folder of the minute before."""
    times = [THEN + n * 60 for n in range(0, 100_000, 997)]
    names = [minute_of(at) for at in times]
    assert names == sorted(names)
    for before, after in itertools.pairwise(names):
        assert f"o{before}" < row_log._before(f"o{after}") < f"o{after}"

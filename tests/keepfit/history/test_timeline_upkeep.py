"""Roll-ups and retention of stored documents, on a real MongoDB server."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymongo.database import Database

from keepfit.errors import SettingsError, UnavailableError
from keepfit.history import Document, Registry, Timeline
from keepfit.history.documents import to_stored
from keepfit.history.holds import Holds
from keepfit.history.queries import columns, reading
from keepfit.history.registry import snapshot_upkeep
from keepfit.history.rollups import changes as rollup_changes
from keepfit.history.rollups import reading as rollup_reading
from keepfit.history.rollups.changes import RollupChanges
from keepfit.history.rollups.documents import Rollup, group_of, summary_of
from keepfit.history.rollups.summaries import STATS, Summary
from keepfit.history.upkeep import expiry, rollups, timeline_upkeep
from keepfit.history.upkeep.timeline_upkeep import Upkeep
from keepfit.history.writing.stored import StoredDocuments
from keepfit.settings import Settings
from tests.keepfit.history.test_registry import commit
from tests.keepfit.history.test_registry import document as snapshot

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
ROLLUP = Rollup("vote", "5m", "fit.size", "brand")


@pytest.fixture
def timeline(registry: Registry) -> Timeline:
    """Return the empty timeline."""
    return registry.timeline


def votes(*minutes: float) -> list[dict[str, Any]]:
    """Return documents of two brands, these minutes after noon."""
    return [
        {
            "type": "vote",
            "timestamp": NOON + 60 * minute,
            "brand": ("nike", "puma")[int(minute) % 2],
            "fit": {"size": minute},
        }
        for minute in minutes
    ]


async def rollup_documents(timeline: Timeline) -> dict[tuple[float, str], dict[str, Any]]:
    """Return the roll-up documents by minute after noon and brand."""
    found = await timeline.query({"type": "vote/5m", "of": "fit.size"})
    return {((document["timestamp"] - NOON) / 60, document["brand"]): document for document in found}


async def test_each_finished_interval_is_rolled_up_once(timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each interval and group is one document with all statistics, also with concurrent calls and small windows."""
    monkeypatch.setattr(reading, "COLUMNS_CHUNK", 3)
    await timeline.bulk_upsert(votes(*range(20), -60 * 24 * 400))
    now = NOON + 60 * 18
    await asyncio.gather(*(rollups.roll_up(timeline, ROLLUP, now) for _ in range(4)))
    found = await rollup_documents(timeline)
    minutes = {(float(begin), brand) for begin in (0, 5, 10) for brand in ("nike", "puma")}
    assert found.keys() == minutes | {(-60 * 24 * 400.0, "nike")}
    assert found[5.0, "puma"] == {
        "type": "vote/5m", "timestamp": NOON + 300, "of": "fit.size", "brand": "puma",
        "count": 3.0, "sum": 21.0, "mean": 7.0, "min": 5.0, "max": 9.0, "first": 5.0, "last": 9.0,
    }  # fmt: skip
    points = await timeline.points("max", "1h", "max", {"type": "vote/5m", "brand": "puma"}, start=NOON)
    assert points == [{"timestamp": NOON, "value": 13.0}]


async def test_a_rollup_continues_where_it_stopped(timeline: Timeline) -> None:
    """The next call writes new intervals only, and those of which documents were stored late."""
    await timeline.bulk_upsert(votes(0, 2, 6))
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 600) == 2
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 600) == 0
    before = await rollup_documents(timeline)
    await timeline.bulk_upsert(votes(8, 11, 14))
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 900) == 3
    after = await rollup_documents(timeline)
    assert (before[5.0, "nike"]["count"], after[5.0, "nike"]["count"]) == (1, 2)
    assert after[0.0, "nike"] == before[0.0, "nike"]
    assert after[10.0, "puma"]["mean"] == 11


async def test_documents_stored_late_are_rolled_up(timeline: Timeline) -> None:
    """Documents of any past time reach their roll-up, also after a first call that found none."""
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 3600) == 0
    await timeline.bulk_upsert(votes(-60 * 24 * 400, 10))
    await timeline.store(votes(3)[0])
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 3600) == 3
    assert (await rollup_documents(timeline)).keys() == {(-576_000.0, "nike"), (10.0, "nike"), (0.0, "puma")}
    # A document of the present, and one that replaces another.
    await timeline.bulk_upsert([*votes(61), {**votes(3)[0], "fit": {"size": 7}}], ["timestamp"])
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 3600) == 1
    assert (await rollup_documents(timeline))[0.0, "puma"]["mean"] == 7
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 3600) == 0
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 3900) == 1


async def test_a_document_that_moves_to_another_time_leaves_its_roll_up(timeline: Timeline) -> None:
    """An upsert by keys without the time changes the interval of the document that it replaces, too."""
    await timeline.bulk_upsert(votes(0, 2))
    await rollups.roll_up(timeline, ROLLUP, NOON + 3600)
    (moved,) = votes(10)
    await timeline.bulk_upsert([{**votes(2)[0], "timestamp": moved["timestamp"]}], ["fit"])
    await rollups.roll_up(timeline, ROLLUP, NOON + 3600)
    found = await rollup_documents(timeline)
    assert {key: document["count"] for key, document in found.items()} == {(0.0, "nike"): 1, (10.0, "nike"): 1}


async def test_a_mark_outlives_a_run_that_may_not_have_seen_its_change(
    timeline: Timeline, database: Database[Document]
) -> None:
    """A mark is set before the change; it stays until no change can be on its way, and whatever sets it again."""
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 3600) == 0
    changes = timeline.rollup_changes
    async with changes.writing([{"type": "vote", "timestamp": NOON}]):
        # The writer's process may die here, or pause: its change is not stored yet.
        assert await rollups.roll_up(timeline, ROLLUP, NOON + 3600) == 0
    (mark,) = await changes.find(ROLLUP.id)
    assert (mark.first, mark.last, mark.new, mark.settled) == (NOON, NOON + 300, False, False)
    database["timeline"].insert_one(to_stored(votes(0)[0]))
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 3600) == 1
    # Time passes; the next run is the last one that the mark needs.
    long_ago = datetime.now(UTC) - timedelta(seconds=2 * rollup_changes.WRITE_S)
    database["rollup_changes"].update_one({}, {"$set": {"at": long_ago}})
    (settled,) = await changes.find(ROLLUP.id)
    async with changes.writing(votes(1)):
        await changes.finish([settled])
    assert len(await changes.find(ROLLUP.id)) == 1
    database["rollup_changes"].update_one({}, {"$set": {"at": long_ago}})
    await rollups.roll_up(timeline, ROLLUP, NOON + 3600)
    assert await changes.find(ROLLUP.id) == []


async def test_a_roll_up_that_is_new_while_a_document_is_written_learns_of_it(timeline: Timeline) -> None:
    """A writer that knew of no roll-up looks again after its write."""
    async with timeline.rollup_changes.writing(votes(0)):
        await rollups.roll_up(timeline, ROLLUP, NOON + 3600)
    assert len(await timeline.rollup_changes.find(ROLLUP.id)) == 1


async def test_deleted_documents_leave_their_roll_up(timeline: Timeline) -> None:
    """After delete and delete_many the next call aggregates what is left, and deletes roll-ups of nothing."""
    await timeline.bulk_upsert(votes(0, 2, 4, 5, 10, 11))
    await rollups.roll_up(timeline, ROLLUP, NOON + 3600)
    assert await timeline.delete({"type": "vote", "timestamp": NOON + 240})
    assert await timeline.delete_many({"type": "vote", "brand": "puma"}, NOON + 300, NOON + 600) == 1
    await rollups.roll_up(timeline, ROLLUP, NOON + 3600)
    found = await rollup_documents(timeline)
    assert {key: document["count"] for key, document in found.items()} == {
        (0.0, "nike"): 2, (10.0, "nike"): 1, (10.0, "puma"): 1,
    }  # fmt: skip
    await timeline.delete_many({})
    await rollups.roll_up(timeline, ROLLUP, NOON + 3600)
    assert await rollup_documents(timeline) == {}


async def test_roll_ups_equal_one_of_all_documents_at_the_end(timeline: Timeline) -> None:
    """Whatever is stored and deleted in whatever order between calls, the roll-ups are those of all documents left."""
    rng = np.random.default_rng(11)
    left: dict[float, dict[str, Any]] = {}
    for number in range(12):
        for document in votes(*rng.uniform(-100_000, 200, 8), *rng.uniform(5 * number, 5 * number + 15, 4)):
            left[document["timestamp"]] = document
            await timeline.store(document)
        gone = [left.pop(at) for at in rng.choice(sorted(left), 2, replace=False)]
        for document in gone:
            await timeline.delete({"type": "vote", "timestamp": document["timestamp"]})
        await rollups.roll_up(timeline, ROLLUP, NOON + 300 * number)
    await rollups.roll_up(timeline, ROLLUP, NOON + 3600)
    grown = await rollup_documents(timeline)
    frame = pd.DataFrame([{**each, "size": each["fit"]["size"]} for each in left.values()])
    frame = frame[frame["timestamp"] < NOON + 3600]
    expected = frame.groupby([frame["timestamp"] // 300 * 300, "brand"])["size"].agg(["count", "sum", "min", "max"])
    assert len(grown) == len(expected)
    for (minute, brand), document in grown.items():
        row = expected.loc[(NOON + 60 * minute, brand)]
        assert [document[stat] for stat in ("count", "min", "max")] == [row["count"], row["min"], row["max"]]
        assert document["sum"] == pytest.approx(row["sum"])
    await rollups.rebuild(timeline, ROLLUP, NOON + 3600)
    assert await rollup_documents(timeline) == grown


async def test_a_document_stored_during_a_call_is_rolled_up_by_the_next(
    timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that is stored after its interval was read, before the call ends, is in the roll-up after the next."""
    await timeline.bulk_upsert(votes(0, 2))
    read = rollups.read_intervals

    async def read_then_store(*arguments: Any) -> Any:
        found = await read(*arguments)
        monkeypatch.setattr(rollups, "read_intervals", read)
        await timeline.bulk_upsert(votes(4))
        return found

    monkeypatch.setattr(rollups, "read_intervals", read_then_store)
    await rollups.roll_up(timeline, ROLLUP, NOON + 600)
    assert (await rollup_documents(timeline))[0.0, "nike"]["count"] == 2
    assert (await timeline.rollup_progress.describe(ROLLUP.id))["state"] == "has late documents"
    await rollups.roll_up(timeline, ROLLUP, NOON + 600)
    assert (await rollup_documents(timeline))[0.0, "nike"]["count"] == 3
    assert (await timeline.rollup_progress.describe(ROLLUP.id)) == {"until": NOON + 600, "state": "up to date"}


async def test_an_interrupted_call_is_repeated(timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call did not finish is done by the next one, in addition to what was stored since."""
    await timeline.bulk_upsert(votes(0, 2))
    write = timeline.stored.replace_rollups

    async def fail(*_: Any) -> None:
        raise UnavailableError("MongoDB is unavailable")

    monkeypatch.setattr(timeline.stored, "replace_rollups", fail)
    with pytest.raises(UnavailableError):
        await rollups.roll_up(timeline, ROLLUP, NOON + 600)
    monkeypatch.setattr(timeline.stored, "replace_rollups", write)
    assert (await timeline.rollup_progress.describe(ROLLUP.id))["state"] == "running or interrupted"
    await timeline.bulk_upsert(votes(6))
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 600) == 2
    assert len(await rollup_documents(timeline)) == 2
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 600) == 0


async def test_a_late_document_is_added_to_those_that_have_expired(timeline: Timeline) -> None:
    """A late document of an interval whose documents have expired is merged into its roll-up, once."""
    await timeline.bulk_upsert(votes(0, 2, 30, 32))
    upkeep = Upkeep((ROLLUP,), (("vote", 1800.0),))
    assert await timeline_upkeep.run(timeline, upkeep, NOON + 3600) == (3, 2)
    late = votes(4, 14, 34)
    await timeline.bulk_upsert(late)
    for _ in range(3):
        await timeline_upkeep.run(timeline, upkeep, NOON + 3600)
        await rollups.rebuild(timeline, ROLLUP, NOON + 3600)
    found = await rollup_documents(timeline)
    counts = {(0.0, "nike"): 3, (10.0, "nike"): 1, (30.0, "nike"): 3}
    assert {key: document["count"] for key, document in found.items()} == counts
    first = found[0.0, "nike"]
    assert [first[stat] for stat in ("sum", "mean", "min", "max", "first", "last")] == [6, 2, 0, 4, 0, 4]
    assert [each["timestamp"] for each in await timeline.query({"type": "vote"})] == [
        NOON + 60 * minute for minute in (34, 32, 30)
    ]
    await rollups.rebuild(timeline, ROLLUP, NOON + 3600, force=True)
    assert (await rollup_documents(timeline)).keys() == {(30.0, "nike")}


async def test_roll_ups_of_version_0_1_are_completed(timeline: Timeline, database: Database[Document]) -> None:
    """Intervals that version 0.1 missed are rolled up; its own roll-ups stay, because documents may have expired."""
    await timeline.bulk_upsert(votes(0, 2, 6, 8))
    old = {"type": "vote/5m", "timestamp": NOON, "of": "fit.size", "brand": "nike", "count": 9.0}
    await timeline.bulk_upsert([old], ("timestamp", "of", "brand"))
    database["rollups"].insert_one({"_id": ROLLUP.id, "until": NOON + 3600})
    assert (await timeline.rollup_progress.describe(ROLLUP.id))["state"] == "new"
    assert await rollups.roll_up(timeline, ROLLUP, NOON + 3600) == 1
    found = await rollup_documents(timeline)
    assert (found[0.0, "nike"], found[5.0, "nike"]["count"]) == (old, 2)
    await rollups.rebuild(timeline, ROLLUP, NOON + 3600)
    assert (await rollup_documents(timeline))[0.0, "nike"] == old
    await rollups.rebuild(timeline, ROLLUP, NOON + 3600, force=True)
    assert (await rollup_documents(timeline))[0.0, "nike"]["count"] == 2


async def test_roll_ups_by_several_groups_stay_apart(timeline: Timeline) -> None:
    """Roll-ups of one field without a group and by two groups do not replace or delete each other's documents."""
    chosen = [Rollup("vote", "5m", "fit.size", group) for group in (None, "brand", "fit.size")]
    await timeline.bulk_upsert(votes(0, 1, 2))
    mine = {"type": "vote/5m", "timestamp": NOON + 1, "of": "fit.size", "note": "not a roll-up"}
    await timeline.store(mine)
    for _ in range(2):
        for rollup in chosen:
            await rollups.rebuild(timeline, rollup)
    found = await timeline.query({"type": "vote/5m", "timestamp": NOON})
    assert sorted(document["count"] for document in found) == [1, 1, 1, 1, 2, 3]
    assert await timeline.query({"type": "vote/5m", "note": "not a roll-up"}) == [mine]


async def test_late_snapshots_are_rolled_up(registry: Registry, database: Database[Document]) -> None:
    """Snapshots that are committed after their interval are rolled up; those deleted by retention stay in theirs."""
    timeline, rollup, field = registry.timeline, Rollup("shoes", "5m", "rows_seen"), {"type": "shoes"}
    await commit(registry, **field, timestamp=NOON, rows_seen=10)
    await timeline.store({**field, "timestamp": NOON + 1, "rows_seen": 99})
    assert await rollups.roll_up(timeline, rollup, NOON + 600, 3600.0) == 1
    for version, at in ((2, NOON + 2), (3, NOON - 86_400)):
        await commit(registry, **field, timestamp=at, version=version, rows_seen=20)
    late = snapshot(**field, timestamp=NOON + 3, version=4, rows_seen=30, attempt="a")
    await registry.write_intents([late])
    assert await registry.commit_many([late]) == [True]
    assert await rollups.roll_up(timeline, rollup, NOON + 600, 3600.0) == 2
    found = {each["timestamp"]: each for each in await timeline.query({"type": "shoes/5m"})}
    assert (found[NOON]["count"], found[NOON]["sum"], found[NOON - 86_400]["count"]) == (3, 60, 1)
    documents = await snapshot_upkeep.list_documents(registry, "", "g")
    await snapshot_upkeep.abort(registry, [each for each in documents if each["version"] in (2, 3)])
    database["history"].delete_many({"version": {"$in": [2, 3]}})
    for version, at in ((5, NOON + 4), (6, NOON + 7200)):
        await commit(registry, **field, timestamp=at, version=version, rows_seen=40)
    # What retention has not taken from is rolled up at any age.
    assert await rollups.roll_up(timeline, rollup, NOON + 86_400, 3600.0) == 1
    after = {each["timestamp"]: each for each in await timeline.query({"type": "shoes/5m"})}
    assert after.pop(NOON + 7200)["count"] == 1
    assert after == found
    await rollups.rebuild(timeline, rollup, NOON + 86_400, force=True)
    (forced,) = await timeline.query({"type": "shoes/5m"}, NOON, NOON + 1)
    assert (forced["count"], forced["sum"]) == (3, 80)


async def test_expired_documents_are_deleted_after_their_roll_up(registry: Registry) -> None:
    """Rules apply to a type or all others; roll-ups and snapshots stay; repeated and concurrent runs change no more."""
    timeline = registry.timeline
    await commit(registry, type="vote", timestamp=NOON - 1e6)
    await timeline.bulk_upsert([*votes(0, 1, 59), {"type": "other", "timestamp": NOON}])
    upkeep = Upkeep((ROLLUP,), (("vote", 1800.0), ("*", 1e5)))
    await asyncio.gather(*(timeline_upkeep.run(timeline, upkeep, NOON + 3600) for _ in range(3)))
    assert await timeline_upkeep.run(timeline, upkeep, NOON + 3600) == (0, 0)
    left = await timeline.query({"type": "vote"}, kind="all")
    assert [document["timestamp"] - NOON for document in left] == [59 * 60, -1e6]
    assert len(await rollup_documents(timeline)) == 3
    assert len(await timeline.query({"type": "other"})) == 1
    assert await timeline_upkeep.run(
        timeline, Upkeep(keep_s=(("vote/5m", 1e9), ("vote", 1e9), ("*", 60.0))), NOON + 3600
    ) == (
        0,
        1,
    )
    assert await timeline.query({"type": "other"}) == []


async def test_no_number_of_documents_holds_up_retention(timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval with more documents than are held at once is rolled up in parts, and they expire."""
    monkeypatch.setattr(columns, "GROUPED_MAX", 2)
    monkeypatch.setattr(rollup_reading, "HELD_MAX", 3)
    await timeline.bulk_upsert([{**vote, "timestamp": NOON} for vote in votes(*range(0, 20, 2))])
    upkeep = Upkeep((ROLLUP,), (("vote", 60.0),))
    assert (await timeline_upkeep.run(timeline, upkeep, NOON + 3600))[1] == 10
    (rolled,) = (await rollup_documents(timeline)).values()
    assert [rolled[stat] for stat in STATS] == [10, 90, 9, 0, 18, 0, 18]
    assert await timeline.query({"type": "vote"}) == []


class _Dies:
    """Lets calls of some methods fail, before or after their effect, as a process or a server that is killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
        self._rng = rng
        self.share = 0.0
        for owner, name in (
            (StoredDocuments, "replace_rollups"), (StoredDocuments, "list_all"), (Holds, "change"), (Holds, "take"),
            (expiry._Expiry, "_mark"), (expiry._Expiry, "_delete"), (expiry._Expiry, "_advance"),
            (RollupChanges, "finish"), (RollupChanges, "_mark"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, method: Any) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            fate = self._rng.random()
            if fate < self.share / 2:
                raise UnavailableError("killed before")
            result = await method(*arguments, **named)
            if fate < self.share:
                raise UnavailableError("killed after")
            return result

        return call


async def test_nothing_is_lost_or_doubled_whatever_fails(
    timeline: Timeline, monkeypatch: pytest.MonkeyPatch, database: Database[Document]
) -> None:
    """Backfill in random order, roll-ups and retention that fail at any step: the roll-ups of everything at once."""
    rng = np.random.default_rng(20)
    dies = _Dies(monkeypatch, rng)
    chosen = (ROLLUP, Rollup("vote", "1h", "fit.size"))
    upkeep = Upkeep(chosen, (("vote", 1800.0),))
    documents = [
        {**vote, "fit": {"size": float(rng.normal())}} for vote in votes(*rng.permutation(rng.uniform(0, 300, 150)))
    ]
    for number, batch in enumerate(np.array_split(np.arange(150), 15)):
        dies.share = 0.0 if number == 14 else 0.2
        some, stored = [documents[place] for place in batch], False
        while not stored:
            with contextlib.suppress(UnavailableError):
                await timeline.bulk_upsert(some)
                stored = True
        for _ in range(3):
            with contextlib.suppress(UnavailableError):
                await asyncio.gather(
                    *(timeline_upkeep.run(timeline, upkeep, NOON + 1200 * (number + 1)) for _ in range(2))
                )
            # A process that is killed releases nothing; here its time is over.
            for name in ("rollups", "rollup_expiries"):
                database[name].update_many({}, {"$set": {"held_until": 0.0}})
    for _ in range(2):
        await timeline_upkeep.run(timeline, upkeep, NOON + 40_000)
    assert await timeline.query({"type": "vote"}) == []
    for rollup in chosen:
        every = rollup.every_s
        groups: dict[Any, list[dict[str, Any]]] = {}
        for each in documents:
            groups.setdefault((each["timestamp"] // every * every, each["brand"] if rollup.group else None), []).append(
                each
            )
        found = list(database["timeline"].find({"type": rollup.target}))
        assert len(found) == len(groups)
        for stored in found:
            some = sorted(
                groups[stored["timestamp"], group_of(rollup, stored)], key=lambda each: float(each["timestamp"])
            )
            columns = (np.array([each["timestamp"] for each in some]), np.array([each["fit"]["size"] for each in some]))
            whole = Summary.of(*columns)
            summary = summary_of(stored)
            assert summary.sketch is not None
            assert whole.sketch is not None
            assert summary.sketch.to_bytes() == whole.sketch.to_bytes()
            assert summary.sum == pytest.approx(whole.sum, rel=1e-9, abs=1e-12)
            assert [summary.stat(stat) for stat in ("count", "min", "max", "first", "last")] == [
                whole.stat(stat) for stat in ("count", "min", "max", "first", "last")
            ]


def test_upkeep_is_parsed_from_the_settings() -> None:
    """Both settings are comma-separated lists."""
    settings = Settings(history_rollups="vote 5m fit.size brand, vote 1h n", history_keep="vote 30d, my type 1w,* 1d")
    assert Upkeep.of(settings) == Upkeep(
        (ROLLUP, Rollup("vote", "1h", "n")), (("vote", 2_592_000.0), ("my type", 604_800.0), ("*", 86_400.0)), 3600.0
    )
    assert Upkeep.of(Settings(retention_all_s=60)) == Upkeep(keep_snapshots_s=60.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"history_rollups": text}
        for text in ("vote", "vote 5m", "vote 5 n", "vote 5m a..b", "vote 5m n mean", "a 5m b c d")
    ]
    + [{"history_keep": text} for text in ("30d", "vote", "vote 30", "vote 0d")],
    ids=str,
)
def test_a_malformed_setting_is_named(wrong: dict[str, str]) -> None:
    """A malformed roll-up or rule is an error with the name of the variable and the malformed entry."""
    with pytest.raises(SettingsError, match=f"KEEPFIT_{next(iter(wrong)).upper()}: '"):
        Upkeep.of(Settings(**wrong))

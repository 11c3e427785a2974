"""Queries that roll-ups answer: the same points as from the documents, and percentiles of what has expired."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from pymongo.database import Database

from keepfit.errors import InvalidError
from keepfit.history import Document, Registry, Timeline
from keepfit.history.documents import to_stored
from keepfit.history.queries import columns
from keepfit.history.queries.filters import Filter
from keepfit.history.registry import snapshot_upkeep
from keepfit.history.rollups import answers as rollup_answers
from keepfit.history.rollups.changes import WRITE_S
from keepfit.history.rollups.documents import Rollup
from keepfit.history.rollups.progress import UNMARKED_S
from keepfit.history.rollups.sketch import ACCURACY
from keepfit.history.upkeep import rollups, timeline_upkeep
from keepfit.history.upkeep.timeline_upkeep import Upkeep
from tests.keepfit.history.test_registry import commit

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
PLAIN, GROUPED, HOURLY = (
    Rollup("vote", "5m", "fit.size"), Rollup("vote", "10m", "fit.size", "brand"), Rollup("vote", "1h", "fit.size"),
)  # fmt: skip
STATS = ("count", "sum", "mean", "min", "max", "first", "last", "spread", "median", "stddev")


@pytest.fixture
def timeline(registry: Registry) -> Timeline:
    """Return the empty timeline."""
    return registry.timeline


def settle(database: Database[Document]) -> None:
    """Let time pass after the last write."""
    long_ago = datetime.fromtimestamp(datetime.now(UTC).timestamp() - 2 * WRITE_S, UTC)
    database["rollup_changes"].update_many({}, {"$set": {"at": long_ago}})


def votes(rng: np.random.Generator, count: int, first: float = 0.0, last: float = 300.0) -> list[dict[str, Any]]:
    """Return documents at random minutes after noon, of three brands or none."""
    return [
        {
            "type": "vote",
            "timestamp": NOON + 60 * float(minute),
            **({"brand": ("nike", "puma", 7)[number % 4]} if number % 4 < 3 else {}),
            "fit": {"size": float(rng.normal(10, 4))},
        }
        for number, minute in enumerate(rng.uniform(first, last, count))
    ]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list of what roll-ups answer in this test; None for a query that no roll-up helps."""
    seen: list[Any] = []
    instead = rollup_answers.Answers.instead

    async def noted(*arguments: Any) -> Any:
        seen.append(await instead(*arguments))
        return seen[-1]

    monkeypatch.setattr(rollup_answers.Answers, "instead", noted)
    return seen


async def both(timeline: Timeline, monkeypatch: pytest.MonkeyPatch, **query: Any) -> list[list[dict[str, Any]]]:
    """Return the points of a query as planned, and from the documents alone."""
    planned = await timeline.points(**query)
    with monkeypatch.context() as patch:
        patch.setattr(rollup_answers.Answers, "instead", lambda *_: asyncio.sleep(0))
        return [[dict(point) for point in some] for some in (planned, await timeline.points(**query))]


async def test_roll_ups_answer_the_same_as_documents(
    timeline: Timeline, database: Database[Document], monkeypatch: pytest.MonkeyPatch, used: list[Any]
) -> None:
    """Whatever the statistic, group, zone, bounds, late documents and deletions: the points are those of documents."""
    rng = np.random.default_rng(7)
    await timeline.bulk_upsert(votes(rng, 200))
    for rollup in (PLAIN, GROUPED, HOURLY):
        await rollups.roll_up(timeline, rollup, NOON + 60 * 290)
    settle(database)
    for rollup in (PLAIN, GROUPED, HOURLY):
        await rollups.roll_up(timeline, rollup, NOON + 60 * 290)
    helped = 0
    for number in range(40):
        if number == 20:
            # From here on roll-ups lack some: late documents, deleted ones, and one interval without raw documents.
            await timeline.bulk_upsert(votes(rng, 3, 100, 130))
            await timeline.delete_many({"type": "vote"}, NOON + 60 * 40, NOON + 60 * 52)
        start, stop = sorted(rng.uniform(-20, 330, 2).round(rng.integers(0, 3)))
        where: dict[str, Any] = {"type": "vote"} if number % 5 else {"type": "vote", "brand": "nike"}
        query = {
            "field": "fit.size", "every": rng.choice(["5m", "10m", "15m", "1h", "2h", "7m"]),
            "stat": STATS[number % len(STATS)], "where": where,
            "start": None if number % 7 == 0 else NOON + 60 * start,
            "stop": None if number % 6 == 0 else NOON + 60 * stop,
            "group": (None, "brand")[number % 2], "tz": "Europe/Berlin" if number % 8 == 3 and number % 3 else None,
        }  # fmt: skip
        if query["tz"] is not None and query["every"] == "7m":
            query["every"] = "1d"
        used.clear()
        planned, plain = await both(timeline, monkeypatch, **query)
        helped += used[0] is not None
        assert [{**point, "value": None} for point in planned] == [{**point, "value": None} for point in plain], query
        values = [[np.nan if point["value"] is None else point["value"] for point in some] for some in (planned, plain)]
        assert values[0] == pytest.approx(values[1], rel=1e-9, nan_ok=True), query
    assert helped >= 12


async def test_a_whole_day_reads_no_documents(
    timeline: Timeline, database: Database[Document], monkeypatch: pytest.MonkeyPatch, used: list[Any]
) -> None:
    """Where a roll-up has everything, it is all that is read; of several the one with the longest intervals."""
    await timeline.bulk_upsert(votes(np.random.default_rng(1), 60, 0, 120))
    for rollup in (PLAIN, HOURLY):
        await rollups.roll_up(timeline, rollup, NOON + 7200)
    settle(database)
    for rollup in (PLAIN, HOURLY):
        await rollups.roll_up(timeline, rollup, NOON + 7200)
    monkeypatch.setattr(columns, "read_groups", None)
    query: dict[str, Any] = {"field": "fit.size", "where": {"type": "vote"}, "start": NOON, "stop": NOON + 7200}
    assert sum(point["value"] or 0 for point in await timeline.points(every="5m", stat="count", **query)) == 60
    assert len(used[0][0].times) > 2
    assert len(await timeline.points(every="2h", **query)) == 1
    assert len(used[1][0].times) == 2


async def test_what_has_expired_is_no_part_of_a_query_for_documents(
    timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query for documents answers what there is; one for the roll-up's type has what has expired, weighted."""
    rng = np.random.default_rng(3)
    made = votes(rng, 120, 0, 60)
    await timeline.bulk_upsert(made)
    await timeline_upkeep.run(timeline, Upkeep((PLAIN, GROUPED), (("vote", 1800.0),)), NOON + 3600)
    query: dict[str, Any] = {"field": "fit.size", "start": NOON, "stop": NOON + 3600}
    planned, plain = await both(timeline, monkeypatch, every="5m", stat="count", where={"type": "vote"}, **query)
    assert planned == plain
    assert sum(point["value"] for point in plain) == sum(each["timestamp"] >= NOON + 1800 for each in made)
    sizes = np.array([each["fit"]["size"] for each in made])
    (mean,) = await timeline.points(every="1h", stat="mean", where={"type": "vote/5m"}, **query)
    assert mean["value"] == pytest.approx(sizes.mean())
    for percent in (1, 50, 99.9):
        (found,) = await timeline.points(every="1h", stat=f"p{percent}", where={"type": "vote/5m"}, **query)
        assert found["value"] == pytest.approx(np.percentile(sizes, percent), rel=ACCURACY * 1.001)
    nike = np.array([each["fit"]["size"] for each in made if each.get("brand") == "nike"])
    (of_one,) = await timeline.points(every="1h", stat="sum", where={"type": "vote/10m", "brand": "nike"}, **query)
    assert of_one["value"] == pytest.approx(nike.sum())
    grouped = await timeline.points(every="1h", stat="count", where={"type": "vote/10m"}, group="brand", **query)
    assert {point["group"]: point["value"] for point in grouped} == {None: 30, "nike": 30, "puma": 30, 7: 30}
    with pytest.raises(InvalidError, match="Roll-ups have no stddev"):
        await timeline.points(every="1h", stat="stddev", where={"type": "vote/5m"}, **query)
    with pytest.raises(InvalidError, match="has other groups: brand"):
        await timeline.points(every="1h", where={"type": "vote/10m"}, group="colour", **query)


async def test_thinned_snapshots_are_read_themselves(
    registry: Registry, database: Database[Document], monkeypatch: pytest.MonkeyPatch, used: list[Any]
) -> None:
    """A roll-up of snapshots answers for hours from which retention took nothing, and for no others."""
    timeline, rollup = registry.timeline, Rollup("shoes", "5m", "rows_seen")
    for version in range(1, 9):
        await commit(registry, type="shoes", timestamp=NOON + 1000 * version, version=version, rows_seen=version)
    await rollups.roll_up(timeline, rollup, NOON + 10_000)
    settle(database)
    await rollups.roll_up(timeline, rollup, NOON + 10_000)
    query: dict[str, Any] = {"field": "rows_seen", "every": "1h", "stat": "sum", "where": {"type": "shoes"}}
    planned, plain = await both(timeline, monkeypatch, start=NOON, stop=NOON + 9000, **query)
    assert planned == plain
    assert len(used[0][0].times) == 8
    documents = await snapshot_upkeep.list_documents(registry, "", "g")
    await snapshot_upkeep.abort(registry, [each for each in documents if each["version"] in (1, 2)])
    planned, plain = await both(timeline, monkeypatch, start=NOON, stop=NOON + 9000, **query)
    assert planned == plain == [
        {"timestamp": NOON + 3600 * hour, "value": value} for hour, value in enumerate((3.0, 22.0, 8.0))
    ]  # fmt: skip
    assert used[1] is not None
    # Documents of users of the same type are another kind.
    await timeline.store({"type": "shoes", "timestamp": NOON, "rows_seen": 5})
    assert (await timeline.points(**query, kind="document"))[0]["value"] == 5
    assert used[2] is None


async def test_queries_are_the_same_after_documents_of_a_roll_up_are_gone(
    timeline: Timeline, database: Database[Document], monkeypatch: pytest.MonkeyPatch, used: list[Any]
) -> None:
    """A rule that deletes a roll-up's documents before those that it aggregates, or a deletion, changes no answer."""
    await timeline.bulk_upsert(votes(np.random.default_rng(5), 120))
    now = NOON + 60 * 300
    for keep in ((("vote", 1e6), ("*", 3600.0)), (("vote/1h", 7200.0),)):
        for _ in range(2):
            await timeline_upkeep.run(timeline, Upkeep((HOURLY,), keep), now)
            settle(database)
        query = {"field": "fit.size", "every": "1h", "stat": "count", "where": {"type": "vote"}}
        planned, plain = await both(timeline, monkeypatch, **query)
        assert planned == plain
        assert used.pop() is not None
    for delete in (
        lambda: timeline.delete({"type": "vote/1h"}),
        lambda: timeline.delete_many({"type": "vote/1h"}, NOON),
        lambda: timeline.writer.delete(Filter("vote/1h"), None, None),
    ):
        await timeline_upkeep.run(timeline, Upkeep((HOURLY,)), now)
        settle(database)
        await timeline_upkeep.run(timeline, Upkeep((HOURLY,)), now)
        assert await delete()
        planned, plain = await both(timeline, monkeypatch, **query)
        assert planned == plain


async def test_a_new_roll_up_takes_what_was_written_without_its_knowledge(
    timeline: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies within a write, before it could know the roll-up, leaves a document that is rolled up."""
    await rollups.roll_up(timeline, HOURLY, NOON + 86_400)
    await timeline.stored.source.collection.insert_one(to_stored(votes(np.random.default_rng(3), 1)[0]))
    assert await rollups.roll_up(timeline, HOURLY, NOON + 86_400) == 0
    later = time.time() + UNMARKED_S
    monkeypatch.setattr(time, "time", lambda: later)
    assert await rollups.roll_up(timeline, HOURLY, NOON + 86_400) == 1
    assert await rollups.roll_up(timeline, HOURLY, NOON + 86_400) == 0

"""The timeline on a real MongoDB server: documents by time, and points."""

import asyncio
import math
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pymongo.database import Database
from pymongo.errors import NetworkTimeout

from keepfit.errors import InvalidError, MalformedError, UnavailableError
from keepfit.history import Document, Registry, Timeline, TimelineSync, mongo, to_dataframe
from keepfit.history.queries import buckets, reading
from keepfit.history.queries.filters import Filter
from keepfit.local.servers import free_port
from keepfit.times import parse_time
from tests.keepfit.history.test_registry import commit

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
ERROR = "metrics.mean_absolute_error"


@pytest.fixture
def timeline(registry: Registry) -> Timeline:
    """Return the empty timeline."""
    return registry.timeline


def vote(at: float, **fields: Any) -> Document:
    """Return a document as a user stores it."""
    return {"type": "vote", "timestamp": at, **fields}


async def votes(timeline: Timeline, count: int = 10, step: float = 60.0, start: float = NOON) -> list[Document]:
    """Store `count` numbered documents, newest last; return them."""
    made = [vote(start + step * number, number=number, brand=("nike", "puma")[number % 2]) for number in range(count)]
    assert await timeline.bulk_upsert(made) == count
    return made


async def test_a_stored_document_is_found(timeline: Timeline) -> None:
    """A document is returned as it was stored, with any field names; storing it several times stores it once."""
    odd = {
        "$where": 1,
        "a.b": {"$ne": None},
        "_id": 7,
        "labels": [1],
        "status": "x",
        "hash": "y",
        "document": {"k": 2.5},
    }
    made = vote(NOON, metadata={"brand": "nike"}, **odd)
    await asyncio.gather(*(timeline.store(made) for _ in range(5)))
    del made["_id"]
    assert await timeline.query({"type": "vote"}) == [made]
    await timeline.store({"type": "vote", "timestamp": "2026-11-20T12:00Z", "at": datetime.fromtimestamp(NOON, UTC)})
    await timeline.store({"type": "vote", "timestamp": datetime.fromtimestamp(NOON, UTC), "n": np.int64(3)})
    assert sorted(len(found) for found in await timeline.query({"type": "vote"})) == [3, 3, 9]
    assert (await timeline.query({"n": 3}))[0] == vote(NOON, n=3)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"type": "vote"}, {"timestamp": 1}, {"type": "", "timestamp": 1}, {"type": 1, "timestamp": 1},
     {"type": "v", "timestamp": "whenever"}, {"type": "v", "timestamp": 1, 2: 3},
     {"type": "v", "timestamp": 1, "x": object()}, {"type": "v", "timestamp": 1, "x": 2**70}],
    ids=lambda document: str(sorted(map(str, document))),
)  # fmt: skip
async def test_an_invalid_document_is_refused(timeline: Timeline, wrong: Any) -> None:
    """A document without type or time, or with a value that MongoDB cannot store, is refused with the reason."""
    with pytest.raises((InvalidError, MalformedError), match=r"type|timestamp|time|strings|store"):
        await timeline.store(wrong)
    assert await timeline.query() == []


async def test_documents_with_equal_keys_replace_each_other(timeline: Timeline) -> None:
    """An upsert replaces documents with equal keys, however stored; `in_` matches one of several values."""
    first, second = (await votes(timeline, 2))[:2]
    changed = {**first, "brand": "hoka"}
    assert await timeline.bulk_upsert([changed], ["timestamp", "number"]) == 1
    assert await timeline.query({"type": "vote"}) == [second, changed]
    either = vote(second["timestamp"], brand=["puma", "asics"])
    await timeline.bulk_upsert([either], ["timestamp"], in_=["brand"])
    assert await timeline.query({"type": "vote"}) == [either, changed]
    new = [vote(NOON + 1, number=0), vote(NOON + 1, number=1)]
    await asyncio.gather(*(timeline.bulk_upsert(new, ["timestamp", "number"]) for _ in range(4)))
    assert len(await timeline.query({"type": "vote"})) == 4
    with pytest.raises(InvalidError, match="'brand'"):
        await timeline.bulk_upsert([vote(NOON)], ["brand"])


async def test_queries_of_funtime(timeline: Timeline) -> None:
    """Each query of funtime returns the documents that its name says, newest first."""
    made = await votes(timeline)
    newest = made[::-1]
    mine = {"type": "vote"}
    assert await timeline.query_sorted(mine, limit=3) == newest[:3]
    assert await timeline.query_last(mine) == newest[0]
    assert await timeline.query_last({"type": "other"}) is None
    assert await timeline.query_latest(mine, since=NOON + 121, limit=2) == [made[2], made[1]]
    assert await timeline.query_time("window", NOON + 60, NOON + 180, "vote") == [made[2], made[1]]
    assert await timeline.query_time("before", NOON + 60, query_type="vote", brand="nike") == [made[0]]
    assert await timeline.query_time("after", "2026-11-20T12:08Z", query_type="vote") == [made[9], made[8]]
    for at, number in {NOON - 1e6: 0, NOON + 29: 0, NOON + 30: 1, NOON + 31: 1, NOON + 1e6: 9}.items():
        assert await timeline.query_closest({**mine, "timestamp": at}) == made[number]
    pages = [await timeline.query(mine, page_size=4, page_num=number) for number in (1, 2, 3, 4)]
    assert pages == [newest[:4], newest[4:8], newest[8:], []]
    assert await timeline.query(mine, limit=5, page_size=4, page_num=2) == newest[4:5]
    with pytest.raises(InvalidError, match="time_type"):
        await timeline.query_time("between", NOON)
    assert (await timeline.stats())["stored"] == 10


async def test_names_of_funtime_mean_what_they_mean_there(timeline: Timeline) -> None:
    """`_column_first`, `_in`, `_type`, `pagination` and a window without an end are taken; other uses name the cure."""
    made = await votes(timeline)
    newest, mine = made[::-1], {"type": "vote"}
    assert await timeline.query(_type="vote") == newest
    assert await timeline.query_latest({"brand": "nike"}, _type="vote") == [made[8]]
    assert await timeline.query_last(_type="vote", where={"brand": "nike"}) == made[8]
    assert await timeline.query(mine, pagination=True, page_num=2) == []
    assert await timeline.query(mine, pagination=True, page_size=4, page_num=3) == newest[8:]
    assert await timeline.query(mine, pagination=False, page_size=4) == newest
    paged = {"pagination": True, "page_size": 3, "page_num": 2}
    assert await timeline.query_latest({**mine, "since": NOON + 300}, **paged) == [made[1], made[0]]
    assert await timeline.query_latest({**mine, "since": NOON + 300, "limit": 4}, **paged) == [made[1]]
    assert await timeline.query_time(start=NOON + 480, query_type="vote") == [made[9], made[8]]
    assert await timeline.query_time("window", NOON + 480, query_type="vote", pagination=True, page_size=1) == [made[9]]
    changed = [{**made[3], "brand": "adidas"}, {**made[4], "brand": "adidas"}]
    await timeline.bulk_upsert(changed, _column_first=["type"], _in=["timestamp"])
    assert await timeline.query({**mine, "brand": "adidas"}) == changed[::-1]
    await timeline.bulk_upsert([made[3]], _column_first=["type"])
    assert len(await timeline.query(mine)) == 10
    for call, cure in (
        (timeline.query_time({"brand": "nike"}), "query_time takes values by name"),
        (timeline.query(mine, {"brand": "nike"}), "join its values"),
        (timeline.query({**mine, "since": 1}), "query_latest takes it so; elsewhere pass the times as start and stop"),
        (timeline.points("number", "1m", where=mine, step=1), "points has no parameter 'step': its steps are rate, "),
    ):
        with pytest.raises(InvalidError, match=cure):
            await call


async def test_deletions_delete_matching_documents(registry: Registry) -> None:
    """delete removes the newest match, delete_many all matches in a time range; snapshots are never deleted."""
    timeline = registry.timeline
    await commit(registry, type="vote")
    made = await votes(timeline)
    assert await timeline.delete({"type": "vote", "brand": "nike"})
    assert await timeline.delete_many({"type": "vote", "brand": "puma"}, stop=NOON + 240) == 2
    left = [found["number"] for found in await timeline.query({"type": "vote"}, kind="document")]
    assert left == [9, 7, 6, 5, 4, 2, 0]
    assert made[8]["number"] not in left
    assert await timeline.delete_many({}) == 7
    assert not await timeline.delete({"type": "vote"})
    assert len(await timeline.query({"type": "vote"}, kind="all")) == 1


async def test_queries_return_snapshots_and_stored_documents(registry: Registry) -> None:
    """With the kind `all` queries return committed snapshots beside stored documents; intents are hidden."""
    timeline = registry.timeline
    snapshot = await commit(registry, type="vote", timestamp=NOON + 90)
    await commit(registry, type="vote", timestamp=NOON + 95, hash="cd" * 32, metadata={"type": "vote", "year": 2001})
    await registry.write_intent({**snapshot, "version": 2, "timestamp": NOON + 91})
    made = await votes(timeline, 3)
    found = await timeline.query({"type": "vote"}, kind="all")
    assert [document["timestamp"] - NOON for document in found] == [120, 95, 90, 60, 0]
    assert found[2] == snapshot
    assert await timeline.query({"hash": snapshot["hash"], "type": "vote"}) == [snapshot]
    assert await timeline.query({"type": "vote", "brand": "nike"}, kind="all") == [made[2], snapshot, made[0]]
    assert [document["hash"] for document in await timeline.query({"year": 2001})] == ["cd" * 32]
    assert await timeline.query({"year": "2001"}) == []
    assert await timeline.query({"hash": snapshot["hash"], "type": "boots"}) == []


async def test_a_model_and_documents_of_its_type_do_not_mix(registry: Registry) -> None:
    """Without a kind, a type of models and a hash mean snapshots, any other type means stored documents."""
    timeline = registry.timeline
    old = await commit(registry, type="vote", timestamp=NOON + 30, metrics={"mean_absolute_error": 0.5})
    new = await commit(registry, type="vote", timestamp=NOON + 90, version=2, metrics={"mean_absolute_error": 0.25})
    mine = vote(NOON + 60, brand="nike", price=7, metrics={"mean_absolute_error": 99.0}, hash=old["hash"], rows_seen=9)
    others = {**mine, "type": "price"}
    await timeline.bulk_upsert([mine, others])
    is_type = {"type": "vote"}
    for where in (is_type, {"hash": old["hash"]}, {"type": "vote", "brand": "nike"}):
        assert await timeline.query(where) == [new, old]
        assert await timeline.query_last(where) == new
        assert await timeline.query_latest(where, NOON + 70) == [old]
        assert await timeline.closest(where, NOON + 61) == new
        assert await timeline.query_closest({**where, "timestamp": NOON + 59}) == old
        assert await timeline.query_last(where, kind="document") in (mine, others)
        assert await timeline.query_last(where, kind="snapshot") == new
    assert await timeline.query_time("after", NOON, query_type="vote") == [new, old]
    assert await timeline.query_time("after", NOON, query_type="vote", kind="document") == [mine]
    assert await timeline.query({"type": "price"}) == [others]
    for at, restored in ((NOON + 60, old), (NOON + 90, new), (NOON + 95, new), (None, new)):
        assert await registry.newest(old["hash"], 0, at) == restored
    assert await timeline.query(is_type, kind="document") == [mine]
    assert await timeline.query(is_type, kind="all") == [new, mine, old]
    # Without hash and type both are meant.
    assert len(await timeline.query({"brand": "nike"})) == len(await timeline.query()) == 4
    for field, kind, expected in (
        (ERROR, None, 0.375), (ERROR, "document", 99.0), ("price", None, 7.0),
        ("rows_seen", None, (old["rows_seen"] + new["rows_seen"]) / 2),
    ):  # fmt: skip
        found = await timeline.points(field, "1d", where=is_type, kind=kind)  # type: ignore[arg-type]
        assert [point["value"] for point in found] == [expected]
    with pytest.raises(MalformedError, match="kind must be snapshot, document or all, not 'x'"):
        await timeline.query(is_type, kind="x")  # type: ignore[arg-type]


async def test_filters_by_time_field_and_dotted_name(registry: Registry) -> None:
    """A filter matches the timestamp, fields of snapshots, list elements, and values inside of other values."""
    timeline = registry.timeline
    first = await commit(registry, timestamp=NOON, metrics={"mean_absolute_error": 0.5}, runtime={"python": "3.11.7"})
    second = await commit(registry, timestamp=NOON + 0.1, version=2, metrics={"mean_absolute_error": 0.25}, rows_seen=7)
    made = [vote(NOON + at, fit={"size": at, "by": {"name": "ann"}}, tags=["a", f"t{at}"]) for at in range(3)]
    made.append(vote(NOON + 9, **{"fit.size": 9, "metadata": {"year": {"from": 2001}}}))
    await timeline.bulk_upsert(made)
    model = {"hash": first["hash"]}
    for where, expected in (
        ({"timestamp": NOON}, first), ({"timestamp": "2026-11-20T12:00:00.1Z"}, second), ({"version": 2}, second),
        ({"metrics.mean_absolute_error": 0.5}, first), ({"rows_seen": 7, "metadata.brand": "nike"}, second),
        ({"runtime.python": "3.11.7", "version": 1}, first), ({"uri": first["uri"], "timestamp": NOON}, first),
    ):  # fmt: skip
        assert await timeline.query({**model, **where}) == [expected]
    for where, number in (
        ({"timestamp": NOON + 1}, 1), ({"fit.size": 2}, 2), ({"fit.size": 9}, 3), ({"tags": "t1"}, 1),
        ({"fit.by.name": "ann", "timestamp": NOON}, 0), ({"metadata.year.from": 2001}, 3),
    ):  # fmt: skip
        assert await timeline.query({"type": "vote", **where}) == [made[number]]
    assert await timeline.query({"type": "vote", "timestamp": NOON + 1}, stop=NOON + 1) == []
    assert await timeline.query({"type": "vote", "timestamp": NOON + 1}, start=NOON + 1.1) == []
    assert await timeline.query({"type": "vote", "fit.$size": 1, "$where.a": 1, "a..b": 1}) == []
    sizes = await timeline.points("fit.size", "1d", where={"type": "vote", "timestamp": NOON + 2})
    assert [point["value"] for point in sizes] == [2]
    groups = await timeline.points(None, "1d", "count", {"type": "vote"}, group="fit.by.name")
    assert {point["group"]: point["value"] for point in groups} == {"ann": 3, None: 1}
    by_version = await timeline.points("rows_seen", "1d", where=model, group="version")
    assert [point["group"] for point in by_version] == [1, 2]
    assert await timeline.delete_many({"type": "vote", "timestamp": NOON + 1, "tags": "a"}) == 1
    assert await timeline.delete({"type": "vote", "fit.size": 9})
    assert await timeline.query({"type": "vote"}) == [made[2], made[0]]
    with pytest.raises(InvalidError, match=r"'metadata.year.from': only values on the top level"):
        await timeline.query({**model, "metadata.year.from": 1})


async def test_since_and_limit_may_be_among_the_values(timeline: Timeline) -> None:
    """query_latest takes since and limit among its values, as in funtime; other calls refuse them."""
    made = await votes(timeline, 5)
    mine = {"type": "vote"}
    assert await timeline.query_latest({**mine, "since": NOON + 200, "limit": 2}) == [made[3], made[2]]
    assert (
        await timeline.query({**mine, "limit": 2}) == await timeline.query_sorted({**mine, "limit": 2}) == made[:2:-1]
    )
    for call in (timeline.query_last, timeline.delete, timeline.delete_many, timeline.query_sorted):
        with pytest.raises(InvalidError, match="'since' is not a value to filter by"):
            await call({**mine, "since": NOON})
    with pytest.raises(InvalidError, match="'limit' is not a value"):
        await timeline.points(None, "1d", "count", {**mine, "limit": 2})
    assert len(await timeline.query(mine)) == 5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t.query({"type": 5}), "'type': a filter value must be a string, not 5"),
        (lambda t: t.query({5: 1}), "5: the key of a filter must be a string"),
        (lambda t: t.query("vote"), "where must be a dictionary"),
        (lambda t: t.query({"hash": "ab"}), "A model's hash is 64 hexadecimal digits"),
        (lambda t: t.query(start=2, stop=1), "The start, 1970-01-01T00:00:02Z, is later than the stop"),
        (lambda t: t.query(limit=True), "limit must be a whole number, 0 or more; it is True"),
        (lambda t: t.query(limit=2.5), "limit must be a whole number"),
        (lambda t: t.query(page_size="5"), "page_size must be a whole number"),
        (lambda t: t.query(page_num=0), "page_num must be a whole number, 1 or more; it is 0"),
        (lambda t: t.query({"limit": "5"}), "limit must be a whole number"),
        (lambda t: t.query(start=True), "is not a valid time"),
        (lambda t: t.delete_many({}, 2, 1), "is later than the stop"),
        (lambda t: t.closest({"timestamp": 1}, 2), "leave timestamp out"),
        (lambda t: t.query_latest(since=[]), "is not a valid time"),
        (lambda t: t.store("vote"), "A document must be a dictionary, not 'vote'"),
        (lambda t: t.bulk_upsert([vote(1)], "timestamp"), "keys must be a list of names, not 'timestamp'"),
        (lambda t: t.bulk_upsert({"type": "vote"}), "A document must be a dictionary"),
    ],
    ids=range(17),
)  # fmt: skip
async def test_a_parameter_of_the_wrong_type_is_refused(timeline: Timeline, call: Any, words: str) -> None:
    """A parameter that is not of its type, or a filter that can never match, is an error that says what is expected."""
    with pytest.raises((InvalidError, MalformedError), match=re.escape(words)):
        await call(timeline)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"brand": {"$ne": None}}, r"'\$ne' is not an operator: use '!='"),
        ({"brand": {"$where": 1}}, "use one of =, !=, <"),
        ({"brand": {"like": 1}}, "use one of =, !=, <"),
        ({"brand": {"in": "nike"}}, "in takes a list of values"),
        ({"brand": {"exists": 1}}, "exists takes True or False"),
        ({"brand": {"<": True}}, "compares numbers or texts"),
        ({"brand": {"=": {"$gt": 1}}}, "must be a string, a number"),
        ({"brand": None}, r"without one is \{'exists': False\}"),
        ({"brand": ["nike"]}, r"one of several is \{'in': \[...\]\}"),
        ({"brand": {"in": []}}, "compares with 1 to 1,000 values"),
        ({"timestamp": {"<": 5}}, "use start and stop"),
        ({"n": 10**400}, "must be a string, a number"),
        ({"$where": {}}, r"a comparison is \{operator: value\}"),
    ],
    ids=str,
)
async def test_filters_accept_only_values_and_comparisons(timeline: Timeline, where: Any, words: str) -> None:
    """A filter value that cannot be compared is an error with the cure; text like an operator is a value."""
    await votes(timeline, 2)
    with pytest.raises(InvalidError, match=words):
        await timeline.query(where)
    assert await timeline.query({"brand": "$ne", "$where": "true"}) == []


async def test_a_stream_yields_what_a_query_returns(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream yields the documents of all sources, newest first, in windows of any size, and stops at its limit."""
    timeline = registry.timeline
    rng = np.random.default_rng(8)
    await timeline.bulk_upsert([vote(NOON + float(at), n=float(at)) for at in 10 ** rng.uniform(0, 7, 150)])
    for version in range(5):
        await commit(registry, type="vote", version=version, timestamp=NOON + 1000.0 * version)
    monkeypatch.setattr(reading, "CHUNK", 20)
    for where, bounds in (
        ({"type": "vote"}, (None, None)),
        ({}, (NOON + 10, NOON + 5e6)),
        ({"n": {">": 99}}, (None, None)),
    ):
        expected = await timeline.query(where, *bounds, kind="all")
        assert [document async for document in timeline.stream(where, *bounds, kind="all")] == expected
    assert len([document async for document in timeline.stream({"type": "vote"}, limit=7, kind="all")]) == 7


async def test_the_newest_and_the_largest_are_chosen(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest document for each value of keys, and those with the largest or smallest numbers, of all windows."""
    timeline = registry.timeline
    rng = np.random.default_rng(9)
    brands = ["nike", "puma", 1, True, None]
    made = [
        vote(NOON + float(at), n=float(rng.integers(0, 40)), **({} if brand is None else {"brand": brand}))
        for at, brand in zip(10 ** rng.uniform(0, 7, 200), rng.choice(np.array(brands, dtype=object), 200), strict=True)
    ]
    await timeline.bulk_upsert([*made, vote(NOON + 5, n="x"), vote(NOON + 6, n=[99.0]), vote(NOON + 7, n=math.nan)])
    monkeypatch.setattr(reading, "COLUMNS_CHUNK", 20)
    newest: dict[str, Document] = {}
    for document in sorted(made, key=lambda each: float(each["timestamp"])):
        newest[repr(document.get("brand"))] = document
    newest.pop("None")
    expected = sorted(newest.values(), key=lambda each: -each["timestamp"])
    assert await timeline.query_last_per("brand", {"type": "vote"}) == expected
    with pytest.raises(InvalidError, match="More than 3 groups"):
        await timeline.query_last_per(["brand"], {"type": "vote"}, limit=3)
    by_both = await timeline.query_last_per(["brand", "n"], {"type": "vote", "n": {"<": 2}})
    assert len(by_both) == len({(repr(each.get("brand")), each["n"]) for each in made if each["n"] < 2})
    for smallest in (False, True):
        ranked = sorted(made, key=lambda each: (each["n"] if smallest else -each["n"], -each["timestamp"]))
        assert await timeline.query_top("n", 12, {"type": "vote"}, smallest=smallest) == ranked[:12]
    for version in range(3):
        await commit(registry, type="shoes", version=version, timestamp=NOON + version, rows_seen=10 - version)
    best = await timeline.query_top("rows_seen", 2, {"type": "shoes"})
    assert [document["version"] for document in best] == [0, 1]
    assert [each["version"] for each in await timeline.query_last_per("hash", {"type": "shoes"})] == [2]


async def test_a_long_history_is_read_completely(timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents years apart and seconds apart, past and future, are all returned newest first, in small windows."""
    rng = np.random.default_rng(5)
    now = time.time()
    ages = np.concatenate((rng.uniform(0, 600, 120), 10 ** rng.uniform(3, 9.5, 80), -(10 ** rng.uniform(1, 8, 10))))
    await timeline.bulk_upsert([vote(float(now - age)) for age in ages])
    monkeypatch.setattr(reading, "CHUNK", 50)
    found = [document["timestamp"] for document in await timeline.query({"type": "vote"})]
    assert found == sorted((now - ages).tolist(), reverse=True)
    middle = found[100]
    assert [d["timestamp"] for d in await timeline.query({"type": "vote"}, stop=middle, limit=70)] == found[101:171]
    assert [d["timestamp"] for d in await timeline.query({"type": "vote"}, start=middle)] == found[:101]


async def test_points_equal_those_of_pandas(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aggregated by time and by a key of metadata, numbers of snapshots and documents equal the results of pandas."""
    timeline = registry.timeline
    monkeypatch.setattr(reading, "COLUMNS_CHUNK", 40)
    rng = np.random.default_rng(7)
    rows = [
        {"timestamp": NOON + float(at), "error": float(error), "brand": ("nike", "puma", 7, True)[number % 4]}
        for number, (at, error) in enumerate(zip(rng.uniform(0, 9_000, 200), rng.normal(size=200), strict=True))
    ]
    await timeline.bulk_upsert(
        [vote(row["timestamp"], brand=row["brand"], metrics={"mean_absolute_error": row["error"]}) for row in rows[20:]]
    )
    for number, row in enumerate(rows[:20]):
        metrics = {"mean_absolute_error": row["error"]}
        metadata = {"type": "vote", "brand": row["brand"]}
        await commit(
            registry, type="vote", version=number, timestamp=row["timestamp"], metrics=metrics, metadata=metadata
        )
    # None of these is a number.
    await timeline.store(vote(NOON + 1, metrics={"mean_absolute_error": "high"}))
    await timeline.store(vote(NOON + 2, metrics={"mean_absolute_error": [1.0]}))
    await timeline.store(vote(NOON + 3, metrics={"mean_absolute_error": math.nan}))
    frame = pd.DataFrame(rows)
    frame["bucket"] = frame["timestamp"] // 300 * 300
    where = frame.groupby("bucket")["error"].quantile(0.9)
    both = Filter("vote", kind="all")
    found = await timeline.points(ERROR, "5m", "p90", both)
    assert [point["timestamp"] for point in found] == where.index.tolist()
    np.testing.assert_allclose([point["value"] or 0.0 for point in found], where)
    grouped = await timeline.points(ERROR, "1h", "sum", both, NOON + 1800, NOON + 5400, group="brand")
    inside = frame[(frame["timestamp"] >= NOON + 1800) & (frame["timestamp"] < NOON + 5400)]
    sums = inside.groupby([inside["brand"].map(repr), inside["timestamp"] // 3600 * 3600])["error"].sum()
    assert {(repr(point["group"]), point["timestamp"]) for point in grouped} == set(sums.index)
    for point in grouped:
        assert point["value"] == pytest.approx(sums[repr(point["group"]), point["timestamp"]])
    assert sum(point["value"] or 0 for point in await timeline.points(None, "1d", "count", both)) == 203
    assert (await timeline.points(ERROR, "1h", "count", {"type": "vote", "brand": 7}))[0].keys() == {
        "timestamp",
        "value",
    }


async def test_gaps_rates_and_averages(timeline: Timeline) -> None:
    """Gaps are filled up to the bounds, then rates are computed, then averages."""
    await timeline.bulk_upsert([vote(NOON + 60.0 * at, n=float(at * at)) for at in (1, 2, 4)])

    async def values(**more: Any) -> list[float | None]:
        found = await timeline.points("n", "1m", where={"type": "vote"}, **more)
        return [point["value"] for point in found]

    whole = {"start": NOON, "stop": NOON + 360}
    assert await values(**whole) == [1, 4, 16]
    assert await values(fill="null", **whole) == [None, 1, 4, None, 16, None]
    assert await values(fill="previous", **whole) == [None, 1, 4, 4, 16, 16]
    assert await values(fill="linear", **whole) == [None, 1, 4, 10, 16, None]
    for zero in (0.0, 0, np.int64(0), np.float32(0)):
        assert await values(fill=zero, **whole) == [0, 1, 4, 0, 16, 0]
    assert await values(fill="linear") == [1, 4, 10, 16]
    assert await values(rate="1m") == await values(rate=60) == await values(rate=timedelta(minutes=1)) == [3, 6]
    assert await values(fill="linear", rate="1h", moving=2) == [180, 270, 360]
    assert await timeline.points("n", "1m", where={"type": "none"}, fill="null") == []
    # Intervals are not rounded.
    for every in (1_209_600, 123_456.7, 1 / 3):
        found = await timeline.points("n", every, "count", {"type": "vote"}, fill="none")
        starts = {float(buckets.bucket_starts(buckets.bucket_numbers(np.array([at]), every), every)[0])
                  for at in (NOON + 60, NOON + 120, NOON + 240)}  # fmt: skip
        assert {point["timestamp"] for point in found} == starts


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"every": "5x"}, "'5x' is not a valid duration: use 60s, 5m or 1h"),
        ({"stat": "average"}, "stat must be one of"),
        ({"field": None}, "field is missing"),
        ({"field": "$where"}, "field must be a name"),
        ({"field": "a..b"}, "field must be a name"),
        ({"fill": "next"}, "fill must be one of"),
        ({"fill": True}, "fill must be one of none, null, previous, linear, or a number; it is True"),
        ({"fill": None}, "fill must be one of"),
        ({"fill": math.nan}, "fill must be one of"),
        ({"fill": math.inf}, "fill must be one of"),
        ({"moving": 0}, "moving must be"),
        ({"moving": 2.0}, "moving must be a whole number, from 1 to 10000; it is 2.0"),
        ({"moving": True}, "moving must be a whole number"),
        ({"moving": "3"}, "moving must be a whole number"),
        ({"every": True}, "'True' is not a valid duration"),
        ({"every": -60}, "'-60' is not a valid duration"),
        ({"rate": math.nan}, "'nan' is not a valid duration"),
        ({"stat": 99}, "stat must be text, not 99"),
        ({"field": 5}, "field must be text, not 5"),
        ({"group": 5}, "group must be text, or several texts, not 5"),
        ({"group": "timestamp"}, "use every to group by time"),
        ({"every": "1s", "start": 0, "stop": 1e6}, "points: use"),
    ],
    ids=str,
)
async def test_an_invalid_aggregation_is_refused(timeline: Timeline, more: dict[str, Any], words: str) -> None:
    """An invalid parameter, or a query with too many points, is refused before anything is read."""
    with pytest.raises((InvalidError, MalformedError), match=words):
        await timeline.points(**{"field": "n", "every": "1m", **more})


async def test_every_query_uses_an_index(registry: Registry, database: Database[Document]) -> None:
    """An index serves the first stage of each kind of query, in both collections."""
    await commit(registry, type="vote")
    await votes(registry.timeline, 3)
    filters = (
        {},
        {"type": "vote"},
        {"hash": "ab" * 32},
        {"type": "vote", "brand": "nike"},
        {"hash": "ab" * 32, "type": "v"},
    )
    for source in registry.timeline._sources:
        for where in filters:
            for bounds in ((None, None), (NOON, None), (None, NOON), (NOON, NOON + 60)):
                pipeline = source.match_stages(Filter.of(where), *bounds)
                command = {"aggregate": source.collection.name, "pipeline": pipeline, "cursor": {}}
                plan = str(database.command("explain", command, verbosity="queryPlanner"))
                assert "IXSCAN" in plan, (where, plan)
                assert "COLLSCAN" not in plan
                assert "timestamp" in plan.partition("'keyPattern': ")[2].partition("}")[0]


async def test_every_call_raises_unavailable_error_in_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call raises an error of the driver when MongoDB is unavailable."""
    monkeypatch.setattr(mongo, "CALL_TIMEOUT_MS", 50)
    monkeypatch.setattr(mongo, "CALL_TIMEOUT_MS", 200)
    async with Timeline.open(f"mongodb://127.0.0.1:{free_port()}/keepfit") as away:
        calls = (
            away.ensure_indexes(), away.store(vote(1)), away.bulk_upsert([vote(1)], ["timestamp"]), away.query(),
            away.query_closest({"timestamp": 1}), away.points("n", "1m"), away.stats(), away.delete({}),
            away.delete_many({}),
        )  # fmt: skip
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [UnavailableError] * len(calls)


def test_timeline_sync_needs_no_event_loop(mongo_url: str) -> None:
    """TimelineSync returns the same results, raises the same errors, and stops its thread when it is closed."""
    with TimelineSync(mongo_url) as timeline:
        timeline.bulk_upsert([vote(NOON + number, n=number) for number in range(3)])
        last = timeline.query_last({"type": "vote"})
        assert last == vote(NOON + 2, n=2)
        assert timeline.points("n", "1m", "max", {"type": "vote"}) == [{"timestamp": NOON, "value": 2.0}]
        assert [document["n"] for document in timeline.stream({"type": "vote"})] == [2, 1, 0]
        assert next(iter(timeline.stream({"type": "vote"})))["n"] == 2
        with pytest.raises(InvalidError):
            timeline.store({})
        thread = timeline._thread
    assert not thread.is_alive()


def test_to_dataframe_orders_rows_and_flattens_values() -> None:
    """Rows are ordered and indexed by time; nested values are columns with dotted names."""
    frame = to_dataframe([{"timestamp": NOON + 1, "a": {"b": 1}}, {"timestamp": NOON, "a": {"b": 2}}])
    assert frame["a.b"].tolist() == [2, 1]
    assert [moment.timestamp() for moment in frame.index] == [NOON, NOON + 1]
    exact = np.random.default_rng(3).uniform(1.6e9, 2e9, 200)
    assert [parse_time(moment) for moment in to_dataframe([{"timestamp": at} for at in sorted(exact)]).index] == sorted(
        exact
    )
    assert to_dataframe([]).empty


async def test_a_window_that_takes_too_long_names_the_cure(mongo_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that answers, but not in time, the error says which documents it read, and what to ask for."""
    async with Timeline.open(mongo_url) as timeline:
        await timeline.store(vote(NOON))
        collection = timeline.stored.source.collection

        def too_slow(*_: Any, **__: Any) -> Any:
            raise NetworkTimeout("timed out")

        monkeypatch.setattr(type(collection), "aggregate", too_slow)
        for call in (
            lambda: timeline.query({"type": "vote"}, NOON, kind="document"),
            lambda: timeline.points("n", "1h", where={"type": "vote"}, start=NOON, kind="document"),
            lambda: timeline.query_top("n", 1, {"type": "vote"}, NOON, kind="document"),
            lambda: timeline.query_last_per("n", {"type": "vote"}, NOON, kind="document"),
            lambda: anext(timeline.stream({"type": "vote"}, NOON, kind="document")),
        ):
            with pytest.raises(UnavailableError, match=r"within 4 s: .* after and before"):
                await call()

"""Documents from outside on a real MongoDB server: checked, stored once, replaced, merged, deleted, counted."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo.database import Database

from keepfit.errors import IdempotencyError, InvalidError, MalformedError, QuotaError
from keepfit.history import Document, Registry, Timeline, TimelineSync
from keepfit.history.queries.filters import Filter
from keepfit.history.upkeep.rollups import Rollup, roll_up
from keepfit.history.writing.checks import DEPTH_MAX, check_document, check_keys
from keepfit.history.writing.incoming import Incoming
from keepfit.history.writing.line_protocol import parse_line
from keepfit.history.writing.sent import Quotas, SentRequests
from keepfit.history.writing.writer import join
from tests.keepfit.history.test_timeline import NOON, timeline, vote  # noqa: F401 - a fixture


def nested(depth: int) -> Any:
    """Return objects in objects."""
    return {"a": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "an object"), ({}, "needs a type"), ({"type": ""}, "needs a type"), ({"type": 1}, "needs a type"),
        ({"type": "a\0"}, "NUL"), ({"type": "x" * 257}, "longer"), ({"type": "a", "kind": "snapshot"}, "'kind'"),
        ({"type": "a", "hash": "x", "uri": "y"}, "those of a snapshot"),
        ({"type": "a", "_id": 1}, "'_id'"), ({"type": "a", "": 1}, "not empty"), ({"type": "a", "$x": 1}, "begins"),
        ({"type": "a", "b.c": 1}, "holds"), ({"type": "a", "b": {"c\0": 1}}, "^b: .*NUL"),
        ({"type": "a", "b": [{"$c": 1}]}, "^b: .*begins"), ({"type": "a", "b": nested(DEPTH_MAX)}, "deeper"),
        ({"type": "a", "n" * 257: 1}, "longer"), ({"type": "a", "b": float("nan")}, "finite"),
        ({"type": "a", "b": {"c": [float("inf")]}}, r"^b.c: inf"), ({"type": "a", "b": 2**63}, "64 bits"),
    ],
)  # fmt: skip
def test_what_a_document_may_not_hold(document: Any, reason: str) -> None:
    """A name that no query can use, and a value that cannot be stored, are refused with their place."""
    with pytest.raises(InvalidError, match=reason):
        check_document(document)


def test_what_it_may_hold() -> None:
    """Values of every type, up to the limit of depth."""
    document = {"type": "a", "b": [1, 2.5, None, True, "x", {"c": -(2**63)}], "d": nested(DEPTH_MAX - 1), "é ü": {}}
    assert check_document(document) == document
    for keys in ("a", ["a.b"], [""], ["x"] * 17):
        with pytest.raises(InvalidError):
            check_keys(keys)
    assert check_keys(["a", "b", "a"]) == ("a", "b")


async def test_add_stores_once(timeline: Timeline) -> None:  # noqa: F811
    """A document with a time that is added twice is stored once; without a time, each is another document."""
    made = [vote(NOON + n % 3, n=n % 3) for n in range(9)]
    assert await timeline.add(made) == 9
    assert await timeline.add(made[:3]) == 3
    assert len(await timeline.query({"type": "vote"})) == 3
    assert await timeline.add([{"type": "click"}, {"type": "click"}]) == 2
    assert len(await timeline.query({"type": "click"})) == 2
    with pytest.raises(InvalidError):
        await timeline.add([{"type": "vote", "a.b": 1}])
    with pytest.raises(MalformedError):
        await timeline.add([vote("05/04/2026")])  # type: ignore[arg-type]


async def test_keys_replace(timeline: Timeline) -> None:  # noqa: F811
    """With keys a document replaces the one with the same values of them; its old and new times are rolled up again."""
    rollup = Rollup("state", "1m", "n")
    await timeline.add([{"type": "state", "timestamp": NOON, "device": "a", "n": 1, "old": True}], ["device"])
    assert await roll_up(timeline, rollup, NOON + 600) == 1
    await timeline.add(
        [{"type": "state", "timestamp": NOON + 60 * n, "device": "a", "n": n} for n in (2, 3)], ["device"]
    )
    assert await timeline.query({"type": "state"}) == [
        {"type": "state", "timestamp": NOON + 180, "device": "a", "n": 3}
    ]
    await roll_up(timeline, rollup, NOON + 600)
    found = await timeline.query({"type": rollup.target})
    assert [(one["timestamp"], one["sum"]) for one in found] == [(NOON + 180, 3)]
    with pytest.raises(InvalidError, match="no field 'device'"):
        await timeline.add([{"type": "state", "n": 1}], ["device"])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 9)), min_size=1, max_size=12))
def test_points_of_one_batch_are_merged_like_those_of_several(points: list[tuple[str, str, int]]) -> None:
    """Fields of points with the same series and time are joined, the last value counts, in one batch or in many."""
    incoming, expected = Incoming(), dict[str, dict[str, Any]]()
    documents = []
    for host, name, value in points:
        point = parse_line(f"cpu,host={host} in.{name}={value},{name}={value}i 5")
        assert point is not None
        documents.append(incoming.prepare_point(point))
        kept = expected.setdefault(host, {"host": host, "in": {}})
        kept["in"][name] = float(value)
        kept[name] = value
    joined = join(documents, "merged")
    assert [one["document"] for one in joined] == list(expected.values())
    for one in joined:
        scalars = {name: value for name, value in one["document"].items() if name != "in"}
        assert {label["k"]: label["v"] for label in one["labels"]} == {**scalars, "type": "cpu"}


async def test_points_are_merged_in_the_server(timeline: Timeline) -> None:  # noqa: F811
    """A point with the series and the time of a stored one changes its fields and leaves the others."""
    await timeline.ensure_indexes()
    incoming = Incoming()

    async def write(*lines: str) -> None:
        points = [parse_line(line) for line in lines]
        await timeline.writer.write([incoming.prepare_point(one) for one in points if one], "merged")

    await write("cpu,host=a load.one=1,up=t,n=1i 5000000000", "cpu,host=b up=t 5000000000")
    both = ("cpu,host=a load.five=2,n=2i 5000000000", "cpu,host=a load.one=3 5000000001", "cpu,host=b up=f 5000000000")
    await asyncio.gather(*(write(*both) for _ in range(3)))
    found = await timeline.query({"type": "cpu", "host": "a"})
    assert {
        "type": "cpu",
        "timestamp": 5.0,
        "host": "a",
        "load": {"one": 1.0, "five": 2.0},
        "up": True,
        "n": 2,
    } in found
    assert len(found) == 2, "a nanosecond apart"
    assert [one["up"] for one in await timeline.query({"type": "cpu", "host": "b"})] == [False]
    assert await timeline.query({"type": "cpu", "n": 1}) == []
    assert len(await timeline.query({"type": "cpu", "n": 2})) == 1


async def test_deletion(timeline: Timeline, registry: Registry) -> None:  # noqa: F811
    """What matches is deleted, in as many calls as the time allows, and nothing else."""
    await timeline.add(vote(NOON + n, n=n, brand=("nike", "puma")[n % 2]) for n in range(1200))
    where = Filter.of({"type": "vote", "brand": "nike"}, "document")
    first = await timeline.writer.delete(where, NOON + 100, None, limit_s=0)
    assert (first.documents, first.is_complete) == (500, False)
    second = await timeline.writer.delete(where, NOON + 100, None)
    assert (second.documents, second.is_complete) == (50, True)
    again = await timeline.writer.delete(where, NOON + 100, None)
    assert (again.documents, again.is_complete) == (0, True)
    assert len(await timeline.query({"type": "vote", "brand": "nike"})) == 50
    assert len(await timeline.query({"type": "vote", "brand": "puma"})) == 600


def test_documents_of_owners_are_apart() -> None:
    """Callers who may see a part of the history alone replace nothing of each other."""
    document = vote(NOON, device="a")
    ids = {
        Incoming(["device"], owner=owner).prepare({**document, "brand": brand}, 0)["_id"]
        for owner, brand in (("", "x"), ("", "y"), ("brand=nike", "x"), ("brand=puma", "y"))
    }
    assert len(ids) == 3


@pytest.fixture
def sent(timeline: Timeline) -> Callable[[], SentRequests]:  # noqa: F811
    """Return what makes the memory of requests of a gateway."""
    return lambda: SentRequests(timeline.collection("history_requests"), 60)


async def test_requests_with_a_key(sent: Callable[[], SentRequests]) -> None:
    """A request that is repeated has its first time, and its answer once it has finished; the key expires."""
    now = time.time()
    found = await asyncio.gather(*(sent().begin("k web", "digest", now + n) for n in range(8)))
    assert len({one.at for one in found}) == 1
    assert {one.stored for one in found} == {None}
    with pytest.raises(IdempotencyError):
        await sent().begin("k web", "other", now + 9)
    await sent().finish("k web", 3)
    assert (await sent().begin("k web", "digest", now + 9)).stored == 3
    later = await sent().begin("k web", "other", now + 100)
    assert (later.at, later.stored) == (now + 100, None)


async def test_quotas(timeline: Timeline, database: Database[Document]) -> None:  # noqa: F811
    """Each key may write so much on a day; what is refused does not count, and the next day begins at zero."""
    noon = time.time() // 86_400 * 86_400 + 43_200
    quotas = Quotas(timeline.collection("history_quotas"), 10, 1000)
    await asyncio.gather(*(quotas.take("web", 3, 100, noon) for _ in range(3)))
    with pytest.raises(QuotaError, match="may write 10 documents to") as refused:
        await quotas.take("web", 2, 100, noon)
    assert refused.value.retry_after_s == 12 * 3600
    await quotas.take("web", 1, 100, noon)
    await quotas.take("app", 1, 1000, noon)
    with pytest.raises(QuotaError, match="may write 1,000 bytes to"):
        await quotas.take("app", 1, 1, noon)
    await quotas.take("web", 10, 1000, noon + 86_400)
    assert database["history_quotas"].count_documents({}) == 3
    await Quotas(timeline.collection("history_quotas"), 0, 0).take("web", 10**6, 10**9, noon)


def test_the_synchronous_timeline_adds(mongo_url: str) -> None:
    """`TimelineSync` has the same call."""
    with TimelineSync(mongo_url) as opened:
        assert opened.add([vote(NOON, n=1)]) == 1
        assert opened.query({"type": "vote"}) == [vote(NOON, n=1)]

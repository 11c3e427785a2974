"""GET /v1/history: documents by time, aggregated points, and invalid queries."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest

from keepfit.history import Timeline
from keepfit.settings import Settings
from tests.gateway.api_client import Api, serving

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
COUNT = 6


@pytest.fixture
async def timeline(settings: Settings) -> AsyncIterator[Timeline]:
    """Open the timeline of the gateway in this process, with documents one minute apart."""
    async with Timeline.open(settings.mongo_url.get_secret_value()) as opened:
        await opened.bulk_upsert(
            {
                "type": "vote",
                "timestamp": NOON + 60 * n,
                "n": n,
                "brand": ("nike", "puma")[n % 2],
                "limit": "x",
                "fit": {"size": n},
            }
            for n in range(COUNT)
        )
        yield opened


@pytest.mark.usefixtures("timeline")
async def test_documents_are_queried_by_time(workerless: Api) -> None:
    """Each parameter filters as documented; any other is a metadata key, whose value may be a number."""

    async def numbers(**query: str) -> list[int]:
        answer = (await workerless.get("/v1/history", type="vote", **query)).of(200)
        assert answer.keys() == {"documents"}
        return [document["n"] for document in answer["documents"]]

    assert await numbers() == [5, 4, 3, 2, 1, 0]
    assert await numbers(limit="2", page="2") == [3, 2]
    assert await numbers(last="") == await numbers(last="true") == await numbers(last="1") == [5]
    assert await numbers(last="2", brand="nike") == [4, 2]
    assert await numbers(after=str(NOON + 60), before="2026-11-20T12:03Z") == [2, 1]
    assert await numbers(closest=str(NOON + 89)) == [1]
    assert await numbers(brand="puma", n="3") == [3]
    assert await numbers(n='{"$gt": 0}') == await numbers(**{"$where": "true"}) == []
    assert await numbers(**{"metadata[brand]": "puma", "metadata[n]": "3"}) == [3]
    assert await numbers(**{"metadata[limit]": "x", "metadata[type]": "vote", "limit": "1"}) == [5]
    assert await numbers(**{"metadata[type]": "other"}) == []
    (await workerless.get("/v1/history", **{"brand": "nike", "metadata[brand]": "nike"})).problem(400)
    assert await numbers(hash="0" * 64) == await numbers(kind="snapshot") == []
    assert await numbers(timestamp=str(NOON + 60)) == await numbers(timestamp="2026-11-20T12:01Z") == [1]
    for query in ({"fit.size": "3"}, {"n": "3", "kind": "document"}, {"n": "3", "kind": "all"}):
        assert await numbers(**query) == [3]
    first = (await workerless.get("/v1/history", n="0")).of(200)["documents"]
    assert first == [{"type": "vote", "timestamp": NOON, "n": 0, "brand": "nike", "limit": "x", "fit": {"size": 0}}]


@pytest.mark.usefixtures("timeline")
async def test_points_are_queried_with_every(workerless: Api) -> None:
    """With `every` the answer has points: time and value, and the group if they are grouped."""

    async def points(**query: str) -> list[dict[str, Any]]:
        answer = (await workerless.get("/v1/history", type="vote", **query)).of(200)
        assert answer.keys() == {"points"}
        return list(answer["points"])

    assert await points(every="2m", field="n") == [
        {"timestamp": NOON + 120 * n, "value": 2 * n + 0.5} for n in range(3)
    ]
    assert await points(every="1h", stat="count") == await points(every="3600", stat="count")
    assert await points(every="1h", stat="count") == [{"timestamp": NOON, "value": 6}]
    grouped = await points(every="1h", stat="max", field="n", group="brand")
    assert grouped == [
        {"timestamp": NOON, "value": 4, "group": "nike"},
        {"timestamp": NOON, "value": 5, "group": "puma"},
    ]
    window = {"after": str(NOON), "before": str(NOON + 180), "every": "1m", "field": "n", "brand": "nike"}
    assert [point["value"] for point in await points(fill="null", **window)] == [0, None, 2]
    assert [point["value"] for point in await points(fill="linear", rate="1h", moving="2", **window)] == [60, 60]
    assert await points(every="1h", field="absent") == []


@pytest.mark.usefixtures("timeline")
async def test_queries_compare_choose_and_use_time_zones(workerless: Api) -> None:
    """Comparisons, the newest for each value, the largest values, groups by several keys, and zones are parameters."""

    async def answer(kind: str, **query: Any) -> list[dict[str, Any]]:
        several = {name: [given] if isinstance(given, str) else given for name, given in query.items()}
        parameters = [(name, text) for name, texts in several.items() for text in texts]
        target = f"/v1/history?{urlencode([('type', 'vote'), *parameters])}"
        found: list[dict[str, Any]] = (await workerless.call("GET", target)).of(200)[kind]
        return found

    async def numbers(**query: Any) -> list[int]:
        return [document["n"] for document in await answer("documents", **query)]

    assert await numbers(where="n>=4") == [5, 4]
    assert await numbers(where=["n>=1", "brand in nike,adidas"]) == [4, 2]
    assert await numbers(where=["fit.size<3", "brand!=nike"]) == [1]
    assert await numbers(where="nothing exists") == []
    assert await numbers(per="brand") == [5, 4]
    assert await numbers(per=["brand", "limit"], before=str(NOON + 60)) == [0]
    assert await numbers(top="2", field="fit.size") == [5, 4]
    assert await numbers(bottom="2", field="n", brand="puma") == [1, 3]
    # Noon in UTC is one o'clock in Berlin.
    assert await numbers(after="2026-11-20 13:04", tz="Europe/Berlin") == [5, 4]
    assert await numbers(after=f"{int(NOON * 1000) + 240_000}ms") == [5, 4]
    year = datetime(2025, 12, 31, 18, 30, tzinfo=UTC).timestamp()
    both = await answer("points", every="1y", stat="distinct", field="n", group=["brand", "limit"], tz="Asia/Kolkata")
    assert both == [
        {"timestamp": year, "value": 3.0, "group": {"brand": brand, "limit": "x"}} for brand in ("nike", "puma")
    ]
    top = await answer("points", every="1d", field="n", group="brand", top="1", stat="spread")
    assert [(point["group"], point["value"]) for point in top] == [("nike", 4.0)]
    day = await answer("points", every="1d", field="brand", stat="distinct", tz="Europe/Berlin")
    assert day == [{"timestamp": NOON - 13 * 3600, "value": 2.0}]
    rising = await answer("points", every="1m", field="n", increase="true", cumulative="", exponential="1")
    assert [point["value"] for point in rising] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("type=a&type=b", 400), ("limit=0", 400), ("limit=1001", 400), ("page=0", 400), ("last=x", 400),
        ("last=1&limit=2", 400), ("before=whenever", 400), ("before=next%20friday", 400), ("after=nan", 400),
        ("closest=now&before=now", 400), ("hash=x", 400), ("every=5x&field=n", 400), ("kind=boots", 400),
        ("since=now", 400), ("timestamp=x", 400), ("closest=now&timestamp=1", 400), ("after=2&before=1", 422),
        ("every=True&field=n", 400), ("every=0s&field=n", 400),
        ("every=1m&limit=5&field=n", 400), ("stat=mean", 400), ("every=1m&stat=avg&field=n", 400),
        ("every=1m&field=a..b", 400), ("every=1m&field=$x", 400), ("every=1m&field=n&fill=inf", 400),
        ("every=1m&field=n&moving=0", 400), ("every=1m&field=n&rate=x", 400),
        ("every=1m", 422), ("every=1m&field=n&fill=next", 422), ("every=1s&field=n&after=0&before=now", 422),
        ("limit=1000&page=101", 422), ("tz=Mars", 422), ("tz=..%2Fetc%2Fpasswd", 400), ("tz=", 400),
        ("where=n", 400), ("where=type%3Da", 400), ("where=timestamp%3E5", 400), ("where=n+in+", 422),
        ("per=a&last=2", 400), ("per=a&per=a", 422), ("per=timestamp", 422), ("top=5", 400), ("start=now", 400),
        ("top=5&field=n&limit=2", 400),
        ("top=5&bottom=5&field=n", 400), ("top=0&field=n", 400), ("field=n", 400), ("increase=true", 400),
        ("every=7h&field=n&tz=UTC", 422), ("every=1m&field=n&top=2", 400), ("every=1m&field=n&per=a", 400),
        ("every=1m&field=n&group=a&top=2&series=2", 400), ("every=1m&field=n&rate=1s&increase=true", 400),
        ("every=1m&field=n&moving=2&exponential=2", 400), ("every=1m&field=n&increase=yes", 400),
        ("every=1m&field=n&group=a&group=a", 422), ("after=2026-03-29T02:30&tz=Europe/Berlin", 400),
        ("&".join(f"where=n%3E{n}" for n in range(33)), 422),
    ],
)  # fmt: skip
async def test_invalid_queries_are_rejected(api: Api, query: str, status: int) -> None:
    """Malformed parameters answer 400, queries for too much or for nothing 422, before MongoDB is queried."""
    (await api.call("GET", f"/v1/history?{query}")).problem(status)


async def test_unavailable_mongodb_answers_503(settings: Settings) -> None:
    """While MongoDB is unavailable the answer is a 503 with Retry-After."""
    unreachable = settings.model_copy(update={"mongo_url": type(settings.mongo_url)("mongodb://127.0.0.1:1/keepfit")})
    async with serving(unreachable) as api:
        answer = await api.get("/v1/history", type="vote")
        assert "MongoDB is unavailable" in answer.problem(503)["detail"]
        assert answer.headers["Retry-After"] == "1"

"""GET /v1/history: documents by time, aggregated points, and invalid queries."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from keepfit.csv_lines import CsvLines
from keepfit.errors import UnavailableError
from keepfit.history import Timeline
from keepfit.history import query as query_module
from keepfit.settings import Settings
from keepfit_gateway.handlers import history_stream
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


@pytest.mark.usefixtures("timeline")
async def test_documents_and_points_are_streamed_as_lines(workerless: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Accept all documents, or points, come as lines of JSON or CSV, also those after the first thousand."""
    monkeypatch.setattr(history_stream, "HEAD_DOCUMENTS", 4)

    async def lines(accept: str, query: str) -> list[str]:
        answer = await workerless.call("GET", f"/v1/history?type=vote&{query}", headers={"Accept": accept})
        assert answer.status == 200, answer.body
        assert answer.headers["Content-Type"] == f"{accept.partition(';')[0]}; charset=utf-8"
        assert "Content-Length" not in answer.headers
        return answer.body.decode().splitlines()

    documents = [json.loads(line) for line in await lines("application/x-ndjson", "")]
    assert [document["n"] for document in documents] == [5, 4, 3, 2, 1, 0]
    assert documents == (await workerless.get("/v1/history", type="vote")).of(200)["documents"]
    assert len(await lines("application/x-ndjson", "limit=4")) == 4
    assert len(await lines("application/x-ndjson", "limit=2&page=2")) == 2
    assert await lines("application/x-ndjson", "n=7") == []
    assert await lines("text/csv;q=1, */*;q=0.1", "limit=2") == [
        "type,timestamp,n,brand,limit,fit.size", f"vote,{NOON + 300},5,puma,x,5", f"vote,{NOON + 240},4,nike,x,4",
    ]  # fmt: skip
    table = await lines("text/csv", "where=n<4")
    assert table[0] == "type,timestamp,n,brand,limit,fit.size,others"
    assert await lines("text/csv", "every=1h&field=n&group=brand&stat=max") == [
        "timestamp,value,group", f"{NOON},4.0,nike", f"{NOON},5.0,puma",
    ]  # fmt: skip
    for query, status in (("every=1m&field=n&stat=x", 400), ("tz=Mars", 422), ("limit=0", 400)):
        headers = {"Accept": "application/x-ndjson"}
        (await workerless.call("GET", f"/v1/history?{query}", headers=headers)).problem(status)
    refused = {"Accept": "text/csv", "Accept-Encoding": "gzip, identity;q=0"}
    (await workerless.call("GET", "/v1/history?type=vote", headers=refused)).problem(406)
    for accept in ("text/html, */*", "application/json, text/csv;q=0.5", "text/csv;q=0", "image/png"):
        answer = await workerless.call("GET", "/v1/history?type=vote", headers={"Accept": accept})
        assert len(answer.of(200)["documents"]) == 6


@pytest.mark.usefixtures("timeline")
async def test_a_stream_that_fails_has_no_end(workerless: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """MongoDB fails before the first line: 503; later: the client sees that the answer is incomplete."""
    monkeypatch.setattr(history_stream, "HEAD_DOCUMENTS", 2)
    fails_after = 3

    async def failing(*arguments: Any) -> AsyncGenerator[Any]:
        count = 0
        async for document in stream(*arguments):
            if count == fails_after:
                raise UnavailableError("MongoDB is unavailable.")
            count += 1
            yield document

    stream = query_module.stream
    monkeypatch.setattr(query_module, "stream", failing)
    headers = {"Accept": "application/x-ndjson"}
    with pytest.raises(aiohttp.ClientError):
        await workerless.call("GET", "/v1/history?type=vote", headers=headers)
    fails_after = 0
    (await workerless.call("GET", "/v1/history?type=vote", headers=headers)).problem(503)


def test_csv_has_what_late_documents_add() -> None:
    """Columns are the fields of the first documents; others of later ones are JSON in the last column."""
    lines = CsvLines()
    assert lines.of([{"a": 1, "b": {"c": True}}, {"d": None}], are_all=False) == "a,b.c,d,others\n1,true,,\n,,,\n"
    assert lines.of([{"a": [1], "e": {"f": 2}}], are_all=True) == '[1],,,"{""e.f"": 2}"\n'
    assert CsvLines().of([], are_all=True) == "\n"


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

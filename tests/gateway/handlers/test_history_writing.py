"""POST and DELETE /v1/history: documents of one's own, streams of them, retries, quotas, API keys, and deletion."""

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest
from pymongo.database import Database

from keepfit.history import Document, Registry
from keepfit.security.api_keys import SCOPES, new_key
from keepfit.settings import Settings
from tests.gateway.api_client import Api, Reply, serving
from tests.keepfit.history.test_registry import commit

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()
NDJSON = MappingProxyType({"Content-Type": "application/x-ndjson"})


def vote(n: int, **fields: Any) -> dict[str, Any]:
    """Return a numbered document."""
    return {"type": "vote", "timestamp": NOON + n, "n": n, **fields}


def lines(documents: list[Any]) -> bytes:
    """Return a stream of documents."""
    return b"\n".join(json.dumps(one).encode() for one in documents)


async def votes(api: Api, **query: str) -> list[dict[str, Any]]:
    """Return the documents of the type `vote`, oldest first."""
    found: list[dict[str, Any]] = (await api.get("/v1/history", type="vote", limit="1000", **query)).of(200)[
        "documents"
    ]
    return found[::-1]


async def test_documents_are_stored(workerless: Api) -> None:
    """One document and a list of them are stored, once each however often they are sent; the time is optional."""
    assert (await workerless.post("/v1/history", vote(0, fit={"size": 40}))).of(200) == {"stored": 1}
    several = [vote(1), vote(2, tags=["a", None, 1.5])]
    for _ in range(2):
        assert (await workerless.post("/v1/history", several)).of(200) == {"stored": 2}
    assert await votes(workerless) == [vote(0, fit={"size": 40}), *several]
    assert await votes(workerless, kind="document", **{"fit.size": "40"}) == [vote(0, fit={"size": 40})]
    iso = {"type": "click", "timestamp": "2026-11-20T12:00:01Z", "at": "x"}
    (await workerless.post("/v1/history", [iso, {"type": "click"}, {"type": "click"}])).of(200)
    clicks = (await workerless.get("/v1/history", type="click")).of(200)["documents"]
    assert len(clicks) == 3
    assert clicks[2] == {**iso, "timestamp": NOON + 1}
    assert clicks[0]["timestamp"] == clicks[1]["timestamp"] > NOON


async def test_keys_replace(workerless: Api) -> None:
    """With `keys` a document replaces the one with the same values of them."""
    path = "/v1/history?keys=device&keys=day"
    for size in (1, 2):
        made = [vote(size, device=device, day=1, size=size) for device in "ab"]
        assert (await workerless.post(path, made)).of(200) == {"stored": 2}
    assert [one["size"] for one in await votes(workerless)] == [2, 2]
    refused = (await workerless.post(path, [vote(3, device="c"), vote(4, device="d", day=1)])).problem(422)
    assert refused["errors"] == [{"detail": "the document has no field 'day', which is one of its keys.", "row": 0}]
    assert len(await votes(workerless)) == 2


async def test_requests_are_repeated_safely(workerless: Api) -> None:
    """With an Idempotency-Key a request is done once, also without times; its key is not for another body."""
    key = {"Idempotency-Key": "k1"}
    made = [{"type": "vote", "brand": "nike"}, {"type": "vote", "brand": "nike"}]
    answers = await asyncio.gather(*(workerless.post("/v1/history", made, key) for _ in range(4)))
    assert [answer.of(200) for answer in answers] == [{"stored": 2}] * 4
    assert (await workerless.post("/v1/history", made, key)).of(200) == {"stored": 2}
    assert len(await votes(workerless)) == 2
    (await workerless.post("/v1/history", made[:1], key)).problem(422)
    (await workerless.post("/v1/history?keys=brand", made, key)).problem(422)
    stream = {**NDJSON, "Idempotency-Key": "k2"}
    for _ in range(2):
        reply = await workerless.call("POST", "/v1/history", data=lines(made), headers=stream)
        assert reply.of(200) == {"stored": 2}
    assert len(await votes(workerless)) == 4
    coded = {**stream, "Content-Encoding": "gzip"}
    reply = await workerless.call("POST", "/v1/history", data=gzip.compress(lines(made)), headers=coded)
    assert reply.of(200) == {"stored": 2}
    for path, body in (("/v1/history", lines(made[:1])), ("/v1/history?keys=brand", lines(made))):
        (await workerless.call("POST", path, data=body, headers=stream)).problem(422)
    assert len(await votes(workerless)) == 4


async def test_a_stream_is_stored(workerless: Api) -> None:
    """A stream of any length is stored as it arrives, with any ends of lines, also compressed."""
    made = [vote(n) for n in range(700)]
    body = b"\r\n\n" + lines(made[:350]).replace(b"\n", b"\r\n")

    async def slow() -> AsyncIterator[bytes]:
        for first in range(0, len(body), 4099):
            yield body[first : first + 4099]

    assert (await workerless.call("POST", "/v1/history", data=slow(), headers=NDJSON)).of(200) == {"stored": 350}
    coded = {**NDJSON, "Content-Encoding": "gzip"}
    reply = await workerless.call("POST", "/v1/history", data=gzip.compress(lines(made[350:])), headers=coded)
    assert reply.of(200) == {"stored": 350}
    assert await votes(workerless) == made
    assert (await workerless.call("POST", "/v1/history", data=b"", headers=NDJSON)).of(200) == {"stored": 0}


WRONG_LINES = (
    (b"{", 400, "it is not JSON"), (b"[]", 422, "an object"), (b'{"type":"vote","a.b":1}', 422, "'a.b'"),
    (b'{"type":"vote","n":1e999}', 422, "finite"), (b'{"type":"vote","n":1,"n":2}', 400, "twice"),
    (b'{"type":"vote","timestamp":"05/04/2026"}', 400, "not a valid time"),
    (b'{"type":"vote","timestamp":1e12}', 400, "not a valid time"),
    (b'{"type":"vote","timestamp":true}', 400, "not a valid time"),
    (b'"' + b"x" * (1 << 20) + b'"', 422, "longer than 1048576 bytes"),
)  # fmt: skip


async def test_a_wrong_line_is_named(workerless: Api) -> None:
    """A stream ends at the first line that is wrong; the error has its number, and says what is stored."""
    for line, status, detail in WRONG_LINES:
        body = lines([vote(0), vote(1)]) + b"\n\n" + line + b"\n" + lines([vote(2)])
        problem = (await workerless.call("POST", "/v1/history", data=io.BytesIO(body), headers=NDJSON)).problem(status)
        assert problem["detail"].startswith("line 4: ")
        assert detail in problem["detail"]
        assert problem["detail"].endswith("The first 2 documents of the stream are stored.")
        assert status == 400 or problem["errors"][0]["row"] == 3
        first = (await workerless.call("POST", "/v1/history", data=io.BytesIO(line), headers=NDJSON)).problem(status)
        assert first["detail"].endswith("Nothing of the stream is stored.")
    assert await votes(workerless) == [vote(0), vote(1)]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400), (b"[]", 422), (b"1", 422), (b"[1]", 422), (b'{"n":1}', 422), (b'{"type":"a","kind":"x"}', 422),
        (b'{"type":"a","_id":1}', 422), (b'{"type":"a","$a":1}', 422), (b'{"type":"a","n":NaN}', 422),
        (b'{"type":"a","n":12345678901234567890}', 422), (b'{"type":"a","b":{"":1}}', 422),
        (b'{"type":"a","timestamp":null}', 400), (b'{"type":"a","x":"' + b"x" * (1 << 20) + b'"}', 422),
        (b"[" + b'{"type":"a"},' * 400_000 + b"1]", 413),
    ],
)  # fmt: skip
async def test_wrong_bodies(api: Api, body: bytes, status: int) -> None:
    """A body that is wrong is refused whole."""
    (await api.call("POST", "/v1/history", data=io.BytesIO(body))).problem(status)


async def test_wrong_requests(workerless: Api) -> None:
    """Wrong documents of a list are named each, and none is stored; other parameters and types are refused."""
    problem = (await workerless.post("/v1/history", [vote(0), {"n": 1}, vote(1), []])).problem(422)
    assert problem["detail"].startswith("documents[1]: a document needs a type")
    assert "None of the 4 documents is stored" in problem["detail"]
    assert [fault["row"] for fault in problem["errors"]] == [1, 3]
    (await workerless.post("/v1/history?limit=1", vote(0))).problem(400)
    (await workerless.post("/v1/history?keys=a.b", vote(0))).problem(422)
    (await workerless.call("POST", "/v1/history", data=b"{}", headers={"Content-Type": "text/plain"})).problem(415)
    assert await votes(workerless) == []
    for query, status in (
        ("", 422), ("after=1", 422), ("kind=snapshot&type=a", 400), ("kind=all&type=a", 400), ("type=a&limit=1", 400),
        ("type=a&type=b", 400), ("type=a&every=1m", 400), ("type=a&after=whenever", 400), ("kind=document", 422),
    ):  # fmt: skip
        (await workerless.call("DELETE", f"/v1/history?{query}")).problem(status)


async def test_snapshots_are_out_of_reach(workerless: Api, registry: Registry, database: Database[Document]) -> None:
    """Documents cannot pass as those of snapshots, nor change or delete them; `kind` tells the two apart."""
    snapshot = await commit(registry)
    forged = {name: value for name, value in snapshot.items() if name not in ("_id", "status", "labels")}
    assert "snapshot" in (await workerless.post("/v1/history", forged)).problem(422)["detail"]
    del forged["uri"]
    (await workerless.post("/v1/history", {**forged, "version": 99})).of(200)
    for query in ({"type": snapshot["type"]}, {"hash": snapshot["hash"]}, {"kind": "snapshot"}):
        found = (await workerless.get("/v1/history", **query)).of(200)["documents"]
        assert [one["version"] for one in found] == [snapshot["version"]]
    found = (await workerless.get("/v1/history", type=snapshot["type"], kind="document")).of(200)["documents"]
    assert [one["version"] for one in found] == [99]
    query_text = f"type={snapshot['type']}&hash={snapshot['hash']}"
    deleted = (await workerless.call("DELETE", f"/v1/history?{query_text}")).of(200)
    assert deleted == {"deleted": 1, "complete": True}
    assert database["history"].count_documents({}) == 1


async def test_deletion(workerless: Api) -> None:
    """What matches type, filters and time is deleted, and the answer says how much."""
    (await workerless.post("/v1/history", [vote(n, brand=("nike", "puma")[n % 2]) for n in range(6)])).of(200)
    query = f"type=vote&brand=nike&after={NOON + 1}&before={NOON + 5}"
    for count in (2, 0):
        assert (await workerless.call("DELETE", f"/v1/history?{query}")).of(200) == {
            "deleted": count,
            "complete": True,
        }
    assert [one["n"] for one in await votes(workerless)] == [0, 1, 3, 5]
    query = f"type=vote&where=n%3E=1&where=n%3C=2&after=2026-11-20T13:00:01&before={NOON + 9}&tz=Europe/Berlin"
    assert (await workerless.call("DELETE", f"/v1/history?{query}")).of(200)["deleted"] == 1
    (await workerless.post("/v1/history", vote(1, brand="puma"))).of(200)
    assert (await workerless.call("DELETE", f"/v1/history?type=vote&timestamp={NOON}")).of(200)["deleted"] == 1
    assert (await workerless.call("DELETE", "/v1/history?metadata[brand]=puma")).of(200)["deleted"] == 3


async def test_types_of_rollups_are_taken(settings: Settings) -> None:
    """Users cannot write the documents of a roll-up that is declared."""
    async with serving(settings.model_copy(update={"history_rollups": "vote 5m n"})) as api:
        assert "roll-up" in (await api.post("/v1/history", {"type": "vote/5m"})).problem(422)["detail"]
        (await api.post("/v1/history", {"type": "vote/1h"})).of(200)


class Keys:
    """A gateway with API keys."""

    def __init__(self, api: Api, tokens: Mapping[str, str]) -> None:
        self.api = api
        self._tokens = tokens

    async def call(self, name: str, method: str, path: str, document: Any = None, **more: Any) -> Reply:
        """Send a request with a key."""
        headers = {**more.pop("headers", {}), "Authorization": f"Bearer {self._tokens[name]}"}
        return await self.api.call(method, path, document, headers=headers, **more)


@pytest.fixture
async def keys(settings: Settings) -> AsyncIterator[Keys]:
    """Run a gateway with keys of several scopes, two of them bound, and quotas."""
    made = {
        "reader": new_key("reader", ["read", "predict"]),
        "writer": new_key("writer", ["learn"]),
        "nike": new_key("nike", SCOPES, where=["brand=nike"]),
        "puma": new_key("puma", SCOPES, where=["brand=puma"]),
        "admin": new_key("admin", SCOPES),
    }
    changes = {
        "api_keys": type(settings.api_keys)(",".join(line for _, line in made.values())),
        "history_daily_entries_max": 20,
        "history_daily_bytes_max": 100_000,
    }
    tokens = {name: token for name, (token, _) in made.items()}
    async with serving(settings.model_copy(update=changes), tuple(tokens.values())) as api:
        yield Keys(api, tokens)


async def test_scopes(keys: Keys) -> None:
    """Storing needs `learn`, deleting needs `admin`."""
    (await keys.call("reader", "POST", "/v1/history", vote(0))).problem(403)
    (await keys.call("writer", "POST", "/v1/history", vote(0))).of(200)
    (await keys.call("writer", "DELETE", "/v1/history?type=vote")).problem(403)
    (await keys.call("admin", "DELETE", "/v1/history?type=vote")).of(200)
    (await keys.api.call("POST", "/v1/history", vote(0))).problem(401)


async def test_bound_keys(keys: Keys) -> None:
    """A bound key stores, replaces and deletes documents that fulfil its conditions, and no others."""
    for name in ("nike", "puma"):
        made = vote(0, brand=name, device="a")
        (await keys.call(name, "POST", "/v1/history?keys=device", made)).of(200)
        (await keys.call(name, "POST", "/v1/history", {**made, "metadata": {"brand": "any"}, "n": 7})).of(200)
    refused = [vote(0, brand="puma"), vote(0), vote(0, brand="puma", metadata={"brand": "nike"})]
    for one in refused:
        detail = (await keys.call("nike", "POST", "/v1/history", one)).problem(403)["detail"]
        assert "brand=nike" in detail
    body = lines([vote(1, brand="nike"), vote(2, brand="puma")])
    problem = (await keys.call("nike", "POST", "/v1/history", data=body, headers=NDJSON)).problem(403)
    assert problem["detail"].startswith("line 2: ")
    assert "The first 1 documents" in problem["detail"]
    found = (await keys.call("admin", "GET", "/v1/history?type=vote")).of(200)["documents"]
    assert sorted(one["brand"] for one in found) == ["nike"] * 3 + ["puma"] * 2
    assert (await keys.call("nike", "DELETE", "/v1/history?type=vote")).of(200)["deleted"] == 3
    assert (await keys.call("nike", "DELETE", "/v1/history?type=vote&brand=puma")).of(200)["deleted"] == 0
    assert len((await keys.call("puma", "GET", "/v1/history?type=vote")).of(200)["documents"]) == 2


async def test_quotas(keys: Keys) -> None:
    """A key may write so many documents and bytes on a day; the error says when to go on, and what is stored."""
    for first in (0, 8):
        body = [vote(n) for n in range(first, first + 8)]
        (await keys.call("writer", "POST", "/v1/history", body)).of(200)
    reply = await keys.call("writer", "POST", "/v1/history", [vote(n) for n in range(20, 25)])
    assert "20 documents" in reply.problem(429)["detail"]
    assert 0 < int(reply.headers["Retry-After"]) <= 86_400
    (await keys.call("writer", "POST", "/v1/history", [vote(n) for n in range(16, 20)])).of(200)
    problem = (await keys.call("writer", "POST", "/v1/history", data=lines([vote(30)]), headers=NDJSON)).problem(429)
    assert "Nothing of the stream is stored." in problem["detail"]
    assert (
        "100,000 bytes"
        in (await keys.call("admin", "POST", "/v1/history", vote(0, x="x" * 100_000))).problem(429)["detail"]
    )


async def test_unavailable_mongodb(settings: Settings) -> None:
    """While MongoDB is unavailable the answer is 503."""
    unreachable = settings.model_copy(update={"mongo_url": type(settings.mongo_url)("mongodb://127.0.0.1:1/keepfit")})
    async with serving(unreachable) as api:
        stream, health = await asyncio.gather(
            api.call("POST", "/v1/history", data=lines([vote(0)]), headers=NDJSON), api.get("/health")
        )
    assert "Nothing of the stream is stored." in stream.problem(503)["detail"]
    assert health.of(503)["status"] == "fail"


async def test_a_stream_that_ends_early(workerless: Api) -> None:
    """Of a stream whose client goes away, whole lines are stored, and it can be sent again."""

    async def broken() -> AsyncIterator[bytes]:
        yield lines([vote(0), vote(1)]) + b"\n"
        raise ConnectionResetError

    async with aiohttp.ClientSession(workerless.url) as http:
        with pytest.raises((aiohttp.ClientError, ConnectionResetError)):
            await http.post("/v1/history", data=broken(), headers=NDJSON)
    reply = await workerless.call("POST", "/v1/history", data=lines([vote(n) for n in range(4)]), headers=NDJSON)
    assert reply.of(200) == {"stored": 4}
    assert await votes(workerless) == [vote(n) for n in range(4)]

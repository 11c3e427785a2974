"""Events of a running service, as clients get them."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keepfit.security.api_keys import new_key
from keepfit.settings import Settings
from tests.conftest import Stack
from tests.gateway.api_client import CLASSIFIER, DEADLINE_S, REGRESSOR, Api, connected, eventually, serving
from tests.gateway.events.listener import listening
from tests.gateway.gateway_process import gateway_process

ROW = {"X": [[1.0, 2.0]], "y": [1.0]}


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    """Return the kinds of events, without those of the commits in between, whose number depends on time."""
    kinds = [event["kind"] for event in events]
    return [kind for i, kind in enumerate(kinds) if kind != "commit" or kinds[i + 1 :][:1] != ["commit"]]


async def make(api: Api, metadata: dict[str, Any], recipe: Any = REGRESSOR) -> tuple[str, str]:
    """Create a model; return its path and hash."""
    path = await api.make(metadata, recipe)
    return path, path.rpartition("/")[2]


async def test_what_happens_to_a_model_is_sent(api: Api, metadata: dict[str, Any]) -> None:
    """Creating, learning, changing, failing, saving, restoring and deleting a model are events in that order."""
    async with listening(api.url, f"?session={metadata['session']}") as listener:
        path, model_hash = await make(api, metadata, {"estimator": "MultinomialNB", "classes": ["a", "b"]})
        await api.learn(path, [[1.0]], ["a"])
        (await api.call("PATCH", path, {"params": {"alpha": 0.5}})).of(200)
        (await api.call("POST", f"{path}/snapshot")).of(201)
        negative = {"X": [[-1.0]], "y": ["a"]}
        (await api.post(f"{path}/partial_fit", negative, {"Prefer": "wait=10"})).problem(422)
        await api.learn(path, [[1.0]], ["a"])
        (await api.post(f"{path}/restore", {"version": 2})).of(200)
        await api.call("DELETE", path)
        found = await listener.until(kind="model_deleted")
    assert [kind for kind in kinds_of(found) if kind != "commit"] == [
        "model_created", "model_patched", "snapshot", "dead_letter", "restored", "snapshot", "model_deleted",
    ]  # fmt: skip
    assert all((event["hash"], event["metadata"]) == (model_hash, metadata) for event in found)
    by_kind = {event["kind"]: event for event in found}
    first = next(event for event in found if event["kind"] == "commit")
    assert (first["version"], first["rows_seen"], first["generation"]) == (1, 1, by_kind["model_created"]["generation"])
    assert by_kind["model_patched"]["version"] == 2
    assert (by_kind["dead_letter"]["sequence"], ":" in by_kind["dead_letter"]["reason"]) == (3, False)
    assert (by_kind["restored"]["version"], by_kind["restored"]["rows_seen"]) == (2, 1)
    assert by_kind["snapshot"]["size_bytes"] > 0
    times = [event["timestamp"] for event in found]
    assert times == sorted(times)


async def test_the_last_commit_of_a_model_is_sent(api: Api, metadata: dict[str, Any]) -> None:
    """Of many commits in a moment few are sent, and the last one always is, with its metrics."""
    path, model_hash = await make(api, metadata)
    async with listening(api.url, f"?hash={model_hash}&kind=commit") as listener:
        for _ in range(30):
            version = (await api.learn(path, **ROW))["version"]
        found = await listener.until(version=version)
    assert version == 30
    assert len(found) < 25
    versions = [event["version"] for event in found]
    assert versions == sorted(set(versions))
    assert found[-1]["metrics"] == (await api.model(path))["metrics"]


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_client_continues_after_the_last_event(api: Api, metadata: dict[str, Any], by_header: bool) -> None:
    """A client that connects again gets what it missed, once; also after a position without an event."""
    async with listening(api.url, f"?session={metadata['session']}&kind=model_created,model_deleted") as listener:
        begin = listener.last_id
    paths = [(await make(api, {**metadata, "number": number}))[0] for number in range(3)]
    query = f"?session={metadata['session']}&kind=model_created,model_deleted"

    def after(last_id: str) -> Any:
        if by_header:
            # A browser keeps the address; the header is newer.
            return listening(api.url, f"{query}&last_event_id={begin}", last_id)
        return listening(api.url, f"{query}&last_event_id={last_id}")

    async with after(begin) as listener:
        first = await listener.until(kind="model_created")
        last_id = listener.last_id
    await api.call("DELETE", paths[0])
    async with after(last_id) as listener:
        rest = await listener.until(kind="model_deleted")
    assert [event["metadata"]["number"] for event in (*first, *rest)] == [0, 1, 2, 0]


async def test_a_stream_ends_after_its_time(api: Api, metadata: dict[str, Any]) -> None:
    """With a timeout the stream ends by itself; the answer is stored by no cache and buffered by no proxy."""
    async with listening(api.url, f"?timeout=0.2&session={metadata['session']}") as listener:
        assert await listener.rest() == []
        headers = listener.response.headers
    assert headers["Content-Type"] == "text/event-stream"
    assert (headers["Cache-Control"], headers["X-Accel-Buffering"]) == ("no-store", "no")
    assert headers["X-Request-ID"]
    assert "Content-Encoding" not in headers


@pytest.mark.parametrize(
    "query",
    [
        "kind=tea", "kind=commit,tea", "hash=abc", "last_event_id=x", f"last_event_id=1-{2**64}", "timeout=0",
        "kind=drift&kind=drift",
    ],
)  # fmt: skip
async def test_a_wrong_query_is_refused(api: Api, query: str) -> None:
    """Unknown kinds, malformed hashes and ids, and repeated parameters answer 400 before a stream begins."""
    (await api.get(f"/v1/events?{query}")).problem(400)


async def test_a_client_without_identity_is_refused(api: Api) -> None:
    """Events are never compressed, so a client that excludes that gets a 406; HEAD answers the head alone."""
    (await api.call("GET", "/v1/events?timeout=1", headers={"Accept-Encoding": "gzip, identity;q=0"})).problem(406)
    head = await api.call("HEAD", "/v1/events")
    assert (head.status, head.headers["Content-Type"], head.body) == (200, "text/event-stream", b"")


async def test_two_gateways_send_the_same(stack: Stack, api: Api, metadata: dict[str, Any], tmp_path: Path) -> None:
    """Each gateway sends what happened through the other one, with the same ids."""
    query = f"?session={metadata['session']}&kind=model_created,model_deleted"
    with gateway_process(stack, tmp_path) as other:
        async with (
            listening(stack.url, query) as one,
            listening(other.url, query) as two,
            aiohttp.ClientSession(other.url) as http,
        ):
            path, _ = await make(api, metadata)
            await Api(http).call("DELETE", path)
            found = [await listener.until(kind="model_deleted") for listener in (one, two)]
    assert found[0] == found[1]
    assert len(found[0]) == 2
    assert one.last_id == two.last_id


async def test_a_restarted_gateway_loses_and_repeats_nothing(
    stack: Stack, api: Api, metadata: dict[str, Any], tmp_path: Path
) -> None:
    """A gateway that stops ends its streams at once; a client continues at its successor, without loss or repeats."""
    query = f"?session={metadata['session']}&kind=model_created"
    found = []
    with gateway_process(stack, tmp_path) as first:
        async with listening(first.url, query) as listener:
            await make(api, {**metadata, "number": 0})
            found += await listener.until(kind="model_created")
            first.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE_S):
                found += await listener.rest()
                last_id = listener.last_id
            assert await asyncio.to_thread(first.process.wait, DEADLINE_S) == 0
    await make(api, {**metadata, "number": 1})
    (tmp_path / "second").mkdir()
    with gateway_process(stack, tmp_path / "second") as second:
        async with listening(second.url, query, last_id) as listener:
            await make(api, {**metadata, "number": 2})
            found += await listener.until(kind="model_created")
            found += await listener.until(kind="model_created")
    assert [event["metadata"]["number"] for event in found] == [0, 1, 2]


async def test_ends_of_workers_are_sent(up: Callable[..., Stack]) -> None:
    """A killed worker is an event with its exit code, its successor another; a stopped one has left."""
    stack = up()
    async with listening(stack.url, "?last_event_id=0-0") as listener:
        joined = [(await listener.until(kind="worker_joined"))[-1] for _ in range(2)]
        os.kill(stack.workers()[0], signal.SIGKILL)
        found = await listener.until(kind="worker_joined")
        (died,) = [event for event in found if event["kind"] == "worker_died"]
        assert died["worker"] in [event["worker"] for event in joined]
        assert (died["exitcode"], died["host"]) == (-signal.SIGKILL, os.uname().nodename)
        os.kill(stack.pids()["workers"], signal.SIGTERM)
        left = [(await listener.until(kind="worker_left"))[-1] for _ in range(2)]
    expected = {event["worker"] for event in (*joined, found[-1])} - {died["worker"]}
    assert {event["worker"] for event in left} == expected


async def test_pages_of_permitted_origins_may_listen(settings: Settings) -> None:
    """The head of the stream has the fields of CORS and the rate limit of the key; without a key there is none."""
    page = "https://app.example.com"
    token, key = new_key("web", ["read"], "100/100")
    served = Settings(**{**settings.model_dump(), "api_keys": key, "cors_origins": page})
    async with serving(served) as api:
        (await api.call("GET", "/v1/events?timeout=1", headers={"Origin": page})).problem(401)
        headers = {"Origin": page, "Authorization": f"Bearer {token}"}
        async with listening(api.url, "?timeout=0.1", headers=headers) as listener:
            assert listener.response.headers["Access-Control-Allow-Origin"] == page
            assert "RateLimit" in listener.response.headers
            assert await listener.rest() == []


async def test_a_revoked_key_ends_its_streams(settings: Settings, tmp_path: Path) -> None:
    """A stream ends when its key is no longer in the file of keys; that of another key goes on."""
    (revoked, line), (kept, other) = new_key("web", ["read"]), new_key("other", ["read"])
    file = tmp_path / "keys"
    file.write_text(f"{line}\n{other}\n")
    served = Settings(**{**settings.model_dump(), "api_keys_file": str(file)})
    headers = [{"Authorization": f"Bearer {key}"} for key in (revoked, kept)]
    async with (
        serving(served) as api,
        listening(api.url, headers=headers[0]) as ended,
        listening(api.url, headers=headers[1]) as going_on,
    ):
        file.write_text(f"{other}\n")
        assert await ended.rest() == []
        assert not going_on.response.content.at_eof()


async def test_more_clients_than_permitted_are_refused(settings: Settings) -> None:
    """Above the maximum a client gets a 429 and when to try again; a place is free once another client is gone."""
    async with serving(settings.model_copy(update={"event_streams_max": 1})) as api:
        async with listening(api.url):
            reply = await api.get("/v1/events")
            assert "KEEPFIT_EVENT_STREAMS_MAX" in reply.problem(429)["detail"]
            assert int(reply.headers["Retry-After"]) > 0
            metrics = (await api.get("/metrics")).body.decode()
            assert "keepfit_event_streams 1.0" in metrics

        async def is_free() -> bool:
            return (await api.get("/v1/events?timeout=0.01")).status == 200

        await eventually(is_free, "a free place")


async def test_a_drift_is_sent_once(api: Api, metadata: dict[str, Any]) -> None:
    """When the labels of a stream change their meaning, one drift is sent, with the accuracy before and after."""
    path, model_hash = await make(api, metadata, {**CLASSIFIER, "window": 200})
    rows = [[float(i % 7) - 3.5] for i in range(100)]
    labels = ["yes" if row[0] > 0 else "no" for row in rows]
    async with listening(api.url, f"?hash={model_hash}&kind=drift,snapshot") as listener:
        for _ in range(5):
            await api.learn(path, rows, labels)
        swapped = ["no" if label == "yes" else "yes" for label in labels]
        await api.learn(path, rows, swapped)
        for _ in range(3):
            await api.learn(path, rows, swapped)
        (await api.call("POST", f"{path}/snapshot")).of(201)
        found = await listener.until(kind="snapshot")
    assert [event["kind"] for event in found] == ["drift", "snapshot"]
    drift = found[0]["drift"]
    assert drift["metric"] == "accuracy"
    assert drift["before"] > 0.9
    assert drift["recent"] < 0.7


async def test_a_client_that_disconnects_leaves_nothing(settings: Settings) -> None:
    """A stream whose client is gone is removed although nothing happens; the gateway logs no error of it."""
    async with serving(settings) as api, connected(api.url) as (reader, writer):
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"retry: ")
        writer.transport.abort()

        async def is_removed() -> bool:
            return "keepfit_event_streams 0.0" in (await api.get("/metrics")).body.decode()

        await eventually(is_removed, "the end of the stream")

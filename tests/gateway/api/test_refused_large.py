"""Large requests that are refused leave nothing behind: neither rows in Redis, nor objects in the gateway."""

import gc
import hashlib
import io
import re
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis

from keepfit.backends import redis_clients
from keepfit.errors import UnavailableError
from keepfit.rows import rows as rows_module
from keepfit.rows.tables import Matrix, NamedColumns
from keepfit.settings import Settings
from keepfit.store import staging
from keepfit_gateway.web.rows_body import ARROW, NPY, LargeRows
from tests.gateway.api_client import REGRESSOR, Api, Reply, serving

N = 40_000
# Rows of two numbers and a target: 960 kB as float64.
ROWS = np.ones((N, 3))


def npy(array: Any) -> bytes:
    """Return an array as numpy saves it."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    """Return a plain client of the store."""
    with redis_clients.store_sync(settings) as opened:
        yield opened


async def learn(api: Api, path: str, array: Any, **headers: str) -> Reply:
    """Send an array to learn."""
    return await api.call(
        "POST", f"{path}/partial_fit", data=io.BytesIO(npy(array)), headers={"Content-Type": NPY, **headers}
    )


def staged(client: redis.Redis) -> list[Any]:
    """Return the keys of large requests."""
    return list(client.scan_iter(match="kf:*:big:*"))


def writes(client: redis.Redis) -> int:
    """Return the number of pieces of rows that were written to Redis."""
    commands: Any = client.info("commandstats")
    return int(commands.get("cmdstat_setrange", {"calls": 0})["calls"])


async def test_refused_rows_are_not_written_to_redis(
    settings: Settings, client: redis.Redis, metadata: dict[str, Any]
) -> None:
    """Wrong width, another body with a used key, a full inbox: the gateway looks first. A repeat writes nothing."""
    async with serving(settings.model_copy(update={"inbox_bytes_max": 2**20})) as api:
        path = await api.make(metadata, REGRESSOR)
        first = await learn(api, path, ROWS, **{"Idempotency-Key": "one"})
        before, kept = writes(client), staged(client)
        assert len(kept) == 1
        again = await learn(api, path, ROWS, **{"Idempotency-Key": "one"})
        assert again.of(202) == first.of(202)
        other = await learn(api, path, 2 * ROWS, **{"Idempotency-Key": "one"})
        assert other.problem(422)["type"].endswith(":idempotency")
        assert "3 values where the model has 2" in (await learn(api, path, np.ones((N, 4)))).problem(422)["detail"]
        full = await learn(api, path, ROWS)
        assert full.problem(429)["type"].endswith(":inbox-full")
        assert (writes(client), staged(client)) == (before, kept)


async def test_rows_are_hashed_once(workerless: Api, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest that a large request is asked about with is the one that it is accepted with."""
    path = await workerless.make(metadata, REGRESSOR)
    begun: list[bool] = []

    def sha256() -> Any:
        begun.append(threading.current_thread() is threading.main_thread())
        return hashlib.sha256()

    monkeypatch.setattr(staging, "hashlib", SimpleNamespace(sha256=sha256))
    first = (await learn(workerless, path, ROWS, **{"Idempotency-Key": "one"})).of(202)
    # With a key in a thread, so that other requests do not wait; else while the rows are written.
    assert begun == [False]
    assert (await learn(workerless, path, ROWS, **{"Idempotency-Key": "one"})).of(202) == first
    (await learn(workerless, path, ROWS)).of(202)
    assert begun == [False, False, True]


async def test_rows_that_are_refused_after_they_were_written_are_deleted(
    workerless: Api, client: redis.Redis, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model changes while the rows are written, or the write fails: the rows do not stay until they expire."""
    path = await workerless.make(metadata, REGRESSOR)
    original = staging.write_in_pieces

    async def accept_others(*args: Any) -> str:
        digest = await original(*args)
        (await workerless.post(f"{path}/partial_fit", {"X": [[1.0, 2.0, 3.0]], "y": [1.0]})).of(202)
        return digest

    async def fail(*args: Any) -> str:
        await original(*args)
        raise UnavailableError("Redis is away.")

    monkeypatch.setattr(staging, "write_in_pieces", accept_others)
    assert "2 values where the model has 3" in (await learn(workerless, path, ROWS)).problem(422)["detail"]
    monkeypatch.setattr(staging, "write_in_pieces", fail)
    (await learn(workerless, path, np.ones((N, 4)))).problem(503)
    assert staged(client) == []


async def test_concurrent_calls_with_one_key_keep_the_rows_of_one(
    workerless: Api, client: redis.Redis, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeat that arrives while the first call is written gets the same answer, and its copy is deleted."""
    path = await workerless.make(metadata, REGRESSOR)
    original, replies = staging.write_in_pieces, []

    async def overtaken(*args: Any) -> str:
        digest = await original(*args)
        monkeypatch.setattr(staging, "write_in_pieces", original)
        replies.append(await learn(workerless, path, ROWS, **{"Idempotency-Key": "one"}))
        return digest

    monkeypatch.setattr(staging, "write_in_pieces", overtaken)
    replies.append(await learn(workerless, path, ROWS, **{"Idempotency-Key": "one"}))
    assert [reply.of(202)["sequence"] for reply in replies] == [1, 1]
    assert len(staged(client)) == 1


def _arrow(n: int) -> bytes:
    file = io.BytesIO()
    table = pa.table({name: pa.array(np.ones(n, "u1")) for name in ("a", "b", "y")})
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def _json(n: int) -> bytes:
    return b'{"X":[' + b",".join([b"[1,2]"] * n) + b'],"y":[' + b",".join([b"1"] * n) + b"]}"


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        (NPY, lambda n: npy(np.ones((n, 3), "u1"))),
        (NPY, lambda n: npy(np.ones((n, 3)))),
        (ARROW, _arrow),
        ("application/json", _json),
    ],
    ids=["bytes", "doubles", "arrow", "json"],
)
async def test_rows_that_redis_cannot_hold_answer_413_with_the_number_that_fits(
    workerless: Api, client: redis.Redis, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch, media_type: str,
    body: Callable[[int], bytes],
) -> None:  # fmt: skip
    """Rows are counted as float64, whatever they were sent as; the number in the answer is accepted."""
    monkeypatch.setattr(rows_module, "BYTES_MAX", 2**19)

    async def send(call: str, data: bytes, kind: str) -> Reply:
        return await workerless.call("POST", call, data=io.BytesIO(data), headers={"Content-Type": kind})

    path = await workerless.make(metadata, {**REGRESSOR, "features": {"a": "number", "b": "number"}})
    learned = await send(f"{path}/partial_fit", body(N), media_type)
    asked = await send(f"{path}/predict", npy(np.ones((N, 2), "u1")), NPY)
    for refused in (learned, asked):
        problem = refused.problem(413)
        assert problem["type"].endswith(":too-large")
        most = int(re.findall(r"at most (\d+)", problem["detail"])[0])
        assert 20_000 < most < N
    assert staged(client) == []
    most = int(re.findall(r"at most (\d+)", learned.problem(413)["detail"])[0])
    (await send(f"{path}/partial_fit", body(most - 100), media_type)).of(202)


async def test_rows_may_take_as_much_as_a_body(
    settings: Settings, client: redis.Redis, metadata: dict[str, Any]
) -> None:
    """A body within the limit whose rows exceed it as float64 answers 413 to both calls; fewer are accepted."""
    async with serving(settings.model_copy(update={"body_bytes_max": 2**19})) as api:
        path = await api.make(metadata, {**REGRESSOR, "features": {"a": "number", "b": "number"}})
        for call, width in (("partial_fit", 3), ("predict", 2)):
            body = npy(np.ones((N, width), "u1"))
            headers = {"Content-Type": NPY}
            problem = (await api.call("POST", f"{path}/{call}", data=body, headers=headers)).problem(413)
            assert problem["type"].endswith(":too-large")
            assert f"a request may take {2**19}" in problem["detail"]
        assert staged(client) == []
        most = int(re.findall(r"at most (\d+)", problem["detail"])[0])
        body = npy(np.ones((most // 2, 3), "u1"))
        (await api.call("POST", f"{path}/partial_fit", data=body, headers={"Content-Type": NPY})).of(202)


@pytest.mark.parametrize("refusal", ["width", "key", "too large", "unavailable", "crash"])
async def test_a_refused_request_is_freed_without_a_garbage_collection(
    workerless: Api, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    """No error keeps the frames of the request alive, nor the rows in them."""
    path = await workerless.make(metadata, REGRESSOR)
    (await learn(workerless, path, ROWS, **{"Idempotency-Key": "one"})).of(202)
    sent, status, key = ROWS, 503, "two"
    if refusal == "width":
        sent, status = np.ones((N, 4)), 422
    elif refusal == "key":
        sent, status, key = 2 * ROWS, 422, "one"
    elif refusal == "too large":
        monkeypatch.setattr(rows_module, "BYTES_MAX", 2**19)
        status = 413
    else:
        error = {"unavailable": UnavailableError("away"), "crash": RuntimeError("unforeseen")}[refusal]
        status = 503 if refusal == "unavailable" else 500

        async def fail(*args: Any) -> str:
            raise error

        monkeypatch.setattr(staging, "write_in_pieces", fail)
    gc.collect()
    gc.disable()
    try:
        (await learn(workerless, path, sent, **{"Idempotency-Key": key})).problem(status)
        alive = [found for found in gc.get_objects() if type(found) in (LargeRows, Matrix, NamedColumns)]
    finally:
        gc.enable()
    assert alive == []

"""Rows as tables: npy and Arrow over HTTP, small and large."""

import asyncio
import gzip
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import numpy as np
import pyarrow as pa
import pytest
from aiohttp import web

from keepfit.recipe.recipe import parse
from keepfit.rows import arrow as frames
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit_gateway import schemas
from keepfit_gateway.web import bodies, rows_body
from keepfit_gateway.web.bodies import BODY_MEMORY, BodyMemoryLimit
from keepfit_gateway.web.offload import run_in_thread_if_large
from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, WAIT, Api, Twin

NPY = {"Content-Type": rows_body.NPY}
ARROW = {"Content-Type": rows_body.ARROW}
BINARY = {"Content-Type": rows_body.BINARY}
GZIP = {"Content-Encoding": "gzip"}


def npy(values: Any) -> bytes:
    """Return an array in numpy's format."""
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def arrow(**columns: Any) -> bytes:
    """Return columns as an Arrow stream."""
    table = pa.table(columns)
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


async def test_npy_arrays_are_learned_predicted_and_scored(api: Api, metadata: dict[str, Any]) -> None:
    """npy bodies, plain and gzip, equal the same rows as lists; a query parameter requests probabilities."""
    recipe = {**CLASSIFIER, "params": {"loss": "log_loss"}, "classes": [0, 1]}
    path, twin = await api.make(metadata, recipe), Twin(recipe)
    X, y = [[0.5, 1.0], [2.0, 3.0], [4.0, 0.0]], [0, 1, 1]
    table = npy(np.column_stack([X, y]))
    twin.learn(X, y)
    (await api.call("POST", f"{path}/partial_fit", data=table, headers={**NPY, **WAIT})).of(200)
    twin.learn(X, y)
    packed = gzip.compress(table)
    learned = await api.call("POST", f"{path}/partial_fit", data=packed, headers={**NPY, **GZIP, **WAIT})
    assert learned.of(200)["rows_seen"] == 6
    predicted = (await api.call("POST", f"{path}/predict", data=npy(X), headers=NPY)).of(200)
    assert predicted["predictions"] == twin.predict(X)
    asked = await api.call("POST", f"{path}/predict", data=npy(X), headers=NPY, params={"proba": "true"})
    assert asked.of(200)["probabilities"] == twin.predict_proba(X)
    scored = (await api.call("POST", f"{path}/score", data=table, headers=NPY)).of(200)
    assert scored == (await api.post(f"{path}/score", {"X": X, "y": y})).of(200)


@pytest.mark.parametrize("form", ["npy", "arrow"])
async def test_an_octet_stream_is_read_as_the_table_that_it_begins_like(
    api: Api, metadata: dict[str, Any], form: str
) -> None:
    """A body without a type of its own is an npy file or an Arrow stream by its first bytes."""
    path, twin = await api.make(metadata, REGRESSOR), Twin(REGRESSOR)
    X, y = [[0.5, 1.0], [2.0, 3.0]], [1.0, 2.0]
    twin.learn(X, y)
    columns = np.asarray(X).T.tolist()
    table = npy(np.column_stack([X, y])) if form == "npy" else arrow(a=columns[0], b=columns[1], y=y)
    (await api.call("POST", f"{path}/partial_fit", data=table, headers={**BINARY, **WAIT})).of(200)
    asked = npy(X) if form == "npy" else arrow(a=columns[0], b=columns[1])
    predicted = await api.call("POST", f"{path}/predict", data=asked, headers=BINARY)
    assert predicted.of(200)["predictions"] == twin.predict(X)


@pytest.mark.parametrize("data", [b"", b"{}", b"ARROW1\0\0", b"\x93NUMP"])
async def test_other_octet_streams_are_refused(api: Api, metadata: dict[str, Any], data: bytes) -> None:
    """A body that begins like no table answers 415 and says what would be right."""
    path = await api.make(metadata, REGRESSOR)
    answer = await api.call("POST", f"{path}/predict", data=data, headers=BINARY)
    assert answer.problem(415)["detail"] == (
        "The body is not a table: application/octet-stream must be an npy file, an Arrow IPC stream or a Parquet file."
    )


async def test_arrow_streams_are_learned_predicted_and_scored(api: Api, metadata: dict[str, Any]) -> None:
    """Arrow bodies equal the same rows as lists."""
    path, twin = await api.make(metadata, SHOES_RECIPE), Twin(SHOES_RECIPE)
    columns = {"year": [2001, 2002], "make": pa.array(["nike", "puma"]).dictionary_encode()}
    X, y = [["nike", 2001], ["puma", 2002]], [4.0, 5.0]
    twin.learn(X, y)
    table = arrow(**columns, y=y)
    (await api.call("POST", f"{path}/partial_fit", data=gzip.compress(table), headers={**ARROW, **GZIP, **WAIT})).of(
        200
    )
    predicted = await api.call("POST", f"{path}/predict", data=arrow(**columns), headers=ARROW)
    assert predicted.of(200)["predictions"] == twin.predict(X)
    scored = (await api.call("POST", f"{path}/score", data=table, headers=ARROW)).of(200)
    assert scored == (await api.post(f"{path}/score", {"X": X, "y": y})).of(200)


@pytest.mark.parametrize(
    ("status", "call", "data", "headers"),
    [
        (400, "partial_fit", npy([[1.0, 2.0]])[:-1], NPY),
        (400, "partial_fit", b'{"X":[[1]],"y":[1]}', NPY),
        (400, "partial_fit", b'{"X":[[1]],"y":[1]}', ARROW),
        (400, "partial_fit", arrow(a=[1], y=[1])[:-8], ARROW),
        (400, "partial_fit", npy([[1.0, 2.0]]), {**NPY, **GZIP}),
        (400, "predict?proba=yes", npy([[1.0, 2.0]]), NPY),
        (400, "predict?proba=true&proba=true", npy([[1.0, 2.0]]), NPY),
        (413, "predict", npy(np.zeros((1, 10_001))), NPY),
        (413, "partial_fit", npy(np.zeros((2, 10_002), bool)), NPY),
        (413, "partial_fit", arrow(**{str(i): [1] for i in range(10_002)}), ARROW),
        (415, "partial_fit", npy([[1.0, 2.0]]), {"Content-Type": "application/vnd.apache.arrow.file"}),
        (415, "partial_fit", npy([[1.0, 2.0]]), {**NPY, "Content-Encoding": "br"}),
        (422, "partial_fit", npy([[1.0, np.nan]]), NPY),
        (422, "partial_fit", npy([["1", "2"]]), NPY),
        (422, "predict", npy([1.0, 2.0]), NPY),
        (422, "score", arrow(a=[1], y=[1], sample_weight=[1]), ARROW),
        (422, "partial_fit", arrow(a=[1, None], y=[1, 2]), ARROW),
    ],
)
async def test_invalid_tables(
    api: Api, metadata: dict[str, Any], status: int, call: str, data: bytes, headers: dict[str, str]
) -> None:
    """Damaged, too wide and invalid tables are answered like invalid JSON, and none of their rows is learned."""
    path = await api.make(metadata, REGRESSOR)
    (await api.call("POST", f"{path}/{call}", data=io.BytesIO(data), headers=headers)).problem(status)
    assert (await api.model(path))["inbox"] == 0


@pytest.mark.parametrize("form", ["npy", "arrow"])
async def test_tables_by_metadata_equal_tables_by_hash(api: Api, metadata: dict[str, Any], form: str) -> None:
    """With metadata in the query, a table is learned, predicted and scored as with the hash; the ETag is the same."""
    recipe = {**CLASSIFIER, "params": {"loss": "log_loss"}, "classes": [0, 1]}
    metadata["stadt"] = "Köln & 東京"
    path, query = await api.make(metadata, recipe), f"?metadata={quote(json.dumps(metadata))}"
    X, y = [[0.5, 1.0], [2.0, 3.0]], [0, 1]
    columns = dict(zip("ab", np.asarray(X).T.tolist(), strict=True))
    rows, labelled = (
        (npy(X), npy(np.column_stack([X, y]))) if form == "npy" else (arrow(**columns), arrow(**columns, y=y))
    )
    headers = NPY if form == "npy" else ARROW
    learned = await api.call("POST", f"/v1/partial_fit{query}", data=labelled, headers={**headers, **WAIT})
    assert (learned.of(200)["hash"], learned.of(200)["rows_seen"]) == (path.rpartition("/")[2], 2)
    asked = await api.call("POST", f"/v1/predict{query}&proba=true", data=rows, headers=headers)
    by_hash = await api.call("POST", f"{path}/predict?proba=true", data=rows, headers=headers)
    assert asked.of(200) == by_hash.of(200)
    assert asked.headers["ETag"] == by_hash.headers["ETag"]
    again = {**headers, "If-None-Match": asked.headers["ETag"]}
    assert (await api.call("POST", f"/v1/predict{query}&proba=true", data=rows, headers=again)).status == 304
    scored = await api.call("POST", f"/v1/score{query}", data=labelled, headers=headers)
    assert scored.of(200) == (await api.call("POST", f"{path}/score", data=labelled, headers=headers)).of(200)


@pytest.mark.parametrize("headers", [NPY, ARROW, BINARY], ids=["npy", "arrow", "octets"])
async def test_a_table_without_a_name_is_refused(api: Api, headers: dict[str, str]) -> None:
    """A table whose query names no model answers 400 and says where the metadata go."""
    for call in ("partial_fit", "predict", "score"):
        refused = await api.call("POST", f"/v1/{call}", data=npy([[1.0, 2.0]]), headers=headers)
        assert 'metadata={"type":' in refused.problem(400)["detail"]


async def test_a_gateway_without_pyarrow_names_the_extra(
    workerless: Api, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pyarrow an Arrow body answers 415 and names the extra to install."""
    monkeypatch.setattr(frames, "AVAILABLE", False)
    path = await workerless.make(metadata, REGRESSOR)
    for headers in (ARROW, BINARY):
        rejected = await workerless.call("POST", f"{path}/partial_fit", data=arrow(a=[1], y=[1]), headers=headers)
        assert "pip install -e '.[frames]'" in rejected.problem(415)["detail"]


BLOCK = np.linspace(-1, 1, 1 << 17).tobytes()
BLOCKS = 30


async def blocks(head: bytes) -> AsyncIterator[bytes]:
    """Yield a body of 30 MiB, of which the sender holds one MiB at a time."""
    yield head
    for _ in range(BLOCKS):
        yield BLOCK


@pytest.mark.parametrize("form", [schemas.PartialFit, schemas.Predict])
async def test_a_large_array_is_never_in_memory_twice(form: type[schemas.Form]) -> None:
    """From the socket to shaped rows, 30 MiB of float64 use less than 1.5 times their size."""
    shaped: list[Rows] = []
    recipe = parse({"estimator": "SGDRegressor"})

    async def handler(request: web.Request) -> web.Response:
        body = await bodies.read(request, Settings(), rows_body.TABLES)
        rows = await asyncio.to_thread(rows_body.parse_table, body, form, rows_body.NPY, "0" * 64)
        del body
        learning = form is schemas.PartialFit
        shaped.append(await run_in_thread_if_large(rows.size, rows.shape, recipe, learning=learning))
        return web.Response()

    head = npy(np.empty((1, 8))).replace(b"(1, 8), }     ", b"(%d, 8), }" % (BLOCKS * len(BLOCK) // 64))[:128]
    app = web.Application()
    app[BODY_MEMORY] = BodyMemoryLimit(1 << 20)
    app.router.add_post("/", handler)
    runner = web.AppRunner(app, auto_decompress=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with aiohttp.ClientSession() as http:
            tracemalloc.start()
            host, port = runner.addresses[0][:2]
            async with http.post(f"http://{host}:{port}/", data=blocks(head), headers=NPY) as response:
                assert response.status == 200
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await runner.cleanup()
    assert shaped[0].n * 64 == BLOCKS * len(BLOCK)
    assert peak < 1.5 * BLOCKS * len(BLOCK)

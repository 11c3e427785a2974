"""The gateway never blocks its event loop."""

import asyncio
import gzip
import json
import time
from typing import Any

import pytest
import structlog
from blockbuster import BlockingError, blockbuster_ctx

from keepfit_gateway.web import responses
from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import Api


async def test_nothing_blocks_the_event_loop(workerless: Api, metadata: dict[str, Any]) -> None:
    """Creating, describing, listing, learning (small, large, gzip), rejecting and deleting never block."""
    small = {"X": [["nike", 2001]], "y": [4.0]}
    large = {"X": [["nike", 2001]] * 20_000, "y": [4.0] * 20_000}
    packed = gzip.compress(json.dumps(large).encode())
    with structlog.testing.capture_logs() as logged, blockbuster_ctx() as blockbuster:
        for function in blockbuster.functions.values():
            # redis-py reads its version from disk for each new connection.
            function.can_block_in("redis/utils.py", "get_lib_version")
            # Coverage locks its data when it sees a file for the first time; the gateway does not run under it.
            function.can_block_in("coverage/collector.py", "lock_data")
        with pytest.raises(BlockingError):
            time.sleep(0.001)  # noqa: ASYNC251 - proves that blocking calls are detected
        path = await workerless.make(metadata, SHOES_RECIPE)
        (await workerless.post(f"{path}/partial_fit", small)).of(202)
        (await workerless.post(f"{path}/partial_fit", small, {"Idempotency-Key": "a", "Prefer": "wait=1"})).of(202)
        (await workerless.post(f"{path}/partial_fit", large)).of(202)
        sent = await workerless.call("POST", f"{path}/partial_fit", data=packed, headers={"Content-Encoding": "gzip"})
        assert sent.of(202)["sequence"] == 4
        (await workerless.post(f"{path}/partial_fit", {"X": [["nike", "new"]] * 5000, "y": [4.0] * 5000})).problem(422)
        (await workerless.post("/v1/partial_fit", {"metadata": metadata, **small})).of(202)
        (await workerless.get("/v1/models", type="shoes")).of(200)
        (await workerless.get("/openapi.json")).of(200)
        (await workerless.get("/readyz")).of(503)
        assert (await workerless.model(path))["inbox"] == 5
        assert (await workerless.call("DELETE", path)).status == 204
        await asyncio.sleep(0)
    assert [entry for entry in logged if entry["log_level"] in ("error", "warning")] == []


async def test_a_list_of_large_documents_lets_others_run(
    workerless: Api, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the documents of models with many labels, other tasks of the gateway run; between small ones none do."""
    encode, turns, seen = responses.encode_json, 0, list[int]()

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def noted(answer: Any) -> bytes:
        seen.append(turns)
        return encode(answer)

    for labels in (2, 2, 2, 200, 200, 200):
        classes = [f"{number:0>500}" for number in range(labels)]
        recipe = {"estimator": "SGDClassifier", "classes": classes}
        await workerless.make({**metadata, "labels": str(labels), "number": len(seen)}, recipe)
        seen.append(0)
    monkeypatch.setattr(responses, "encode_json", noted)
    counting = asyncio.create_task(count())
    for labels, others_run in ((2, False), (200, True)):
        seen.clear()
        page = await workerless.get("/v1/models", session=metadata["session"], labels=str(labels))
        assert len(page.of(200)["models"]) == 3
        one, two, three, whole = seen
        assert (one < two < three < whole) if others_run else (one == two == three == whole)
    counting.cancel()

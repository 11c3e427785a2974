"""GET /v1/system: what it shows of a running service, and of one of which a part is away."""

import os
import time
from typing import Any

import pytest

from keepfit.errors import UnavailableError
from keepfit.jobs import gateway_records
from keepfit.settings import Settings
from keepfit_gateway import heartbeat
from tests.gateway.api_client import REGRESSOR, Api, eventually, serving


async def test_the_state_of_a_running_service(api: Api, metadata: dict[str, Any]) -> None:
    """Gateways, workers, models and snapshots are counted; `ready` is the answer of the probe."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[1.0, 2.0]], [1.0])

    async def listed() -> bool:
        return len((await api.get("/v1/system")).of(200)["gateways"]) == 1

    await eventually(listed, "the record of the gateway")
    state = (await api.get("/v1/system")).of(200)
    assert abs(state["timestamp"] - time.time()) < 60
    assert state["ready"].items() >= {"redis": "ok", "queue": "ok", "mongo": "ok", "workers": 2}.items()
    (gateway,) = state["gateways"]
    assert gateway["host"] == os.uname().nodename
    assert gateway["started"] < state["timestamp"]
    assert [worker["name"] for worker in state["workers"]] == sorted(worker["name"] for worker in state["workers"])
    assert len(state["workers"]) == 2
    assert state["models"]["registered"] >= state["models"]["live"]
    assert state["waiting"].keys() == {"models", "requests", "models_to_predict", "oldest_s"}
    assert state["snapshots"]["failed"] == 0


async def test_unclaimed_work_gets_older(workerless: Api, metadata: dict[str, Any]) -> None:
    """Without a worker, waiting requests are counted, and their age grows."""
    path = await workerless.make(metadata, REGRESSOR)
    rows = {"X": [[1.0, 2.0]], "y": [1.0]}
    for _ in range(3):
        (await workerless.post(f"{path}/partial_fit", rows)).of(202)
    waiting: dict[str, Any] = {}

    async def counted() -> bool:
        state = (await workerless.get("/v1/system")).of(200)
        assert (state["ready"]["status"], state["workers"]) == ("unavailable", [])
        waiting.update(state["waiting"])
        return bool(waiting["requests"] == 3 and waiting["oldest_s"] > 0)

    await eventually(counted, "the waiting requests")
    assert (waiting["models"], waiting["models_to_predict"]) == (1, 0)
    before = waiting["oldest_s"]

    async def older() -> bool:
        return bool((await workerless.get("/v1/system")).of(200)["waiting"]["oldest_s"] > before)

    await eventually(older, "an age that grows")


async def test_processes_are_listed_until_they_stop(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has a record of its own, which goes with it, or when it has no heartbeat any more."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.05)

    async def names(api: Api) -> set[str]:
        return {record["name"] for record in (await api.get("/v1/system")).of(200)["gateways"]}

    async with serving(settings) as first:
        async with serving(settings) as second:

            async def both() -> bool:
                return len(await names(second)) == 2

            await eventually(both, "two records")

        async def one() -> bool:
            return len(await names(first)) == 1

        await eventually(one, "one record")
        # As of a process that was killed.
        monkeypatch.setattr(gateway_records, "ALIVE_S", -1.0)
        assert await names(first) == set()
        # Nor is it kept.
        monkeypatch.setattr(gateway_records, "ALIVE_S", 60.0)
        monkeypatch.setattr(gateway_records, "KEPT_S", -1.0)
        await eventually(one, "the record that is written again")


async def test_a_part_that_cannot_be_read_is_null(workerless: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are there."""

    async def away(queue: Any) -> None:
        raise UnavailableError("Redis is unavailable.")

    monkeypatch.setattr(gateway_records, "read_all", away)
    state = (await workerless.get("/v1/system")).of(200)
    assert state["gateways"] is None
    assert (state["workers"], state["models"]) == ([], {"registered": 0, "live": 0})

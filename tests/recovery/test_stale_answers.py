"""Predictions while all workers or Redis are away: `stale-if-error` gets the last known version, others a 503."""

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from tests.gateway.api_client import Api, Reply, eventually
from tests.gateway.prediction.test_scoring import fresh_row, sources, until_scored
from tests.recovery.deployment import Deployment, deployed

LINEAR = {"estimator": "SGDRegressor"}
# A model without a scorer: one of its steps has none.
COMPONENTS = {"steps": [{"IncrementalPCA": {"n_components": 1}}, {"SGDRegressor": {}}]}
LABELLED = {"X": [[1.0, 2.0], [3.0, 5.0]], "y": [0, 1]}
ROW = [1.0, 2.0]
STALE = {"Cache-Control": "stale-if-error=60"}
# What the gateway does once it knows that workers are away, on a busy machine.
KNOWN_S = 0.1


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Run one deployment for all tests of this module; each test leaves it running."""
    with deployed(tmp_path_factory.mktemp("parts"), predict_timeout_s="2") as running:
        yield running


@pytest.fixture
async def api(deployment: Deployment) -> AsyncIterator[Api]:
    """Return the API of one gateway."""
    async with aiohttp.ClientSession(deployment.urls[0]) as http:
        yield Api(http)


async def ask(api: Api, path: str, row: list[Any], headers: dict[str, str] | None = None) -> Reply:
    """Predict a row."""
    return await api.post(f"{path}/predict", {"X": [row]}, headers)


async def make(api: Api, metadata: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Return the path of a model that has learned rows."""
    path = await api.make({**metadata, "recipe": sorted(recipe)}, recipe)
    await api.learn(path, **LABELLED)
    return path


def check_stale(reply: Reply, version: int) -> str:
    """Check that an answer says that it may be outdated; return its Cache-Status."""
    assert reply.of(200)["version"] == version
    assert int(reply.headers["Age"]) >= 0
    status = reply.headers["Cache-Status"]
    assert status.startswith(("keepfit; hit; ttl=", "keepfit; fwd=stale; ttl="))
    assert status.endswith(("; detail=unavailable", "; detail=deadline"))
    return status


def kill_workers(deployment: Deployment) -> None:
    """Kill all workers, and the supervisor, which would start others."""
    pids = [deployment.workers.pid, *deployment.workers.children()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    deployment.workers.kill()


async def is_computed(api: Api, path: str) -> bool:
    """Return whether a worker or a current scorer answers a request that would take an outdated answer."""
    reply = await ask(api, path, fresh_row(ROW), STALE)
    return reply.status == 200 and "Cache-Status" not in reply.headers


async def test_predictions_go_on_without_workers(deployment: Deployment, api: Api, metadata: dict[str, Any]) -> None:
    """With all workers killed, current scorers answer, outdated ones only if allowed, and other models get a 503."""
    current, outdated, without = [
        await make(api, {**metadata, "model": name}, recipe)
        for name, recipe in (("current", LINEAR), ("outdated", LINEAR), ("without", COMPONENTS))
    ]
    await until_scored(api, current, ROW)
    await until_scored(api, outdated, ROW)
    # Workers learn one more request before they are killed.
    await api.learn(outdated, **LABELLED)
    kill_workers(deployment)
    try:
        for headers in (None, STALE):
            reply = await ask(api, current, fresh_row(ROW), headers)
            assert (reply.of(200)["version"], "Cache-Status" in reply.headers) == (1, False)
        assert "fwd=stale" in check_stale(await ask(api, outdated, fresh_row(ROW), STALE), 1)
        times = []
        for _ in range(10):
            started = time.perf_counter()
            assert "hit" in check_stale(await ask(api, outdated, fresh_row(ROW), STALE), 1)
            times.append(time.perf_counter() - started)
        assert min(times) < KNOWN_S
        for headers in (None, STALE):
            assert (await ask(api, without, fresh_row(ROW), headers)).status in (503, 504)
        for headers in (None, {"Cache-Control": "stale-if-error=0"}):
            assert (await ask(api, outdated, fresh_row(ROW), headers)).status in (503, 504)
        assert (await sources(api))["stale"] >= 11
    finally:
        deployment.workers.start()
    await eventually(lambda: is_computed(api, outdated), "an answer of a worker")
    assert (await ask(api, outdated, fresh_row(ROW))).of(200)["version"] == 2


@pytest.mark.parametrize("server", ["store", "queue"])
async def test_predictions_go_on_without_redis(
    deployment: Deployment, api: Api, metadata: dict[str, Any], server: str
) -> None:
    """With a Redis killed, models with a scorer, and answers that are kept, go on being answered; others get a 503."""
    path, without = await make(api, metadata, LINEAR), await make(api, metadata, COMPONENTS)
    await until_scored(api, path, ROW)
    kept = await ask(api, without, ROW)
    with (deployment.store if server == "store" else deployment.queue).stopped():
        if server == "store":

            async def is_noticed() -> bool:
                return (await ask(api, path, fresh_row(ROW))).status == 503

            await eventually(is_noticed, "noticing the outage")
            # On the fast path, and on the regular one.
            for more in ({}, {"Content-Type": "application/json; charset=utf-8"}):
                check_stale(await ask(api, path, fresh_row(ROW), {**STALE, **more}), 1)
            again = await ask(api, without, ROW, STALE)
            check_stale(again, 1)
            assert (again.body, again.headers["ETag"]) == (kept.body, kept.headers["ETag"])
        else:
            # The store reports versions as before.
            assert await is_computed(api, path)
        (await ask(api, without, fresh_row(ROW), STALE)).problem(503)
        (await ask(api, without, fresh_row(ROW))).problem(503)
    await eventually(lambda: is_computed(api, path), "an answer of a worker")
    await eventually(lambda: is_computed(api, without), "an answer of a worker")


async def test_a_hanging_redis_is_known_after_one_request(
    deployment: Deployment, api: Api, metadata: dict[str, Any]
) -> None:
    """While Redis hangs, only the first requests wait until their time is over; others are answered at once."""
    path = await make(api, metadata, LINEAR)
    await until_scored(api, path, ROW)
    with deployment.store.hung(), deployment.queue.hung():

        async def is_stale() -> bool:
            return "Cache-Status" in (await ask(api, path, fresh_row(ROW), STALE)).headers

        await eventually(is_stale, "an outdated answer")
        times = []
        for _ in range(5):
            started = time.perf_counter()
            check_stale(await ask(api, path, fresh_row(ROW), STALE), 1)
            times.append(time.perf_counter() - started)
        assert min(times) < KNOWN_S
    await eventually(lambda: is_computed(api, path), "an answer of a worker")


async def test_an_outdated_answer_is_used_for_as_long_as_is_allowed(
    deployment: Deployment, api: Api, metadata: dict[str, Any]
) -> None:
    """An answer that is outdated for longer than the request allows is not sent."""
    path = await make(api, metadata, LINEAR)
    await until_scored(api, path, ROW)
    with deployment.store.stopped():

        async def is_too_old() -> bool:
            allowed = await ask(api, path, fresh_row(ROW), {"Cache-Control": "stale-if-error=1"})
            check_stale(await ask(api, path, fresh_row(ROW), STALE), 1)
            return allowed.status == 503

        await eventually(is_too_old, "a 503 instead of an answer that is too old")
    await eventually(lambda: is_computed(api, path), "an answer of a worker")

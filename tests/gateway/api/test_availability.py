"""What the gateway answers while a dependency is unavailable, and that it recovers by itself."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from pydantic import SecretStr

from keepfit.backends import redis_clients, redis_keys
from keepfit.jobs import run_queue
from keepfit.local.servers import free_port
from keepfit.security.api_keys import ADMIN, new_key
from keepfit.settings import Settings
from keepfit_gateway import app, health
from keepfit_gateway.handlers.operations import FAILS
from keepfit_gateway.health import PROBE_TIMEOUT_S
from tests import servers
from tests.conftest import Stack, start_stack, stop_stack
from tests.gateway.api_client import DEADLINE_S, REGRESSOR, WAIT, Api, Reply, eventually, serving

LABELLED = {"X": [[1.0, 2.0]], "y": [1.0]}
ROWS = {"X": [[1.0, 2.0]]}


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a stack for this module, whose processes are stopped and killed."""
    running = start_stack(tmp_path_factory.mktemp("fragile") / "data", environment={"KEEPFIT_PREDICT_TIMEOUT_S": "2"})
    yield running
    assert stop_stack(running) == 0


@pytest.fixture
async def frail(fragile: Stack) -> AsyncIterator[Api]:
    """Return the API of the stack whose processes are stopped and killed."""
    async with aiohttp.ClientSession(fragile.url) as http:
        yield Api(http)


def is_stopped(pid: int) -> bool:
    """Return whether all threads of a process are stopped."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return {(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads} == {"T"}


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Stop processes while the block runs."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    # The signal stops threads one after the other; the process may answer until the last one has stopped.
    deadline = time.monotonic() + 30
    while not all(map(is_stopped, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def check_unavailable(reply: Reply) -> dict[str, Any]:
    """Check that the answer is a 503 with Retry-After, and return its problem document."""
    problem = reply.problem(503)
    assert int(reply.headers["Retry-After"]) >= 1
    return problem


async def test_a_wait_that_times_out_answers_202(fragile: Stack, frail: Api, metadata: dict[str, Any]) -> None:
    """While workers are stopped, a wait ends with a 202 and predictions with 504; the rows are learned later."""
    path = await frail.make(metadata, REGRESSOR)
    await frail.learn(path, **LABELLED)
    with frozen(fragile.workers()):
        learn, predict, score = await asyncio.gather(
            frail.post(f"{path}/partial_fit", LABELLED, {"Prefer": "wait=1"}),
            frail.post(f"{path}/predict", ROWS),
            frail.post(f"{path}/score", LABELLED),
        )
        accepted = learn.of(202)
        assert (accepted["sequence"], accepted["version"]) == (2, 1)
        assert "Preference-Applied" not in learn.headers
        predict.problem(504)
        score.problem(504)
        assert (await frail.model(path))["inbox"] == 1

    async def learned() -> bool:
        return bool((await frail.model(path))["rows_seen"] == 2)

    await eventually(learned, "learning what was accepted while the workers were stopped")
    assert (await frail.predict(path, **ROWS))["rows_seen"] == 2


@pytest.mark.parametrize(("server", "variable"), [("redis", "KEEPFIT_STORE_URL"), ("queue", "KEEPFIT_QUEUE_URL")])
async def test_a_killed_redis_loses_and_repeats_nothing(
    fragile: Stack, frail: Api, metadata: dict[str, Any], server: str, variable: str
) -> None:
    """Requests that are repeated with their keys while Redis is killed and restarted are each learned once.

    The queue's Redis restarts empty: worker requests and hints are sent again.
    """
    path = await frail.make(metadata, REGRESSOR)

    async def send(key: int) -> None:
        headers = {"Idempotency-Key": str(key), **WAIT}
        while (reply := await frail.post(f"{path}/partial_fit", LABELLED, headers)).status != 200:
            if reply.status != 202:
                check_unavailable(reply)
            await asyncio.sleep(0.05)

    pid, port = fragile.pids()[server], urlsplit(fragile.environment()[variable]).port
    assert port is not None
    async with asyncio.timeout(60):
        tasks = [asyncio.create_task(send(key)) for key in range(20)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        os.kill(pid, signal.SIGKILL)
        servers.wait_until(lambda: fragile.pids()[server] != pid, "the restart of Redis")
        await asyncio.gather(*tasks, *(send(key) for key in range(10, 30)))
    model = await frail.model(path)
    assert (model["rows_seen"], model["inbox"]) == (30, 0)

    async def answered() -> bool:
        return (await frail.post(f"{path}/predict", ROWS)).status == 200

    await eventually(answered, "predicting after the restart")


async def test_pending_worker_requests_are_sent_again(fragile: Stack, frail: Api, metadata: dict[str, Any]) -> None:
    """A worker request that was lost with the queue's Redis is sent again after its restart, and answered."""
    path = await frail.make(metadata, REGRESSOR)
    await frail.learn(path, **LABELLED)
    with frozen(fragile.workers()), redis_clients.queue_sync(fragile.settings()) as client:
        asked = asyncio.create_task(frail.post(f"{path}/predict?timeout=60", ROWS))

        async def is_pending() -> bool:
            return bool(client.exists(redis_keys.worker_requests(run_queue.PREDICT.name)))

        await eventually(is_pending, "the arrival of the worker request")
        pid = fragile.pids()["queue"]
        os.kill(pid, signal.SIGKILL)
        servers.wait_until(lambda: fragile.pids()["queue"] != pid, "the restart of the queue's Redis")
    assert (await asked).of(200)["rows_seen"] == 1


async def test_a_disconnected_listener_reconnects(fragile: Stack, frail: Api, metadata: dict[str, Any]) -> None:
    """After an error in a read of replies or commits, as in a failover, the gateway receives them again."""
    path = await frail.make(metadata, REGRESSOR)
    await frail.learn(path, **LABELLED)
    with redis_clients.queue_sync(fragile.settings()) as client:
        listeners = [each for each in client.client_list() if each["cmd"] == "blmpop"]
        assert listeners
        for each in listeners:
            assert client.client_unblock(each["id"], error=True)
    with redis_clients.store_sync(fragile.settings()) as client:
        assert client.client_kill_filter(_type="pubsub")
    async with asyncio.timeout(30):
        assert (await frail.predict(path, **ROWS))["rows_seen"] == 1
        assert (await frail.learn(path, **LABELLED))["rows_seen"] == 2


async def test_every_call_answers_503_while_redis_is_unavailable(
    settings: Settings, tmp_path: Path, metadata: dict[str, Any]
) -> None:
    """Without Redis each call answers 503 with Retry-After; after its restart everything works, with the same data."""
    port, folder = free_port(), tmp_path / "own-redis"
    with ExitStack() as running:
        url = SecretStr(running.enter_context(servers.valkey(folder, port)))
        async with serving(settings.model_copy(update={"store_url": url})) as api:
            path = await api.make(metadata, REGRESSOR)
            (await api.post(f"{path}/partial_fit", LABELLED)).of(202)
            running.close()
            for method, where, document in (
                ("POST", "/v1/models", {"metadata": {**metadata, "new": True}, "recipe": REGRESSOR}),
                ("GET", "/v1/models", None),
                ("GET", path, None),
                ("POST", f"{path}/partial_fit", LABELLED),
                ("POST", "/v1/partial_fit", {"metadata": metadata, **LABELLED}),
                ("POST", f"{path}/predict", ROWS),
                ("POST", f"{path}/score", LABELLED),
            ):
                check_unavailable(await api.call(method, where, document))
            assert (await api.get("/readyz")).of(503)["redis"] != "ok"
            assert (await api.get("/livez")).status == 200
            with servers.valkey(folder, port):

                async def recovered() -> bool:
                    return (await api.get(path)).status == 200

                await eventually(recovered, "the recovery of the gateway")
                assert (await api.model(path))["inbox"] == 1
                assert (await api.post(f"{path}/partial_fit", LABELLED)).of(202)["sequence"] == 2
                assert (await api.get("/readyz")).of(503)["redis"] == "ok"


async def test_an_interrupted_delete_is_completed_by_the_next(
    settings: Settings, tmp_path: Path, metadata: dict[str, Any]
) -> None:
    """A DELETE while Redis is unavailable answers 503; a repeat deletes the rest."""
    port, folder = free_port(), tmp_path / "own-redis"
    with ExitStack() as running:
        url = SecretStr(running.enter_context(servers.valkey(folder, port)))
        async with serving(settings.model_copy(update={"store_url": url})) as api:
            path = await api.make(metadata, REGRESSOR)
            running.close()
            check_unavailable(await api.call("DELETE", path))
            with servers.valkey(folder, port):
                assert (await api.call("DELETE", path)).status == 204
                (await api.get(path)).problem(404)


async def test_live_models_work_without_mongodb(settings: Settings, metadata: dict[str, Any]) -> None:
    """Without MongoDB no model is created, and live models accept rows as before."""
    with socket.socket() as silent:
        # Bound, so that no other process gets the port, and not listening.
        silent.bind(("127.0.0.1", 0))
        url = SecretStr(f"mongodb://127.0.0.1:{silent.getsockname()[1]}/keepfit")
        async with serving(settings) as with_mongodb, serving(settings.model_copy(update={"mongo_url": url})) as api:
            path = await with_mongodb.make(metadata, REGRESSOR)
            created, ready, listed, unknown, accepted = await asyncio.gather(
                api.post("/v1/models", {"metadata": {**metadata, "new": True}, "recipe": REGRESSOR}),
                api.get("/readyz"),
                api.get("/v1/models"),
                api.get(f"/v1/models/{'0' * 64}"),
                api.post(f"{path}/partial_fit", LABELLED),
            )
            for reply in (created, listed, unknown):
                check_unavailable(reply)
            assert ready.json()["mongo"] != "ok"
            assert ready.json()["redis"] == "ok"
            assert accepted.of(202)["sequence"] == 1
            assert (await api.model(path))["inbox"] == 1


async def test_a_hanging_mongodb_does_not_delay_the_probe(
    fragile: Stack, frail: Api, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While MongoDB hangs, the gateway is ready and reports it; live models learn and predict."""
    monkeypatch.setattr(health, "PROBE_TIMEOUT_S", PROBE_TIMEOUT_S)
    path, (token, key) = await frail.make(metadata, REGRESSOR), new_key("admin", [ADMIN])
    settings = Settings(**{**fragile.settings().model_dump(), "api_keys": key})
    async with serving(settings) as keyed:
        with frozen([fragile.pids()["mongo"]]):
            ready, with_reason = await asyncio.gather(
                frail.get("/readyz"), keyed.call("GET", "/readyz", headers={"Authorization": f"Bearer {token}"})
            )
            assert ready.of(200)["mongo"] == FAILS
            # The probe has ended the wait, not MongoDB's driver with a longer one.
            assert with_reason.of(200)["mongo"] == f"No answer came within {PROBE_TIMEOUT_S:g} s."
            assert (ready.json()["redis"], ready.json()["workers"]) == ("ok", 2)
            await frail.learn(path, **LABELLED)
            await frail.predict(path, **ROWS)


async def test_predictions_without_workers_answer_503(settings: Settings, metadata: dict[str, Any]) -> None:
    """Without a live worker a prediction answers 503 with instructions, and rows are accepted."""
    async with serving(settings.model_copy(update={"predict_timeout_s": 0.2})) as api:
        path = await api.make(metadata, REGRESSOR)
        (await api.post(f"{path}/partial_fit", LABELLED)).of(202)
        problem = check_unavailable(await api.post(f"{path}/predict", ROWS))
        assert "keepfit worker" in problem["detail"]


async def test_shutdown_releases_waiting_clients(settings: Settings, metadata: dict[str, Any]) -> None:
    """On shutdown clients that wait for a commit get a 202, and the shutdown does not wait for the commit."""
    async with asyncio.timeout(20), AsyncExitStack() as gateway:
        url = await gateway.enter_async_context(app.serving(settings.model_copy(update={"port": 0})))
        async with aiohttp.ClientSession(url) as http:
            api = Api(http)
            path = await api.make(metadata, REGRESSOR)
            waiting = asyncio.create_task(api.post(f"{path}/partial_fit", LABELLED, {"Prefer": "wait=60"}))

            async def accepted() -> bool:
                return bool((await api.model(path))["inbox"] == 1)

            await eventually(accepted, "the acceptance of the rows")
            await gateway.aclose()
            assert (await waiting).of(202)["sequence"] == 1


async def test_a_gateway_can_be_stopped_right_after_its_start(settings: Settings) -> None:
    """Shutdown ends all background tasks, also while they connect."""
    for turns in range(0, 60, 6):
        async with asyncio.timeout(DEADLINE_S), app.serving(settings.model_copy(update={"port": 0})):
            for _ in range(turns):
                await asyncio.sleep(0)

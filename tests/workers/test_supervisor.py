"""Worker processes as they really run: started, stopped, killed, and given jobs that are none of ours."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
from rq import Callback, Queue
from rq.registry import FailedJobRegistry
from rq.serializers import JSONSerializer

from keepfit.backends import redis_keys
from keepfit.jobs import run_queue
from tests import servers
from tests.conftest import Stack, start_stack, stop_stack

# One call of this learns for seconds: enough to be interrupted in.
SLOW = {
    "estimator": "MLPRegressor",
    "params": {"hidden_layer_sizes": [600, 600], "batch_size": 8},
}
SLOW_ROWS = 1500


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a stack with two workers that may be harmed."""
    stack = start_stack(tmp_path_factory.mktemp("harmed") / "data", workers=2)
    yield stack
    assert stop_stack(stack) == 0


@pytest.fixture
async def session(own_stack: Stack) -> Any:
    """Return an HTTP session on the stack."""
    async with aiohttp.ClientSession(own_stack.url) as opened:
        yield opened


async def make(session: aiohttp.ClientSession, metadata: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Make a model; return its address."""
    async with session.post("/v1/models", json={"metadata": metadata, "recipe": recipe}) as response:
        assert response.status == 201, await response.text()
        return f"/v1/models/{(await response.json())['hash']}"


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until the awaitable `condition` gives something true, and return it."""
    async with asyncio.timeout(seconds):
        while not (found := await condition()):  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.02)
        return found


def busy(own_stack: Stack, path: str) -> bool:
    """Tell whether a worker learns the model just now."""
    client = redis.Redis.from_url(own_stack.environment()["KEEPFIT_STORE_URL"])
    return bool(client.exists(redis_keys.lock(path.rpartition("/")[2])))


async def send_slow(own_stack: Stack, session: aiohttp.ClientSession, path: str) -> None:
    """Send a request that is learned for seconds, and wait until a worker has it in hand."""
    X = [[float(i % 13), float(i % 7), float(i % 5)] for i in range(SLOW_ROWS)]
    async with session.post(f"{path}/partial_fit", json={"X": X, "y": [row[0] for row in X]}) as response:
        assert response.status == 202, await response.text()

    async def in_hand() -> bool:
        return busy(own_stack, path)

    await until(in_hand)


async def learned(session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    """Wait until nothing waits to be learned, and return the model."""

    async def done() -> dict[str, Any] | None:
        async with session.get(path) as response:
            model: dict[str, Any] = await response.json()
        return model if model["inbox"] == 0 else None

    found: dict[str, Any] = await until(done)
    return found


async def test_the_work_of_a_killed_worker_goes_on_with_another(
    own_stack: Stack, session: aiohttp.ClientSession, metadata: dict[str, Any]
) -> None:
    """All workers are killed inside a call: their successors learn the same rows, once."""
    path = await make(session, metadata, SLOW)
    await send_slow(own_stack, session, path)
    for pid in own_stack.workers():
        os.kill(pid, signal.SIGKILL)
    model = await learned(session, path)
    assert model["rows_seen"] == SLOW_ROWS
    assert model["version"] == 1


async def test_sigterm_finishes_the_call_in_hand(
    own_stack: Stack, session: aiohttp.ClientSession, metadata: dict[str, Any]
) -> None:
    """A worker told to stop commits what it has in hand and exits with 0; a successor takes its place."""
    path = await make(session, metadata, SLOW)
    await send_slow(own_stack, session, path)
    before = own_stack.workers()
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    model = await learned(session, path)
    assert (model["rows_seen"], model["version"]) == (SLOW_ROWS, 1)
    servers.wait_until(lambda: not set(before) & set(own_stack.workers()), "old workers being gone")
    died = [json.loads(line) for line in own_stack.log("workers").splitlines() if '"worker_died"' in line]
    assert {entry["pid"]: entry["exitcode"] for entry in died if entry["pid"] in before} == dict.fromkeys(before, 0)


async def test_a_request_that_kills_its_workers_is_put_aside(
    own_stack: Stack, session: aiohttp.ClientSession, metadata: dict[str, Any]
) -> None:
    """Three times workers die over one prediction: it is answered with an error, and others are answered still."""
    path = await make(session, metadata, {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [3000, 3000]}})
    async with session.post(f"{path}/partial_fit", json={"X": [[1]], "y": [1]}, headers={"Prefer": "wait=60"}) as learn:
        assert learn.status == 200
    client = redis.Redis.from_url(own_stack.environment()["KEEPFIT_QUEUE_URL"])

    async def ask(count: int) -> tuple[int, dict[str, Any]]:
        rows = {"X": [[float(i)] for i in range(count)]}
        headers = {"X-Request-ID": "deadly"}
        async with session.post(f"{path}/predict?timeout=100", json=rows, headers=headers) as response:
            return response.status, await response.json()

    seen: set[bytes] = set()

    async def in_hand_again() -> set[bytes]:
        return set(client.keys(redis_keys.claimed(run_queue.PREDICT.name, "*"))) - seen

    deadly = asyncio.create_task(ask(20_000))
    for _ in range(3):
        seen |= await until(in_hand_again)
        for pid in own_stack.workers():
            os.kill(pid, signal.SIGKILL)
    status, problem = await deadly
    assert (status, problem["type"]) == (500, "urn:keepfit:problem:poison")
    assert "3 workers died" in problem["detail"]
    for part, event in (("workers", "worker_request_put_aside"), ("gateway", "request_failed")):
        (line,) = (line for line in own_stack.log(part).splitlines() if event in line)
        assert json.loads(line)["request_id"] == "deadly"
    assert (await ask(1))[0] == 200
    assert client.llen(redis_keys.put_aside_requests(run_queue.PREDICT.name)) == 1


async def test_a_rogue_job_is_refused(own_stack: Stack, session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """A job in the queue that names another function runs nothing, is marked failed, and harms no worker."""
    client = redis.Redis.from_url(own_stack.environment()["KEEPFIT_QUEUE_URL"])
    rogue = Queue(redis_keys.QUEUE, connection=client, serializer=JSONSerializer)
    marker = tmp_path / "ran"
    job = rogue.enqueue("os.system", f"touch {marker}", on_success=Callback("os.getcwd"))
    failed = FailedJobRegistry(queue=rogue)
    servers.wait_until(lambda: job.id in failed.get_job_ids(), "the rogue job being marked as failed")
    assert not marker.exists()
    result = job.latest_result()
    assert result is not None
    assert "which keepfit does not run" in str(result.exc_string)


async def test_leases_are_visible_as_rq_jobs(
    own_stack: Stack, session: aiohttp.ClientSession, metadata: dict[str, Any]
) -> None:
    """The jobs that workers run are called partial_fit and predict, as `rq info` and dashboards show."""
    path = await make(session, metadata, {"estimator": "SGDRegressor"})
    async with session.post(f"{path}/partial_fit", json={"X": [[1]], "y": [1]}, headers={"Prefer": "wait=10"}) as learn:
        assert learn.status == 200
    async with session.post(f"{path}/predict", json={"X": [[1]]}) as predict:
        assert predict.status == 200
    client = redis.Redis.from_url(own_stack.environment()["KEEPFIT_QUEUE_URL"])
    jobs = [client.hget(name, "description") for name in client.scan_iter("rq:job:*", _type="HASH")]
    assert {b"partial_fit lease", b"predict lease"} <= set(jobs)


@pytest.mark.timeout(240)
async def test_a_thousand_models_learn_and_predict(http: aiohttp.ClientSession) -> None:
    """1,000 models that differ in one metadata key each learn their own rows and predict by them."""
    gate = asyncio.Semaphore(32)
    run = os.urandom(4).hex()

    async def one(number: int) -> float:
        metadata = {"type": "thousand", "run": run, "number": number}
        recipe = {"estimator": "PassiveAggressiveRegressor", "params": {"C": 1e6, "epsilon": 0.0}}
        async with gate:
            path = await make(http, metadata, recipe)
            body = {"X": [[1.0]], "y": [float(number)]}
            async with http.post(f"{path}/partial_fit", json=body, headers={"Prefer": "wait=60"}) as response:
                assert response.status == 200, await response.text()
                assert (await response.json())["rows_seen"] == 1
            async with http.post("/v1/predict", json={"metadata": metadata, "X": [[1.0]]}) as response:
                assert response.status == 200, await response.text()
                answer = await response.json()
        assert answer["version"] == 1
        prediction: float = answer["predictions"][0]
        return prediction

    predictions = await asyncio.gather(*(one(number) for number in range(1000)))
    # PA-I moves weight and intercept by loss / |x|^2 each: for an input of 1 that is twice the target.
    assert predictions == pytest.approx([2.0 * number for number in range(1000)])


def test_a_worker_without_keys_says_so_in_one_line(tmp_path: Path) -> None:
    """`keepfit worker` without signing keys ends with exit code 1 and one clear line."""
    import subprocess  # noqa: PLC0415

    done = subprocess.run(
        [sys.executable, "-m", "keepfit", "worker"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "KEEPFIT_SIGNING_KEYS is not set" in done.stderr
    assert "Traceback" not in done.stderr

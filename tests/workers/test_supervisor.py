"""Real worker processes: started, stopped, killed, and given jobs that keepfit does not run."""

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

# One call of this estimator learns for seconds: long enough to be interrupted.
SLOW = {
    "estimator": "MLPRegressor",
    "params": {"hidden_layer_sizes": [600, 600], "batch_size": 8},
}
SLOW_ROWS = 1500


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a stack of this module only, with two workers."""
    stack = start_stack(tmp_path_factory.mktemp("supervisor") / "data", workers=2)
    yield stack
    assert stop_stack(stack) == 0


@pytest.fixture
async def session(own_stack: Stack) -> Any:
    """Return an HTTP session on the stack."""
    async with aiohttp.ClientSession(own_stack.url) as opened:
        yield opened


async def make(session: aiohttp.ClientSession, metadata: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Create a model; return its path."""
    async with session.post("/v1/models", json={"metadata": metadata, "recipe": recipe}) as response:
        assert response.status == 201, await response.text()
        return f"/v1/models/{(await response.json())['hash']}"


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until the awaitable `condition` returns a true value, and return it."""
    async with asyncio.timeout(seconds):
        while not (found := await condition()):  # noqa: ASYNC110 - the event happens in other processes
            await asyncio.sleep(0.02)
        return found


def is_locked(own_stack: Stack, path: str) -> bool:
    """Return whether a worker holds the model's lock, which it does while it learns."""
    client = redis.Redis.from_url(own_stack.environment()["KEEPFIT_STORE_URL"])
    return bool(client.exists(redis_keys.lock(path.rpartition("/")[2])))


async def send_slow(own_stack: Stack, session: aiohttp.ClientSession, path: str) -> None:
    """Send a request that takes seconds to learn, and wait until a worker has claimed it."""
    X = [[float(i % 13), float(i % 7), float(i % 5)] for i in range(SLOW_ROWS)]
    async with session.post(f"{path}/partial_fit", json={"X": X, "y": [row[0] for row in X]}) as response:
        assert response.status == 202, await response.text()

    async def claimed() -> bool:
        return is_locked(own_stack, path)

    await until(claimed)


async def learned(session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    """Wait until the model has no pending requests, and return it."""

    async def done() -> dict[str, Any] | None:
        async with session.get(path) as response:
            model: dict[str, Any] = await response.json()
        return model if model["inbox"] == 0 else None

    found: dict[str, Any] = await until(done)
    return found


async def test_the_rows_of_a_killed_worker_are_learned_by_another(
    own_stack: Stack, session: aiohttp.ClientSession, metadata: dict[str, Any]
) -> None:
    """All workers are killed during a call: their successors learn the same rows, once."""
    path = await make(session, metadata, SLOW)
    await send_slow(own_stack, session, path)
    for pid in own_stack.workers():
        os.kill(pid, signal.SIGKILL)
    model = await learned(session, path)
    assert model["rows_seen"] == SLOW_ROWS
    assert model["version"] == 1


async def test_sigterm_finishes_the_current_call(
    own_stack: Stack, session: aiohttp.ClientSession, metadata: dict[str, Any]
) -> None:
    """On SIGTERM a worker commits its claimed requests and exits with code 0; the supervisor starts a successor."""
    path = await make(session, metadata, SLOW)
    await send_slow(own_stack, session, path)
    before = own_stack.workers()
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    model = await learned(session, path)
    assert (model["rows_seen"], model["version"]) == (SLOW_ROWS, 1)

    def ended() -> dict[int, int]:
        # A supervisor logs the end of a process after that has left the table of processes.
        died = [json.loads(line) for line in own_stack.log("workers").splitlines() if '"worker_died"' in line]
        return {entry["pid"]: entry["exitcode"] for entry in died if entry["pid"] in before}

    servers.wait_until(lambda: set(ended()) == set(before), "the exit of the old workers")
    assert ended() == dict.fromkeys(before, 0)
    assert not set(before) & set(own_stack.workers())


async def test_a_poison_request_is_answered_with_an_error(
    own_stack: Stack, session: aiohttp.ClientSession, metadata: dict[str, Any]
) -> None:
    """After a prediction killed three workers it is answered with an error; others are answered as before."""
    path = await make(session, metadata, {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [3000, 3000]}})
    async with session.post(f"{path}/partial_fit", json={"X": [[1]], "y": [1]}, headers={"Prefer": "wait=60"}) as learn:
        assert learn.status == 200
    client = redis.Redis.from_url(own_stack.environment()["KEEPFIT_QUEUE_URL"])

    async def predict(count: int) -> tuple[int, dict[str, Any]]:
        rows = {"X": [[float(i)] for i in range(count)]}
        headers = {"X-Request-ID": "poison"}
        async with session.post(f"{path}/predict?timeout=100", json=rows, headers=headers) as response:
            return response.status, await response.json()

    seen: set[bytes] = set()

    async def claimed_again() -> set[bytes]:
        claims = {name: client.lrange(name, 0, -1) for name in set(client.keys(redis_keys.claimed("*"))) - seen}
        # A claim that was given back since its name was read is empty.
        return {name for name, entries in claims.items() if entries and not run_queue.models_in(entries)}

    poison = asyncio.create_task(predict(20_000))
    for _ in range(3):
        seen |= await until(claimed_again)
        for pid in own_stack.workers():
            os.kill(pid, signal.SIGKILL)
    status, problem = await poison
    assert (status, problem["type"]) == (500, "urn:keepfit:problem:poison")
    assert "3 workers died" in problem["detail"]
    for process, event in (("workers", "worker_request_put_aside"), ("gateway", "request_failed")):
        (line,) = (line for line in own_stack.log(process).splitlines() if event in line)
        assert json.loads(line)["request_id"] == "poison"
    status, answer = await predict(1)
    assert status == 200, answer
    assert client.llen(redis_keys.put_aside_requests(run_queue.PREDICT.name)) == 1


async def test_a_forged_job_is_refused(own_stack: Stack, session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """A job that names another function does not run, is marked as failed, and stops no worker."""
    client = redis.Redis.from_url(own_stack.environment()["KEEPFIT_QUEUE_URL"])
    queue = Queue(redis_keys.QUEUE, connection=client, serializer=JSONSerializer)
    marker = tmp_path / "ran"
    job = queue.enqueue("os.system", f"touch {marker}", on_success=Callback("os.getcwd"))
    failed = FailedJobRegistry(queue=queue)
    servers.wait_until(lambda: job.id in failed.get_job_ids(), "the forged job being marked as failed")
    assert not marker.exists()
    result = job.latest_result()
    assert result is not None
    assert "which keepfit does not run" in str(result.exc_string)


async def test_leases_are_visible_as_rq_jobs(
    own_stack: Stack, session: aiohttp.ClientSession, metadata: dict[str, Any]
) -> None:
    """The jobs of workers are described as partial_fit and predict leases, as `rq info` and dashboards show."""
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
    """1,000 models that differ in one metadata key each learn their own rows and predict from them."""
    slots = asyncio.Semaphore(32)
    run = os.urandom(4).hex()

    async def learn_and_predict(number: int) -> float:
        metadata = {"type": "thousand", "run": run, "number": number}
        recipe = {"estimator": "PassiveAggressiveRegressor", "params": {"C": 1e6, "epsilon": 0.0}}
        async with slots:
            path = await make(http, metadata, recipe)
            body = {"X": [[1.0]], "y": [float(number)]}
            async with http.post(f"{path}/partial_fit", json=body, headers={"Prefer": "wait=60"}) as response:
                assert response.status == 200, await response.text()
                assert (await response.json())["rows_seen"] == 1
            async with http.post("/v1/predict", json={"metadata": metadata, "X": [[1.0]]}) as response:
                assert response.status == 200, await response.text()
                reply = await response.json()
        assert reply["version"] == 1
        prediction: float = reply["predictions"][0]
        return prediction

    predictions = await asyncio.gather(*(learn_and_predict(number) for number in range(1000)))
    # PA-I moves weight and intercept by loss / |x|^2 each: for an input of 1 that is twice the target.
    assert predictions == pytest.approx([2.0 * number for number in range(1000)])


def test_a_worker_without_keys_fails_with_one_line(tmp_path: Path) -> None:
    """`keepfit worker` without signing keys exits with code 1 and a message without a traceback."""
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

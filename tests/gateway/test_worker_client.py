"""Worker requests and their replies, with the test as the worker."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.jobs import messages, run_queue
from keepfit.jobs.messages import WorkerReply, WorkerRequest
from keepfit.settings import Settings
from tests.gateway.api_client import REGRESSOR, Api, Reply, eventually


class Worker:
    """A worker whose replies the test decides."""

    def __init__(self, queue: redis.Redis) -> None:
        self._queue = queue

    async def claim(self) -> WorkerRequest:
        """Wait for the next worker request and claim it."""
        requests: list[WorkerRequest] = []

        async def claimed_one() -> bool:
            for lease in self._queue.zrange(redis_keys.leases(run_queue.PREDICT.name), 0, -1):
                (claimed,) = redis_scripts.run(
                    self._queue, run_queue.claim(run_queue.PREDICT, lease.decode(), 60.0, "test")
                )
                requests.extend(map(messages.decode_request, claimed[2:]))
            return bool(requests)

        await eventually(claimed_one, "a worker request")
        return requests[0]

    def send(self, request: WorkerRequest, *batches: bytes) -> None:
        """Send batches of replies to the gateway of the request."""
        self._queue.rpush(redis_keys.replies(request.gateway), *batches)

    def reply(self, request: WorkerRequest, **fields: Any) -> None:
        """Send the reply to a worker request."""
        self.send(request, messages.encode([WorkerReply(request.id, request.generation, **fields)]))


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    """Return the worker of the gateway without workers."""
    with redis_clients.queue_sync(settings) as queue:
        yield Worker(queue)


@pytest.fixture
async def prediction(workerless: Api, metadata: dict[str, Any]) -> "asyncio.Task[Reply]":
    """Return a running call that predicts."""
    path = await workerless.make(metadata, REGRESSOR)
    return asyncio.create_task(workerless.post(f"{path}/predict", {"X": [[1.0, 2.0]]}))


async def test_a_reply_reaches_its_caller(prediction: "asyncio.Task[Reply]", worker: Worker) -> None:
    """The caller of a worker request gets the reply of the worker."""
    request = await worker.claim()
    assert request.operation == "predict"
    worker.reply(request, version=3, rows_seen=5, result=[1.5])
    assert (await prediction).of(200) == {"hash": request.hash, "version": 3, "rows_seen": 5, "predictions": [1.5]}


async def test_invalid_replies_are_ignored(prediction: "asyncio.Task[Reply]", worker: Worker) -> None:
    """Garbage, and replies without a pending request, are ignored; the reply after them is delivered."""
    request = await worker.claim()
    unrelated = messages.encode([WorkerReply(request.id + 1000, result=[0.0])])
    worker.send(request, b"garbage", b"", messages.encode({"id": request.id}), unrelated)
    worker.reply(request, result=[2.5])
    assert (await prediction).of(200)["predictions"] == [2.5]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("ConflictError", 409),
        ("InvalidError", 422),
        ("UnavailableError", 503),
        ("EnvelopeError", 500),
        ("RuntimeMismatchError", 503),
        ("NoSuchError", 500),
        ("SystemExit", 500),
        ("Sequence", 500),
    ],
)
async def test_an_error_is_raised_by_its_name(
    prediction: "asyncio.Task[Reply]", worker: Worker, name: str, status: int
) -> None:
    """The name of an error of the tree gets that error's status; any other name gets 500."""
    worker.reply(await worker.claim(), error=(name, "What the worker said."))
    assert (await prediction).problem(status)["detail"] == "What the worker said."


@pytest.mark.parametrize("name", ["NotFoundError", "StaleModelError"])
async def test_an_outdated_model_is_looked_up_again(
    prediction: "asyncio.Task[Reply]", worker: Worker, name: str
) -> None:
    """If a worker reports that the cached model is out of date, the gateway looks it up and sends the request again."""
    worker.reply(await worker.claim(), error=(name, "Look again."))
    worker.reply(await worker.claim(), result=[0.5])
    assert (await prediction).of(200)["predictions"] == [0.5]

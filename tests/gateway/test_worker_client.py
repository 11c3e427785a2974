"""Worker requests and their replies, with the test as the worker."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.errors import TooLargeError, UnavailableError
from keepfit.jobs import messages, run_queue
from keepfit.jobs.messages import WorkerReply, WorkerRequest
from keepfit.local.servers import free_port
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.settings import Settings
from keepfit.store.models import Store
from keepfit_gateway import worker_client
from keepfit_gateway.job_enqueuer import JobEnqueuer
from keepfit_gateway.worker_client import WorkerClient
from tests.gateway.api_client import REGRESSOR, Api, Reply, eventually


class Worker:
    """A worker whose replies the test decides."""

    def __init__(self, queue: redis.Redis) -> None:
        self.queue = queue

    async def claim(self) -> WorkerRequest:
        """Wait for the next worker request and claim it."""
        requests: list[WorkerRequest] = []

        async def claimed_one() -> bool:
            for lease in self.queue.zrange(redis_keys.LEASES, 0, -1):
                command = run_queue.claim(run_queue.PREDICT, lease.decode(), 60.0, "test")
                claim = run_queue.read_claim(redis_scripts.run(self.queue, command)[0])
                entries = claim.entries if claim else ()
                requests.extend(messages.decode_request(run_queue.split_entry(entry)[1]) for entry in entries)
            return bool(requests)

        await eventually(claimed_one, "a worker request")
        return requests[0]

    def send(self, request: WorkerRequest, *batches: bytes) -> None:
        """Send batches of replies to the gateway of the request."""
        self.queue.rpush(redis_keys.replies(request.gateway), *batches)

    def reply(self, request: WorkerRequest, **fields: Any) -> None:
        """Send the reply to a worker request."""
        reply = WorkerReply(request.id, request.generation, **fields)
        self.send(request, b"\x91" + messages.encode_reply(reply, as_json=request.as_json))


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


async def test_predictions_are_passed_on_unread(prediction: "asyncio.Task[Reply]", worker: Worker) -> None:
    """The JSON of a worker's predictions is in the answer as the worker wrote it: no gateway reads the values."""
    request = await worker.claim()
    worker.send(request, messages.encode([WorkerReply(request.id, request.generation, result=b"[ 1.50 , null ]")]))
    assert (await prediction).body.endswith(b',"predictions":[ 1.50 , null ]}')


LARGE = shape(parse(REGRESSOR), [[1.0] * 100] * 100, learning=False)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[WorkerClient]:
    """Return the client of a gateway that has no other part."""
    queue, enqueuer = redis_clients.queue_async(settings), JobEnqueuer(settings)
    client = WorkerClient(queue, settings, enqueuer, Store(queue).ping)
    yield client
    await client.close()
    await enqueuer.close()
    await queue.aclose()


@pytest.mark.parametrize("end", ["cancelled", "no worker"])
async def test_large_rows_leave_redis_with_their_request(
    client: WorkerClient, worker: Worker, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """If a request with large rows ends without a reply, the gateway deletes its rows; a worker may never do so."""
    if end == "no worker":
        monkeypatch.setattr(worker_client, "WORKER_GRACE_S", 0.1)
    asked = asyncio.create_task(client.ask("0" * 64, "predict", 1, LARGE, timeout_s=60))
    request = await worker.claim()
    assert request.rows_key
    if end == "cancelled":
        assert worker.queue.exists(request.rows_key)
        asked.cancel()
    with pytest.raises((asyncio.CancelledError, UnavailableError)):
        await asked
    assert not worker.queue.exists(request.rows_key)


async def test_rows_that_are_too_large_are_refused_before_redis_is_asked(settings: Settings) -> None:
    """Too many bytes of rows answer 413 also while Redis is unavailable, and leave no worker request behind."""
    away = SecretStr(f"redis://127.0.0.1:{free_port()}")
    settings = settings.model_copy(update={"store_url": away, "queue_url": None, "body_bytes_max": 1000})
    queue = redis_clients.queue_async(settings)
    client = WorkerClient(queue, settings, JobEnqueuer(settings), Store(queue).ping)
    with pytest.raises(TooLargeError):
        await client.ask("0" * 64, "predict", 1, LARGE)
    assert client.pending == 0
    await client.close()
    await queue.aclose()


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
    """A name of the error tree gets its status, any other 500; the reason of a 503 is for administrators."""
    worker.reply(await worker.claim(), error=(name, "What the worker said."))
    detail = (await prediction).problem(status)["detail"]
    assert (detail == "What the worker said.") is (name != "UnavailableError")


@pytest.mark.parametrize("name", ["NotFoundError", "StaleModelError"])
async def test_an_outdated_model_is_looked_up_again(
    prediction: "asyncio.Task[Reply]", worker: Worker, name: str
) -> None:
    """If a worker reports that the cached model is out of date, the gateway looks it up and sends the request again."""
    worker.reply(await worker.claim(), error=(name, "Look again."))
    worker.reply(await worker.claim(), result=[0.5])
    assert (await prediction).of(200)["predictions"] == [0.5]


async def test_a_request_that_no_lease_claims_gets_another_one(
    client: WorkerClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the only lease is in a long call, a second one comes without another push: the client looks again."""
    monkeypatch.setattr(run_queue, "BUSY_MS", run_queue.NEVER_MS)
    worker.queue.sadd(redis_keys.RQ_WORKERS, "one", "two")
    slow = asyncio.create_task(client.ask("0" * 64, "predict", 1, timeout_s=60))
    await worker.claim()
    quick = asyncio.create_task(client.ask("1" * 64, "predict", 1, timeout_s=60))

    async def has_two_jobs() -> bool:
        return len(worker.queue.lrange(redis_keys.RQ_QUEUE, 0, -1)) == 2

    await eventually(has_two_jobs, "a second job")
    assert worker.queue.zcard(redis_keys.LEASES) == 2
    for task in (slow, quick):
        task.cancel()

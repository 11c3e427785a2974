"""Questions to workers and their answers, with the test as the worker."""

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
    """A worker that answers what the test tells it to."""

    def __init__(self, queue: redis.Redis) -> None:
        self._queue = queue

    async def take(self) -> WorkerRequest:
        """Wait for the next question and take it."""
        taken: list[WorkerRequest] = []

        async def took() -> bool:
            for lease in self._queue.zrange(redis_keys.leases(run_queue.PREDICT.name), 0, -1):
                (claimed,) = redis_scripts.run(
                    self._queue, run_queue.claim(run_queue.PREDICT, lease.decode(), 60.0, "test")
                )
                taken.extend(map(messages.decode_question, claimed[2:]))
            return bool(taken)

        await eventually(took, "a question")
        return taken[0]

    def send(self, question: WorkerRequest, *batches: bytes) -> None:
        """Send batches of answers to the gateway that asked."""
        self._queue.rpush(redis_keys.replies(question.gateway), *batches)

    def answer(self, question: WorkerRequest, **said: Any) -> None:
        """Answer a question."""
        self.send(question, messages.encode([WorkerReply(question.id, question.generation, **said)]))


@pytest.fixture
def worker(settings: Settings) -> Iterator[Worker]:
    """Return a worker for the gateway without one."""
    with redis_clients.queue_sync(settings) as queue:
        yield Worker(queue)


@pytest.fixture
async def asking(lonely: Api, metadata: dict[str, Any]) -> "asyncio.Task[Reply]":
    """Return a call of the gateway that asks for a prediction."""
    path = await lonely.make(metadata, REGRESSOR)
    return asyncio.create_task(lonely.post(f"{path}/predict", {"X": [[1.0, 2.0]]}))


async def test_an_answer_reaches_who_asked(asking: "asyncio.Task[Reply]", worker: Worker) -> None:
    """What the worker answers to a question is what its asker gets."""
    question = await worker.take()
    assert question.operation == "predict"
    worker.answer(question, version=3, rows_seen=5, result=[1.5])
    assert (await asking).of(200) == {"hash": question.hash, "version": 3, "rows_seen": 5, "predictions": [1.5]}


async def test_what_is_no_answer_makes_nobody_deaf(asking: "asyncio.Task[Reply]", worker: Worker) -> None:
    """Garbage, and answers to questions that nobody waits for, are passed over; the answer after them is heard."""
    question = await worker.take()
    nobodys = messages.encode([WorkerReply(question.id + 1000, result=[0.0])])
    worker.send(question, b"garbage", b"", messages.encode({"id": question.id}), nobodys)
    worker.answer(question, result=[2.5])
    assert (await asking).of(200)["predictions"] == [2.5]


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
async def test_an_error_crosses_by_its_name(
    asking: "asyncio.Task[Reply]", worker: Worker, name: str, status: int
) -> None:
    """An error of our tree is answered as if it were met here; any other name is a failure of ours, and no more."""
    worker.answer(await worker.take(), error=(name, "What the worker said."))
    assert (await asking).problem(status)["detail"] == "What the worker said."


@pytest.mark.parametrize("name", ["NotFoundError", "StaleModelError"])
async def test_a_gateway_whose_knowledge_is_old_looks_again(
    asking: "asyncio.Task[Reply]", worker: Worker, name: str
) -> None:
    """A worker that knows better than the gateway's cache makes it look the model up and ask once more."""
    worker.answer(await worker.take(), error=(name, "Look again."))
    worker.answer(await worker.take(), result=[0.5])
    assert (await asking).of(200)["predictions"] == [0.5]

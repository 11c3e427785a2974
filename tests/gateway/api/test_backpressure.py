"""Overload: queues are bounded, rejections have Retry-After, and expired requests are dropped."""

import asyncio
from typing import Any

import pytest

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.jobs import run_queue
from keepfit.settings import Settings
from tests.gateway.api_client import REGRESSOR, Api, eventually, serving

LABELLED = {"X": [[1.0, 2.0]], "y": [1.0]}
ROWS = {"X": [[1.0, 2.0]]}


def pending(settings: Settings) -> int:
    """Count the pending worker requests in the predict queue."""
    with redis_clients.queue_sync(settings) as client:
        found = client.hlen(redis_keys.worker_requests(run_queue.PREDICT.name))
        assert isinstance(found, int)
        return found


async def test_a_full_predict_queue_answers_429(settings: Settings, metadata: dict[str, Any]) -> None:
    """Above the limit the answer is 429 with Retry-After at once; earlier requests stay pending."""
    small = settings.model_copy(update={"predict_entries_max": 2, "predict_timeout_s": 30.0})
    async with serving(small) as api, serving(small) as another:
        path = await api.make(metadata, REGRESSOR)
        tasks = [asyncio.create_task(one.post(f"{path}/predict?timeout=1.5", ROWS)) for one in (api, another)]

        async def all_pending() -> bool:
            return pending(settings) == 2 + 2

        await eventually(all_pending, "the arrival of the worker requests")
        refused = await api.post(f"{path}/predict", ROWS)
        assert "2 requests wait" in refused.problem(429)["detail"]
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert not any(task.done() for task in tasks)
        for reply in await asyncio.gather(*tasks):
            reply.problem(503)


async def test_one_gateway_limits_its_pending_worker_requests(settings: Settings, metadata: dict[str, Any]) -> None:
    """Worker requests about different models count towards the limit of one gateway."""
    small = settings.model_copy(update={"predict_entries_max": 3})
    async with serving(small) as api:
        paths = [await api.make({**metadata, "i": i}, REGRESSOR) for i in range(4)]
        replies = await asyncio.gather(*(api.post(f"{path}/predict?timeout=0.5", ROWS) for path in paths))
        assert sorted(reply.status for reply in replies) == [429, 503, 503, 503]


async def test_the_timeout_parameter_answers_504(workerless: Api, settings: Settings, metadata: dict[str, Any]) -> None:
    """`timeout` is the time in seconds until the request expires; with registered workers it answers 504."""
    path = await workerless.make(metadata, REGRESSOR)
    with redis_clients.queue_sync(settings) as client:
        client.sadd(redis_keys.RQ_WORKERS, "rq:worker:one")
        client.hset("rq:worker:one", "state", "idle")
        detail = (await workerless.post(f"{path}/predict?timeout=0.25", ROWS)).problem(504)["detail"]
        assert "0.25 s" in detail
        detail = (await workerless.post(f"{path}/score?timeout=0.1", LABELLED)).problem(504)["detail"]
        assert "0.1 s" in detail


@pytest.mark.parametrize("value", ["0", "-1", "1e3", "601", "nan", "inf", "x", "", "1,5", "0.0"])
async def test_an_invalid_timeout_is_rejected(workerless: Api, metadata: dict[str, Any], value: str) -> None:
    """A timeout that is not a number of seconds within the limits answers 400."""
    path = await workerless.make(metadata, REGRESSOR)
    assert "timeout" in (await workerless.post(f"{path}/predict?timeout={value}", ROWS)).problem(400)["detail"]


async def test_expired_worker_requests_are_dropped(
    workerless: Api, settings: Settings, metadata: dict[str, Any]
) -> None:
    """The next claim drops worker requests that are past their deadline, without an answer."""
    path = await workerless.make(metadata, REGRESSOR)
    replies = await asyncio.gather(*(workerless.post(f"{path}/predict?timeout=0.2", ROWS) for _ in range(5)))
    assert {reply.status for reply in replies} == {503}
    with redis_clients.queue_sync(settings) as client:

        async def expired() -> bool:
            # The deadline of a worker request is in its characters 2 to 14, in milliseconds of the server's clock.
            deadlines = [
                int(value[1:14])
                for value in client.hvals(redis_keys.worker_requests(run_queue.PREDICT.name))
                if len(value) > 14
            ]
            return client.time()[0] * 1000 > max(deadlines)

        await eventually(expired, "the deadlines of the worker requests")
        (lease,) = client.zrange(redis_keys.LEASES, 0, -1)
        (answer,) = redis_scripts.run(client, run_queue.claim(run_queue.PREDICT, lease.decode(), 60.0, "test"))
        claim = run_queue.read_claim(answer)
        assert claim is not None
        assert claim.entries == []
    assert pending(settings) == 0


async def test_a_full_inbox_answers_429(settings: Settings, metadata: dict[str, Any]) -> None:
    """Above the limit of the inbox the answer is 429 with Retry-After, and the rows are not stored."""
    async with serving(settings.model_copy(update={"inbox_entries_max": 3})) as api:
        path = await api.make(metadata, REGRESSOR)
        replies = await asyncio.gather(*(api.post(f"{path}/partial_fit", LABELLED) for _ in range(5)))
        assert sorted(reply.status for reply in replies) == [202, 202, 202, 429, 429]
        assert sorted(reply.json()["sequence"] for reply in replies if reply.status == 202) == [1, 2, 3]
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies if reply.status == 429)
        assert (await api.model(path))["inbox"] == 3


async def test_concurrent_requests_get_consecutive_sequences(workerless: Api, metadata: dict[str, Any]) -> None:
    """Concurrent requests get the sequences from 1 on, each once, in whichever batches they are accepted."""
    path = await workerless.make(metadata, REGRESSOR)
    replies = await asyncio.gather(*(workerless.post(f"{path}/partial_fit", LABELLED) for _ in range(200)))
    assert sorted(reply.of(202)["sequence"] for reply in replies) == list(range(1, 201))

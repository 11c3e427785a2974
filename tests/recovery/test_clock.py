"""A clock that jumps by an hour: nothing expires early, nothing is kept too long."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from keepfit.backends import redis_keys
from keepfit.jobs import run_queue
from keepfit.settings import Settings
from keepfit_workers import context as process
from keepfit_workers import jobs
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from tests.gateway.api_client import REGRESSOR, eventually, serving

LABELLED = {"X": [[1.0, 2.0]], "y": [1.0]}
ROWS = {"X": [[1.0, 2.0]]}
KEY = {"Idempotency-Key": "once"}


@pytest.fixture
def context(settings: Settings) -> Iterator[WorkerContext]:
    """Make this process a worker process."""
    opened = process.start(settings, "test")
    yield opened
    opened.close()


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_jump_of_the_clock_changes_nothing(
    settings: Settings,
    context: WorkerContext,
    client: redis.Redis,
    metadata: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    jump_s: float,
) -> None:
    """An idempotency key, a worker request, a lease and a cached answer survive any jump of the clock."""
    true_time = time.time
    # So that the gateway sees a worker.
    client.sadd(redis_keys.RQ_WORKERS, "rq:worker:test")
    client.hset("rq:worker:test", "state", "idle")
    async with serving(settings) as api:
        path = await api.make(metadata, REGRESSOR)
        model_hash = path.rpartition("/")[2]
        first = (await api.post(f"{path}/partial_fit", LABELLED, KEY)).of(202)
        asked = asyncio.create_task(api.post(f"{path}/predict?timeout=60", ROWS))

        async def waits() -> bool:
            return bool(client.zcard(redis_keys.LEASES))

        await eventually(waits, "the question")
        monkeypatch.setattr(time, "time", lambda: true_time() + jump_s)
        assert run_queue.expired(client) == []
        assert (await api.post(f"{path}/partial_fit", LABELLED, KEY)).of(202)["sequence"] == first["sequence"]
        assert (await api.post(f"{path}/partial_fit", LABELLED)).of(202)["sequence"] == first["sequence"] + 1
        assert not await asyncio.to_thread(learn, context, model_hash, "lease")
        (lease,) = client.zrange(redis_keys.LEASES, 0, -1)
        await asyncio.to_thread(jobs.predict, lease.decode())
        answer = (await asked).of(200)
        assert answer["rows_seen"] == 2

        async def kept() -> bool:
            again = asyncio.create_task(api.post(f"{path}/predict?timeout=60", ROWS))
            for waiting in client.zrange(redis_keys.LEASES, 0, -1):
                await asyncio.to_thread(jobs.predict, waiting.decode())
            reply = await again
            return "Age" in reply.headers and int(reply.headers["Age"]) < 60

        # The first answer may be from before the subscription was confirmed.
        await eventually(kept, "an answer from memory")
        monkeypatch.setattr(time, "time", true_time)
        assert await kept()
        assert (await api.model(path))["rows_seen"] == 2

"""Hints of a gateway without workers."""

from typing import Any

import pytest

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.jobs import run_queue
from keepfit.settings import Settings
from tests.gateway.api_client import REGRESSOR, Api, eventually


async def test_rows_that_no_lease_claims_get_another_one(
    workerless: Api, settings: Settings, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the only lease is in a long call, a second one comes without another hint: the gateway looks again."""
    monkeypatch.setattr(run_queue, "BUSY_MS", run_queue.NEVER_MS)
    path = await workerless.make(metadata, REGRESSOR)
    with redis_clients.queue_sync(settings) as queue:
        queue.sadd(redis_keys.RQ_WORKERS, "one", "two")
        busy = run_queue.push(run_queue.LEARN, "busy", 60.0, ["0" * 64])
        redis_scripts.run(queue, busy, run_queue.claim(run_queue.LEARN, "busy", 60.0, "one"))
        (await workerless.post(f"{path}/partial_fit", {"X": [[1.0, 2.0]], "y": [1.0]})).of(202)

        async def has_another_lease() -> bool:
            return bool(queue.zcard(redis_keys.LEASES) == 2 and queue.llen(redis_keys.RQ_QUEUE) == 1)

        await eventually(has_another_lease, "another lease")

"""Learn each entry of a Redis stream exactly once, whichever consumer is killed at whichever moment.

The group delivers an entry at least once: it stays pending until its XACK, which follows keepfit's 202. keepfit learns
a key at most once: the entry's id is the Idempotency-Key. An entry whose consumer dies between the 202 and the XACK is
claimed by another one (XAUTOCLAIM), sent again, and not learned again.

An entry that can never be learned (a field is missing, a value is wrong) moves to the stream `STREAM:rejected`.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from aiohttp import ClientSession
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from calls import RejectedError, create, learn
from deliveries import RECIPE, body_of, metadata_of

STREAM = os.environ.get("STREAM", "deliveries")
GROUP = "keepfit"
CONSUMER = os.environ.get("CONSUMER", socket.gethostname())
# An entry that was delivered so long ago and is still pending has lost its consumer.
CLAIM_AFTER_MS = int(os.environ.get("CLAIM_AFTER_MS", "30000"))
BATCH = 100
BLOCK_MS = 1000
REPORT_EVERY = 500

Entry = tuple[str, dict[str, Any]]


async def entries(redis: Redis) -> AsyncIterator[Entry]:
    """Yield entries for ever: those of dead consumers first, then new ones."""
    while True:
        _, batch, _ = await redis.xautoclaim(STREAM, GROUP, CONSUMER, CLAIM_AFTER_MS, count=BATCH)
        if not batch:
            answer: Any = await redis.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=BATCH, block=BLOCK_MS)
            batch = answer[0][1] if answer else []
        for entry in batch:
            yield entry


async def handle(redis: Redis, keepfit: ClientSession, model_hash: str, entry: Entry) -> None:
    """Have keepfit accept the entry, or move it to the rejected ones; then acknowledge it."""
    entry_id, fields = entry
    try:
        await learn(keepfit, model_hash, body_of(fields), key=f"{STREAM}/{entry_id}")
    except (RejectedError, KeyError, ValueError) as error:
        async with redis.pipeline() as transaction:
            rejected: Any = {**fields, "id": entry_id, "reason": str(error)}
            transaction.xadd(f"{STREAM}:rejected", rejected)
            transaction.xack(STREAM, GROUP, entry_id)
            await transaction.execute()
    else:
        await redis.xack(STREAM, GROUP, entry_id)


async def report(keepfit: ClientSession, model_hash: str) -> None:
    """Print the error of the predictions that were made before the last rows were learned."""
    async with keepfit.get(f"/v1/models/{model_hash}", raise_for_status=True) as response:
        model = await response.json()
    last = model["metrics"]["window"]
    error, baseline = last["mean_absolute_error"], last["baseline_mean_absolute_error"]
    print(f"{model['rows_seen']} learned, error {error:.1f} minutes (always the mean: {baseline:.1f})", flush=True)


async def main() -> None:
    """Consume until the process is stopped, which is safe at any moment."""
    key = os.environ.get("KEEPFIT_API_KEY")
    keepfit = ClientSession(
        os.environ.get("KEEPFIT_URL", "http://127.0.0.1:8000"),
        headers={"Authorization": f"Bearer {key}"} if key else None,
    )
    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), decode_responses=True)
    async with keepfit, redis:
        model_hash = await create(keepfit, metadata_of(STREAM), RECIPE)
        with suppress(ResponseError):  # BUSYGROUP: the group exists.
            await redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        print(f"consumer {CONSUMER} of {STREAM}", flush=True)
        handled = 0
        async for entry in entries(redis):
            await handle(redis, keepfit, model_hash, entry)
            handled += 1
            if handled % REPORT_EVERY == 0:
                await report(keepfit, model_hash)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())

"""Learn each entry of a Redis stream exactly once, whichever consumer is killed at whichever moment.

The group delivers an entry at least once: it stays pending until its XACK, which follows keepfit's 202. keepfit learns
a key at most once: the entry's id is the Idempotency-Key. An entry whose consumer dies between the 202 and the XACK is
claimed by another one (XAUTOCLAIM), sent again, and not learned again.

An entry that can never be learned (a field is missing, a value is wrong) moves to the stream `STREAM:rejected`.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import ResponseError

from deliveries import RECIPE, metadata_of, row_of
from keepfit import Client
from keepfit.client.clients import Model
from keepfit.errors import (
    DeadlineError,
    InvalidError,
    MalformedError,
    OverloadedError,
    StaleModelError,
    TooLargeError,
    UnavailableError,
)  # fmt: skip

STREAM = os.environ.get("STREAM", "deliveries")
GROUP = "keepfit"
CONSUMER = os.environ.get("CONSUMER", socket.gethostname())
# An entry that was delivered so long ago and is still pending has lost its consumer.
CLAIM_AFTER_MS = int(os.environ.get("CLAIM_AFTER_MS", "30000"))
BATCH = 100
BLOCK_MS = 1000
REPORT_EVERY = 500
RETRY_S = 1.0

REJECTED = (KeyError, ValueError, InvalidError, MalformedError, TooLargeError)
PASSING = (DeadlineError, OverloadedError, StaleModelError, UnavailableError)
Entry = tuple[str, dict[str, Any]]
T = TypeVar("T")


def entries(redis: Redis) -> Iterator[Entry]:
    """Yield entries for ever: those of dead consumers first, then new ones."""
    while True:
        answer: Any = redis.xautoclaim(STREAM, GROUP, CONSUMER, CLAIM_AFTER_MS, count=BATCH)
        batch = answer[1]
        if not batch:
            answer = redis.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=BATCH, block=BLOCK_MS)
            batch = answer[0][1] if answer else []
        yield from batch


def until_available(call: Callable[[], T]) -> T:
    """Make a call of keepfit until it has an answer. The client repeats it for a minute; this goes on for ever."""
    while True:
        try:
            return call()
        except PASSING as error:
            print(f"keepfit: {error}", flush=True)
            time.sleep(RETRY_S)


def handle(redis: Redis, model: Model, entry: Entry) -> None:
    """Have keepfit accept the entry, or move it to the rejected ones; then acknowledge it."""
    entry_id, fields = entry
    try:
        row, minutes = row_of(fields)
        until_available(lambda: model.partial_fit([row], [minutes], idempotency_key=f"{STREAM}/{entry_id}"))
    except REJECTED as error:
        rejected: Any = {**fields, "id": entry_id, "reason": str(error)}
        with redis.pipeline() as transaction:
            transaction.xadd(f"{STREAM}:rejected", rejected)
            transaction.xack(STREAM, GROUP, entry_id)
            transaction.execute()
    else:
        redis.xack(STREAM, GROUP, entry_id)


def report(model: Model) -> None:
    """Print the error of the last predictions, each made before its row was learned."""
    document = until_available(model.describe)
    if last := document["metrics"].get("window"):
        error, baseline = last["mean_absolute_error"], last["baseline_mean_absolute_error"]
        learned = document["rows_seen"]
        print(f"{learned} learned, error {error:.1f} minutes (always the mean: {baseline:.1f})", flush=True)


def main() -> None:
    """Consume until the process is stopped, which is safe at any moment."""
    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"), decode_responses=True)
    client = Client(os.environ.get("KEEPFIT_URL", "http://127.0.0.1:8000"), os.environ.get("KEEPFIT_API_KEY"))
    with client, redis:
        model = until_available(lambda: client.create(metadata_of(STREAM), RECIPE))
        with suppress(ResponseError):  # BUSYGROUP: the group exists.
            redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        print(f"consumer {CONSUMER} of {STREAM}", flush=True)
        for number, entry in enumerate(entries(redis), 1):
            handle(redis, model, entry)
            if number % REPORT_EVERY == 0:
                report(model)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()

"""Answers to calls of train_score_predict: stored by the commit that learned their rows, and read by gateways.

Owns where they are, how many bytes of them a model keeps, and reading them. Never writes one: the script `commit` does,
so that a version that exists has its answer. Invariant: an answer names its request by origin and sequence, which no
other request of the model ever has; what is found is the answer that this request had, or nothing.
"""

from dataclasses import dataclass

import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts

# From this size on, the newest answers become the old ones, and those are dropped: so the last 4 MiB are kept in any
# case, and with the largest answers 10 MiB.
HALF_BYTES_MAX = 4 << 20


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer as JSON, and the version of the model that it is about."""

    version: int
    rows_seen: int
    text: bytes


def keys_of(model_hash: str) -> tuple[str, str]:
    """Return the keys of a model's answers: the newest, and those before them."""
    return redis_keys.new_stored_answers(model_hash), redis_keys.old_stored_answers(model_hash)


async def find(store: redis.asyncio.Redis, model_hash: str, origin: int, sequence: int) -> StoredAnswer | None:
    """Return the answer to a request; None if it is not learned yet, wanted no answer, or the answer was dropped.

    Raises
    ------
    UnavailableError
        If Redis is unavailable.
    """
    reads = (("HGET", key, f"{origin}-{sequence}") for key in keys_of(model_hash))
    for found in await redis_scripts.run_async(store, *reads):
        if found is not None:
            version, rows_seen, text = found.split(b" ", 2)
            return StoredAnswer(int(version), int(rows_seen), text)
    return None

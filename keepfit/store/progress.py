"""How far many models are: their counters and metrics, without recipes and bundles.

Owns one reading of fields that a list of all models is ordered by. Never writes. Invariant: the numbers of one model
are of one moment; those of two models may be of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts

FIELDS = ("generation", "version", "rows_seen", "accepted", "learned", "metrics")


@dataclass(frozen=True, slots=True)
class Progress:
    """One live model; `inbox` is the number of its pending requests."""

    generation: int
    version: int
    rows_seen: int
    inbox: int
    metrics: dict[str, Any]


async def read_progress(store: redis.asyncio.Redis, hashes: Sequence[str]) -> list[Progress | None]:
    """Return the progress of these models, read in one round trip; None for one that is not live.

    Raises
    ------
    UnavailableError
        If Redis is unavailable.
    """
    if not hashes:
        return []
    commands = (("HMGET", redis_keys.state(each), *FIELDS) for each in hashes)
    return [_progress(fields) for fields in await redis_scripts.run_async(store, *commands)]


async def read_metadata(store: redis.asyncio.Redis, hashes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the metadata of those of these models that are live, by their hashes; raises as :func:`read_progress`."""
    if not hashes:
        return {}
    commands = (("HGET", redis_keys.state(each), "metadata") for each in hashes)
    found = zip(hashes, await redis_scripts.run_async(store, *commands), strict=True)
    return {model_hash: msgspec.json.decode(text) for model_hash, text in found if text is not None}


def _progress(fields: Sequence[bytes | None]) -> Progress | None:
    """Return the progress that the fields of a state describe.

    >>> _progress([b"1", b"4", b"9", b"5", b"3", b"{}"]).inbox, _progress([None] * 6)
    (2, None)
    """
    if fields[0] is None:
        return None
    generation, version, rows_seen, accepted, learned, metrics = (field or b"" for field in fields)
    return Progress(
        int(generation), int(version), int(rows_seen), int(accepted) - int(learned), msgspec.json.decode(metrics)
    )

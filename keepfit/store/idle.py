"""Idle models in the store: find them, delete them from Redis, and read the record that this leaves.

Owns the script `unload`, and the idle record: for as long as idempotency keys live, a day at least, it names the
generation and the bundle that left, so that a restore that read an older snapshot is refused, and that idempotency keys
and removed dead letters of the model stay known. Never decides whether a snapshot is good:
:mod:`keepfit.snapshots.idle` does. Invariant: a model that is in use, or has learned more than its snapshot, is never
deleted; the script compares.

The time since the last use of a model is the time that Redis counts for the key of its bundle (``OBJECT IDLETIME``): a
commit writes it, workers read or touch it with each prediction, and gateways touch it for cached predictions. That
costs no write.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import redis.asyncio
from redis.exceptions import ResponseError

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.errors import SettingsError

SCAN_COUNT = 1000
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class IdleRecord:
    """What is known of a model that left Redis: its generation, the digest of its bundle, and the fields to keep.

    `origin` is the generation in which its sequences began, `removed` the number of dead letters that were retried or
    discarded, '' if there never was one. `text` is the record as Redis has it.
    """

    text: str
    generation: int
    digest: str
    origin: int
    removed: str

    @classmethod
    def of(cls, text: str) -> "IdleRecord":
        """Parse a record.

        >>> IdleRecord.of("3 ab12 1 ")
        IdleRecord(text='3 ab12 1 ', generation=3, digest='ab12', origin=1, removed='')
        """
        generation, digest, origin, removed = text.split(" ")
        return cls(text, int(generation), digest, int(origin), removed)


async def read_record(client: redis.asyncio.Redis, model_hash: str) -> IdleRecord | None:
    """Return the idle record of a model; None if it did not leave Redis, or the record has expired."""
    (text,) = await redis_scripts.run_async(client, ("GET", redis_keys.idle(model_hash)))
    return IdleRecord.of(text.decode()) if text else None


def touch(hashes: Iterable[str]) -> list[Command]:
    """Return the commands that count as a use of models; they write nothing."""
    return [("TOUCH", redis_keys.bundle(each)) for each in hashes]


@dataclass(frozen=True, slots=True)
class IdleModel:
    """State of a live model that nothing has used for a while, and whose last version is saved."""

    hash: str
    generation: int
    version: int
    rows_seen: int
    digest: str


async def find(client: redis.asyncio.Redis, cursor: int, count: int, idle_s: int) -> tuple[list[IdleModel], int]:
    """Look at about `count` keys of Redis from a cursor on (0: from the start).

    Returns
    -------
    models, cursor
        Saved models among them that were not used for `idle_s` seconds, and have no mark of a change, no lock, and
        neither requests, dead letters nor open rows; and where to go on (0: all keys were looked at).

    Raises
    ------
    SettingsError
        If Redis does not count how long a key was not used, because of its `maxmemory-policy`.
    UnavailableError
        If Redis is unavailable.
    """
    found: list[IdleModel] = []
    while count > 0:
        ((after, names),) = await redis_scripts.run_async(
            client, ("SCAN", cursor, "MATCH", redis_keys.STATE_PATTERN, "COUNT", SCAN_COUNT)
        )
        hashes = [redis_keys.hash_of_state(name.decode()) for name in names]
        found += await _without_work(client, await _not_used(client, hashes, idle_s))
        cursor, count = int(after), count - SCAN_COUNT
        if not cursor:
            break
    return found, cursor


async def _not_used(client: redis.asyncio.Redis, hashes: Sequence[str], idle_s: int) -> list[str]:
    if not hashes:
        return []
    try:
        seconds = await redis_scripts.run_async(
            client, *(("OBJECT", "IDLETIME", redis_keys.bundle(each)) for each in hashes)
        )
    except ResponseError as error:
        raise SettingsError(
            f"Idle models stay in Redis, which does not count how long they were not used: {error}. Set its "
            "maxmemory-policy to noeviction, or KEEPFIT_IDLE_AFTER_S to 0."
        ) from error
    return [each for each, idle in zip(hashes, seconds, strict=True) if idle is not None and idle >= idle_s]


async def _without_work(client: redis.asyncio.Redis, hashes: Sequence[str]) -> list[IdleModel]:
    """Return those that may leave; the script `unload` compares again, but for the mark."""
    if not hashes:
        return []
    commands = [
        command
        for each in hashes
        for command in (
            ("HMGET", redis_keys.state(each), *_FIELDS),
            ("ZSCORE", redis_keys.CHANGED, each),
            ("EXISTS", redis_keys.lock(each)),
            ("XLEN", redis_keys.inbox(each)),
            ("XLEN", redis_keys.dead(each)),
            ("HLEN", redis_keys.open_rows(each)),
        )
    ]
    answers = await redis_scripts.run_each(client, commands)
    found = []
    for each, fields, mark, *work in zip(hashes, *(answers[first::6] for first in range(6)), strict=True):
        # An error of Redis (a key of another type) is work, too: that model stays, and the others can leave.
        if isinstance(fields, Exception) or None in fields or mark is not None or any(work):
            continue
        generation, version, snapshot_version, rows_seen, digest = fields
        if version == snapshot_version:
            found.append(IdleModel(each, int(generation), int(version), int(rows_seen), digest.decode()))
    return found


_FIELDS = ("generation", "version", "snapshot_version", "rows_seen", "digest")


async def position(client: redis.asyncio.Redis) -> int:
    """Return the cursor at which the next pass begins to look for idle models."""
    (cursor,) = await redis_scripts.run_async(client, ("HGET", redis_keys.SNAPSHOTS, "idle"))
    return int(cursor or 0)


async def note_position(client: redis.asyncio.Redis, cursor: int) -> None:
    """Store the cursor at which the next pass begins."""
    await redis_scripts.run_async(client, ("HSET", redis_keys.SNAPSHOTS, "idle", cursor))


async def unload(
    client: redis.asyncio.Redis, model_hash: str, generation: int, digest: str, idle_s: int, ttl_s: int
) -> bool:
    """Delete an idle model, whose snapshot was found to be good, from Redis; return whether it was deleted.

    `generation` and `digest` are those that the caller read; the idle record stays for `ttl_s` seconds, or a day if
    that is longer.
    """
    (done,) = await redis_scripts.run_async(
        client,
        redis_scripts.call(
            "unload",
            [
                redis_keys.state(model_hash),
                redis_keys.bundle(model_hash),
                redis_keys.inbox(model_hash),
                redis_keys.lock(model_hash),
                redis_keys.dead(model_hash),
                redis_keys.idle(model_hash),
                redis_keys.open_rows(model_hash),
                redis_keys.open_row_ends(model_hash),
                redis_keys.closed_rows(model_hash),
            ],
            [generation, digest, idle_s, max(ttl_s, DAY_S) * 1000],
        ),
    )
    return bool(done)

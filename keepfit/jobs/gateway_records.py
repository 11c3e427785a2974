"""Gateways as their records in the queue's Redis describe them.

Owns the form of a record, its writing and its reading. A process of a gateway writes its own record every few seconds
(:mod:`keepfit_gateway.heartbeat`), and removes it when it stops. Never decides anything by them. Invariant: a process
without a heartbeat for :data:`ALIVE_S` seconds is not listed; all times are those of Redis.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from keepfit.backends import redis_keys, redis_scripts

# Three heartbeats, and more than a pause of the garbage collector or of a busy machine.
ALIVE_S = 20.0
# The record of a process that was killed stays so long, at most.
KEPT_S = 3600.0


class GatewayRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a gateway; times are seconds since 1970, `beat_s` is when it wrote the record."""

    name: str
    host: str
    pid: int
    started: float
    requests_per_s: float
    connections: int
    event_streams: int
    beat_s: float = 0.0


async def write(queue: Any, record: GatewayRecord) -> None:
    """Write the record of a process, and remove those that are old.

    Raises
    ------
    UnavailableError
        If the queue's Redis is unavailable.
    """
    records, now_s = await _read(queue)
    old = [name for name, found in records.items() if found is None or found.beat_s < now_s - KEPT_S]
    text = msgspec.json.encode(msgspec.structs.replace(record, beat_s=now_s))
    commands: list[tuple[Any, ...]] = [("HSET", redis_keys.GATEWAYS, record.name, text)]
    if old:
        commands.append(("HDEL", redis_keys.GATEWAYS, *old))
    await redis_scripts.run_async(queue, *commands)


async def remove(queue: Any, name: str) -> None:
    """Remove the record of a process that stops; raises as :func:`write`."""
    await redis_scripts.run_async(queue, ("HDEL", redis_keys.GATEWAYS, name))


async def read_all(queue: Any) -> list[GatewayRecord]:
    """Return the processes of gateways that are alive, ordered by host and name; raises as :func:`write`."""
    records, now_s = await _read(queue)
    alive = [found for found in records.values() if found is not None and found.beat_s >= now_s - ALIVE_S]
    return sorted(alive, key=lambda record: (record.host, record.name))


def joined(each: Iterable[Sequence[GatewayRecord]]) -> list[GatewayRecord]:
    """Return the records of several servers of the queue, ordered by host and name; of one process the newest."""
    newest: dict[str, GatewayRecord] = {}
    for record in (record for records in each for record in records):
        if record.name not in newest or newest[record.name].beat_s < record.beat_s:
            newest[record.name] = record
    return sorted(newest.values(), key=lambda record: (record.host, record.name))


async def _read(queue: Any) -> tuple[dict[bytes, GatewayRecord | None], float]:
    """Return all records by name (None: not written by this release), and the time of Redis."""
    found, (seconds, micros) = await redis_scripts.run_async(queue, ("HGETALL", redis_keys.GATEWAYS), ("TIME",))
    pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
    return {name: _record(text) for name, text in pairs}, int(seconds) + int(micros) / 1e6


def _record(text: bytes) -> GatewayRecord | None:
    try:
        return msgspec.json.decode(text, type=GatewayRecord)
    except msgspec.MsgspecError:
        return None

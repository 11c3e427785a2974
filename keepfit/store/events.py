"""Events: what happened to models and workers, for clients that listen.

Owns the stream of the last events in the store, its writing and its reading. Never decides who may read an event.
Invariants: the ids rise, so that a reader continues after the last one that it has seen, and learns whether events
between are gone; a commit and its event are one script (`commit`), so no version is announced that does not exist, and
the last version of a model always is (in a Redis Cluster a little later: :mod:`keepfit.store.cluster_events`). All
other events are written right after the fact: a process that dies in between leaves one out.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import redis.asyncio
from redis import Redis

from keepfit.backends import redis_cluster, redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.errors import UnavailableError
from keepfit.store import cluster_events

Kind = Literal[
    "commit",
    "drift",
    "dead_letter",
    "snapshot",
    "restored",
    "model_created",
    "model_patched",
    "model_deleted",
    "worker_joined",
    "worker_left",
    "worker_died",
    "worker_lost",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Events that are kept. Redis removes them in blocks of about a hundred.
EVENTS_MAX = 10_000
# Commits of a model within this time are announced as one.
COMMIT_INTERVAL_MS = 1000
# An event has no larger metrics: those of many outputs or labels are read from the model.
METRICS_BYTES_MAX = 4096
# Largest number within a millisecond.
NUMBER_MAX = 2**64 - 1
# Models that one round trip announces.
DUE_PER_TRIP = 500


class EventId(NamedTuple):
    """Place of an event in the stream: the time in milliseconds since 1970, and a number within it."""

    ms: int
    number: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.number}"

    @property
    def previous(self) -> "EventId":
        """The largest id before this one."""
        return EventId(self.ms, self.number - 1) if self.number else EventId(self.ms - 1, NUMBER_MAX)

    @classmethod
    def parse(cls, text: str | bytes) -> "EventId":
        """Return the id that `text` writes.

        >>> EventId.parse("1700000000000-2") < EventId.parse(b"1700000000000-10")
        True
        """
        ms, _, number = (text if isinstance(text, str) else text.decode()).partition("-")
        return cls(int(ms), int(number))


# Before the first event.
BEGINNING = EventId(0, 0)


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `metadata` is that of its model, None for a worker. `data` is all of it as JSON text."""

    id: EventId
    kind: str
    hash: str
    metadata: dict[str, Any] | None
    data: str

    @classmethod
    def parse(cls, name: bytes, fields: dict[bytes, bytes]) -> "Event":
        """Return the event of an entry of the stream.

        >>> of_model = {b"kind": b"snapshot", b"hash": b"ab", b"metadata": b'{"type":"shoes"}'}
        >>> Event.parse(b"1500-0", {**of_model, b"details": b'{"version":1}'}).data
        '{"kind":"snapshot","hash":"ab","metadata":{"type":"shoes"},"timestamp":1.5,"version":1}'
        """
        event_id, kind, model_hash = EventId.parse(name), fields[b"kind"].decode(), fields.get(b"hash", b"").decode()
        metadata, details = fields.get(b"metadata", b"").decode(), fields.get(b"details", b"{}").decode()
        of_model = f'"hash":"{model_hash}","metadata":{metadata},' if metadata else ""
        rest = details[1:] if len(details) <= len("{}") else f",{details[1:]}"
        data = f'{{"kind":"{kind}",{of_model}"timestamp":{event_id.ms / 1000}{rest}'
        return cls(event_id, kind, model_hash, msgspec.json.decode(metadata) if metadata else None, data)


def entry(kind: Kind, model_hash: str = "", metadata_text: str | bytes = "", **details: Any) -> Command:
    """Return the command that writes an event."""
    return (
        "XADD", redis_keys.EVENTS, "MAXLEN", "~", EVENTS_MAX, "*", "kind", kind, "hash", model_hash,
        "metadata", metadata_text, "details", msgspec.json.encode(details),
    )  # fmt: skip


async def announce(store: redis.asyncio.Redis, *entries: Command) -> None:
    """Write events of what has been done; without Redis they are left out, because that cannot be undone."""
    if entries:
        with suppress(UnavailableError):
            await redis_scripts.run_async(store, *entries)


def announce_sync(store: Redis, *entries: Command) -> None:
    """Do what :func:`announce` does, for workers."""
    with suppress(UnavailableError):
        redis_scripts.run(store, *entries)


def announce_due(store: Redis) -> int:
    """Announce the newest version of models whose last commits were left out; return their number.

    Raises
    ------
    UnavailableError
        If Redis is unavailable.
    """
    if isinstance(store, redis_cluster.Cluster):
        return cluster_events.forward(
            store, EVENTS_MAX, lambda name: due(name, redis_keys.model_events(name), redis_keys.model_due(name))
        )
    count = 0
    while True:
        (names,) = redis_scripts.run(store, ("ZRANGE", redis_keys.DUE_EVENTS, 0, DUE_PER_TRIP - 1))
        if not names:
            return count
        done: int = sum(redis_scripts.run(store, *(due(name.decode()) for name in names)))
        count += done
        if not done or len(names) < DUE_PER_TRIP:
            return count


def due(model_hash: str, stream: str = redis_keys.EVENTS, due_models: str = redis_keys.DUE_EVENTS) -> Command:
    """Return the command that announces the newest version of a model, if a commit was left out; 1 if it did."""
    return redis_scripts.call(
        "announce_due",
        [redis_keys.state(model_hash), stream, due_models],
        [model_hash, EVENTS_MAX, COMMIT_INTERVAL_MS, METRICS_BYTES_MAX],
    )


async def newest(store: redis.asyncio.Redis) -> EventId:
    """Return the id of the newest event."""
    (found,) = await redis_scripts.run_async(store, ("XREVRANGE", redis_keys.EVENTS, "+", "-", "COUNT", 1))
    return EventId.parse(found[0][0]) if found else BEGINNING


async def read_after(store: redis.asyncio.Redis, position: EventId, count: int) -> tuple[list[Event], EventId]:
    """Return up to `count` events after `position`, and where they really begin: after `position` if none is gone.

    Events are gone if the stream no longer has the one at `position`, or has lost it with others.
    """
    page, oldest, last, length = await redis_scripts.run_async(
        store,
        ("XRANGE", redis_keys.EVENTS, f"({position}", "+", "COUNT", count),
        ("XRANGE", redis_keys.EVENTS, "-", "+", "COUNT", 1),
        ("XREVRANGE", redis_keys.EVENTS, "+", "-", "COUNT", 1),
        ("XLEN", redis_keys.EVENTS),
    )
    if not oldest:
        return [], BEGINNING
    if position > EventId.parse(last[0][0]):
        # Redis has lost its data, and all that is there is new.
        everything, _ = await read_after(store, BEGINNING, count)
        return everything, BEGINNING
    # From a shorter stream nothing was ever removed.
    first, is_complete = EventId.parse(oldest[0][0]), position == BEGINNING and length < EVENTS_MAX
    return parse(page), position if is_complete or position >= first else first.previous


def parse(entries: Sequence[Any]) -> list[Event]:
    """Return the events of entries of the stream."""
    return [Event.parse(name, dict(zip(fields[::2], fields[1::2], strict=True))) for name, fields in entries]

"""Models in the hash table, as the gateway, the snapshotter and restores see them (async).

Owns describing, installing and forgetting a model. Never unpickles; what learns is in :mod:`keepfit.store.commit`, what
is to be learned in :mod:`keepfit.store.inbox`.
Invariant: whatever changes a model is one script that compares before it sets. Data comes from requests, MongoDB and
snapshots, and goes to Redis.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import StaleModelError, UnavailableError
from keepfit.recipe.recipe import Recipe, from_text
from keepfit.security import envelope
from keepfit.store.retained import RetainedRequests, RetentionNote

STAGED_TTL_MS = 60_000
REASON_MAX = 500


@dataclass(frozen=True, slots=True)
class Model:
    """State of a live model, read in one moment; `origin` is the generation in which its sequences began.

    `recipe` is as it was posted; `changed` are the parameters changed since (:mod:`keepfit.model.parameters`).
    """

    hash: str
    metadata: dict[str, Any]
    recipe: Recipe
    generation: int
    version: int
    rows_seen: int
    learned: int
    inbox: int
    metrics: dict[str, Any]
    snapshot: dict[str, Any] | None
    digest: str
    changed: dict[str, Any]
    origin: int
    kept: RetainedRequests


@dataclass(frozen=True, slots=True)
class Install:
    """What a model begins with: nothing but its recipe, or a bundle from a snapshot.

    A live model of a generation before `born` is what is left of a deleted predecessor, and is replaced. `base` is the
    text of a :class:`keepfit.store.retained.ReplayBase`, '' where it is none.
    """

    hash: str
    metadata_text: str
    recipe_text: str
    generation: int
    version: int = 0
    rows_seen: int = 0
    sequence: int = 0
    chain: str = ""
    digest: str = ""
    metrics_text: str = "{}"
    snapshot_text: str = ""
    bundle: bytes = b""
    width: int | None = None
    born: int = 0
    changed: Mapping[str, Any] = field(default_factory=dict)
    base: str = "0"


@dataclass(frozen=True, slots=True)
class Rewind:
    """What a live model goes back to; `bundle` says that it has learned what the live one has (`keepfit.restore`).

    `base` is as in :class:`Install`, or '=' where it has learned just that.
    """

    hash: str
    generation: int
    version: int
    rows_seen: int
    digest: str
    metrics_text: str
    bundle: bytes
    width: int | None
    changed: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """How far snapshots are behind: models `changed` since theirs, and the last pass.

    `age_s` is None where no pass was ever made; by Redis' clock, as all ages that more than one machine looks at.
    `uncollected` is why the last garbage collection failed, '' if it did not.
    """

    changed: int
    age_s: int | None
    failed: int
    reason: str
    uncollected: str = ""


class Store:
    """Async access to the models in Redis."""

    def __init__(self, store: redis.asyncio.Redis) -> None:
        self._store = store

    @property
    def client(self) -> redis.asyncio.Redis:
        """The connections, for what belongs to a model and is not its state."""
        return self._store

    async def ping(self) -> None:
        """Raise UnavailableError unless Redis answers."""
        await redis_scripts.run_async(self._store, ("PING",))

    async def describe(self, model_hash: str) -> Model | None:
        """Read a model's state; None where it is not live."""
        return (await self.describe_many([model_hash]))[0]

    async def describe_many(self, hashes: list[str]) -> list[Model | None]:
        """Read many models' states in one trip."""
        if not hashes:
            return []
        states = (("HMGET", redis_keys.state(h), *_FIELDS) for h in hashes)
        answers = await redis_scripts.run_async(self._store, *states)
        return [_model(h, fields) for h, fields in zip(hashes, answers, strict=True)]

    async def install(self, new: Install) -> bool:
        """Put a model in, if none is live under its hash; tell whether it was put in."""
        token = uuid.uuid4().hex
        staged = redis_keys.staged(new.hash, token)
        big, newest = await self._big(new.hash)
        commands = [("SET", staged, new.bundle, "PX", STAGED_TTL_MS)] if new.digest else []
        *_, (installed, *late) = await redis_scripts.run_async(
            self._store,
            *commands,
            redis_scripts.call(
                "install",
                [
                    redis_keys.state(new.hash),
                    redis_keys.bundle(new.hash),
                    staged,
                    redis_keys.inbox(new.hash),
                    redis_keys.lock(new.hash),
                    redis_keys.dead(new.hash),
                    *big,
                ],
                [
                    new.metadata_text,
                    new.recipe_text,
                    new.generation,
                    new.version,
                    new.rows_seen,
                    new.sequence,
                    new.chain,
                    new.digest,
                    new.metrics_text,
                    new.snapshot_text,
                    "" if new.width is None else new.width,
                    new.born,
                    redis_keys.COMMITS,
                    new.hash,
                    newest,
                    msgspec.json.encode(new.changed) if new.changed else "",
                    new.base,
                ],
            ),
        )
        await self._remove(late)
        if installed == -1:
            raise UnavailableError("Redis lost a bundle that was just written; is it out of memory?")
        if installed == -2:
            raise StaleModelError(f"Somebody else has begun to restore {new.hash} since.")
        return bool(installed == 1)

    async def rewind(self, live: Model, to: Rewind) -> bool:
        """Put another bundle in a live model's place, if it is still what it was in `live`; tell whether it was put in.

        Requests that wait stay, and are learned on top of it.
        """
        staged = redis_keys.staged(to.hash, uuid.uuid4().hex)
        *_, done = await redis_scripts.run_async(
            self._store,
            # Marked before it is done, as before a commit, and like the commit that would come next: a pass that saves
            # what is live now leaves the mark, and one that saves what comes of it, or is in its way, takes it off.
            ("ZADD", redis_keys.CHANGED, "GT", redis_keys.change(live.generation, live.version + 1), to.hash),
            ("SET", staged, to.bundle, "PX", STAGED_TTL_MS),
            redis_scripts.call(
                "rewind",
                [
                    redis_keys.state(to.hash),
                    redis_keys.bundle(to.hash),
                    staged,
                    redis_keys.inbox(to.hash),
                    *(name for _, name in live.kept.large),
                ],
                [
                    live.generation,
                    live.digest,
                    to.generation,
                    to.version,
                    to.rows_seen,
                    to.digest,
                    to.metrics_text,
                    "" if to.width is None else to.width,
                    msgspec.json.encode(to.changed) if to.changed else "",
                    redis_keys.COMMITS,
                    to.hash,
                    to.base,
                ],
            ),
        )
        if done == -1:
            raise UnavailableError("Redis lost a bundle that was just written; is it out of memory?")
        return bool(done == 1)

    async def mark(self, model_hash: str, generation: int, version: int) -> None:
        """Note that a model is to be saved at this version."""
        await redis_scripts.run_async(
            self._store, ("ZADD", redis_keys.CHANGED, "GT", redis_keys.change(generation, version), model_hash)
        )

    async def delete(self, model_hash: str) -> bool:
        """Forget a model; tell whether there was one."""
        big, newest = await self._big(model_hash)
        (deleted, *late), _ = await redis_scripts.run_async(
            self._store,
            redis_scripts.call(
                "delete",
                [
                    redis_keys.state(model_hash),
                    redis_keys.bundle(model_hash),
                    redis_keys.inbox(model_hash),
                    redis_keys.lock(model_hash),
                    redis_keys.dead(model_hash),
                    *big,
                ],
                [redis_keys.COMMITS, model_hash, newest],
            ),
            ("ZREM", redis_keys.CHANGED, model_hash),
        )
        await self._remove(late)
        return bool(deleted)

    async def _remove(self, late: list[bytes]) -> None:
        """Remove large rows that came in while their model went."""
        if late:
            await redis_scripts.run_async(self._store, ("UNLINK", *late))

    async def _big(self, model_hash: str) -> tuple[list[str], str]:
        """Keys of the rows of large requests that wait or were put aside, and the id of the newest that waits."""
        streams = await redis_scripts.run_async(
            self._store,
            *(("XRANGE", name, "-", "+") for name in (redis_keys.inbox(model_hash), redis_keys.dead(model_hash))),
        )
        found = []
        for _, fields in (entry for stream in streams for entry in stream):
            named = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"big")
            if named:
                found.append(named.decode())
        return found, streams[0][-1][0].decode() if streams[0] else "0-0"

    async def changed(self) -> list[str]:
        """Hashes of the models that changed since their last snapshot."""
        (hashes,) = await redis_scripts.run_async(self._store, ("ZRANGE", redis_keys.CHANGED, 0, -1))
        return [h.decode() for h in hashes]

    async def bundle(self, model_hash: str) -> tuple[Model, bytes] | None:
        """Read a model's state and its signed bundle in one moment; None where it is not live or has not learned."""
        async with self._store.pipeline(transaction=True) as pipe:
            with redis_scripts.unavailable():
                pipe.hmget(redis_keys.state(model_hash), list(_FIELDS))
                pipe.get(redis_keys.bundle(model_hash))
                fields, data = await pipe.execute()
        model = _model(model_hash, fields)
        return None if model is None or data is None else (model, data)

    async def bundle_sizes(self, hashes: Sequence[str]) -> list[int]:
        """Bytes of many models' bundles; 0 where there is none."""
        answers = await self._each([("STRLEN", redis_keys.bundle(h)) for h in hashes])
        return [0 if isinstance(answer, Exception) else answer for answer in answers]

    async def bundles(self, hashes: Sequence[str]) -> list[tuple[Model, bytes] | Exception | None]:
        """Do what :meth:`bundle` does for each of many; what is wrong with one of them stands in its place."""
        states = [("HMGET", redis_keys.state(h), *_FIELDS) for h in hashes]
        answers = await self._each([*states, *(("GET", redis_keys.bundle(h)) for h in hashes)])
        return [
            await self._whole(*one) for one in zip(hashes, answers[: len(hashes)], answers[len(hashes) :], strict=True)
        ]

    async def _whole(
        self, model_hash: str, fields: list[bytes | None] | Exception, data: bytes | Exception | None
    ) -> tuple[Model, bytes] | Exception | None:
        """Put a state and a bundle together that were read one after the other; once more if they do not fit."""
        try:
            if isinstance(fields, Exception):
                return fields
            if isinstance(data, Exception):
                return data
            model = _model(model_hash, fields)
            if model is not None and data is not None and model.digest == envelope.digest_of(data):
                return model, data
            return None if model is None else await self.bundle(model_hash)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one model is not with the others
            return error

    async def _each(self, commands: Sequence[redis_scripts.Command]) -> list[Any]:
        """Send commands in one trip; an answer that is an error stands in its place."""
        async with self._store.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            with redis_scripts.unavailable():
                return await pipe.execute(raise_on_error=False)

    async def note_snapshots(self, noted: Sequence[RetentionNote]) -> None:
        """Tell models of their snapshots and take them off the list of changed ones, unless they changed again."""
        if noted:
            commands = [each.commands() for each in noted]
            both = (*(told for told, _ in commands), *(settled for _, settled in commands))
            await redis_scripts.run_async(self._store, *both)

    async def note_pass(self, failed: int, reason: str) -> None:
        """Note that a snapshotter has been over the changed models, how many it could not save and why."""
        ((seconds, _),) = await redis_scripts.run_async(self._store, ("TIME",))
        await redis_scripts.run_async(
            self._store,
            ("HSET", redis_keys.SNAPSHOTS, "at", int(seconds), "failed", failed, "reason", reason[:REASON_MAX]),
        )

    async def collection(self) -> tuple[str, float]:
        """Return the hash behind which the next garbage collection begins, and the time by Redis' clock (seconds)."""
        after, (seconds, micros) = await redis_scripts.run_async(
            self._store, ("HGET", redis_keys.SNAPSHOTS, "collected"), ("TIME",)
        )
        return (after or b"").decode(), int(seconds) + int(micros) / 1e6

    async def note_collection(self, after: str, reason: str) -> None:
        """Note where the next garbage collection begins, and why this one failed ('' if it did not)."""
        await redis_scripts.run_async(
            self._store, ("HSET", redis_keys.SNAPSHOTS, "collected", after, "uncollected", reason[:REASON_MAX])
        )

    async def snapshot_state(self) -> SnapshotState:
        """Read how far snapshots are behind."""
        changed, noted, (seconds, _) = await redis_scripts.run_async(
            self._store,
            ("ZCARD", redis_keys.CHANGED),
            ("HMGET", redis_keys.SNAPSHOTS, "at", "failed", "reason", "uncollected"),
            ("TIME",),
        )
        at, failed, reason, uncollected = noted
        if at is None:
            return SnapshotState(changed, None, 0, "")
        return SnapshotState(
            changed, int(seconds) - int(at), int(failed), reason.decode(), (uncollected or b"").decode()
        )

    async def forget_change(self, model_hash: str) -> None:
        """Take a model that is gone off the list of changed ones."""
        await redis_scripts.run_async(self._store, ("ZREM", redis_keys.CHANGED, model_hash))


_FIELDS = (
    "metadata", "recipe", "generation", "version", "rows_seen", "accepted", "learned", "metrics", "snapshot", "digest",
    "changed", "origin", "kept", "base", "large",
)  # fmt: skip


def _model(model_hash: str, fields: list[bytes | None]) -> Model | None:
    if fields[0] is None:
        return None
    metadata, recipe, generation, version, rows_seen, accepted, learned, metrics, snapshot, *rest = (
        field or b"" for field in fields
    )
    digest, changed, origin, *kept = rest
    return Model(
        hash=model_hash,
        metadata=msgspec.json.decode(metadata),
        recipe=from_text(recipe),
        generation=int(generation),
        version=int(version),
        rows_seen=int(rows_seen),
        learned=int(learned),
        inbox=int(accepted) - int(learned),
        metrics=msgspec.json.decode(metrics),
        snapshot=msgspec.json.decode(snapshot) if snapshot else None,
        digest=digest.decode(),
        changed=msgspec.json.decode(changed) if changed else {},
        origin=int(origin or generation),
        kept=RetainedRequests.of(*kept),
    )

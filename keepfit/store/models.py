"""Models in the store, as gateways, the snapshotter and restores use them (async).

Owns describing, installing, rewinding and deleting a model, and the set of changed models. Never unpickles; workers
learn through :mod:`keepfit.store.commit`, requests are accepted by :mod:`keepfit.store.inbox`. Invariant: each change
of a model is one script, which compares before it writes. Data comes from requests, MongoDB and snapshots.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import StaleModelError, UnavailableError
from keepfit.recipe.recipe import Recipe, from_text
from keepfit.security import envelope
from keepfit.store import stored_answers, unloadable
from keepfit.store.idle import IdleRecord
from keepfit.store.retained import RetainedRequests, RetentionNote
from keepfit.store.snapshot_state import SnapshotState

STAGED_TTL_MS = 60_000
REASON_MAX = 500


@dataclass(frozen=True, slots=True)
class Model:
    """State of a live model at one moment; `origin` is the generation in which its sequences began.

    `recipe` is as it was posted; `changed` are the parameters changed since (:mod:`keepfit.model.parameters`).
    `open_rows` wait for their labels. `is_unloadable` is False where it was not asked for
    (:mod:`keepfit.store.unloadable`).
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
    retained: RetainedRequests
    open_rows: int = 0
    is_unloadable: bool = False


@dataclass(frozen=True, slots=True)
class Install:
    """The initial state of a model: only its recipe, or a bundle from a snapshot.

    A live model of a generation before `born` is the remains of a deleted predecessor, and is replaced. `base` is the
    text of a :class:`keepfit.store.retained.ReplayBase`, '' if there is none. `seen` is the idle record that was read
    before the snapshot; a model that `continues` has exactly the bundle that left Redis, and so its sequences.
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
    seen: IdleRecord | None = None
    continues: bool = False


@dataclass(frozen=True, slots=True)
class Rewind:
    """The state that replaces the state of a live model.

    The header of `bundle` names the last sequence of the live bundle as its own (:mod:`keepfit.restore`). `base` is as
    in :class:`Install`, or '=' if the bundle has learned the same requests as the live one.
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


class Store:
    """Async access to the models in Redis."""

    def __init__(self, store: redis.asyncio.Redis) -> None:
        self._store = store

    @property
    def client(self) -> redis.asyncio.Redis:
        """Client of the store, for data of a model other than its state."""
        return self._store

    async def ping(self) -> None:
        """Raise UnavailableError if Redis does not answer."""
        await redis_scripts.run_async(self._store, ("PING",))

    async def describe(self, model_hash: str) -> Model | None:
        """Return a model's state; None if it is not live."""
        return (await self.describe_many([model_hash]))[0]

    async def describe_many(self, hashes: list[str]) -> list[Model | None]:
        """Return the states of many models, read in one round trip."""
        if not hashes:
            return []
        states = (("HMGET", redis_keys.state(h), *_FIELDS) for h in hashes)
        *answers, marks, time = await redis_scripts.run_async(self._store, *states, *unloadable.READ_MARKS)
        current = unloadable.current(marks, time)
        return [_model(h, fields, current) for h, fields in zip(hashes, answers, strict=True)]

    async def install(self, new: Install) -> bool:
        """Install a model if none is live under its hash; return whether it was installed."""
        token = uuid.uuid4().hex
        staged = redis_keys.staged_bundle(new.hash, token)
        large_keys, newest = await self._large_keys(new.hash)
        commands = [("SET", staged, new.bundle, "PX", STAGED_TTL_MS)] if new.digest else []
        *_, (installed, *late_keys) = await redis_scripts.run_async(
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
                    redis_keys.idle(new.hash),
                    redis_keys.open_rows(new.hash),
                    redis_keys.open_row_ends(new.hash),
                    redis_keys.closed_rows(new.hash),
                    *large_keys,
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
                    new.seen.text if new.seen else "",
                    new.seen.origin if new.seen and new.continues else "",
                    new.seen.removed if new.seen and new.continues else "",
                ],
            ),
        )
        await self._unlink(late_keys)
        if installed == -1:
            raise UnavailableError("Redis has lost a bundle that was just written; it may be out of memory.")
        if installed == -2:
            raise StaleModelError(
                f"Another restore of {new.hash} has begun, or it was live since its snapshot was read."
            )
        return bool(installed == 1)

    async def rewind(self, live: Model, to: Rewind) -> bool:
        """Replace the bundle of a live model, if its state is still `live`; return whether it was replaced.

        Pending requests stay, and are learned on top of the new bundle.
        """
        staged = redis_keys.staged_bundle(to.hash, uuid.uuid4().hex)
        *_, done = await redis_scripts.run_async(
            self._store,
            # Marked before the change, as before a commit, and with the score of the next commit: a pass that saves the
            # present bundle leaves the mark, a pass that saves the new bundle or a competing commit removes it.
            ("ZADD", redis_keys.CHANGED, "GT", redis_keys.change_score(live.generation, live.version + 1), to.hash),
            ("SET", staged, to.bundle, "PX", STAGED_TTL_MS),
            redis_scripts.call(
                "rewind",
                [
                    redis_keys.state(to.hash),
                    redis_keys.bundle(to.hash),
                    staged,
                    redis_keys.inbox(to.hash),
                    *(name for _, name in live.retained.large),
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
            raise UnavailableError("Redis has lost a bundle that was just written; it may be out of memory.")
        return bool(done == 1)

    async def mark_changed(self, model_hash: str, generation: int, version: int) -> None:
        """Mark a model as changed at this version, so that the snapshotter saves it."""
        score = redis_keys.change_score(generation, version)
        await redis_scripts.run_async(self._store, ("ZADD", redis_keys.CHANGED, "GT", score, model_hash))

    async def delete(self, model_hash: str) -> bool:
        """Delete a model; return whether there was one."""
        large_keys, newest = await self._large_keys(model_hash)
        (deleted, *late_keys), *_ = await redis_scripts.run_async(
            self._store,
            redis_scripts.call(
                "delete",
                [
                    redis_keys.state(model_hash),
                    redis_keys.bundle(model_hash),
                    redis_keys.inbox(model_hash),
                    redis_keys.lock(model_hash),
                    redis_keys.dead(model_hash),
                    redis_keys.open_rows(model_hash),
                    redis_keys.open_row_ends(model_hash),
                    redis_keys.closed_rows(model_hash),
                    *(*large_keys, *stored_answers.keys_of(model_hash)),
                ],
                [redis_keys.COMMITS, model_hash, newest],
            ),
            ("ZREM", redis_keys.CHANGED, model_hash),
            redis_scripts.call("note_rows", [redis_keys.OPEN_ROWS], [model_hash, 0, 0, "", 0]),
        )
        await self._unlink(late_keys)
        return bool(deleted)

    async def _unlink(self, late_keys: list[bytes]) -> None:
        """Delete the rows of large requests that arrived while their model was deleted."""
        if late_keys:
            await redis_scripts.run_async(self._store, ("UNLINK", *late_keys))

    async def _large_keys(self, model_hash: str) -> tuple[list[str], str]:
        """Return the keys of large requests (pending and dead letters), and the id of the newest pending request."""
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
        """Return the hashes of the models that changed since their last snapshot."""
        (hashes,) = await redis_scripts.run_async(self._store, ("ZRANGE", redis_keys.CHANGED, 0, -1))
        return [h.decode() for h in hashes]

    async def bundle(self, model_hash: str) -> tuple[Model, bytes] | None:
        """Return a model's state and signed bundle at one moment; None if it is not live or has learned nothing."""
        state = redis_keys.state(model_hash)
        reads = (("HMGET", state, *_FIELDS), ("GET", redis_keys.bundle(model_hash)), ("HGET", state, "digest"))
        fields, data, digest = await redis_scripts.run_async(self._store, *reads)
        while fields[_FIELDS.index("digest")] != digest:  # A commit came in between, as few do: all are sent at once.
            fields, data, digest = await redis_scripts.run_async(self._store, *reads)
        model = _model(model_hash, fields)
        return None if model is None or data is None else (model, data)

    async def bundle_sizes(self, hashes: Sequence[str]) -> list[int]:
        """Return the sizes of many models' bundles in bytes; 0 for a model without a bundle."""
        answers = await redis_scripts.run_each(self._store, [("STRLEN", redis_keys.bundle(h)) for h in hashes])
        return [0 if isinstance(answer, Exception) else answer for answer in answers]

    async def bundles(self, hashes: Sequence[str]) -> list[tuple[Model, bytes] | Exception | None]:
        """Return what :meth:`bundle` returns, for many models; the error of a model takes the place of its result."""
        states = [("HMGET", redis_keys.state(h), *_FIELDS) for h in hashes]
        bundles = [("GET", redis_keys.bundle(h)) for h in hashes]
        answers = await redis_scripts.run_each(self._store, [*states, *bundles])
        pairs = zip(hashes, answers[: len(hashes)], answers[len(hashes) :], strict=True)
        return [await self._match(*one) for one in pairs]

    async def _match(
        self, model_hash: str, fields: list[bytes | None] | Exception, data: bytes | Exception | None
    ) -> tuple[Model, bytes] | Exception | None:
        """Join a state and a bundle that were read one after the other; read both again if they do not match."""
        try:
            if isinstance(fields, Exception):
                return fields
            if isinstance(data, Exception):
                return data
            model = _model(model_hash, fields)
            if model is not None and data is not None and model.digest == envelope.digest_of(data):
                return model, data
            return None if model is None else await self.bundle(model_hash)
        except Exception as error:  # noqa: BLE001 - an error of one model must not affect the others
            return error

    async def note_snapshots(self, noted: Sequence[RetentionNote]) -> None:
        """Store models' newest snapshots, and unmark them as changed, unless they changed again."""
        if noted:
            commands = [each.commands() for each in noted]
            ordered = (*(note for note, _ in commands), *(unmark for _, unmark in commands))
            await redis_scripts.run_async(self._store, *ordered)

    async def note_pass(self, failed: int, reason: str) -> None:
        """Store that a snapshot pass has ended, how many models it failed to save, and why."""
        ((seconds, _),) = await redis_scripts.run_async(self._store, ("TIME",))
        await redis_scripts.run_async(
            self._store,
            ("HSET", redis_keys.SNAPSHOTS, "at", int(seconds), "failed", failed, "reason", reason[:REASON_MAX]),
        )

    async def collection(self) -> tuple[str, float]:
        """Return the hash after which the next garbage collection begins, and the time of Redis (seconds)."""
        position = ("HGET", redis_keys.SNAPSHOTS, "collected")
        after, (seconds, micros) = await redis_scripts.run_async(self._store, position, ("TIME",))
        return (after or b"").decode(), int(seconds) + int(micros) / 1e6

    async def note_collection(self, after: str, reason: str) -> None:
        """Store where the next garbage collection begins, and why this one failed ('' if it did not)."""
        await redis_scripts.run_async(
            self._store, ("HSET", redis_keys.SNAPSHOTS, "collected", after, "uncollected", reason[:REASON_MAX])
        )

    async def snapshot_state(self) -> SnapshotState:
        """Return the state of the snapshots."""
        changed, noted, (seconds, _) = await redis_scripts.run_async(
            self._store,
            ("ZCARD", redis_keys.CHANGED),
            ("HMGET", redis_keys.SNAPSHOTS, "at", "failed", "reason", "uncollected"),
            ("TIME",),
        )
        at, failed, reason, uncollected = noted
        if at is None:
            return SnapshotState(changed, None, 0, "")
        age_s, uncollected = int(seconds) - int(at), uncollected or b""
        return SnapshotState(changed, age_s, int(failed), reason.decode(), uncollected.decode())

    async def unmark_changed(self, model_hash: str) -> None:
        """Unmark a deleted model as changed."""
        await redis_scripts.run_async(self._store, ("ZREM", redis_keys.CHANGED, model_hash))


_FIELDS = (
    "metadata", "recipe", "generation", "version", "rows_seen", "accepted", "learned", "metrics", "snapshot", "digest",
    "changed", "origin", "open_rows", "kept", "base", "large",
)  # fmt: skip


def _model(model_hash: str, fields: list[bytes | None], marks: Collection[str] = ()) -> Model | None:
    if fields[0] is None:
        return None
    metadata, recipe, generation, version, rows_seen, accepted, learned, metrics, snapshot, *rest = (
        field or b"" for field in fields
    )
    digest, changed, origin, open_rows, *retained = rest
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
        retained=RetainedRequests.of(*retained),
        open_rows=int(open_rows or 0),
        is_unloadable=unloadable.mark_of(model_hash, int(generation), digest.decode()) in marks,
    )

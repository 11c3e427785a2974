"""The store as workers use it (synchronous): claim pending requests, commit a bundle, load a model for predicting.

Owns the protocol that changes a bundle::

    claim:  lock the model, and read bundle and next requests at one moment
    commit: stage the new bundle, then run one script: if digest, learned count and request digest are still the claimed
            ones, swap the bundle, increment the version and trim the inbox; else change nothing

Never relies on the lock: it only saves work. Never reads a bundle: it comes and goes as signed bytes. Invariant: a
worker whose lock expired, or whose requests are no longer those in the inbox, commits nothing
(`docs/concepts/commit-protocol.md`).
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import msgspec
from redis import Redis

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import UnstorableError
from keepfit.observability import failpoints
from keepfit.rows import acceptance, served, train_score_predict
from keepfit.rows.rows import Rows
from keepfit.security import envelope
from keepfit.store import cluster_events, events, staging, stored_answers, unloadable
from keepfit.store.changes import is_change, params_of
from keepfit.store.idle import touch
from keepfit.store.retained import join_sequences, parse_large

STAGED_TTL_MS = 60_000
ENTRIES_MAX = 1024
# Answers are kept as long as the Idempotency-Keys by which they are asked for again.
ANSWERS_TTL_S = 86_400
BYTES_MAX = 8 * 2**20

GONE, SUPERSEDED, REQUESTS_CHANGED, STAGED_BUNDLE_LOST, DEAD_LETTER_GONE = 0, -1, -2, -3, -4
REFUSALS = {
    GONE: "the model was deleted or created again",
    SUPERSEDED: "another commit came first",
    REQUESTS_CHANGED: "the inbox holds other requests than the claimed ones",
    STAGED_BUNDLE_LOST: "the staged bundle is missing",
    DEAD_LETTER_GONE: "a dead letter was retried or discarded while it was learned again",
}


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """One pending request; `large_key` names the key that held its rows, if they were too large for the inbox.

    The `payload` of a large request is a read-only memoryview, with which its rows share memory.
    """

    sequence: int
    request_digest: str
    payload: bytes
    large_key: str
    size_bytes: int

    @property
    def change(self) -> dict[str, Any] | None:
        """Parameters that the request changes; None if it holds rows."""
        return None if self.large_key else params_of(self.payload)

    def rows(self) -> Rows:
        """Return the rows of the request."""
        if not self.payload:
            raise LookupError("Redis has lost the rows of this request")
        return served.decode(self.payload)

    @property
    def wants_answer(self) -> bool:
        """Whether it is a call of train_score_predict."""
        return train_score_predict.is_one(self.payload)

    @property
    def accepted_s(self) -> float:
        """When its rows were accepted, in seconds since 1970; 0.0 if that is not known."""
        return acceptance.accepted_s(self.payload)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A model at the moment of the claim.

    `data` is its signed bundle, empty if the caller has it. `attempts` counts what these entries have done to workers
    (:class:`Harm`), and `harm` names the last of it. `claimed_s` is the moment by the monotonic clock of the
    process, `large` the sequences and keys of the large requests that are retained. `followed` says that gateways want
    the scorer of each new version.
    """

    hash: str
    generation: int
    version: int
    rows_seen: int
    learned: int
    digest: str
    recipe_text: bytes
    attempts: int
    harm: str
    data: bytes
    entries: Sequence[PendingRequest]
    claimed_s: float
    large: tuple[tuple[int, str], ...] = ()
    followed: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as predicting needs it; `data` (signed bundle) and `recipe_text` are empty if the caller has them."""

    hash: str
    generation: int
    version: int
    rows_seen: int
    digest: str
    recipe_text: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class SealedBundle:
    """A new bundle as signed bytes, with what the store shows of it.

    `width` is the number of values of a learned row, None if the bundle does not tell. `scorer` is its encoded scorer,
    which the commit announces; empty for none. `answer` is what the last of its requests wants to know, and what the
    commit stores (:mod:`keepfit.store.stored_answers`); empty for none. `drifts` are those detected in the new rows,
    `dead_letters` those that it has learned, which the commit removes: their ids, and keys of large rows ("" for none).
    """

    data: bytes
    rows_seen: int
    metrics: dict[str, Any]
    changed: dict[str, Any]
    width: int | None
    scorer: bytes = b""
    answer: bytes = b""
    drifts: tuple[dict[str, Any], ...] = ()
    dead_letters: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Committed:
    """The result of a commit: the new version, or one of :data:`REFUSALS`.

    `has_pending` says whether requests are still pending, `claimed` is what the same round trip has claimed of them.
    """

    version: int
    digest: str
    has_pending: bool
    claimed: Claimed | None = None


class Harm(Enum):
    """What requests can do to their worker, and how much it counts: more, where a repetition has the same result."""

    DEATH = "workers died while they learned it", 1
    MEMORY = "it needs more memory than a worker may use", 3
    TIME = "a call took longer than a call may", 3

    @property
    def reason(self) -> str:
        """The reason of a dead letter."""
        return self.value[0]

    @property
    def score(self) -> int:
        """What it adds to the attempts of the requests."""
        return self.value[1]


def unlock(model_hash: str, token: str, *, force: bool, harm: Harm | None = None) -> redis_scripts.Command:
    """Return the command of :meth:`InboxConsumer.unlock`; also for a worker that is dead."""
    score, name = (harm.score, harm.name) if harm else (0, "")
    return redis_scripts.call(
        "unlock", [redis_keys.state(model_hash), redis_keys.lock(model_hash)], [token, int(force), score, name]
    )


def renew_lock(model_hash: str, token: str, ttl_s: float) -> redis_scripts.Command:
    """Return the command that extends the lock of a model, if `token` holds it."""
    return redis_scripts.call("renew", [redis_keys.lock(model_hash)], [token, round(ttl_s * 1000)])


class InboxConsumer:
    """Synchronous access to models, for learning and predicting."""

    def __init__(
        self,
        store: Redis,
        lock_ttl_s: float,
        replay_bytes_max: int = 0,
        bundle_bytes_max: int = redis_scripts.VALUE_BYTES_MAX,
        answers_ttl_s: float = ANSWERS_TTL_S,
    ) -> None:
        self._answers_ttl_ms = round(answers_ttl_s * 1000)
        self._bundle_bytes_max = bundle_bytes_max
        self._replay_bytes_max = replay_bytes_max
        self._store = store
        self._lock_ttl_ms = round(lock_ttl_s * 1000)

    def claim(self, model_hash: str, token: str, known_digest: str, entries_max: int | None = None) -> Claimed | None:
        """Lock a model and read it with its next requests; None if it is gone or another lease has the lock."""
        (answer,) = redis_scripts.run(self._store, self._claim(model_hash, token, known_digest, entries_max))
        return self._claimed(model_hash, answer)

    def _claim(
        self, model_hash: str, token: str, known_digest: str, entries_max: int | None = None
    ) -> redis_scripts.Command:
        return redis_scripts.call(
            "claim_inbox",
            [
                redis_keys.state(model_hash),
                redis_keys.bundle(model_hash),
                redis_keys.inbox(model_hash),
                redis_keys.lock(model_hash),
                redis_keys.followed(model_hash),
            ],
            [token, self._lock_ttl_ms, known_digest, entries_max or ENTRIES_MAX, BYTES_MAX],
        )

    def _claimed(self, model_hash: str, answer: list[Any]) -> Claimed | None:
        if answer[0] != b"ok":
            return None
        _, fields, data, entries = answer
        generation, version, rows_seen, learned, digest, recipe, attempts, large, harm, followed = fields
        return Claimed(
            hash=model_hash,
            generation=int(generation),
            version=int(version),
            rows_seen=int(rows_seen),
            learned=int(learned),
            digest=digest.decode(),
            recipe_text=recipe,
            attempts=attempts,
            harm=harm.decode(),
            data=data,
            entries=[self._entry(*fields) for fields in entries],
            claimed_s=time.monotonic(),
            large=parse_large(large),
            followed=bool(followed),
        )

    def _entry(self, sequence: int, digest: bytes, payload: bytes, large_key: bytes, size_bytes: int) -> PendingRequest:
        if large_key:
            payload = cast("bytes", staging.read_in_pieces(self._store, large_key, size_bytes))
        return PendingRequest(sequence, digest.decode(), payload, large_key.decode(), size_bytes)

    def commit(
        self,
        claimed: Claimed,
        sealed: SealedBundle,
        count: int,
        token: str,
        dead_reason: str = "",
        *,
        claims_next: bool = True,
    ) -> Committed:
        """Make `sealed`, which has learned the first `count` of the claimed entries, the live bundle.

        With `dead_reason` the last of them was not learned and becomes a dead letter. If entries are left over, or the
        claim was full, the same round trip claims the next ones (`claims_next`); else it releases the lock if nothing
        is pending.

        Raises
        ------
        UnstorableError
            If the bundle is larger than one may be. Nothing is sent then, because Redis closes the connection of a
            client that sends a value above its limit. A bundle that has learned nothing new is as large as before.
        """
        if len(sealed.data) > self._bundle_bytes_max and not dead_reason:
            raise UnstorableError(
                f"the model would have {len(sealed.data)} bytes; it may have {self._bundle_bytes_max} "
                "(KEEPFIT_BUNDLE_BYTES_MAX)"
            )
        digest = envelope.digest_of(sealed.data)
        staged = redis_keys.staged_bundle(claimed.hash, uuid.uuid4().hex)
        change = redis_keys.change_score(claimed.generation, claimed.version + 1)
        failpoints.reach("commit.sealed")
        more = claims_next and (count < len(claimed.entries) or len(claimed.entries) == ENTRIES_MAX)
        *_, version, after = redis_scripts.run(
            self._store,
            # Marked before the commit: a change that no snapshotter knows of would be worse than one mark too many.
            ("ZADD", redis_keys.CHANGED, "GT", change, claimed.hash),
            *cluster_events.mark(self._store, claimed.hash, change),
            ("SET", staged, sealed.data, "PX", STAGED_TTL_MS),
            self._commit(claimed, sealed, count, digest, staged, dead_reason),
            self._claim(claimed.hash, token, digest) if more else unlock(claimed.hash, token, force=False),
        )
        failpoints.reach("commit.done")
        return Committed(version, digest, more or after == 1, self._claimed(claimed.hash, after) if more else None)

    def _commit(
        self, claimed: Claimed, sealed: SealedBundle, count: int, digest: str, staged: str, dead_reason: str
    ) -> redis_scripts.Command:
        """Return the command that makes `staged` the live bundle."""
        done = claimed.entries[:count]
        learned = done[:-1] if dead_reason else done
        large = [*claimed.large, *((entry.sequence, entry.large_key) for entry in learned if entry.large_key)]
        large += [(0, key) for _, key in sealed.dead_letters if key]
        return redis_scripts.call(
            "commit",
            [
                redis_keys.state(claimed.hash),
                redis_keys.bundle(claimed.hash),
                redis_keys.inbox(claimed.hash),
                staged,
                redis_keys.dead(claimed.hash),
                redis_keys.new_stored_answers(claimed.hash),
                redis_keys.old_stored_answers(claimed.hash),
                cluster_events.stream(self._store, claimed.hash),
                cluster_events.due_models(self._store, claimed.hash),
                *(name for _, name in large),
            ],
            [
                claimed.generation,
                claimed.digest,
                claimed.learned,
                done[-1].sequence,
                done[-1].request_digest,
                digest,
                sealed.rows_seen,
                msgspec.json.encode(sealed.metrics),
                sum(entry.size_bytes for entry in done),
                redis_keys.COMMITS,
                claimed.hash,
                dead_reason,
                round(count / max(time.monotonic() - claimed.claimed_s, 1e-3)),
                msgspec.json.encode(sealed.changed) if sealed.changed else "",
                self._replay_bytes_max,
                join_sequences(large),
                "" if sealed.width is None else sealed.width,
                redis_keys.SCORERS,
                sealed.scorer,
                sealed.answer,
                self._answers_ttl_ms,
                stored_answers.HALF_BYTES_MAX,
                events.EVENTS_MAX,
                events.COMMIT_INTERVAL_MS,
                events.METRICS_BYTES_MAX,
                "1" if any(not entry.large_key and is_change(entry.payload) for entry in learned) else "",
                b"\n".join(map(msgspec.json.encode, sealed.drifts)),
                " ".join(name for name, _ in sealed.dead_letters),
            ],
        )

    def unlock(self, model_hash: str, token: str, *, force: bool, harm: Harm | None = None) -> bool:
        """Release the lock of a model; return whether requests are pending (then the lock is kept, unless forced).

        `harm` is what the requests of the last claim, which were not committed, have done to their worker.
        """
        (pending,) = redis_scripts.run(self._store, unlock(model_hash, token, force=force, harm=harm))
        return bool(pending == 1)

    def is_live(self, model_hash: str, generation: int, digest: str) -> bool:
        """Return whether the live bundle of a model has this generation and digest."""
        (live,) = redis_scripts.run(self._store, ("HMGET", redis_keys.state(model_hash), "generation", "digest"))
        return bool(live == [str(generation).encode(), digest.encode()])

    def unloadable_s(self, model: Claimed | Loaded) -> int:
        """Return for how many seconds the bundle of a model must not be loaded; 0 if it may be."""
        return unloadable.seconds_left(self._store, model.hash, model.generation, model.digest)

    def load(self, known: dict[str, str]) -> dict[str, Loaded]:
        """Read models for predicting; `known` maps hashes to the digests of the caller's bundles ('' for none).

        One round trip if the caller's bundles are current, which is the rule; a second one reads those that changed.
        """
        commands = [
            ("HMGET", redis_keys.state(h), "generation", "version", "rows_seen", "digest") if digest else _load(h)
            for h, digest in known.items()
        ]
        # Reading the state is no use of the model by Redis' count, reading the bundle is (:mod:`keepfit.store.idle`).
        commands += touch(h for h, digest in known.items() if digest)
        answers = dict(zip(known, redis_scripts.run(self._store, *commands), strict=False))
        changed = [h for h, digest in known.items() if digest and answers[h][3] != digest.encode()]
        if changed:
            answers.update(zip(changed, redis_scripts.run(self._store, *map(_load, changed)), strict=True))
        return {h: _loaded(h, *answer) for h, answer in answers.items() if answer}


def _load(model_hash: str) -> redis_scripts.Command:
    return redis_scripts.call("load", [redis_keys.state(model_hash), redis_keys.bundle(model_hash)])


def _loaded(
    model_hash: str,
    generation: bytes,
    version: bytes,
    rows_seen: bytes,
    digest: bytes,
    recipe: bytes = b"",
    data: bytes = b"",
) -> Loaded:
    return Loaded(model_hash, int(generation), int(version), int(rows_seen), digest.decode(), recipe, data)

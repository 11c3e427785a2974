"""The learning side of the store, as workers see it (sync): take, commit, load.

Owns the protocol by which a bundle changes::

    take:   lock, and read bundle + next requests in one moment
    commit: stage the new bundle, then one script: are digest, learned count and request chain those that were taken?
            then swap the bundle, count the version, trim the inbox; else nothing

Never trusts the lock: it only saves work. Invariant: a worker that slept through its lock, or whose requests are not
those in the inbox any more, commits nothing (`docs/concepts/commit-protocol.md`).
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis

from keepfit.backends import redis_keys, redis_scripts
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import seal
from keepfit.observability import failpoints
from keepfit.rows.rows import Rows
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from keepfit.store.inbox import change_of
from keepfit.store.retained import large_of, places

STAGED_TTL_MS = 60_000
ENTRIES_MAX = 1024
BYTES_MAX = 8 * 2**20

GONE, BEATEN, OTHER_ROWS, LOST_STAGE = 0, -1, -2, -3
REFUSALS = {
    GONE: "the model is gone or was made again",
    BEATEN: "another commit came first",
    OTHER_ROWS: "the inbox holds other requests than were read",
    LOST_STAGE: "the staged bundle is gone",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One waiting request; `big` names the key that its rows came from, if they were too many for the inbox."""

    sequence: int
    chain: str
    payload: bytes
    big: str
    size_bytes: int

    @property
    def change(self) -> dict[str, Any] | None:
        """Parameters that the request changes; None if it is rows."""
        return None if self.big else change_of(self.payload)

    def rows(self) -> Rows:
        """The request's rows."""
        if not self.payload:
            raise LookupError("Redis has lost the rows of this request")
        return Rows.decode(self.payload)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A model as it was in the moment it was taken; `data` is its signed bundle, empty if the caller has it.

    `attempts` counts the times that just these entries were taken and came to no end, this one included. `at_s` is that
    moment by the process's monotonic clock, `large` the sequences and keys of large requests that are kept.
    """

    hash: str
    generation: int
    version: int
    rows_seen: int
    learned: int
    digest: str
    recipe_text: bytes
    attempts: int
    data: bytes
    entries: Sequence[Entry]
    at_s: float
    large: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as it is for predicting; `data` is its signed bundle, empty (as its recipe) if the caller has it."""

    hash: str
    generation: int
    version: int
    rows_seen: int
    digest: str
    recipe_text: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Committed:
    """What came of a commit: the new version, or one of :data:`REFUSALS`; `mail` where requests still wait.

    `taken` is what was taken in the same trip.
    """

    version: int
    digest: str
    size_bytes: int
    mail: bool
    taken: Claimed | None = None


class InboxConsumer:
    """Sync access to models for those who learn and predict."""

    def __init__(self, store: Redis, keyring: Keyring, lock_ttl_s: float, replay_bytes_max: int = 0) -> None:
        self._replay_bytes_max = replay_bytes_max
        self._store = store
        self._keyring = keyring
        self._lock_ttl_ms = round(lock_ttl_s * 1000)

    def take(self, model_hash: str, token: str, known_digest: str) -> Claimed | None:
        """Lock a model and read it with its next requests; None where it is gone or another lease has it."""
        (answer,) = redis_scripts.run(self._store, self._take(model_hash, token, known_digest))
        return self._taken(model_hash, answer)

    def _take(self, model_hash: str, token: str, known_digest: str) -> redis_scripts.Command:
        return redis_scripts.call(
            "claim_inbox",
            [
                redis_keys.state(model_hash),
                redis_keys.bundle(model_hash),
                redis_keys.inbox(model_hash),
                redis_keys.lock(model_hash),
            ],
            [token, self._lock_ttl_ms, known_digest, ENTRIES_MAX, BYTES_MAX],
        )

    def _taken(self, model_hash: str, answer: list[Any]) -> Claimed | None:
        if answer[0] != b"ok":
            return None
        _, (generation, version, rows_seen, learned, digest, recipe, attempts, large), data, entries = answer
        return Claimed(
            hash=model_hash,
            generation=int(generation),
            version=int(version),
            rows_seen=int(rows_seen),
            learned=int(learned),
            digest=digest.decode(),
            recipe_text=recipe,
            attempts=attempts,
            data=data,
            entries=[self._entry(*fields) for fields in entries],
            at_s=time.monotonic(),
            large=large_of(large),
        )

    def _entry(self, sequence: int, chain: bytes, payload: bytes, big: bytes, size_bytes: int) -> Entry:
        if big:
            (payload,) = redis_scripts.run(self._store, ("GET", big))
        return Entry(sequence, chain.decode(), payload or b"", big.decode(), size_bytes)

    def commit(self, taken: Claimed, bundle: Bundle, count: int, token: str, put_aside: str = "") -> Committed:
        """Make `bundle`, which has learned the first `count` of the taken entries, the live one.

        With `put_aside` the last of them was not learned, for that reason. Where others of them are left, or as many
        were taken as may be, the next ones are taken in the same trip; else it lets go of the lock where no mail waits.
        """
        done = taken.entries[:count]
        last = done[-1]
        learned = done[:-1] if put_aside else done
        header = Header(
            purpose=envelope.BUNDLE,
            hash=taken.hash,
            generation=taken.generation,
            version=taken.version + 1,
            sequence=last.sequence,
            rows_seen=bundle.rows_seen,
            chain=last.chain,
            runtime=bundle.runtime,
        )
        data = seal(bundle, self._keyring, header)
        digest = envelope.digest_of(data)
        large = [*taken.large, *((entry.sequence, entry.big) for entry in learned if entry.big)]
        staged = redis_keys.staged(taken.hash, uuid.uuid4().hex)
        failpoints.reach("commit.sealed")
        more = count < len(taken.entries) or len(taken.entries) == ENTRIES_MAX
        _, _, version, after = redis_scripts.run(
            self._store,
            # Marked before it is committed: a change that no snapshotter knows of would be worse than one too many.
            ("ZADD", redis_keys.CHANGED, "GT", redis_keys.change(header.generation, header.version), taken.hash),
            ("SET", staged, data, "PX", STAGED_TTL_MS),
            redis_scripts.call(
                "commit",
                [
                    redis_keys.state(taken.hash),
                    redis_keys.bundle(taken.hash),
                    redis_keys.inbox(taken.hash),
                    staged,
                    redis_keys.dead(taken.hash),
                    *(name for _, name in large),
                ],
                [
                    taken.generation,
                    taken.digest,
                    taken.learned,
                    last.sequence,
                    last.chain,
                    digest,
                    bundle.rows_seen,
                    msgspec.json.encode(bundle.metrics()),
                    sum(entry.size_bytes for entry in done),
                    redis_keys.COMMITS,
                    taken.hash,
                    put_aside,
                    round(count / max(time.monotonic() - taken.at_s, 1e-3)),
                    msgspec.json.encode(bundle.changed) if bundle.changed else "",
                    self._replay_bytes_max,
                    places(large),
                ],
            ),
            self._take(taken.hash, token, digest) if more else self._unlock(taken.hash, token, force=False),
        )
        failpoints.reach("commit.done")
        if more:
            return Committed(version, digest, len(data), mail=True, taken=self._taken(taken.hash, after))
        return Committed(version, digest, len(data), mail=after == 1)

    def unlock(self, model_hash: str, token: str, *, force: bool, harmed: bool = False) -> bool:
        """Let go of a model; tell whether mail waits (then the lock is kept, unless forced).

        With `harmed` the requests taken last, and not committed, are to blame that it came to nothing.
        """
        (mail,) = redis_scripts.run(self._store, self._unlock(model_hash, token, force=force, harmed=harmed))
        return bool(mail == 1)

    def _unlock(self, model_hash: str, token: str, *, force: bool, harmed: bool = False) -> redis_scripts.Command:
        return redis_scripts.call(
            "unlock", [redis_keys.state(model_hash), redis_keys.lock(model_hash)], [token, int(force), int(not harmed)]
        )

    def renew(self, model_hash: str, token: str) -> None:
        """Give the lock more time."""
        redis_scripts.run(
            self._store, redis_scripts.call("renew", [redis_keys.lock(model_hash)], [token, self._lock_ttl_ms])
        )

    def load(self, known: dict[str, str]) -> dict[str, Loaded]:
        """Read models for predicting; `known` maps hashes to digests the caller holds ('' for none).

        One trip for what the caller holds, and as a rule it does; a second one for what has changed since.
        """
        commands = [
            ("HMGET", redis_keys.state(h), "generation", "version", "rows_seen", "digest") if digest else _load(h)
            for h, digest in known.items()
        ]
        answers = dict(zip(known, redis_scripts.run(self._store, *commands), strict=True))
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

"""Dead letters: accepted requests that were not learned, because an estimator rejected them or workers died of them.

Owns reading them, moving them back to the inbox and discarding them (async). Never learns one and never deletes one by
itself: they were accepted, so they stay until an operator or a client decides. Invariant: a script moves or deletes
each one atomically, so that a request is either pending or a dead letter, never both and never neither. Workers create
them (:mod:`keepfit.store.commit`).
"""

import hashlib
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import NotFoundError, StaleModelError
from keepfit.recipe.patch import shown
from keepfit.recipe.recipe import Recipe
from keepfit.rowlog.row_log import RETRY, Call
from keepfit.rows.free_rows import values_of
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import changes, inbox
from keepfit.store.models import Model

ID = re.compile(r"[0-9]{1,15}-[0-9]{1,16}")
# Dead letters that one call moves or deletes at most, because Redis serves no other client meanwhile.
CALL_ENTRIES_MAX = 128
# Rows larger than this are shown by their number only. The rows of a page are bounded as well.
SHOWN_BYTES_MAX = 64 * 1024
PAGE_BYTES_MAX = 1 << 20
REPEAT_TTL_S = 20
HEAD_BYTES = 16

REASONS = {
    "gone": "There is no such dead letter: it was retried or discarded meanwhile, or named twice.",
    "other": "It belongs to another generation of the model, so its rows may have another meaning; discard it.",
    "lost": "Redis has lost its rows.",
    "full": "The inbox is full; retry it when some pending requests are learned.",
}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter.

    `rows` is the number of its rows, None if Redis lost them, 0 for a change of parameters. `payload` is their msgpack,
    empty if they are large; then `large_key` names the key that holds them.
    """

    id: str
    generation: int
    sequence: int
    reason: str
    timestamp: float
    size_bytes: int
    rows: int | None
    payload: bytes
    large_key: str


@dataclass(frozen=True, slots=True)
class RetryResult:
    """Result of a retry: new sequences in order, reasons why others were not moved, and how many dead letters are left.

    `calls` are the moved requests as calls for the row log, if that was requested.
    """

    version: int
    sequences: list[int]
    refused: dict[str, str]
    left: int
    calls: tuple[Call, ...] = ()


class DeadLetters:
    """Access to the dead letters of all models."""

    def __init__(self, store: redis.asyncio.Redis) -> None:
        self._store = store

    async def page(self, model_hash: str, limit: int, after: str = "") -> tuple[list[DeadLetter], str | None]:
        """Read up to `limit` dead letters, oldest first, and the id to continue after (None at the end).

        A page ends early if its rows would exceed :data:`PAGE_BYTES_MAX`.
        """
        from_ = f"({after}" if after else "-"
        found = await self._read(model_hash, [(from_, "+")], limit, SHOWN_BYTES_MAX)
        if not found:
            return [], None
        more = await self._read(model_hash, [(f"({found[-1].id}", "+")], 1, 0)
        return found, found[-1].id if more else None

    async def retry(
        self, model: Model, settings: Settings, ids: Sequence[str] | None, *, logged: bool = False
    ) -> RetryResult:
        """Move dead letters to the end of the model's inbox, each under a new sequence; the oldest if `ids` is None.

        If `logged`, the result has the calls to write to the row log.

        Raises
        ------
        NotFoundError, StaleModelError
            If the model does not exist (any more).
        InboxFullError
            If the inbox is too full for all of them.
        """
        refused: dict[str, str] = {}
        if ids is None:
            # Dead letters of an earlier model with this hash cannot be moved, and must not block the others.
            bounds = (f"{model.origin}-0", f"{model.generation}")
            entries = await self._read(model.hash, [bounds], CALL_ENTRIES_MAX, 0)
        else:
            entries, refused = await self._named(model.hash, ids)
        if not entries:
            return RetryResult(model.version, [], refused, await self.count(model.hash))
        call = redis_scripts.call(
            "retry",
            [
                redis_keys.state(model.hash),
                redis_keys.inbox(model.hash),
                redis_keys.dead(model.hash),
                redis_keys.idempotency(model.hash, f"r:{uuid.uuid4().hex}"),
                *(entry.large_key or redis_keys.dead(model.hash) for entry in entries),
            ],
            [
                model.generation,
                REPEAT_TTL_S * 1000,
                settings.inbox_entries_max,
                settings.inbox_bytes_max,
                *(entry.id for entry in entries),
            ],
        )
        # Read before they are moved, because workers may learn them right after.
        payloads = await self._payloads(model.hash, entries) if logged else {}
        answer, left, (seconds, micros) = await redis_scripts.run_async(
            self._store, call, ("XLEN", redis_keys.dead(model.hash)), ("TIME",)
        )
        match answer:
            case [b"missing"]:
                raise NotFoundError(f"There is no model {model.hash}.")
            case [b"stale"]:
                raise StaleModelError(f"The model {model.hash} was created again meanwhile.")
        _, version, words, pending, pace = answer
        outcomes = dict(zip([entry.id for entry in entries], words.decode().split(" "), strict=True))
        sequences = [int(word) for word in outcomes.values() if word.isdecimal()]
        if not sequences and "full" in outcomes.values():
            raise inbox.inbox_full(pending, pace)
        refused |= {name: REASONS[word] for name, word in outcomes.items() if not word.isdecimal()}
        at = int(seconds) + int(micros) / 1e6
        calls = tuple(
            _call(model, int(outcomes[entry.id]), at, entry, payloads[entry.id])
            for entry in entries
            if entry.id in payloads and outcomes[entry.id].isdecimal()
        )
        return RetryResult(version, sequences, refused, left, calls)

    async def discard(self, model_hash: str, ids: Sequence[str]) -> tuple[int, int]:
        """Delete dead letters permanently; return their number and the model's version.

        Raises
        ------
        NotFoundError
            If there is no such model.
        """
        entries, _ = await self._named(model_hash, ids)
        call = redis_scripts.call(
            "discard",
            [
                redis_keys.state(model_hash),
                redis_keys.dead(model_hash),
                *(entry.large_key or redis_keys.dead(model_hash) for entry in entries),
            ],
            [*(entry.id for entry in entries)],
        )
        (answer,) = await redis_scripts.run_async(self._store, call)
        if not answer:
            raise NotFoundError(f"There is no model {model_hash}.")
        count, version = answer
        return count, version

    async def find_reason(self, model_hash: str, generation: int, sequence: int) -> tuple[str | None, bool]:
        """Return the reason of a dead letter (None: there is none), and whether any dead letter was ever removed.

        Only if none was removed, a request that is neither pending nor a dead letter was certainly learned.
        """
        name = f"{generation}-{sequence}"
        entries = await self._read(model_hash, [(name, name)], 1, 0)
        (removed,) = await redis_scripts.run_async(self._store, ("HGET", redis_keys.state(model_hash), "removed"))
        return (entries[0].reason if entries else None), removed is not None

    async def count(self, model_hash: str) -> int:
        """Return the number of dead letters of a model."""
        (count,) = await redis_scripts.run_async(self._store, ("XLEN", redis_keys.dead(model_hash)))
        return int(count)

    async def _payloads(self, model_hash: str, entries: Sequence[DeadLetter]) -> dict[str, bytes]:
        """Return the complete payloads of dead letters, by their ids."""
        reads = [
            ("GET", entry.large_key) if entry.large_key else ("XRANGE", redis_keys.dead(model_hash), entry.id, entry.id)
            for entry in entries
        ]
        found: dict[str, bytes] = {}
        for entry, answer in zip(entries, await redis_scripts.run_async(self._store, *reads), strict=True):
            # A dead letter that is missing by now is not moved.
            if answer and entry.large_key:
                found[entry.id] = answer
            elif answer:
                ((_, fields),) = answer
                found[entry.id] = dict(zip(fields[::2], fields[1::2], strict=True))[b"rows"]
        return found

    async def _named(self, model_hash: str, ids: Sequence[str]) -> tuple[list[DeadLetter], dict[str, str]]:
        """Return the dead letters with these ids, and a reason for each id that is missing."""
        unique = list(dict.fromkeys(ids))
        read = await self._read(model_hash, [(name, name) for name in unique], 1, 0)
        # Redis also finds "1-2" under "1-02"; a dead letter that is reported as missing must not be moved.
        found = {entry.id: entry for entry in read if entry.id in unique}
        return list(found.values()), {name: REASONS["gone"] for name in unique if name not in found}

    async def _read(
        self, model_hash: str, ranges: Sequence[tuple[str, str]], limit: int, rows_max: int
    ) -> list[DeadLetter]:
        """Read the dead letters in ranges of ids, up to `limit` of each range."""
        if not ranges:
            return []
        peeks = [
            redis_scripts.call("peek", [redis_keys.dead(model_hash)], [first, last, limit, rows_max, PAGE_BYTES_MAX])
            for first, last in ranges
        ]
        found = [fields for answer in await redis_scripts.run_async(self._store, *peeks) for fields in answer]
        heads = {fields[5]: b"" for fields in found if fields[5]}
        if heads:
            read = await redis_scripts.run_async(self._store, *(("GETRANGE", key, 0, HEAD_BYTES - 1) for key in heads))
            heads = dict(zip(heads, read, strict=True))
        return [_entry(*fields, head=heads.get(fields[5], fields[7])) for fields in found]


def _call(model: Model, sequence: int, at: float, entry: DeadLetter, payload: bytes) -> Call:
    """Return a retried dead letter as a call for the row log, which names the sequence that it had before."""
    digest, name = hashlib.sha256(payload).hexdigest(), f"{RETRY}{entry.sequence}"
    return Call(model.hash, model.origin, sequence, at, digest, name, (payload,))


def _entry(
    name: bytes,
    generation: bytes,
    sequence: bytes,
    reason: bytes,
    at_ms: bytes,
    large_key: bytes,
    size: bytes,
    _: bytes,
    payload: bytes,
    *,
    head: bytes,
) -> DeadLetter:
    return DeadLetter(
        id=name.decode(),
        generation=int(generation),
        sequence=int(sequence),
        reason=reason.decode(),
        timestamp=int(at_ms) / 1000,
        size_bytes=int(size),
        rows=count_rows(head),
        payload=payload,
        large_key=large_key.decode(),
    )


def count_rows(head: bytes) -> int | None:
    """Return the number of rows of a request, with which its msgpack array begins; 0 for a change, which is a map.

    >>> count_rows(Rows(3, bytes(24), []).encode()), count_rows(Rows(70_000, b"", []).encode()[:16]), count_rows(b"")
    (3, 70000, None)
    >>> count_rows(changes.encode({"alpha": 1}))
    0
    """
    if len(head) < 2:
        return None
    if changes.is_change(head):
        return 0
    width = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(head[1], 0)
    return int.from_bytes(head[2 : 2 + width], "big") if width else head[1]


def _decode_rows(recipe: Recipe, rows: Rows) -> list[Any]:
    has_more = len(rows.categories) > len(recipe.layout.non_numeric)
    if has_more and recipe.features is None:
        return [values_of(str(text)) for text in rows.categories[0]]
    # A missing number is NaN, the only number that does not equal itself.
    X: list[Any] = [[None if x != x else x for x in row] for row in rows.number_matrix().tolist()]  # noqa: PLR0124
    for column, words in zip(recipe.layout.non_numeric, rows.categories, strict=False):
        for row, word in zip(X, words, strict=True):
            row.insert(column.row_index, word)
    if has_more:
        names = list(recipe.features or ())
        for i, lacking in enumerate(rows.categories[-1]):
            absent = values_of(str(lacking)) if lacking else ()
            X[i] = {name: X[i][j] for j, name in enumerate(names) if j not in absent} if absent else X[i]
    return X


def _decode_target(recipe: Recipe, rows: Rows) -> list[Any]:
    y: list[Any] = rows.y if isinstance(rows.y, list) else rows.target().tolist()
    if not recipe.entry.multi_output:
        return y
    if recipe.takes_dicts:
        return [values_of(text) for text in y]
    count = len(y) // rows.n
    return [y[i : i + count] for i in range(0, len(y), count)]


def decode_payload(recipe: Recipe, payload: bytes) -> dict[str, Any]:
    """Decode rows as the client sent them: `X`, and `y` and `sample_weight` if present.

    A row is a list in column order, or an object if the recipe names no columns or the row lacks one. A change of
    parameters is decoded as `params`.
    """
    params = changes.params_of(payload)
    if params is not None:
        return {"params": shown(params)}
    rows = Rows.decode(payload)
    X = _decode_rows(recipe, rows)
    weights = rows.weights()
    values: dict[str, Any] = {"X": X}
    if rows.y is not None:
        values["y"] = _decode_target(recipe, rows)
    if weights is not None:
        values["sample_weight"] = weights.tolist()
    return values

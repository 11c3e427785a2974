"""Requests that were put aside: accepted, and not learned because an estimator refused them or workers died of them.

Owns looking at them, moving them back to the inbox and forgetting them (async). Never learns and never drops one by
itself: they were accepted, so they stay until somebody decides. Invariant: what moves or goes is one script, so that a
request is put aside or waits, never both and never neither. Workers put them aside (:mod:`keepfit.store.commit`).
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
from keepfit.recipe.recipe import Recipe
from keepfit.rowlog.row_log import Call
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import inbox
from keepfit.store.models import Model

ID = re.compile(r"[0-9]{1,15}-[0-9]{1,16}")
# What one call may move or forget, because Redis serves nobody else meanwhile.
CALL_MAX = 128
# Rows longer than this are told of by their number; all that a page shows is bounded too.
SHOWN_BYTES_MAX = 64 * 1024
PAGE_BYTES_MAX = 1 << 20
REPEAT_TTL_S = 20
HEAD_BYTES = 16

REASONS = {
    "gone": "It is not there: it was retried or discarded meanwhile, or named twice.",
    "other": "It belongs to another generation of the model, whose rows may mean something else now; discard it.",
    "lost": "Redis has lost its rows.",
    "full": "The inbox is full; retry it when some of it is learned.",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One request that was put aside.

    `rows` counts its rows, None where Redis lost them, 0 of a change of parameters; `payload` is their msgpack, empty
    where they are large; `big` names the key that holds those.
    """

    id: str
    generation: int
    sequence: int
    reason: str
    timestamp: float
    size_bytes: int
    rows: int | None
    payload: bytes
    big: str


@dataclass(frozen=True, slots=True)
class RetryResult:
    """What came of a call to retry: new sequences in order, why others were not moved, and how many are left.

    `calls` are what was moved as the row log holds it, where that was asked for.
    """

    version: int
    sequences: list[int]
    refused: dict[str, str]
    left: int
    calls: tuple[Call, ...] = ()


class DeadLetters:
    """Access to what was put aside of any model."""

    def __init__(self, store: redis.asyncio.Redis) -> None:
        self._store = store

    async def page(self, model_hash: str, limit: int, after: str = "") -> tuple[list[Entry], str | None]:
        """Read up to `limit` entries, oldest first, and the id to go on after (None at the end).

        A page ends early where its rows would be more than :data:`PAGE_BYTES_MAX`.
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
        """Move entries to the end of the model's inbox, each under a new sequence; the oldest ones where `ids` is None.

        Where that is to be `logged`, return what the row log is to hold of it.

        Raises
        ------
        NotFoundError, StaleModelError
            If the model is not (or no longer) there.
        InboxFullError
            If the inbox has no room for any of them.
        """
        refused: dict[str, str] = {}
        if ids is None:
            # Those from before the model's sequences began could not be moved, and shall not stand in the way.
            bounds = (f"{model.origin}-0", f"{model.generation}")
            entries = await self._read(model.hash, [bounds], CALL_MAX, 0)
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
                *(entry.big or redis_keys.dead(model.hash) for entry in entries),
            ],
            [
                model.generation,
                REPEAT_TTL_S * 1000,
                settings.inbox_entries_max,
                settings.inbox_bytes_max,
                *(entry.id for entry in entries),
            ],
        )
        # Read before they are moved: workers may have learned them right after.
        payloads = await self._payloads(model.hash, entries) if logged else {}
        answer, left, (seconds, micros) = await redis_scripts.run_async(
            self._store, call, ("XLEN", redis_keys.dead(model.hash)), ("TIME",)
        )
        match answer:
            case [b"missing"]:
                raise NotFoundError(f"There is no model {model.hash}.")
            case [b"stale"]:
                raise StaleModelError(f"The model {model.hash} was made again meanwhile.")
        _, version, told, waiting, pace = answer
        outcomes = dict(zip([entry.id for entry in entries], told.decode().split(" "), strict=True))
        sequences = [int(word) for word in outcomes.values() if word.isdecimal()]
        if not sequences and "full" in outcomes.values():
            raise inbox.full(waiting, pace)
        refused |= {name: REASONS[word] for name, word in outcomes.items() if not word.isdecimal()}
        at = int(seconds) + int(micros) / 1e6
        calls = tuple(
            Call(model.hash, model.origin, int(outcomes[name]), at, hashlib.sha256(payload).hexdigest(), "", (payload,))
            for name, payload in payloads.items()
            if outcomes[name].isdecimal()
        )
        return RetryResult(version, sequences, refused, left, calls)

    async def discard(self, model_hash: str, ids: Sequence[str]) -> tuple[int, int]:
        """Forget entries for good; return how many there were and the model's version.

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
                *(entry.big or redis_keys.dead(model_hash) for entry in entries),
            ],
            [*(entry.id for entry in entries)],
        )
        (answer,) = await redis_scripts.run_async(self._store, call)
        if not answer:
            raise NotFoundError(f"There is no model {model_hash}.")
        count, version = answer
        return count, version

    async def fate(self, model_hash: str, generation: int, sequence: int) -> tuple[str | None, bool]:
        """Tell why a request of the past was put aside, None if it is not there; and whether any ever left from there.

        Only where none did, a request that is not there and not in the inbox was learned for sure.
        """
        name = f"{generation}-{sequence}"
        entries = await self._read(model_hash, [(name, name)], 1, 0)
        (left,) = await redis_scripts.run_async(self._store, ("HGET", redis_keys.state(model_hash), "removed"))
        return (entries[0].reason if entries else None), left is not None

    async def count(self, model_hash: str) -> int:
        """Count what is put aside of a model."""
        (count,) = await redis_scripts.run_async(self._store, ("XLEN", redis_keys.dead(model_hash)))
        return int(count)

    async def _payloads(self, model_hash: str, entries: Sequence[Entry]) -> dict[str, bytes]:
        """Whole payloads of entries, by their ids."""
        reads = [
            ("GET", entry.big) if entry.big else ("XRANGE", redis_keys.dead(model_hash), entry.id, entry.id)
            for entry in entries
        ]
        found: dict[str, bytes] = {}
        for entry, answer in zip(entries, await redis_scripts.run_async(self._store, *reads), strict=True):
            # What is gone by now will not be moved.
            if answer and entry.big:
                found[entry.id] = answer
            elif answer:
                ((_, fields),) = answer
                found[entry.id] = dict(zip(fields[::2], fields[1::2], strict=True))[b"rows"]
        return found

    async def _named(self, model_hash: str, ids: Sequence[str]) -> tuple[list[Entry], dict[str, str]]:
        """Find entries by their ids, and say of the others that they are gone."""
        wanted = list(dict.fromkeys(ids))
        read = await self._read(model_hash, [(name, name) for name in wanted], 1, 0)
        # Redis finds "1-2" under "1-02" as well; what is called gone must not be moved.
        found = {entry.id: entry for entry in read if entry.id in wanted}
        return list(found.values()), {name: REASONS["gone"] for name in wanted if name not in found}

    async def _read(self, model_hash: str, ranges: Sequence[tuple[str, str]], limit: int, rows_max: int) -> list[Entry]:
        """Read entries of some ranges of ids, up to `limit` of each."""
        if not ranges:
            return []
        peeks = [
            redis_scripts.call("peek", [redis_keys.dead(model_hash)], [first, last, limit, rows_max, PAGE_BYTES_MAX])
            for first, last in ranges
        ]
        found = [fields for answer in await redis_scripts.run_async(self._store, *peeks) for fields in answer]
        heads = {fields[5]: b"" for fields in found if fields[5]}
        if heads:
            read = await redis_scripts.run_async(self._store, *(("GETRANGE", big, 0, HEAD_BYTES - 1) for big in heads))
            heads = dict(zip(heads, read, strict=True))
        return [_entry(*fields, head=heads.get(fields[5], fields[7])) for fields in found]


def _entry(
    name: bytes,
    generation: bytes,
    sequence: bytes,
    reason: bytes,
    at_ms: bytes,
    big: bytes,
    size: bytes,
    _: bytes,
    payload: bytes,
    *,
    head: bytes,
) -> Entry:
    return Entry(
        id=name.decode(),
        generation=int(generation),
        sequence=int(sequence),
        reason=reason.decode(),
        timestamp=int(at_ms) / 1000,
        size_bytes=int(size),
        rows=_count(head),
        payload=payload,
        big=big.decode(),
    )


def _count(head: bytes) -> int | None:
    """Number of rows in the first bytes of their msgpack, which is an array that begins with it; a change is a map.

    >>> _count(Rows(3, bytes(24), []).encode()), _count(Rows(70_000, b"", []).encode()[:16]), _count(b"")
    (3, 70000, None)
    >>> _count(inbox.change("", 1, {"alpha": 1}).payload)
    0
    """
    if len(head) < 2:
        return None
    if inbox.is_change(head):
        return 0
    width = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(head[1], 0)
    return int.from_bytes(head[2 : 2 + width], "big") if width else head[1]


def shown(recipe: Recipe, payload: bytes) -> dict[str, Any]:
    """Decode rows as they came in: `X` as lists in column order, `y` and `sample_weight` where there are any.

    A change of parameters is decoded as `params`.
    """
    params = inbox.change_of(payload)
    if params is not None:
        return {"params": params}
    rows = Rows.decode(payload)
    # A missing number is the only one that is not itself.
    X: list[list[Any]] = [[None if x != x else x for x in row] for row in rows.number_matrix().tolist()]  # noqa: PLR0124
    for column, words in zip(recipe.layout.non_numeric, rows.categories, strict=True):
        for row, word in zip(X, words, strict=True):
            row.insert(column.row_index, word)
    target, weights = rows.target(), rows.weights()
    values: dict[str, Any] = {"X": X}
    if target is not None:
        y = rows.y if isinstance(rows.y, list) else target.tolist()
        count = len(y) // rows.n
        values["y"] = [y[i : i + count] for i in range(0, len(y), count)] if recipe.entry.multi_output else y
    if weights is not None:
        values["sample_weight"] = weights.tolist()
    return values

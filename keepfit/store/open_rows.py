"""Open rows: rows that were predicted under an id, kept until their label comes.

Owns keeping them, their expiry, and the register of how many all models have. Never predicts and never checks a value;
:mod:`keepfit.rows.served` has the form in which row and prediction are stored. Invariant: a row that is answered as
kept is in Redis until its label comes (:mod:`keepfit.store.late_labels`) or its time is over, whatever dies. Rows come
from gateways.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command, ScriptConnection
from keepfit.errors import (
    ConflictError,
    KeepfitError,
    NotFoundError,
    OpenRowsFullError,
    StaleModelError,
    TooLargeError,
)
from keepfit.rows import served
from keepfit.rows.rows import Rows
from keepfit.rows.served import Served
from keepfit.settings import Settings

# Rows of one prediction, and labels of one call: a script serves no other client meanwhile.
CALL_ROWS_MAX = 512
# Size of a row with its prediction, as it is stored.
ROW_BYTES_MAX = 64 * 1024
# Ids of a model whose rows were labelled or have expired, which are remembered.
REMEMBERED_MAX = 100_000
# What `keep_rows` counts for an open row beside its id and content.
ENTRY_BYTES = 200
EXPIRED_PER_CALL, MODELS_PER_CALL = 500, 500
# So long after it was announced a model without open rows is forgotten; no gateway takes so long to keep one.
FORGET_US = 3_600_000_000
EXPIRY_LOCK_MS = 50_000
RETRY_AFTER_S = 60
CONFLICTS = {
    b"open": "another row, or another question, is open under the id {}; use a new id for each row.",
    b"labelled": "the row with the id {} has its label already; use a new id for each row.",
    b"mixed": "the row with the id {} is open already and others of this request are not; repeat a request as it was.",
}


@dataclass(frozen=True, slots=True)
class OpenRow:
    """A row to keep under `id`: what was asked, and the encoded prediction that is served for it."""

    id: str
    asked: bytes
    answered: bytes

    @property
    def size_bytes(self) -> int:
        """What it counts, approximately."""
        return len(self.id.encode()) + len(self.asked) + len(self.answered) + ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class KeepRequest:
    """The rows of one prediction by the model of `generation`."""

    hash: str
    generation: int
    rows: Sequence[OpenRow]


@dataclass(frozen=True, slots=True)
class Count:
    """How many rows a model had open at a moment, for the register."""

    hash: str
    rows: int
    size_bytes: int
    at_us: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """The predictions to serve for the rows of a call; if it is `repeated`, those of the first one."""

    predictions: list[Served]
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class KeepResult:
    """What came back for a :class:`KeepRequest`, and how many rows the model has open if that has changed."""

    outcome: Kept | KeepfitError
    count: Count | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """Open rows of all models, and their bytes."""

    rows: int = 0
    size_bytes: int = 0


def make_rows(ids: Sequence[str], rows: Rows, predictions: Sequence[Served], *, proba: bool) -> list[OpenRow]:
    """Return the rows of a prediction as they are kept; `proba` says whether probabilities were asked for.

    Probabilities that make a row too large are left out if they were not asked for; they matter to the log loss only.

    Raises
    ------
    TooLargeError
        If a row is too large all the same.
    """
    found = []
    for i, (name, prediction) in enumerate(zip(ids, predictions, strict=True)):
        asked = (b"p" if proba else b"-") + served.encode_row(rows, i)
        answered = served.encode([prediction])
        if len(asked) + len(answered) > ROW_BYTES_MAX and not proba:
            answered = served.encode([msgspec.structs.replace(prediction, probabilities=None, classes=None)])
        size = len(asked) + len(answered)
        if size > ROW_BYTES_MAX:
            raise TooLargeError(
                f"Row {i} takes {size} bytes with its prediction; a row that waits for its label may take "
                f"{ROW_BYTES_MAX}. Leave out id, and send the row again with its label."
            )
        found.append(OpenRow(name, asked, answered))
    return found


async def keep(store: ScriptConnection, settings: Settings, requests: Sequence[KeepRequest]) -> list[KeepResult]:
    """Keep the rows of predictions, durably.

    Raises
    ------
    UnavailableError
        If Redis is unavailable; then any of the rows may or may not have been kept.
    """
    hashes = list(dict.fromkeys(request.hash for request in requests))
    announced = [note(Count(h, 0, 0, b""), announce=True) for h in hashes]
    keeps = [_keep_command(settings, request) for request in requests]
    answers = (await store.run(*announced, *keeps))[len(announced) :]
    full = [i for i, answer in enumerate(answers) if answer[0] == b"full"]
    if full:
        # Rows whose time is over may take the space.
        expiries = [_expire_command(settings, h) for h in {requests[i].hash for i in full}]
        again = await store.run(*expiries, *(keeps[i] for i in full))
        for i, answer in zip(full, again[len(expiries) :], strict=True):
            answers[i] = answer
    return [_kept(request, answer) for request, answer in zip(requests, answers, strict=True)]


def _keep_command(settings: Settings, request: KeepRequest) -> Command:
    values = (value for row in request.rows for value in (row.id, row.asked, row.answered))
    return redis_scripts.call(
        "keep_rows",
        [
            redis_keys.state(request.hash),
            redis_keys.open_rows(request.hash),
            redis_keys.open_row_ends(request.hash),
            redis_keys.closed_rows(request.hash),
        ],
        [request.generation, settings.open_rows_ttl_s * 1000, settings.open_rows_bytes_max, *values],
    )


def _kept(request: KeepRequest, answer: list[Any]) -> KeepResult:
    match answer:
        case [b"kept", int(rows), int(size), at_us]:
            predictions = [_prediction(row.answered) for row in request.rows]
            return KeepResult(Kept(predictions), Count(request.hash, rows, size, at_us))
        case [b"repeated", answered]:
            return KeepResult(_repeated([_prediction(data) for data in answered]))
        case [b"full", int(rows), int(size)]:
            return KeepResult(full(f"{rows} rows of the model wait for their labels, in {size} bytes"))
        case [b"missing"]:
            return KeepResult(NotFoundError(f"There is no model {request.hash}."))
        case [b"stale"]:
            return KeepResult(StaleModelError(f"The model {request.hash} was created again meanwhile."))
        case [word, name]:
            reason = CONFLICTS[word].format(repr(name.decode()))
            return KeepResult(ConflictError(f"Nothing was kept: {reason}"))
    raise AssertionError(answer)


def _repeated(predictions: list[Served]) -> Kept | ConflictError:
    # An answer names one version, and has the classes of one.
    if len({prediction.version for prediction in predictions}) > 1:
        return ConflictError("The rows with these ids were predicted by several versions; repeat a request as it was.")
    return Kept(predictions, repeated=True)


def _prediction(data: bytes) -> Served:
    (prediction,) = _decode_served(data)
    return prediction


_decode_served = msgspec.msgpack.Decoder(list[Served]).decode


def full(what: str) -> OpenRowsFullError:
    """Return the error of a limit of open rows; `what` says which."""
    return OpenRowsFullError(
        f"No more rows can be kept: {what}. Send labels, or predict without id.", retry_after_s=RETRY_AFTER_S
    )


def note(count: Count, *, announce: bool = False) -> Command:
    """Return the command that notes how many rows a model has open, or announces that it will have some."""
    rows: int | str = "" if announce else count.rows
    return redis_scripts.call(
        "note_rows", [redis_keys.OPEN_ROWS], [count.hash, rows, count.size_bytes, count.at_us, FORGET_US]
    )


async def note_counts(store: ScriptConnection, counts: Iterable[Count]) -> Total | None:
    """Note the newest counts of models; return those of all models, None if nothing was noted."""
    newest = {count.hash: count for count in counts}
    if not newest:
        return None
    *_, (rows, size) = await store.run(*map(note, newest.values()))
    return Total(rows, size)


async def total(store: redis.asyncio.Redis | ScriptConnection) -> Total:
    """Return how many rows all models have open, as far as it is noted."""
    command = ("HMGET", redis_keys.OPEN_ROWS, "rows", "bytes")
    run = store.run if isinstance(store, ScriptConnection) else _run(store)
    ((rows, size),) = await run(command)
    return Total(int(rows or 0), int(size or 0))


def _run(client: redis.asyncio.Redis) -> Any:
    return lambda *commands: redis_scripts.run_async(client, *commands)


def _expire_command(settings: Settings, model_hash: str) -> Command:
    return redis_scripts.call(
        "expire_rows",
        [
            redis_keys.state(model_hash),
            redis_keys.open_rows(model_hash),
            redis_keys.open_row_ends(model_hash),
            redis_keys.closed_rows(model_hash),
        ],
        [EXPIRED_PER_CALL, settings.open_rows_ttl_s * 1000, REMEMBERED_MAX],
    )


async def expire(client: redis.asyncio.Redis, settings: Settings) -> int:
    """Delete the open rows of all models whose time is over, and note the counts; return how many rows are left.

    One gateway does so at a time; returns -1 if another one does.

    Raises
    ------
    UnavailableError
        If Redis is unavailable.
    """
    (begun,) = await redis_scripts.run_async(client, ("SET", redis_keys.EXPIRING, "1", "NX", "PX", EXPIRY_LOCK_MS))
    if not begun:
        return -1
    (names,) = await redis_scripts.run_async(client, ("HKEYS", redis_keys.OPEN_ROWS))
    hashes = [name.decode() for name in names if name not in (b"rows", b"bytes")]
    for begin in range(0, len(hashes), MODELS_PER_CALL):
        some = hashes[begin : begin + MODELS_PER_CALL]
        while some:
            answers = await redis_scripts.run_async(client, *(_expire_command(settings, h) for h in some))
            counts = [Count(h, *answer[:3]) for h, answer in zip(some, answers, strict=True)]
            await redis_scripts.run_async(client, *map(note, counts))
            some = [h for h, answer in zip(some, answers, strict=True) if answer[3]]
    return (await total(client)).rows

"""The inbox: where a model's learning requests wait, accepted for good, until a worker has learned them.

Owns putting requests in, one trip for many of them: rows, and changes of parameters in their place between rows. Never
looks at their content; :mod:`keepfit.rows.shaping` and :mod:`keepfit.model.parameters` have checked it.
Invariant: a request answered with a sequence is in Redis and will be learned once, in the order of its sequence, also
where the trip had to be made twice. Requests come from the gateway; :mod:`keepfit.store.commit` takes them out.
"""

import asyncio
import hashlib
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command, ScriptConnection
from keepfit.errors import (
    IdempotencyError,
    InboxFullError,
    InvalidError,
    KeepfitError,
    NotFoundError,
    StaleModelError,
    UnavailableError,
)
from keepfit.observability import failpoints, request_id
from keepfit.rowlog.row_log import Call
from keepfit.rows.rows import Rows
from keepfit.settings import Settings

# What one call of the script may carry, because Redis serves nobody else meanwhile: a larger request is written ahead,
# piece by piece, and named in the call. That it was written outlives a slow client; nobody needs it for longer.
CALL_BYTES_MAX = 256 * 1024
CALL_REQUESTS_MAX = 512
BIG_TTL_MS = 600_000
# A call without a client's key only has to know its own repeats.
MINTED_KEY_TTL_S = 20
RETRY_AFTER_S_MAX = 60
MOVED = "The model was restored, deleted or made again while this was accepted; send it again."
# What no rows are: the width of a change.
NO_WIDTH = 0


@dataclass(frozen=True, slots=True)
class Learn:
    """One request to learn, shaped for the model at `generation`; make one with :func:`request`.

    `payload` is the rows' msgpack, or a digest of it where the rows are written ahead as `big`, of `big_bytes`; `key`
    the client's Idempotency-Key, `request` the id that it gave the request. The latter goes with the rows, for whoever
    logs what became of them (large rows go without), and is no part of what makes two requests the same. A `width` of
    :data:`NO_WIDTH` is that of a change of parameters, see :func:`change`. `whole` are the rows of a large request
    that is to be logged.
    """

    hash: str
    generation: int
    width: int
    payload: bytes
    key: str | None = None
    big: str = ""
    big_bytes: int = 0
    request: str = ""
    whole: bytes = b""

    @property
    def stored(self) -> bytes:
        """What the inbox holds of it, of a large request too."""
        return self.whole or self.sent

    @property
    def sent(self) -> bytes:
        """What the call of the script carries."""
        return _named(self) if self.request else self.payload


@dataclass(frozen=True, slots=True)
class Accepted:
    """Answer to an accepted request."""

    sequence: int
    version: int


Outcome = Accepted | KeepfitError


def small_request(model_hash: str, generation: int, rows: Rows, key: str | None = None) -> Learn | None:
    """Make a request of `rows`; None if they are too many for one call."""
    if not rows.fits(CALL_BYTES_MAX):
        return None
    return Learn(model_hash, generation, rows.width, rows.encode(), key, request=request_id.sent.get())


async def request(
    store: redis.asyncio.Redis,
    model_hash: str,
    generation: int,
    rows: Rows,
    key: str | None = None,
    *,
    logged: bool = False,
) -> Learn:
    """Make a request of `rows`, which are not needed any more then; large ones are written ahead, in pieces.

    Where it is to be `logged` it holds them all the same.

    Raises
    ------
    UnavailableError
        If they should be, and Redis is unavailable.
    """
    small = small_request(model_hash, generation, rows, key)
    if small is not None:
        return small
    big = redis_keys.big(model_hash, uuid.uuid4().hex)
    digest = await write_in_pieces(store, big, rows, BIG_TTL_MS)
    failpoints.reach("accept.written_ahead")
    whole = await asyncio.to_thread(rows.encode) if logged else b""
    return Learn(model_hash, generation, rows.width, digest.encode(), key, big, rows.size_bytes, whole=whole)


def change(model_hash: str, generation: int, params: Mapping[str, Any], key: str | None = None) -> Learn:
    """Make a request to change parameters: a map in msgpack where rows are an array.

    Raises
    ------
    InvalidError
        If it is too large for one call.
    """
    payload = msgspec.msgpack.encode({"params": params})
    if len(payload) > CALL_BYTES_MAX:
        raise InvalidError(f"These parameters take {len(payload)} bytes, more than {CALL_BYTES_MAX}.")
    return Learn(model_hash, generation, NO_WIDTH, payload, key, request=request_id.sent.get())


def change_of(payload: bytes) -> dict[str, Any] | None:
    """Parameters that a waiting request changes; None if it is rows, or the digest of rows.

    >>> change_of(change("", 1, {"alpha": 0.5}).payload), change_of(Rows(1, bytes(8), []).encode())
    ({'alpha': 0.5}, None)
    """
    if not is_change(payload):
        return None
    params: dict[str, Any] = msgspec.msgpack.decode(payload)["params"]
    return params


def is_change(payload: bytes) -> bool:
    """Whether a waiting request, of which the first byte will do, is a change of parameters."""
    return payload[:1] in (b"\x81", b"\x82")


async def write_in_pieces(client: redis.asyncio.Redis, key: str, rows: Rows, ttl_ms: int) -> str:
    """Write the msgpack of `rows` to `key`, so that Redis serves others in between; return its SHA-256 (hex)."""
    digest, offset = hashlib.sha256(), 0
    for piece in rows.pieces():
        digest.update(piece)
        # To a place and not to the end: a trip may be made twice.
        await redis_scripts.run_async(client, ("SETRANGE", key, offset, piece), ("PEXPIRE", key, ttl_ms))
        offset += len(piece)
    return digest.hexdigest()


async def put(
    store: ScriptConnection, settings: Settings, requests: Sequence[Learn]
) -> tuple[list[Outcome], list[str]]:
    """Put requests into their models' inboxes; those of one model without a key in the order given.

    Returns an outcome for each, and the hashes of models that somebody must be told of, because nobody learns them
    just now.

    Raises
    ------
    UnavailableError
        If Redis is unavailable; then any of the requests may or may not have been accepted.
    """
    calls = _calls(requests)
    answers = await store.run(*(_command(settings, [requests[i] for i in call]) for call in calls))
    return _told(requests, calls, answers)


async def put_to_log(
    store: ScriptConnection, settings: Settings, requests: Sequence[Learn]
) -> tuple[list[Outcome], list[str], list[tuple[Call, list[int]]]]:
    """Do what :func:`put` does; return also what is to be logged, beside each call the requests accepted by it.

    Those are named by their positions. The calls' time is Redis', asked for in the same trip.
    """
    calls = _calls(requests)
    commands = (_command(settings, [requests[i] for i in call]) for call in calls)
    *answers, (seconds, micros) = await store.run(*commands, ("TIME",))
    at = int(seconds) + int(micros) / 1e6
    logged: list[tuple[Call, list[int]]] = []
    for call, answer in zip(calls, answers, strict=True):
        if answer[0] == b"ok" and answer[2]:
            members = [requests[i] for i in call]
            taken = members[: answer[2]]
            first, name = members[0], "" if members[0].key is None else f"c:{members[0].key}"
            payloads = tuple(asked.stored for asked in taken)
            entry = Call(first.hash, answer[7], answer[1], at, _digest(members), name, payloads)
            logged.append((entry, call[: len(taken)]))
    return *_told(requests, calls, answers), logged


async def changed_since(store: ScriptConnection, calls: Sequence[Call]) -> list[KeepfitError | None]:
    """Tell of each call, which was accepted and written to the log, why it may not stand in the inbox all the same.

    None where it does, or was learned; UnavailableError where its model went meanwhile. A restore that then brings it
    back may have read the log before the call was in it.
    """
    hashes = list({call.hash for call in calls})
    found = await store.run(*(("HMGET", redis_keys.state(h), "generation", "origin", "accepted") for h in hashes))
    states = dict(zip(hashes, found, strict=True))
    outcomes: list[KeepfitError | None] = []
    for call in calls:
        generation, origin, accepted = states[call.hash]
        same = generation is not None and int(origin or generation) == call.origin and int(accepted) >= call.last
        outcomes.append(None if same else UnavailableError(MOVED))
    return outcomes


def _told(
    requests: Sequence[Learn], calls: Sequence[list[int]], answers: Sequence[list[Any]]
) -> tuple[list[Outcome], list[str]]:
    outcomes: dict[int, Outcome] = {}
    alone = set()
    for call, answer in zip(calls, answers, strict=True):
        outcomes.update(zip(call, _outcomes(requests[call[0]], len(call), answer), strict=True))
        if answer[0] == b"ok" and answer[4]:
            alone.add(requests[call[0]].hash)
    return [outcomes[i] for i in range(len(requests))], sorted(alone)


def _calls(requests: Sequence[Learn]) -> list[list[int]]:
    """Group requests, named by their positions, that one call can take: of one model, small, without a key."""
    calls: list[list[int]] = []
    open_calls: dict[tuple[str, int, int], tuple[list[int], int]] = {}
    for position, asked in enumerate(requests):
        # What comes after a change stays after it, and what comes before it before.
        if asked.width == NO_WIDTH:
            open_calls = {g: call for g, call in open_calls.items() if g[0] != asked.hash or g[2] == NO_WIDTH}
        else:
            open_calls.pop((asked.hash, asked.generation, NO_WIDTH), None)
        if asked.key is not None or asked.big:
            calls.append([position])
            continue
        group = (asked.hash, asked.generation, asked.width)
        members, room = open_calls.get(group, ([], 0))
        room -= len(asked.payload)
        if room < 0 or len(members) >= CALL_REQUESTS_MAX:
            members, room = [], CALL_BYTES_MAX - len(asked.payload)
            calls.append(members)
        members.append(position)
        open_calls[group] = members, room
    return calls


def _command(settings: Settings, requests: Sequence[Learn]) -> Command:
    """Call of the script that accepts requests of one model together."""
    first = requests[0]
    name, ttl_s = f"g:{uuid.uuid4().hex}", MINTED_KEY_TTL_S
    if first.key is not None:
        name, ttl_s = f"c:{first.key}", settings.idempotency_ttl_s
    return redis_scripts.call(
        "accept",
        [
            redis_keys.state(first.hash),
            redis_keys.inbox(first.hash),
            redis_keys.idempotency(first.hash, name),
            redis_keys.lock(first.hash),
            first.big or redis_keys.inbox(first.hash),
        ],
        [
            first.generation,
            _digest(requests),
            first.width,
            ttl_s * 1000,
            settings.inbox_entries_max,
            settings.inbox_bytes_max,
            first.big_bytes,
            *(asked.sent for asked in requests),
        ],
    )


def _digest(requests: Sequence[Learn]) -> str:
    """What tells a repeat of a call from another one under the same key."""
    return hashlib.sha256(b"".join([asked.payload for asked in requests])).hexdigest()


def _named(asked: Learn) -> bytes:
    """Payload with the request's id as one more element of its array or map, which its readers do not look at."""
    name = msgspec.msgpack.encode("request") if is_change(asked.payload) else b""
    return bytes((asked.payload[0] + 1,)) + asked.payload[1:] + name + msgspec.msgpack.encode(asked.request)


def request_of(payload: bytes) -> str:
    """Id of the request that came with this payload; "" if it had none, or if there is no telling."""
    try:
        decoded = msgspec.msgpack.decode(payload)
        *_, last = decoded.values() if isinstance(decoded, dict) else decoded
    except (msgspec.DecodeError, TypeError, ValueError):
        return ""
    return last if isinstance(last, str) else ""


def _outcomes(first: Learn, count: int, answer: list[Any]) -> list[Outcome]:
    """Read the script's answer: an outcome for each of the `count` requests of a call that begins with `first`."""
    match answer:
        case [b"ok", int(sequence), int(accepted), int(version), _, int(waiting), int(pace), _]:
            taken: list[Outcome] = [Accepted(sequence + i, version) for i in range(accepted)]
            return taken + [full(waiting, pace)] * (count - accepted)
        case [b"missing"]:
            error: KeepfitError = NotFoundError(f"There is no model {first.hash}.")
        case [b"stale"]:
            error = StaleModelError(f"The model {first.hash} was made again meanwhile.")
        case [b"conflict"]:
            error = IdempotencyError("This Idempotency-Key came before with another body; use a new key for new rows.")
        case [b"lost"]:
            error = UnavailableError("Redis lost rows that were just written; is it out of memory?")
        case [b"width", width]:
            error = InvalidError(f"The rows have {first.width} values where the model has {int(width)}.")
        case _:
            raise AssertionError(answer)
    return [error] * count


def full(waiting: int, pace: int) -> InboxFullError:
    """Tell to come again when half of what waits is learned; as often as new work comes, that leaves room for it."""
    seconds = math.ceil(waiting / 2 / pace) if pace else 1
    return InboxFullError(
        f"{waiting} requests wait to be learned by this model; send more when some are.",
        min(max(seconds, 1), RETRY_AFTER_S_MAX),
    )

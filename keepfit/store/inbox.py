"""The inbox: the pending learning requests of a model, in order, until a worker has learned them.

Owns accepting requests, many of them in one round trip: rows, and changes of parameters at their place between rows.
Never checks their content; :mod:`keepfit.rows.shaping` and :mod:`keepfit.model.parameters` have checked it.
Invariant: a request that is answered with a sequence is in Redis and is learned once, in the order of its sequence,
even if the round trip had to be repeated. Requests come from the gateway; :mod:`keepfit.store.commit` claims them.
"""

import asyncio
import hashlib
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from keepfit.recipe import uploads
from keepfit.recipe.patch import OBJECT
from keepfit.recipe.recipe import Recipe
from keepfit.rowlog.row_log import Call
from keepfit.rows import acceptance
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import changes, first_answers, staging

# Bounds of one script call, because Redis serves no other client meanwhile. The rows of a larger request are staged
# under a key that the call names: they outlive a slow client, and expire if their gateway dies.
CALL_BYTES_MAX = 256 * 1024
CALL_REQUESTS_MAX = 512
STAGED_TTL_MS = 600_000
RETRY_AFTER_S_MAX = 60
REPLACED = "The model was restored, deleted or created again while the request was accepted; send it again."
# A change of parameters has no rows, and rows by the recipe's columns need none: nothing is compared.
NO_WIDTH = 0
# A change with an object of the largest size is one call, as the creation of a model with that object is.
CODE_BYTES_MAX = 4 * uploads.BYTES_MAX // 3 + 1024
# The key of the client's request id in the map of a change.
CHANGE_ID = msgspec.msgpack.encode("request")


@dataclass(frozen=True, slots=True)
class LearnRequest:
    """One learning request, shaped for the model of `generation`; see :func:`make_request` and :func:`make_change`.

    `payload` is the rows' msgpack; for a large request it is the SHA-256 of the rows, which are staged under
    `large_key` and have `large_bytes`. `key` is the client's Idempotency-Key. `request_id` is the id that the client
    gave the request, `accepted_s` when it was made (0.0: not known): they are stored with the rows
    (:mod:`keepfit.rows.acceptance`), and are ignored when two requests are compared. `width` is that of
    :func:`width_of`, :data:`NO_WIDTH` for a change of parameters. `large_payload` holds the rows of a large request
    that is written to the row log.
    """

    hash: str
    generation: int
    width: int
    payload: bytes
    key: str | None = None
    large_key: str = ""
    large_bytes: int = 0
    request_id: str = ""
    large_payload: bytes = b""
    accepted_s: float = 0.0

    @property
    def logged_payload(self) -> bytes:
        """Payload for the row log, with the rows of a large request."""
        return self.large_payload or self.script_payload

    @property
    def script_payload(self) -> bytes:
        """Payload for the script's arguments."""
        if self.large_key or not (self.request_id or self.accepted_s):
            return self.payload
        if changes.is_change(self.payload):
            return acceptance.append(self.payload, CHANGE_ID + msgspec.msgpack.encode(self.request_id))
        return acceptance.append(self.payload, acceptance.encode(self.accepted_s, self.request_id))


@dataclass(frozen=True, slots=True)
class Accepted:
    """Answer to an accepted request; `origin` is the generation in which the sequences of the model began."""

    sequence: int
    version: int
    origin: int = field(default=0, compare=False)


Outcome = Accepted | KeepfitError


def width_of(recipe: Recipe, rows: Rows) -> int:
    """Return the width of `rows` that all rows of the model must have.

    It is :data:`NO_WIDTH` where the recipe names the columns: rows were checked against it, and may lack some.
    """
    return rows.width if recipe.features is None else NO_WIDTH


def make_small_request(
    model_hash: str, generation: int, rows: Rows, key: str | None = None, *, width: int | None = None
) -> LearnRequest | None:
    """Return a request with `rows`; None if they exceed the size of one call.

    `width` is that of :func:`width_of`; by default it is that of `rows`.
    """
    if not rows.fits(CALL_BYTES_MAX):
        return None
    width = rows.width if width is None else width
    sent, now_s = request_id.sent.get(), acceptance.now_s()
    return LearnRequest(model_hash, generation, width, rows.encode(), key, request_id=sent, accepted_s=now_s)


async def make_request(
    store: redis.asyncio.Redis,
    model_hash: str,
    generation: int,
    rows: Rows,
    key: str | None = None,
    *,
    width: int | None = None,
    logged: bool = False,
    bytes_max: int | None = None,
    digest: str = "",
) -> LearnRequest:
    """Return a request with `rows`, and stage the rows if they are large; `width` as in :func:`make_small_request`.

    Staged rows are no longer in memory, unless the request is to be `logged`. `digest` is that of the rows if it is
    known. Call :func:`keepfit.store.staging.unstage` when the request was accepted or refused.

    Raises
    ------
    TooLargeError
        If the rows have more than `bytes_max` or :data:`~keepfit.rows.rows.BYTES_MAX` bytes.
    UnavailableError
        If the rows are large and Redis is unavailable.
    """
    small = make_small_request(model_hash, generation, rows, key, width=width)
    if small is not None:
        return small
    large_key = redis_keys.large_rows(model_hash, uuid.uuid4().hex)
    element = acceptance.encode(acceptance.now_s(), request_id.sent.get())
    try:
        digest = await staging.write_in_pieces(store, large_key, rows, STAGED_TTL_MS, bytes_max, digest, element)
        failpoints.reach("accept.written_ahead")
        large_payload = await asyncio.to_thread(b"".join, acceptance.pieces(rows, element)) if logged else b""
        return LearnRequest(
            model_hash,
            generation,
            rows.width if width is None else width,
            digest.encode(),
            key,
            large_key,
            rows.size_bytes + len(element),
            large_payload=large_payload,
        )
    except BaseException:
        await staging.unstage(store, large_key)
        raise


async def ask(
    store: redis.asyncio.Redis,
    settings: Settings,
    model_hash: str,
    generation: int,
    rows: Rows,
    key: str | None,
    *,
    width: int,
    digest: str,
) -> Accepted | None:
    """Ask whether a large request would be accepted, so that rows that would be refused are not written to Redis.

    `digest` is that of the rows, which matters with a `key` only. Returns None if it would be accepted, or the answer
    to an earlier call with the same key and rows.

    Raises
    ------
    KeepfitError
        The reason for which it would be refused, as :func:`accept` returns it.
    """
    question = redis_keys.inbox(model_hash)
    request = LearnRequest(model_hash, generation, width, digest.encode(), key, question, rows.size_bytes)
    (answer,) = await redis_scripts.run_async(store, _accept_command(settings, [request]))
    if answer[0] == b"fits":
        return None
    (outcome,) = _outcomes(request, 1, answer)
    if isinstance(outcome, KeepfitError):
        raise outcome
    return outcome


def make_change(model_hash: str, generation: int, params: Mapping[str, Any], key: str | None = None) -> LearnRequest:
    """Return a request that changes parameters or code.

    Raises
    ------
    InvalidError
        If it exceeds the size of one call.
    """
    payload = changes.encode(params)
    bytes_max = CALL_BYTES_MAX if OBJECT not in params else CODE_BYTES_MAX
    if len(payload) > bytes_max:
        raise InvalidError(f"The change has {len(payload)} bytes; at most {bytes_max} are allowed.")
    return LearnRequest(model_hash, generation, NO_WIDTH, payload, key, request_id=request_id.sent.get())


async def accept(
    store: ScriptConnection, settings: Settings, requests: Sequence[LearnRequest]
) -> tuple[list[Outcome], list[str]]:
    """Add requests to the inboxes of their models; requests of one model without a key keep their order.

    Returns the outcome of each, and the hashes of the models to enqueue, because no worker has them locked.

    Raises
    ------
    UnavailableError
        If Redis is unavailable; then any of the requests may or may not have been accepted.
    """
    calls = _group_into_calls(requests)
    answers = await store.run(*(_accept_command(settings, [requests[i] for i in call]) for call in calls))
    return _read_answers(requests, calls, answers)


async def accept_logged(
    store: ScriptConnection, settings: Settings, requests: Sequence[LearnRequest]
) -> tuple[list[Outcome], list[str], list[tuple[Call, list[int]]]]:
    """Do what :func:`accept` does; also return the calls to log, each with the positions of its accepted requests.

    The time of the calls is that of Redis, read in the same round trip.
    """
    calls = _group_into_calls(requests)
    commands = (_accept_command(settings, [requests[i] for i in call]) for call in calls)
    *answers, (seconds, micros) = await store.run(*commands, ("TIME",))
    at = int(seconds) + int(micros) / 1e6
    logged: list[tuple[Call, list[int]]] = []
    for call, answer in zip(calls, answers, strict=True):
        if answer[0] == b"ok" and answer[2]:
            members = [requests[i] for i in call]
            accepted = members[: answer[2]]
            first, name = members[0], "" if members[0].key is None else f"c:{members[0].key}"
            payloads = tuple(request.logged_payload for request in accepted)
            entry = Call(first.hash, answer[7], answer[1], at, _digest(members), name, payloads)
            logged.append((entry, call[: len(accepted)]))
    return *_read_answers(requests, calls, answers), logged


async def verify_accepted(store: ScriptConnection, calls: Sequence[Call]) -> list[KeepfitError | None]:
    """Check, for calls that are accepted and written to the row log, that their models were not replaced meanwhile.

    Returns None for a call whose requests are in the inbox or learned, UnavailableError for a call whose model was
    replaced: a restore that brought the model back may have read the row log before the call was in it.
    """
    hashes = list({call.hash for call in calls})
    found = await store.run(*(("HMGET", redis_keys.state(h), "generation", "origin", "accepted") for h in hashes))
    states = dict(zip(hashes, found, strict=True))
    errors: list[KeepfitError | None] = []
    for call in calls:
        generation, origin, accepted = states[call.hash]
        same = generation is not None and int(origin or generation) == call.origin and int(accepted) >= call.last
        errors.append(None if same else UnavailableError(REPLACED))
    return errors


def _read_answers(
    requests: Sequence[LearnRequest], calls: Sequence[list[int]], answers: Sequence[list[Any]]
) -> tuple[list[Outcome], list[str]]:
    outcomes: dict[int, Outcome] = {}
    unlocked = set()
    for call, answer in zip(calls, answers, strict=True):
        outcomes.update(zip(call, _outcomes(requests[call[0]], len(call), answer), strict=True))
        if answer[0] == b"ok" and answer[4]:
            unlocked.add(requests[call[0]].hash)
    return [outcomes[i] for i in range(len(requests))], sorted(unlocked)


def _group_into_calls(requests: Sequence[LearnRequest]) -> list[list[int]]:
    """Group the positions of requests that one call can accept: of one model, small, without a key."""
    calls: list[list[int]] = []
    open_calls: dict[tuple[str, int, int], tuple[list[int], int]] = {}
    for position, request in enumerate(requests):
        # A change keeps its place: rows before it stay before it, rows after it stay after it.
        if request.width == NO_WIDTH:
            open_calls = {g: call for g, call in open_calls.items() if g[0] != request.hash or g[2] == NO_WIDTH}
        else:
            open_calls.pop((request.hash, request.generation, NO_WIDTH), None)
        if request.key is not None or request.large_key:
            calls.append([position])
            continue
        group = (request.hash, request.generation, request.width)
        members, bytes_left = open_calls.get(group, ([], 0))
        bytes_left -= len(request.payload)
        if bytes_left < 0 or len(members) >= CALL_REQUESTS_MAX:
            members, bytes_left = [], CALL_BYTES_MAX - len(request.payload)
            calls.append(members)
        members.append(position)
        open_calls[group] = members, bytes_left
    return calls


def _accept_command(settings: Settings, requests: Sequence[LearnRequest]) -> Command:
    """Return the call of the script that accepts requests of one model together."""
    first = requests[0]
    place = first_answers.place_of(settings, first.hash, first.key)
    return redis_scripts.call(
        "accept",
        [
            redis_keys.state(first.hash),
            redis_keys.inbox(first.hash),
            place.key,
            redis_keys.lock(first.hash),
            first.large_key or redis_keys.inbox(first.hash),
            place.new,
            place.old,
        ],
        [
            first.generation,
            _digest(requests),
            first.width,
            place.ttl_s * 1000,
            settings.inbox_entries_max,
            settings.inbox_bytes_max,
            first.large_bytes,
            place.name,
            place.entries_max,
            *(request.script_payload for request in requests),
        ],
    )


def _digest(requests: Sequence[LearnRequest]) -> str:
    """Return the digest that distinguishes a repeated call from another call with the same key."""
    return hashlib.sha256(b"".join([request.payload for request in requests])).hexdigest()


def _outcomes(first: LearnRequest, count: int, answer: list[Any]) -> list[Outcome]:
    """Return the outcome of each of the `count` requests of a call that begins with `first`, by the script's answer."""
    match answer:
        case [b"ok", int(sequence), int(accepted), int(version), _, int(pending), int(pace), int(origin)]:
            outcomes: list[Outcome] = [Accepted(sequence + i, version, origin) for i in range(accepted)]
            return outcomes + [inbox_full(pending, pace)] * (count - accepted)
        case [b"missing"]:
            error: KeepfitError = NotFoundError(f"There is no model {first.hash}.")
        case [b"stale"]:
            error = StaleModelError(f"The model {first.hash} was created again meanwhile.")
        case [b"conflict"]:
            error = IdempotencyError("The Idempotency-Key was used with another body; use a new key for new rows.")
        case [b"lost"]:
            error = UnavailableError("Redis has lost rows that were just written; it may be out of memory.")
        case [b"width", width]:
            error = InvalidError(f"The rows have {first.width} values where the model has {int(width)}.")
        case _:
            raise AssertionError(answer)
    return [error] * count


def inbox_full(pending: int, pace: int) -> InboxFullError:
    """Return the error of a full inbox.

    Its Retry-After is the time in which half of the `pending` requests are learned at `pace` (requests per second): a
    client that waits that long finds space.
    """
    seconds = math.ceil(pending / 2 / pace) if pace else 1
    return InboxFullError(
        f"The inbox of the model is full: {pending} requests are pending. Send more when some of them are learned.",
        min(max(seconds, 1), RETRY_AFTER_S_MAX),
    )

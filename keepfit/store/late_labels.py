"""Late labels: joined with the open rows that they belong to, and added to the inbox.

Owns the script `label_rows` and its answer. Never checks a label; :func:`keepfit.rows.served.encode_labels` does.
Invariant: a row is open, or in the inbox with its label, never both and never neither, whatever dies; one script on the
keys of the model decides. Labels come from gateways; :mod:`keepfit.store.commit` claims the requests that they become.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command, ScriptConnection
from keepfit.errors import IdempotencyError, KeepfitError, NotFoundError, StaleModelError, UnavailableError
from keepfit.rowlog.row_log import Call
from keepfit.rows import acceptance, served
from keepfit.settings import Settings
from keepfit.store import first_answers, inbox, open_rows
from keepfit.store.open_rows import Count

# Bytes of the rows that one call joins with their labels.
CALL_BYTES_MAX = 2**20
UNLOGGED = (
    "The labels are accepted, but the row log may lack some of them, and no snapshot contains them yet; send them "
    "again with the same Idempotency-Key."
)
REASONS = {
    "u": ("unknown", "No row is open under this id, and none was lately."),
    "e": ("expired", "The row has expired: its label came too late. Send the row with its label to partial_fit."),
    "l": ("labelled", "The row was labelled before."),
    "f": ("full", "It does not fit into this call or into the inbox; send it again."),
}


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """Labels of one call: ids, and as :func:`encode_labels` returns them targets with weights.

    `key` is the client's Idempotency-Key, `request_id` the id of its HTTP request, `accepted_s` its time (0.0: not
    known).
    """

    hash: str
    generation: int
    ids: Sequence[str]
    labels: Sequence[bytes]
    key: str | None = None
    request_id: str = ""
    accepted_s: float = 0.0

    @property
    def digest(self) -> str:
        """What distinguishes a repeated call from another one with the same key."""
        return hashlib.sha256(served.encode([*zip(self.ids, self.labels, strict=True)])).hexdigest()


@dataclass(frozen=True, slots=True)
class Labelled:
    """Answer to labels: the first sequence and number of those that were accepted, and a letter for each of the call.

    The letters are those of the script ``label_rows``.
    """

    first: int
    accepted: int
    version: int
    outcomes: str


@dataclass(frozen=True, slots=True)
class LabelResult:
    """What came back for a :class:`LabelRequest`; `call` is to be written to the row log, if that was asked for.

    `is_unlocked` says that no worker has the model locked, so it must be enqueued.
    """

    outcome: Labelled | KeepfitError
    is_unlocked: bool = False
    count: Count | None = None
    call: Call | None = None


async def label(
    store: ScriptConnection, settings: Settings, requests: Sequence[LabelRequest], *, logged: bool = False
) -> list[LabelResult]:
    """Join open rows with their labels and add them to the inboxes, each as a request of one row.

    If `logged`, the results have the calls for the row log, with the time of Redis.

    Raises
    ------
    UnavailableError
        If Redis is unavailable; then any of the labels may or may not have been accepted.
    """
    commands = [_label_command(settings, request, logged=logged) for request in requests]
    answers = await store.run(*commands)
    return [_labelled(request, answer) for request, answer in zip(requests, answers, strict=True)]


def _label_command(settings: Settings, request: LabelRequest, *, logged: bool) -> Command:
    place = first_answers.place_of(settings, request.hash, request.key)
    return redis_scripts.call(
        "label_rows",
        [
            redis_keys.state(request.hash),
            redis_keys.inbox(request.hash),
            place.key,
            redis_keys.lock(request.hash),
            redis_keys.open_rows(request.hash),
            redis_keys.open_row_ends(request.hash),
            redis_keys.closed_rows(request.hash),
            place.new,
            place.old,
        ],
        [
            request.generation,
            request.digest,
            place.ttl_s * 1000,
            settings.inbox_entries_max,
            settings.inbox_bytes_max,
            place.name,
            settings.idempotency_entries_max // 2,
            settings.open_rows_ttl_s * 1000,
            open_rows.REMEMBERED_MAX,
            CALL_BYTES_MAX,
            int(logged),
            acceptance.encode(request.accepted_s, request.request_id),
            *(value for pair in zip(request.ids, request.labels, strict=True) for value in pair),
        ],
    )


def _labelled(request: LabelRequest, answer: list[Any]) -> LabelResult:
    match answer:
        case [b"missing"]:
            return LabelResult(NotFoundError(f"There is no model {request.hash}."))
        case [b"stale"]:
            return LabelResult(StaleModelError(f"The model {request.hash} was created again meanwhile."))
        case [b"conflict"]:
            return LabelResult(
                IdempotencyError("The Idempotency-Key was used with another body; use a new key for new labels.")
            )
        case [b"unlogged"]:
            return LabelResult(UnavailableError(UNLOGGED))
    _, first, accepted, version, unlocked, pending, pace, origin, outcomes, payloads, rows, size, at_us = answer
    if not accepted and b"f" in outcomes:
        return LabelResult(inbox.inbox_full(pending, pace))
    call = None
    if payloads:
        name = "" if request.key is None else f"c:{request.key}"
        begin = first + accepted - len(payloads)
        call = Call(request.hash, origin, begin, int(at_us) / 1e6, request.digest, name, tuple(payloads))
    return LabelResult(
        Labelled(first, accepted, version, outcomes.decode()),
        bool(unlocked and accepted),
        Count(request.hash, rows, size, at_us),
        call,
    )

"""Learn all rows of a model again, with the new code of a change, from an object that has learned nothing.

Owns which logged requests are learned again (:func:`rows_before`), and the replay of such a change (:func:`replay`).
The change is a request like others: it waits in the inbox, a worker learns the rows before it again when its turn
comes (:func:`learn_again`), and commits the result as what the model has learned up to the change. Never changes a
model. Invariants: the rows before the change are learned in the order of their sequences, each once, whatever earlier
code did with them; a row that was learned again is no dead letter; so a replay of the change from the row log gives the
same bundle (docs/guides/your-own-objects.md).
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import structlog

from keepfit.errors import (
    ConflictError,
    EnvelopeError,
    LearningError,
    NotFoundError,
    StaleModelError,
    describe_error,
)
from keepfit.history import RegistryEntry
from keepfit.history.registry.lineage import Position, Span, learned_spans
from keepfit.recipe import uploads
from keepfit.recipe.recipe import from_text
from keepfit.restore.replay import Replayed, Replayer, SkippedRequest, chained
from keepfit.restore.replay_source import LoggedRequest, ReplaySource, RequestKey, list_row_log, retries, select
from keepfit.restore.snapshot_bundle import SnapshotBundle
from keepfit.rowlog.row_log import Call
from keepfit.snapshots.resources import Resources
from keepfit.store import changes
from keepfit.store.dead_letters import CALL_ENTRIES_MAX, DeadLetter, DeadLetters
from keepfit.store.models import Model

log = structlog.get_logger(__name__)

# A gateway may still be writing a request to the row log when a worker wants to learn it again; a client that asks
# whether that is possible waits less.
WRITTEN_S_MAX, ASKED_S_MAX, PAUSE_S = 25.0, 2.0, 0.25
# The rows to learn again are in memory together.
BYTES_MAX = 256 * 2**20
# One script removes the dead letters that were learned: it stops Redis for 0.05 s for 10,000, 0.7 s for 100,000.
DEAD_LETTERS_MAX = 100_000

# A request, by the generation in which its sequences began and its sequence.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RowsBefore:
    """The `requests` with rows that a model accepted before a change, in order, each once.

    `firsts` maps the place of each request before the change to the places that it had first, before it was put aside
    and retried: one, unless Redis gave its sequence to two requests.
    """

    requests: list[LoggedRequest]
    firsts: Mapping[Place, Collection[Place]]


@dataclass(frozen=True, slots=True)
class LearnedAgain:
    """The bundle that has learned all rows before a change, the number of those requests, and those left out.

    `dead_letters` are ids and keys of large rows ("" for others) of those that it has learned.
    """

    bundle: SnapshotBundle
    requests: int
    left_out: list[SkippedRequest]
    dead_letters: list[tuple[str, str]]


def rows_before(
    registered: RegistryEntry, calls: Iterable[Call], lineage: Sequence[Span], change: LoggedRequest
) -> RowsBefore:
    """Return the requests with rows that a model accepted before `change`, as its lineage has them.

    A request that was put aside and retried before the change has its first place. One that was retried after it is
    not among them, because it is learned there.

    Raises
    ------
    ConflictError
        If the row log lacks one of them.
    """
    if uploads.trained_file(from_text(registered.recipe_text).object) is not None:
        raise ConflictError("The model had learned before it was uploaded, from rows that are not here.")
    calls = list(calls)
    spans = [replace(s, until=change.sequence - 1) if s.generation == change.generation else s for s in lineage]
    before = [span for span in spans if span.generation <= change.generation]
    later = [replace(s, after=max(s.after, change.sequence)) for s in lineage if s.generation == change.generation]
    later += [span for span in lineage if span.generation > change.generation]
    if not before or (before[0].generation, before[0].origin, before[0].after) != (registered.born, registered.born, 0):
        raise ConflictError(
            "The row log does not say with which rows the model began: it was restored, or put here, while there was "
            "no row log."
        )
    found, earlier = select(calls, before), retries(calls)
    keys, keys_later = {request.key for request in found}, {request.key for request in select(calls, later)}
    firsts: dict[Place, set[Place]] = {}
    for key in keys:
        firsts.setdefault(key[:2], set()).add(_first(key, keys, earlier)[:2])
    for span in before:
        check_logged(firsts, span.origin, span.after, int(span.until))
    moved = {_first(key, keys | keys_later, earlier) for key in keys_later}
    requests = [
        request
        for request in found
        if not changes.is_change(request.payload)
        and request.key not in moved
        and _first(request.key, keys, earlier) == request.key
    ]
    return RowsBefore(requests, firsts)


def check_logged(places: Collection[Place], origin: int, after: int, until: int) -> None:
    """Raise ConflictError unless `places` has all requests with ``after < sequence <= until`` of an origin."""
    for sequence in range(after + 1, until + 1):
        if (origin, sequence) not in places:
            raise ConflictError(
                f"The row log does not have all rows of the model: request {sequence} is not in it, of those that "
                f"generation {origin} began to count. It was accepted before there was a row log, or longer ago than "
                "KEEPFIT_ROW_LOG_KEEP_S, or its write failed."
            )


def _first(key: RequestKey, keys: Collection[RequestKey], earlier: Mapping[RequestKey, RequestKey]) -> RequestKey:
    """Return what a request was first, among those of `keys`."""
    while (before := earlier.get(key)) is not None and before in keys:
        key = before
    return key


async def apply(
    replayer: Replayer,
    registered: RegistryEntry,
    change: LoggedRequest,
    rows: RowsBefore,
    later: Sequence[LoggedRequest],
) -> Replayed:
    """Learn `change` on top of the model's recipe, then all rows before it, then `later` requests.

    Raises
    ------
    LearningError
        If the new code cannot be used at all.
    """
    start = Position(registered.born, registered.born, 0)
    try:
        begun = await replayer.learn(registered, None, start, [change])
        if begun.skipped or begun.bundle is None:
            raise LearningError(begun.skipped[0].reason if begun.skipped else "the new code could not be loaded")
        # The change is learned as the first request, because all rows before it are learned with its code.
        return await replayer.learn(registered, begun.bundle, start, [*rows.requests, *later])
    except EnvelopeError as error:
        # An object that cannot be loaded, or of which the process dies, must not block the requests after it.
        raise LearningError(describe_error(error)) from error


async def replay(
    replayer: Replayer, registered: RegistryEntry, source: ReplaySource, requests: Sequence[LoggedRequest]
) -> Replayed:
    """Learn `requests` on top of the source's snapshot; if a change among them learns again, from the beginning.

    Raises what :meth:`keepfit.restore.replay.Replayer.learn` raises.
    """
    failed: list[SkippedRequest] = []
    others = [request for request in requests if not changes.learns_again(request.payload)]
    for number, change in reversed(list(enumerate(requests))):
        if not changes.learns_again(change.payload):
            continue
        later = [request for request in requests[number + 1 :] if not changes.learns_again(request.payload)]
        try:
            rows = rows_before(registered, source.calls, source.lineage, change)
            replayed = await apply(replayer, registered, change, rows, later)
        except (ConflictError, LearningError) as error:
            log.warning("replay_request_skipped", hash=registered.hash, sequence=change.sequence, reason=str(error))
            failed.append(SkippedRequest(change, str(error)))
            continue
        return _as_replay(source, requests, replayed, failed)
    replayed = await replayer.learn(registered, source.snapshot, source.start, others)
    return _as_replay(source, requests, replayed, failed) if failed else replayed


def _as_replay(
    source: ReplaySource, requests: Sequence[LoggedRequest], replayed: Replayed, failed: Sequence[SkippedRequest]
) -> Replayed:
    """Return what was learned as the result of the replay of `requests` on top of the source's snapshot."""
    base, bundle, last = source.snapshot, replayed.bundle, requests[-1]
    if bundle is not None and base is not None:
        header = msgspec.structs.replace(
            bundle.header, generation=source.start.generation, version=base.header.version + 1
        )
        bundle = replace(bundle, header=header)
    return replace(
        replayed,
        bundle=bundle,
        position=Position(last.generation, last.origin, last.sequence),
        request_digest=chained("" if base is None else base.header.chain, requests),
        requests=len(requests),
        skipped=[*replayed.skipped, *failed],
    )


async def check(resources: Resources, model_hash: str) -> int:
    """Return how many requests a live model would learn again.

    Raises
    ------
    ConflictError
        If the row log does not have all of them, or there is none, or the model has too many dead letters.
    NotFoundError, StaleModelError, UnavailableError
        If the model does not exist (any more), or a dependency is unavailable.
    """
    live = await _live(resources, model_hash)
    await _check_dead_letters(DeadLetters(resources.store.client), model_hash)
    rows = await _read(resources, model_hash, live.learned + live.inbox + 1, ASKED_S_MAX)
    return len(rows.requests)


async def learn_again(
    resources: Resources, replayer: Replayer, model_hash: str, sequence: int, payload: bytes
) -> LearnedAgain:
    """Learn all rows before the pending change `payload` of a live model again, with its code.

    The caller commits the bundle as what the model has learned up to `sequence`, and removes the dead letters that were
    learned in the same script, which refuses the commit if the model was rewound, or one of them is pending again.

    Raises
    ------
    ConflictError, LearningError
        If the change cannot be applied.
    NotFoundError, StaleModelError, UnavailableError
        If the model does not exist (any more), or a dependency is unavailable.
    """
    # Before the state and the row log are read: a dead letter that is retried later is then missing when it is to be
    # removed, and one that was retried earlier is in the row log as a retry.
    letters = await _list(DeadLetters(resources.store.client), model_hash)
    live = await _live(resources, model_hash)
    rows = await _read(resources, model_hash, sequence, WRITTEN_S_MAX)
    registered = await _registered(resources, model_hash)
    change = LoggedRequest(live.generation, live.origin, sequence, 0.0, payload)
    replayed = await apply(replayer, registered, change, rows, [])
    if replayed.bundle is None:
        raise LearningError("no row could be learned with the new code")
    left_out = {(each.request.origin, each.request.sequence) for each in replayed.skipped}
    learned = {(request.origin, request.sequence) for request in rows.requests} - left_out
    # Those of an earlier origin have other sequences, and can never be retried.
    counted = [each for each in letters if each.generation >= live.origin]
    removed = [
        (each.id, each.large_key)
        for each in counted
        if (firsts := rows.firsts.get((live.origin, each.sequence))) and learned.issuperset(firsts)
    ]
    return LearnedAgain(replayed.bundle, len(rows.requests), replayed.skipped, removed)


async def _live(resources: Resources, model_hash: str) -> Model:
    live = await resources.store.describe(model_hash)
    if live is None:
        raise StaleModelError(f"The model {model_hash} is not live any more.")
    return live


async def _registered(resources: Resources, model_hash: str) -> RegistryEntry:
    registered = await resources.registry.find(model_hash)
    if registered is None:
        raise NotFoundError(f"There is no model {model_hash}.")
    return registered


async def _read(resources: Resources, model_hash: str, sequence: int, seconds: float) -> RowsBefore:
    """Return the rows before a request of a live model; wait for some seconds until all accepted ones are logged."""
    if resources.row_log is None:
        raise ConflictError("There is no row log (KEEPFIT_ROW_LOG_URL), so the rows to learn again are not here.")
    deadline_s = time.monotonic() + seconds
    while True:
        live, registered = await _live(resources, model_hash), await _registered(resources, model_hash)
        view = await list_row_log(resources)
        calls = [] if view is None else await asyncio.to_thread(view.calls, model_hash, 0.0, BYTES_MAX)
        calls = [call for call in calls if call.origin >= registered.born]
        change = LoggedRequest(live.generation, live.origin, sequence, 0.0, b"")
        try:
            rows = rows_before(registered, calls, _lineage(registered, live), change)
            # A retry that is not logged yet would be learned twice.
            places = {(c.origin, number) for c in calls for number in range(c.sequence, c.last + 1)}
            check_logged(places, live.origin, sequence, live.learned + live.inbox)
        except ConflictError:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(PAUSE_S)
        else:
            return rows


def _lineage(registered: RegistryEntry, live: Model) -> list[Span]:
    lineage = learned_spans(registered.links, live.generation)
    if lineage[-1].origin != live.origin:
        raise ConflictError("The row log does not say with which rows the present generation began.")
    return lineage


async def _check_dead_letters(dead_letters: DeadLetters, model_hash: str) -> None:
    count = await dead_letters.count(model_hash)
    if count > DEAD_LETTERS_MAX:
        raise ConflictError(
            f"The model has {count} dead letters; it can learn again with {DEAD_LETTERS_MAX} at most. "
            "Discard those that cannot be learned, or retry them."
        )


async def _list(dead_letters: DeadLetters, model_hash: str) -> list[DeadLetter]:
    await _check_dead_letters(dead_letters, model_hash)
    found: list[DeadLetter] = []
    after: str | None = ""
    while after is not None:
        page, after = await dead_letters.page(model_hash, CALL_ENTRIES_MAX, after)
        found += [replace(each, payload=b"") for each in page]
    return found

"""Learn all rows of a model again, with the new code of a change, from an object that has learned nothing.

Owns which logged requests are learned again (:func:`rows_before`), and the replay of such a change (:func:`replay`).
The change is a request like others: it waits in the inbox, a worker learns the rows before it again when its turn
comes (:func:`learn_again`), and commits the result as what the model has learned up to the change. Never stores a
bundle. Invariants: the rows before the change are learned in the order of their sequences, each once, whatever earlier
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
from keepfit.history.lineage import Position, Span, learned_spans
from keepfit.observability import failpoints
from keepfit.recipe import uploads
from keepfit.recipe.recipe import from_text
from keepfit.restore.replay import Replayed, Replayer, SkippedRequest, chained
from keepfit.restore.replay_source import LoggedRequest, ReplaySource, list_row_log, select
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
# Tries to learn again while dead letters are retried or discarded.
TRIES = 20

# A request, by the generation in which its sequences began and its sequence.
Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RowsBefore:
    """The `requests` with rows that a model accepted before a change, in order, each once.

    `places` are those of all requests before the change, `retries` names the place that a retried request had before.
    """

    requests: list[LoggedRequest]
    places: Collection[Place]
    retries: Mapping[Place, Place]

    def first(self, place: Place) -> Place:
        """Return the first place that a request had, before it was put aside and retried."""
        return _first(place, self.places, self.retries)


@dataclass(frozen=True, slots=True)
class LearnedAgain:
    """The bundle that has learned all rows before a change, the number of those requests, and those left out."""

    bundle: SnapshotBundle
    requests: int
    left_out: list[SkippedRequest]


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
    found = select(calls, before)
    places = {(request.origin, request.sequence) for request in found}
    for span in before:
        check_logged(places, span.origin, span.after, int(span.until))
    retries = {(c.origin, c.sequence): (c.origin, c.retry_of) for c in calls if c.retry_of is not None}
    retried_later = {(request.origin, request.sequence) for request in select(calls, later)}
    moved = {_first(place, places | retried_later, retries) for place in retried_later}
    requests = [
        request
        for request in found
        if not changes.is_change(request.payload)
        and (place := (request.origin, request.sequence)) not in moved
        and _first(place, places, retries) == place
    ]
    return RowsBefore(requests, places, retries)


def check_logged(places: Collection[Place], origin: int, after: int, until: int) -> None:
    """Raise ConflictError unless `places` has all requests with ``after < sequence <= until`` of an origin."""
    for sequence in range(after + 1, until + 1):
        if (origin, sequence) not in places:
            raise ConflictError(
                f"The row log does not have all rows of the model: request {sequence} is not in it, of those that "
                f"generation {origin} began to count. It was accepted before there was a row log, or longer ago than "
                "KEEPFIT_ROW_LOG_KEEP_S, or its write failed."
            )


def _first(place: Place, places: Collection[Place], retries: Mapping[Place, Place]) -> Place:
    while (before := retries.get(place)) is not None and before in places:
        place = before
    return place


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
        If the row log does not have all of them, or there is none.
    NotFoundError, StaleModelError, UnavailableError
        If the model does not exist (any more), or a dependency is unavailable.
    """
    live = await _live(resources, model_hash)
    rows = await _read(resources, model_hash, live.learned + live.inbox + 1, ASKED_S_MAX)
    return len(rows.requests)


async def learn_again(
    resources: Resources, replayer: Replayer, model_hash: str, sequence: int, payload: bytes
) -> LearnedAgain:
    """Learn all rows before the pending change `payload` of a live model again, with its code.

    Dead letters that were learned are removed. The caller commits the bundle as what the model has learned up to
    `sequence`. If it dies before that, the change is still pending, and its rows are in the row log.

    Raises
    ------
    ConflictError, LearningError
        If the change cannot be applied; nothing was changed.
    NotFoundError, StaleModelError, UnavailableError
        If the model does not exist (any more), or a dependency is unavailable.
    """
    dead_letters = DeadLetters(resources.store.client)
    for _ in range(TRIES):
        # Before the state and the row log are read: a dead letter that is retried later is then missing when it is to
        # be removed, and one that was retried earlier is in the row log as a retry.
        letters = await _list(dead_letters, model_hash)
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
        ids = [each.id for each in counted if rows.first((live.origin, each.sequence)) in learned]
        current = await _live(resources, model_hash)
        if (current.generation, current.learned) != (live.generation, sequence - 1):
            # Rewound, or learned by another worker: the dead letters belong to what the model is now.
            raise StaleModelError(f"The model {model_hash} changed while it learned again.")
        if await _discard(dead_letters, model_hash, ids):
            failpoints.reach("learn_again.discarded")
            return LearnedAgain(replayed.bundle, len(rows.requests), replayed.skipped)
        # One of them was retried meanwhile, and is pending now.
    raise StaleModelError(f"Dead letters of {model_hash} keep being retried; try again.")


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


async def _list(dead_letters: DeadLetters, model_hash: str) -> list[DeadLetter]:
    found: list[DeadLetter] = []
    after: str | None = ""
    while after is not None:
        page, after = await dead_letters.page(model_hash, CALL_ENTRIES_MAX, after)
        found += [replace(each, payload=b"") for each in page]
    return found


async def _discard(dead_letters: DeadLetters, model_hash: str, ids: Sequence[str]) -> bool:
    """Remove dead letters; return whether all of them were there."""
    for begin in range(0, len(ids), CALL_ENTRIES_MAX):
        some = ids[begin : begin + CALL_ENTRIES_MAX]
        count, _ = await dead_letters.discard(model_hash, some)
        if count < len(some):
            return False
    return True

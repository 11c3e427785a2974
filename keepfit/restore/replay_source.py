"""Find out what a restore starts from: a snapshot, and the requests that were logged after it.

Owns which logged requests are replayed and in which order (:func:`select`), and which idempotency keys are known again
(:func:`answered`). Never changes anything. Invariant: each accepted request after the snapshot is selected once, in the
order of its sequence. Snapshots come from the storage, calls from the row log.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from keepfit.errors import EnvelopeError, UnavailableError
from keepfit.history import Document, RegistryEntry
from keepfit.history.registry.lineage import Link, Position, Span, learned_spans, spans_after
from keepfit.recipe import uploads
from keepfit.recipe.recipe import from_text
from keepfit.restore.reader import SnapshotReader
from keepfit.restore.requests import RestoreRequest
from keepfit.restore.snapshot_bundle import SnapshotBundle
from keepfit.rowlog.row_log import Call, View
from keepfit.rows.rows import Rows
from keepfit.security import envelope
from keepfit.snapshots.resources import Resources
from keepfit.snapshots.save import path_of
from keepfit.store.changes import learns_again, params_of
from keepfit.store.models import Model

# Covered calls are read from this many seconds before now, or before an older snapshot: for their idempotency keys, and
# because clocks differ.
BEFORE_S = 600.0

# A request: the generation in which its sequences began, its sequence, and its payload. After Redis has lost its last
# writes, it may give the sequence of one request to another.
RequestKey = tuple[int, int, bytes]


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request in the row log; `generation` is the one that accepted it, `at` seconds since 1970.

    One that `is_retried` was put aside and accepted again under a later sequence, and is learned there.
    """

    generation: int
    origin: int
    sequence: int
    at: float
    payload: bytes
    is_retried: bool = False

    @property
    def key(self) -> RequestKey:
        """What distinguishes it from all others of its model."""
        return self.origin, self.sequence, self.payload

    @property
    def rows(self) -> int:
        """Number of rows; 0 for a change of parameters, or if the payload cannot be read."""
        try:
            return 0 if params_of(self.payload) is not None else Rows.decode(self.payload).n
        except (msgspec.MsgspecError, LookupError, TypeError):
            return 0


@dataclass(frozen=True, slots=True)
class ReplaySource:
    """A verified snapshot (None: the recipe), and logged calls.

    `corrupt` counts damaged snapshots that were skipped, `start` is the position of the snapshot. `lineage` has the
    spans of everything that the model has learned, as far as it is known, `spans` the part of it after `start`.
    """

    snapshot: SnapshotBundle | None
    corrupt: int
    start: Position
    calls: Sequence[Call] = ()
    lineage: Sequence[Span] = ()
    spans: Sequence[Span] = ()

    def requests(self, live: Model | None = None) -> list[LoggedRequest]:
        """Return the requests to replay; for a `live` model without those that are pending in its inbox."""
        found = _mark_retried(select(self.calls, self.spans), self.calls)
        if live is None:
            return found
        return [request for request in found if request.origin != live.origin or request.sequence <= live.learned]


def position_of(registered: RegistryEntry, document: Document | None) -> Position:
    """Return the position of a snapshot; without one, the position where the model begins."""
    if document is None:
        return Position(registered.born, registered.born, 0)
    generation = int(document["generation"])
    return Position(generation, int(document.get("origin") or generation), int(document["sequence"]))


def lineage_of(registered: RegistryEntry, newest: Position, calls: Iterable[Call]) -> list[Span]:
    """Return the spans of all that the model has learned, up to the `newest` snapshot that is requested and after it.

    The registry does not know whether a generation was ever live; the `calls` that it accepted show that it was.
    """
    latest = max([call.origin for call in calls], default=0)
    spans = learned_spans(registered.links, max(latest, newest.generation))
    if spans_after(spans, newest) is None:
        # An older state was restored after this snapshot and never saved, so this is the newest state that is saved.
        spans = [Span(newest.generation, newest.origin, 0), *(s for s in spans if s.generation > newest.generation)]
    if spans[0].generation == newest.generation and newest.generation not in registered.links:
        spans[0] = Span(newest.generation, newest.origin, 0, spans[0].until)
    return spans


def select(calls: Iterable[Call], spans: Sequence[Span]) -> list[LoggedRequest]:
    """Return the requests of the spans, in order, without repeats.

    The same (origin, sequence, digest) is one call, however often it was logged. Another digest under the same sequence
    is another call, which Redis accepted after it had lost the first one: both were accepted, and both are kept.

    >>> calls = [Call("ab", 1, 2, 9.0, "d2", "", (b"two", b"three")), Call("ab", 1, 1, 8.0, "d1", "", (b"one",))]
    >>> [request.payload for request in select([*calls, *calls], [Span(1, 1, 0)])]
    [b'one', b'two', b'three']
    >>> [request.payload for request in select(calls, [Span(1, 1, 2)])]
    [b'three']
    """
    first: dict[tuple[int, int, str], Call] = {}
    for call in sorted(calls, key=lambda call: call.at):
        first.setdefault((call.origin, call.sequence, call.digest), call)
    selected: list[LoggedRequest] = []
    for span in spans:
        found = [
            LoggedRequest(span.generation, call.origin, sequence, call.at, payload)
            for call in first.values()
            if call.origin == span.origin
            for sequence, payload in enumerate(call.payloads, call.sequence)
            if span.after < sequence <= span.until
        ]
        selected += sorted(found, key=lambda request: (request.sequence, request.at))
    return selected


def retries(calls: Iterable[Call]) -> dict[RequestKey, RequestKey]:
    """Return what each retry of a dead letter, which has the same payload, was before."""
    return {
        (call.origin, call.sequence, call.payloads[0]): (call.origin, call.retry_of, call.payloads[0])
        for call in calls
        if call.retry_of is not None
    }


def _mark_retried(requests: Sequence[LoggedRequest], calls: Iterable[Call]) -> list[LoggedRequest]:
    """Mark the requests whose retry is among `requests`."""
    keys = {request.key for request in requests}
    retried = {before for retry, before in retries(calls).items() if retry in keys}
    return [replace(request, is_retried=True) if request.key in retried else request for request in requests]


def answered(calls: Iterable[Call], spans: Sequence[Span]) -> dict[str, Call]:
    """Return the call that each idempotency key stands for, among the calls that the model has learned at some time.

    A repeat that was answered from the key has the sequence of the first call, and does not extend the key's life.
    """
    until: dict[int, float] = {}
    for span in spans:
        until[span.origin] = max(span.until, until.get(span.origin, 0))
    found: dict[str, Call] = {}
    for call in sorted(calls, key=lambda call: call.at):
        if not call.name or call.retry_of is not None or call.sequence > until.get(call.origin, 0):
            continue
        before = found.get(call.name)
        if before is None or (before.sequence, before.digest) != (call.sequence, call.digest):
            found[call.name] = call
    return found


async def list_row_log(resources: Resources) -> View | None:
    """List the row log, for models that were found lost before; None if there is no row log."""
    return None if resources.row_log is None else await asyncio.to_thread(resources.row_log.view)


async def find_document(resources: Resources, registered: RegistryEntry, request: RestoreRequest) -> Document | None:
    """Find the history document of the requested snapshot, without reading its blob."""
    return await resources.registry.newest(registered.hash, registered.born, request.at, request.version)


async def read_calls(
    registered: RegistryEntry,
    at: float | None,
    newest: Document | None,
    view: View | None,
    since: Document | None,
    *,
    all_covered: bool = False,
) -> tuple[list[Call], list[Span]]:
    """Read the logged calls of a model up to a time, and return them with the lineage of the model.

    Covered calls are read from a while before the snapshot `since`, or before now if that is None; or, with
    `all_covered`, as far back as the log is kept.
    """
    if view is None:
        return [], lineage_of(registered, position_of(registered, newest), [])
    since_s = time.time() if since is None else float(since["timestamp"])
    found = await asyncio.to_thread(view.calls, registered.hash, 0.0 if all_covered else since_s - BEFORE_S)
    # Calls of a deleted predecessor under the same hash have an origin before this model was created.
    calls = [call for call in found if call.origin >= registered.born and (at is None or call.at <= at)]
    return calls, lineage_of(registered, position_of(registered, newest), calls)


async def read_source(
    reader: SnapshotReader,
    registered: RegistryEntry,
    request: RestoreRequest,
    preferred: Document | None = None,
    view: View | None = None,
) -> ReplaySource:
    """Read the requested snapshot, and the requests logged after it, up to the requested time.

    If the newest snapshot is damaged, an older one is used and more is replayed; but no snapshot of requests that the
    model has rewound past. Raises what :meth:`keepfit.restore.reader.SnapshotReader.find` raises, and UnavailableError
    if no snapshot of a model is good that was uploaded trained.
    """
    resources = reader.resources
    if resources.row_log is None or request.version is not None:
        snapshot, corrupt = await reader.find(registered, request, preferred)
        _check_beginning(registered, snapshot)
        return ReplaySource(snapshot, corrupt, position_of(registered, None if snapshot is None else snapshot.document))
    if view is None:
        # In this order: calls that a later snapshot covers may be missing from the list.
        view, preferred = await list_row_log(resources), None
    preferred = preferred or await find_document(resources, registered, request)
    calls, lineage = await read_calls(registered, request.at, preferred, view, preferred if request.is_named else None)

    def is_suitable(document: Document) -> bool:
        return not lineage or spans_after(lineage, position_of(registered, document)) is not None

    snapshot, corrupt = await reader.find(registered, request, preferred, is_suitable)
    _check_beginning(registered, snapshot)
    document = None if snapshot is None else snapshot.document
    if corrupt:
        calls, _ = await read_calls(registered, request.at, preferred, view, document)
    start = position_of(registered, document)
    source = ReplaySource(snapshot, corrupt, start, calls, lineage, spans_after(lineage, start) or ())
    if any(learns_again(logged.payload) for logged in source.requests()):
        # The replay of that change needs the rows that the snapshot contains, too.
        calls, _ = await read_calls(registered, request.at, preferred, view, document, all_covered=True)
        source = replace(source, calls=calls)
    return source


def _check_beginning(registered: RegistryEntry, snapshot: SnapshotBundle | None) -> None:
    """Raise UnavailableError if there is no snapshot, and the recipe does not say how the model began."""
    if snapshot is None and uploads.trained_file(from_text(registered.recipe_text).object) is not None:
        raise UnavailableError(
            f"The model {registered.hash} was uploaded trained, and none of its snapshots is good: what it had learned "
            "is lost. Delete it and upload the file again."
        )


async def preview(
    resources: Resources,
    registered: RegistryEntry,
    request: RestoreRequest,
    document: Document | None,
    live: Model | None,
    view: View | None,
) -> tuple[int, bool]:
    """Return how many rows a restore would replay, and whether the `live` model is in the requested state already."""
    start = position_of(registered, document)
    calls, lineage = await read_calls(
        registered,
        request.at,
        document,
        None if request.version is not None else view,
        document if request.is_named else None,
    )
    requests = ReplaySource(None, 0, start, calls, lineage, spans_after(lineage, start) or ()).requests(live)
    rows = sum(logged.rows for logged in requests)
    if live is None:
        return rows, False
    if not requests:
        return 0, document is not None and await is_at(resources, live, document)
    # The model is in the requested state, or was rewound to it and has learned nothing since.
    last, link = requests[-1], registered.links.get(live.generation)
    is_last = (last.generation, last.sequence) == (live.generation, live.learned)
    return rows, is_last or link == Link(live.origin, live.learned, last.generation, last.sequence)


async def is_at(resources: Resources, live: Model, document: Document) -> bool:
    """Return whether a live model has learned exactly what a snapshot has, under whatever generation."""
    if live.digest == document["sha256"]:
        return True
    if (live.version, live.rows_seen) != (document["version"], document["rows_seen"]):
        return False
    found = await resources.store.bundle(live.hash)
    data = await asyncio.to_thread(resources.storage.get, path_of(document))
    if found is None or data is None or found[0].digest != live.digest:
        return False
    try:
        live_payload, saved_payload = (resources.keyring.open(each, envelope.BUNDLE)[1] for each in (found[1], data))
    except EnvelopeError:
        return False
    return live_payload == saved_payload

"""Replay: what was logged after a snapshot, learned again on top of it.

Owns which logged requests those are and their order (:func:`select`), the search for one that kills
(:class:`Replayer`), and which idempotency keys are known again. Never installs anything, so nothing is ever seen half
replayed, and a replay that was cut short is just made again. Invariant: each accepted request after the snapshot is
learned once, in the order of its sequence, or named as left out. Calls come from the row log; bundles go to
:mod:`keepfit.restore.restorer`.
"""

import asyncio
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from keepfit.errors import EnvelopeError
from keepfit.history import Document, RegistryEntry
from keepfit.history.lineage import Link, Position, Span, learned_spans, spans_after
from keepfit.restore.replay_process import DiedError, ReplayProcess, Task
from keepfit.restore.snapshot_bundle import SnapshotBundle
from keepfit.rowlog.row_log import Call, View
from keepfit.rows.rows import Rows
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from keepfit.store.inbox import change_of
from keepfit.store.models import Model

log = structlog.get_logger(__name__)

# So far back before now, or before an older snapshot, covered calls are read too: for their keys, and for clocks' sake.
BEFORE_S = 600.0
# What the child learns before it gives a bundle back, as much as a worker takes at once.
REQUESTS_MAX, BYTES_MAX = 512, 8 * 2**20
# How often a request may take the child along, all by itself, before it is left out.
DEATHS_MAX = 2
KILLED = "the process that learned this logged request alone died of it"


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request in the log; `generation` is the one that took it in."""

    generation: int
    origin: int
    sequence: int
    at: float
    payload: bytes

    @property
    def rows(self) -> int:
        """How many rows it brings; 0 for a change, or where that cannot be read."""
        try:
            return 0 if change_of(self.payload) is not None else Rows.decode(self.payload).n
        except (msgspec.MsgspecError, LookupError, TypeError):
            return 0


def place_of(registered: RegistryEntry, document: Document | None) -> Position:
    """Where a snapshot stands; where a model begins that has none."""
    if document is None:
        return Position(registered.born, registered.born, 0)
    generation = int(document["generation"])
    return Position(generation, int(document.get("origin") or generation), int(document["sequence"]))


def line_of(registered: RegistryEntry, newest: Position, calls: Iterable[Call]) -> list[Span]:
    """Spans of all that the model has learned up to the `newest` snapshot that is meant, and since, as `calls` tell.

    The calls of a generation tell that it was live, which the register does not know.
    """
    latest = max([call.origin for call in calls], default=0)
    spans = learned_spans(registered.links, max(latest, newest.generation))
    if spans_after(spans, newest) is None:
        # Something older was restored after it, and never saved: this is the newest that there is.
        spans = [Span(newest.generation, newest.origin, 0), *(s for s in spans if s.generation > newest.generation)]
    if spans[0].generation == newest.generation and newest.generation not in registered.links:
        spans[0] = Span(newest.generation, newest.origin, 0, spans[0].until)
    return spans


def select(calls: Iterable[Call], spans: Sequence[Span]) -> list[LoggedRequest]:
    """Requests of the spans, in order, without repeats.

    The same (origin, sequence, digest) is one call, however often it was logged. Another digest under the same sequence
    is another call, which Redis took in after it had lost the first one: both were accepted, and both stay.

    >>> calls = [Call("ab", 1, 2, 9.0, "d2", "", (b"two", b"three")), Call("ab", 1, 1, 8.0, "d1", "", (b"one",))]
    >>> [one.payload for one in select([*calls, *calls], [Span(1, 1, 0)])]
    [b'one', b'two', b'three']
    >>> [one.payload for one in select(calls, [Span(1, 1, 2)])]
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
        selected += sorted(found, key=lambda one: (one.sequence, one.at))
    return selected


def known(calls: Iterable[Call], spans: Sequence[Span]) -> dict[str, Call]:
    """Of each idempotency key the call it stands for, among those that the model has learned or did once.

    A repeat that was answered from the key has the sequence of the first; it does not make the key live longer.
    """
    until: dict[int, float] = {}
    for span in spans:
        until[span.origin] = max(span.until, until.get(span.origin, 0))
    found: dict[str, Call] = {}
    for call in sorted(calls, key=lambda call: call.at):
        if not call.name or call.sequence > until.get(call.origin, 0):
            continue
        before = found.get(call.name)
        if before is None or (before.sequence, before.digest) != (call.sequence, call.digest):
            found[call.name] = call
    return found


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A request that was not learned, and why."""

    request: LoggedRequest
    reason: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay: the bundle (None: a new one that has learned nothing), and the place it has come to.

    `requests` is how many were looked at, `rows` how many of theirs were learned.
    """

    fetched: SnapshotBundle | None
    place: Position
    chain: str = ""
    requests: int = 0
    rows: int = 0
    left_out: list[LeftOut] = field(default_factory=list)

    def link(self, origin: int = 0, after: int | None = None) -> Link:
        """How a generation begins behind this."""
        return Link(origin, self.place.sequence if after is None else after, self.place.generation, self.place.sequence)


@dataclass(frozen=True, slots=True)
class ReplaySource:
    """A snapshot that was read (None: there is none), and what was logged.

    `line` is all that the model has learned, as far as that is known, `spans` what of it comes after `start`.
    """

    fetched: SnapshotBundle | None
    corrupt: int
    start: Position
    calls: Sequence[Call] = ()
    line: Sequence[Span] = ()
    spans: Sequence[Span] = ()

    def requests(self, live: Model | None = None) -> list[LoggedRequest]:
        """What is to be learned on top; of what is `live`, only what does not wait there still."""
        found = select(self.calls, self.spans)
        if live is None:
            return found
        return [one for one in found if one.origin != live.origin or one.sequence <= live.learned]


async def logged(
    registered: RegistryEntry, at: float | None, newest: Document | None, view: View | None, since: Document | None
) -> tuple[list[Call], list[Span]]:
    """Read what was logged up to a time; return it with the spans in which the model has learned it.

    What is covered is read from a while before the snapshot `since`, or before now where that is None.
    """
    if view is None:
        return [], line_of(registered, place_of(registered, newest), [])
    since_s = time.time() if since is None else float(since["timestamp"])
    found = await asyncio.to_thread(view.calls, registered.hash, since_s - BEFORE_S)
    # A deleted model's are older than the one that was made under its hash after it.
    calls = [call for call in found if call.origin >= registered.born and (at is None or call.at <= at)]
    return calls, line_of(registered, place_of(registered, newest), calls)


class Replayer:
    """Learns logged requests on top of snapshots, in a child process that is made when it is first needed."""

    def __init__(self, keyring: Keyring, upload_keys: Keyring | None = None) -> None:
        self._keyring = keyring
        self._learner = ReplayProcess(keyring, upload_keys)

    def close(self) -> None:
        """End the child."""
        self._learner.close()

    async def learn(
        self,
        registered: RegistryEntry,
        fetched: SnapshotBundle | None,
        start: Position,
        requests: Sequence[LoggedRequest],
    ) -> Replayed:
        """Learn `requests`, all of them after `start`, on top of what was fetched.

        The bundle is signed as the next version of the snapshot's generation, and is to be signed again for its own.

        Raises
        ------
        UnavailableError
            If there can be no child process.
        EnvelopeError
            If the child cannot load the bundle.
        """
        return await asyncio.to_thread(self._learn, registered, fetched, start, requests)

    def _learn(
        self,
        registered: RegistryEntry,
        fetched: SnapshotBundle | None,
        start: Position,
        requests: Sequence[LoggedRequest],
    ) -> Replayed:
        chain = fetched.header.chain if fetched is not None else ""
        if not requests:
            return Replayed(fetched, start, chain)
        before = fetched.header.rows_seen if fetched is not None else 0
        left_out: list[LeftOut] = []
        done = most = suspects = deaths = 0
        while done < len(requests):
            # Of those that were in hand when the child died, half of what killed it at a time.
            most = most if done < suspects else REQUESTS_MAX
            some = list(_task(requests[done:], most))
            try:
                count, reason, fetched = self._step(registered, fetched, start, some, chain)
            except DiedError:
                suspects, deaths = max(suspects, done + len(some)), deaths + 1
                if len(some) > 1:
                    most, deaths = len(some) // 2, 0
                    continue
                if deaths < DEATHS_MAX:
                    most = 1
                    continue
                count, reason = 0, KILLED
            deaths = 0
            learned = some[:count]
            if reason:
                learned = some[: count + 1]
                left_out.append(LeftOut(learned[-1], reason))
                log.warning(
                    "replay_left_out",
                    hash=registered.hash,
                    sequence=learned[-1].sequence,
                    reason=reason.partition(":")[0],
                )
            chain = _linked(chain, learned)
            done += len(learned)
        last = requests[-1]
        place = Position(last.generation, last.origin, last.sequence)
        rows = fetched.header.rows_seen - before if fetched is not None else 0
        return Replayed(fetched, place, chain, len(requests), rows, left_out)

    def _step(
        self,
        registered: RegistryEntry,
        fetched: SnapshotBundle | None,
        start: Position,
        some: Sequence[LoggedRequest],
        chain: str,
    ) -> tuple[int, str, SnapshotBundle | None]:
        """Have the child learn some requests; how many it did, why not the next, and the bundle then."""
        version = 1 if fetched is None else fetched.header.version + (not fetched.metrics_text)
        header = Header(
            envelope.BUNDLE, registered.hash, start.generation, version, some[-1].sequence, 0, _linked(chain, some), {}
        )
        data = b"" if fetched is None else fetched.data
        payloads = [request.payload for request in some]
        done = self._learner.learn(Task(registered.recipe_text, header, data, payloads))
        if not done.count:
            return 0, done.reason, fetched
        found, payload = self._keyring.open(done.data, envelope.BUNDLE)
        if found.hash != registered.hash:
            raise EnvelopeError(f"The bundle that was replayed is not one of {registered.hash}.")
        learned = SnapshotBundle(
            None if fetched is None else fetched.document,
            found,
            done.data,
            payload,
            done.width,
            msgspec.json.decode(done.changed_text),
            done.metrics_text,
        )
        return done.count, done.reason, learned


def _task(requests: Sequence[LoggedRequest], most: int) -> Iterator[LoggedRequest]:
    """Requests that go to the child at once: at least one."""
    size = 0
    for number, request in enumerate(requests[: max(most, 1)]):
        size += len(request.payload)
        if number and size > BYTES_MAX:
            return
        yield request


def _linked(chain: str, requests: Iterable[LoggedRequest]) -> str:
    """Digest that names a whole history, as it is made where requests are accepted."""
    for request in requests:
        linked = f"{chain}:".encode() + request.payload
        chain = hashlib.sha1(linked, usedforsecurity=False).hexdigest()
    return chain

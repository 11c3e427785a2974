"""Replay: learn logged requests on top of a snapshot.

Owns the search for a request that kills the process that learns it, or takes too long (:class:`Replayer`). Never
installs anything, so no client sees a half replayed model, and an interrupted replay is simply repeated. Invariant:
each of the given requests is learned once, in order, or returned as skipped with the reason; a retried dead letter is
learned at the place of its last retry. Requests come from :mod:`keepfit.restore.replay_source`; bundles go to
:mod:`keepfit.restore.restorer`.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from keepfit.errors import EnvelopeError, UnloadableError
from keepfit.history import RegistryEntry
from keepfit.history.registry.lineage import Link, Position
from keepfit.restore.replay_process import ReplayProcess, ReplayProcessDiedError
from keepfit.restore.replay_source import LoggedRequest
from keepfit.restore.replay_wire import ReplayTask
from keepfit.restore.snapshot_bundle import SnapshotBundle
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring

log = structlog.get_logger(__name__)

# Requests that the child learns before it returns a bundle, as many as a worker learns with one commit.
REQUESTS_MAX, BYTES_MAX = 512, 8 * 2**20
# After so many deaths of a child that learned a request alone, the request is skipped; or the replay ends, if it only
# loaded the bundle.
DEATHS_MAX = 2
KILLED = "the process that learned this logged request alone died of it"
OVERDUE = "to learn this logged request alone took longer than a call may"


@dataclass(frozen=True, slots=True)
class SkippedRequest:
    """A request that could not be learned, and the reason."""

    request: LoggedRequest
    reason: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """Result of a replay: the bundle (None: a new one that has learned nothing), and its position.

    `request_digest` is the digest of the last request, `requests` counts the replayed requests, skipped ones included,
    `rows` the rows that were learned.
    """

    bundle: SnapshotBundle | None
    position: Position
    request_digest: str = ""
    requests: int = 0
    rows: int = 0
    skipped: list[SkippedRequest] = field(default_factory=list)

    def link(self, origin: int = 0, after: int | None = None) -> Link:
        """Return the link of a generation that begins after this replay."""
        return Link(
            origin, self.position.sequence if after is None else after, self.position.generation, self.position.sequence
        )


class Replayer:
    """Learns logged requests on top of snapshots, in a child process that is started for the first of them."""

    def __init__(self, keyring: Keyring, upload_keys: Keyring | None, call_s_max: float) -> None:
        self._keyring = keyring
        self._process = ReplayProcess(keyring, upload_keys, call_s_max)

    def close(self) -> None:
        """End the child process."""
        self._process.close()

    async def learn(
        self, registered: RegistryEntry, base: SnapshotBundle | None, start: Position, requests: Sequence[LoggedRequest]
    ) -> Replayed:
        """Learn `requests`, all of them after `start`, on top of `base` (None: a new model).

        The resulting bundle is signed as the next version of the snapshot's generation; the caller signs it again for
        its own generation.

        Raises
        ------
        UnavailableError
            If no child process can be started.
        EnvelopeError
            If the child cannot load the bundle; UnloadableError if it dies of that, or does not come to an end.
        """
        return await asyncio.to_thread(self._learn, registered, base, start, requests)

    def _learn(
        self, registered: RegistryEntry, base: SnapshotBundle | None, start: Position, requests: Sequence[LoggedRequest]
    ) -> Replayed:
        bundle, request_digest = base, base.header.chain if base is not None else ""
        if not requests:
            return Replayed(bundle, start, request_digest)
        rows_before = base.header.rows_seen if base is not None else 0
        skipped: list[SkippedRequest] = []
        done = batch_max = suspects_end = deaths = load_deaths = 0
        while done < len(requests):
            if requests[done].is_retried:
                request_digest = chained(request_digest, requests[done : done + 1])
                done += 1
                continue
            # Of the requests of the batch in which the child died, try half as many at a time as before.
            batch_max = batch_max if done < suspects_end else REQUESTS_MAX
            batch = list(_batch(requests[done:], batch_max))
            try:
                count, reason, bundle = self._step(registered, bundle, start, batch, request_digest)
            except ReplayProcessDiedError as died:
                if died.is_loading:
                    # That says nothing about the requests.
                    load_deaths += 1
                    if load_deaths < DEATHS_MAX and not died.is_overdue:
                        continue
                    how = "took too long" if died.is_overdue else "died"
                    raise UnloadableError(
                        f"The process that replays requests {how} while it loaded the model {registered.hash}."
                    ) from None
                suspects_end, deaths = max(suspects_end, done + len(batch)), deaths + 1
                if len(batch) > 1:
                    # Each further batch with a call that takes too long would take as long again.
                    batch_max, deaths = 1 if died.is_overdue else len(batch) // 2, 0
                    continue
                if deaths < DEATHS_MAX and not died.is_overdue:
                    batch_max = 1
                    continue
                count, reason = 0, OVERDUE if died.is_overdue else KILLED
            deaths = load_deaths = 0
            finished = batch[:count]
            if reason:
                finished = batch[: count + 1]
                skipped.append(SkippedRequest(finished[-1], reason))
                log.warning(
                    "replay_request_skipped",
                    hash=registered.hash,
                    sequence=finished[-1].sequence,
                    reason=reason.partition(":")[0],
                )
            request_digest = chained(request_digest, finished)
            done += len(finished)
        last = requests[-1]
        position = Position(last.generation, last.origin, last.sequence)
        rows = bundle.header.rows_seen - rows_before if bundle is not None else 0
        count = sum(not request.is_retried for request in requests)
        return Replayed(bundle, position, request_digest, count, rows, skipped)

    def _step(
        self,
        registered: RegistryEntry,
        bundle: SnapshotBundle | None,
        start: Position,
        batch: Sequence[LoggedRequest],
        request_digest: str,
    ) -> tuple[int, str, SnapshotBundle | None]:
        """Let the child learn a batch; return how many it learned, why not the next ('': all), and the new bundle."""
        version = 1 if bundle is None else bundle.header.version + (not bundle.metrics_text)
        header = Header(
            envelope.BUNDLE,
            registered.hash,
            start.generation,
            version,
            batch[-1].sequence,
            0,
            chained(request_digest, batch),
            {},
        )
        data = b"" if bundle is None else bundle.data
        payloads = [request.payload for request in batch]
        reply = self._process.learn(ReplayTask(registered.recipe_text, header, data, payloads))
        if not reply.count:
            return 0, reply.reason, bundle
        found, payload = self._keyring.open(reply.data, envelope.BUNDLE)
        if found.hash != registered.hash:
            raise EnvelopeError(f"The replayed bundle belongs to another model than {registered.hash}.")
        learned = SnapshotBundle(
            None if bundle is None else bundle.document,
            found,
            reply.data,
            payload,
            reply.width,
            msgspec.json.decode(reply.changed_text),
            reply.metrics_text,
        )
        return reply.count, reply.reason, learned


def _batch(requests: Sequence[LoggedRequest], count_max: int) -> Iterator[LoggedRequest]:
    """Yield the requests that go to the child together: at least one, which is not retried."""
    size = 0
    for number, request in enumerate(requests[: max(count_max, 1)]):
        size += len(request.payload)
        if request.is_retried or (number and size > BYTES_MAX):
            return
        yield request


def chained(request_digest: str, requests: Iterable[LoggedRequest]) -> str:
    """Return the request digest after more requests, computed as when a request is accepted."""
    for request in requests:
        data = f"{request_digest}:".encode() + request.payload
        request_digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    return request_digest

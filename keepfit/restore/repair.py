"""Repair a live bundle that is damaged or gone in Redis, from a snapshot and the retained requests.

Owns the order of the steps::

    is it damaged? ─▶ read retained requests ─▶ read the snapshot before them ─▶ replay ─▶ sign ─▶ rewind

Never touches pending requests, and never forgets learned ones: it raises an error if a request is missing. Invariants:
a bundle that is as it was committed is left alone, even if this process cannot load it; a repaired bundle has learned
exactly the rows that the state counts. Requests come from the inbox's stream (:mod:`keepfit.store.retained`,
`docs/concepts/restore.md`).
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

import redis.asyncio
import structlog

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import (
    EnvelopeError,
    MissingRequestsError,
    NotFoundError,
    RuntimeMismatchError,
    StaleModelError,
    UnknownKeyError,
    UnloadableError,
)
from keepfit.history import Document, RegistryEntry
from keepfit.history.registry.lineage import Link
from keepfit.restore.replay_source import LoggedRequest, position_of
from keepfit.restore.restorer import Restorer
from keepfit.restore.snapshot_bundle import SnapshotBundle, to_rewind
from keepfit.security import envelope
from keepfit.store.commit import PendingRequest
from keepfit.store.models import Model
from keepfit.store.retained import ENTRY_BYTES, ReplayBase, RetainedRequests

log = structlog.get_logger(__name__)

# Requests read at a time, so that Redis serves others in between.
READ_ENTRIES_MAX = 512
# Tries to repair a model that changes in the meantime.
TRIES = 5


@dataclass(frozen=True, slots=True)
class RepairResult:
    """Result of a repair: `requests` were replayed on top of the snapshot of `document` (None: the recipe).

    `sequence` is the last request. `saved` is False if the repaired bundle could not be saved yet.
    """

    document: Document | None
    requests: int
    sequence: int
    saved: bool


async def is_damaged(restorer: Restorer, live: Model) -> bool:
    """Return whether a live model's bundle differs from the one that was committed, or is gone."""
    found = await restorer.resources.store.bundle(live.hash)
    if found is None:
        current = await restorer.resources.store.describe(live.hash)
        return current is not None and bool(current.digest)
    return found[0].digest != envelope.digest_of(found[1])


async def repair(restorer: Restorer, model_hash: str) -> RepairResult | None:
    """Repair a model's live bundle if it is damaged; return None if it is intact, or the model is not live.

    Raises
    ------
    MissingRequestsError
        If the bundle cannot be repaired; the message says which requests are missing, and what an operator can do.
    NotFoundError
        If the live model is left over from a deleted one.
    UnavailableError, RuntimeMismatchError, UnknownKeyError, UnloadableError
        As of :meth:`keepfit.restore.restorer.Restorer.restore`.
    """
    resources = restorer.resources
    for _ in range(TRIES):
        live = await resources.store.describe(model_hash)
        if live is None or not await is_damaged(restorer, live):
            return None
        registered = await resources.registry.find(model_hash)
        if registered is None or live.generation < registered.born:
            raise NotFoundError(f"There is no model {model_hash}.")
        try:
            result = await _repair(restorer, registered, live)
        except MissingRequestsError as error:
            current = await resources.store.describe(model_hash)
            if current is None or _state_of(current) != _state_of(live):
                # A worker that has the bundle in memory learned more, or a snapshot was saved: other requests are
                # retained now.
                continue
            raise _not_repairable(model_hash, error, has_row_log=resources.row_log is not None) from error
        if result is not None:
            return result
    raise StaleModelError(f"The model {model_hash} keeps changing during its repair; try again.")


def _state_of(model: Model) -> tuple[object, ...]:
    return model.generation, model.digest, model.retained


def _not_repairable(model_hash: str, error: MissingRequestsError, *, has_row_log: bool) -> MissingRequestsError:
    logged = ", `--at now` all logged requests" if has_row_log else ""
    return MissingRequestsError(
        f"The live bundle of the model {model_hash} is damaged and cannot be repaired: {error}. Pending requests are "
        f"safe. `keepfit restore --hash {model_hash} --force` restores its newest good snapshot; a restore with "
        f"`--at` or `--version` restores that time or version{logged}."
    )


async def _repair(restorer: Restorer, registered: RegistryEntry, live: Model) -> RepairResult | None:
    """Rebuild the bundle and install it; return None if the model has changed in the meantime."""
    resources = restorer.resources
    base, entries = await read_retained(resources.store.client, live.hash, live.learned, live.retained)
    document = await _find_base(restorer, registered, base)
    bundle = await _relearn(restorer, registered, live, document, entries)
    if bundle.header.rows_seen != live.rows_seen:
        raise MissingRequestsError(f"the replay gives {bundle.header.rows_seen} rows instead of {live.rows_seen}")
    link = None
    if resources.row_log is not None:
        # The new generation begins after all that the damaged bundle had learned.
        link = Link(live.origin, live.learned, live.generation, live.learned)
    generation = await restorer.allocate_generation(registered, link)
    # The digest of the last request is not known if that request was put aside.
    request_digest = entries[-1].request_digest if entries and entries[-1].sequence == live.learned else ""
    repaired = await asyncio.to_thread(
        bundle.sign, resources.keyring, generation, live.learned, request_digest, live.version
    )
    if not await resources.store.rewind(live, to_rewind(repaired, is_repair=True)):
        return None
    log.warning("bundle_repaired", hash=live.hash, version=live.version, requests=len(entries))
    return RepairResult(document, len(entries), live.learned, await restorer.save_restored(live.hash))


async def _find_base(restorer: Restorer, registered: RegistryEntry, base: ReplayBase) -> Document | None:
    """Find the document of the snapshot before the retained requests; return None if they begin at the recipe."""
    if base.place is None:
        return None
    generation, version = base.place
    documents = restorer.resources.registry.snapshots(registered.hash, registered.born, version=version)
    async with aclosing(documents):
        async for document in documents:
            if document["generation"] == generation:
                return document
    raise MissingRequestsError(f"the snapshot of version {version} does not exist any more")


async def _relearn(
    restorer: Restorer, registered: RegistryEntry, live: Model, document: Document | None, entries: list[PendingRequest]
) -> SnapshotBundle:
    """Read the snapshot of `document`, and replay the retained requests on top of it."""
    base = None
    try:
        if document is not None:
            base = await restorer.reader.fetch(registered, document)
    except (RuntimeMismatchError, UnknownKeyError, UnloadableError):
        raise
    except EnvelopeError as error:
        version = live.retained.base and live.retained.base.place and live.retained.base.place[1]
        raise MissingRequestsError(f"the snapshot of version {version} is damaged too ({error})") from error
    requests = [LoggedRequest(live.generation, live.origin, entry.sequence, 0.0, entry.payload) for entry in entries]
    replayed = await restorer.replayer.learn(registered, base, position_of(registered, document), requests)
    for skipped in replayed.skipped:
        raise MissingRequestsError(
            f"request {skipped.request.sequence} was learned before and cannot be learned now: {skipped.reason}"
        )
    if replayed.bundle is None:
        raise MissingRequestsError("all its requests were put aside, so there is nothing to learn")
    return replayed.bundle


async def read_retained(
    client: redis.asyncio.Redis, model_hash: str, learned: int, kept: RetainedRequests
) -> tuple[ReplayBase, list[PendingRequest]]:
    """Read the requests that a model has learned since its replay base, up to `learned`, in order.

    Requests that were put aside are not among them.

    Raises
    ------
    MissingRequestsError
        If some of them are not retained, or the replay base is not known.
    UnavailableError
        If Redis is unavailable.
    """
    if kept.base is None:
        raise MissingRequestsError("it is not known which requests it has learned since its last snapshot")
    if kept.cut > kept.base.sequence:
        raise MissingRequestsError(f"{_range(kept.base.sequence + 1, kept.cut)} not retained after the last snapshot")
    found: list[PendingRequest] = []
    after = kept.cut
    while True:
        (page,) = await redis_scripts.run_async(
            client, ("XRANGE", redis_keys.inbox(model_hash), f"({after}-0", f"{learned}-0", "COUNT", READ_ENTRIES_MAX)
        )
        found += [await _entry(client, *each) for each in page]
        if len(page) < READ_ENTRIES_MAX:
            break
        after = found[-1].sequence
    if sum(len(entry.payload) + ENTRY_BYTES for entry in found) != kept.bytes_learned - kept.cut_bytes:
        raise MissingRequestsError(f"some of the requests retained since request {kept.cut} are gone")
    return kept.base, found


async def _entry(client: redis.asyncio.Redis, name: bytes, stored: list[bytes]) -> PendingRequest:
    """Decode a request of the stream; read the rows of a large one from their own key."""
    fields = dict(zip(stored[::2], stored[1::2], strict=True))
    payload, big = fields[b"rows"], fields.get(b"big", b"").decode()
    if big:
        (rows,) = await redis_scripts.run_async(client, ("GET", big))
        payload = rows or b""
    return PendingRequest(int(name.partition(b"-")[0]), fields[b"chain"].decode(), payload, big, len(payload))


def _range(first: int, last: int) -> str:
    """Name requests by their sequences, with the verb of a sentence.

    >>> _range(3, 5), _range(3, 3)
    ('requests 3 to 5 are', 'request 3 is')
    """
    return f"requests {first} to {last} are" if first < last else f"request {first} is"

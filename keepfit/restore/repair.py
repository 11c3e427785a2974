"""Repairs: a live bundle that is damaged or gone in Redis, made again from a snapshot and what was learned since.

Owns the order of the steps::

    is it broken? ─▶ requests that Redis keeps ─▶ the snapshot they come on top of ─▶ learn them again ─▶ sign ─▶ rewind

Never touches what waits, and never goes behind what was learned: where a request is missing it says so. Invariants: a
bundle that is as it was committed is left alone, whoever cannot read it; a repaired one has learned just the rows that
the state counts. Requests come from the inbox's stream (:mod:`keepfit.store.retained`, `docs/guides/restore.md`).
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
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
)
from keepfit.history import Document, RegistryEntry
from keepfit.history.lineage import Link
from keepfit.restore.reader import SnapshotReader
from keepfit.restore.replay import LoggedRequest, place_of
from keepfit.restore.restorer import Restorer
from keepfit.restore.snapshot_bundle import SnapshotBundle
from keepfit.security import envelope
from keepfit.security.envelope import Header
from keepfit.store.commit import Entry
from keepfit.store.models import Model, Rewind
from keepfit.store.retained import PLACE_BYTES, ReplayBase, RetainedRequests

log = structlog.get_logger(__name__)

# Requests read at a time, so that Redis serves others in between.
READ_ENTRIES_MAX = 512
# How often a model that changes while it is repaired is looked at again.
TRIES = 5


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done: on top of the snapshot of `document` (None: the recipe) so many `requests` were learned again.

    `sequence` is the last one.
    """

    document: Document | None
    requests: int
    sequence: int
    saved: bool


async def is_broken(restorer: Restorer, live: Model) -> bool:
    """Tell whether a live model's bundle is not the one that was committed."""
    found = await restorer.resources.store.bundle(live.hash)
    if found is None:
        now = await restorer.resources.store.describe(live.hash)
        return now is not None and bool(now.digest)
    return found[0].digest != envelope.digest_of(found[1])


async def repair(restorer: Restorer, model_hash: str) -> Repaired | None:
    """Put a model's live bundle right if it is broken; None where it is not (any more), or the model is not live.

    Raises
    ------
    MissingRequestsError
        If it cannot be made again; says which requests are missing, and what is left to do.
    NotFoundError
        If it is what is left of a deleted model.
    UnavailableError, RuntimeMismatchError, UnknownKeyError
        As of a restore.
    """
    for _ in range(TRIES):
        live = await restorer.resources.store.describe(model_hash)
        if live is None or not await is_broken(restorer, live):
            return None
        registered = await restorer.resources.registry.find(model_hash)
        if registered is None or live.generation < registered.born:
            raise NotFoundError(f"There is no model {model_hash}.")
        try:
            done = await _repair(restorer, registered, live)
        except MissingRequestsError as error:
            now = await restorer.resources.store.describe(model_hash)
            if now is None or (now.generation, now.digest, now.kept) != (live.generation, live.digest, live.kept):
                # Learned on by a worker that holds it, or saved meanwhile: what is kept is other than it was.
                continue
            logged = ", `--at now` to all that was logged" if restorer.resources.row_log is not None else ""
            raise MissingRequestsError(
                f"The live bundle of the model {model_hash} is damaged, and cannot be made again: {error}. What waits "
                f"to be learned is safe. `keepfit restore --hash {model_hash} --force` goes back to its newest good "
                f"snapshot, and a restore that names a version or time to that{logged}."
            ) from error
        if done is not None:
            return done
    raise StaleModelError(f"The model {model_hash} changes while it is repaired; try again.")


async def _repair(restorer: Restorer, registered: RegistryEntry, live: Model) -> Repaired | None:
    """Make the bundle again and put it in place; None where the model is not what it was any more."""
    base, entries = await read(restorer.resources.store.client, live.hash, live.learned, live.kept)
    document = await _document(restorer, registered, base)
    fetched = await _learned(restorer, registered, live, document, entries)
    if fetched.header.rows_seen != live.rows_seen:
        raise MissingRequestsError(f"that gives {fetched.header.rows_seen} rows where {live.rows_seen} were learned")
    link = None
    if restorer.resources.row_log is not None:
        # It begins behind all that the damaged one has learned.
        link = Link(live.origin, live.learned, live.generation, live.learned)
    header = msgspec.structs.replace(
        fetched.header,
        generation=await restorer.next_generation(registered, link),
        version=live.version,
        sequence=live.learned,
        # Of one that was put aside nothing is kept.
        chain=entries[-1].chain if entries and entries[-1].sequence == live.learned else "",
    )
    data = await asyncio.to_thread(restorer.resources.keyring.seal, header, fetched.payload)
    if not await restorer.resources.store.rewind(live, _rewind(header, fetched, data)):
        return None
    log.warning("bundle_repaired", hash=live.hash, version=live.version, requests=len(entries))
    return Repaired(document, len(entries), live.learned, await restorer.saved(live.hash))


def _rewind(header: Header, fetched: SnapshotBundle, data: bytes) -> Rewind:
    return Rewind(
        hash=header.hash,
        generation=header.generation,
        version=header.version,
        rows_seen=header.rows_seen,
        digest=envelope.digest_of(data),
        metrics_text=fetched.metrics,
        bundle=data,
        width=fetched.width,
        changed=fetched.changed,
        base="=",
    )


async def _document(restorer: Restorer, registered: RegistryEntry, base: ReplayBase) -> Document | None:
    """Find the document of what kept requests come on top of; None where that is the recipe."""
    if base.place is None:
        return None
    generation, version = base.place
    documents = restorer.resources.registry.snapshots(registered.hash, registered.born, version=version)
    async with aclosing(documents):
        async for document in documents:
            if document["generation"] == generation:
                return document
    raise MissingRequestsError(f"the snapshot of version {version} is not there any more")


async def _learned(
    restorer: Restorer, registered: RegistryEntry, live: Model, document: Document | None, entries: list[Entry]
) -> SnapshotBundle:
    """Read what kept requests come on top of, and learn them again."""
    fetched = None
    try:
        if document is not None:
            fetched = await SnapshotReader(restorer.resources).fetch(registered, document)
    except (RuntimeMismatchError, UnknownKeyError):
        raise
    except EnvelopeError as error:
        version = live.kept.base and live.kept.base.place and live.kept.base.place[1]
        raise MissingRequestsError(f"the snapshot of version {version} is damaged too ({error})") from error
    requests = [LoggedRequest(live.generation, live.origin, entry.sequence, 0.0, entry.payload) for entry in entries]
    replayed = await restorer.replayer.learn(registered, fetched, place_of(registered, document), requests)
    for one in replayed.left_out:
        raise MissingRequestsError(f"request {one.request.sequence} was learned once, and now it is not: {one.reason}")
    if replayed.fetched is None:
        raise MissingRequestsError("all requests that it has had were put aside, so there is nothing to learn")
    return replayed.fetched


async def read(
    client: redis.asyncio.Redis, model_hash: str, learned: int, kept: RetainedRequests
) -> tuple[ReplayBase, list[Entry]]:
    """Read what a model had `learned` since its base, in order; requests that were put aside are not among them.

    Raises
    ------
    MissingRequestsError
        If some of that is not kept, or nobody knows since when it is.
    UnavailableError
        If Redis is away.
    """
    if kept.base is None:
        raise MissingRequestsError("it is not known what was learned since its last snapshot")
    if kept.cut > kept.base.sequence:
        raise MissingRequestsError(f"{_named(kept.base.sequence + 1, kept.cut)} not kept since the last snapshot")
    found: list[Entry] = []
    after = kept.cut
    while True:
        (page,) = await redis_scripts.run_async(
            client, ("XRANGE", redis_keys.inbox(model_hash), f"({after}-0", f"{learned}-0", "COUNT", READ_ENTRIES_MAX)
        )
        found += [await _entry(client, *named) for named in page]
        if len(page) < READ_ENTRIES_MAX:
            break
        after = found[-1].sequence
    if sum(len(entry.payload) + PLACE_BYTES for entry in found) != kept.bytes_learned - kept.cut_bytes:
        raise MissingRequestsError(f"of what was kept since request {kept.cut} some is gone too")
    return kept.base, found


async def _entry(client: redis.asyncio.Redis, name: bytes, stored: list[bytes]) -> Entry:
    """Read a request, of a large one its rows too."""
    fields = dict(zip(stored[::2], stored[1::2], strict=True))
    payload, big = fields[b"rows"], fields.get(b"big", b"").decode()
    if big:
        (rows,) = await redis_scripts.run_async(client, ("GET", big))
        payload = rows or b""
    return Entry(int(name.partition(b"-")[0]), fields[b"chain"].decode(), payload, big, len(payload))


def _named(first: int, last: int) -> str:
    """Name requests by their sequences.

    >>> _named(3, 5), _named(3, 3)
    ('the requests 3 to 5 were', 'the request 3 was')
    """
    return f"the requests {first} to {last} were" if first < last else f"the request {first} was"

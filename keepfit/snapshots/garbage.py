"""Garbage collection: delete expired snapshots and the remains of killed snapshotters.

Owns the order of the steps, for a slice of the models at a time::

    list blobs ─▶ read documents ─▶ apply retention ─▶ "aborted" ─▶ delete blobs ─▶ delete documents
        ─▶ delete blobs without a document

Never deletes a committed document's blob before the document is hidden, nor the newest good snapshot of a model
(:mod:`keepfit.snapshots.retention`). Invariant: a path that was listed as garbage is never written again, because each
attempt to save has its own path; so a process that is paused here for any time deletes no good blob
(`docs/concepts/snapshots.md`).
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from keepfit.backends.blobs import Entry, Storage
from keepfit.errors import ConflictError, EnvelopeError, UnavailableError
from keepfit.history import ABORTED, PENDING, Document, Registry
from keepfit.history.registry import snapshot_upkeep
from keepfit.history.registry.snapshot_upkeep import ModelLifetime
from keepfit.observability import failpoints
from keepfit.snapshots import retention
from keepfit.snapshots.retention import Rules
from keepfit.snapshots.save import path_of
from keepfit.snapshots.stored_bundle import check_bundle, is_elsewhere

log = structlog.get_logger(__name__)

# Sorts after every hash.
HASH_END = "g"
# Path of the blob that names the history to which the blobs of a storage belong.
OWNER = "keepfit-history"
# Documents deleted per pass. A server that syncs each needs seconds for them, and models wait to be saved meanwhile.
GARBAGE_MAX = 2000


@dataclass(frozen=True, slots=True)
class Collected:
    """How many of each kind were deleted.

    `aborted` intents were never committed, `expired` snapshots are not kept by any rule, `unknown` blobs have no
    document, `unfinished` files and uploads were never completed. `more` is True if one pass could not delete all.
    """

    aborted: int = 0
    expired: int = 0
    unknown: int = 0
    unfinished: int = 0
    more: bool = False

    def __bool__(self) -> bool:
        return any((self.aborted, self.expired, self.unknown, self.unfinished))


async def collect(
    registry: Registry, storage: Storage, after: str, until: str, rules: Rules, now_s: float
) -> Collected:
    """Delete the garbage of the registered models with ``after < hash <= until``.

    `now_s` is the time (seconds) from which ages are computed.

    Raises
    ------
    UnavailableError
        If MongoDB or the storage is unavailable. The deletions until then are right; the next pass does the rest.
    ConflictError
        If the storage holds the blobs of another history: no blob counts as garbage then.
    """
    abandoned_s = now_s - rules.grace_s
    # Blobs are listed before documents are read: each listed blob had its document before its first byte.
    listed = await asyncio.to_thread(lambda: list(storage.list(after, until)))
    documents = await snapshot_upkeep.list_documents(registry, after, until, now_s - min(rules.grace_s, rules.all_s))
    # Lifetimes are read after the documents: they hold for every document that a model had before.
    lifetimes = await snapshot_upkeep.list_lifetimes(registry, after, until)
    garbage, expired = await _find_garbage(registry, storage, lifetimes, documents, rules, now_s)
    await snapshot_upkeep.abort(registry, garbage[:GARBAGE_MAX])
    failpoints.reach("garbage.aborted")
    aborted = await snapshot_upkeep.list_aborted(registry, after, until)
    await asyncio.to_thread(storage.delete, [Entry(path_of(document)) for document in aborted])
    failpoints.reach("garbage.deleted")
    await snapshot_upkeep.delete_aborted(registry, aborted)
    known_hashes = {lifetime.hash for lifetime in lifetimes}
    blobs = [entry for entry in listed if entry.path.partition("/")[0] in known_hashes]
    old = [entry for entry in blobs if entry.modified_s < abandoned_s]
    unfinished = [entry for entry in old if entry.unfinished]
    await asyncio.to_thread(storage.delete, unfinished)
    if blobs:
        await _check_owner(registry, storage)
    paths = {path_of(document) for document in documents}
    suspects = [entry for entry in old if not entry.unfinished and entry.path not in paths]
    unknown = await _delete_unknown(registry, storage, after, until, suspects)
    deleted_ids = {document["_id"] for document in aborted}
    return Collected(
        sum(document["_id"] in deleted_ids and document["status"] in (PENDING, ABORTED) for document in documents),
        sum(document["_id"] in deleted_ids for document in expired),
        unknown,
        len(unfinished),
        len(garbage) > GARBAGE_MAX,
    )


async def _find_garbage(
    registry: Registry,
    storage: Storage,
    lifetimes: Iterable[ModelLifetime],
    documents: Iterable[Document],
    rules: Rules,
    now_s: float,
) -> tuple[list[Document], list[Document]]:
    """Return the documents to delete, and those of them that are expired snapshots."""
    by_hash: dict[str, list[Document]] = {}
    for document in documents:
        by_hash.setdefault(document["hash"], []).append(document)
    abandoned, expired = [], []
    for lifetime in lifetimes:
        found = by_hash.get(lifetime.hash, [])
        abandoned += [
            document
            for document in found
            if document["status"] == PENDING and document["begun"] < now_s - rules.grace_s
        ]
        for expiry in retention.find_expired(lifetime, found, rules, now_s):
            if expiry.only_remaining is None or await _is_good(registry, storage, expiry.only_remaining):
                expired += expiry.expired
    return [*abandoned, *expired], expired


async def _is_good(registry: Registry, storage: Storage, document: Document) -> bool:
    """Verify the snapshot that would be a model's only one; mark it as corrupt if it is damaged."""
    try:
        await asyncio.to_thread(check_bundle, storage, document)
    except EnvelopeError as error:
        log.warning("snapshot_corrupt", hash=document["hash"], version=document["version"], reason=str(error))
        await registry.mark_corrupt(document)
        return False
    except UnavailableError:
        if not is_elsewhere(storage, document):
            raise
        return False
    return True


async def _delete_unknown(registry: Registry, storage: Storage, after: str, until: str, suspects: list[Entry]) -> int:
    """Delete those of the suspected blobs that no document names; return how many."""
    if not suspects:
        return 0
    paths = {path_of(document) for document in await snapshot_upkeep.list_documents(registry, after, until)}
    unknown = [entry for entry in suspects if entry.path not in paths]
    await asyncio.to_thread(storage.delete, unknown)
    return len(unknown)


async def _check_owner(registry: Registry, storage: Storage) -> None:
    """Check that the blobs belong to this history: to any other history all of them are unknown."""
    name = (await registry.identity()).encode()
    found = await asyncio.to_thread(storage.get, OWNER)
    if found is None:
        await asyncio.to_thread(storage.put, OWNER, name)
    elif found != name:
        raise ConflictError(
            f"{storage.url} holds the snapshots of another history; blobs without a document are not deleted. If "
            f"there is no other history, delete {storage.uri(OWNER)}."
        )

"""Garbage collection: what killed snapshotters left, and what retention lets go.

Owns the order of the steps, for a slice of the models at a time::

    list blobs ─▶ read documents ─▶ judge ─▶ "aborted" ─▶ delete blobs ─▶ delete documents ─▶ blobs nobody knows

Never touches a committed document's blob before the document is out of sight, nor the newest good snapshot of a model
(:mod:`keepfit.snapshots.retention`). Invariant: a path that was listed as garbage is never written again, because each
attempt to save has a path of its own; so whoever sleeps here for however long deletes nothing that is good
(`docs/snapshots.md`).
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from keepfit.backends.blobs import Entry, Storage
from keepfit.errors import ConflictError
from keepfit.history import ABORTED, PENDING, Document, Registry, snapshot_upkeep
from keepfit.history.snapshot_upkeep import ModelLifetime
from keepfit.observability import failpoints
from keepfit.security import envelope
from keepfit.snapshots import retention
from keepfit.snapshots.retention import Rules
from keepfit.snapshots.save import path_of

log = structlog.get_logger(__name__)

# Sorts behind every hash.
LAST = "g"
# Names the history whose blobs these are.
OWNER = "keepfit-history"
# Documents that go in one pass: seconds of work for a server that syncs each, and models wait to be saved meanwhile.
DOOMED_MAX = 2000


@dataclass(frozen=True, slots=True)
class Collected:
    """How many of each kind went.

    `aborted` intents came to nothing, `expired` snapshots were let go, `unknown` blobs have no document, `unfinished`
    files and uploads were never completed. There are `more` where that was too much for one pass.
    """

    aborted: int = 0
    expired: int = 0
    unknown: int = 0
    unfinished: int = 0
    more: bool = False

    def __bool__(self) -> bool:
        return any((self.aborted, self.expired, self.unknown, self.unfinished))


async def collect(history: Registry, storage: Storage, after: str, until: str, rules: Rules, now_s: float) -> Collected:
    """Clear up after the registered models with ``after < hash <= until``.

    `now_s` is the time (seconds) by which ages are told.

    Raises
    ------
    UnavailableError
        If MongoDB or the storage is away. What was done until then is right, and the next pass does the rest.
    ConflictError
        If the storage holds the blobs of another history: none is taken for garbage then.
    """
    abandoned_s = now_s - rules.grace_s
    # Listed before documents are read: each blob that is seen had its document before its first byte.
    listed = await asyncio.to_thread(lambda: list(storage.list(after, until)))
    documents = await snapshot_upkeep.entries(history, after, until, now_s - min(rules.grace_s, rules.all_s))
    # Read after the documents: what is known of a model now holds for all that it had before.
    lifetimes = await snapshot_upkeep.lifetimes(history, after, until)
    doomed, expired = await _doomed(history, storage, lifetimes, documents, rules, now_s)
    await snapshot_upkeep.abort(history, doomed[:DOOMED_MAX])
    failpoints.reach("garbage.aborted")
    gone = await snapshot_upkeep.aborted(history, after, until)
    await asyncio.to_thread(storage.delete, [Entry(path_of(document)) for document in gone])
    failpoints.reach("garbage.deleted")
    await snapshot_upkeep.forget(history, gone)
    known = {life.hash for life in lifetimes}
    here = [entry for entry in listed if entry.path.partition("/")[0] in known]
    old = [entry for entry in here if entry.modified_s < abandoned_s]
    unfinished = [entry for entry in old if entry.unfinished]
    await asyncio.to_thread(storage.delete, unfinished)
    if here:
        await _check_owner(history, storage)
    paths = {path_of(document) for document in documents}
    suspects = [entry for entry in old if not entry.unfinished and entry.path not in paths]
    unknown = await _delete_unknown(history, storage, after, until, suspects)
    told = {entry["_id"] for entry in gone}
    return Collected(
        sum(entry["_id"] in told and entry["status"] in (PENDING, ABORTED) for entry in documents),
        sum(entry["_id"] in told for entry in expired),
        unknown,
        len(unfinished),
        len(doomed) > DOOMED_MAX,
    )


async def _doomed(
    history: Registry,
    storage: Storage,
    lifetimes: Iterable[ModelLifetime],
    documents: Iterable[Document],
    rules: Rules,
    now_s: float,
) -> tuple[list[Document], list[Document]]:
    """Documents that are to go, and those of them that retention lets go."""
    by_hash: dict[str, list[Document]] = {}
    for document in documents:
        by_hash.setdefault(document["hash"], []).append(document)
    doomed, expired = [], []
    for life in lifetimes:
        found = by_hash.get(life.hash, [])
        doomed += [one for one in found if one["status"] == PENDING and one["begun"] < now_s - rules.grace_s]
        for verdict in retention.judge(life, found, rules, now_s):
            if verdict.last is None or await _good(history, storage, verdict.last):
                expired += verdict.expired
    return [*doomed, *expired], expired


async def _good(history: Registry, storage: Storage, document: Document) -> bool:
    """Read the snapshot that is about to be a model's only one; mark it where it is damaged."""
    data = await asyncio.to_thread(storage.get, path_of(document))
    if data is not None and envelope.digest_of(data) == document["sha256"]:
        return True
    if data is not None or document["uri"] == storage.uri(path_of(document)):
        log.warning(
            "snapshot_corrupt", hash=document["hash"], version=document["version"], reason="found by its digest"
        )
        await history.mark_corrupt(document)
    return False


async def _delete_unknown(history: Registry, storage: Storage, after: str, until: str, suspects: list[Entry]) -> int:
    """Delete blobs, of those suspected, that no document names at all; return how many."""
    if not suspects:
        return 0
    paths = {path_of(document) for document in await snapshot_upkeep.entries(history, after, until)}
    unknown = [entry for entry in suspects if entry.path not in paths]
    await asyncio.to_thread(storage.delete, unknown)
    return len(unknown)


async def _check_owner(history: Registry, storage: Storage) -> None:
    """See that the blobs are this history's: to another one that they were put beside, all of them are unknown."""
    name = (await history.identity()).encode()
    found = await asyncio.to_thread(storage.get, OWNER)
    if found is None:
        await asyncio.to_thread(storage.put, OWNER, name)
    elif found != name:
        raise ConflictError(
            f"{storage.url} holds the snapshots of another history: blobs without a document stay there. If there "
            f"is no other, delete {storage.uri(OWNER)}."
        )

"""Maintain the history of snapshots: list documents in every state, abort and delete them.

Owns the transition from any state to ``aborted``, and the deletion of documents. Never decides what is deleted
(:mod:`keepfit.snapshots.retention`, :mod:`keepfit.snapshots.garbage`). Invariant: a document changes only if it still
has the state and the attempt with which it was read, so that the work of a concurrent snapshotter is kept.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from keepfit.history import ABORTED, COMMITTED, Document, Registry, unavailable

DOCUMENTS_PER_BATCH = 5000
# Changes per call. A call is limited to seconds, and a server may sync each document separately.
CHANGES_PER_CALL = 200
# Fields that describe a document's blob, its state and its age.
_FIELDS = (
    "_id", "type", "hash", "generation", "version", "sha256", "size_bytes", "attempt", "uri", "timestamp", "begun",
    "status",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelLifetime:
    """A registered model, deleted or not; `deleted_s` is the time of its last deletion, None if unknown.

    Snapshots of generations before `born` belong to a deleted predecessor.
    """

    hash: str
    born: int
    deleted: bool = False
    deleted_s: float | None = None


@dataclass(slots=True)
class Coverage:
    """Which of a model's logged requests are in a snapshot or obsolete.

    Requests of generations before `born` (inf: all) and of numberings that started before `origin` are obsolete. `upto`
    is the last sequence in a snapshot, by the generation in which its numbering started.
    """

    born: float
    origin: float = 0
    upto: dict[int, int] = field(default_factory=dict)

    def add(self, document: Document) -> None:
        """Add a committed snapshot."""
        origin = document.get("origin")
        if origin is None:
            # Imported, or written by an older version: pending requests of the live model may follow it.
            origin = document["generation"]
        else:
            self.origin = max(self.origin, origin)
        self.upto[origin] = max(document["sequence"], self.upto.get(origin, 0))

    def covers(self, origin: int, sequence: int) -> bool:
        """Return whether all requests up to a sequence are in a snapshot or obsolete."""
        return origin < max(self.born, self.origin) or sequence <= self.upto.get(origin, -1)


async def end_of_slice(history: Registry, after: str, limit: int) -> str | None:
    """Return the hash of the `limit`-th registered model after `after`, deleted ones too; None if there are fewer."""
    with unavailable():
        found = history.collection("models").find({"_id": {"$gt": after}}, {"_id": 1}).sort("_id", 1).limit(limit)
        models = await found.to_list(limit)
    return str(models[-1]["_id"]) if len(models) == limit else None


async def list_lifetimes(history: Registry, after: str, until: str) -> list[ModelLifetime]:
    """Return registered models with ``after < hash <= until``, deleted ones included."""
    fields = {"born": 1, "deleted": 1, "deleted_s": 1}
    with unavailable():
        found = history.collection("models").find({"_id": {"$gt": after, "$lte": until}}, fields)
        return [
            ModelLifetime(model["_id"], model["born"], model["deleted"], model.get("deleted_s"))
            async for model in found
        ]


async def find_coverage(history: Registry, hashes: Iterable[str], since_s: float) -> dict[str, Coverage]:
    """Return the coverage of models by committed snapshots of `since_s` (seconds) or later, without unknown models."""
    found: dict[str, Coverage] = {}
    ordered = sorted(hashes)
    with unavailable():
        for begin in range(0, len(ordered), CHANGES_PER_CALL):
            some = {"$in": ordered[begin : begin + CHANGES_PER_CALL]}
            async for model in history.collection("models").find({"_id": some}, {"born": 1, "deleted": 1}):
                found[model["_id"]] = Coverage(math.inf if model["deleted"] else model["born"])
            query = {"hash": some, "status": COMMITTED, "timestamp": {"$gte": since_s}}
            fields = dict.fromkeys(("hash", "generation", "origin", "sequence"), 1)
            async for document in history.collection("history").find(query, fields):
                if document["hash"] in found:
                    found[document["hash"]].add(document)
    return found


async def list_documents(history: Registry, after: str, until: str, before_s: float | None = None) -> list[Document]:
    """Return documents of models with ``after < hash <= until`` in every state, with a time before `before_s` if given.

    They have the fields of their blob, their `status`, and `begun`, the time (seconds) at which their intent was
    written.
    """
    query: Document = {"hash": {"$gt": after, "$lte": until}}
    if before_s is not None:
        query["timestamp"] = {"$lt": before_s}
    return await _found(history, query)


async def list_aborted(history: Registry, after: str, until: str) -> list[Document]:
    """Return aborted documents of models with ``after < hash <= until``."""
    return await _found(history, {"hash": {"$gt": after, "$lte": until}, "status": ABORTED})


async def abort(history: Registry, documents: Iterable[Document]) -> None:
    """Set the state of documents to aborted, except of those that changed since :func:`list_documents` read them.

    Roll-ups keep the snapshots among them.
    """
    documents = list(documents)
    await history.timeline.thinned.note(each for each in documents if each["status"] == COMMITTED)
    by_status: dict[str, list[Document]] = {}
    for document in documents:
        by_status.setdefault(document["status"], []).append(document)
    with unavailable():
        for status, group in by_status.items():
            for some in _batches(group):
                where = {
                    "_id": {"$in": [entry["_id"] for entry in some]},
                    "status": status,
                    # If another snapshotter replaced an intent, id and status are equal, but the attempt differs.
                    "attempt": {"$in": [entry["attempt"] for entry in some]},
                }
                await history.collection("history").update_many(where, {"$set": {"status": ABORTED}})


async def delete_aborted(history: Registry, documents: Sequence[Document]) -> None:
    """Delete documents that are aborted; one that became an intent again meanwhile stays."""
    with unavailable():
        for some in _batches(documents):
            where = {"_id": {"$in": [entry["_id"] for entry in some]}, "status": ABORTED}
            await history.collection("history").delete_many(where)


def _batches(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    for begin in range(0, len(documents), CHANGES_PER_CALL):
        yield documents[begin : begin + CHANGES_PER_CALL]


async def _found(history: Registry, query: Document) -> list[Document]:
    with unavailable():
        found = history.collection("history").find(query, dict.fromkeys(_FIELDS, 1)).batch_size(DOCUMENTS_PER_BATCH)
        # Documents of older versions have neither.
        return [{"attempt": None, "begun": entry["timestamp"], **entry} async for entry in found]

"""The history as those who clear it up see it: in every state, and what is taken out of it.

Owns the step from any state to ``aborted``, and the end of a document. Never decides what has to go
(:mod:`keepfit.snapshots.retention`, :mod:`keepfit.snapshots.garbage`). Invariant: a document changes only if it is
still in the state, and of the attempt, in which it was read; so a snapshotter that has gone on meanwhile keeps what it
did.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from keepfit.history import ABORTED, COMMITTED, Document, Registry, unavailable

ENTRIES_A_TRIP = 5000
# Changes of one call, which has seconds: a server may sync each document by itself.
CHANGES_A_TRIP = 200
# What tells of a document's blob, of its state and of its age.
_ENTRY = (
    "_id", "hash", "generation", "version", "sha256", "size_bytes", "attempt", "uri", "timestamp", "begun", "status",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelLifetime:
    """A model of the register, deleted or not; `deleted_s` is when it was last deleted, None where that is not known.

    Snapshots of generations before `born` are those of a deleted predecessor.
    """

    hash: str
    born: int
    deleted: bool = False
    deleted_s: float | None = None


@dataclass(slots=True)
class Coverage:
    """What of a model's calls is in a snapshot, or of no use any more: all of generations before `born` (inf: all).

    `upto` is the last sequence by the generation in which the sequences began; what began before `origin` is over.
    """

    born: float
    origin: float = 0
    upto: dict[int, int] = field(default_factory=dict)

    def add(self, document: Document) -> None:
        """Take in a committed snapshot."""
        origin = document.get("origin")
        if origin is None:
            # Of another house, or an older version: what waits for the live model may come on top of it.
            origin = document["generation"]
        else:
            self.origin = max(self.origin, origin)
        self.upto[origin] = max(document["sequence"], self.upto.get(origin, 0))

    def covers(self, origin: int, sequence: int) -> bool:
        """Tell whether all up to a sequence is covered."""
        return origin < max(self.born, self.origin) or sequence <= self.upto.get(origin, -1)


async def end_of_slice(history: Registry, after: str, limit: int) -> str | None:
    """Hash of the `limit`-th registered model after `after`, deleted ones counted; None where there are fewer."""
    with unavailable():
        found = history.collection("models").find({"_id": {"$gt": after}}, {"_id": 1}).sort("_id", 1).limit(limit)
        models = await found.to_list(limit)
    return str(models[-1]["_id"]) if len(models) == limit else None


async def list_lifetimes(history: Registry, after: str, until: str) -> list[ModelLifetime]:
    """List registered models with ``after < hash <= until``, deleted ones too."""
    wanted = {"born": 1, "deleted": 1, "deleted_s": 1}
    with unavailable():
        found = history.collection("models").find({"_id": {"$gt": after, "$lte": until}}, wanted)
        return [
            ModelLifetime(model["_id"], model["born"], model["deleted"], model.get("deleted_s"))
            async for model in found
        ]


async def find_coverage(history: Registry, hashes: Iterable[str], since_s: float) -> dict[str, Coverage]:
    """Find what models have in committed snapshots of `since_s` (seconds) or later; unknown models are left out."""
    found: dict[str, Coverage] = {}
    wanted = sorted(hashes)
    with unavailable():
        for begin in range(0, len(wanted), CHANGES_A_TRIP):
            some = {"$in": wanted[begin : begin + CHANGES_A_TRIP]}
            async for model in history.collection("models").find({"_id": some}, {"born": 1, "deleted": 1}):
                found[model["_id"]] = Coverage(math.inf if model["deleted"] else model["born"])
            query = {"hash": some, "status": COMMITTED, "timestamp": {"$gte": since_s}}
            wanted_fields = dict.fromkeys(("hash", "generation", "origin", "sequence"), 1)
            async for document in history.collection("history").find(query, wanted_fields):
                if document["hash"] in found:
                    found[document["hash"]].add(document)
    return found


async def list_documents(history: Registry, after: str, until: str, before_s: float | None = None) -> list[Document]:
    """List documents of models with ``after < hash <= until`` in every state, those with a time before `before_s`.

    They have what tells of their blob, their `status`, and `begun`: when their intent was written (seconds).
    """
    query: Document = {"hash": {"$gt": after, "$lte": until}}
    if before_s is not None:
        query["timestamp"] = {"$lt": before_s}
    return await _found(history, query)


async def list_aborted(history: Registry, after: str, until: str) -> list[Document]:
    """List documents of models with ``after < hash <= until`` that are aborted."""
    return await _found(history, {"hash": {"$gt": after, "$lte": until}, "status": ABORTED})


async def abort(history: Registry, doomed: Iterable[Document]) -> None:
    """Set the state of documents to aborted, except of those that changed since :func:`list_documents` read them."""
    by_status: dict[str, list[Document]] = {}
    for entry in doomed:
        by_status.setdefault(entry["status"], []).append(entry)
    with unavailable():
        for status, all_of_it in by_status.items():
            for some in _trips(all_of_it):
                where = {
                    "_id": {"$in": [entry["_id"] for entry in some]},
                    "status": status,
                    # Of an intent that was taken over both may be the same again, but never the attempt.
                    "attempt": {"$in": [entry["attempt"] for entry in some]},
                }
                await history.collection("history").update_many(where, {"$set": {"status": ABORTED}})


async def delete_aborted(history: Registry, entries: Sequence[Document]) -> None:
    """Delete documents that are aborted; one that was begun anew meanwhile stays."""
    with unavailable():
        for some in _trips(entries):
            where = {"_id": {"$in": [entry["_id"] for entry in some]}, "status": ABORTED}
            await history.collection("history").delete_many(where)


def _trips(entries: Sequence[Document]) -> Iterator[Sequence[Document]]:
    for begin in range(0, len(entries), CHANGES_A_TRIP):
        yield entries[begin : begin + CHANGES_A_TRIP]


async def _found(history: Registry, query: Document) -> list[Document]:
    with unavailable():
        found = history.collection("history").find(query, dict.fromkeys(_ENTRY, 1)).batch_size(ENTRIES_A_TRIP)
        # Documents that older versions wrote have neither.
        return [{"attempt": None, "begun": entry["timestamp"], **entry} async for entry in found]

"""Write documents of users that come from outside: new ones, in the place of others, or merged into others.

Owns how such a document is identified, and deletion in bounded time. Writes the collection ``timeline`` alone, so
nothing of it reaches a snapshot. Invariants: what a call has written is durable when it returns; a call that raised, or
whose answer was lost, can be repeated with the same documents, and stores nothing twice; the times of all that changes
are marked for the roll-ups before.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bson.errors import InvalidDocument
from pymongo import ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError, DocumentTooLarge

from keepfit.errors import InvalidError
from keepfit.history import documents as storing
from keepfit.history.mongo import DUPLICATE_KEY, Collection, Database, Document, long_call
from keepfit.history.queries import reading
from keepfit.history.queries.filters import Filter
from keepfit.history.queries.sources import StoredSource
from keepfit.history.rollups.changes import RollupChanges

# What becomes of a stored document with the same identity: it stays, is replaced, or gets the fields of the new one.
Existing = Literal["stays", "replaced", "merged"]
BATCH_DOCUMENTS = 500
# A deletion returns after this time, and says that it is not complete.
DELETE_S = 5.0


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many documents a call deleted, and whether none is left that matches."""

    documents: int
    is_complete: bool


def identify(document: Mapping[str, Any], identity: Mapping[str, Any] | None, owner: str = "") -> Document:
    """Return a document in its stored form, identified by its type and `identity`; None: by all its fields.

    Documents of different `owner` never have the same identity: callers who may see parts of the history alone.

    Raises
    ------
    InvalidError, MalformedError
        As :func:`keepfit.history.documents.to_stored`.
    """
    stored = storing.to_stored(document)
    if identity is not None:
        named = identity if not owner else {"": owner, **identity}
        stored["_id"] = storing.document_id(stored["type"], named)
    return stored


class DocumentWriter:
    """Writes and deletes documents in their stored form (:func:`identify`)."""

    def __init__(self, database: Database, collection: Collection, changes: RollupChanges) -> None:
        self._database = database
        self._collection = collection
        self._changes = changes

    async def write(self, documents: Sequence[Document], existing: Existing) -> None:
        """Write documents; of several with the same identity the last counts, or the first if the `existing` stays.

        Raises
        ------
        InvalidError
            If MongoDB cannot store one of them.
        UnavailableError
            If MongoDB is unavailable. The call can be repeated.
        """
        for first in range(0, len(documents), BATCH_DOCUMENTS):
            await self._write(join(documents[first : first + BATCH_DOCUMENTS], existing), existing)

    async def _write(self, batch: Sequence[Document], existing: Existing) -> None:
        try:
            async with self._changes.writing(batch):
                # Nearly all are new, and an insertion takes a server less than a replacement.
                known = await self._insert(batch)
                if known and existing != "stays":
                    await self._change(known, existing)
        except (InvalidDocument, DocumentTooLarge, OverflowError, UnicodeEncodeError) as error:
            raise InvalidError(f"MongoDB cannot store this document: {error}") from None

    async def _insert(self, batch: Sequence[Document]) -> list[Document]:
        """Insert documents; return those whose identity is stored already."""
        async with long_call(self._database):
            try:
                await self._collection.insert_many(batch, ordered=False)
            except BulkWriteError as error:
                faults = error.details["writeErrors"]
                if {fault["code"] for fault in faults} != {DUPLICATE_KEY}:
                    raise
                return [batch[fault["index"]] for fault in faults]
        return []

    async def _change(self, batch: Sequence[Document], existing: Existing) -> None:
        """Replace stored documents or merge into them."""
        times = {document["_id"]: document["timestamp"] for document in batch}
        make = _replacement if existing == "replaced" else _merge
        async with long_call(self._database):
            found = self._collection.find({"_id": {"$in": list(times)}}, {"type": 1, "timestamp": 1})
            earlier = [one async for one in found if one["timestamp"] != times[one["_id"]]]
        async with self._changes.writing(earlier), long_call(self._database):
            await self._collection.bulk_write([make(document) for document in batch], ordered=False)

    async def delete(
        self, where: Filter, start: float | None, stop: float | None, limit_s: float = DELETE_S
    ) -> Deleted:
        """Delete documents of users that match, newest first, from `start` and before `stop` (seconds).

        Raises
        ------
        UnavailableError
            If MongoDB is unavailable. The call can be repeated.
        """
        source, end_s, deleted = _Raw(self._collection), time.monotonic() + limit_s, 0
        conditions: Document = {}
        for stage in source.match_stages(where, start, stop):
            conditions |= stage["$match"]
        while True:
            found = await reading.read_newest([source], where, start, stop, time.time(), BATCH_DOCUMENTS)
            if not found:
                break
            # One that was replaced since, and matches no more, stays.
            ids: Document = {"_id": {"$in": [document["_id"] for document in found]}}
            async with self._changes.writing(found, are_deleted=True), long_call(self._database):
                result = await self._collection.delete_many({**ids, **conditions})
            deleted += result.deleted_count
            if time.monotonic() >= end_s:
                return Deleted(deleted, is_complete=False)
        return Deleted(deleted, is_complete=True)


class _Raw(StoredSource):
    """Reads documents in their stored form."""

    def to_public(self, document: Document) -> Document:
        return document


def join(batch: Sequence[Document], existing: Existing) -> list[Document]:
    """Return documents with each identity once: the first, the last, or both as one, as a server would store them."""
    found: dict[str, Document] = {}
    for document in batch:
        before = found.get(document["_id"])
        if before is None or existing == "replaced":
            found[document["_id"]] = document
        elif existing == "merged":
            found[document["_id"]] = _merged(before, document)
    return list(found.values())


def _merged(before: Document, after: Document) -> Document:
    names = {label["k"] for label in after["labels"]}
    labels = [*(label for label in before["labels"] if label["k"] not in names), *after["labels"]]
    return {**after, "labels": labels, "document": _deep(before["document"], after["document"])}


def _deep(before: Mapping[str, Any], after: Mapping[str, Any]) -> Document:
    both = dict(before)
    for name, value in after.items():
        inner = both.get(name)
        both[name] = _deep(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both


def _replacement(document: Document) -> ReplaceOne[Document]:
    return ReplaceOne({"_id": document["_id"]}, document, upsert=True)


def _merge(document: Document) -> UpdateOne:
    """Return the update that sets the fields of a document and leaves all others, in one step."""
    names = [label["k"] for label in document["labels"]]
    kept = {
        "$filter": {
            "input": {"$ifNull": ["$labels", []]},
            "cond": {"$not": [{"$in": ["$$this.k", {"$literal": names}]}]},
        }
    }
    changes: Document = {
        "type": {"$literal": document["type"]},
        "timestamp": document["timestamp"],
        "labels": {"$concatArrays": [kept, {"$literal": document["labels"]}]},
    }
    _set_leaves(changes, "document", document["document"])
    return UpdateOne({"_id": document["_id"]}, [{"$set": changes}], upsert=True)


def _set_leaves(changes: Document, path: str, values: Mapping[str, Any]) -> None:
    # Checked names hold no dot and no dollar sign (keepfit.history.writing.checks).
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            _set_leaves(changes, f"{path}.{name}", value)
        else:
            changes[f"{path}.{name}"] = {"$literal": value}

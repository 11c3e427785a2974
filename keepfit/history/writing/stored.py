"""Write and delete the documents that users store, in the collection ``timeline``.

Never touches the documents of snapshots. Invariant: a call that returned has written or deleted all it was given, and
can be repeated if it raised.
"""

import time
from collections.abc import Sequence
from typing import Any

from bson.errors import InvalidDocument
from pymongo import DeleteOne, ReplaceOne
from pymongo.errors import BulkWriteError, DocumentTooLarge

from keepfit.errors import InvalidError
from keepfit.history import documents as storing
from keepfit.history.mongo import (
    DUPLICATE_KEY,
    UPKEEP_TIMEOUT_S,
    Database,
    Document,
    long_call,
    unavailable,
)
from keepfit.history.queries import reading
from keepfit.history.queries.filters import Filter
from keepfit.history.queries.sources import StoredSource
from keepfit.history.rollups.changes import RollupChanges
from keepfit.times import SECONDS_MAX, SECONDS_MIN

BATCH_DOCUMENTS = 1_000


class StoredDocuments:
    """Writes and deletes stored documents, in their stored form (:mod:`keepfit.history.documents`).

    Roll-ups learn from `changes` of which times documents are stored or deleted.
    """

    def __init__(self, database: Database, source: StoredSource, changes: RollupChanges) -> None:
        self.database = database
        self.source = source
        self._collection = source.collection
        self._changes = changes

    async def write(self, batch: Sequence[Document], replaced: Sequence[Document] = ()) -> None:
        """Write documents; each replaces the one with the same ``_id``, whose time may differ: see :meth:`reuse_ids`.

        Raises
        ------
        InvalidError
            If MongoDB cannot store one of them.
        """
        writes = [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in batch]
        try:
            async with self._changes.writing([*batch, *replaced]), long_call(self.database):
                try:
                    await self._collection.bulk_write(writes, ordered=False)
                except BulkWriteError as error:
                    if {fault["code"] for fault in error.details["writeErrors"]} != {DUPLICATE_KEY}:
                        raise
                    # A concurrent call inserted it: it exists now and is replaced.
                    await self._collection.bulk_write(writes, ordered=False)
        except (InvalidDocument, DocumentTooLarge, OverflowError, UnicodeEncodeError) as error:
            raise InvalidError(f"MongoDB cannot store this document: {error}") from None

    async def reuse_ids(self, batch: Sequence[Document], keys: Sequence[str], in_: Sequence[str]) -> Sequence[Document]:
        """Set the ``_id`` of each document to that of the stored one that it replaces, if there is one.

        Returns types and times of those that are replaced.
        """
        replaced: list[Document] = []
        for type_ in {document["type"] for document in batch}:
            of_type = [document for document in batch if document["type"] == type_]
            first: Document = {"type": type_}
            if "timestamp" in keys:
                first["timestamp"] = {"$gte": of_type[0]["timestamp"], "$lte": of_type[-1]["timestamp"]}
            fields = {self.source.field_path(key): 1 for key in (*keys, *in_)} | {"timestamp": 1, "type": 1}
            existing: dict[str, list[Document]] = {}
            async with long_call(self.database):
                async for found in self._collection.aggregate([{"$match": first}, {"$project": fields}]):
                    existing.setdefault(_key(found, keys), []).append(found)
            for document in of_type:
                for found in existing.get(_key(document, keys), ()):
                    if all(_value(found, name) in _values(document, name) for name in in_):
                        document["_id"] = found["_id"]
                        replaced.append(found)
                        break
        return replaced

    async def delete_newest(self, where: Filter) -> bool:
        """Delete the newest document that matches and return whether there was one."""
        # Read by windows, as every query.
        found = await reading.read_newest([_Raw(self._collection)], where, None, None, time.time(), 1)
        if not found:
            return False
        # Not if it was replaced since.
        one = {name: found[0][name] for name in ("_id", "type", "timestamp", "document")}
        async with self._changes.writing(found, are_deleted=True):
            with unavailable():
                result = await self._collection.delete_one(one)
        return bool(result.deleted_count)

    async def delete(self, where: Filter, start: float | None, stop: float | None) -> int:
        """Delete all documents that match, from `start` and before `stop` (seconds); return their number."""
        first, last = where.narrow(start, stop)
        range_ = SECONDS_MIN if first is None else first, SECONDS_MAX if last is None else last
        deleted = 0

        async def fetch(low: float | None, high: float | None) -> int:
            nonlocal deleted
            # By identifiers: a server may use no index for a condition with more than type and time.
            stages = self.source.match_stages(where, low, high)
            conditions: Document = {name: value for stage in stages for name, value in stage["$match"].items()}
            async with long_call(self.database, UPKEEP_TIMEOUT_S):
                found = self._collection.aggregate([*stages, {"$project": {"_id": 1}}])
                ids = [each["_id"] async for each in found]
                for begin in range(0, len(ids), BATCH_DOCUMENTS):
                    some: Document = {"_id": {"$in": ids[begin : begin + BATCH_DOCUMENTS]}}
                    deleted += (await self._collection.delete_many({**some, **conditions})).deleted_count
            return len(ids)

        async with self._changes.deleting(where.type, *range_):
            async for _ in reading.fetch_windows(fetch, first, last, time.time(), reading.WINDOW_S, reading.CHUNK):
                pass
        return deleted

    async def expire(self, type_: str | None, but: Sequence[str], stop: float) -> int:
        """Delete documents of a type (None: all but those in `but`) before `stop` (seconds); return their number.

        Types with roll-ups expire by :mod:`keepfit.history.upkeep.expiry`.
        """
        where: Document = {"timestamp": {"$lt": stop}}
        where = {**where, "type": {"$nin": list(but)}} if type_ is None else {"type": type_, **where}
        async with long_call(self.database, UPKEEP_TIMEOUT_S):
            result = await self._collection.delete_many(where)
        return int(result.deleted_count)

    async def list_all(self, type_: str, start: float | None, stop: float | None) -> list[Document]:
        """Return the documents of a type in a range of time, in their stored form."""
        async with long_call(self.database):
            found = self._collection.aggregate(self.source.match_stages(Filter(type_), start, stop))
            return [each async for each in found]

    async def replace_rollups(self, changed: Sequence[Document], gone: Sequence[Document], number: int) -> None:
        """Write and delete documents of a roll-up in its run of this number, but none that a later run wrote."""
        mine: Document = {"run": {"$not": {"$gt": number}}}
        writes: list[ReplaceOne[Document] | DeleteOne] = [
            ReplaceOne({"_id": each["_id"], **mine}, each, upsert=True) for each in changed
        ]
        writes += [DeleteOne({"_id": each["_id"], **mine}) for each in gone]
        for first in range(0, len(writes), BATCH_DOCUMENTS):
            # Roll-ups may be rolled up themselves.
            some = [*changed, *gone][first : first + BATCH_DOCUMENTS]
            async with self._changes.writing(some), long_call(self.database):
                try:
                    await self._collection.bulk_write(writes[first : first + BATCH_DOCUMENTS], ordered=False)
                except BulkWriteError as error:
                    # The documents with these keys are of a later run.
                    if {fault["code"] for fault in error.details["writeErrors"]} != {DUPLICATE_KEY}:
                        raise


class _Raw(StoredSource):
    """Reads documents in their stored form."""

    def to_public(self, document: Document) -> Document:
        return document


def _value(document: Document, name: str) -> Any:
    return document.get(name) if name in ("type", "timestamp") else document.get("document", {}).get(name)


def _values(document: Document, name: str) -> Sequence[Any]:
    value = _value(document, name)
    return value if isinstance(value, list) else [value]


def _key(document: Document, keys: Sequence[str]) -> str:
    return storing.document_id("", {name: _value(document, name) for name in keys})

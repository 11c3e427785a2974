"""The timeline: store and query documents by time, as in funtime, and aggregate their numbers, as in InfluxDB.

Owns the collection ``timeline`` (stored documents and roll-ups). Reads the snapshots in the collection ``history`` and
never writes them. Async; :mod:`keepfit.history.timeline_sync` is the synchronous form. Invariants: each query uses an
index; values of a user's filter are compared, never interpreted.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Self

import pymongo
from bson.errors import InvalidDocument
from pymongo import ASCENDING, DESCENDING, ReplaceOne, WriteConcern
from pymongo.errors import BulkWriteError, DocumentTooLarge

from keepfit.errors import InvalidError
from keepfit.history import documents as storing
from keepfit.history import points, reading
from keepfit.history.grouping import Fill
from keepfit.history.mongo import INDEX_TIMEOUT_S, Client, Database, Document, gather_all, open_database, unavailable
from keepfit.history.points import Aggregation, Point
from keepfit.history.reading import Columns, Filter, Scalar, SnapshotSource, Source, StoredSource
from keepfit.history.times import Time, parse_duration, parse_time

BATCH_DOCUMENTS = 1_000
DUPLICATE_KEY = 11000
Values = Mapping[str, Any] | Filter | None


class Timeline:
    """Async access to documents by time; create it inside the event loop that uses it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        journaled: WriteConcern = WriteConcern(w="majority", j=True)
        self._stored = database.get_collection("timeline", write_concern=journaled)
        self._stored_source = StoredSource(self._stored)
        self._sources: Sequence[Source] = (SnapshotSource(database.get_collection("history")), self._stored_source)
        # Progress of each roll-up; see keepfit.history.rollups.
        self.rollup_progress = database.get_collection("rollups", write_concern=journaled)
        self._client: Client | None = None
        self._indexing = asyncio.Lock()
        self._indexed = False

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the timeline of the database that `url` names; the first call connects."""
        client, database = open_database(url)
        opened = cls(database)
        opened._client = client
        return opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, if :meth:`open` opened them."""
        if self._client is not None:
            self._client.close()

    @asynccontextmanager
    async def _long_call(self) -> AsyncIterator[None]:
        """Allow calls in the block more time, but fail as early as others if MongoDB is unavailable."""
        with unavailable():
            # Ping first: within the longer time limit the driver would retry.
            await self._database.command("ping")
            with pymongo.timeout(INDEX_TIMEOUT_S):
                yield

    async def ensure_indexes(self) -> None:
        """Create the indexes that the queries use; after the first success do nothing."""
        async with self._indexing:
            if self._indexed:
                return
            async with self._long_call():
                for source in self._sources:
                    await source.collection.create_index([("type", ASCENDING), ("timestamp", DESCENDING)])
                    await source.collection.create_index([("timestamp", DESCENDING)])
                await self._sources[0].collection.create_index([("hash", ASCENDING), ("timestamp", DESCENDING)])
            self._indexed = True

    # Writing.

    async def store(self, document: Mapping[str, Any]) -> None:
        """Store one document; it must have ``type`` (str) and ``timestamp`` (float, datetime or text).

        Storing a document that equals a stored one in every field changes nothing.

        Raises
        ------
        InvalidError, MalformedError
            If it is not such a document.
        UnavailableError
            If MongoDB is unavailable. The call can be repeated.
        """
        await self._write([storing.to_stored(document)])

    async def bulk_upsert(
        self, documents: Iterable[Mapping[str, Any]], keys: Sequence[str] = (), in_: Sequence[str] = ()
    ) -> int:
        """Store many documents; return their number.

        A document replaces the stored one of the same type with equal values of `keys`, and whose value of each `in_`
        field is in the list that the new document has in that field. Without `keys` and `in_`, each is stored as by
        :meth:`store`. Use ``timestamp`` as one of the keys: the lookup of stored documents uses it.
        """
        wrapped = [storing.to_stored(document, (*keys, *in_)) for document in documents]
        if keys or in_:
            wrapped.sort(key=lambda document: (document["type"], document["timestamp"]))
        for first in range(0, len(wrapped), BATCH_DOCUMENTS):
            batch = wrapped[first : first + BATCH_DOCUMENTS]
            if keys or in_:
                await self._reuse_ids(batch, keys, in_)
            await self._write(batch)
        return len(wrapped)

    async def _reuse_ids(self, batch: Sequence[Document], keys: Sequence[str], in_: Sequence[str]) -> None:
        """Set the ``_id`` of each document to that of the stored one that it replaces, if there is one."""
        for type_ in {document["type"] for document in batch}:
            of_type = [document for document in batch if document["type"] == type_]
            first: Document = {"type": type_}
            if "timestamp" in keys:
                first["timestamp"] = {"$gte": of_type[0]["timestamp"], "$lte": of_type[-1]["timestamp"]}
            fields = {self._stored_source.field_path(key): 1 for key in (*keys, *in_)} | {"timestamp": 1, "type": 1}
            existing: dict[str, list[Document]] = {}
            async with self._long_call():
                async for found in self._stored.aggregate([{"$match": first}, {"$project": fields}]):
                    existing.setdefault(_key(found, keys), []).append(found)
            for document in of_type:
                for found in existing.get(_key(document, keys), ()):
                    if all(_value(found, name) in _values(document, name) for name in in_):
                        document["_id"] = found["_id"]
                        break

    async def _write(self, batch: Sequence[Document]) -> None:
        await self.ensure_indexes()
        writes = [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in batch]
        try:
            async with self._long_call():
                try:
                    await self._stored.bulk_write(writes, ordered=False)
                except BulkWriteError as error:
                    if {fault["code"] for fault in error.details["writeErrors"]} != {DUPLICATE_KEY}:
                        raise
                    # A concurrent call inserted it: it exists now and is replaced.
                    await self._stored.bulk_write(writes, ordered=False)
        except (InvalidDocument, DocumentTooLarge, OverflowError) as error:
            raise InvalidError(f"MongoDB cannot store this document: {error}") from None

    async def delete(self, where: Values) -> bool:
        """Delete the newest stored document that matches and return whether there was one; never delete snapshots."""
        filter_ = _to_filter(where)
        # Read by windows, as every query; the condition of the deletion then identifies the document.
        found = await reading.read_newest([self._stored_source], filter_, None, None, time.time(), 1)
        if not found:
            return False
        stored = storing.to_stored(found[0])
        with unavailable():
            one = {"type": stored["type"], "timestamp": stored["timestamp"], "document": stored["document"]}
            result = await self._stored.delete_one(one)
        return bool(result.deleted_count)

    async def delete_many(self, where: Values, start: Time | None = None, stop: Time | None = None) -> int:
        """Delete all stored documents that match, from `start` and before `stop` where given; return their number."""
        filter_ = _to_filter(where)
        conditions: Document = {}
        for stage in self._stored_source.match_stages(filter_, _to_seconds(start), _to_seconds(stop)):
            conditions |= stage["$match"]
        async with self._long_call():
            result = await self._stored.delete_many(conditions)
        return int(result.deleted_count)

    async def delete_others(self, types: Sequence[str], stop: float) -> int:
        """Delete all stored documents before `stop` (seconds) that have none of these types; return their number."""
        async with self._long_call():
            result = await self._stored.delete_many({"timestamp": {"$lt": stop}, "type": {"$nin": list(types)}})
        return int(result.deleted_count)

    # Reading documents.

    async def query(
        self,
        where: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        limit: int = 0,
        page_size: int = 0,
        page_num: int = 1,
    ) -> list[Document]:
        """Return the documents that match, newest first; `start` is inclusive, `stop` exclusive.

        Parameters
        ----------
        where
            Values by key: ``type``, ``hash`` of a model, and any key of metadata or of stored documents.
        limit
            Maximum number of documents; 0 means all.
        page_size, page_num
            Size and number of the page to return; pages count from 1, size 0 means all.
        """
        if page_size < 0 or page_num < 1 or limit < 0:
            raise InvalidError("page_num must be 1 or more; limit and page_size must be 0 or more.")
        skipped = page_size * (page_num - 1)
        most = min(limit, skipped + page_size) if limit and page_size else limit or (page_size and skipped + page_size)
        found = await reading.read_newest(
            self._sources, _to_filter(where), _to_seconds(start), _to_seconds(stop), time.time(), most
        )
        return found[skipped:]

    async def query_sorted(self, /, where: Values = None, limit: int = 0, **page: int) -> list[Document]:
        """Return the documents that match, newest first."""
        return await self.query(where, limit=limit, **page)

    async def query_latest(self, where: Values = None, since: Time | None = None, limit: int = 1) -> list[Document]:
        """Return the newest documents before the time `since`, by default now."""
        return await self.query(where, stop=time.time() if since is None else since, limit=limit)

    async def query_last(self, where: Values = None) -> Document | None:
        """Return the newest document that matches; None if there is none."""
        return next(iter(await self.query(where, limit=1)), None)

    async def query_time(
        self,
        /,
        time_type: Literal["window", "before", "after"] = "window",
        start: Time | None = None,
        stop: Time | None = None,
        query_type: str | None = None,
        page_size: int = 0,
        page_num: int = 1,
        **where: Scalar,
    ) -> list[Document]:
        """Return documents between `start` and `stop`, before `start`, or from `start` on; newest first."""
        bounds = {"window": (start, stop), "before": (None, start), "after": (start, None)}
        needed = {"window": (start, stop), "before": (start,), "after": (start,)}
        if time_type not in bounds or None in needed[time_type]:
            raise InvalidError("time_type must be window (with start and stop), before or after (with start).")
        named = where if query_type is None else {**where, "type": query_type}
        first, last = bounds[time_type]
        return await self.query(named, first, last, page_size=page_size, page_num=page_num)

    async def query_closest(self, where: Mapping[str, Any]) -> Document | None:
        """Return the document nearest to the value of ``timestamp``; of two at equal distance the later one."""
        named = dict(where)
        if "timestamp" not in named:
            raise InvalidError("query_closest needs a timestamp among the values.")
        return await self.closest(Filter.of({k: v for k, v in named.items() if k != "timestamp"}), named["timestamp"])

    async def closest(self, where: Values, at: Time) -> Document | None:
        """Return the document nearest to a time, on either side; of two at equal distance the later one."""
        moment, filter_, now = parse_time(at), _to_filter(where), time.time()

        async def after() -> list[Document]:
            first = await reading.read_oldest(self._sources, filter_, moment, now)
            return [first] if first else []

        both = await gather_all(after(), reading.read_newest(self._sources, filter_, None, moment, now, 1))
        found = [document for some in both for document in some]
        return min(found, key=lambda document: abs(document["timestamp"] - moment), default=None)

    async def stats(self) -> dict[str, int]:
        """Return the estimated numbers of snapshots and of stored documents."""
        with unavailable():
            snapshots, stored = await gather_all(
                *(source.collection.estimated_document_count() for source in self._sources)
            )
        return {"snapshots": snapshots, "stored": stored}

    # Points.

    async def points(
        self,
        field: str | None,
        every: str | float,
        stat: str = "mean",
        where: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        group: str | None = None,
        fill: Fill = "none",
        rate: str | float | None = None,
        moving: int | None = None,
    ) -> list[Point]:
        """Aggregate documents by time: one point per interval `every`, ordered by group and time.

        Parameters
        ----------
        field
            Dotted name of a number field: ``metrics.mean_absolute_error``; None for ``count``.
        every, rate
            Durations: ``30s``, ``5m``, ``1h``, ``1d``, ``1w``, or seconds; `rate` is the change per this duration.
        stat
            ``mean``, ``min``, ``max``, ``sum``, ``count``, ``first``, ``last``, ``median``, ``p99``.
        group
            Key of metadata; each of its values has a series of its own.
        fill
            Value of intervals without documents: ``none``, ``null``, ``previous``, ``linear``, or a number.
        moving
            Moving average over this many points.

        Raises
        ------
        MalformedError, InvalidError
            If a parameter is invalid, or the result would be too long.
        """
        rate_s = None if rate is None else _duration(rate)
        aggregation = Aggregation(_duration(every), stat, field, group, fill, rate_s, moving)
        return await self.aggregate(aggregation, _to_filter(where), _to_seconds(start), _to_seconds(stop))

    async def aggregate(
        self, aggregation: Aggregation, where: Filter, start: float | None, stop: float | None
    ) -> list[Point]:
        """Do :meth:`points` for parsed parameters; times are in seconds."""
        aggregation.check()
        if start is not None and stop is not None:
            points.check_length(start, stop, aggregation.every)
        found = await self.read_columns(where, start, stop, aggregation.field, aggregation.group)
        return await asyncio.to_thread(points.compute, found, aggregation, start, stop)

    async def read_columns(
        self, where: Filter, start: float | None, stop: float | None, field: str | None, group: str | None
    ) -> Columns:
        """Return times and values of the number field `field`, by value of the metadata key `group`."""
        return await reading.read_columns(self._sources, where, start, stop, time.time(), field, group)


def _to_filter(where: Values) -> Filter:
    return where if isinstance(where, Filter) else Filter.of(where)


def _to_seconds(time_: Time | None) -> float | None:
    return None if time_ is None else parse_time(time_)


def _duration(duration: str | float) -> float:
    return parse_duration(duration if isinstance(duration, str) else f"{duration:.6f}s")


def _value(document: Document, name: str) -> Any:
    return document.get(name) if name in ("type", "timestamp") else document.get("document", {}).get(name)


def _values(document: Document, name: str) -> Sequence[Any]:
    value = _value(document, name)
    return value if isinstance(value, list) else [value]


def _key(document: Document, keys: Sequence[str]) -> str:
    return storing.document_id("", {name: _value(document, name) for name in keys})

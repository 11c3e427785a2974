"""The timeline: documents by time, as funtime had them, and points of their numbers, as users of InfluxDB want them.

Owns the collection ``timeline`` (documents that users store, and roll-ups); reads the snapshots of the collection
``history`` beside it, and never writes those. Async; :mod:`keepfit.history.timeline_sync` is the same for who has no
loop. Invariants: each query uses an index; what users send as a filter is compared as a value, never interpreted.
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
from keepfit.history.mongo import INDEX_TIMEOUT_S, Client, Database, Document, open_database, together, unavailable
from keepfit.history.points import Point, Shape
from keepfit.history.reading import Columns, Filter, Scalar, Snapshots, Source, Stored
from keepfit.history.times import Time, parse_duration, parse_time

BATCH = 1_000
DUPLICATE = 11000
Values = Mapping[str, Any] | Filter | None


class Timeline:
    """Async access to documents by time; make one inside the event loop that uses it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        journaled: WriteConcern = WriteConcern(w="majority", j=True)
        self._stored = database.get_collection("timeline", write_concern=journaled)
        self._own = Stored(self._stored)
        self._sources: Sequence[Source] = (Snapshots(database.get_collection("history")), self._own)
        # How far each roll-up has come; see keepfit.history.rollups.
        self.progress = database.get_collection("rollups", write_concern=journaled)
        self._client: Client | None = None
        self._indexing = asyncio.Lock()
        self._indexed = False

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the timeline of the database that `url` names."""
        client, database = open_database(url)
        opened = cls(database)
        opened._client = client
        return opened

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, where this opened them."""
        if self._client is not None:
            self._client.close()

    @asynccontextmanager
    async def _patiently(self) -> AsyncIterator[None]:
        """Give calls the time that much work takes; of a MongoDB that is away tell as soon as otherwise."""
        with unavailable():
            # Within its time limit the driver tries again and again.
            await self._database.command("ping")
            with pymongo.timeout(INDEX_TIMEOUT_S):
                yield

    async def ensure_indexes(self) -> None:
        """Make the indexes that every query here uses, once."""
        async with self._indexing:
            if self._indexed:
                return
            async with self._patiently():
                for source in self._sources:
                    await source.collection.create_index([("type", ASCENDING), ("timestamp", DESCENDING)])
                    await source.collection.create_index([("timestamp", DESCENDING)])
                await self._sources[0].collection.create_index([("hash", ASCENDING), ("timestamp", DESCENDING)])
            self._indexed = True

    # Writing.

    async def store(self, document: Mapping[str, Any]) -> None:
        """Store one document; it holds ``type`` (str) and ``timestamp`` (float, datetime or words).

        One that is there already, equal in every field, is there once.

        Raises
        ------
        InvalidError, MalformedError
            If it is no such document.
        UnavailableError
            If MongoDB is away. Storing it again later is right, whatever was done until then.
        """
        await self._write([storing.wrap(document)])

    async def bulk_upsert(
        self, documents: Iterable[Mapping[str, Any]], keys: Sequence[str] = (), in_: Sequence[str] = ()
    ) -> int:
        """Store many documents; returns how many.

        One replaces that of the same type whose `keys` have the same values, and whose `in_` fields have a value that
        is in the list which the new one has there. Without both, each is stored like :meth:`store` does. Let
        ``timestamp`` be among the keys: by it the others are looked up.
        """
        wrapped = [storing.wrap(document, (*keys, *in_)) for document in documents]
        if keys or in_:
            wrapped.sort(key=lambda document: (document["type"], document["timestamp"]))
        for first in range(0, len(wrapped), BATCH):
            batch = wrapped[first : first + BATCH]
            if keys or in_:
                await self._take_ids(batch, keys, in_)
            await self._write(batch)
        return len(wrapped)

    async def _take_ids(self, batch: Sequence[Document], keys: Sequence[str], in_: Sequence[str]) -> None:
        """Give each document the ``_id`` of that which it replaces, where there is one."""
        for type_ in {document["type"] for document in batch}:
            ours = [document for document in batch if document["type"] == type_]
            first: Document = {"type": type_}
            if "timestamp" in keys:
                first["timestamp"] = {"$gte": ours[0]["timestamp"], "$lte": ours[-1]["timestamp"]}
            fields = {self._own.path(key): 1 for key in (*keys, *in_)} | {"timestamp": 1, "type": 1}
            there: dict[str, list[Document]] = {}
            async with self._patiently():
                async for found in self._stored.aggregate([{"$match": first}, {"$project": fields}]):
                    there.setdefault(_key(found, keys), []).append(found)
            for document in ours:
                for found in there.get(_key(document, keys), ()):
                    if all(_value(found, name) in _listed(document, name) for name in in_):
                        document["_id"] = found["_id"]
                        break

    async def _write(self, batch: Sequence[Document]) -> None:
        await self.ensure_indexes()
        writes = [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in batch]
        try:
            async with self._patiently():
                try:
                    await self._stored.bulk_write(writes, ordered=False)
                except BulkWriteError as error:
                    if {fault["code"] for fault in error.details["writeErrors"]} != {DUPLICATE}:
                        raise
                    # Made by another in this very moment: it is there now, and is replaced.
                    await self._stored.bulk_write(writes, ordered=False)
        except (InvalidDocument, DocumentTooLarge, OverflowError) as error:
            raise InvalidError(f"MongoDB cannot hold that document: {error}") from None

    async def delete(self, wanted: Values) -> bool:
        """Delete the newest document of those that match; tell whether there was one. Snapshots are never deleted."""
        filter_ = _filter(wanted)
        # Found by windows, like everything else; the filter once more names it exactly.
        found = await reading.newest([self._own], filter_, None, None, time.time(), 1)
        if not found:
            return False
        whole = storing.wrap(found[0])
        with unavailable():
            one = {"type": whole["type"], "timestamp": whole["timestamp"], "document": whole["document"]}
            result = await self._stored.delete_one(one)
        return bool(result.deleted_count)

    async def delete_many(self, wanted: Values, start: Time | None = None, stop: Time | None = None) -> int:
        """Delete all documents that match, between times where they are given; returns how many."""
        filter_ = _filter(wanted)
        conditions: Document = {}
        for stage in self._own.matches(filter_, _seconds(start), _seconds(stop)):
            conditions |= stage["$match"]
        async with self._patiently():
            result = await self._stored.delete_many(conditions)
        return int(result.deleted_count)

    async def delete_others(self, types: Sequence[str], stop: float) -> int:
        """Delete all documents before `stop` that are of none of these types; returns how many."""
        async with self._patiently():
            result = await self._stored.delete_many({"timestamp": {"$lt": stop}, "type": {"$nin": list(types)}})
        return int(result.deleted_count)

    # Reading documents.

    async def query(
        self,
        wanted: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        limit: int = 0,
        page_size: int = 0,
        page_num: int = 1,
    ) -> list[Document]:
        """Read the documents that match, newest first; `start` is within, `stop` is not.

        Parameters
        ----------
        wanted
            Values by key: ``type``, ``hash`` of a model, and any key of metadata or of stored documents.
        limit
            At most so many; 0 means all.
        page_size, page_num
            Only that page of them; pages count from 1.
        """
        if page_size < 0 or page_num < 1 or limit < 0:
            raise InvalidError("Pages count from 1, and no size is below 0.")
        skipped = page_size * (page_num - 1)
        most = min(limit, skipped + page_size) if limit and page_size else limit or (page_size and skipped + page_size)
        found = await reading.newest(self._sources, _filter(wanted), _seconds(start), _seconds(stop), time.time(), most)
        return found[skipped:]

    async def query_sorted(self, /, wanted: Values = None, limit: int = 0, **page: int) -> list[Document]:
        """Read the documents that match, newest first."""
        return await self.query(wanted, limit=limit, **page)

    async def query_latest(self, wanted: Values = None, since: Time | None = None, limit: int = 1) -> list[Document]:
        """Read the newest documents before a time, now where none is given."""
        return await self.query(wanted, stop=time.time() if since is None else since, limit=limit)

    async def query_last(self, wanted: Values = None) -> Document | None:
        """Read the newest document that matches."""
        return next(iter(await self.query(wanted, limit=1)), None)

    async def query_time(
        self,
        /,
        time_type: Literal["window", "before", "after"] = "window",
        start: Time | None = None,
        stop: Time | None = None,
        query_type: str | None = None,
        page_size: int = 0,
        page_num: int = 1,
        **wanted: Scalar,
    ) -> list[Document]:
        """Read documents by time: between `start` and `stop`, before `start`, or from `start` on; newest first."""
        bounds = {"window": (start, stop), "before": (None, start), "after": (start, None)}
        needed = {"window": (start, stop), "before": (start,), "after": (start,)}
        if time_type not in bounds or None in needed[time_type]:
            raise InvalidError("time_type is window (with start and stop), before or after (with start).")
        named = wanted if query_type is None else {**wanted, "type": query_type}
        first, last = bounds[time_type]
        return await self.query(named, first, last, page_size=page_size, page_num=page_num)

    async def query_closest(self, wanted: Mapping[str, Any]) -> Document | None:
        """Read the document nearest to ``timestamp``, which stands among the values; of two, the later one."""
        named = dict(wanted)
        if "timestamp" not in named:
            raise InvalidError("The closest document is looked for from a timestamp.")
        return await self.closest(Filter.of({k: v for k, v in named.items() if k != "timestamp"}), named["timestamp"])

    async def closest(self, wanted: Values, at: Time) -> Document | None:
        """Read the document nearest to a time, on either side; of two, the later one."""
        moment, filter_, now = parse_time(at), _filter(wanted), time.time()

        async def after() -> list[Document]:
            first = await reading.oldest(self._sources, filter_, moment, now)
            return [first] if first else []

        both = await together(after(), reading.newest(self._sources, filter_, None, moment, now, 1))
        found = [document for some in both for document in some]
        return min(found, key=lambda document: abs(document["timestamp"] - moment), default=None)

    async def stats(self) -> dict[str, int]:
        """Count what there is, about: snapshots' documents and stored ones."""
        with unavailable():
            snapshots, stored = await together(
                *(source.collection.estimated_document_count() for source in self._sources)
            )
        return {"snapshots": snapshots, "stored": stored}

    # Points.

    async def points(
        self,
        field: str | None,
        every: str | float,
        stat: str = "mean",
        wanted: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        group: str | None = None,
        fill: Fill = "none",
        rate: str | float | None = None,
        moving: int | None = None,
    ) -> list[Point]:
        """Group documents by time: one point for each span `every`, in order of time (and of groups, where grouped).

        Parameters
        ----------
        field
            Dotted name of a number field: ``metrics.mean_absolute_error``; None for ``count``.
        every, rate
            Spans: ``30s``, ``5m``, ``1h``, ``1d``, ``1w``, or seconds; a rate is the change in that span.
        stat
            ``mean``, ``min``, ``max``, ``sum``, ``count``, ``first``, ``last``, ``median``, ``p99``.
        group
            Key of metadata whose values have points of their own.
        fill
            For spans without documents: ``none``, ``null``, ``previous``, ``linear``, or a number.
        moving
            Mean over so many points.

        Raises
        ------
        MalformedError, InvalidError
            If a parameter cannot be, or the answer would be too long.
        """
        shape = Shape(_duration(every), stat, field, group, fill, None if rate is None else _duration(rate), moving)
        return await self.shaped(shape, _filter(wanted), _seconds(start), _seconds(stop))

    async def shaped(self, shape: Shape, wanted: Filter, start: float | None, stop: float | None) -> list[Point]:
        """Make points as :meth:`points` does, of what was read already."""
        shape.check()
        if start is not None and stop is not None:
            points.check_length(start, stop, shape.every)
        found = await self.columns(wanted, start, stop, shape.field, shape.group)
        return await asyncio.to_thread(points.of, found, shape, start, stop)

    async def columns(
        self, wanted: Filter, start: float | None, stop: float | None, field: str | None, group: str | None
    ) -> Columns:
        """Read the times and values that points are made of, for each value of `group`."""
        return await reading.columns(self._sources, wanted, start, stop, time.time(), field, group)


def _filter(wanted: Values) -> Filter:
    return wanted if isinstance(wanted, Filter) else Filter.of(wanted)


def _seconds(given: Time | None) -> float | None:
    return None if given is None else parse_time(given)


def _duration(duration: str | float) -> float:
    return parse_duration(duration if isinstance(duration, str) else f"{duration:.6f}s")


def _value(document: Document, name: str) -> Any:
    return document.get(name) if name in ("type", "timestamp") else document.get("document", {}).get(name)


def _listed(document: Document, name: str) -> Sequence[Any]:
    value = _value(document, name)
    return value if isinstance(value, list) else [value]


def _key(document: Document, keys: Sequence[str]) -> str:
    return storing.identity("", {name: _value(document, name) for name in keys})

"""The timeline: store and query documents by time, as in funtime, and aggregate their numbers, as in InfluxDB.

Owns the collection ``timeline`` (stored documents and roll-ups). Reads the snapshots in the collection ``history`` and
never writes them. Async; :mod:`keepfit.history.timeline_sync` is the synchronous form. Invariants: each query uses an
index; values of a user's filter are compared, never interpreted.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from pymongo import ASCENDING, DESCENDING, WriteConcern

from keepfit.conditions import Scalar
from keepfit.errors import InvalidError
from keepfit.history import documents as storing
from keepfit.history import points, reading
from keepfit.history.filters import ALL, DOCUMENT, SNAPSHOT, Filter, Kind, check_kind
from keepfit.history.grouping import Fill
from keepfit.history.mongo import Client, Database, Document, gather_all, open_database, unavailable
from keepfit.history.points import Aggregation, Point, check_count
from keepfit.history.reading import Columns
from keepfit.history.rollup_changes import RollupChanges
from keepfit.history.rollup_progress import RollupProgress
from keepfit.history.sources import SnapshotSource, Source, StoredSource, is_snapshot_number
from keepfit.history.stored import StoredDocuments, long_call
from keepfit.history.thinned import Thinned
from keepfit.times import Duration, Time, format_time, parse_duration, parse_time

BATCH_DOCUMENTS = 1_000
Values = Mapping[str, Any] | Filter | None


class Timeline:
    """Async access to documents by time; create it inside the event loop that uses it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        journaled: WriteConcern = WriteConcern(w="majority", j=True)
        stored = StoredSource(database.get_collection("timeline", write_concern=journaled))
        self.rollup_changes = RollupChanges(database, journaled)
        progress = database.get_collection("rollups", write_concern=journaled)
        self.rollup_progress = RollupProgress(progress, self.rollup_changes)
        self.rollup_expiries = database.get_collection("rollup_expiries", write_concern=journaled)
        self.thinned = Thinned(database.get_collection("thinned", write_concern=journaled))
        self.stored = StoredDocuments(database, stored, self.rollup_changes)
        self._snapshots = SnapshotSource(database.get_collection("history"))
        self._sources: Sequence[Source] = (self._snapshots, stored)
        self._types_of_models: set[str] = set()
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

    async def ensure_indexes(self) -> None:
        """Create the indexes that the queries use; after the first success do nothing."""
        async with self._indexing:
            if self._indexed:
                return
            async with long_call(self._database):
                for source in self._sources:
                    await source.collection.create_index([("type", ASCENDING), ("timestamp", DESCENDING)])
                    await source.collection.create_index([("timestamp", DESCENDING)])
                await self._sources[0].collection.create_index([("hash", ASCENDING), ("timestamp", DESCENDING)])
                await self.rollup_changes.ensure_indexes()
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
        for name, names in (("keys", keys), ("in_", in_)):
            if isinstance(names, str):
                raise InvalidError(f"{name} must be a list of names, not {names!r}.")
        wrapped = [storing.to_stored(document, (*keys, *in_)) for document in documents]
        if keys or in_:
            wrapped.sort(key=lambda document: (document["type"], document["timestamp"]))
        for first in range(0, len(wrapped), BATCH_DOCUMENTS):
            batch = wrapped[first : first + BATCH_DOCUMENTS]
            await self._write(batch, await self.stored.reuse_ids(batch, keys, in_) if keys or in_ else ())
        return len(wrapped)

    async def _write(self, batch: Sequence[Document], replaced: Sequence[Document] = ()) -> None:
        await self.ensure_indexes()
        await self.stored.write(batch, replaced)

    async def delete(self, where: Values) -> bool:
        """Delete the newest stored document that matches and return whether there was one; never delete snapshots."""
        return await self.stored.delete_newest(_to_filter(where, DOCUMENT))

    async def delete_many(self, where: Values, start: Time | None = None, stop: Time | None = None) -> int:
        """Delete all stored documents that match, from `start` and before `stop` where given; return their number."""
        return await self.stored.delete(_to_filter(where, DOCUMENT), *_to_range(start, stop))

    # Reading documents.

    async def sources(self, where: Filter, field: str | None = None) -> Sequence[Source]:
        """Return the sources of the documents that a filter means; `field` is the number field that is aggregated.

        Without a kind: snapshots if a hash is given, or the type is one of models and `field` is not one that only
        stored documents have; stored documents for any other type; both without hash and type.
        """
        kind: Kind | None = where.kind
        if kind is None and where.hash is not None:
            kind = SNAPSHOT
        elif kind is None and where.type is not None:
            is_of_models = (field is None or is_snapshot_number(field)) and await self._is_of_models(where.type)
            kind = SNAPSHOT if is_of_models else DOCUMENT
        return self._sources if kind in (ALL, None) else self._sources[:1] if kind == SNAPSHOT else self._sources[1:]

    async def _is_of_models(self, type_: str) -> bool:
        """Return whether there is a snapshot of this type."""
        if type_ not in self._types_of_models:
            if not await reading.has_any(self._snapshots, Filter(type_), time.time()):
                return False
            self._types_of_models.add(type_)
        return True

    async def query(
        self,
        where: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        limit: int = 0,
        page_size: int = 0,
        page_num: int = 1,
        *,
        kind: Kind | None = None,
    ) -> list[Document]:
        """Return the documents that match, newest first; `start` is inclusive, `stop` exclusive.

        Parameters
        ----------
        where
            Values by key: ``type``, ``hash`` of a model, ``timestamp``, any key of metadata, any field of stored
            documents, also inside of others (``fit.size``), and fields of snapshots (``version``,
            ``metrics.mean_absolute_error``). ``limit`` is the parameter.
        limit
            Maximum number of documents; 0 means all.
        page_size, page_num
            Size and number of the page to return; pages count from 1, size 0 means all.
        kind
            ``snapshot``, ``document`` (those that users store), or ``all``; by default as in :meth:`sources`.

        Raises
        ------
        InvalidError, MalformedError
            If a parameter is invalid, or can never match.
        """
        where, limit = _take(where, "limit", limit)
        for name, value, least in (("limit", limit, 0), ("page_size", page_size, 0), ("page_num", page_num, 1)):
            check_count(name, value, least)
        skipped = page_size * (page_num - 1)
        most = min(limit, skipped + page_size) if limit and page_size else limit or (page_size and skipped + page_size)
        filter_, range_ = _to_filter(where, kind), _to_range(start, stop)
        found = await reading.read_newest(await self.sources(filter_), filter_, *range_, time.time(), int(most))
        return found[skipped:]

    async def query_sorted(
        self, /, where: Values = None, limit: int = 0, *, kind: Kind | None = None, **page: int
    ) -> list[Document]:
        """Return the documents that match, newest first."""
        return await self.query(where, limit=limit, kind=kind, **page)

    async def query_latest(
        self, where: Values = None, since: Time | None = None, limit: int = 1, *, kind: Kind | None = None
    ) -> list[Document]:
        """Return the newest documents before the time `since`, by default now; both may be keys of `where`."""
        where, since = _take(where, "since", since)
        where, limit = _take(where, "limit", limit)
        return await self.query(where, stop=time.time() if since is None else since, limit=limit, kind=kind)

    async def query_last(self, where: Values = None, *, kind: Kind | None = None) -> Document | None:
        """Return the newest document that matches; None if there is none."""
        return next(iter(await self.query(_to_filter(where, kind), limit=1)), None)

    async def query_time(
        self,
        /,
        time_type: Literal["window", "before", "after"] = "window",
        start: Time | None = None,
        stop: Time | None = None,
        query_type: str | None = None,
        page_size: int = 0,
        page_num: int = 1,
        *,
        kind: Kind | None = None,
        **where: Scalar,
    ) -> list[Document]:
        """Return documents between `start` and `stop`, before `start`, or from `start` on; newest first."""
        bounds = {"window": (start, stop), "before": (None, start), "after": (start, None)}
        needed = {"window": (start, stop), "before": (start,), "after": (start,)}
        if time_type not in bounds or None in needed[time_type]:
            raise InvalidError("time_type must be window (with start and stop), before or after (with start).")
        named = where if query_type is None else {**where, "type": query_type}
        first, last = bounds[time_type]
        filter_ = _to_filter(named, kind)
        return await self.query(filter_, first, last, page_size=page_size, page_num=page_num)

    async def query_closest(self, where: Mapping[str, Any], *, kind: Kind | None = None) -> Document | None:
        """Return the document nearest to the value of ``timestamp``; of two at equal distance the later one."""
        filter_ = _to_filter(where, kind)
        if filter_.at is None:
            raise InvalidError("query_closest needs a timestamp among the values.")
        return await self.closest(replace(filter_, at=None), filter_.at)

    async def closest(self, where: Values, at: Time, *, kind: Kind | None = None) -> Document | None:
        """Return the document nearest to a time, on either side; of two at equal distance the later one."""
        moment, filter_, now = parse_time(at), _to_filter(where, kind), time.time()
        if filter_.at is not None:
            raise InvalidError("closest takes the time as a parameter: leave timestamp out of the values.")
        sources = await self.sources(filter_)

        async def after() -> list[Document]:
            first = await reading.read_oldest(sources, filter_, moment, now)
            return [first] if first else []

        both = await gather_all(after(), reading.read_newest(sources, filter_, None, moment, now, 1))
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
        every: Duration,
        stat: str = "mean",
        where: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        group: str | None = None,
        fill: Fill = "none",
        rate: Duration | None = None,
        moving: int | None = None,
        *,
        kind: Kind | None = None,
    ) -> list[Point]:
        """Aggregate documents by time: one point per interval `every`, ordered by group and time.

        Parameters
        ----------
        field
            Dotted name of a number field: ``metrics.mean_absolute_error``; None for ``count``.
        every, rate
            Durations: ``30s``, ``5m``, ``1h``, ``1d``, ``1w``, seconds, or a timedelta; `rate` is the change per this
            duration.
        stat
            ``mean``, ``min``, ``max``, ``sum``, ``count``, ``first``, ``last``, ``median``, ``p99``.
        group
            Key of metadata, or a field; each of its values has a series of its own.
        fill
            Value of intervals without documents: ``none``, ``null``, ``previous``, ``linear``, or a number.
        moving
            Moving average over this many points.
        kind
            As of :meth:`query`.

        Raises
        ------
        MalformedError, InvalidError
            If a parameter is invalid, or the result would be too long.
        """
        rate_s = None if rate is None else parse_duration(rate, unit_optional=True)
        every_s = parse_duration(every, unit_optional=True)
        aggregation = Aggregation(every_s, stat, field, group, fill, rate_s, moving)
        return await self.aggregate(aggregation, _to_filter(where, kind), *_to_range(start, stop))

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
        """Return times and values of the number field `field`, by value of `group`, a key of metadata or a field."""
        sources = await self.sources(where, field)
        return await reading.read_columns(sources, where, start, stop, time.time(), field, group)


def _to_filter(where: Values, kind: Kind | None) -> Filter:
    if not isinstance(where, Filter):
        return Filter.of(where, kind)
    check_kind(kind)
    return where if kind is None else replace(where, kind=kind)


def _take(where: Values, name: str, given: Any) -> tuple[Values, Any]:
    """Return the values without a parameter that is among them, and the parameter; `given` if it is not."""
    if not isinstance(where, Mapping) or name not in where:
        return where, given
    return {key: value for key, value in where.items() if key != name}, where[name]


def _to_range(start: Time | None, stop: Time | None) -> tuple[float | None, float | None]:
    """Return a range of time in seconds; raise InvalidError if it ends before it starts."""
    first, last = (None if time_ is None else parse_time(time_) for time_ in (start, stop))
    if first is not None and last is not None and first > last:
        raise InvalidError(f"The start, {format_time(first)}, is later than the stop, {format_time(last)}.")
    return first, last

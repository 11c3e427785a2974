"""Queries of the timeline: documents by time, and points of their numbers.

Owns the calls and their parameters, funtime's names among them; :mod:`keepfit.history.timeline` opens and writes.
Invariants: each query uses an index; values of a user's filter are compared, never interpreted.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal, Unpack

from keepfit.errors import InvalidError
from keepfit.history.mongo import Document, gather_all, unavailable
from keepfit.history.queries import columns, points, reading, selections, zones
from keepfit.history.queries.arguments import Values, take, to_filter, to_keys, to_range, with_type
from keepfit.history.queries.buckets import parse_buckets
from keepfit.history.queries.filters import ALL, DOCUMENT, SNAPSHOT, Filter, Kind
from keepfit.history.queries.grouping import Fill
from keepfit.history.queries.points import Aggregation, GroupValues, Point, Steps, check_count
from keepfit.history.queries.sources import SnapshotSource, Source, check_field, is_snapshot_number
from keepfit.history.rollups.answers import Answers
from keepfit.times import Duration, Time, parse_time

# Documents on a page if `pagination` is asked for without a size, as in funtime.
PAGE_SIZE = 10
CHOSEN_MAX = 10_000


class TimelineQueries:
    """Async queries of documents by time, from the sources of snapshots and of stored documents."""

    def __init__(self, snapshots: SnapshotSource, stored: Source, answers: Answers) -> None:
        self.answers = answers
        self._snapshots = snapshots
        self._sources: Sequence[Source] = (snapshots, stored)
        self._types_of_models: set[str] = set()

    # Documents.

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
        pagination: bool | None = None,
        _type: str | None = None,
        kind: Kind | None = None,
    ) -> list[Document]:
        """Return the documents that match, newest first; `start` is inclusive, `stop` exclusive.

        Parameters
        ----------
        where
            Values by key: ``type``, ``hash`` of a model, ``timestamp``, any key of metadata, any field of stored
            documents, also inside of others (``fit.size``), and fields of snapshots (``version``,
            ``metrics.mean_absolute_error``). A value may be a dictionary of comparisons: ``{"version": {">=": 3}}``,
            ``{"brand": {"in": ["nike", "puma"]}}``, ``{"brand": {"exists": True}}``. ``limit`` is the parameter.
        limit
            Maximum number of documents; 0 means all.
        page_size, page_num, pagination
            Size and number of the page to return; pages count from 1, size 0 means all. With `pagination` the size is
            10 if none is given; False returns all.
        _type
            The value of ``type``, as in funtime.
        kind
            ``snapshot``, ``document`` (those that users store), or ``all``; by default as in :meth:`sources`.

        Raises
        ------
        InvalidError, MalformedError
            If a parameter is invalid, or can never match.
        """
        where, limit = take(with_type(where, _type), "limit", limit)
        for name, value, least in (("limit", limit, 0), ("page_size", page_size, 0), ("page_num", page_num, 1)):
            check_count(name, value, least)
        if pagination is not None:
            page_size = (page_size or PAGE_SIZE) if pagination else 0
        skipped = page_size * (page_num - 1)
        most = min(limit, skipped + page_size) if limit and page_size else limit or (page_size and skipped + page_size)
        filter_, range_ = to_filter(where, kind), to_range(start, stop)
        found = await reading.read_newest(await self.sources(filter_), filter_, *range_, time.time(), int(most))
        return found[skipped:]

    async def stream(
        self,
        where: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        limit: int = 0,
        *,
        kind: Kind | None = None,
    ) -> AsyncGenerator[Document]:
        """Yield the documents that match, newest first, while the server returns them: few are in memory at a time.

        Documents that are stored meanwhile may be among them or not. Parameters and errors are those of :meth:`query`.
        """
        check_count("limit", limit, 0)
        filter_, range_ = to_filter(where, kind), to_range(start, stop)
        count = 0
        async with aclosing(reading.stream(await self.sources(filter_), filter_, *range_, time.time())) as documents:
            async for document in documents:
                yield document
                count += 1
                if count == limit:
                    return

    async def query_sorted(
        self, /, where: Values = None, limit: int = 0, *, kind: Kind | None = None, **page: Any
    ) -> list[Document]:
        """Return the documents that match, newest first."""
        return await self.query(where, limit=limit, kind=kind, **page)

    async def query_latest(
        self,
        /,
        where: Values = None,
        since: Time | None = None,
        limit: int = 1,
        *,
        kind: Kind | None = None,
        **page: Any,
    ) -> list[Document]:
        """Return the newest documents before the time `since`, by default now; both may be keys of `where`.

        `page` has funtime's ``pagination``, ``page_size``, ``page_num`` and ``_type``; pages ignore the default limit.
        """
        where, since = take(where, "since", since)
        where, given = take(where, "limit", None)
        if given is not None or page.get("pagination"):
            limit = given or 0
        return await self.query(where, stop=time.time() if since is None else since, limit=limit, kind=kind, **page)

    async def query_last(
        self, where: Values = None, *, kind: Kind | None = None, _type: str | None = None
    ) -> Document | None:
        """Return the newest document that matches; None if there is none."""
        return next(iter(await self.query(to_filter(with_type(where, _type), kind), limit=1)), None)

    async def query_last_per(
        self,
        keys: str | Sequence[str],
        where: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        limit: int = CHOSEN_MAX,
        *,
        kind: Kind | None = None,
    ) -> list[Document]:
        """Return the newest document for each value of a key of metadata or field, or of several; newest first.

        All documents between `start` and `stop` are looked at: name a `start` where the history is long.

        Raises
        ------
        InvalidError
            If there are more than `limit` values, or too many documents.
        """
        filter_, range_, names = to_filter(where, kind), to_range(start, stop), to_keys("keys", keys)
        check_count("limit", limit, 1, CHOSEN_MAX)
        if not names or "timestamp" in names:
            raise InvalidError("keys must be at least one key of metadata or field, and not timestamp.")
        sources = await self.sources(filter_)
        return await selections.read_last_per(sources, filter_, *range_, time.time(), names, limit)

    async def query_top(
        self,
        field: str,
        limit: int = 10,
        where: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        *,
        smallest: bool = False,
        kind: Kind | None = None,
    ) -> list[Document]:
        """Return the documents with the largest numbers in `field`, the largest first; of equal ones the newest first.

        `smallest` returns those with the smallest numbers instead.
        """
        check_count("limit", limit, 1, CHOSEN_MAX)
        filter_, range_ = to_filter(where, kind), to_range(start, stop)
        sources, direction = await self.sources(filter_, check_field(field)), 1 if smallest else -1
        return await selections.read_extreme(sources, filter_, *range_, time.time(), field, limit, direction)

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
        pagination: bool | None = None,
        kind: Kind | None = None,
        **where: Any,
    ) -> list[Document]:
        """Return documents between `start` and `stop`, before `start`, or from `start` on; newest first.

        Without `stop` a window reaches to now.
        """
        bounds = {
            "window": (start, time.time() if stop is None else stop),
            "before": (None, start),
            "after": (start, None),
        }
        if isinstance(time_type, Mapping):
            raise InvalidError(
                "query_time takes values by name: query_time(time_type='window', start=…, brand='nike')."
            )
        if time_type not in bounds or start is None:
            raise InvalidError("time_type must be window, before or after, each with start.")
        named = where if query_type is None else {**where, "type": query_type}
        first, last = bounds[time_type]
        filter_ = to_filter(named, kind)
        return await self.query(filter_, first, last, 0, page_size, page_num, pagination=pagination)

    async def query_closest(self, where: Mapping[str, Any], *, kind: Kind | None = None) -> Document | None:
        """Return the document nearest to the value of ``timestamp``; of two at equal distance the later one."""
        filter_ = to_filter(where, kind)
        if filter_.at is None:
            raise InvalidError("query_closest needs a timestamp among the values.")
        return await self.closest(replace(filter_, at=None), filter_.at)

    async def closest(self, where: Values, at: Time, *, kind: Kind | None = None) -> Document | None:
        """Return the document nearest to a time, on either side; of two at equal distance the later one."""
        moment, filter_, now = parse_time(at), to_filter(where, kind), time.time()
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
        /,
        field: str | None,
        every: Duration,
        stat: str = "mean",
        where: Values = None,
        start: Time | None = None,
        stop: Time | None = None,
        group: str | Sequence[str] | None = None,
        fill: Fill = "none",
        rate: Duration | None = None,
        moving: int | None = None,
        *,
        tz: str | None = None,
        kind: Kind | None = None,
        **steps: Unpack[Steps],
    ) -> list[Point]:
        """Aggregate documents by time: one point per interval `every`, ordered by group and time.

        Parameters
        ----------
        field
            Dotted name of a number field: ``metrics.mean_absolute_error``; None for ``count``.
        every, rate
            Durations: ``250ms``, ``30s``, ``5m``, ``1h``, ``1d``, ``1w``, seconds, or a timedelta; `every` also ``1mo``
            and ``1y``. `rate` is the change per this duration.
        stat
            A name of :data:`keepfit.history.queries.statistic.STATS`, or ``p99``.
        group
            Key of metadata, or a field, or several of them; each of their values has a series of its own.
        fill
            Value of intervals without documents: ``none``, ``null``, ``previous``, ``linear``, or a number.
        moving
            Moving average over this many points.
        tz
            Time zone whose days, weeks, months and years are meant, and times without a zone.
        kind
            As of :meth:`query`.
        steps
            The other steps; :class:`~keepfit.history.queries.points.Steps` has them.

        Raises
        ------
        MalformedError, InvalidError
            If a parameter is invalid, or the result would be too long.
        """
        zone = None if tz is None else await asyncio.to_thread(zones.parse_zone, tz)
        groups = () if group is None else to_keys("group", group)
        aggregation = Aggregation(parse_buckets(every, zone), stat, field, groups, fill, moving=moving)
        aggregation = points.with_steps(aggregation, {"rate": rate, **steps})
        return await self.aggregate(aggregation, to_filter(where, kind), *to_range(start, stop, zone))

    async def aggregate(
        self, aggregation: Aggregation, where: Filter, start: float | None, stop: float | None
    ) -> list[Point]:
        """Do :meth:`points` for parsed parameters; times are in seconds."""
        aggregation.check()
        if start is not None and stop is not None:
            points.check_length(start, stop, aggregation.buckets.length_s)
        codes = columns.Codes() if aggregation.stat == "distinct" else None
        found: Sequence[GroupValues] | None = await self.answers.of_type(aggregation, where, start, stop)
        sources, now = await self.sources(where, aggregation.field), time.time()
        if found is None:
            found = await self.answers.instead(sources, aggregation, where, start, stop, now)
        if found is None:
            found = await columns.read_groups(
                sources, where, start, stop, now, aggregation.field, aggregation.groups, codes
            )
        return await asyncio.to_thread(points.compute, found, aggregation, start, stop)

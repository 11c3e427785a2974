"""Answer queries from roll-ups: where these have the same answer, and where a query names a roll-up's type.

Never writes. A query for documents of ``shoes`` is answered from the roll-up ``shoes/5m`` where :mod:`rollup_plan`
allows it. A query for ``shoes/5m`` and the field that it aggregates is answered from all that the roll-up has, also of
documents that have expired, with means weighted by counts and percentiles of sketches. Invariant: values of buckets are
merged from sums and counts, never from means.
"""

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from keepfit.errors import InvalidError
from keepfit.history.mongo import UPKEEP_TIMEOUT_S, Database, Document, long_call
from keepfit.history.queries import columns
from keepfit.history.queries.buckets import Buckets
from keepfit.history.queries.columns import Group, GroupColumns
from keepfit.history.queries.filters import ALL, DOCUMENT, Filter
from keepfit.history.queries.grouping import Series
from keepfit.history.queries.points import Aggregation
from keepfit.history.queries.sources import SnapshotSource, Source, StoredSource
from keepfit.history.queries.zones import Array
from keepfit.history.rollups import plan as rollup_plan
from keepfit.history.rollups.changes import Range
from keepfit.history.rollups.documents import Rollup, group_of, is_of, summary_of
from keepfit.history.rollups.progress import RollupProgress
from keepfit.history.rollups.summaries import STATS, Summary, is_summarized
from keepfit.history.rollups.thinned import Thinned

# Columns of what is merged, one row for each interval or document.
NAMES = ("count", "sum", "min", "max", "first", "last", "first_at", "last_at")
DOCUMENTS_MAX = 200_000


@dataclass(frozen=True, slots=True)
class GroupSummaries:
    """Summaries of one group: starts of intervals, or times of documents, shape (n,), and :data:`NAMES`, shape (n, 8).

    `whole` are the summaries with their sketches, if percentiles are asked for.
    """

    group: Group
    times: Array
    rows: Array
    whole: Sequence[Summary] = ()

    def series(self, buckets: Buckets, stat: str) -> Series:
        """Return one point per bucket that contains any."""
        if not len(self.times):
            return Series(np.empty(0), np.empty(0))
        begins = buckets.starts(self.times)
        if self.whole:
            return _percentiles(begins, self.whole, stat)
        count, sum_, low, high, first, last, first_at, last_at = self.rows.T
        place = NAMES.index({"mean": "sum", "spread": "max"}.get(stat, stat))
        # The smallest of the first time, and the largest of the last time, as in a summary.
        keys = (last, last_at) if stat == "last" else (first, first_at)
        order = np.lexsort((*keys, begins))
        ordered = begins[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        values = self.rows[order, place]
        if stat in ("count", "sum"):
            found = np.add.reduceat(values, starts)
        elif stat == "mean":
            found = np.add.reduceat(sum_[order], starts) / np.add.reduceat(count[order], starts)
        elif stat in ("min", "max"):
            found = (np.minimum if stat == "min" else np.maximum).reduceat(values, starts)
        elif stat == "spread":
            found = np.maximum.reduceat(high[order], starts) - np.minimum.reduceat(low[order], starts)
        else:
            found = values[starts] if stat == "first" else values[np.append(starts[1:], len(values)) - 1]
        return Series(ordered[starts], found)


def _percentiles(begins: Array, whole: Sequence[Summary], stat: str) -> Series:
    order = np.argsort(begins, kind="stable")
    starts, first = np.unique(begins[order], return_index=True)
    groups = np.split(order, first[1:])
    values = [Summary.merged(whole[place] for place in some).stat(stat) for some in groups]
    return Series(starts, np.array(values, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Answers:
    """What answers queries from roll-ups of a database."""

    database: Database
    stored: StoredSource
    progress: RollupProgress
    thinned: Thinned

    async def instead(
        self,
        sources: Sequence[Source],
        aggregation: Aggregation,
        where: Filter,
        start: float | None,
        stop: float | None,
        now: float,
    ) -> list[GroupSummaries] | None:
        """Return the groups of a query from a roll-up, where documents are the same, read; None if no roll-up helps."""
        # A roll-up aggregates one source.
        if len(sources) != 1:
            return None
        thinned = self.thinned if isinstance(sources[0], SnapshotSource) else None
        plan = await rollup_plan.choose(self.progress, thinned, aggregation, where, start, stop)
        if plan is None:
            return None
        found = await self._documents(plan.rollup, plan.clean[0][0], plan.clean[-1][1], sketches=False)
        if not await asyncio.to_thread(_nest, found, plan.rollup.every_s, aggregation.buckets):
            return None
        reads = plan.reads(rollup_plan.intervals_with_base(found, plan.rollup.every_s))
        rest: list[GroupColumns] = []
        for first, last in reads:
            bounds = None if first == plan.start and start is None else first, stop if last == plan.stop else last
            rest += await columns.read_groups(sources, where, *bounds, now, aggregation.field, aggregation.groups)
        used = [each for each in found if not _is_in(each["timestamp"], reads)]
        return await asyncio.to_thread(_join, plan.rollup, used, rest, aggregation)

    async def of_type(
        self, aggregation: Aggregation, where: Filter, start: float | None, stop: float | None
    ) -> list[GroupSummaries] | None:
        """Return the groups of a query whose type is that of a roll-up, and whose field is the one that it aggregates.

        None if the query is another one.

        Raises
        ------
        InvalidError
            If the statistic is none that roll-ups have, or the query is about too many documents.
        """
        type_, _, every = (where.type or "").rpartition("/")
        is_of_documents = where.kind in (None, DOCUMENT, ALL) and where.hash is None
        if not type_ or not is_of_documents or aggregation.field in (None, *STATS, "of"):
            return None
        rollup = await self._named(type_, every, aggregation, where)
        if rollup is None:
            return None
        if not is_summarized(aggregation.stat):
            raise InvalidError(
                f"Roll-ups have no {aggregation.stat}: they have {', '.join(STATS)}, spread, percentiles."
            )
        whole = aggregation.stat not in (*STATS, "spread")
        found = await self._documents(rollup, *where.narrow(start, stop), sketches=whole, where=where)
        return await asyncio.to_thread(_join, rollup, found, (), aggregation, whole=whole)

    async def _named(self, type_: str, every: str, aggregation: Aggregation, where: Filter) -> Rollup | None:
        """Return the roll-up whose documents a query means; of several that by the groups that it names."""
        named = {*aggregation.groups, *where.values, *(each.key for each in where.comparisons)}
        found = [
            rollup
            for rollup, _ in await self.progress.of_type(type_)
            if rollup.every == every and rollup.field == aggregation.field
        ]
        fitting = [rollup for rollup in found if named <= {rollup.group, "of"}]
        # Without a group first: it has fewer documents.
        fitting.sort(key=lambda rollup: rollup.group is not None)
        if found and not fitting:
            groups = ", ".join(str(rollup.group) for rollup in found if rollup.group is not None) or "none"
            raise InvalidError(f"The roll-up {type_}/{every} of {aggregation.field} has other groups: {groups}.")
        return fitting[0] if fitting else None

    async def _documents(
        self,
        rollup: Rollup,
        start: float | None,
        stop: float | None,
        *,
        sketches: bool,
        where: Filter | None = None,
    ) -> list[Document]:
        """Return documents of a roll-up from `start` and before `stop` (seconds), those that fulfil a filter."""
        stages = self.stored.match_stages(where or Filter(rollup.target), start, stop)
        shown = dict.fromkeys(("timestamp", "document", "parts.first_at", "parts.last_at", "base.expiry"), 1)
        if sketches:
            shown["parts.sketch"] = 1
        pipeline = [
            *stages,
            {"$match": {"document.of": rollup.field}},
            {"$project": shown},
            {"$limit": DOCUMENTS_MAX + 1},
        ]
        async with long_call(self.database, UPKEEP_TIMEOUT_S):
            found = await self.stored.collection.aggregate(pipeline).to_list(None)
        if len(found) > DOCUMENTS_MAX:
            raise InvalidError(
                f"More than {DOCUMENTS_MAX:,} documents of a roll-up: use a later start, or a longer one."
            )
        return [each for each in found if is_of(rollup, each)]


def _nest(documents: Sequence[Document], every: float, buckets: Buckets) -> bool:
    """Return whether each interval lies in one bucket."""
    begins = np.array([each["timestamp"] for each in documents], dtype=np.float64)
    if not len(begins) or buckets.fixed_s is not None:
        return True
    return bool(np.array_equal(buckets.starts(begins), buckets.starts(np.nextafter(begins + every, -np.inf))))


def _is_in(moment: float, ranges: Iterable[Range]) -> bool:
    return any(first <= moment < last for first, last in ranges)


def _join(
    rollup: Rollup,
    documents: Iterable[Document],
    rest: Iterable[GroupColumns],
    aggregation: Aggregation,
    *,
    whole: bool = False,
) -> list[GroupSummaries]:
    """Return the groups of documents of a roll-up, and of columns of documents themselves."""
    tables: dict[tuple[tuple[type, object], ...], list[tuple[Group, Array, Array, list[Summary]]]] = {}
    ordered = [(_group(rollup, each, aggregation), each) for each in documents]
    ordered.sort(key=lambda pair: [(str(type(value)), value) for value in pair[0]])
    for _, same in itertools.groupby(ordered, key=lambda pair: _key(pair[0])):
        some = list(same)
        group = some[0][0]
        pairs = [(each["timestamp"], summary_of(each)) for _, each in some]
        rows = np.array([[getattr(summary, name) for name in NAMES] for _, summary in pairs], dtype=np.float64)
        times = np.array([at for at, _ in pairs], dtype=np.float64)
        tables.setdefault(_key(group), []).append((group, times, rows, [summary for _, summary in pairs]))
    for column in rest:
        ones = np.ones(len(column.times))
        rows = np.column_stack([ones, *[column.values] * 5, column.times, column.times])
        tables.setdefault(_key(column.group), []).append((column.group, column.times, rows, []))
    return [
        GroupSummaries(
            parts[0][0],
            np.concatenate([times for _, times, _, _ in parts]),
            np.concatenate([rows for _, _, rows, _ in parts]),
            [summary for *_, summaries in parts for summary in summaries] if whole else (),
        )
        for parts in tables.values()
    ]


def _group(rollup: Rollup, document: Document, aggregation: Aggregation) -> Group:
    return (group_of(rollup, document),) if aggregation.groups else ()


def _key(group: Group) -> tuple[tuple[type, object], ...]:
    # By type too: True equals 1 in Python.
    return tuple((type(value), value) for value in group)

"""Choose the roll-up from which a query is answered, and the times for which its documents cannot be used.

Never writes. Invariant: a plan has the same answer as the documents themselves, but for the rounding of sums. So a
roll-up is used only for whole intervals that it has rolled up, that no change mark and no unfinished run is about, and
of which no document has expired or was thinned out; documents are read for all other times.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keepfit.history.mongo import Document
from keepfit.history.queries.buckets import Buckets, as_array, bucket_numbers, bucket_offset, bucket_starts
from keepfit.history.queries.filters import Filter
from keepfit.history.queries.points import Aggregation
from keepfit.history.rollups.changes import Range, union
from keepfit.history.rollups.documents import Rollup
from keepfit.history.rollups.progress import RollupProgress
from keepfit.history.rollups.thinned import Thinned
from keepfit.times import SECONDS_MAX, SECONDS_MIN

# Statistics that are the same from roll-ups; percentiles are not, and are answered from documents.
STATS = frozenset({"count", "sum", "mean", "min", "max", "first", "last", "spread"})
# Ranges of documents that one query reads; if there are more, those that are nearest to each other are joined.
READS_MAX = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """Documents of the `rollup` answer the `clean` ranges of time (seconds), documents themselves the rest.

    The query is about times from `start` and before `stop`.
    """

    rollup: Rollup
    clean: Sequence[Range]
    start: float
    stop: float

    def reads(self, unclean: Iterable[Range] = ()) -> list[Range]:
        """Return the ranges of which documents are read: all but the clean ones, and the `unclean` ones too."""
        edges = [self.start, *(edge for range_ in self.clean for edge in range_), self.stop]
        rest = [(first, last) for first, last in zip(edges[::2], edges[1::2], strict=True) if first < last]
        return _fewer(union([*rest, *unclean]), READS_MAX)


async def choose(
    progress: RollupProgress,
    thinned: Thinned | None,
    aggregation: Aggregation,
    where: Filter,
    start: float | None,
    stop: float | None,
) -> Plan | None:
    """Return the plan with the longest intervals for a query; None if no roll-up helps.

    `thinned` is given if the query is about snapshots, and only about them.
    """
    if not _is_about_all(where) or aggregation.stat not in STATS or aggregation.field is None or where.type is None:
        return None
    found = [
        (rollup, each)
        for rollup, each in await progress.of_type(where.type)
        if rollup.field == aggregation.field
        and each["of_snapshots"] == (thinned is not None)
        and aggregation.groups in ((), (rollup.group,))
        and _nests(rollup.every_s, aggregation.buckets)
    ]
    # Of equal intervals that without another group: it has fewer documents.
    found.sort(key=lambda pair: (-pair[0].every_s, (pair[0].group,) != (aggregation.groups or (None,))))
    gone = [] if thinned is None or not found else await thinned.ranges(where.type) or []
    first, last = SECONDS_MIN if start is None else start, SECONDS_MAX if stop is None else stop
    for rollup, each in found:
        dirty = [*gone, *await progress.dirty(each, first)]
        clean = _clean(union(dirty), rollup.every_s, first, last)
        if clean:
            return Plan(rollup, clean, first, last)
    return None


def _is_about_all(where: Filter) -> bool:
    """Return whether a filter has nothing but a type and a kind."""
    return where == Filter(where.type, kind=where.kind)


def _nests(every: float, buckets: Buckets) -> bool:
    """Return whether intervals may lie in one bucket each; of a zone's buckets it is seen when they are read."""
    fixed = buckets.fixed_s
    if fixed is None:
        return every <= buckets.length_s
    return fixed % every == 0 and (bucket_offset(fixed) - bucket_offset(every)) % every == 0


def _clean(dirty: Sequence[Range], every: float, start: float, stop: float) -> list[Range]:
    """Return the ranges of whole intervals from `start` and before `stop` that touch none of some disjoint ranges.

    >>> _clean([(12.0, 17.0), (50.0, 60.0)], 5.0, 1.0, 59.0)
    [(5.0, 10.0), (20.0, 50.0)]
    """
    found: list[Range] = []
    begin = _ceil(start, every)
    for first, last in [*dirty, (stop, math.inf)]:
        end = _floor(min(first, stop), every)
        if begin < end:
            found.append((begin, end))
        if last >= stop:
            break
        begin = max(begin, _ceil(last, every))
    return found


def _floor(moment: float, every: float) -> float:
    return float(bucket_starts(bucket_numbers(as_array(moment), every), every)[0])


def _ceil(moment: float, every: float) -> float:
    begin = _floor(moment, every)
    return begin if begin == moment else float(bucket_starts(bucket_numbers(as_array(moment), every) + 1, every)[0])


def _fewer(ranges: list[Range], most: int) -> list[Range]:
    """Return at most so many ranges that contain these, which are disjoint and in order."""
    while len(ranges) > most:
        gaps = [after[0] - before[1] for before, after in itertools.pairwise(ranges)]
        place = gaps.index(min(gaps))
        ranges[place : place + 2] = [(ranges[place][0], ranges[place + 1][1])]
    return ranges


def intervals_with_base(documents: Iterable[Document], every: float) -> list[Range]:
    """Return the intervals of roll-up documents of which documents have expired."""
    return union((each["timestamp"], each["timestamp"] + every) for each in documents if "base" in each)

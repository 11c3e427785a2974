"""Summaries: what roll-ups keep of the numbers of an interval, mergeable with those of other intervals.

Pure (numpy). Owns which statistics a summary answers, and its stored form. Invariants: merging the summaries of parts
is the summary of the whole, in whatever order (sums: but for their rounding); statistics of summaries are weighted by
their counts.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keepfit.history.mongo import Document
from keepfit.history.queries.buckets import bucket_numbers, bucket_starts
from keepfit.history.queries.statistic import PERCENTILE
from keepfit.history.queries.zones import Array
from keepfit.history.rollups.sketch import Sketch
from keepfit.times import SECONDS_MIN

# What a roll-up's document shows.
STATS = ("count", "sum", "mean", "min", "max", "first", "last")
_NUMBERS = ("count", "sum", "min", "max", "first", "last")


@dataclass(frozen=True, slots=True)
class Summary:
    """Count, sum, extremes and sketch of numbers, and the first and the last of them with their times (seconds).

    Of several numbers with the first time, the smallest is the first; with the last time, the largest is the last. The
    sketch is None if some of the numbers came without: from a roll-up of version 0.1.
    """

    count: float
    sum: float
    min: float
    max: float
    first: float
    last: float
    first_at: float
    last_at: float
    sketch: Sketch | None

    @classmethod
    def of(cls, times: Array, values: Array) -> "Summary":
        """Return the summary of times and finite values in order of both, shapes (n,), (n,), n > 0."""
        return cls(
            float(len(values)), _sum(values.tolist()), float(values.min()), float(values.max()),
            float(values[0]), float(values[-1]), float(times[0]), float(times[-1]), Sketch.of(values),
        )  # fmt: skip

    @classmethod
    def merged(cls, summaries: Iterable["Summary"]) -> "Summary":
        """Return the summary of all numbers of some summaries, of at least one."""
        some = list(summaries)
        if len(some) == 1:
            return some[0]
        first = min(some, key=lambda each: (each.first_at, each.first))
        last = max(some, key=lambda each: (each.last_at, each.last))
        sketches = [each.sketch for each in some if each.sketch is not None]
        return cls(
            _sum(each.count for each in some), _sum(each.sum for each in some), min(each.min for each in some),
            max(each.max for each in some), first.first, last.last, first.first_at, last.last_at,
            Sketch.merged(sketches) if len(sketches) == len(some) else None,
        )  # fmt: skip

    @property
    def mean(self) -> float:
        """The mean."""
        return self.sum / self.count

    def stat(self, stat: str) -> float:
        """Return a statistic: one of :data:`STATS`, ``spread``, ``median``, a percentile; NaN without sketch."""
        if stat in STATS:
            return float(getattr(self, stat))
        if stat == "spread":
            return self.max - self.min
        percent = 50.0 if stat == "median" else float(stat.removeprefix("p"))
        if self.sketch is None:
            return math.nan
        return min(max(self.sketch.percentile(percent), self.min), self.max)

    def shown(self) -> Document:
        """Return the statistics that a roll-up's document shows."""
        return {stat: self.stat(stat) for stat in STATS}

    def parts(self) -> Document:
        """Return what :meth:`of_parts` needs besides what is shown."""
        sketch = None if self.sketch is None else self.sketch.to_bytes()
        return {"first_at": self.first_at, "last_at": self.last_at, "sketch": sketch}

    @classmethod
    def of_parts(cls, shown: Document, parts: Document, at: float) -> "Summary":
        """Return a stored summary; roll-ups of version 0.1 have no parts, and `at`, the start of their interval."""
        stored = parts.get("sketch")
        return cls(
            **{name: float(shown[name]) for name in _NUMBERS},
            first_at=parts.get("first_at", at),
            last_at=parts.get("last_at", at),
            sketch=None if stored is None else Sketch.from_bytes(stored),
        )


def is_summarized(stat: str) -> bool:
    """Return whether a summary answers a statistic, percentiles within the accuracy of a sketch."""
    return stat in (*STATS, "spread", "median") or PERCENTILE.fullmatch(stat) is not None


def summarize(times: Array, values: Array, every: float) -> Iterator[tuple[float, Summary]]:
    """Yield the start of each interval that contains values, and their summary; in order of time.

    Shapes of times (seconds) and finite values: (n,), (n,), in any order.
    """
    order = np.lexsort((values, times))
    stamps, ranked = times[order], values[order]
    numbers = bucket_numbers(stamps, every)
    if not len(numbers):
        return
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    # An interval that begins before the first time begins with it.
    begins = np.maximum(bucket_starts(numbers[starts], every), SECONDS_MIN).tolist()
    for begin, low, high in zip(begins, starts, [*starts[1:], len(ranked)], strict=True):
        yield begin, Summary.of(stamps[low:high], ranked[low:high])


def _sum(values: Iterable[Any] | Sequence[float]) -> float:
    """Return the correctly rounded sum, which no order of the values changes."""
    some = list(values)
    try:
        return math.fsum(some)
    except (OverflowError, ValueError):
        # Beyond the largest float.
        return float(sum(some))

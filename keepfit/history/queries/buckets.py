"""Buckets: the spans of time into which documents are grouped, one point each.

Owns where buckets begin: at multiples of a duration, on the clock of a time zone, or with its days, weeks, months and
years. Pure, but for what :mod:`keepfit.history.queries.zones` reads. Invariants: a bucket includes its start and not
its end, which is the start of the next one; every time is in exactly one bucket.
"""

import itertools
import math
import re
from dataclasses import dataclass
from datetime import UTC, date, timedelta, tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo

import numpy as np

from keepfit import times
from keepfit.errors import InvalidError
from keepfit.history.queries import zones
from keepfit.history.queries.zones import Array, Numbers

DAY_S, WEEK_S = 86_400.0, 604_800.0
# 1970 began on a Thursday.
MONDAY_S = 345_600.0
MONDAY_DAYS = 4
# Mean lengths in the Gregorian calendar.
MONTH_S = 2_629_746.0
MONTHS = re.compile(r"([0-9]{1,4})(mo|y)")
MONTHS_MAX = 12_000
YEAR_MIN, YEAR_MAX = 1, 9999


class Buckets(Protocol):
    """Spans of time that follow one another without gaps."""

    @property
    def length_s(self) -> float:
        """Length of a bucket in seconds; where they differ, about the mean."""

    @property
    def fixed_s(self) -> float | None:
        """Length in seconds if all buckets are :class:`FixedBuckets` of it, otherwise None."""

    def starts(self, at: Array) -> Array:
        """Return for each time (seconds) the start of the bucket that contains it."""

    def between(self, first: float, last: float) -> Array:
        """Return the starts of all buckets from that of time `first` to that of time `last`, ascending."""


def bucket_offset(every: float) -> float:
    """Return the seconds after 1970 at which bucket number 0 of this duration starts."""
    return MONDAY_S if every % WEEK_S == 0 else 0.0


def bucket_numbers(at: Array, every: float) -> Numbers:
    """Return the numbers of the buckets that contain times; bucket n starts at n · `every` (+ the offset of weeks)."""
    offset = bucket_offset(every)
    numbers = np.floor((at - offset) / every).astype(np.int64)
    # The quotient is rounded: it may place a time just before a bucket inside it.
    numbers -= numbers * every + offset > at
    numbers += (numbers + 1) * every + offset <= at
    return numbers


def bucket_starts(number: Numbers, every: float) -> Array:
    """Return the starts (seconds) of numbered buckets."""
    return np.asarray(number * every + bucket_offset(every), dtype=np.float64)


def as_array(value: float) -> Array:
    """Return an array with one number, shape (1,)."""
    return np.array([value], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class FixedBuckets:
    """Buckets of equal duration since 1970 in UTC, whole weeks since a Monday."""

    length_s: float

    @property
    def fixed_s(self) -> float | None:
        """Length in seconds."""
        return self.length_s

    def starts(self, at: Array) -> Array:
        """Return for each time the start of the bucket that contains it."""
        return bucket_starts(bucket_numbers(at, self.length_s), self.length_s)

    def between(self, first: float, last: float) -> Array:
        """Return the starts of all buckets from that of time `first` to that of time `last`."""
        low, high = bucket_numbers(np.array([first, last], dtype=np.float64), self.length_s)
        return bucket_starts(np.arange(low, high + 1), self.length_s)


@dataclass(frozen=True, slots=True)
class ClockBuckets:
    """Buckets that begin at multiples of a part of a day on the clock of a zone: at 0:00, 6:00, 12:00 and 18:00.

    A bucket during which the clock is changed is longer or shorter by the change. Only where clocks are put back by as
    much as a bucket or more, the times that they show twice have buckets of their own twice.
    """

    length_s: float
    zone: tzinfo

    @property
    def fixed_s(self) -> float | None:
        """None: clocks may be changed."""
        return None

    def starts(self, at: Array) -> Array:
        """Return for each time the start of the bucket that contains it."""
        if not len(at):
            return np.empty(0)
        every, near = self.length_s, zones.offsets_near(self.zone, at)
        segment = near.segments(at)
        offset = near.offsets[segment]
        number = np.floor((at + offset) / every)
        # The sum and the quotient are rounded.
        number -= number * every - offset > at
        number += (number + 1) * every - offset <= at
        label = number * every
        found = label - offset
        # The clock was changed last at `changed`, when it showed `shown` of the offset before.
        changed = np.concatenate(([-np.inf], near.changes))[segment]
        before = near.offsets[np.maximum(segment - 1, 0)]
        has_before = np.isfinite(changed)
        shown = np.where(has_before, changed + before, 0.0)
        earlier = np.where(has_before, (np.ceil(shown / every) - 1) * every - before, found)
        is_crossing = has_before & (found < changed)
        is_skipped = is_crossing & (offset > before) & (label >= shown)
        is_repeated = has_before & ~is_crossing & (label < shown) & (every > before - offset)
        found = np.where(is_crossing, earlier, found)
        found = np.where(is_skipped, changed, found)
        return np.where(is_repeated, label - before, found)

    def between(self, first: float, last: float) -> Array:
        """Return the starts of all buckets from that of time `first` to that of time `last`."""
        low, every = float(self.starts(as_array(first))[0]), self.length_s
        days = np.arange(np.floor(low / DAY_S), np.floor(last / DAY_S) + 1) * DAY_S
        near = zones.offsets_near(self.zone, days)
        bounds = np.concatenate(([low], near.changes[(near.changes > low) & (near.changes <= last)], [last]))
        found = [bounds]
        for begin, end in itertools.pairwise(bounds.tolist()):
            offset = near.at(as_array(begin))[0]
            numbers = np.arange(np.ceil((begin + offset) / every), np.floor((end + offset) / every) + 1)
            found.append(numbers * every - offset)
        candidates = np.concatenate(found)
        return np.unique(self.starts(candidates[(candidates >= low) & (candidates <= last)]))


@dataclass(frozen=True, slots=True)
class CalendarBuckets:
    """Buckets of whole days, or of whole months, of a zone; a day begins when its clocks first show the date.

    Days are counted from 1 January 1970, multiples of 7 from a Monday, months from January 1970.
    """

    days: int
    months: int
    zone: tzinfo

    @property
    def length_s(self) -> float:
        """Mean length in seconds."""
        return self.days * DAY_S or self.months * MONTH_S

    @property
    def fixed_s(self) -> float | None:
        """None: days, months and years differ in length."""
        return None

    def starts(self, at: Array) -> Array:
        """Return for each time the start of the bucket that contains it."""
        numbers = self._numbers(at)
        distinct, place = np.unique(numbers, return_inverse=True)
        begins, ends = self._begins(distinct), self._begins(distinct + 1)
        # Clocks that are put back over midnight show a date again: it has begun already.
        return np.where(ends[place] <= at, ends[place], np.minimum(begins[place], at))

    def between(self, first: float, last: float) -> Array:
        """Return the starts of all buckets from that of time `first` to that of time `last`."""
        low, high = self._numbers(np.array([first, last], dtype=np.float64))
        begins = self._begins(np.arange(low, high + 2))
        # A day that a zone skipped has no length.
        return np.unique(begins[begins <= last])

    def _numbers(self, at: Array) -> Numbers:
        local = np.floor((at + zones.offsets_near(self.zone, at).at(at)) / DAY_S).astype(np.int64)
        if self.days:
            return (local - self._first_day) // self.days
        return local.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) // self.months

    def _begins(self, numbers: Numbers) -> Array:
        return np.array([self._begin(number) for number in numbers.tolist()], dtype=np.float64)

    def _begin(self, number: int) -> float:
        try:
            if self.days:
                day = date(1970, 1, 1) + timedelta(days=number * self.days + self._first_day)
            else:
                years, month = divmod(number * self.months, 12)
                day = date(1970 + years, month + 1, 1)
            return zones.first_instant(self.zone, day)
        except (ValueError, OverflowError):
            # Beyond the years of datetime.
            return times.SECONDS_MIN if number < 0 else math.inf

    @property
    def _first_day(self) -> int:
        return MONDAY_DAYS if self.days % 7 == 0 else 0


def parse_buckets(every: times.Duration, zone: ZoneInfo | None = None) -> Buckets:
    """Return the buckets of `every`: a duration, or months and years: ``1mo``, ``3mo``, ``1y``.

    Raises
    ------
    MalformedError
        If it is neither.
    InvalidError
        If buckets of the zone cannot have this length, or there are too many months.
    """
    found = MONTHS.fullmatch(every) if isinstance(every, str) else None
    if found:
        months = int(found[1]) * (12 if found[2] == "y" else 1)
        if not 1 <= months <= MONTHS_MAX:
            raise InvalidError(f"every must be from 1mo to {MONTHS_MAX // 12}y, not {every}.")
        return CalendarBuckets(0, months, UTC if zone is None else zone)
    seconds = times.parse_duration(every, unit_optional=True)
    if zone is None:
        return FixedBuckets(seconds)
    if seconds % DAY_S == 0:
        return CalendarBuckets(int(seconds // DAY_S), 0, zone)
    parts = round(DAY_S / seconds)
    if seconds > DAY_S or not math.isclose(parts * seconds, DAY_S, rel_tol=1e-12):
        raise InvalidError(
            f"With tz, every must divide a day (15m, 1h, 6h), or be whole days, weeks, months or years; it is {every}."
        )
    return ClockBuckets(seconds, zone)

"""Time zones: which there are, and their offsets from UTC over a range of times.

Reads the time zone database of the machine (or the package tzdata) when a zone is first used, and nothing else.
Invariant: offsets are those of :mod:`zoneinfo`; a zone changes its offset at most once on a day of UTC.
"""

import difflib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
from numpy.typing import NDArray

from keepfit.errors import InvalidError, MalformedError

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

DAY_S = 86_400.0
NAME = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
# Times for which datetime has no room for an offset: zones do not change there.
LEAST_S, MOST_S = -62_135_000_000.0, 253_402_000_000.0


def parse_zone(name: object) -> ZoneInfo:
    """Return the time zone of this name. Reads a file when the zone is first used.

    Raises
    ------
    MalformedError
        If it is not text in the form of such a name.
    InvalidError
        If there is no such zone; the message has the names most like it.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise MalformedError(
            f"tz must be the name of a time zone of the IANA database: UTC, Europe/Berlin, America/New_York; "
            f"it is {str(name)[:64]!r}."
        )
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InvalidError(f"There is no time zone {name!r}{_hint(name)}.") from None


def _hint(name: str) -> str:
    known = {zone.casefold(): zone for zone in available_timezones()}
    near = [known[zone] for zone in difflib.get_close_matches(name.casefold(), known, n=3)]
    # Of a city alone, its zone.
    near += [zone for folded, zone in known.items() if folded.endswith(f"/{name.casefold()}") and zone not in near]
    if near:
        return f": use {' or '.join(sorted(near[:4]))}"
    return ": names are those of the IANA database: UTC, Europe/Berlin, America/New_York"


@dataclass(frozen=True, slots=True)
class Offsets:
    """Offsets of a zone in seconds east of UTC: ``offsets[i]`` until ``changes[i]``; shapes (n,), (n + 1,)."""

    changes: Array
    offsets: Array

    def segments(self, times: Array) -> NDArray[np.intp]:
        """Return for each time between which two changes it is: the index of its offset."""
        return np.searchsorted(self.changes, times, side="right")

    def at(self, times: Array) -> Array:
        """Return the offset at each time."""
        return self.offsets[self.segments(times)]


def offsets_near(zone: tzinfo, times: Array) -> Offsets:
    """Return the offsets on the days (of UTC) of these times, and on the day before and after each of them."""
    days = np.unique(np.floor(np.clip(times, LEAST_S, MOST_S) / DAY_S).astype(np.int64))
    near = np.unique(np.concatenate((days - 1, days, days + 1)))
    changes, offsets = list[float](), [_offset(zone, near[0] * DAY_S) if len(near) else 0.0]
    for day in near.tolist():
        first, last = day * 86_400, (day + 1) * 86_400
        at_first, at_last = _offset(zone, first), _offset(zone, last)
        if at_first != offsets[-1]:
            changes.append(float(first))
            offsets.append(at_first)
        if at_last != at_first:
            changes.append(float(_change(zone, first, last)))
            offsets.append(at_last)
    return Offsets(np.array(changes, dtype=np.float64), np.array(offsets, dtype=np.float64))


def first_instant(zone: tzinfo, day: date) -> float:
    """Return the first time (seconds since 1970) at which the zone's clocks show this date or a later one."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    first = midnight.timestamp()
    if datetime.fromtimestamp(first, zone).replace(tzinfo=None) == midnight.replace(tzinfo=None):
        return first
    # Clocks skip midnight: the day begins when they do.
    before = midnight.replace(fold=1).timestamp()
    return float(_change(zone, round(min(before, first)) - 1, round(max(before, first)) + 1))


def _offset(zone: tzinfo, at: float) -> float:
    moment = datetime.fromtimestamp(min(max(at, LEAST_S), MOST_S), UTC).astimezone(zone)
    offset = moment.utcoffset()
    return 0.0 if offset is None else offset.total_seconds()


def _change(zone: tzinfo, first: int, last: int) -> int:
    """Return the second after `first`, and not after `last`, from which on the offset is that of `last`."""
    after = _offset(zone, last)
    while last - first > 1:
        middle = (first + last) // 2
        if _offset(zone, middle) == after:
            last = middle
        else:
            first = middle
    return last

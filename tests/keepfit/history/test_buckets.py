"""Buckets begin with the days, weeks, months and hours of their zone."""

from datetime import datetime
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from keepfit.errors import InvalidError, MalformedError
from keepfit.history.queries.buckets import Buckets, ClockBuckets, FixedBuckets, parse_buckets
from keepfit.history.queries.zones import parse_zone
from tests.keepfit.history.against_pandas import FREQUENCIES, ZONES, starts


def shown(buckets: Buckets, zone: str, first: str, last: str) -> list[str]:
    """Return the starts of the buckets from one time (UTC) to another, as clocks of the zone show them."""
    bounds = (datetime.fromisoformat(f"{text}+00:00").timestamp() for text in (first, last))
    return [str(pd.Timestamp(at, unit="s", tz="UTC").tz_convert(zone))[:22] for at in buckets.between(*bounds)]


@pytest.mark.parametrize(
    ("zone", "every", "first", "last", "expected"),
    [
        # 23 and 25 hours: one bucket each, which begins at midnight.
        ("Europe/Berlin", "1d", "2026-03-28T12:00", "2026-03-30T12:00",
         ["2026-03-28 00:00:00+01", "2026-03-29 00:00:00+01", "2026-03-30 00:00:00+02"]),
        ("Europe/Berlin", "24h", "2026-10-24T12:00", "2026-10-26T12:00",
         ["2026-10-24 00:00:00+02", "2026-10-25 00:00:00+02", "2026-10-26 00:00:00+01"]),
        # Clocks skip midnight, or show it twice.
        ("America/Sao_Paulo", "1d", "2018-11-03T12:00", "2018-11-04T12:00",
         ["2018-11-03 00:00:00-03", "2018-11-04 01:00:00-02"]),
        ("America/Havana", "1d", "2026-10-31T12:00", "2026-11-01T12:00",
         ["2026-10-31 00:00:00-04", "2026-11-01 00:00:00-04"]),
        # A day that does not exist.
        ("Pacific/Apia", "1d", "2011-12-29T20:00", "2011-12-31T20:00",
         ["2011-12-29 00:00:00-10", "2011-12-31 00:00:00+14", "2012-01-01 00:00:00+14"]),
        ("Europe/Berlin", "1w", "2026-03-20T00:00", "2026-03-31T00:00",
         ["2026-03-16 00:00:00+01", "2026-03-23 00:00:00+01", "2026-03-30 00:00:00+02"]),
        ("Europe/Berlin", "3mo", "2026-02-01T00:00", "2026-07-01T00:00",
         ["2026-01-01 00:00:00+01", "2026-04-01 00:00:00+02", "2026-07-01 00:00:00+02"]),
        ("Asia/Kolkata", "1y", "2025-06-01T00:00", "2026-06-01T00:00",
         ["2025-01-01 00:00:00+05", "2026-01-01 00:00:00+05"]),
        # The hour that clocks show twice has two buckets, and one of six hours is longer.
        ("Europe/Berlin", "1h", "2026-10-24T23:30", "2026-10-25T02:30",
         ["2026-10-25 01:00:00+02", "2026-10-25 02:00:00+02", "2026-10-25 02:00:00+01", "2026-10-25 03:00:00+01"]),
        ("Europe/Berlin", "6h", "2026-10-24T23:00", "2026-10-25T12:00",
         ["2026-10-25 00:00:00+02", "2026-10-25 06:00:00+01", "2026-10-25 12:00:00+01"]),
        ("Europe/Berlin", "2h", "2026-03-28T23:30", "2026-03-29T02:30",
         ["2026-03-29 00:00:00+01", "2026-03-29 03:00:00+02", "2026-03-29 04:00:00+02"]),
        ("Asia/Kolkata", "1h", "2026-10-25T00:00", "2026-10-25T01:00",
         ["2026-10-25 05:00:00+05", "2026-10-25 06:00:00+05"]),
    ],
)  # fmt: skip
def test_buckets_begin_on_the_clock_of_the_zone(
    zone: str, every: str, first: str, last: str, expected: list[str]
) -> None:
    """Days, weeks, months and years begin at local midnight, hours on the local clock, also where clocks change."""
    assert shown(parse_buckets(every, parse_zone(zone)), zone, first, last) == expected


@pytest.mark.parametrize("zone", [zone for zone in ZONES if zone])
def test_each_time_is_in_one_bucket(zone: str) -> None:
    """Buckets follow one another without gaps, contain their start and not their end, and are those of pandas."""
    rng = np.random.default_rng(3)
    low, high = (pd.Timestamp(day, tz="UTC").timestamp() for day in ("2018-01-20", "2018-12-20"))
    times = np.sort(np.concatenate((rng.uniform(low, high, 800), np.floor(rng.uniform(low, high, 800) / 900) * 900)))
    for every in (*FREQUENCIES, "1d", "2d", "1w", "1mo", "1y"):
        buckets = parse_buckets(every, parse_zone(zone))
        found, every_start = buckets.starts(times), buckets.between(times[0], times[-1])
        assert (found <= times).all()
        assert (buckets.starts(every_start) == every_start).all()
        place = np.searchsorted(every_start, times, side="right") - 1
        assert (every_start[place] == found).all()
        assert all(buckets.starts(np.array([np.nextafter(end, begin)]))[0] == begin
                   for begin, end in pairwise(every_start[:50].tolist()))  # fmt: skip
        assert (found == starts(times, every, zone).as_unit("ns").asi8 / 1e9).all()


def test_without_a_zone_buckets_are_of_equal_length() -> None:
    """Durations without a zone are spans since 1970; months and years without one are those of UTC."""
    assert parse_buckets("1d") == FixedBuckets(86_400.0)
    assert parse_buckets("250ms").fixed_s == 0.25
    assert parse_buckets("15m", parse_zone("UTC")) == ClockBuckets(900.0, parse_zone("UTC"))
    assert shown(parse_buckets("1mo"), "UTC", "2026-02-15T00:00", "2026-03-01T00:00") == [
        "2026-02-01 00:00:00+00", "2026-03-01 00:00:00+00",
    ]  # fmt: skip
    ends = np.array([-62_135_596_800.0, 253_402_300_799.0])
    for every in ("1d", "1w", "1mo", "10y", "6h"):
        begins = parse_buckets(every, parse_zone("Asia/Kolkata")).starts(ends)
        assert (begins <= ends).all()


@pytest.mark.parametrize(
    ("every", "zone", "words"),
    [
        ("7h", "UTC", "every must divide a day"), ("36h", "UTC", "every must divide a day"), ("0mo", None, "from 1mo"),
        ("2000y", None, "to 1000y"), ("1mon", None, "not a valid duration"),
        ("1m", "europe/berlin", "use Europe/Berlin"), ("1m", "Berlin", "use Europe/Berlin"),
        ("1m", "Mars/Olympus", "IANA database"), ("1m", "../etc/passwd", "IANA"),
        ("1m", "Europe", "There is no time zone 'Europe'"), ("1m", "", "tz must be"), ("1m", 5, "tz must be"),
    ],
)  # fmt: skip
def test_other_spans_and_zones_are_errors(every: str, zone: str | None, words: str) -> None:
    """A span that a zone cannot have, and a zone that does not exist, are errors that say what there is."""
    with pytest.raises((InvalidError, MalformedError), match=words):
        parse_buckets(every, None if zone is None else parse_zone(zone))

"""Grouping by time gives the results of plain Python and pandas."""

import math
import statistics
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keepfit.errors import MalformedError
from keepfit.history.queries import buckets as spans
from keepfit.history.queries import grouping, statistic, steps
from keepfit.history.queries.grouping import Series

SPANS = st.sampled_from([0.1, 0.3, 1.0, 7.0, 60.0, 300.0, 3600.0, 86_400.0, 604_800.0, 1_209_600.0])
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))
STATS = st.sampled_from(
    [*(stat for stat in statistic.STATS if stat != "integral"), "p0", "p50", "p90", "p99.9", "p100"]
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[float, list[tuple[float, float]]]:
    """Draw a bucket duration, and times and values in some buckets; some times are exactly on bounds."""
    every = draw(SPANS)
    origin = draw(st.sampled_from([0.0, 1.7955e9, -1e6])) // every * every
    places = st.one_of(st.floats(0, 30), st.integers(0, 30).map(float))
    drawn = draw(st.lists(st.tuples(places, NUMBERS), max_size=40))
    return every, [(origin + place * every, value) for place, value in drawn]


def bucket_start(moment: float, every: float) -> float:
    """Return the start of a time's bucket, counted in whole steps."""
    offset = spans.MONDAY_S if every % spans.WEEK_S == 0 else 0.0
    number = math.floor((moment - offset) / every)
    while number * every + offset > moment:
        number -= 1
    while (number + 1) * every + offset <= moment:
        number += 1
    return number * every + offset


def plain_statistic(values: list[float], stat: str) -> float:
    """Return a statistic of one bucket's values in order of time, computed by the standard library."""
    if stat.startswith("p"):
        return pd.Series(values).quantile(min(float(stat[1:]) / 100, 1.0))  # type: ignore[no-any-return]
    simple: dict[str, Any] = {
        "mean": statistics.fmean, "min": min, "max": max, "sum": math.fsum, "count": len,
        "first": lambda found: found[0], "last": lambda found: found[-1], "median": statistics.median,
        "stddev": lambda found: pd.Series(found).std(), "variance": lambda found: pd.Series(found).var(),
        "spread": lambda found: max(found) - min(found), "distinct": lambda found: len(set(found)),
        "mode": lambda found: pd.Series(found).mode().min(),
    }  # fmt: skip
    return float(simple[stat](values))


def arrays(pairs: list[tuple[float, float]]) -> tuple[spans.Array, spans.Array]:
    """Return times and values as arrays."""
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def assert_same(found: Series, expected: dict[float, float]) -> None:
    """Assert that points have the expected times and values."""
    assert found.times.tolist() == list(expected)
    np.testing.assert_allclose(found.values, np.array(list(expected.values())), rtol=1e-9, atol=1e-6)


@settings(max_examples=120, deadline=None)
@given(drawn=documents(), stat=STATS)
def test_points_equal_those_of_plain_python(drawn: tuple[float, list[tuple[float, float]]], stat: str) -> None:
    """Each bucket with documents has one point with the statistic of its values, in order of time; others have none."""
    every, pairs = drawn
    buckets: dict[float, list[float]] = {}
    for moment, value in sorted(pairs, key=lambda pair: pair[0]):
        buckets.setdefault(bucket_start(moment, every), []).append(value)
    assert_same(
        grouping.aggregate(*arrays(pairs), every, stat),
        {begin: plain_statistic(values, stat) for begin, values in buckets.items()},
    )


@settings(max_examples=120, deadline=None)
@given(
    drawn=documents(),
    how=st.one_of(st.sampled_from(["null", "previous", "linear"]), NUMBERS),
    bounds=st.tuples(st.none() | st.integers(-3, 12), st.none() | st.integers(13, 40)),
)
@example(drawn=(60.0, [(0.0, 1.0)]), how="linear", bounds=(12, None))
@example(drawn=(60.0, [(0.0, 1.0)]), how=2.0, bounds=(12, None))
def test_gaps_are_filled_as_pandas_fills_them(
    drawn: tuple[float, list[tuple[float, float]]], how: Any, bounds: tuple[int | None, int | None]
) -> None:
    """Every bucket between the bounds has a point; buckets without documents have the value that pandas fills in."""
    every, pairs = drawn
    origin = bucket_start(min((moment for moment, _ in pairs), default=0.0), every)
    first, last = (None if place is None else origin + (place + 0.5) * every for place in bounds)
    series = grouping.aggregate(*arrays(pairs), every, "mean")
    found = grouping.fill(series, every, how, first, last)
    if not len(series) and (first is None or last is None):
        assert len(found) == 0
        return
    edges = [spans.bucket_numbers(np.array([edge]), every)[0] if edge is not None else None for edge in (first, last)]
    numbers = spans.bucket_numbers(series.times, every)
    low = numbers[0] if edges[0] is None else edges[0]
    high = numbers[-1] if edges[1] is None else edges[1]
    plain = pd.Series(series.values, index=numbers).reindex(range(low, high + 1))
    filled = {
        "null": lambda: plain,
        "previous": plain.ffill,
        "linear": lambda: plain.interpolate("linear", limit_area="inside"),
    }.get(how, lambda: plain.fillna(how))()
    assert found.times.tolist() == spans.bucket_starts(np.arange(low, high + 1), every).tolist()
    np.testing.assert_allclose(found.values, filled.to_numpy(), rtol=1e-9, atol=1e-6)


SERIES = st.lists(st.one_of(st.just(math.nan), NUMBERS), max_size=30).map(
    lambda values: Series(np.arange(len(values)) * 60.0, np.array(values, dtype=np.float64))
)


@settings(max_examples=60, deadline=None)
@given(series=SERIES, count=st.integers(1, 40))
def test_moving_averages_equal_those_of_pandas(series: Series, count: int) -> None:
    """A point is the mean of itself and the points before it, as many as exist; NaN is skipped."""
    expected = pd.Series(series.values, dtype=float).rolling(count, min_periods=1).mean().to_numpy()
    found = steps.moving_average(series, count)
    assert found.times.tolist() == series.times.tolist()
    np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(series=SERIES, per=st.sampled_from([1.0, 60.0, 3600.0]))
def test_a_rate_is_the_difference_divided_by_the_time(series: Series, per: float) -> None:
    """A rate is the change from one value to the next, divided by the time between them."""
    known = [pair for pair in zip(series.times, series.values, strict=True) if not math.isnan(pair[1])]
    expected = {after[0]: (after[1] - before[1]) / (after[0] - before[0]) * per for before, after in pairwise(known)}
    assert_same(steps.rate_of_change(series, per), expected)


def test_a_week_begins_on_a_monday() -> None:
    """Buckets of whole weeks start on Mondays at midnight, in UTC."""
    sunday = pd.Timestamp("2026-11-22 23:59:59.999", tz="UTC").timestamp()
    series = grouping.aggregate(np.array([sunday, sunday + 0.001]), np.ones(2), spans.WEEK_S, "count")
    assert [str(pd.Timestamp(moment, unit="s")) for moment in series.times] == [
        "2026-11-16 00:00:00",
        "2026-11-23 00:00:00",
    ]


@pytest.mark.parametrize("stat", ["", "average", "p", "p101", "p-1", "p5e1", "pp", "MEAN"])
def test_an_unknown_statistic_is_an_error(stat: str) -> None:
    """An unknown statistic is an error that lists the known ones."""
    with pytest.raises(MalformedError, match="stat must be one of"):
        statistic.statistic(stat)

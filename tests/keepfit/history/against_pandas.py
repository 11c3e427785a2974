"""Draw history queries and compute their points with pandas, to compare them with those of the timeline.

Run `python -m tests.keepfit.history.against_pandas` for the full size: 50,000 documents and 60 queries.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.history import TimelineSync, mongo
from keepfit.history.queries import statistic
from tests import servers

# Zones with the change of their clocks in the year 2018; that of Brazil skips midnight, that of Cuba shows it twice.
ZONES = {
    None: "0h", "UTC": "0h", "Europe/Berlin": "1h", "America/New_York": "1h", "Asia/Kolkata": "0h",
    "America/Sao_Paulo": "1h", "America/Havana": "1h", "Australia/Lord_Howe": "30min",
}  # fmt: skip
SPANS = ("15m", "30m", "1h", "2h", "6h", "12h", "1d", "2d", "1w", "2w", "1mo", "3mo", "1y")
FREQUENCIES = {"15m": "15min", "30m": "30min", "1h": "1h", "2h": "2h", "6h": "6h", "12h": "12h"}
BEGIN, END = pd.Timestamp("2018-01-20", tz="UTC").timestamp(), pd.Timestamp("2018-12-20", tz="UTC").timestamp()
WEEK, DAY = 604_800, 86_400


def documents(count: int) -> pd.DataFrame:
    """Return documents over eleven months, many of them on the days when clocks change, some without a number."""
    rng = np.random.default_rng(11)
    changes = [
        pd.Timestamp(day, tz="UTC").timestamp() for day in ("2018-03-25", "2018-10-28", "2018-11-04", "2018-04-01")
    ]
    spread = rng.uniform(BEGIN, END, count)
    near = rng.choice(changes, count) + rng.uniform(-DAY, 2 * DAY, count)
    stamps = np.round(np.concatenate((spread, near)), 3)
    # Some exactly at the starts of buckets.
    stamps[::7] = np.floor(stamps[::7] / 900) * 900
    # Of documents of one time, the order would decide about `first`, `last` and `integral`.
    stamps = np.sort(rng.choice(np.unique(stamps), count, replace=False))
    frame = pd.DataFrame({"timestamp": stamps})
    frame["n"] = np.round(rng.normal(100, 40, len(frame)), rng.integers(0, 3))
    frame.loc[rng.random(len(frame)) < 0.2, "n"] = 7.0
    frame["brand"] = rng.choice(["nike", "puma", "adidas", "asics"], len(frame))
    frame["region"] = rng.choice(np.array(["eu", "us", 3, True], dtype=object), len(frame))
    frame["has"] = rng.random(len(frame)) > 0.05
    return frame


def stored(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as documents."""
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return [
        {"type": "sale", **{key: value for key, value in row.items() if key not in ("n", "has") or row["has"]}}
        for row in rows
    ]


@dataclass(frozen=True)
class Drawn:
    """A query: the parameters of `points`, and the condition of `where` in the language of pandas."""

    every: str
    tz: str | None
    stat: str
    group: tuple[str, ...]
    fill: Any
    bounds: tuple[float | None, float | None]
    where: dict[str, Any]
    pandas_where: str
    steps: dict[str, Any] = field(default_factory=dict)


@st.composite
def queries(draw: st.DrawFn) -> Drawn:
    """Draw a query whose answer has not too many points."""
    every = draw(st.sampled_from(SPANS))
    low = draw(st.floats(BEGIN, END - WEEK).map(round))
    # At least as long as one change of clocks is from the next, for spans of days and more.
    width = {"15m": 20, "30m": 40, "1h": 90, "2h": 150}.get(every, 400) * DAY
    bounds = (low, draw(st.floats(low + DAY, low + width).map(round)))
    if every not in ("15m", "30m", "1h", "2h"):
        bounds = draw(st.sampled_from([bounds, (None, None), (low, None), (None, bounds[1])]))
    where, text = draw(st.sampled_from([
        ({}, "True"), ({"n": {">=": 50, "<": 140}}, "(n >= 50) & (n < 140)"),
        ({"brand": {"in": ["nike", "puma"]}}, "brand in ['nike', 'puma']"),
        ({"brand": {"!=": "asics"}}, "brand != 'asics'"),
        ({"brand": {"<": "nike"}}, "brand < 'nike'"), ({"n": {"not in": [7]}}, "n != 7"),
    ]))  # fmt: skip
    steps: dict[str, Any] = draw(st.sampled_from([
        {}, {}, {"rate": "1h"}, {"increase": True}, {"nonnegative_rate": "1d"}, {"cumulative": True}, {"moving": 4},
        {"exponential": 5}, {"increase": True, "cumulative": True}, {"rate": 60, "moving": 3},
    ]))  # fmt: skip
    group = draw(st.sampled_from([(), (), ("brand",), ("region",), ("brand", "region")]))
    # The mean of rates is that of the ends, often 0 but for rounding: no order to compare.
    if group and "rate" not in steps:
        steps |= draw(st.sampled_from([{}, {"top": 2}, {"bottom": 3}, {"series": 2}]))
    return Drawn(
        every, draw(st.sampled_from(list(ZONES))), draw(st.sampled_from([*statistic.STATS, "p90", "p99.9"])), group,
        draw(st.sampled_from(["none", "null", "previous", "linear", -1.5])), bounds, where, text, steps,
    )  # fmt: skip


def _localized(naive: pd.DatetimeIndex, zone: str) -> pd.DatetimeIndex:
    first = np.ones(len(naive), dtype=bool)
    if zone == "Australia/Lord_Howe":
        # pandas 3.1 shifts by whole hours: here clocks skip the half hour after 2:00.
        found = naive.tz_localize(zone, ambiguous=first, nonexistent="NaT").tz_convert("UTC")
        return pd.DatetimeIndex(found.fillna(pd.Timestamp("2018-10-06T15:30Z")))
    return naive.tz_localize(zone, ambiguous=first, nonexistent="shift_forward").tz_convert("UTC")


def _floors(naive: pd.DatetimeIndex, every: str) -> pd.DatetimeIndex:
    """Return the start of each time's bucket on a clock that never changes."""
    days = naive.normalize()
    if every in FREQUENCIES:
        return naive.floor(FREQUENCIES[every])
    if every.endswith(("mo", "y")):
        months = (naive.year - 1970) * 12 + naive.month - 1
        size = int(every[:-2]) if every.endswith("mo") else 12 * int(every[:-1])
        floored = months // size * size
        return pd.DatetimeIndex([pd.Timestamp(1970 + month // 12, month % 12 + 1, 1) for month in floored])
    count, origin = (int(every[:-1]) * 7, "1970-01-05") if every.endswith("w") else (int(every[:-1]), "1970-01-01")
    since = (days - pd.Timestamp(origin)).days // count * count
    return pd.Timestamp(origin) + pd.to_timedelta(since, unit="D")


def starts(times: np.ndarray, every: str, tz: str | None) -> pd.DatetimeIndex:
    """Return the start of each time's bucket."""
    at = pd.to_datetime(times, unit="s", utc=True).as_unit("ns")
    zone = tz or "UTC"
    naive = at.tz_convert(zone).tz_localize(None)
    floors = _floors(naive, every).as_unit("ns")
    if every in FREQUENCIES and pd.Timedelta(FREQUENCIES[every]) <= pd.Timedelta(ZONES[tz]):
        return floors.tz_localize("UTC") - (naive.tz_localize("UTC") - at)
    return _localized(floors, zone)


def between(first: float, last: float, every: str, tz: str | None) -> pd.DatetimeIndex:
    """Return the starts of all buckets from that of one time to that of another."""
    # One time in each quarter of an hour, or day.
    step = 900 if every in FREQUENCIES else DAY / 2
    probes = np.append(np.arange(np.floor(first / step) * step, last, step), last)
    found = starts(np.maximum(probes, first), every, tz)
    return pd.DatetimeIndex(np.unique(found.as_unit("ns").asi8)).tz_localize("UTC")


AGGREGATES: dict[str, Callable[[pd.DataFrame], float]] = {
    "mean": lambda rows: rows["n"].mean(), "min": lambda rows: rows["n"].min(), "max": lambda rows: rows["n"].max(),
    "sum": lambda rows: rows["n"].sum(), "count": len, "first": lambda rows: rows["n"].iloc[0],
    "last": lambda rows: rows["n"].iloc[-1], "median": lambda rows: rows["n"].median(),
    "stddev": lambda rows: rows["n"].std(), "variance": lambda rows: rows["n"].var(),
    "spread": lambda rows: rows["n"].max() - rows["n"].min(), "distinct": lambda rows: rows["n"].nunique(),
    "mode": lambda rows: rows["n"].mode().min(),
    "integral": lambda rows: np.trapezoid(rows["n"], rows["timestamp"]),
    "p90": lambda rows: rows["n"].quantile(0.9), "p99.9": lambda rows: rows["n"].quantile(0.999),
}  # fmt: skip


def _series(rows: pd.DataFrame, drawn: Drawn) -> pd.Series:
    labels = starts(rows["timestamp"].to_numpy(), drawn.every, drawn.tz)
    found = pd.Series({label: AGGREGATES[drawn.stat](some) for label, some in rows.groupby(labels)}, dtype=float)
    low, high = drawn.bounds
    if drawn.fill != "none":
        first = rows["timestamp"].iloc[0] if low is None else low
        last = rows["timestamp"].iloc[-1] if high is None else np.nextafter(high, 0)
        found = found.reindex(between(first, last, drawn.every, drawn.tz))
    if drawn.fill == "previous":
        found = found.ffill()
    elif drawn.fill == "linear":
        found = found.interpolate("time", limit_area="inside")
    elif drawn.fill not in ("none", "null"):
        found = found.fillna(drawn.fill)
    return _stepped(found, drawn.steps)


def _stepped(found: pd.Series, steps: dict[str, Any]) -> pd.Series:
    per = {"1h": 3600, "1d": DAY, 60: 60}
    if {"rate", "increase", "nonnegative_rate"} & steps.keys():
        known = found.dropna()
        changes, seconds = known.diff().iloc[1:], known.index.as_unit("ns").asi8[1:] / 1e9
        before = known.index.as_unit("ns").asi8[:-1] / 1e9
        if "rate" not in steps:
            changes = changes.where(changes >= 0, known.iloc[1:].clip(lower=0))
        unit = per.get(steps.get("rate", steps.get("nonnegative_rate")))
        found = changes if unit is None else changes / (seconds - before) * unit
    if "cumulative" in steps:
        found = found.cumsum()
    if "moving" in steps:
        found = found.rolling(steps["moving"], min_periods=1).mean()
    if "exponential" in steps:
        found = found.ewm(span=steps["exponential"], adjust=False, ignore_na=True).mean()
    return found


def expected(frame: pd.DataFrame, drawn: Drawn) -> list[tuple[tuple[Any, ...], float, float]]:
    """Return group, time and value of each point."""
    rows = frame[frame["has"] & frame.eval(drawn.pandas_where)] if drawn.where else frame[frame["has"]]
    low, high = drawn.bounds
    rows = rows[(rows["timestamp"] >= (low or -np.inf)) & (rows["timestamp"] < (high or np.inf))]
    # By type too: True equals 1.
    keys = [rows[key].map(lambda value: (str(type(value)), value)) for key in drawn.group]
    groups = rows.groupby(pd.Series(list(zip(*keys, strict=True)), index=rows.index)) if keys else [((), rows)]
    found = [(tuple(value for _, value in key), _series(some, drawn)) for key, some in groups if len(some)]
    if not found:
        return []
    for name, sign in (("top", -1), ("bottom", 1)):
        if name in drawn.steps:
            found.sort(key=lambda each: sign * each[1].mean() if each[1].notna().any() else np.inf)
            found = found[: drawn.steps[name]]
    found = found[: drawn.steps.get("series", len(found))]
    return [
        (group, moment / 1e9, value)
        for group, series in found
        for moment, value in zip(series.index.as_unit("ns").asi8, series, strict=True)
    ]


def check(timeline: TimelineSync, frame: pd.DataFrame, count: int) -> int:
    """Compare the answers of drawn queries with those of pandas; return how many points were compared."""
    compared = 0

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(queries())
    def equal(drawn: Drawn) -> None:
        nonlocal compared
        found = timeline.points(
            "n", drawn.every, drawn.stat, {"type": "sale", **drawn.where}, *drawn.bounds, group=drawn.group,
            fill=drawn.fill, tz=drawn.tz, **drawn.steps,
        )  # fmt: skip
        wanted = expected(frame, drawn)
        groups = [point.get("group", ()) for point in found]
        several = [tuple(group.values()) if isinstance(group, dict) else group for group in groups]
        keys = [group if isinstance(group, tuple) else (group,) for group in several]
        assert [(*map(repr, key), point["timestamp"]) for key, point in zip(keys, found, strict=True)] == [
            (*map(repr, key), moment) for key, moment, _ in wanted
        ]
        values = np.array([point["value"] for point in found], dtype=np.float64)
        np.testing.assert_allclose(values, [value for _, _, value in wanted], rtol=1e-7, atol=1e-7)
        compared += len(found)

    equal()
    return compared


def main() -> None:
    """Run the full size on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=60)
    asked = parser.parse_args()
    # The documents are years old: one window contains all of them, which takes the embedded server seconds.
    mongo.CALL_TIMEOUT_MS = 60_000
    frame = documents(asked.documents)
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.mongo(Path(folder) / "mongo") as url,
        TimelineSync(f"{url}/pandas") as timeline,
    ):
        timeline.bulk_upsert(stored(frame))
        began = time.monotonic()
        compared = check(timeline, frame, asked.queries)
        took = time.monotonic() - began
    sys.stdout.write(f"{len(frame):,} documents, {asked.queries} queries, {compared:,} points equal, {took:.0f} s\n")


if __name__ == "__main__":
    main()

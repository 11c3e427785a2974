"""The values of one host in time order, and the rows that a model learns from them.

Pure. Invariant: a row has only values that were known before its own.

>>> series = Series()
>>> for minute in range(6):
...     series.append(60 * minute, float(minute))
>>> series.row_at(360)
{'lag_1': 5.0, 'lag_2': 4.0, 'lag_3': 3.0, 'lag_4': 2.0, 'lag_5': 1.0, 'lag_6': 0.0, 'hour': 0}
>>> series.row_at(420) is None
True
"""

from collections import deque

STEP_S = 60
LAGS = 6
WINDOW = 200
RECIPE = {
    "estimator": "SGDRegressor",
    "params": {"learning_rate": "constant", "eta0": 0.02},
    "features": {**{f"lag_{n}": "number" for n in range(1, LAGS + 1)}, "hour": "category"},
    "scaler": "StandardScaler",
    "window": WINDOW,
}


class Series:
    """The last values of a host; `at` is the time of the newest, in seconds since 1970."""

    def __init__(self) -> None:
        self.at = 0
        self.values: deque[float] = deque(maxlen=LAGS)
        self.changes: deque[float] = deque(maxlen=WINDOW)

    def append(self, at: int, value: float) -> None:
        """Add the value of a later time; values before a gap are dropped, because lags are numbers of minutes."""
        if at - self.at != STEP_S:
            self.values.clear()
        elif self.values:
            self.changes.append(abs(value - self.values[-1]))
        self.at = at
        self.values.append(value)

    def row_at(self, at: int) -> dict[str, float] | None:
        """Return the row of a time: the values before it, and its hour in UTC. None if they are not all known."""
        if at - self.at != STEP_S or len(self.values) < LAGS:
            return None
        lags = {f"lag_{n}": value for n, value in enumerate(reversed(self.values), 1)}
        return {**lags, "hour": at // 3600 % 24}

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self.values[-1] if self.values else None

    def error_of_no_change(self) -> float | None:
        """Return the mean error of the forecast that the next value is the last one."""
        return sum(self.changes) / len(self.changes) if self.changes else None

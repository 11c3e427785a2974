"""Documents and points as data frames; pandas is optional (the extra ``frames``) and imported only here, when asked."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def to_dataframe(rows: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """Make a data frame of documents or points: a row each, indexed by ``timestamp`` (UTC), in order of time.

    What is nested gets a column of its own under its dotted name: ``metrics.mean_absolute_error``.
    """
    import pandas as pd  # noqa: PLC0415 - optional, and 70 MB

    frame = pd.json_normalize([dict(row) for row in rows])
    if frame.empty:
        return frame
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="s", utc=True)
    return frame.set_index("timestamp").sort_index(kind="stable")

"""Convert documents and points to pandas data frames.

pandas is optional (the extra ``frames``); this module imports it only when the function is called.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def to_dataframe(rows: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """Return documents or points as a data frame: one row each, indexed by ``timestamp`` (UTC), ordered by time.

    Nested values become columns with dotted names: ``metrics.mean_absolute_error``.
    """
    import pandas as pd  # noqa: PLC0415 - optional, and 70 MB

    frame = pd.json_normalize([dict(row) for row in rows])
    if frame.empty:
        return frame
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="s", utc=True)
    return frame.set_index("timestamp").sort_index(kind="stable")

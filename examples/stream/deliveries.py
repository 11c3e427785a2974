"""What producer and consumer agree on: the entries of the stream, and the model that learns from them.

An entry is a delivery: the kitchen, the distance, the hour of the order, and the minutes that it took.
"""

from collections.abc import Mapping
from typing import Any

RECIPE = {
    "estimator": "SGDRegressor",
    "params": {"learning_rate": "constant", "eta0": 0.05},
    "features": {"kitchen": "category", "km": "number", "rush": "boolean"},
    "scaler": "StandardScaler",
}
RUSH_HOURS = (12, 13, 18, 19, 20)


def metadata_of(stream: str) -> dict[str, str]:
    """Return the metadata of the model that learns a stream."""
    return {"type": "delivery-minutes", "stream": stream}


def row_of(fields: Mapping[str, str]) -> tuple[dict[str, Any], float]:
    """Return the row of an entry and its target, the minutes.

    They depend on the entry alone: a request that is repeated under its key must have the same rows.

    Raises
    ------
    KeyError, ValueError
        If a field is missing or is not a number.

    >>> row_of({"kitchen": "napoli", "km": "2.5", "hour": "19", "minutes": "31"})
    ({'kitchen': 'napoli', 'km': 2.5, 'rush': True}, 31.0)
    """
    row = {"kitchen": fields["kitchen"], "km": float(fields["km"]), "rush": int(fields["hour"]) in RUSH_HOURS}
    return row, float(fields["minutes"])

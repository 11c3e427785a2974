"""What is learned beside the rows: the target and the weights, from arguments or from columns of the rows.

Pure. Invariant: labels keep their types; whole floats of an array become integers, because a classifier has no float
labels and a regressor does not distinguish them, so that small and large calls accept the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keepfit.client.rows.tables import Columns, Frame, Matrix, Records, Rows, as_list, table_of
from keepfit.errors import InvalidError

# Numbers beyond are not whole to the unit as a double.
WHOLE_MAX = 2.0**53


@dataclass(slots=True)
class Data:
    """Rows with their target and weights, each None if there is none; `y` may be an array of numpy, or a list."""

    table: Rows
    y: Any = None
    weights: Any = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.table.rows

    def labels(self, first: int, last: int) -> list[Any] | None:
        """Return the targets of rows, as they are sent in JSON."""
        return None if self.y is None else _plain_target(self.y[first:last])

    def weights_of(self, first: int, last: int) -> list[Any] | None:
        """Return the weights of rows."""
        return None if self.weights is None else as_list(self.weights[first:last])


def data_of(X: Any, y: Any = None, target: str | Sequence[str] | None = None, sample_weight: Any = None) -> Data:
    """Return rows with their target: `y`, or the columns of `X` that `target` (or a text as `y`) names.

    `sample_weight` is a list, an array or the name of a column.

    Raises
    ------
    MalformedError
        If `X` is not rows.
    InvalidError
        If a column is missing, or lengths differ.
    """
    if isinstance(y, str):
        y, target = None, y
    if y is not None and target is not None:
        raise InvalidError("Give y or target, not both.")
    table = table_of(X)
    weights = sample_weight
    if isinstance(sample_weight, str):
        weights, table = _take(table, sample_weight)
    if isinstance(target, str):
        y, table = _take(table, target)
    elif target is not None:
        columns = []
        for name in target:
            values, table = _take(table, name)
            columns.append(as_list(values))
        y = [list(row) for row in zip(*columns, strict=True)]
    y, weights = _sliceable(y), _sliceable(weights)
    for what, values in (("y", y), ("sample_weight", weights)):
        if values is not None and len(values) != table.rows:
            raise InvalidError(f"X has {table.rows} rows and {what} has {len(values)}.")
    return Data(table, y, weights)


def _take(table: Rows, name: str) -> tuple[Any, Rows]:
    if isinstance(table, Columns | Frame):
        return table.take(name)
    if isinstance(table, Matrix):
        raise InvalidError(f"An array has no column {name!r}: give y.")
    rows = table.records(0, table.rows)
    if not all(isinstance(row, dict) for row in rows):
        raise InvalidError(f"Lists have no column {name!r}: give y, or rows as dicts.")
    without = [position for position, row in enumerate(rows) if name not in row]
    if without:
        raise InvalidError(f"Row {without[0]} has no {name!r}.")
    rest = [{other: value for other, value in row.items() if other != name} for row in rows]
    return [row[name] for row in rows], Records(rest)


def _sliceable(values: Any) -> Any:
    """Return a target or weights as an array of numpy, or as a list; a number alone is that of a single row."""
    if values is None or isinstance(values, list):
        return values
    if isinstance(values, int | float) or getattr(values, "shape", None) == ():
        return [values.item() if hasattr(values, "item") else values]
    if not hasattr(values, "__iter__"):
        raise InvalidError(f"y and sample_weight are lists, arrays or numbers, not {type(values).__name__}.")
    if type(values).__module__.partition(".")[0] in ("pandas", "polars", "pyarrow"):
        if hasattr(values, "iloc") and values.ndim == 2:
            # Several targets, or one in a frame of one column.
            rows = [list(row.values()) for row in table_of(values).records(0, len(values))]
            return [row[0] for row in rows] if values.shape[1] == 1 else rows
        kind = getattr(getattr(values, "dtype", None), "kind", "")
        return values.to_numpy() if kind in ("b", "i", "u", "f") and hasattr(values, "iloc") else as_list(values)
    if hasattr(values, "dtype") and values.dtype.kind in "biuf":
        return values.reshape(-1) if values.ndim == 2 and values.shape[1] == 1 else values
    return as_list(values)


def _plain_target(values: Any) -> list[Any]:
    labels = as_list(values)
    if getattr(getattr(values, "dtype", None), "kind", "") == "f" and values.ndim == 1:
        is_whole = all(value.is_integer() and abs(value) < WHOLE_MAX for value in labels)
        return [int(value) for value in labels] if is_whole else labels
    return labels

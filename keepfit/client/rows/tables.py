"""Rows in the forms in which users have them, each as rows of JSON and, where it can be one, as an array or a table.

Owns which form a value is. Never imports pandas, polars or SciPy: a value of theirs shows that they are loaded. Never
copies more than a block of rows. Invariant: the columns of a table keep their names and types, so that the recipe's
columns get the same values from JSON, npy and Arrow.
"""

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from keepfit.errors import InvalidError, MalformedError

NUMBER_BYTES = 8
# Rows whose texts are measured to estimate the size of all.
SAMPLE_ROWS = 64
# Kinds of numpy's numbers: booleans, integers, floats.
NUMBER_KINDS = "biuf"
TIME_KIND = "M"

Array: TypeAlias = Any


class Table(Protocol):
    """`rows` rows; `row_bytes` is the estimated size of one as float64 numbers and text."""

    rows: int
    row_bytes: float

    def records(self, first: int, last: int) -> list[Any]:
        """Return the rows from `first` to before `last` as lists, or as objects by column name."""
        ...


class Records:
    """Rows that are lists or objects already."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = len(rows)
        self._rows = rows

    @functools.cached_property
    def row_bytes(self) -> float:
        """See :class:`Table`."""
        sample = self._rows[:SAMPLE_ROWS]
        return sum(_size_of(row) for row in sample) / max(1, len(sample))

    def records(self, first: int, last: int) -> list[Any]:
        """See :class:`Table`."""
        part = self._rows if first == 0 and last == self.rows else self._rows[first:last]
        return part if isinstance(part, list) else list(part)


class Matrix:
    """A two-dimensional array of numbers, of numpy or sparse of SciPy, shape (rows, width)."""

    def __init__(self, values: Array) -> None:
        self.rows, self.width = values.shape
        self.row_bytes = float(NUMBER_BYTES * self.width)
        self.is_sparse = hasattr(values, "tocsr")
        # Rows of other sparse forms cannot be taken.
        self._values = values.tocsr() if self.is_sparse else values
        self.dtype = self._values.dtype

    def records(self, first: int, last: int) -> list[Any]:
        """See :class:`Table`."""
        block = self.block(first, last)
        # A number column takes 0 and 1 and no boolean, a boolean column takes both.
        rows: list[Any] = (block.astype("u1") if block.dtype.kind == "b" else block).tolist()
        return rows

    def block(self, first: int, last: int) -> Array:
        """Return rows as an array of numpy."""
        part = self._values[first:last]
        return part.toarray() if self.is_sparse else part


class Columns:
    """Named columns of equal length: a dict of lists, or an array with named fields."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise InvalidError(f"The columns have different numbers of rows: {sorted(lengths)}.")
        self.rows = lengths.pop() if lengths else 0
        self.names = list(columns)
        self._columns = columns
        sample = self.records(0, min(self.rows, SAMPLE_ROWS))
        self.row_bytes = sum(map(_size_of, sample)) / max(1, len(sample))

    def records(self, first: int, last: int) -> list[Any]:
        """See :class:`Table`."""
        parts = [as_list(values[first:last]) for values in self._columns.values()]
        return [dict(zip(self.names, row, strict=True)) for row in zip(*parts, strict=True)]

    def take(self, name: str) -> tuple[Any, "Columns"]:
        """Return a column, and the others."""
        check_name(name, self.names)
        return self._columns[name], Columns({other: self._columns[other] for other in self.names if other != name})

    def for_arrow(self) -> Any:
        """Return the columns as pyarrow takes them: a mapping of names to values."""
        return self._columns


class Frame:
    """A data frame of pandas or polars, or a table of pyarrow."""

    def __init__(self, frame: Any, library: str) -> None:
        self.frame, self.library = frame, library
        self.rows = frame.num_rows if library == "pyarrow" else len(frame)
        self.names = [str(name) for name in (frame.column_names if library == "pyarrow" else frame.columns)]
        if len(set(self.names)) < len(self.names):
            raise InvalidError("Two columns of the frame have the same name.")
        sample = self.records(0, min(self.rows, SAMPLE_ROWS))
        self.row_bytes = sum(map(_size_of, sample)) / max(1, len(sample))

    def slice(self, first: int, last: int) -> Any:
        """Return rows as a frame of the same library."""
        if self.library == "pandas":
            return self.frame.iloc[first:last]
        return self.frame.slice(first, last - first)

    def records(self, first: int, last: int) -> list[Any]:
        """See :class:`Table`."""
        part = self.slice(first, last)
        if self.library == "pyarrow":
            rows: list[Any] = part.to_pylist()
            return rows
        if self.library == "polars":
            found: list[Any] = part.to_dicts()
            return found
        columns = [as_list(part.iloc[:, position]) for position in range(len(self.names))]
        return [dict(zip(self.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def take(self, name: str) -> tuple[Any, "Frame"]:
        """Return a column, and a frame of the others."""
        check_name(name, self.names)
        if self.library == "pandas":
            position = self.names.index(name)
            label = self.frame.columns[position]
            return self.frame.iloc[:, position], Frame(self.frame.drop(columns=[label]), self.library)
        if self.library == "polars":
            return self.frame.get_column(name), Frame(self.frame.drop(name), self.library)
        return self.frame.column(name), Frame(self.frame.drop_columns([name]), self.library)


Rows: TypeAlias = Records | Matrix | Columns | Frame


def table_of(X: Any) -> Rows:
    """Return rows as a table.

    `X` is a list of rows (lists or dicts), one row as a dict, a dict of columns, an array of numpy, a sparse matrix of
    SciPy, a data frame of pandas or polars, or a table of pyarrow.

    Raises
    ------
    MalformedError
        If it is none of these.
    """
    if type(X) is list and X and type(X[0]) in (list, dict):
        return Records(X)
    for library, names in FRAMES.items():
        module = sys.modules.get(library)
        if module is not None and any(isinstance(X, getattr(module, name, ())) for name in names):
            return Frame(X, library)
    if hasattr(X, "tocsr") and hasattr(X, "shape"):
        return Matrix(X)
    if hasattr(X, "dtype") and hasattr(X, "ndim"):
        return _table_of_array(X)
    if isinstance(X, Mapping):
        is_columns = bool(X) and all(_is_column(value) for value in X.values())
        return Columns({str(name): values for name, values in X.items()}) if is_columns else Records([X])
    if isinstance(X, str | bytes) or not isinstance(X, Iterable):
        raise MalformedError(f"X is {type(X).__name__}: give a list of rows, an array or a data frame.")
    rows = X if isinstance(X, list) else list(X)
    if rows and hasattr(rows[0], "tolist"):
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    if rows and not isinstance(rows[0], Mapping | Sequence):
        raise MalformedError("X is a list of values: give a list of rows, [[1, 2], [3, 4]].")
    return Records(rows)


FRAMES = {"pandas": ("DataFrame",), "polars": ("DataFrame",), "pyarrow": ("Table", "RecordBatch")}


def _table_of_array(X: Array) -> Rows:
    if X.dtype.names is not None:
        return Columns({name: X[name] for name in X.dtype.names})
    if X.ndim != 2:
        raise MalformedError(f"X is an array of {X.ndim} dimensions: it must have two, rows by columns.")
    return Matrix(X) if X.dtype.kind in NUMBER_KINDS else Records(X.tolist())


def as_list(values: Any) -> list[Any]:
    """Return the values of a column as a list, with None for missing ones.

    Times keep their zone. Floats stay floats, since a column of numbers takes both.
    """
    if hasattr(values, "to_pylist"):
        found: list[Any] = values.to_pylist()
        return found
    if hasattr(values, "to_list"):
        values = values.to_list()
    elif getattr(getattr(values, "dtype", None), "kind", "") == TIME_KIND:
        # tolist would give nanoseconds as plain numbers.
        return [None if text == "NaT" else text for text in values.astype(str).tolist()]
    elif hasattr(values, "tolist"):
        values = values.tolist()
    return values if isinstance(values, list) else list(values)


def check_name(name: str, names: Sequence[str]) -> None:
    """Raise InvalidError if there is no column of a name."""
    if name not in names:
        raise InvalidError(f"There is no column {name!r}; the columns are {', '.join(map(repr, names[:20]))}.")


def _is_column(value: Any) -> bool:
    return isinstance(value, list | tuple) or (hasattr(value, "__len__") and hasattr(value, "dtype"))


def _size_of(row: Any) -> int:
    """Return the estimated size of a row as numbers and text, in bytes."""
    values = row.values() if isinstance(row, Mapping) else row
    return sum(len(value) if isinstance(value, str) else NUMBER_BYTES for value in values)

"""Data frames as Arrow IPC streams, with pyarrow, which is optional (the extra ``frames``).

Owns the conversion of pandas, polars and dicts of columns. Never converts more than some blocks of rows at a time.
Invariant: all blocks of a stream have one schema, that of the whole frame.
"""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, cast

from keepfit.client.rows.tables import Columns, Frame, as_list
from keepfit.client.rows.targets import Data
from keepfit.client.transport.exchange import PIECE_BYTES, Report
from keepfit.errors import InvalidError

AVAILABLE = find_spec("pyarrow") is not None
TARGET, WEIGHTS = "y", "sample_weight"


def stream(data: Data, first: int, last: int, report: Report | None) -> "ArrowBody | None":
    """Return rows as an Arrow stream; None if it cannot hold them: without pyarrow, or because of their names.

    Several targets, and columns with the names of the target and the weights, are for JSON.
    """
    table = cast("Frame | Columns", data.table)
    several = isinstance(data.y, list) and bool(data.y) and isinstance(data.y[0], list | tuple | dict)
    if not AVAILABLE or several or getattr(data.y, "ndim", 1) > 1 or {TARGET, WEIGHTS} & set(table.names):
        return None
    return ArrowBody(data, first, last, report)


class ArrowBody:
    """An Arrow IPC stream, converted block by block."""

    def __init__(self, data: Data, first: int, last: int, report: Report | None) -> None:
        self.size: int | None = None
        self._data, self._first, self._last, self._report = data, first, last, report
        self._source = _source(data.table)
        self._step = max(1, int(PIECE_BYTES / max(1.0, data.table.row_bytes)))

    def __iter__(self) -> Iterator[bytes]:
        import pyarrow as pa  # noqa: PLC0415 - optional, and slow to import

        sink = Pieces()
        schema = self._source.schema
        extra: list[tuple[str, Any]] = []
        for name, values in ((TARGET, self._data.y), (WEIGHTS, self._data.weights)):
            if values is not None:
                extra.append((name, values))
                schema = schema.append(pa.field(name, _type_of(values, name)))
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), schema) as writer:
            for start in range(self._first, self._last, self._step):
                end = min(start + self._step, self._last)
                arrays = list(self._source.arrays(start, end))
                arrays += [_array(values[start:end], schema.field(name).type, name) for name, values in extra]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
                yield from sink.take()
                if self._report is not None:
                    self._report(end, self._data.rows)
        yield from sink.take()


class Pieces:
    """A file that gives away what is written to it."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> int:
        """Take a piece, which may be a view of memory that changes."""
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing: there is no file behind it."""

    def take(self) -> list[bytes]:
        """Return the pieces, joined to few."""
        pieces, self._pieces = self._pieces, []
        return [b"".join(pieces)] if pieces else []


class _PandasSource:
    def __init__(self, frame: Any) -> None:
        import pyarrow as pa  # noqa: PLC0415 - see above

        self._frame = frame
        try:
            schema = pa.Schema.from_pandas(frame, preserve_index=False)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InvalidError(f"The frame has a column that Arrow cannot hold: {error}.") from None
        # Their description by pandas is of no use to the gateway.
        self.schema = schema.remove_metadata()

    def arrays(self, first: int, last: int) -> Iterator[Any]:
        part = self._frame.iloc[first:last]
        for position, field in enumerate(self.schema):
            yield _array(part.iloc[:, position], field.type, field.name)


class _ArrowSource:
    def __init__(self, table: Any) -> None:
        self._table = table
        self.schema = table.schema.remove_metadata()

    def arrays(self, first: int, last: int) -> Iterator[Any]:
        part = self._table.slice(first, last - first)
        for column in part.columns:
            yield column.combine_chunks() if hasattr(column, "combine_chunks") else column


class _ColumnsSource:
    def __init__(self, columns: Any) -> None:
        import pyarrow as pa  # noqa: PLC0415 - see above

        self._columns = columns
        self.schema = pa.schema([(name, _type_of(values, name)) for name, values in columns.items()])

    def arrays(self, first: int, last: int) -> Iterator[Any]:
        for field in self.schema:
            yield _array(self._columns[field.name][first:last], field.type, field.name)


def _source(table: Any) -> "_PandasSource | _ArrowSource | _ColumnsSource":
    if isinstance(table, Columns):
        return _ColumnsSource(table.for_arrow())
    if table.library == "pandas":
        return _PandasSource(table.frame)
    # polars shares its memory with pyarrow; views of text become large strings.
    return _ArrowSource(table.frame.to_arrow() if table.library == "polars" else table.frame)


def _type_of(values: Any, name: str) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - see above

    dtype = getattr(values, "dtype", None)
    if dtype is not None and getattr(dtype, "kind", "") in ("b", "i", "u", "f"):
        return pa.from_numpy_dtype(dtype)
    return _array(values, None, name).type


def _array(values: Any, kind: Any, name: str) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - see above

    pandas = sys.modules.get("pandas")
    is_pandas = pandas is not None and isinstance(values, pandas.Series)
    try:
        if is_pandas or hasattr(values, "dtype"):
            found = pa.array(values, kind, from_pandas=True)
        else:
            # As pandas has them: NaN, NaT and NA are missing.
            found = pa.array(as_list(values), kind, from_pandas=True)
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidError(f"column {name!r} cannot be sent: {error}.") from None

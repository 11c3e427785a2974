"""Rows of Parquet files, as values of JSON.

Owns the conversion of their values, which is that of the bodies in Arrow: numbers and texts as they are, times as
seconds since 1970, a null and NaN as a missing value. pyarrow is optional (the extra ``frames``). Invariant: what is in
memory does not depend on the length of the file (:mod:`keepfit.rows.arrow_files`).
"""

import math
from collections.abc import Iterator
from typing import Any, BinaryIO

from keepfit.rows.arrow_files import ArrowRows, ParquetReader
from keepfit.rows.tables import Column
from keepfit.rows.times import seconds_of_times


def open_rows(file: BinaryIO) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Return the names of the columns, and the values of each row by column.

    Raises
    ------
    MalformedError, InvalidError
        If it is not Parquet, or has columns of other types, or pyarrow is not installed.
    """
    reader = ParquetReader(file)
    return reader.names, _rows(reader)


def _rows(reader: ParquetReader) -> Iterator[dict[str, Any]]:
    for part in reader.rows({name: name for name in reader.names}):
        yield from _values(part)


def _values(part: ArrowRows) -> Iterator[dict[str, Any]]:
    columns = [_to_list(column) for column in part.table().columns]
    for values in zip(*columns, strict=True):
        yield dict(zip(part.columns, values, strict=True))


def _to_list(column: Column) -> list[Any]:
    if not column.has_times:
        return [None if isinstance(value, float) and math.isnan(value) else value for value in column.to_list()]
    seconds: list[Any] = [value for block in column.blocks for value in seconds_of_times(block).tolist()]
    for row in column.missing:
        seconds[row] = None
    return seconds

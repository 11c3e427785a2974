"""npy bodies: one array, or an array with named fields, whose memory the table shares.

Owns the parser of the header. Never copies numbers and never unpickles. Invariant: the data are as long as the header
says. Format: 1.0 to 3.0 of NumPy Enhancement Proposal 1. The table is checked by :mod:`keepfit.rows.tables`.
"""

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from keepfit.errors import InvalidError, MalformedError
from keepfit.rows import times
from keepfit.rows.tables import Array, Column, Matrix, NamedColumns, Table

HEADER_BYTES_MAX = 64 * 1024
HEADER_READERS = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
    (3, 0): npy.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True)
class Head:
    """The header of an npy file; the data begin at `offset`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    by_columns: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * (self.shape[1] if len(self.shape) > 1 else 1)


def read_npy(body: bytearray) -> Table:
    """Read an npy file without copying its numbers.

    Raises
    ------
    MalformedError
        If it is not an npy file, or its data are not as long as its header says.
    InvalidError
        If its values are not numbers, or it has no rows.
    """
    head = read_head(io.BytesIO(memoryview(body)[:HEADER_BYTES_MAX]), in_row_order=False)
    count = 1
    for length in head.shape:
        count *= length
    size = count * head.dtype.itemsize
    if len(body) - head.offset != size:
        raise MalformedError(f"The npy header announces {size} bytes of data; the body has {len(body) - head.offset}.")
    if count == 0:
        raise InvalidError("X must have at least one row and one column.")
    values = np.frombuffer(body, head.dtype, count, head.offset)
    if head.dtype.names is not None:
        return table_of(values)
    return Matrix(body, head.offset, values.reshape(head.shape, order="F" if head.by_columns else "C"))


def table_of(values: Array) -> Table:
    """Return an array of shape (n, width), or of named fields, shape (n,), as a table; it may be overwritten."""
    if values.dtype.names is not None:
        return NamedColumns(len(values), [_column_of_field(name, values[name]) for name in values.dtype.names])
    data = bytearray(values.tobytes())
    return Matrix(data, 0, np.frombuffer(data, values.dtype).reshape(values.shape))


def read_head(file: BinaryIO, *, in_row_order: bool = True) -> Head:
    """Read the header of an npy file; `in_row_order` refuses an array that is stored by columns.

    Raises
    ------
    MalformedError
        If it is not the header of an npy file.
    InvalidError
        If its values are not numbers, or not rows by columns.
    """
    try:
        version = npy.read_magic(file)
        shape, by_columns, dtype = HEADER_READERS[version](file)
        if version == (3, 0) and dtype.names is not None:
            # Format 3.0 is 2.0 with UTF-8 in place of Latin-1.
            dtype.names = tuple(name.encode("latin-1").decode() for name in dtype.names)
    except KeyError:
        raise MalformedError(f"The npy format is {version[0]}.{version[1]}; send 1.0, 2.0 or 3.0.") from None
    # The header is a Python literal: a corrupt one makes the parser raise almost any exception.
    except Exception as error:  # noqa: BLE001
        raise MalformedError(f"This is not an npy file: {str(error)[:200]}.") from None
    _check_dtype(dtype)
    if min(shape, default=1) < 0:
        raise MalformedError("The npy header has a negative length.")
    if dtype.names is not None and len(shape) != 1:
        raise InvalidError("An array with named fields must have one dimension: one element per row.")
    if dtype.names is None and len(shape) != 2:
        raise InvalidError(
            f"The array has {len(shape)} dimensions; send two, rows by columns: a single row is x.reshape(1, -1)."
        )
    if in_row_order and by_columns and dtype.names is None:
        raise InvalidError("The array is stored by columns: save numpy.ascontiguousarray(x).")
    return Head(shape, dtype, file.tell(), by_columns)


def _column_of_field(name: str, values: Array) -> Column:
    """Return a named field of an array as a column."""
    if values.dtype.kind != "M":
        return Column(name, [values])
    missing = np.isnat(values)
    present = np.where(missing, np.zeros(1, values.dtype), values)
    return Column(name, [present], missing=np.flatnonzero(missing).tolist())


def _check_dtype(dtype: np.dtype[Any]) -> None:
    for field in [dtype] if dtype.names is None else [dtype[name] for name in dtype.names]:
        is_time = dtype.names is not None and times.is_time_dtype(field)
        if (field.kind not in "biuf" and not is_time) or field.shape:
            raise InvalidError(
                f"The dtype {str(field)[:80]} is not numeric: send bool, int, uint or float, such as "
                "x.astype(numpy.float64); send text as an Arrow stream or JSON, and datetime64 in days to nanoseconds "
                "in a named field of an array, or as an Arrow stream."
            )

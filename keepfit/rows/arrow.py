"""Arrow streams: the one module that knows pyarrow, which is optional (the extra ``frames``).

Owns the reading of record batches as named columns. Never copies a number column, and never lets pyarrow inflate one:
a batch that is compressed within is refused, because its real size is only known once it is in memory. Invariant:
nothing is looked at before pyarrow has validated it in full. Format: Arrow columnar format 1.x, IPC streaming.
"""

import struct
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from keepfit.errors import InvalidError, MalformedError
from keepfit.rows.tables import Array, Column, Named

if TYPE_CHECKING:
    import pyarrow as pa

AVAILABLE = find_spec("pyarrow") is not None

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
# Positions in the tables of Arrow's Message.fbs: what a message holds, and what may compress its body.
HEADER_KIND, HEADER, DICTIONARY_DATA, COMPRESSION = 1, 2, 1, 3
DICTIONARY_BATCH, RECORD_BATCH = 2, 3
# Dictionaries are validated with every batch: how many times the body's size that may come to.
DICTIONARY_WORK_MAX = 16


def read_arrow(body: bytearray) -> Named:
    """Read an Arrow IPC stream; number columns stay views of `body`.

    Raises
    ------
    MalformedError
        If it is none, or not whole.
    InvalidError
        If a column is neither numbers nor text, or there are no rows.
    """
    import pyarrow as pa  # noqa: PLC0415 - optional, and slow to import

    if not body.endswith(END_OF_STREAM):
        raise MalformedError("The Arrow stream has no end-of-stream marker: it is cut short, or no IPC stream.")
    try:
        _refuse_compressed(pa, body)
        source = pa.BufferReader(pa.py_buffer(body))
        reader = pa.ipc.open_stream(source)
        for field in reader.schema:
            _check_type(pa, field)
        batches = [batch for batch in reader if batch.num_rows]
        if source.tell() != len(body):
            raise MalformedError("Bytes follow the end of the Arrow stream.")
        names = reader.schema.names
        _check_dictionaries(pa, batches, DICTIONARY_WORK_MAX * len(body))
        for batch in batches:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, struct.error) as error:
        raise MalformedError(f"The body is no Arrow IPC stream: {str(error)[:200]}.") from None
    if len(set(names)) < len(names):
        raise InvalidError("Two columns of the table have the same name.")
    if not batches or not names:
        raise InvalidError("X must have at least one row and one column.")
    columns = [_column(pa, field, [batch.column(i) for batch in batches]) for i, field in enumerate(reader.schema)]
    return Named(sum(batch.num_rows for batch in batches), columns)


def _column(pa: Any, field: "pa.Field[Any]", arrays: list[Any]) -> Column:
    """One column of all batches."""
    kind, missing = field.type, _missing(arrays)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        # Booleans are bits in Arrow: they alone are copied.
        nothing = pa.scalar(0).cast(kind)
        whole = [array.fill_null(nothing) if array.null_count else array for array in arrays]
        blocks: list[Array] = [array.to_numpy(zero_copy_only=False) for array in whole]
        return Column(field.name, blocks, missing=missing)
    return Column(field.name, labels=lambda: list(_labels(pa, arrays)), missing=missing)


def _check_type(pa: Any, field: "pa.Field[Any]") -> None:
    """Refuse a column that is neither numbers nor text."""
    types, kind = pa.types, field.type
    coded = types.is_dictionary(kind)
    values = kind.value_type if coded else kind
    number = types.is_integer(values) or (not coded and (types.is_boolean(kind) or types.is_floating(kind)))
    if not (number or types.is_string(values) or types.is_large_string(values)):
        raise InvalidError(
            f"column {field.name[:100]!r} has the type {str(kind)[:80]}: send numbers, booleans, strings, or a "
            "dictionary of strings or integers."
        )


def _check_dictionaries(pa: Any, batches: list[Any], bytes_max: int) -> None:
    """Refuse a large dictionary for very many batches: it would be gone through for each of them."""
    size = 0
    for batch in batches:
        coded = [column for column in batch.columns if pa.types.is_dictionary(column.type)]
        size += sum(buffer.size for column in coded for buffer in column.dictionary.buffers() if buffer is not None)
    if size > bytes_max:
        raise InvalidError("The batches are too small for the size of their dictionaries: write more rows in each.")


def _labels(pa: Any, arrays: list[Any]) -> Iterator[Any]:
    """Labels row by row; each is one object however often it stands in a batch."""
    for array in arrays:
        if array.null_count:
            # What stands in their place is not looked at.
            there = iter(_labels(pa, [array.drop_null()]))
            yield from (next(there) if valid else None for valid in array.is_valid().to_pylist())
            continue
        coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        used, codes = np.unique(coded.indices.to_numpy(zero_copy_only=False), return_inverse=True)
        labels = coded.dictionary.take(pa.array(used)).to_pylist()
        yield from (labels[code] for code in codes.tolist())


def _missing(arrays: list[Any]) -> list[int]:
    """Rows without a value."""
    rows, first = [], 0
    for array in arrays:
        if array.null_count:
            rows += (first + np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))).tolist()
        first += len(array)
    return rows


def _refuse_compressed(pa: Any, body: bytearray) -> None:
    """Look at each message's metadata, which pyarrow has verified by then, for a compressed body."""
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        metadata = message.metadata.to_pybytes()
        (root,) = struct.unpack_from("<I", metadata)
        kind, header = _field(metadata, root, HEADER_KIND), _field(metadata, root, HEADER)
        batch = None
        if kind and header and metadata[kind] in (DICTIONARY_BATCH, RECORD_BATCH):
            batch = _table(metadata, header)
            if metadata[kind] == DICTIONARY_BATCH:
                data = _field(metadata, batch, DICTIONARY_DATA)
                batch = _table(metadata, data) if data else None
        if batch is not None and _field(metadata, batch, COMPRESSION):
            raise InvalidError("The batches are compressed within: send them plain, with Content-Encoding: gzip.")


def _field(metadata: bytes, table: int, position: int) -> int | None:
    """Where a FlatBuffers table has its field, None where it has not (FlatBuffers internals, "Tables")."""
    (back,) = struct.unpack_from("<i", metadata, table)
    (size,) = struct.unpack_from("<H", metadata, table - back)
    if 4 + 2 * position >= size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, table - back + 4 + 2 * position)
    return table + offset if offset else None


def _table(metadata: bytes, field: int) -> int:
    """Where the table begins that a field refers to."""
    (offset,) = struct.unpack_from("<I", metadata, field)
    return field + int(offset)

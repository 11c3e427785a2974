"""Arrow streams and record batches as named columns, with pyarrow, which is optional (the extra ``frames``).

Owns the parser of record batches into named columns. Never copies a number column, and never lets pyarrow decompress
one: a batch with a compressed body is rejected, because its real size is known only once it is in memory. Invariant:
pyarrow validates every batch in full before any value is read. Format: Arrow columnar format 1.x, IPC streaming.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from keepfit.errors import InvalidError, MalformedError
from keepfit.rows.tables import Array, Column, NamedColumns

if TYPE_CHECKING:
    import pyarrow as pa

AVAILABLE = find_spec("pyarrow") is not None

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
# Field positions in the tables of Arrow's Message.fbs: type and header of a message, data of a dictionary batch,
# compression of a record batch.
HEADER_TYPE, HEADER, DICTIONARY_DATA, COMPRESSION = 1, 2, 1, 3
DICTIONARY_BATCH, RECORD_BATCH = 2, 3
# Dictionaries are validated once per batch, and views may share their bytes: the limit for the sum of the sizes, in
# multiples of the body's size.
REPEATED_BYTES_PER_BODY_MAX = 16
# Size of a view of Arrow's variable-size binary view layout; its first four bytes are the text's length.
VIEW_BYTES = 16


def read_arrow(body: bytearray) -> NamedColumns:
    """Read an Arrow IPC stream; number columns are views of `body`.

    Raises
    ------
    MalformedError
        If it is not an Arrow IPC stream, or truncated.
    InvalidError
        If a column has a type without meaning here, a batch is compressed, or there are no rows.
    """
    import pyarrow as pa  # noqa: PLC0415 - optional, and slow to import

    if not body.endswith(END_OF_STREAM):
        raise MalformedError("The Arrow stream has no end-of-stream marker: it is truncated, or not an IPC stream.")
    try:
        _reject_compressed(pa, body)
        source = pa.BufferReader(pa.py_buffer(body))
        reader = pa.ipc.open_stream(source)
        for field in reader.schema:
            _check_type(pa, field)
        batches = [batch for batch in reader if batch.num_rows]
        if source.tell() != len(body):
            raise MalformedError("Bytes follow the end of the Arrow stream.")
        _check_dictionaries(pa, batches, REPEATED_BYTES_PER_BODY_MAX * len(body))
        _check_views(pa, batches, REPEATED_BYTES_PER_BODY_MAX * len(body))
        for batch in batches:
            batch.validate(full=True)
        schema, index_names = reader.schema, _pandas_index(reader.schema)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, struct.error) as error:
        raise MalformedError(f"The body is not an Arrow IPC stream: {str(error)[:200]}.") from None
    if not batches or not schema.names:
        raise InvalidError("X must have at least one row and one column.")
    columns = named_columns(schema.names, batches)
    columns = [replace(column, is_index=column.name in index_names) for column in columns]
    return NamedColumns(sum(batch.num_rows for batch in batches), columns)


def is_text(kind: Any) -> bool:
    """Return whether a type is text, with or without a dictionary."""
    import pyarrow as pa  # noqa: PLC0415 - see above

    return _is_text(pa.types, kind.value_type if pa.types.is_dictionary(kind) else kind)


def check_schema(schema: Any) -> None:
    """Reject a column that has no meaning as numbers, timestamps or text; raises InvalidError."""
    import pyarrow as pa  # noqa: PLC0415 - see above

    for field in schema:
        _check_type(pa, field)


def named_columns(names: Sequence[str], batches: Sequence[Any]) -> list[Column]:
    """Return the columns of record batches under `names`; number columns are views of the batches."""
    import pyarrow as pa  # noqa: PLC0415 - see above

    fields = [pa.field(name, kind) for name, kind in zip(names, batches[0].schema.types, strict=True)]
    return [_column(pa, field, [batch.column(i) for batch in batches]) for i, field in enumerate(fields)]


def use_system_memory() -> None:
    """Have pyarrow take memory from the C library, which returns it: for processes whose memory is limited."""
    import pyarrow as pa  # noqa: PLC0415 - see above

    pa.set_memory_pool(pa.system_memory_pool())


def _pandas_index(schema: Any) -> frozenset[str]:
    """Return the names of the columns that were the index of a pandas data frame, by the schema's metadata."""
    try:
        described = msgspec.json.decode((schema.metadata or {})[b"pandas"])
        return frozenset(name for name in described["index_columns"] if isinstance(name, str))
    except (KeyError, TypeError, msgspec.DecodeError, UnicodeError, RecursionError):
        return frozenset()


def _column(pa: Any, field: "pa.Field[Any]", arrays: list[Any]) -> Column:
    """Return one column, concatenated over all batches."""
    types, kind = pa.types, field.type
    if types.is_dictionary(kind) and not _is_text(types, kind.value_type):
        kind, arrays = kind.value_type, [array.dictionary_decode() for array in arrays]
    missing = _missing(arrays)
    if types.is_null(kind):
        return Column(field.name, labels=lambda: [None] * len(missing), missing=missing)
    if types.is_decimal(kind) and kind.scale <= 0:
        return Column(field.name, labels=lambda: list(_decimals(arrays, int)), missing=missing)
    if types.is_decimal(kind):
        blocks: list[Array] = [np.fromiter(_decimals([array], float), np.float64, len(array)) for array in arrays]
        return Column(field.name, blocks, missing=missing)
    if types.is_timestamp(kind) or types.is_date(kind):
        blocks = [_filled(pa, array.view(f"int{kind.bit_width}")).astype(_time_dtype(types, kind)) for array in arrays]
        return Column(field.name, blocks, missing=missing)
    if _is_number(types, kind):
        return Column(field.name, [_filled(pa, array) for array in arrays], missing=missing)
    texts = [_without_views(pa, array) for array in arrays]
    return Column(field.name, labels=lambda: list(_labels(pa, texts)), missing=missing)


def _without_views(pa: Any, array: Any) -> Any:
    """Return text without views, which pyarrow can neither filter nor encode."""
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if pa.types.is_dictionary(array.type) and pa.types.is_string_view(array.type.value_type):
        return pa.DictionaryArray.from_arrays(array.indices, array.dictionary.cast(pa.large_string()))
    return array


def _filled(pa: Any, array: Any) -> Array:
    """Return numbers or booleans as numpy's, with 0 for a null."""
    filled = array.fill_null(pa.scalar(0).cast(array.type)) if array.null_count else array
    # Arrow stores booleans as bits, so only those are copied.
    values: Array = filled.to_numpy(zero_copy_only=False)
    return values


def _decimals(arrays: list[Any], number: type[int] | type[float]) -> Iterator[int | float]:
    """Yield decimals as the nearest numbers of a type, with 0 for a null."""
    for array in arrays:
        yield from (number(value or 0) for value in array.to_pylist())


def _time_dtype(types: Any, kind: Any) -> str:
    """Return numpy's dtype of a timestamp or date. A time zone does not change the value: it is UTC."""
    if types.is_timestamp(kind):
        return f"M8[{kind.unit}]"
    return "M8[D]" if types.is_date32(kind) else "M8[ms]"


def _is_number(types: Any, kind: Any) -> bool:
    return bool(types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind))


def _is_text(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _check_type(pa: Any, field: "pa.Field[Any]") -> None:
    """Reject a column that has no meaning as numbers, timestamps or text."""
    types, kind = pa.types, field.type
    values = kind.value_type if types.is_dictionary(kind) else kind
    is_time = types.is_timestamp(values) or types.is_date(values)
    is_number = _is_number(types, values) or types.is_decimal(values)
    if not (is_number or is_time or _is_text(types, values) or types.is_null(values)):
        raise InvalidError(
            f"column {field.name[:100]!r} has the type {str(kind)[:80]}: send numbers, decimals, booleans, timestamps, "
            "dates, strings, or a dictionary of those."
        )


def _check_dictionaries(pa: Any, batches: list[Any], bytes_max: int) -> None:
    """Reject a large dictionary for very many batches: pyarrow would traverse it for each of them."""
    size = 0
    for batch in batches:
        dictionaries = [column for column in batch.columns if pa.types.is_dictionary(column.type)]
        size += sum(
            buffer.size for column in dictionaries for buffer in column.dictionary.buffers() if buffer is not None
        )
    if size > bytes_max:
        raise InvalidError("The batches are too small for the size of their dictionaries: write more rows per batch.")


def _check_views(pa: Any, batches: list[Any], bytes_max: int) -> None:
    """Reject views whose texts overlap, so that they are much longer together than the body."""
    size = 0
    for array in [column for batch in batches for column in batch.columns]:
        texts = array.dictionary if pa.types.is_dictionary(array.type) else array
        if pa.types.is_string_view(texts.type) and len(texts):
            views = np.frombuffer(texts.buffers()[1], "<i4").reshape(-1, VIEW_BYTES // 4)
            lengths = views[texts.offset : texts.offset + len(texts), 0]
            size += int(np.maximum(lengths, 0).sum(dtype=np.int64))
    if size > bytes_max:
        raise InvalidError("The texts of a string_view column overlap too much: cast the column to string.")


def _labels(pa: Any, arrays: list[Any]) -> Iterator[Any]:
    """Yield the labels row by row; equal labels of a batch are one object."""
    for array in arrays:
        if array.null_count:
            # The values behind nulls are undefined and never read.
            present = iter(_labels(pa, [array.drop_null()]))
            yield from (next(present) if valid else None for valid in array.is_valid().to_pylist())
            continue
        encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        used, codes = np.unique(encoded.indices.to_numpy(zero_copy_only=False), return_inverse=True)
        labels = encoded.dictionary.take(pa.array(used)).to_pylist()
        yield from (labels[code] for code in codes.tolist())


def _missing(arrays: list[Any]) -> list[int]:
    """Return the numbers of the rows without a value."""
    rows, first = [], 0
    for array in arrays:
        if array.null_count:
            rows += (first + np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))).tolist()
        first += len(array)
    return rows


def _reject_compressed(pa: Any, body: bytearray) -> None:
    """Reject a stream in which the metadata of any message, which pyarrow has verified, declare a compressed body."""
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        metadata = message.metadata.to_pybytes()
        (root,) = struct.unpack_from("<I", metadata)
        header_type, header = _field(metadata, root, HEADER_TYPE), _field(metadata, root, HEADER)
        batch = None
        if header_type and header and metadata[header_type] in (DICTIONARY_BATCH, RECORD_BATCH):
            batch = _table(metadata, header)
            if metadata[header_type] == DICTIONARY_BATCH:
                data = _field(metadata, batch, DICTIONARY_DATA)
                batch = _table(metadata, data) if data else None
        if batch is not None and _field(metadata, batch, COMPRESSION):
            raise InvalidError("The record batches are compressed: send them uncompressed with Content-Encoding: gzip.")


def _field(metadata: bytes, table: int, position: int) -> int | None:
    """Return the offset of a field of a FlatBuffers table; None if it is absent (FlatBuffers internals, "Tables")."""
    (vtable_distance,) = struct.unpack_from("<i", metadata, table)
    vtable = table - vtable_distance
    (vtable_size,) = struct.unpack_from("<H", metadata, vtable)
    if 4 + 2 * position >= vtable_size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, vtable + 4 + 2 * position)
    return table + offset if offset else None


def _table(metadata: bytes, field: int) -> int:
    """Return the offset of the table that a field refers to."""
    (offset,) = struct.unpack_from("<I", metadata, field)
    return field + int(offset)

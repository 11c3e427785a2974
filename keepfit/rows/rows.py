"""Rows on their way from a request to an estimator.

Owns :class:`Rows`, the compact form in which rows wait in Redis, and its msgpack encoding. Never checks a value and
never knows what was learned. Invariant: decoding gives back every bit that was encoded, and text in Unicode's normal
form C, which rows that keepfit 0.1 stored may lack. Rows come from
:mod:`keepfit.rows.shaping` or :mod:`keepfit.rows.tables` and go to workers as msgpack.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Self

import msgspec
import numpy as np

from keepfit.errors import TooLargeError
from keepfit.recipe.recipe import LABEL_LENGTH_MAX, Label
from keepfit.rows.values import LITTLE_ENDIAN, Floats, NonNumeric, normalized

# Size of the rows of one request. A value of Redis may have 512 MiB (`proto-max-bulk-len`).
BYTES_MAX = 500 * 2**20
PIECE_BYTES_MAX, PIECE_LABELS, LABEL_BYTES = 1 << 20, 100, 4 * LABEL_LENGTH_MAX + 8
# From this size on, decoded numbers are a view of the encoding: a copy would be the largest part of a worker's memory.
SHARED_BYTES_MIN = 1 << 18
FLOAT_BYTES = 8
# Bytes of an unsigned integer of msgpack, by its first byte; below 0x80 the byte is the integer.
INTEGER_BYTES = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
# Bytes before a binary of msgpack, by the first of them.
BINARY_HEAD_BYTES = {0xC4: 2, 0xC5: 3, 0xC6: 5}


class Rows(msgspec.Struct, array_like=True, frozen=True, dict=True):
    """`n` rows: number columns as little-endian float64 (row by row), category and text columns as lists.

    `categories` holds one list per category or text column. A missing number is NaN, a missing label or text is None.
    Rows for an estimator that takes dicts may have one list more: the text of each free row
    (:mod:`keepfit.rows.free_rows`), or the columns that each row lacks (:mod:`keepfit.rows.shaping`).
    `y` is float64 bytes for regressors, labels for classifiers, and None where there is no target. Several outputs lie
    flat, row by row, or are the text of each row's targets for an estimator that takes dicts. `numbers` of a large
    request may be any bytes-like object: megabytes that must not be copied.
    """

    n: int
    numbers: bytes
    categories: list[list[NonNumeric]]
    y: bytes | list[Label] | None = None
    sample_weight: bytes | None = None

    @property
    def width(self) -> int:
        """Number of columns as they were sent; timestamps and texts count 1 each."""
        return len(self.numbers) // (8 * self.n) + len(self.categories)

    @property
    def served(self) -> Any:
        """Predictions that were served for the rows; only :class:`keepfit.rows.served.ServedRows` have some."""
        return None

    @property
    def form(self) -> tuple[int, int]:
        """Number of number columns and of lists; only rows of one form can be concatenated."""
        return len(self.numbers) // (8 * self.n), len(self.categories)

    def part(self, begin: int, end: int) -> "Rows":
        """Return the rows from `begin` to `end` (exclusive) without target and weights; all of them unchanged.

        >>> Rows(3, bytes(range(24)), [["a", "b", "c"]]).part(1, 2)
        Rows(n=1, numbers=b'\\x08\\t\\n\\x0b\\x0c\\r\\x0e\\x0f', categories=[['b']], y=None, sample_weight=None)
        """
        if end - begin == self.n:
            return self
        size = len(self.numbers) // self.n
        return Rows(end - begin, self.numbers[begin * size : end * size], [each[begin:end] for each in self.categories])

    def number_matrix(self) -> Floats:
        """Return the number columns, shape (n, k), as a writable copy."""
        return self.number_view().astype(np.float64)

    def number_view(self) -> Floats:
        """Return the number columns, shape (n, k), for reading: their memory is that of the rows."""
        return np.frombuffer(self.numbers, LITTLE_ENDIAN).reshape(self.n, -1)

    def number_list(self) -> list[float]:
        """Return all numbers, row by row."""
        numbers: list[float] = np.frombuffer(self.numbers, LITTLE_ENDIAN).tolist()
        return numbers

    def target(self) -> Any:
        """Return `y` as an array of shape (n,), or (n * outputs,) for several outputs; None without a target."""
        if isinstance(self.y, bytes):
            return np.frombuffer(self.y, LITTLE_ENDIAN).astype(np.float64)
        return None if self.y is None else np.asarray(self.y)

    def weights(self) -> Floats | None:
        """Return `sample_weight` as an array of shape (n,), or None."""
        if self.sample_weight is None:
            return None
        return np.frombuffer(self.sample_weight, LITTLE_ENDIAN).astype(np.float64)

    def encode(self) -> bytes:
        """Return the rows as msgpack."""
        return _encode(self)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield what :meth:`encode` returns in pieces of at most about 1 MiB; the whole is never in memory."""
        yield b"\x95" + _encode(self.n)
        yield from _binary(self.numbers)
        yield _array_head(len(self.categories))
        for column in self.categories:
            yield from _array(column)
        for field in (self.y, self.sample_weight):
            if field is None:
                yield _encode(None)
            else:
                yield from _binary(field) if isinstance(field, bytes) else _array(field)

    @cached_property
    def size_bytes(self) -> int:
        """Length of what :meth:`encode` returns. Encodes category and text columns once to count their bytes."""
        return sum(map(len, self.pieces()))

    def check_size(self, bytes_max: int | None = None) -> None:
        """Check that one request may have the rows: that Redis can hold them, and workers compute with them.

        Raises
        ------
        TooLargeError
            If they have more than `bytes_max` or :data:`BYTES_MAX` bytes; with the number of rows of this size that one
            request may have.
        """
        check_bytes(self.n, self.size_bytes, bytes_max)

    def fits(self, bytes_max: int) -> bool:
        """Return whether the encoding has at most `bytes_max` bytes; small rows are decided by an upper bound alone."""
        labels = self.n * len(self.categories) + (len(self.y) if isinstance(self.y, list) else 0)
        bound = 64 + len(self.numbers) + 16 * self.n + labels * LABEL_BYTES
        bound += len(self.y) if isinstance(self.y, bytes) else 0
        if bound <= bytes_max:
            values = chain.from_iterable([*self.categories, self.y if isinstance(self.y, list) else ()])
            bound += sum([4 * len(value) for value in values if type(value) is str and len(value) > LABEL_LENGTH_MAX])
        return bound <= bytes_max or self.size_bytes <= bytes_max

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode what :meth:`encode` returned.

        Many numbers share the memory of `data`, which must not change then, if they are aligned there
        (:func:`numbers_offset`).

        Raises
        ------
        msgspec.DecodeError
            If `data` is not such an encoding.
        """
        rows: Self
        if cls is not Rows:
            rows = msgspec.msgpack.decode(data, type=cls)
        else:
            rows = _decode(data) if len(data) < SHARED_BYTES_MIN else _decode_shared(data)
        for values in rows.categories if type(rows.y) is bytes else (*rows.categories, rows.y or ()):
            if (normal := normalized(values)) is not values:
                values[:] = normal  # type: ignore[index]
        return rows


def check_bytes(n: int, size_bytes: int, bytes_max: int | None = None) -> None:
    """Check that `n` rows of `size_bytes` bytes in all fit into one request.

    Raises
    ------
    TooLargeError
        If they do not; with the number of rows of this size that do.
    """
    most = min(bytes_max or BYTES_MAX, BYTES_MAX)
    if size_bytes > most:
        rows_max = n * most // size_bytes
        advice = f"send at most {rows_max} of these rows at a time" if rows_max else "not even one of them fits"
        raise TooLargeError(
            f"The {n} rows take {size_bytes} bytes as float64 numbers and text; a request may take {most}: {advice}."
        )


class _SharedRows(msgspec.Struct, array_like=True, frozen=True):
    """Rows whose numbers are a view of the encoding."""

    n: int
    numbers: memoryview
    categories: list[list[NonNumeric]]
    y: bytes | list[Label] | None = None
    sample_weight: bytes | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode: Any = msgspec.msgpack.Decoder(Rows).decode
_decode_parts = msgspec.msgpack.Decoder(_SharedRows).decode


def _decode_shared(data: bytes) -> Any:
    """Decode rows without a copy of their numbers, unless these are few or not aligned: those are slower to read."""
    parts = _decode_parts(data)
    numbers: Any = parts.numbers
    if len(numbers) < SHARED_BYTES_MIN or np.frombuffer(numbers, np.uint8).ctypes.data % FLOAT_BYTES:
        numbers = bytes(numbers)
    return Rows(parts.n, numbers, parts.categories, parts.y, parts.sample_weight)


def numbers_offset(data: bytes) -> int:
    """Return where the numbers begin in encoded rows of any kind; `data` has the first 16 bytes or more of them.

    >>> rows = Rows(1000, b"numbers." * 1000, [])
    >>> encoded = rows.encode()
    >>> encoded[numbers_offset(encoded) :][:8]
    b'numbers.'
    """
    offset = 1 + INTEGER_BYTES.get(data[1], 1)
    return offset + BINARY_HEAD_BYTES.get(data[offset], 0)


def _binary(data: bytes) -> Iterator[bytes | memoryview]:
    """Yield bytes as msgpack, in pieces."""
    size = len(data)
    if size < 1 << 8:
        yield struct.pack(">BB", 0xC4, size)
    elif size < 1 << 16:
        yield struct.pack(">BH", 0xC5, size)
    else:
        yield struct.pack(">BI", 0xC6, size)
    view = memoryview(data)
    for start in range(0, size, PIECE_BYTES_MAX):
        yield view[start : start + PIECE_BYTES_MAX]


def _array(items: Sequence[Any]) -> Iterator[bytes]:
    """Yield a list as msgpack, in pieces."""
    piece = bytearray(_array_head(len(items)))
    for start in range(0, len(items), PIECE_LABELS):
        some = items[start : start + PIECE_LABELS]
        encoded = _encode(some)[len(_array_head(len(some))) :]
        if len(piece) + len(encoded) > PIECE_BYTES_MAX:
            yield bytes(piece)
            piece.clear()
        piece += encoded
    yield bytes(piece)


def _array_head(length: int) -> bytes:
    if length < 1 << 4:
        return struct.pack("B", 0x90 | length)
    return struct.pack(">BH", 0xDC, length) if length < 1 << 16 else struct.pack(">BI", 0xDD, length)


def concatenate(requests: Sequence[Rows]) -> Rows:
    """Concatenate the rows of several requests of one model (for recipes with ``"updates": "merged"``).

    All have one form, and either all of them have a sample_weight or none has; the caller groups them accordingly.
    """
    if len(requests) == 1:
        return requests[0]
    first = requests[0]
    y: bytes | list[Label] | None
    if first.y is None:
        y = None
    elif isinstance(first.y, bytes):
        y = b"".join([rows.y for rows in requests if isinstance(rows.y, bytes)])
    else:
        y = list(chain.from_iterable([rows.y for rows in requests if isinstance(rows.y, list)]))
    weights = None if first.sample_weight is None else b"".join([rows.sample_weight or b"" for rows in requests])
    return Rows(
        sum([rows.n for rows in requests]),
        b"".join([rows.numbers for rows in requests]),
        [list(chain.from_iterable([rows.categories[i] for rows in requests])) for i in range(len(first.categories))],
        y,
        weights,
    )

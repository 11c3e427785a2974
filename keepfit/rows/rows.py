"""Rows on their way from a request to an estimator.

Owns :class:`Rows`, the compact form in which rows wait in Redis, and its msgpack encoding. Never checks a value and
never knows what was learned. Invariant: decoding gives back every bit that was encoded. Rows come from
:mod:`keepfit.rows.shaping` or :mod:`keepfit.rows.tables` and go to workers as msgpack.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Self

import msgspec
import numpy as np

from keepfit.recipe.recipe import LABEL_LENGTH_MAX, Label
from keepfit.rows.values import LITTLE_ENDIAN, Floats, Word

PIECE_BYTES_MAX, PIECE_LABELS, LABEL_BYTES = 1 << 20, 100, 4 * LABEL_LENGTH_MAX + 8


class Rows(msgspec.Struct, array_like=True, frozen=True):
    """`n` rows: number columns as little-endian float64 (row by row), category and text columns as lists.

    A missing number is NaN, a missing label or text None. `y` is float64 bytes for regressors, labels for classifiers,
    None where there is no target. `numbers` of a large request may be any bytes-like object: it is megabytes that are
    not to be copied.
    """

    n: int
    numbers: bytes
    categories: list[list[Word]]
    y: bytes | list[Label] | None = None
    sample_weight: bytes | None = None

    @property
    def width(self) -> int:
        """Columns of the rows as they came in."""
        return len(self.numbers) // (8 * self.n) + len(self.categories)

    def number_matrix(self) -> Floats:
        """Number columns, shape (n, k), a copy that may be written to."""
        return np.frombuffer(self.numbers, LITTLE_ENDIAN).astype(np.float64).reshape(self.n, -1)

    def number_list(self) -> list[float]:
        """All numbers, row by row."""
        numbers: list[float] = np.frombuffer(self.numbers, LITTLE_ENDIAN).tolist()
        return numbers

    def target(self) -> Any:
        """`y` as an array of shape (n,), or None."""
        if isinstance(self.y, bytes):
            return np.frombuffer(self.y, LITTLE_ENDIAN).astype(np.float64)
        return None if self.y is None else np.asarray(self.y)

    def weights(self) -> Floats | None:
        """`sample_weight` as an array of shape (n,), or None."""
        if self.sample_weight is None:
            return None
        return np.frombuffer(self.sample_weight, LITTLE_ENDIAN).astype(np.float64)

    def encode(self) -> bytes:
        """Msgpack of the rows."""
        return _encode(self)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Give what :meth:`encode` returns in parts of about 1 MiB at most, without ever holding it whole."""
        yield b"\x95" + _encode(self.n)
        yield from _binary(self.numbers)
        yield _array_head(len(self.categories))
        for column in self.categories:
            yield from _array(column)
        for part in (self.y, self.sample_weight):
            if part is None:
                yield _encode(None)
            else:
                yield from _binary(part) if isinstance(part, bytes) else _array(part)

    @property
    def size_bytes(self) -> int:
        """Length of what :meth:`encode` returns; category columns are encoded once to know it."""
        return sum(map(len, self.pieces()))

    def fits(self, bytes_max: int) -> bool:
        """Tell whether the encoding is at most `bytes_max` long; known at once of small rows."""
        labels = self.n * len(self.categories) + (len(self.y) if isinstance(self.y, list) else 0)
        most = 64 + len(self.numbers) + 16 * self.n + labels * LABEL_BYTES
        most += len(self.y) if isinstance(self.y, bytes) else 0
        if most <= bytes_max:
            words = chain.from_iterable(self.categories)
            most += sum([4 * len(word) for word in words if type(word) is str and len(word) > LABEL_LENGTH_MAX])
        return most <= bytes_max or self.size_bytes <= bytes_max

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read back what :meth:`encode` wrote."""
        return msgspec.msgpack.decode(data, type=cls) if cls is not Rows else _decode(data)


_encode = msgspec.msgpack.Encoder().encode
_decode: Any = msgspec.msgpack.Decoder(Rows).decode


def _binary(data: bytes) -> Iterator[bytes | memoryview]:
    """Msgpack of bytes, in parts."""
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
    """Msgpack of a list, in parts."""
    piece = bytearray(_array_head(len(items)))
    for start in range(0, len(items), PIECE_LABELS):
        part = items[start : start + PIECE_LABELS]
        text = _encode(part)[len(_array_head(len(part))) :]
        if len(piece) + len(text) > PIECE_BYTES_MAX:
            yield bytes(piece)
            piece.clear()
        piece += text
    yield bytes(piece)


def _array_head(length: int) -> bytes:
    if length < 1 << 4:
        return struct.pack("B", 0x90 | length)
    return struct.pack(">BH", 0xDC, length) if length < 1 << 16 else struct.pack(">BI", 0xDD, length)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Join rows of one model into one call's worth (for recipes with ``"updates": "merged"``).

    All parts must agree on having a sample_weight; the caller groups them so.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    y: bytes | list[Label] | None
    if first.y is None:
        y = None
    elif isinstance(first.y, bytes):
        y = b"".join([part.y for part in parts if isinstance(part.y, bytes)])
    else:
        y = list(chain.from_iterable([part.y for part in parts if isinstance(part.y, list)]))
    weights = None if first.sample_weight is None else b"".join([part.sample_weight or b"" for part in parts])
    return Rows(
        sum([part.n for part in parts]),
        b"".join([part.numbers for part in parts]),
        [list(chain.from_iterable([p.categories[i] for p in parts])) for i in range(len(first.categories))],
        y,
        weights,
    )

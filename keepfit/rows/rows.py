"""Rows on their way from a request to an estimator.

Owns the check of `X`, `y` and `sample_weight` against a recipe, and the compact form in which they wait in Redis. Never
knows what was learned. Invariant: what :func:`shape` returns can be learned or predicted, as far as that can be known
without the model. Rows come from the gateway as JSON (or see :mod:`keepfit.rows.tables`) and go to workers as msgpack.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from keepfit.errors import Fault, InvalidError
from keepfit.model import outputs
from keepfit.recipe.recipe import LABEL_LENGTH_MAX, Label, Recipe, label_fault
from keepfit.rows.shaping import shape_columns
from keepfit.rows.values import FAULTS_MAX, LITTLE_ENDIAN, Word, shape_numbers, summary
from keepfit.rows.values import packed as _packed
from keepfit.rows.values import shown as _shown

Floats = NDArray[np.float64]

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


def shape(recipe: Recipe, X: Any, y: Any = None, sample_weight: Any = None, *, learning: bool) -> Rows:
    """Check a request's rows against `recipe` and return them in compact form.

    Parameters
    ----------
    X : list of rows, each a list of values in column order or an object by column name
    y : list of n numbers (regressors) or labels (classifiers); None for estimators that take no target
    sample_weight : list of n numbers of 0 or more, not all 0, or None
    learning : whether the rows bring their target (partial_fit, score) or not (predict)

    Raises
    ------
    InvalidError
        With row and column of what is wrong.
    """
    numbers, categories = shape_columns(recipe, X)
    target = shape_target(recipe, y, len(X)) if learning else None
    return Rows(len(X), numbers, categories, target, shape_weights(recipe, sample_weight, len(X)))


def shape_target(recipe: Recipe, y: Any, n: int) -> bytes | list[Label] | None:
    """`y` of `n` rows as bytes or labels, checked; None for estimators that take none."""
    if not recipe.entry.takes_y:
        if y is not None:
            raise InvalidError(f"{recipe.name} takes no y: leave it out.")
        return None
    if not isinstance(y, list):
        raise InvalidError(f"y must be a list of {n} values, one per row of X.")
    if len(y) != n:
        raise InvalidError(f"X has {n} rows and y has {len(y)} values; they must be as many.")
    entry, classes = recipe.entry, recipe.classes
    if entry.many:
        named: Any = classes or ()
        return outputs.flattened(y, len(named) or None, lambda column, i: _shape_output(recipe, column, i))
    if entry.target == "numbers":
        return _packed(y) or shape_numbers(y, "y", "target").astype(LITTLE_ENDIAN).tobytes()
    return shape_classes(classes, y)


def _shape_output(recipe: Recipe, column: Sequence[Any], output: int) -> bytes | list[Label]:
    if recipe.entry.target == "numbers":
        return shape_numbers(column, f"y[{output}]", "target").astype(LITTLE_ENDIAN).tobytes()
    named: Any = recipe.classes
    return shape_classes(named and named[output], column, f"y[{output}]")


def shape_classes(classes: Sequence[Any] | None, y: Sequence[Any], name: str = "y") -> list[Label]:
    """Labels of a classifier's target, checked: strings, integers or booleans, all as the recipe's classes if named."""
    kinds = set(map(type, y))
    wanted = {type(classes[0])} if classes else {str, int, bool}
    if kinds <= wanted and not any(map(label_fault, y)):
        return list(y)
    faults = [Fault(wrong, i, name) for i, value in enumerate(y) if (wrong := _class_fault(value, wanted))]
    raise InvalidError(summary(faults, "target"), faults[:FAULTS_MAX])


def _class_fault(value: Any, wanted: set[type]) -> str | None:
    if type(value) not in (str, int, bool):
        return f"{_shown(value)} is not a label: send a string, an integer or a boolean"
    if type(value) not in wanted:
        return f"{_shown(value)} is not one of the recipe's classes, nor of their kind"
    return label_fault(value)


def shape_weights(recipe: Recipe, sample_weight: Any, n: int) -> bytes | None:
    """`sample_weight` of `n` rows as bytes, checked; None where there is none."""
    if sample_weight is None:
        return None
    if not recipe.entry.takes_sample_weight:
        raise InvalidError(f"{recipe.name} takes no sample_weight.")
    if not isinstance(sample_weight, list) or len(sample_weight) != n:
        raise InvalidError(f"sample_weight must be a list of {n} numbers, one per row of X.")
    packed = _packed(sample_weight)
    if packed is not None and min(sample_weight) >= 0 < max(sample_weight):
        return packed
    values = shape_numbers(sample_weight, "sample_weight", "weights")
    return check_weights(values, sample_weight)


def check_weights(values: Floats, given: Sequence[Any]) -> bytes:
    """Weights as bytes, if all are 0 or more and not all 0; `given` is what they were made of, for the message."""
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        faults = [Fault(f"{_shown(given[row])} is negative", row, "sample_weight")]
        raise InvalidError(summary(faults, "weights"), faults)
    if not values.any():
        raise InvalidError("sample_weight is 0 for every row: at least one must be more.")
    return values.astype(LITTLE_ENDIAN, copy=False).tobytes()

"""Rows on their way from a request to an estimator.

Owns the check of `X`, `y` and `sample_weight` against a recipe, and the compact form in which they wait in Redis. Never
knows what was learned. Invariant: what :func:`shape` returns can be learned or predicted, as far as that can be known
without the model. Rows come from the gateway as JSON (or see :mod:`keepfit.tables`) and go to workers as msgpack.
"""

import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from keepfit.errors import Fault, InvalidError
from keepfit.recipe import LABEL_LENGTH_MAX, Label, Recipe

Floats = NDArray[np.float64]

# Larger numbers turn into infinity as soon as an estimator squares them or stores them in 32 bits.
NUMBER_MAX = 1e38
INTEGER_END = 2**53
FAULTS_MAX = 20
LITTLE_ENDIAN = "<f8"
# So few values are looked at one by one in less time than numpy takes to begin.
SMALL_MAX = 64
PACKERS = [struct.Struct(f"<{count}d").pack for count in range(SMALL_MAX + 1)]
PIECE_BYTES_MAX, PIECE_LABELS, LABEL_BYTES = 1 << 20, 10_000, 4 * LABEL_LENGTH_MAX + 8


class Rows(msgspec.Struct, array_like=True, frozen=True):
    """`n` rows: number columns as little-endian float64 (row by row), category columns as lists of labels.

    `y` is float64 bytes for regressors, labels for classifiers, None where there is no target. `numbers` of a large
    request may be any bytes-like object: it is megabytes that are not to be copied.
    """

    n: int
    numbers: bytes
    categories: list[list[str | int]]
    y: bytes | list[Label] | None = None
    sample_weight: bytes | None = None

    @property
    def width(self) -> int:
        """Columns of the rows as they came in."""
        return len(self.numbers) // (8 * self.n) + len(self.categories)

    def number_matrix(self) -> Floats:
        """Number columns, shape (n, k), a copy that may be written to."""
        return np.frombuffer(self.numbers, LITTLE_ENDIAN).astype(np.float64).reshape(self.n, -1)

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
        labels = self.n * (len(self.categories) + isinstance(self.y, list))
        return 64 + len(self.numbers) + 16 * self.n + labels * LABEL_BYTES <= bytes_max or self.size_bytes <= bytes_max

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
    yield _array_head(len(items))
    for start in range(0, len(items), PIECE_LABELS):
        part = items[start : start + PIECE_LABELS]
        yield _encode(part)[len(_array_head(len(part))) :]


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


def shape_columns(recipe: Recipe, X: Any) -> tuple[bytes, list[list[str | int]]]:
    """Number columns (row by row) and category columns of `X`, checked."""
    return _shape_small(recipe, X) or _shape_many(recipe, X)


def _shape_many(recipe: Recipe, X: Any) -> tuple[bytes, list[list[str | int]]]:
    if not isinstance(X, list) or not X:
        raise InvalidError("X must be a list of at least one row.")
    columns = _columns(recipe, X)
    names: list[str | int] = list(recipe.features) if recipe.features else list(range(len(columns)))
    kinds = list(recipe.features.values()) if recipe.features else ["number"] * len(columns)
    numbers = [shape_numbers(c, name) for c, name, kind in zip(columns, names, kinds, strict=True) if kind == "number"]
    categories = [
        shape_labels(c, name) for c, name, kind in zip(columns, names, kinds, strict=True) if kind == "category"
    ]
    matrix = np.column_stack(numbers) if numbers else np.empty((len(X), 0))
    return matrix.astype(LITTLE_ENDIAN, copy=False).tobytes(), categories


def _shape_small(recipe: Recipe, X: Any) -> tuple[bytes, list[list[str | int]]] | None:
    """Shape few values, all of them right; None for many, or where anything is wrong: the general way says what.

    Most requests have a single row, so this is what an ordinary one costs.
    """
    values = _values_small(recipe, X)
    if values is None:
        return None
    categories: list[list[str | int]] = []
    if recipe.features is not None and "category" in recipe.features.values():
        kinds = list(recipe.features.values())
        categories = [values[i :: len(kinds)] for i, kind in enumerate(kinds) if kind == "category"]
        if any(map(_label_fault, chain.from_iterable(categories))):
            return None
        values = [value for i, value in enumerate(values) if kinds[i % len(kinds)] == "number"]
    numbers = _packed(values)
    return None if numbers is None else (numbers, categories)


def _values_small(recipe: Recipe, X: Any) -> list[Any] | None:
    """Values of few rows of the right form, row by row."""
    if type(X) is not list or not 0 < len(X) <= SMALL_MAX:
        return None
    features = recipe.features
    width = len(features) if features is not None else len(X[0]) if type(X[0]) is list else 0
    if not 0 < len(X) * width <= SMALL_MAX:
        return None
    values: list[Any] = []
    for row in X:
        if type(row) is list and len(row) == width:
            values += row
        elif type(row) is dict and features is not None and row.keys() == features.keys():
            values += [row[name] for name in features]
        else:
            return None
    return values


def _packed(values: list[Any]) -> bytes | None:
    """Few numbers as little-endian float64; None where one is not a number that can be learned from."""
    if len(values) > SMALL_MAX:
        return None
    for value in values:
        if type(value) is float:
            if not -NUMBER_MAX <= value <= NUMBER_MAX:
                return None
        elif type(value) is not int or not -INTEGER_END < value < INTEGER_END:
            return None
    return PACKERS[len(values)](*values)


def _columns(recipe: Recipe, X: list[Any]) -> list[Sequence[Any]]:
    """Turn rows into columns, in the recipe's order."""
    expected = None if recipe.features is None else list(recipe.features)
    if recipe.features and all(type(row) is dict and row.keys() == recipe.features.keys() for row in X):
        # Without a list for each row: the garbage collector looks at all of them, again and again.
        return [[row[name] for row in X] for name in recipe.features]
    first = next((row for row in X if isinstance(row, list) and row), [])
    width = len(first if expected is None else expected)
    faults: list[Fault] = []
    ordered: list[Sequence[Any]] = []
    for i, row in enumerate(X):
        if isinstance(row, list) and len(row) == width > 0:
            ordered.append(row)
        elif isinstance(row, dict) and expected is not None and row.keys() == recipe.features.keys():  # type: ignore[union-attr]
            ordered.append([row[name] for name in expected])
        else:
            faults.extend(_row_faults(row, i, expected, width))
            if len(faults) >= FAULTS_MAX:
                break
    if faults:
        raise InvalidError(summary(faults), faults[:FAULTS_MAX])
    return list(zip(*ordered, strict=True))


def _row_faults(row: Any, i: int, expected: list[str] | None, width: int) -> list[Fault]:
    if isinstance(row, list):
        if not row:
            return [Fault("the row is empty", i)]
        return [Fault(f"the row has {len(row)} values where {width} are expected", i)]
    if not isinstance(row, dict):
        return [Fault("a row is a list of values or an object by column name", i)]
    if expected is None:
        return [Fault("the recipe names no features, so a row is a list of numbers", i)]
    missing = [Fault("the column is missing", i, name) for name in expected if name not in row]
    known = set(expected)
    return missing + [Fault("the recipe has no such column", i, name[:100]) for name in row if name not in known]


def shape_numbers(column: Sequence[Any], name: str | int, what: str = "column") -> Floats:
    """Column of numbers as float64; the types are looked at first because numpy takes "1" and True for numbers."""
    if set(map(type, column)) <= {int, float}:
        try:
            values = np.array(column, dtype=np.float64)
        except OverflowError:
            pass
        else:
            if (np.abs(values) <= NUMBER_MAX).all() and not _has_large_integer(column, values):
                return values
    faults = [Fault(wrong, i, name) for i, value in enumerate(column) if (wrong := number_fault(value))]
    raise InvalidError(summary(faults, what), faults[:FAULTS_MAX])


def _has_large_integer(column: Sequence[Any], values: Floats) -> bool:
    if (np.abs(values) < INTEGER_END).all():
        return False
    return any(type(value) is int and abs(value) >= INTEGER_END for value in column)


def number_fault(value: Any) -> str | None:
    """Tell what is wrong with a value as a number to learn from; None if nothing is."""
    if type(value) not in (int, float):
        return f"{_shown(value)} is not a number"
    if type(value) is int and abs(value) >= INTEGER_END:
        return f"{_shown(value)} is 2^53 or more, which no double holds exactly; send it as a float"
    if not abs(value) <= NUMBER_MAX:
        return f"{_shown(value)} is not a finite number within ±{NUMBER_MAX:g}"
    return None


def shape_labels(column: Sequence[Any], name: str | int) -> list[str | int]:
    """Category column as a list of its labels, checked."""
    if set(map(type, column)) <= {str} and max(map(len, column)) <= LABEL_LENGTH_MAX:
        return list(column)
    faults = [Fault(wrong, i, name) for i, value in enumerate(column) if (wrong := _label_fault(value))]
    if faults:
        raise InvalidError(summary(faults), faults[:FAULTS_MAX])
    return list(column)


def _label_fault(value: Any) -> str | None:
    if type(value) is int:
        return None if abs(value) < INTEGER_END else f"{_shown(value)} is 2^53 or more; send it as a string"
    if type(value) is not str:
        return f"{_shown(value)} is not a category: send a string or an integer"
    if len(value) > LABEL_LENGTH_MAX:
        return f"the label has {len(value)} characters, more than {LABEL_LENGTH_MAX}"
    return None


def shape_target(recipe: Recipe, y: Any, n: int) -> bytes | list[Label] | None:
    """`y` of `n` rows as bytes or labels, checked; None for estimators that take none."""
    if not recipe.entry.takes_y:
        if y is not None:
            raise InvalidError(f"{recipe.estimator} takes no y: leave it out.")
        return None
    if not isinstance(y, list):
        raise InvalidError(f"y must be a list of {n} values, one per row of X.")
    if len(y) != n:
        raise InvalidError(f"X has {n} rows and y has {len(y)} values; they must be as many.")
    if recipe.entry.kind == "regressor":
        return _packed(y) or shape_numbers(y, "y", "target").astype(LITTLE_ENDIAN).tobytes()
    classes = recipe.classes or []
    allowed = {(type(label), label) for label in classes}
    faults = [
        Fault(f"{_shown(value)} is not one of the recipe's classes", i, "y")
        for i, value in enumerate(y)
        if not isinstance(value, str | int) or (type(value), value) not in allowed
    ]
    if faults:
        raise InvalidError(summary(faults, "target"), faults[:FAULTS_MAX])
    return list(y)


def shape_weights(recipe: Recipe, sample_weight: Any, n: int) -> bytes | None:
    """`sample_weight` of `n` rows as bytes, checked; None where there is none."""
    if sample_weight is None:
        return None
    if not recipe.entry.takes_sample_weight:
        raise InvalidError(f"{recipe.estimator} takes no sample_weight.")
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


def _shown(value: Any) -> str:
    """`value` as short JSON-like text for a message; of a list or object, which may be huge, only that it is one."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    text = repr(value) if plain else msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:37] + "..."


def summary(faults: Sequence[Fault], what: str = "column") -> str:
    """One sentence for the first fault: ``column 'year': 'abc' is not a number (row 3)``."""
    first = faults[0]
    where = f"{what} {first.column!r}: " if first.column is not None else ""
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"{where}{first.detail} (row {first.row}){more}."

"""Rows on their way from a request to an estimator.

Owns the check of `X`, `y` and `sample_weight` against a recipe, and the compact form in which they wait in Redis. Never
knows what was learned. Invariant: what :func:`shape` returns can be learned or predicted, as far as that can be known
without the model. Rows come from the gateway as JSON and go to workers as msgpack.
"""

from collections.abc import Sequence
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from keepfit.errors import Fault, InvalidError
from keepfit.recipe import LABEL_LENGTH_MAX, Label, Recipe

Floats = NDArray[np.float64]

# Larger numbers turn into infinity as soon as an estimator squares them or stores them in 32 bits.
NUMBER_MAX = 1e38
FAULTS_MAX = 20
LITTLE_ENDIAN = "<f8"


class Rows(msgspec.Struct, array_like=True, frozen=True):
    """`n` rows: number columns as little-endian float64 (row by row), category columns as lists of labels.

    `y` is float64 bytes for regressors, labels for classifiers, None where there is no target.
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
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read back what :meth:`encode` wrote."""
        return msgspec.msgpack.decode(data, type=cls)


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
        y = b"".join(part.y for part in parts if isinstance(part.y, bytes))
    else:
        y = [label for part in parts if isinstance(part.y, list) for label in part.y]
    weighted = first.sample_weight is not None
    return Rows(
        n=sum(part.n for part in parts),
        numbers=b"".join(part.numbers for part in parts),
        categories=[[label for part in parts for label in part.categories[i]] for i in range(len(first.categories))],
        y=y,
        sample_weight=b"".join(part.sample_weight or b"" for part in parts) if weighted else None,
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
    if not isinstance(X, list) or not X:
        raise InvalidError("X must be a list of at least one row.")
    columns = _columns(recipe, X)
    names: list[str | int] = list(recipe.features) if recipe.features else list(range(len(columns)))
    kinds = list(recipe.features.values()) if recipe.features else ["number"] * len(columns)
    numbers = [_numbers(c, name) for c, name, kind in zip(columns, names, kinds, strict=True) if kind == "number"]
    categories = [_labels(c, name) for c, name, kind in zip(columns, names, kinds, strict=True) if kind == "category"]
    matrix = np.column_stack(numbers) if numbers else np.empty((len(X), 0))
    target = _target(recipe, y, len(X)) if learning else None
    weights = None
    if sample_weight is not None:
        if not recipe.entry.takes_sample_weight:
            raise InvalidError(f"{recipe.estimator} takes no sample_weight.")
        weights = _weights(sample_weight, len(X))
    return Rows(
        n=len(X),
        numbers=matrix.astype(LITTLE_ENDIAN).tobytes(),
        categories=categories,
        y=target,
        sample_weight=weights,
    )


def _columns(recipe: Recipe, X: list[Any]) -> list[Sequence[Any]]:
    """Turn rows into columns, in the recipe's order."""
    expected = None if recipe.features is None else list(recipe.features)
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
        raise InvalidError(_summary(faults), faults[:FAULTS_MAX])
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


def _numbers(column: Sequence[Any], name: str | int, what: str = "column") -> Floats:
    """Column of numbers as float64; the types are looked at first because numpy takes "1" and True for numbers."""
    if set(map(type, column)) <= {int, float}:
        try:
            values = np.array(column, dtype=np.float64)
        except OverflowError:
            pass
        else:
            if (np.abs(values) <= NUMBER_MAX).all() and not _has_large_integer(column, values):
                return values
    faults = [Fault(wrong, i, name) for i, value in enumerate(column) if (wrong := _number_fault(value))]
    raise InvalidError(_summary(faults, what), faults[:FAULTS_MAX])


def _has_large_integer(column: Sequence[Any], values: Floats) -> bool:
    if (np.abs(values) < 2**53).all():
        return False
    return any(type(value) is int and abs(value) >= 2**53 for value in column)


def _number_fault(value: Any) -> str | None:
    if type(value) not in (int, float):
        return f"{_shown(value)} is not a number"
    if type(value) is int and abs(value) >= 2**53:
        return f"{_shown(value)} is 2^53 or more, which no double holds exactly; send it as a float"
    if not abs(value) <= NUMBER_MAX:
        return f"{_shown(value)} is not a finite number within ±{NUMBER_MAX:g}"
    return None


def _labels(column: Sequence[Any], name: str | int) -> list[str | int]:
    if set(map(type, column)) <= {str} and max(map(len, column)) <= LABEL_LENGTH_MAX:
        return list(column)
    faults = [Fault(wrong, i, name) for i, value in enumerate(column) if (wrong := _label_fault(value))]
    if faults:
        raise InvalidError(_summary(faults), faults[:FAULTS_MAX])
    return list(column)


def _label_fault(value: Any) -> str | None:
    if type(value) is int:
        return None if abs(value) < 2**53 else f"{_shown(value)} is 2^53 or more; send it as a string"
    if type(value) is not str:
        return f"{_shown(value)} is not a category: send a string or an integer"
    if len(value) > LABEL_LENGTH_MAX:
        return f"the label has {len(value)} characters, more than {LABEL_LENGTH_MAX}"
    return None


def _target(recipe: Recipe, y: Any, n: int) -> bytes | list[Label] | None:
    if not recipe.entry.takes_y:
        if y is not None:
            raise InvalidError(f"{recipe.estimator} takes no y: leave it out.")
        return None
    if not isinstance(y, list):
        raise InvalidError(f"y must be a list of {n} values, one per row of X.")
    if len(y) != n:
        raise InvalidError(f"X has {n} rows and y has {len(y)} values; they must be as many.")
    if recipe.entry.kind == "regressor":
        return _numbers(y, "y", "target").astype(LITTLE_ENDIAN).tobytes()
    classes = recipe.classes or []
    allowed = {(type(label), label) for label in classes}
    faults = [
        Fault(f"{_shown(value)} is not one of the recipe's classes", i, "y")
        for i, value in enumerate(y)
        if not isinstance(value, str | int) or (type(value), value) not in allowed
    ]
    if faults:
        raise InvalidError(_summary(faults, "target"), faults[:FAULTS_MAX])
    return list(y)


def _weights(sample_weight: Any, n: int) -> bytes:
    if not isinstance(sample_weight, list) or len(sample_weight) != n:
        raise InvalidError(f"sample_weight must be a list of {n} numbers, one per row of X.")
    values = _numbers(sample_weight, "sample_weight", "weights")
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        faults = [Fault(f"{_shown(sample_weight[row])} is negative", row, "sample_weight")]
        raise InvalidError(_summary(faults, "weights"), faults)
    if not values.any():
        raise InvalidError("sample_weight is 0 for every row: at least one must be more.")
    return values.astype(LITTLE_ENDIAN).tobytes()


def _shown(value: Any) -> str:
    """`value` as short JSON-like text for a message; of a list or object, which may be huge, only that it is one."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    text = repr(value) if plain else msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:37] + "..."


def _summary(faults: Sequence[Fault], what: str = "column") -> str:
    """One sentence for the first fault: ``column 'year': 'abc' is not a number (row 3)``."""
    first = faults[0]
    where = f"{what} {first.column!r}: " if first.column is not None else ""
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"{where}{first.detail} (row {first.row}){more}."

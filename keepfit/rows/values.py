"""Values of columns, checked: numbers, timestamps, labels and texts, as JSON delivers them.

Owns the rule for a single value and the message for a value that breaks it. Never knows the rest of a row. Invariant:
a column is either rejected as a whole, with the row of each invalid value, or kept with every bit. Columns come from
:mod:`keepfit.rows.shaping` and :mod:`keepfit.rows.tables`, which put the results into :class:`keepfit.rows.rows.Rows`.
"""

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.features import Column, Kind
from keepfit.recipe.recipe import LABEL_LENGTH_MAX

Floats = NDArray[np.float64]

# A value of a category or text column; None where the value is missing.
NonNumeric = str | int | None

# Larger numbers become infinite as soon as an estimator squares them or stores them in 32 bits.
NUMBER_MAX = 1e38
INTEGER_END = 2**53
# Seconds since 1970 at which the years 1 and 10000 begin: the range of datetime, which rules out milliseconds.
TIME_MIN, TIME_END = -62_135_596_800, 253_402_300_800
TEXT_LENGTH_MAX = 65_536
FAULTS_MAX = 20
LITTLE_ENDIAN = "<f8"
# Up to this many values, a Python loop is faster than the fixed cost of numpy.
SMALL_MAX = 64
PACKERS = [struct.Struct(f"<{count}d").pack for count in range(SMALL_MAX + 1)]


def pack_small(values: list[Any]) -> bytes | None:
    """Return up to 64 numbers as little-endian float64; None if there are more, or if one cannot be learned."""
    if len(values) > SMALL_MAX:
        return None
    for value in values:
        if type(value) is float:
            if not -NUMBER_MAX <= value <= NUMBER_MAX:
                return None
        elif type(value) is not int or not -INTEGER_END < value < INTEGER_END:
            return None
    return PACKERS[len(values)](*values)


def shape_numbers(
    column: Sequence[Any], name: str | int, subject: str = "column", spec: Column | None = None
) -> Floats:
    """Return a column of numbers as float64, shape (n,), with NaN for a missing value of a nullable column.

    The types are checked first because numpy converts "1" and True to numbers.

    Raises
    ------
    InvalidError
        With the row of each invalid value, at most 20.
    """
    kind: Kind = "number" if spec is None else spec.kind
    missing = [i for i, value in enumerate(column) if value is None] if spec is not None and spec.nullable else []
    if missing:
        column = [0 if value is None else value for value in column]
    if set(map(type, column)) <= {int, float}:
        try:
            values = np.array(column, dtype=np.float64)
        except OverflowError:
            pass
        else:
            in_range = (np.abs(values) <= NUMBER_MAX).all() and (kind == "number" or is_timestamp(values).all())
            if in_range and not _has_large_integer(column, values):
                values[missing] = np.nan
                return values
    faults = [Fault(detail, i, name) for i, value in enumerate(column) if (detail := number_fault(value, kind))]
    raise InvalidError(describe_faults(faults, subject), faults[:FAULTS_MAX])


def is_timestamp(values: Floats) -> NDArray[np.bool_]:
    """Return which values are seconds since 1970 of a year from 1 to 9999."""
    in_range: NDArray[np.bool_] = (values >= TIME_MIN) & (values < TIME_END)
    return in_range


def _has_large_integer(column: Sequence[Any], values: Floats) -> bool:
    if (np.abs(values) < INTEGER_END).all():
        return False
    return any(type(value) is int and abs(value) >= INTEGER_END for value in column)


def number_fault(value: Any, kind: Kind = "number") -> str | None:
    """Return why a value cannot be learned as a number; None if it can."""
    if type(value) not in (int, float):
        return f"{format_value(value)} is not a number"
    if kind == "timestamp" and not TIME_MIN <= value < TIME_END:
        return f"{format_value(value)} is not a time in seconds within the years 1 to 9999; divide milliseconds by 1000"
    if type(value) is int and abs(value) >= INTEGER_END:
        return f"{format_value(value)} is 2^53 or more, which no double holds exactly; send it as a float"
    if not abs(value) <= NUMBER_MAX:
        return f"{format_value(value)} is not a finite number within ±{NUMBER_MAX:g}"
    return None


def shape_non_numeric(column: Sequence[Any], spec: Column) -> list[NonNumeric]:
    """Return a category or text column as a list, with None for a missing value of a nullable column.

    Raises
    ------
    InvalidError
        With the row of each invalid value, at most 20.
    """
    length_max = LABEL_LENGTH_MAX if spec.kind == "category" else TEXT_LENGTH_MAX
    if set(map(type, column)) <= {str} and max(map(len, column)) <= length_max:
        return list(column)
    faults = [
        Fault(detail, i, spec.name) for i, value in enumerate(column) if (detail := non_numeric_fault(value, spec))
    ]
    if faults:
        raise InvalidError(describe_faults(faults), faults[:FAULTS_MAX])
    return list(column)


def non_numeric_fault(value: Any, spec: Column) -> str | None:
    """Return why a value is invalid in a category or text column; None if it is valid."""
    if value is None and spec.nullable:
        return None
    return _category_fault(value) if spec.kind == "category" else _text_fault(value)


def _category_fault(value: Any) -> str | None:
    if type(value) is int:
        return None if abs(value) < INTEGER_END else f"{format_value(value)} is 2^53 or more; send it as a string"
    if type(value) is not str:
        return f"{format_value(value)} is not a category: send a string or an integer"
    if len(value) > LABEL_LENGTH_MAX:
        return f"the label has {len(value)} characters, more than {LABEL_LENGTH_MAX}"
    return None


def _text_fault(value: Any) -> str | None:
    if type(value) is not str:
        return f"{format_value(value)} is not a text: send a string"
    if len(value) > TEXT_LENGTH_MAX:
        return f"the text has {len(value)} characters, more than {TEXT_LENGTH_MAX}"
    return None


def format_value(value: Any) -> str:
    """Return `value` as JSON-like text of at most 40 characters; "a list" or "an object" for those, which may be huge.

    >>> format_value("abc"), format_value(True), format_value([1, 2])
    ("'abc'", 'true', 'a list')
    """
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    text = repr(value) if is_plain else msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:37] + "..."


def describe_faults(faults: Sequence[Fault], subject: str = "column") -> str:
    """Return one sentence about the first fault: ``column 'year': 'abc' is not a number (row 3).``."""
    first = faults[0]
    prefix = f"{subject} {first.column!r}: " if first.column is not None else ""
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"{prefix}{first.detail} (row {first.row}){more}."

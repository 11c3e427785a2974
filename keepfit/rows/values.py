"""Values of columns, checked: numbers, timestamps, booleans, labels and texts, as JSON delivers them.

Owns the rule for a single value and the message for a value that breaks it. Never knows the rest of a row. Invariant:
a column is either rejected as a whole, with the row of each invalid value, or kept with every bit; text is kept in
Unicode's normal form C, so that one label never has two forms. Columns come from :mod:`keepfit.rows.shaping` and
:mod:`keepfit.rows.tables`, which put the results into :class:`keepfit.rows.rows.Rows`.
"""

import struct
import unicodedata
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.features import Column, Kind
from keepfit.recipe.recipe import LABEL_LENGTH_MAX, label_fault
from keepfit.rows import times

Floats = NDArray[np.float64]

# A value of a category or text column; None where the value is missing.
NonNumeric = str | int | None

# Larger numbers become infinite as soon as an estimator squares them or stores them in 32 bits.
NUMBER_MAX = 1e38
INTEGER_END = 2**53
# Seconds since 1970 at which the years 1 and 10000 begin: the range of datetime, which rules out milliseconds.
TIME_MIN, TIME_END = -62_135_596_800, 253_402_300_800
TEXT_LENGTH_MAX = 65_536
OUTPUTS_MAX = 1000
FAULTS_MAX = 20
# What a value is expected to be, by kind of column.
EXPECTED: dict[Kind, str] = {
    "number": "a number",
    "timestamp": f"a time: send seconds since 1970 or ISO 8601 text such as {times.EXAMPLE}",
    "boolean": "a boolean: send true or false, or 1 or 0",
}
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

    The types are checked first because numpy converts "1" and True to numbers. Text of a timestamp column becomes
    seconds, and true and false of a boolean column become 1 and 0.

    Raises
    ------
    InvalidError
        With the row of each invalid value, at most 20.
    """
    kind: Kind = "number" if spec is None else spec.kind
    missing = [i for i, value in enumerate(column) if value is None] if spec is not None and spec.nullable else []
    if missing:
        column = [0 if value is None else value for value in column]
    converted, types = column, set(map(type, column))
    if kind != "number" and not types <= {int, float}:
        converted = [to_number(value, kind) for value in column]
        types = set(map(type, converted))
    if types <= {int, float}:
        try:
            values = np.array(converted, dtype=np.float64)
        except OverflowError:
            pass
        else:
            in_range = (np.abs(values) <= NUMBER_MAX).all() and (kind == "number" or is_of_kind(values, kind).all())
            if in_range and not _has_large_integer(converted, values):
                values[missing] = np.nan
                return values
    faults = [Fault(detail, i, name) for i, value in enumerate(column) if (detail := number_fault(value, kind))]
    raise InvalidError(describe_faults(faults, subject), faults[:FAULTS_MAX])


def to_number(value: Any, kind: Kind) -> Any:
    """Return the number that `value` is in a timestamp or boolean column; `value` itself if it is none.

    >>> to_number("1970-01-01T00:01:00Z", "timestamp"), to_number(True, "boolean"), to_number(True, "timestamp")
    (60.0, 1, True)
    """
    if type(value) is str and kind == "timestamp":
        seconds = times.seconds_of_text(value)
        return value if seconds is None else seconds
    return int(value) if type(value) is bool and kind == "boolean" else value


def is_of_kind(values: Floats, kind: Kind) -> NDArray[np.bool_]:
    """Return which values are in the range of their kind of column: years 1 to 9999 for a timestamp, 0 or 1."""
    if kind == "timestamp":
        in_range: NDArray[np.bool_] = (values >= TIME_MIN) & (values < TIME_END)
        return in_range
    return (values == 0) | (values == 1) if kind == "boolean" else np.ones(values.shape, np.bool_)


def _has_large_integer(column: Sequence[Any], values: Floats) -> bool:
    if (np.abs(values) < INTEGER_END).all():
        return False
    return any(type(value) is int and abs(value) >= INTEGER_END for value in column)


def number_fault(value: Any, kind: Kind = "number") -> str | None:
    """Return why a value cannot be learned as a number of its kind of column; None if it can."""
    number = value if kind == "number" else to_number(value, kind)
    if type(number) not in (int, float):
        is_time = kind == "number" and type(value) is str and times.seconds_of_text(value) is not None
        hint = ' but a time, for a column of type "timestamp"' if is_time else ""
        return f"{format_value(value)} is not {EXPECTED[kind]}{hint}"
    if kind == "timestamp" and not TIME_MIN <= number < TIME_END:
        unit = "in UTC" if type(value) is str else "in seconds"
        advice = "" if type(value) is str else "; divide milliseconds by 1000"
        return f"{format_value(value)} is not a time {unit} within the years 1 to 9999{advice}"
    if kind == "boolean" and number not in (0, 1):
        return f"{format_value(value)} is not {EXPECTED[kind]}"
    if type(number) is int and abs(number) >= INTEGER_END:
        return f"{format_value(value)} is 2^53 or more, which no double holds exactly; send it as a float"
    if not abs(number) <= NUMBER_MAX:
        return f"{format_value(value)} is not a finite number within ±{NUMBER_MAX:g}"
    return None


def normalized(values: Sequence[Any]) -> Sequence[Any]:
    """Return `values` with every text in Unicode's normal form C (Unicode Standard Annex 15); unchanged if all are.

    >>> normalized(["e\u0301", 1, None]) == ["é", 1, None]
    True
    """
    # A loop, because it costs a third of a list for the usual text, which is ASCII.
    for value in values:
        if type(value) is str and not value.isascii():
            return [unicodedata.normalize("NFC", one) if type(one) is str else one for one in values]
    return values


def shape_non_numeric(column: Sequence[Any], spec: Column) -> list[NonNumeric]:
    """Return a category or text column as a list, with None for a missing value of a nullable column.

    Raises
    ------
    InvalidError
        With the row of each invalid value, at most 20.
    """
    column = normalized(column)
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


def class_fault(value: Any, allowed_types: set[type]) -> str | None:
    """Return why a value is no label of a classifier, or none of the types of the recipe's classes; None if it is."""
    if type(value) not in (str, int, bool):
        return f"{format_value(value)} is not a label: send a string, an integer or a boolean"
    if type(value) not in allowed_types:
        return f"{format_value(value)} is not one of the recipe's classes, nor of their type"
    return label_fault(value)


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

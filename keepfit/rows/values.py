"""Values of columns, checked: numbers, times, labels and texts, as they come in JSON.

Owns what is right for one value, and the words for what is not. Never knows the rest of a row. Invariant: a column is
refused as a whole, with each wrong value's row, or kept with every bit.
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

# What category and text columns hold; None where a value is missing.
Word = str | int | None

# Larger numbers turn into infinity as soon as an estimator squares them or stores them in 32 bits.
NUMBER_MAX = 1e38
INTEGER_END = 2**53
# Seconds since 1970 at which the years 1 and 10000 begin: what calendars agree on, and no milliseconds.
TIME_MIN, TIME_END = -62_135_596_800, 253_402_300_800
TEXT_LENGTH_MAX = 65_536
FAULTS_MAX = 20
LITTLE_ENDIAN = "<f8"
# So few values are looked at one by one in less time than numpy takes to begin.
SMALL_MAX = 64
PACKERS = [struct.Struct(f"<{count}d").pack for count in range(SMALL_MAX + 1)]


def packed(values: list[Any]) -> bytes | None:
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


def shape_numbers(column: Sequence[Any], name: str | int, what: str = "column", form: Column | None = None) -> Floats:
    """Column of numbers as float64, NaN where one is missing that may be.

    The types are looked at first because numpy takes "1" and True for numbers.
    """
    kind: Kind = "number" if form is None else form.kind
    missing = [i for i, value in enumerate(column) if value is None] if form is not None and form.nullable else []
    if missing:
        column = [0 if value is None else value for value in column]
    if set(map(type, column)) <= {int, float}:
        try:
            values = np.array(column, dtype=np.float64)
        except OverflowError:
            pass
        else:
            within = (np.abs(values) <= NUMBER_MAX).all() and (kind == "number" or is_time(values).all())
            if within and not _has_large_integer(column, values):
                values[missing] = np.nan
                return values
    faults = [Fault(wrong, i, name) for i, value in enumerate(column) if (wrong := number_fault(value, kind))]
    raise InvalidError(summary(faults, what), faults[:FAULTS_MAX])


def is_time(values: Floats) -> NDArray[np.bool_]:
    """Which values are seconds of a year from 1 to 9999."""
    inside: NDArray[np.bool_] = (values >= TIME_MIN) & (values < TIME_END)
    return inside


def _has_large_integer(column: Sequence[Any], values: Floats) -> bool:
    if (np.abs(values) < INTEGER_END).all():
        return False
    return any(type(value) is int and abs(value) >= INTEGER_END for value in column)


def number_fault(value: Any, kind: Kind = "number") -> str | None:
    """Tell what is wrong with a value as a number to learn from; None if nothing is."""
    if type(value) not in (int, float):
        return f"{shown(value)} is not a number"
    if kind == "timestamp" and not TIME_MIN <= value < TIME_END:
        return f"{shown(value)} is not a time in seconds, in the years 1 to 9999; milliseconds are 1000 to a second"
    if type(value) is int and abs(value) >= INTEGER_END:
        return f"{shown(value)} is 2^53 or more, which no double holds exactly; send it as a float"
    if not abs(value) <= NUMBER_MAX:
        return f"{shown(value)} is not a finite number within ±{NUMBER_MAX:g}"
    return None


def shape_words(column: Sequence[Any], form: Column) -> list[Word]:
    """Category or text column as a list, checked; None where a value is missing that may be."""
    length_max = LABEL_LENGTH_MAX if form.kind == "category" else TEXT_LENGTH_MAX
    if set(map(type, column)) <= {str} and max(map(len, column)) <= length_max:
        return list(column)
    faults = [Fault(wrong, i, form.name) for i, value in enumerate(column) if (wrong := word_fault(value, form))]
    if faults:
        raise InvalidError(summary(faults), faults[:FAULTS_MAX])
    return list(column)


def word_fault(value: Any, form: Column) -> str | None:
    """Tell what is wrong with a value of a category or text column; None if nothing is."""
    if value is None and form.nullable:
        return None
    return _label_fault(value) if form.kind == "category" else _text_fault(value)


def _label_fault(value: Any) -> str | None:
    if type(value) is int:
        return None if abs(value) < INTEGER_END else f"{shown(value)} is 2^53 or more; send it as a string"
    if type(value) is not str:
        return f"{shown(value)} is not a category: send a string or an integer"
    if len(value) > LABEL_LENGTH_MAX:
        return f"the label has {len(value)} characters, more than {LABEL_LENGTH_MAX}"
    return None


def _text_fault(value: Any) -> str | None:
    if type(value) is not str:
        return f"{shown(value)} is not a text: send a string"
    if len(value) > TEXT_LENGTH_MAX:
        return f"the text has {len(value)} characters, more than {TEXT_LENGTH_MAX}"
    return None


def shown(value: Any) -> str:
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

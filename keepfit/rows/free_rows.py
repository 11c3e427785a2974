"""Free rows: rows of any columns, for a River model whose recipe names no features; and targets of any names.

Owns the check of such a row or target and its text, in which it waits in :class:`keepfit.rows.rows.Rows`: JSON with
numbers as floats, text in normal form C and names in order, so that equal rows have equal text in whichever form they
were sent. Never knows which columns the model has seen: each row may have others. Rows come from JSON and from tables,
and :mod:`keepfit.model.river_adapter` gives them to the model.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import msgspec

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.features import NAME_LENGTH_MAX
from keepfit.rows.values import (
    FAULTS_MAX,
    OUTPUTS_MAX,
    TEXT_LENGTH_MAX,
    class_fault,
    describe_faults,
    format_value,
    number_fault,
)

NAME_FAULT = f"the name is empty, longer than {NAME_LENGTH_MAX} characters, or holds a NUL"

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder().decode


def shape_free(X: Any) -> list[str]:
    """Check rows, each an object of values by name or a list of values, and return the text of each.

    A value is a number, text, true, false or null.

    Raises
    ------
    InvalidError
        With the row and column of each invalid value, at most 20.

    >>> shape_free([{"size": 42, "make": None}, [1, True]])
    ['{"make":null,"size":42.0}', '[1.0,true]']
    """
    if not isinstance(X, list) or not X:
        raise InvalidError("X must be a list of at least one row.")
    faults: list[Fault] = []
    texts = []
    for i, row in enumerate(X):
        found = _row_faults(row, i)
        faults += found
        if len(faults) >= FAULTS_MAX:
            break
        if not found:
            texts.append(_encode(_normal_row(row)).decode())
    if faults:
        raise InvalidError(describe_faults(faults), faults[:FAULTS_MAX])
    return texts


def shape_free_targets(y: list[Any], *, labelled: bool) -> list[str]:
    """Check the targets of rows, each an object of targets by name or a list of them, and return the text of each.

    A target is a number, or with `labelled` a string, an integer or a boolean. All rows have the same targets.

    Raises
    ------
    InvalidError
        With the row of each invalid target, at most 20.

    >>> shape_free_targets([{"u": 1, "v": 2.5}], labelled=False), shape_free_targets([[True]], labelled=True)
    (['{"u":1.0,"v":2.5}'], ['[true]'])
    """
    faults = [fault for i, row in enumerate(y) for fault in _target_faults(row, i, y[0], labelled=labelled)]
    if faults:
        raise InvalidError(describe_faults(faults, "target"), faults[:FAULTS_MAX])
    return [_encode(_normal_row(row, numbers=not labelled)).decode() for row in y]


def _target_faults(row: Any, i: int, first: Any, *, labelled: bool) -> list[Fault]:
    if not isinstance(row, list | dict) or not 0 < len(row) <= OUTPUTS_MAX:
        return [Fault(f"a target is an object or a list of 1 to {OUTPUTS_MAX} values, one for each output", i, "y")]
    values = list(row.values()) if isinstance(row, dict) else row
    found = [class_fault(value, {str, int, bool}) if labelled else number_fault(value) for value in values]
    faults = [Fault(fault, i, "y") for fault in found if fault]
    if isinstance(row, dict):
        faults += [Fault(NAME_FAULT, i, "y") for name in row if not is_usable_name(name)]
    if _names(row) != _names(first) or len(_names(row)) < len(row):
        faults.append(Fault("the row has other targets than the first row", i, "y"))
    return faults


def _names(row: Any) -> set[Any]:
    if isinstance(row, dict):
        return set(normal_names(row))
    return set(range(len(row))) if isinstance(row, list) else set()


def row_of(text: str) -> dict[str | int, Any]:
    """Return the row of a text, by name or by position from 0.

    >>> row_of('{"make":null,"size":42.0}'), row_of("[1.0,true]")
    ({'make': None, 'size': 42.0}, {0: 1.0, 1: True})
    """
    row = _decode(text)
    return dict(enumerate(row)) if type(row) is list else row


def values_of(text: str) -> Any:
    """Return what a text encodes."""
    return _decode(text)


def _normal_row(row: Any, *, numbers: bool = True) -> Any:
    if isinstance(row, dict):
        return {unicodedata.normalize("NFC", name): _normal(value, numbers=numbers) for name, value in row.items()}
    return [_normal(value, numbers=numbers) for value in row]


def _normal(value: Any, *, numbers: bool) -> Any:
    if type(value) is str:
        return unicodedata.normalize("NFC", value)
    # The same number may be sent as 1 and as 1.0; an integer may also be a label.
    return float(value) if numbers and type(value) is int else value


def _row_faults(row: Any, i: int) -> list[Fault]:
    if isinstance(row, list):
        if not row:
            return [Fault("the row is empty", i)]
        return [Fault(fault, i, position) for position, value in enumerate(row) if (fault := _value_fault(value))]
    if not isinstance(row, dict):
        return [Fault("a row is a list of values or an object by column name", i)]
    faults = [Fault(fault, i, name[:100]) for name, value in row.items() if (fault := _value_fault(value))]
    faults += [Fault(NAME_FAULT, i, name[:100]) for name in row if not is_usable_name(name)]
    if len(set(normal_names(row))) < len(row):
        faults.append(Fault("the row has one name in two Unicode forms", i))
    return faults


def normal_names(row: dict[str, Any]) -> list[str]:
    """Return the names of a row in normal form C."""
    return [unicodedata.normalize("NFC", name) for name in row]


def is_usable_name(name: str) -> bool:
    """Return whether a column or target of a row may have this name."""
    return 0 < len(name) <= NAME_LENGTH_MAX and "\0" not in name


def _value_fault(value: Any) -> str | None:
    if type(value) in (int, float):
        return number_fault(value)
    if type(value) is str:
        long = len(value) > TEXT_LENGTH_MAX
        return f"the text has {len(value)} characters, more than {TEXT_LENGTH_MAX}" if long else None
    if value is None or type(value) is bool:
        return None
    return f"{format_value(value)} is not a value: send a number, text, true, false or null"


def rows_of_columns(columns: Sequence[tuple[str, Sequence[Any]]], n: int) -> list[dict[str, Any]]:
    """Return `n` rows by name; a NaN among the values is a missing one, None."""
    # NaN is the only number that does not equal itself.
    present = [(name, [None if value != value else value for value in values]) for name, values in columns]  # noqa: PLR0124
    return [{name: values[i] for name, values in present} for i in range(n)]

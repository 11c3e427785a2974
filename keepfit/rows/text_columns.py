"""Columns of text, as CSV has them, with the types that a recipe names.

Owns the type of each value: nothing is guessed from other values, so that a row has the same values wherever its file
is divided. Never rejects a value: one that has another type stays text, and the check of the table reports it with its
row. Invariant: the rules are those of `keepfit learn`: labels are text unless the recipe's classes, or the caller, name
another type; an empty field is missing, except in a column of text.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from keepfit.errors import InvalidError
from keepfit.recipe.recipe import Recipe
from keepfit.rows.tables import TARGET, WEIGHTS, Column
from keepfit.rows.values import Floats
from keepfit.times import BASIC_DATE

LabelType = Literal["string", "integer", "boolean"]
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")


def label_type_of(recipe: Recipe, given: LabelType | None) -> LabelType:
    """Return the type of labels: of the recipe's classes, else as given, else text.

    Raises
    ------
    InvalidError
        If both are there and differ.
    """
    first = next(iter(recipe.classes or ()), None)
    if first is None:
        return given or "string"
    of_classes: LabelType = "boolean" if isinstance(first, bool) else "integer" if isinstance(first, int) else "string"
    if given not in (None, of_classes):
        raise InvalidError(f"label_type is {given}, and the recipe's classes are of the type {of_classes}.")
    return of_classes


def type_of(recipe: Recipe, name: str, label_type: LabelType) -> str:
    """Return the type of the values of a column: its kind, or that of the labels (``label_string``, ...)."""
    if name == TARGET and recipe.entry.takes_y:
        return "number" if recipe.entry.target == "numbers" else f"label_{label_type}"
    if name == WEIGHTS or recipe.features is None:
        return "number"
    return next(spec.kind for spec in recipe.layout.columns if spec.name == name)


def typed(name: str, kind: str, texts: Sequence[str | None], numbers: Floats | None) -> Column:
    """Return a column with its values.

    Parameters
    ----------
    kind : as of :func:`type_of`
    texts : the values of n rows, None for an empty field without quotes
    numbers : the same as float64, shape (n,), if all of them are plain numbers or missing; else None
    """
    missing = [row for row, text in enumerate(texts) if not text] if kind != "text" else []
    if kind == "text":
        # An empty text is a text, with quotes and without.
        return Column(name, labels=lambda: ["" if text is None else text for text in texts])
    if numbers is not None:
        return Column(name, [np.nan_to_num(numbers, nan=0.0)], missing=missing)
    convert = CONVERSIONS.get(kind)
    if convert is None:
        return Column(name, labels=lambda: list(texts), missing=missing)
    return Column(name, labels=lambda: [None if text is None else convert(text) for text in texts], missing=missing)


def _number(text: str) -> float | str:
    try:
        # Python alone reads 1_000 as a number.
        number = float(text) if "_" not in text else math.nan
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _time(text: str) -> Any:
    text = text.strip()
    # 20240229 may be a date or a number of seconds: as text it is neither, and the check of the table says so.
    return text if BASIC_DATE.fullmatch(text) else _number(text)


def _boolean(text: str) -> Any:
    return BOOLEANS.get(text.strip().lower(), text)


class _NoLabel(str):
    """A text of a column whose labels have another type; it is no label, because its type is not that of one."""

    __slots__ = ()


def _integer(text: str) -> Any:
    # 01067 is a code, whose zero an integer loses.
    return int(text) if INTEGER.fullmatch(text.strip()) else _NoLabel(text)


def _boolean_label(text: str) -> Any:
    return BOOLEANS.get(text.strip().lower(), _NoLabel(text))


CONVERSIONS: dict[str, Callable[[str], Any]] = {
    "number": _number,
    "timestamp": _time,
    "boolean": _boolean,
    "label_integer": _integer,
    "label_boolean": _boolean_label,
}

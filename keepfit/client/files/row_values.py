"""Values of rows in files, with the types that the recipe of a model names.

Pure. Owns which columns of a file a model reads, the types of CSV's texts, and the fault of a value that has another
one. Values of JSON have types of their own, which the gateway checks. Invariant: a value is converted without loss or
is a fault; nothing is guessed: labels are text unless the recipe's classes or the caller name another type.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from keepfit.client.files.row_files import FileRow
from keepfit.errors import InvalidError, KeepfitError, MalformedError
from keepfit.recipe.features import Column, NumberOptions
from keepfit.recipe.recipe import Recipe, from_text
from keepfit.times import BASIC_DATE

LabelType = Literal["string", "integer", "boolean"]
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
SHOWN_MAX = 40
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")


class ValueFaultError(KeepfitError):
    """A value that cannot be converted; it never leaves this package. `column` is its name in the file."""

    def __init__(self, column: str, detail: str) -> None:
        super().__init__(f"column {column!r}: {detail}")


@dataclass(slots=True)
class ModelColumns:
    """The columns that a model reads from a file: features, targets and the weight.

    `targets` is empty for predicting. `label_type` is the type of labels in CSV: of the recipe's classes, or as given,
    text if None. Without features in the recipe, they are all columns but the others and
    `ignored`. `unread` are the columns of the file that the model does not read.
    """

    recipe: Recipe
    targets: Sequence[str] = ()
    weight: str | None = None
    ignored: frozenset[str] = frozenset()
    label_type: LabelType | None = None
    features: Sequence[str] = field(default=())
    specs: Sequence[Column] = field(default=())
    unread: Sequence[str] = field(default=())
    _known: set[str] = field(default_factory=set)

    def bind(self, columns: Sequence[str], source: str) -> None:
        """Find the columns among those of a file.

        Raises
        ------
        InvalidError
            If a column is missing.
        """
        others = {*self.targets, *self.ignored, *([self.weight] if self.weight else [])}
        if self.recipe.features is None:
            self.features = [name for name in columns if name not in others]
            self.specs = [_matrix_column(name, index) for index, name in enumerate(self.features)]
        else:
            self.features, self.specs = list(self.recipe.features), self.recipe.layout.columns
        nullable = self.recipe.layout.nullable if self.recipe.features is not None else frozenset()
        needed = [name for name in self.features if name not in nullable] + list(self.targets)
        needed += [self.weight] if self.weight else []
        missing = [name for name in needed if name not in columns]
        if missing or not self.features:
            lacks = f"column {missing[0]!r} is missing" if missing else "there is no column for the rows"
            raise InvalidError(f"{source}: {lacks}; the file has {', '.join(map(repr, columns))}.")
        self._known = {*columns, *others}
        self.unread = [name for name in columns if name not in {*self.features, *others}]

    def values_of(self, row: FileRow, *, typed: bool) -> list[Any]:
        """Return the values of the features, in the order of the recipe; `typed` rows are JSON.

        Raises
        ------
        ValueFaultError
            For a value that is missing or has another type.
        """
        if self.recipe.features is None:
            # Without features, each column of the file is one of the matrix.
            for name in row.values.keys() - self._known:
                raise ValueFaultError(name, "the first rows of the file have no such column")
        values: list[Any] = []
        for spec in self.specs:
            value = row.values.get(spec.name)
            if value is None or (value == "" and spec.kind != "text" and not typed):
                if not spec.nullable:
                    raise ValueFaultError(spec.name, "the value is missing")
                values.append(None)
            else:
                values.append(_finite(value, spec.name) if typed else _to_feature(value, spec))
        return values

    def target_of(self, row: FileRow, *, typed: bool) -> Any:
        """Return the target of a row: one value, or a list for a model with several outputs; raises as above."""
        found = [self._target(row, name, typed) for name in self.targets]
        return found if self.recipe.entry.multi_output else found[0]

    def _target(self, row: FileRow, name: str, typed: bool) -> Any:
        value = row.values.get(name)
        if value is None or value == "":
            raise ValueFaultError(name, "the value is missing")
        if typed:
            return _finite(value, name)
        if self.recipe.entry.target == "numbers":
            return _to_number(value, name)
        return self._to_label(value, name)

    def weight_of(self, row: FileRow, *, typed: bool) -> Any:
        """Return the weight of a row; raises as above."""
        name = self.weight or ""
        value = row.values.get(name)
        if value is None or value == "":
            raise ValueFaultError(name, "the value is missing")
        return _finite(value, name) if typed else _to_number(value, name)

    def _to_label(self, text: str, name: str) -> str | int | bool:
        if self.label_type == "integer":
            if _is_integer(text.strip()):
                return int(text)
        elif self.label_type == "boolean":
            if text.strip().lower() in BOOLEANS:
                return BOOLEANS[text.strip().lower()]
        else:
            return text
        raise ValueFaultError(
            name,
            f"{_shown(text)} is not {'an integer' if self.label_type == 'integer' else 'true or false'}, the type of "
            "the labels",
        )


def columns_of(
    model: dict[str, Any],
    targets: Sequence[str] = (),
    weight: str | None = None,
    ignored: Iterable[str] = (),
    label_type: LabelType | None = None,
) -> ModelColumns:
    """Return the columns that a model (its description by the gateway) reads; without `targets` for predicting.

    Raises
    ------
    InvalidError
        If the model takes another number of targets.
    """
    try:
        recipe = from_text(msgspec.json.encode(model["recipe"]))
    except (msgspec.DecodeError, InvalidError) as error:
        raise MalformedError(f"The gateway's recipe is of another version of keepfit: {error}.") from None
    classes: Any = recipe.classes or ()
    first = classes[0][0] if recipe.entry.multi_output and classes else next(iter(classes), None)
    if first is not None:
        label_type = "boolean" if isinstance(first, bool) else "integer" if isinstance(first, int) else "string"
    return ModelColumns(recipe, targets, weight, frozenset(ignored), label_type)


def check_targets(columns: ModelColumns) -> None:
    """Raise InvalidError unless the targets to learn from are those that the estimator takes."""
    entry, count = columns.recipe.entry, len(columns.targets)
    name = columns.recipe.name
    if not entry.takes_y and count:
        raise InvalidError(f"{name} takes no target: leave out --target.")
    if entry.takes_y and not count:
        raise InvalidError(f"{name} learns from a target: name its column with --target.")
    if count > 1 and not entry.multi_output:
        raise InvalidError(f"{name} takes one target, not {count}.")
    if columns.weight and not entry.takes_sample_weight:
        raise InvalidError(f"{name} takes no weights: leave out --weight.")


def _matrix_column(name: str, index: int) -> Column:
    return Column(name, "number", NumberOptions(), index, index, index, 1, None)


def _to_feature(text: str, spec: Column) -> Any:
    if spec.kind == "number":
        return _to_number(text, spec.name)
    if spec.kind == "timestamp":
        # Other text is a time in ISO 8601, which the gateway reads.
        if BASIC_DATE.fullmatch(text.strip()):
            day = text.strip()
            date = f"{day[:4]}-{day[4:6]}-{day[6:]}"
            raise ValueFaultError(
                spec.name, f"{_shown(text)} is a date and a number of seconds: write {date} or {day}.0"
            )
        seconds = _parse_number(text)
        return text.strip() if seconds is None else seconds
    if spec.kind == "boolean":
        value = BOOLEANS.get(text.strip().lower())
        if value is None:
            raise ValueFaultError(spec.name, f"{_shown(text)} is not true, false, 1 or 0")
        return value
    return text


def _finite(value: Any, name: str) -> Any:
    """Return a value that has a type; only Parquet can hold an infinite number, for which JSON has no form."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueFaultError(name, f"{value} is not a finite number")
    return value


def _to_number(text: str, name: str) -> float:
    number = _parse_number(text)
    if number is None:
        raise ValueFaultError(name, f"{_shown(text)} is not a number")
    return number


def _parse_number(text: str) -> float | None:
    try:
        # Python alone reads 1_000 as a number.
        number = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_integer(text: str) -> bool:
    """Return whether a text is an integer as Python and JSON write it: 01067 is a code, whose zero an integer loses."""
    return INTEGER.fullmatch(text) is not None


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}...")

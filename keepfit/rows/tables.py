"""Tables: rows that arrive as an array (npy) or as named columns, converted to :class:`Rows` without Python lists.

Owns the check of whole columns. Never holds a second copy of a table that already has the memory layout of
:class:`Rows`. Invariant: a table is rejected for the same values that are rejected in JSON. The target is among the
columns: the last column of an array, or else the columns `y` and `sample_weight`. Tables come from
:mod:`keepfit.rows.npy` and :mod:`keepfit.rows.arrow`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.features import Column as ColumnSpec
from keepfit.recipe.features import Kind
from keepfit.recipe.recipe import Label, Recipe
from keepfit.rows import times
from keepfit.rows.free_rows import rows_of_columns, shape_free
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import check_number_of_rows, check_texts, lacking_columns
from keepfit.rows.targets import check_weights, shape_target
from keepfit.rows.values import (
    FAULTS_MAX,
    INTEGER_END,
    LITTLE_ENDIAN,
    NUMBER_MAX,
    Floats,
    NonNumeric,
    describe_faults,
    is_of_kind,
    number_fault,
    shape_non_numeric,
    shape_numbers,
)

Array = NDArray[Any]

# Values checked and converted at a time: temporary arrays are never larger than this.
BLOCK_VALUES = 1 << 17
TARGET, WEIGHTS = "y", "sample_weight"


class Table(Protocol):
    """A request's rows before the recipe is known."""

    @property
    def width(self) -> int:
        """Number of columns as they were sent, target included."""

    def shape(self, recipe: Recipe, *, learning: bool, weighted: bool = True) -> Rows:
        """Check the table against `recipe`, as :func:`keepfit.rows.shaping.shape` does; may overwrite the table.

        Parameters
        ----------
        learning : whether the rows have a target (partial_fit, score) or not (predict)
        weighted : whether the operation takes a sample_weight

        Raises
        ------
        InvalidError
            With the row and column of each invalid value, at most 20.
        """


@dataclass(frozen=True, slots=True)
class Matrix:
    """A two-dimensional array: its memory, the offset of the values in it, and a view of them, shape (n, width)."""

    body: bytes | bytearray
    offset: int
    values: Array

    @property
    def width(self) -> int:
        """Number of columns as they were sent, target included."""
        return int(self.values.shape[1])

    def shape(self, recipe: Recipe, *, learning: bool, weighted: bool = True) -> Rows:
        """Check the array against `recipe`; the rows share its memory where it is float64 in row order already."""
        has_target = learning and recipe.entry.takes_y
        width = self.width - has_target
        names = _names(recipe, width)
        if recipe.takes_dicts and recipe.features is None:
            # NaN is the only number that does not equal itself.
            listed = [[None if x != x else x for x in row] for row in self.values[:, :width].tolist()]  # noqa: PLR0124
            free_target = _target(recipe, [self.values[:, -1]]) if has_target else None
            return Rows(len(listed), b"", [list(shape_free(listed))], free_target)
        check_number_of_rows(recipe.layout, len(self.values), self.width)
        # Copied first: compaction overwrites the target's column.
        y = self.values[:, -1].copy() if has_target else None
        numbers = self._numbers(width, names, recipe.layout.numbers if recipe.layout.checked_numbers else ())
        target = None if y is None else _target(recipe, [y])
        return Rows(len(self.values), cast("bytes", numbers), [], target)

    def _numbers(self, width: int, names: Sequence[str | int], specs: Sequence[ColumnSpec]) -> memoryview:
        """Return the first `width` columns as float64 bytes, row by row."""
        n, count = self.values.shape
        in_place = self.values.dtype == LITTLE_ENDIAN and self.values.flags.c_contiguous
        compacted = self.values.reshape(-1) if in_place else np.empty(n * width, LITTLE_ENDIAN)
        step = max(1, BLOCK_VALUES // count)
        for start in range(0, n, step):
            block = _to_float64(self.values[start : start + step, :width], names, start, specs=specs)
            # In place, a row only moves towards the front, over values that were read before.
            if not in_place or width < count:
                compacted[start * width : start * width + block.size] = block.ravel()
        if in_place:
            return memoryview(self.body)[self.offset : self.offset + n * width * 8]
        return compacted.view(np.uint8).data


@dataclass(frozen=True, slots=True)
class Column:
    """One named column: consecutive blocks of numbers or of datetime64, or a function that returns its labels.

    `is_index`: pandas had it as the index of a data frame. `missing` lists the rows without a value; what `blocks` hold
    for them is meaningless.
    """

    name: str
    blocks: Sequence[Array] = ()
    labels: Callable[[], list[Any]] | None = None
    missing: Sequence[int] = ()
    is_index: bool = False

    @property
    def has_times(self) -> bool:
        """Whether the values are datetime64."""
        return any(block.dtype.kind == "M" for block in self.blocks)

    def to_list(self) -> list[Any]:
        """Return the values as a list, with None for a missing one."""
        values = self.labels() if self.labels is not None else [v for block in self.blocks for v in block.tolist()]
        for row in self.missing:
            values[row] = None
        return values

    def check_type(self, kind: Kind, subject: str = "column") -> None:
        """Reject datetime64 where the recipe has a column of another kind.

        Raises
        ------
        InvalidError
            With the name of the column.
        """
        if self.has_times and kind != "timestamp":
            raise InvalidError(f"{subject} {self.name[:100]!r}: timestamps, where a {kind} is expected.")

    def check_present(self) -> None:
        """Reject missing values.

        Raises
        ------
        InvalidError
            With the row of each missing value, at most 20.
        """
        if self.missing:
            faults = [Fault("the value is missing", row, self.name) for row in self.missing[:FAULTS_MAX]]
            raise InvalidError(f"column {self.name[:100]!r}: the value is missing (row {faults[0].row}).", faults)


@dataclass(frozen=True, slots=True)
class NamedColumns:
    """`n` rows as named columns."""

    n: int
    columns: Sequence[Column]

    @property
    def width(self) -> int:
        """Number of columns as they were sent, target included."""
        return len(self.columns)

    def shape(self, recipe: Recipe, *, learning: bool, weighted: bool = True) -> Rows:
        """Check the columns against `recipe`: by name where it names features, else by position."""
        features = recipe.features or {}
        named = self._with_recipe_names(recipe)
        special = {c.name: c for c in named if c.name in (TARGET, WEIGHTS) and (learning or c.name not in features)}
        for name in special:
            if name in features:
                raise InvalidError(f"The recipe's feature {name!r} has the name of the table's {name}: send JSON.")
            if not learning:
                raise InvalidError(f"Rows to predict have no {name}: leave the column out.")
        by_name = {column.name: column for column in named if column.name not in special}
        columns = _in_recipe_order(recipe, by_name, self.n)
        for column in [*special.values(), *columns]:
            may_be_missing = recipe.takes_dicts if recipe.features is None else column.name in recipe.layout.nullable
            if column.name in special or not may_be_missing:
                column.check_present()
        check_number_of_rows(
            recipe.layout, self.n, (len(recipe.layout.numbers) if features else len(columns)) + len(special)
        )
        if WEIGHTS in special and not weighted:
            raise InvalidError("score takes no sample_weight: leave the column out.")
        numbers, non_numeric = self._shape_columns(recipe, columns)
        check_texts(recipe, non_numeric)
        if recipe.takes_dicts and features and (lacking := lacking_columns(recipe, by_name)):
            non_numeric.append([lacking] * self.n)
        target = self._target(recipe, special.get(TARGET)) if learning else None
        weights = None if WEIGHTS not in special else self._weights(recipe, special[WEIGHTS])
        return Rows(self.n, numbers, non_numeric, target, weights)

    def _with_recipe_names(self, recipe: Recipe) -> list[Column]:
        """Return the columns under the recipe's names; the index of a data frame only if the recipe names it.

        Raises
        ------
        InvalidError
            If two columns have one name, in two Unicode forms.
        """
        renamed = [replace(column, name=recipe.known_name(column.name)) for column in self.columns]
        named = [column for column in renamed if not column.is_index or column.name in (recipe.features or ())]
        if len({column.name for column in named}) < len(named):
            raise InvalidError("Two columns of the table have the same name.")
        return named

    def _shape_columns(self, recipe: Recipe, columns: Sequence[Column]) -> tuple[Any, list[list[NonNumeric]]]:
        """Return number columns as bytes, and category and text columns; or the texts of free rows."""
        if recipe.takes_dicts and recipe.features is None:
            return b"", [self._free(columns)]
        layout = recipe.layout
        for spec in layout.columns:
            columns[spec.row_index].check_type(spec.kind)
        numbers = self._numbers(columns, layout.numbers if recipe.features else [None] * len(columns))
        return numbers, [shape_non_numeric(columns[spec.row_index].to_list(), spec) for spec in layout.non_numeric]

    def _free(self, columns: Sequence[Column]) -> list[NonNumeric]:
        """Return the texts of free rows."""
        for column in columns:
            column.check_type("number")
        return list(shape_free(rows_of_columns([(column.name, column.to_list()) for column in columns], self.n)))

    def _numbers(self, columns: Sequence[Column], specs: Sequence[ColumnSpec | None]) -> memoryview:
        """Return the number columns as float64 bytes, row by row, with NaN for missing values."""
        matrix = np.empty((self.n, len(specs)), LITTLE_ENDIAN)
        for position, spec in enumerate(specs):
            column = columns[position if spec is None else spec.row_index]
            for start, values in _float_blocks(column, "column", spec):
                matrix[start : start + len(values), position] = values
            if column.labels is None:
                matrix[list(column.missing), position] = np.nan
        return matrix.reshape(-1).view(np.uint8).data

    def _target(self, recipe: Recipe, y: Column | None) -> bytes | list[Label] | None:
        if y is None:
            if recipe.entry.takes_y:
                raise InvalidError("The table has no column 'y', which holds the target.")
            return None
        if y.has_times:
            y.check_type("number", "target")
        if y.labels is not None or not recipe.entry.takes_y:
            return shape_target(recipe, y.to_list(), self.n)
        return _target(recipe, y.blocks)

    def _weights(self, recipe: Recipe, column: Column) -> bytes:
        if not recipe.entry.takes_sample_weight:
            raise InvalidError(f"{recipe.name} takes no sample_weight.")
        values = np.concatenate([values for _, values in _float_blocks(column, "weights")])
        return check_weights(values, values.data)


def _names(recipe: Recipe, width: int) -> Sequence[str | int]:
    """Return the names of an array's columns, for error messages.

    Raises
    ------
    InvalidError
        If the recipe does not match an array of `width` columns for X.
    """
    if recipe.features is None:
        if width < 1:
            raise InvalidError("The array has one column, which is y: X must have at least one column before it.")
        return range(width)
    if recipe.layout.non_numeric:
        column = recipe.layout.non_numeric[0]
        raise InvalidError(
            f"column {column.name!r} is a {column.kind}, which an array cannot hold: send Arrow or JSON."
        )
    if width != len(recipe.features):
        raise InvalidError(f"The array has {width} columns for X where the recipe names {len(recipe.features)}.")
    return list(recipe.features)


def _in_recipe_order(recipe: Recipe, by_name: dict[str, Column], n: int) -> list[Column]:
    """Return the columns in the recipe's order, with an empty one for each absent nullable column.

    Raises
    ------
    InvalidError
        With each column that is absent or unknown, at most 20.
    """
    if recipe.features is None:
        if not by_name:
            raise InvalidError("The table has no columns for X.")
        return list(by_name.values())
    absent = [name for name in recipe.features if name not in by_name]
    faults = [Fault("the column is missing", None, name) for name in absent if name not in recipe.layout.nullable]
    unknown = [name[:100] for name in by_name if name not in recipe.features]
    faults += [Fault("the recipe has no such column", None, name) for name in unknown]
    if faults:
        raise InvalidError(f"column {faults[0].column!r}: {faults[0].detail}.", faults[:FAULTS_MAX])
    empty = {name: Column(name, labels=lambda: [None] * n) for name in absent}
    return [by_name.get(name) or empty[name] for name in recipe.features]


def _float_blocks(column: Column, subject: str, spec: ColumnSpec | None = None) -> Iterator[tuple[int, Floats]]:
    """Yield a column's values as float64, block by block, each with the number of its first row."""
    column.check_type("number" if spec is None else spec.kind, subject)
    if column.labels is not None:
        yield 0, shape_numbers(column.to_list(), column.name, subject, spec)
        return
    first, specs = 0, () if spec is None else (spec,)
    for block in column.blocks:
        for start in range(0, len(block), BLOCK_VALUES):
            values = block[start : start + BLOCK_VALUES, None]
            yield first + start, _to_float64(values, [column.name], first + start, subject, specs)[:, 0]
        first += len(block)


def _to_float64(
    block: Array, names: Sequence[str | int], first: int, subject: str = "column", specs: Sequence[ColumnSpec] = ()
) -> Floats:
    """Check numbers of shape (n, width) and return them as float64.

    `first` is the number of the block's first row, for error messages.

    Raises
    ------
    InvalidError
        With the row and column of each invalid value, at most 20.
    """
    # A long double may exceed the range of a double: it becomes infinite, and is rejected as infinite.
    with np.errstate(over="ignore", invalid="ignore"):
        is_time = block.dtype.kind == "M"
        values = times.seconds_of_times(block) if is_time else block.astype(LITTLE_ENDIAN, copy=False)
    valid = np.abs(values) <= NUMBER_MAX
    if block.dtype.kind in "iu":
        valid = (block < INTEGER_END) & (block > -INTEGER_END)
    of_kinds = [column for column, spec in enumerate(specs) if spec.kind != "number"]
    nullable = [column for column, spec in enumerate(specs) if spec.nullable]
    for column in of_kinds:
        is_boolean_time = block.dtype.kind == "b" and specs[column].kind == "timestamp"
        valid[:, column] &= False if is_boolean_time else is_of_kind(values[:, column], specs[column].kind)
    if nullable:
        valid[:, nullable] |= np.isnan(values[:, nullable])
    if not valid.all():
        # Messages show the double of a float: a long double has no Python number.
        originals = block if block.dtype.kind in "biu" else values
        kinds = [spec.kind for spec in specs] or ["number"] * len(names)
        faults = [
            Fault(number_fault(originals[row, column].item(), kinds[column]) or "", first + int(row), names[column])
            for row, column in np.argwhere(~valid)[:FAULTS_MAX]
        ]
        raise InvalidError(describe_faults(faults, subject), faults)
    return values


def _target(recipe: Recipe, blocks: Sequence[Array]) -> bytes | list[Label] | None:
    """Check numbers as the target and return it.

    For a classifier, whole numbers and booleans are labels; 0 and 1 are of the type of the recipe's classes.
    """
    if recipe.entry.multi_output:
        raise InvalidError(f"{recipe.name} learns several values of y for each row: send JSON, with y a list of lists.")
    if recipe.entry.target == "numbers":
        values_by_block = _float_blocks(Column(TARGET, blocks), "target")
        return b"".join([values.astype(LITTLE_ENDIAN, copy=False).tobytes() for _, values in values_by_block])
    labels = [value for block in blocks for value in block.tolist()]
    if any(block.dtype.kind == "f" for block in blocks):
        labels = [int(label) if float(label).is_integer() else float(label) for label in labels]
    type_of_classes = type(recipe.classes[0]) if recipe.classes else None
    if type_of_classes is bool:
        labels = [bool(label) if label in (0, 1) else label for label in labels]
    if type_of_classes is int:
        labels = [int(label) if type(label) is bool else label for label in labels]
    return shape_target(recipe, labels, len(labels))

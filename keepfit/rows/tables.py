"""Tables: rows that come as arrays (npy) or as named columns, and become :class:`Rows` without a detour over lists.

Owns the form of an npy body and the check of whole columns. Never holds a second copy of a table that already is what
:class:`Rows` keeps. Invariant: a table is refused for what the same values would be refused for in JSON. The target
comes among the columns: it is the last one of an array, else the columns `y` and `sample_weight`.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from keepfit.errors import Fault, InvalidError, MalformedError
from keepfit.recipe.features import Column as Form
from keepfit.recipe.recipe import Label, Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import check_number_of_rows
from keepfit.rows.targets import check_weights, shape_target
from keepfit.rows.values import (
    FAULTS_MAX,
    INTEGER_END,
    LITTLE_ENDIAN,
    NUMBER_MAX,
    Floats,
    is_time,
    number_fault,
    shape_numbers,
    shape_words,
    summary,
)

Array = NDArray[Any]

HEADER_BYTES_MAX = 64 * 1024
# What is checked and converted in one go: temporary arrays are no larger than this many values.
BLOCK_VALUES = 1 << 17
TARGET, WEIGHTS = "y", "sample_weight"


class Table(Protocol):
    """A request's rows before the recipe is known."""

    @property
    def width(self) -> int:
        """Columns as they came, the target among them."""

    def shape(self, recipe: Recipe, *, learning: bool, weighted: bool = True) -> Rows:
        """Check the table against `recipe`, as :func:`keepfit.rows.shaping.shape` does; the table may be used up by it.

        `weighted` tells whether the call takes a sample_weight.
        """


@dataclass(frozen=True, slots=True)
class Matrix:
    """A two-dimensional array: its memory, where in it the values begin, and the view of them, shape (n, width)."""

    body: bytearray
    offset: int
    values: Array

    @property
    def width(self) -> int:
        """Columns as they came, the target among them."""
        return int(self.values.shape[1])

    def shape(self, recipe: Recipe, *, learning: bool, weighted: bool = True) -> Rows:
        """Check the array against `recipe`; where it is float64 already, its own memory becomes the rows'."""
        targeted = learning and recipe.entry.takes_y
        width = self.width - targeted
        names = _names(recipe, width)
        check_number_of_rows(recipe.layout, len(self.values))
        # Copied before its column is closed up.
        y = self.values[:, -1].copy() if targeted else None
        numbers = self._numbers(width, names, recipe.layout.numbers if recipe.layout.odd else ())
        target = None if y is None else _target(recipe, [y])
        return Rows(len(self.values), cast("bytes", numbers), [], target)

    def _numbers(self, width: int, names: Sequence[str | int], forms: Sequence[Form]) -> memoryview:
        n, count = self.values.shape
        in_place = self.values.dtype == LITTLE_ENDIAN and self.values.flags.c_contiguous
        closed = self.values.reshape(-1) if in_place else np.empty(n * width, LITTLE_ENDIAN)
        step = max(1, BLOCK_VALUES // count)
        for start in range(0, n, step):
            block = _converted(self.values[start : start + step, :width], names, start, forms=forms)
            # Rows only move towards the front, over what was read before.
            if not in_place or width < count:
                closed[start * width : start * width + block.size] = block.ravel()
        if in_place:
            return memoryview(self.body)[self.offset : self.offset + n * width * 8]
        return closed.view(np.uint8).data


@dataclass(frozen=True, slots=True)
class Column:
    """One named column: numbers as arrays one after another, or else a function that gives its labels.

    `missing` are the rows without a value; their numbers mean nothing.
    """

    name: str
    blocks: Sequence[Array] = ()
    labels: Callable[[], list[Any]] | None = None
    missing: Sequence[int] = ()

    def listed(self) -> list[Any]:
        """Values as a list, None where there is none."""
        values = self.labels() if self.labels is not None else [v for block in self.blocks for v in block.tolist()]
        for row in self.missing:
            values[row] = None
        return values

    def check_present(self) -> None:
        """Refuse missing values."""
        if self.missing:
            faults = [Fault("the value is missing", row, self.name) for row in self.missing[:FAULTS_MAX]]
            raise InvalidError(f"column {self.name[:100]!r}: the value is missing (row {faults[0].row}).", faults)


@dataclass(frozen=True, slots=True)
class Named:
    """`n` rows as columns that have names."""

    n: int
    columns: Sequence[Column]

    @property
    def width(self) -> int:
        """Columns as they came, the target among them."""
        return len(self.columns)

    def shape(self, recipe: Recipe, *, learning: bool, weighted: bool = True) -> Rows:
        """Check the columns against `recipe`, by name where it names features, else in order."""
        own = recipe.features or {}
        special = {c.name: c for c in self.columns if c.name in (TARGET, WEIGHTS) and (learning or c.name not in own)}
        for name in special:
            if name in own:
                raise InvalidError(f"The recipe's feature {name!r} has the name of the table's {name}: send JSON.")
            if not learning:
                raise InvalidError(f"Rows to predict come without {name}: leave the column out.")
        found = {column.name: column for column in self.columns if column.name not in special}
        columns = _in_order(recipe, found, self.n)
        for column in [*special.values(), *columns]:
            if column.name in special or column.name not in recipe.layout.optional:
                column.check_present()
        check_number_of_rows(recipe.layout, self.n)
        if WEIGHTS in special and not weighted:
            raise InvalidError("score takes no sample_weight: leave the column out.")
        forms: Sequence[Form | None] = recipe.layout.numbers if own else [None] * len(columns)
        matrix = np.empty((self.n, len(forms)), LITTLE_ENDIAN)
        for position, form in enumerate(forms):
            column = columns[position if form is None else form.index]
            for start, values in _floats(column, "column", form):
                matrix[start : start + len(values), position] = values
            if column.labels is None:
                matrix[list(column.missing), position] = np.nan
        words = [shape_words(columns[form.index].listed(), form) for form in recipe.layout.words]
        target = self._target(recipe, special.get(TARGET)) if learning else None
        weights = None if WEIGHTS not in special else self._weights(recipe, special[WEIGHTS])
        return Rows(self.n, cast("bytes", matrix.reshape(-1).view(np.uint8).data), words, target, weights)

    def _target(self, recipe: Recipe, y: Column | None) -> bytes | list[Label] | None:
        if y is None:
            if recipe.entry.takes_y:
                raise InvalidError("The table has no column 'y', which holds the target.")
            return None
        if y.labels is not None or not recipe.entry.takes_y:
            return shape_target(recipe, y.listed(), self.n)
        return _target(recipe, y.blocks)

    def _weights(self, recipe: Recipe, column: Column) -> bytes:
        if not recipe.entry.takes_sample_weight:
            raise InvalidError(f"{recipe.name} takes no sample_weight.")
        values = np.concatenate([values for _, values in _floats(column, "weights")])
        return check_weights(values, values.data)


def read_npy(body: bytearray) -> Table:
    """Read an npy file (format 1.0 or 2.0 of NumPy Enhancement Proposal 1) without copying it.

    Raises
    ------
    MalformedError
        If it is none, or its data are not as long as its header says.
    InvalidError
        If its values are no numbers, or it has no rows.
    """
    head = io.BytesIO(memoryview(body)[:HEADER_BYTES_MAX])
    try:
        version = npy.read_magic(head)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, by_columns, dtype = read(head)
    except KeyError:
        raise MalformedError(f"The npy format is {version[0]}.{version[1]}; send 1.0 or 2.0.") from None
    # The header is a Python literal: damaged, it makes the parser fail in any way that parsers fail.
    except Exception as error:  # noqa: BLE001
        raise MalformedError(f"The body is no npy file: {str(error)[:200]}.") from None
    _check_dtype(dtype)
    count = 1
    for length in shape:
        count *= length
    if min(shape, default=1) < 0:
        raise MalformedError("The npy header has a negative length.")
    offset, size = head.tell(), count * dtype.itemsize
    if len(body) - offset != size:
        where = "before" if len(body) - offset < size else "after"
        raise MalformedError(f"The header tells of {size} bytes of data, and the body ends {where} their end.")
    if count == 0:
        raise InvalidError("X must have at least one row and one column.")
    values = np.frombuffer(body, dtype, count, offset)
    if dtype.names is not None:
        if len(shape) != 1:
            raise InvalidError("An array with named fields must have one dimension: a row each.")
        return Named(count, [Column(name, [values[name]]) for name in dtype.names])
    if len(shape) != 2:
        raise InvalidError(
            f"The array has {len(shape)} dimensions; send two, rows by columns: a single row is x.reshape(1, -1)."
        )
    return Matrix(body, offset, values.reshape(shape, order="F" if by_columns else "C"))


def _check_dtype(dtype: np.dtype[Any]) -> None:
    for part in [dtype] if dtype.names is None else [dtype[name] for name in dtype.names]:
        if part.kind not in "biuf" or part.shape:
            raise InvalidError(
                f"The dtype {str(part)[:80]} holds no plain numbers: send bool, int, uint or float, such as "
                "x.astype(numpy.float64); text goes into an Arrow stream or JSON."
            )


def _names(recipe: Recipe, width: int) -> Sequence[str | int]:
    """Names of an array's columns, for messages, if the recipe can be served by an array of that width."""
    if recipe.features is None:
        if width < 1:
            raise InvalidError("The array has one column, which is y: X must have at least one more before it.")
        return range(width)
    if recipe.layout.words:
        word = recipe.layout.words[0]
        raise InvalidError(
            f"column {word.name!r} is a {word.kind}, which has no place in an array: send Arrow or JSON."
        )
    if width != len(recipe.features):
        raise InvalidError(f"The array has {width} columns for X where the recipe names {len(recipe.features)}.")
    return list(recipe.features)


def _in_order(recipe: Recipe, found: dict[str, Column], n: int) -> list[Column]:
    """Columns in the recipe's order; one of which all values may be missing need not be there."""
    if recipe.features is None:
        if not found:
            raise InvalidError("The table has no columns for X.")
        return list(found.values())
    absent = [name for name in recipe.features if name not in found]
    faults = [Fault("the column is missing", None, name) for name in absent if name not in recipe.layout.optional]
    unknown = [name[:100] for name in found if name not in recipe.features]
    faults += [Fault("the recipe has no such column", None, name) for name in unknown]
    if faults:
        raise InvalidError(f"column {faults[0].column!r}: {faults[0].detail}.", faults[:FAULTS_MAX])
    nothing = {name: Column(name, labels=lambda: [None] * n) for name in absent}
    return [found.get(name) or nothing[name] for name in recipe.features]


def _floats(column: Column, what: str, form: Form | None = None) -> Iterator[tuple[int, Floats]]:
    """Give a column's values as float64, in parts, each with the row where it begins."""
    if column.labels is not None:
        yield 0, shape_numbers(column.listed(), column.name, what, form)
        return
    first, forms = 0, () if form is None else (form,)
    for block in column.blocks:
        for start in range(0, len(block), BLOCK_VALUES):
            part = block[start : start + BLOCK_VALUES, None]
            yield first + start, _converted(part, [column.name], first + start, what, forms)[:, 0]
        first += len(block)


def _converted(
    block: Array, names: Sequence[str | int], first: int, what: str = "column", forms: Sequence[Form] = ()
) -> Floats:
    """Numbers of shape (n, width) as float64; `first` is the row where the block begins, for messages."""
    # A long double may be too large for a double: it becomes an infinity, and is refused as one.
    with np.errstate(over="ignore", invalid="ignore"):
        values = block.astype(LITTLE_ENDIAN, copy=False)
    good = np.abs(values) <= NUMBER_MAX
    if block.dtype.kind in "iu":
        good = (block < INTEGER_END) & (block > -INTEGER_END)
    times = [column for column, form in enumerate(forms) if form.kind == "timestamp"]
    gaps = [column for column, form in enumerate(forms) if form.nullable]
    if times:
        good[:, times] &= is_time(values[:, times])
    if gaps:
        good[:, gaps] |= np.isnan(values[:, gaps])
    if not good.all():
        # Of a float the double is shown: a long double has no Python number.
        shown = values if block.dtype.kind == "f" else block
        kinds = [form.kind for form in forms] or ["number"] * len(names)
        faults = [
            Fault(number_fault(shown[row, column].item(), kinds[column]) or "", first + int(row), names[column])
            for row, column in np.argwhere(~good)[:FAULTS_MAX]
        ]
        raise InvalidError(summary(faults, what), faults)
    return values


def _target(recipe: Recipe, blocks: Sequence[Array]) -> bytes | list[Label] | None:
    """Numbers as the target; for a classifier whole numbers are labels, and 0 and 1 are where those are booleans."""
    if recipe.entry.many:
        raise InvalidError(f"{recipe.name} learns several values of y for each row: send JSON, with y a list of lists.")
    if recipe.entry.target == "numbers":
        parts = _floats(Column(TARGET, blocks), "target")
        return b"".join([values.astype(LITTLE_ENDIAN, copy=False).tobytes() for _, values in parts])
    labels = [value for block in blocks for value in block.tolist()]
    if any(block.dtype.kind in "bf" for block in blocks):
        labels = [int(label) if float(label).is_integer() else float(label) for label in labels]
    if recipe.classes and isinstance(recipe.classes[0], bool):
        labels = [bool(label) if label in (0, 1) else label for label in labels]
    return shape_target(recipe, labels, len(labels))

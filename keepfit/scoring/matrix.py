"""The matrix of an estimator: scaled numbers, encoded categories, and indicators of missing values.

Owns how the values of rows become the numbers of the matrix, for bundles and scorers alike. Never learns, and never
reads text: :mod:`keepfit.model.columns` writes the columns of words. Invariant: the same columns and rows give the same
matrix, bit for bit, in each process. Rows come in as :class:`keepfit.rows.rows.Rows`; the positions of the columns are
those of :class:`keepfit.recipe.features.Layout`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mmh3
import msgspec
import numpy as np
from numpy.typing import NDArray

from keepfit.recipe.features import Column, Layout
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.values import Floats, NonNumeric
from keepfit.scoring import category_codes, timestamps

# Takes a scaler and a matrix, which it may overwrite; returns the scaled matrix.
Scale = Callable[[Any, Floats], Floats]


class LearnedColumns(Protocol):
    """What columns have learned, as far as it becomes numbers.

    `labels` has a label list for each category column, none where categories are hashed. `mean_values` has what
    replaces a missing number, for the columns `with_mean` of the layout; None if there are none.
    """

    @property
    def scaler(self) -> Any:
        """The scaler of the number columns, or None."""

    @property
    def labels(self) -> Sequence[category_codes.Known]:
        """The label lists."""

    @property
    def mean_values(self) -> Floats | None:
        """The means."""

    @property
    def rule(self) -> int:
        """The rule of the codes."""

    @property
    def room(self) -> int:
        """The size that labels of all columns may still have."""


def build(columns: LearnedColumns, recipe: Recipe, rows: Rows, scale: Scale) -> Floats:
    """Return the matrix of `rows`, shape (n, width), a new array; zeros where the columns of words are."""
    layout = recipe.layout
    if layout.numbers_only:
        numbers = rows.number_matrix()
        return numbers if columns.scaler is None else scale(columns.scaler, numbers)
    matrix = np.zeros((rows.n, layout.width))
    if layout.numbers:
        numbers, missing = imputed(columns, layout, rows)
        if missing is not None and len(layout.indicators):
            matrix[:, layout.indicators] = missing[:, layout.indicator_sources]
        matrix[:, layout.number_places] = numbers if columns.scaler is None else scale(columns.scaler, numbers)
    labels = iter(columns.labels)
    for column in layout.non_numeric:
        if column.kind == "category":
            values = rows.categories[column.rows_index]
            if recipe.encoding == "hash":
                _write_hashes(matrix[:, layout.hash_start :], column, values, columns.rule)
            else:
                _write_codes(matrix, column, values, next(labels), columns, recipe.encoding == "onehot")
    return matrix


def imputed(columns: LearnedColumns, layout: Layout, rows: Rows) -> tuple[Floats, NDArray[np.bool_] | None]:
    """Return the numbers after expansion with missing ones imputed, and which were missing (None if none can be).

    Both have the shape (n, len(layout.number_places)).
    """
    numbers = expand_timestamps(layout, rows.number_matrix())
    if not layout.has_nullable_numbers:
        return numbers, None
    missing = np.isnan(numbers)
    means, learned = np.zeros(numbers.shape[1]), columns.mean_values
    if learned is not None:
        means[layout.with_mean] = learned
    np.copyto(numbers, means, where=missing)
    return numbers, missing


def expand_timestamps(layout: Layout, numbers: Floats) -> Floats:
    """Return number columns, shape (n, k), with each timestamp that a recipe expands replaced by its parts."""
    if not layout.has_expanded:
        return numbers
    wide = np.empty((numbers.shape[0], len(layout.number_places)))
    parts = [(column.rows_index, part) for column in layout.numbers for part in column.time_parts]
    for position, (wire, part) in enumerate(parts):
        wide[:, position] = timestamps.extract_part(numbers[:, wire], part)
    return wide


def _write_codes(
    matrix: Floats,
    column: Column,
    values: Sequence[NonNumeric],
    known: category_codes.Known,
    columns: LearnedColumns,
    is_onehot: bool,
) -> None:
    if is_onehot:
        codes = category_codes.onehot_codes(known, column, values, columns.rule, columns.room)
        _write_one_hot(matrix[:, column.start : column.start + column.width], codes)
    else:
        matrix[:, column.start] = category_codes.ordinal_codes(known, values, columns.rule)


def _write_one_hot(block: Floats, codes: Sequence[int]) -> None:
    """Write codes as rows with a single 1; unknown codes and codes beyond the block's width as zeros."""
    width = block.shape[1]
    for row, code in enumerate(codes):
        if 0 <= code < width:
            block[row, code] = 1.0


def _write_hashes(block: Floats, column: Column, labels: Sequence[NonNumeric], rule: int) -> None:
    """Hash the text of each label (Weinberger et al., ICML 2009).

    Gives the numbers of scikit-learn's FeatureHasher for that text.
    """
    width = block.shape[1]
    hashed_text = _plain_pair if rule == category_codes.RULE_TEXT else _json_pair
    for row, label in enumerate(labels):
        if label is None and column.options.missing != "indicator":
            continue
        code = mmh3.hash(hashed_text(column.name, label))
        block[row, abs(code) % width] += 1.0 if code >= 0 else -1.0


def _json_pair(name: str, label: NonNumeric) -> bytes:
    """Return column and label as JSON, in which no two of them have the same text.

    >>> _json_pair("size", "42"), _json_pair("size", 42), _json_pair("size", None)
    (b'["size","42"]', b'["size",42]', b'["size",null]')
    """
    return msgspec.json.encode((name, label))


def _plain_pair(name: str, label: NonNumeric) -> str:
    """Return the text of rule 1, in which a text and a number are one: "column=label", or the name alone."""
    return name if label is None else f"{name}={label}"

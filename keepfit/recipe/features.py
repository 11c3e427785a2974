"""Feature columns of a recipe: their kinds, their options, and the positions of their values.

Owns the form of `features` and the layout that follows from it: of a row in a request, of
:class:`keepfit.rows.rows.Rows`, and of the estimator's matrix. Never reads a value and never imports scikit-learn.
Invariants: one recipe has one layout; an option that a kind does not have is refused when the recipe is posted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from keepfit.errors import InvalidError

Kind = Literal["number", "category", "text", "timestamp"]
TimePart = Literal["hour", "weekday", "month", "seconds"]
Encoding = Literal["ordinal", "onehot", "hash"]
Places = NDArray[np.intp]

COLUMNS_MAX = 10_000
MATRIX_WIDTH_MAX = 1_000_000
# Per request. As float64 they take 1 GiB.
MATRIX_VALUES_MAX = 2**27
NAME_LENGTH_MAX = 256
# scikit-learn takes 0.2 s for all n-grams up to this length of the longest text that is accepted.
NGRAM_MAX = 8


class _Options(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type"):
    """Options of one column."""


class Number(_Options, frozen=True, tag="number"):
    """A number."""

    missing: Literal["mean", "zero", "indicator"] | None = None


class Timestamp(_Options, frozen=True, tag="timestamp"):
    """Seconds since 1970-01-01T00:00:00Z, as a number, or expanded to the parts of that UTC time named in `expand`."""

    missing: Literal["mean", "zero", "indicator"] | None = None
    expand: tuple[TimePart, ...] = ()


class Category(_Options, frozen=True, tag="category"):
    """A label."""

    missing: Literal["zero", "indicator"] | None = None


class Text(_Options, frozen=True, tag="text"):
    """Text whose words scikit-learn's HashingVectorizer counts. All options except `missing` are its parameters."""

    missing: Literal["zero", "indicator"] | None = None
    n_features: int = 1024
    analyzer: Literal["word", "char", "char_wb"] = "word"
    ngram_range: tuple[int, int] = (1, 1)
    lowercase: bool = True
    alternate_sign: bool = True
    norm: Literal["l1", "l2"] | None = "l2"


Options = Number | Timestamp | Category | Text
UNEXPANDED: tuple[TimePart, ...] = ("seconds",)
# A kind alone means that kind without options.
Feature = Kind | Options
KINDS: Mapping[Kind, Options] = {
    "number": Number(),
    "category": Category(),
    "text": Text(),
    "timestamp": Timestamp(),
}


def options_of(feature: Feature) -> Options:
    """Return the options of a column; where only the kind is given, those of the kind."""
    return KINDS[feature] if isinstance(feature, str) else feature


def canonical_feature(feature: Feature) -> Feature:
    """Return the form of a column in which a recipe is stored: the kind alone where no option is set.

    >>> canonical_feature(Number()), canonical_feature(Number(missing="mean"))
    ('number', Number(missing='mean'))
    """
    if isinstance(feature, str):
        return feature
    return kind_of(feature) if feature == KINDS[kind_of(feature)] else feature


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a recipe.

    `row_index` is its position in a row of a request, `rows_index` that among the number columns or the non-numeric
    columns of :class:`keepfit.rows.rows.Rows`. In the matrix it begins at `start` and takes `width` columns;
    `indicator` is the column that marks its missing values, None without one.
    """

    name: str
    kind: Kind
    options: Options
    row_index: int
    rows_index: int
    start: int
    width: int
    indicator: int | None

    @property
    def nullable(self) -> bool:
        """Whether a value may be missing."""
        return self.options.missing is not None

    @property
    def time_parts(self) -> tuple[TimePart, ...]:
        """The parts to which a number column is expanded; `seconds` is the number itself."""
        return (isinstance(self.options, Timestamp) and self.options.expand) or UNEXPANDED


@dataclass(frozen=True, slots=True)
class Layout:
    """The positions of the values of a recipe's columns; empty without `features`.

    `numbers` (with timestamps) and `non_numeric` (categories and texts) are the columns of
    :class:`keepfit.rows.rows.Rows`. `checked_numbers` are the numbers that may be missing or that have a smaller range.
    `nullable` are the names of all columns that may be missing. `numbers_only` means that all columns are numbers and
    none may be missing, so that the matrix equals the rows. `has_expanded`: a timestamp is expanded.
    `has_nullable_numbers`: a number may be missing.
    The rest are columns of the matrix: `number_places` those of the numbers after expansion. Positions in that list are
    `with_mean`, the numbers with a running mean, and `indicator_sources`, the numbers whose missing values the columns
    `indicators` mark. Hashed categories begin at `hash_start`. `width` counts all columns.
    """

    columns: tuple[Column, ...]
    numbers: tuple[Column, ...]
    non_numeric: tuple[Column, ...]
    checked_numbers: tuple[Column, ...]
    nullable: frozenset[str]
    numbers_only: bool
    has_expanded: bool
    has_nullable_numbers: bool
    number_places: Places
    with_mean: Places
    indicator_sources: Places
    indicators: Places
    hash_start: int
    width: int

    @property
    def rows_max(self) -> int:
        """Number of rows that one request may have."""
        return MATRIX_VALUES_MAX // max(1, self.width)


# Cached: models of one recipe share it, and a worker does not compute it again for each bundle that it loads.
@lru_cache(64)
def layout(
    features: tuple[tuple[str, Feature], ...], encoding: Encoding, max_categories: int, n_features: int
) -> Layout:
    """Place the columns in the order of the recipe, each followed by its indicator, hashed categories at the end."""
    columns, start, positions = [], 0, {True: 0, False: 0}
    for index, (name, feature) in enumerate(features):
        options = options_of(feature)
        width = _width(options, encoding, max_categories)
        is_non_numeric = isinstance(options, Category | Text)
        has_indicator = options.missing == "indicator" and not isinstance(options, Category)
        column = Column(
            name,
            kind_of(options),
            options,
            index,
            positions[is_non_numeric],
            start,
            width,
            start + width if has_indicator else None,
        )
        columns.append(column)
        positions[is_non_numeric] += 1
        start += width + has_indicator
    numbers = tuple(column for column in columns if column.kind in ("number", "timestamp"))
    non_numeric = tuple(column for column in columns if column.kind in ("category", "text"))
    expanded = [(column, column.start + i) for column in numbers for i in range(len(column.time_parts))]
    with_mean = [i for i, (column, _) in enumerate(expanded) if column.options.missing in ("mean", "indicator")]
    # All parts of a column are missing together, so the first one is enough.
    first = [i for i, (column, place) in enumerate(expanded) if place == column.start and column.indicator is not None]
    has_hashed = encoding == "hash" and any(column.kind == "category" for column in columns)
    return Layout(
        tuple(columns),
        numbers,
        non_numeric,
        tuple(column for column in numbers if column.kind == "timestamp" or column.nullable),
        frozenset(column.name for column in columns if column.nullable),
        all(column.kind == "number" and not column.nullable for column in columns),
        any(column.time_parts != UNEXPANDED for column in numbers),
        any(column.nullable for column in numbers),
        np.array([place for _, place in expanded], np.intp),
        np.array(with_mean, np.intp),
        np.array(first, np.intp),
        np.array([column.indicator for column in numbers if column.indicator is not None], np.intp),
        start,
        start + (n_features if has_hashed else 0),
    )


def kind_of(options: Options) -> Kind:
    """Return the kind of a column."""
    kind: Kind = options.__struct_config__.tag  # type: ignore[assignment]
    return kind


def _width(options: Options, encoding: Encoding, max_categories: int) -> int:
    if isinstance(options, Text):
        return options.n_features
    if isinstance(options, Category):
        return {"ordinal": 1, "onehot": max_categories, "hash": 0}[encoding]
    return len(options.expand) or 1 if isinstance(options, Timestamp) else 1


def check(features: Mapping[str, Feature]) -> None:
    """Check the names and options of the columns.

    Raises
    ------
    InvalidError
        With the name of the column and what would be right.
    """
    if not 0 < len(features) <= COLUMNS_MAX:
        raise InvalidError(f"recipe: features must name between 1 and {COLUMNS_MAX} columns.")
    for name, feature in features.items():
        if not 0 < len(name) <= NAME_LENGTH_MAX or "\0" in name:
            raise InvalidError(f"recipe: the feature {name[:40]!r} has no usable name.")
        wrong = _fault(options_of(feature))
        if wrong is not None:
            raise InvalidError(f"recipe: the feature {name[:40]!r}: {wrong}.")


def _fault(options: Options) -> str | None:
    if isinstance(options, Timestamp) and len(set(options.expand)) < len(options.expand):
        return "expand names a part twice"
    if isinstance(options, Text):
        low, high = options.ngram_range
        if not 1 <= low <= high <= NGRAM_MAX:
            return f"ngram_range must be two numbers from 1 to {NGRAM_MAX}, in ascending order"
        if not 1 <= options.n_features <= MATRIX_WIDTH_MAX:
            return f"n_features must be between 1 and {MATRIX_WIDTH_MAX}"
    return None


def has_numbers(features: Mapping[str, Feature]) -> bool:
    """Whether a column is a number or a timestamp."""
    return any(isinstance(options_of(feature), Number | Timestamp) for feature in features.values())


def check_width(features: Mapping[str, Feature], encoding: Encoding, max_categories: int, n_features: int) -> None:
    """Raise InvalidError if categories and texts become too many columns."""
    options_non_numeric = [
        options for options in map(options_of, features.values()) if isinstance(options, Category | Text)
    ]
    is_hashed = encoding == "hash" and any(isinstance(options, Category) for options in options_non_numeric)
    width = sum(_width(options, encoding, max_categories) for options in options_non_numeric) + (
        n_features if is_hashed else 0
    )
    if width > MATRIX_WIDTH_MAX:
        how = encoding if any(isinstance(options, Category) for options in options_non_numeric) else "text"
        raise InvalidError(f"recipe: {how} makes {width} columns, more than {MATRIX_WIDTH_MAX}.")


def check_single_text(features: Mapping[str, Feature] | None, name: str) -> None:
    """Raise InvalidError unless the only column is a text; for the estimator `name`, which reads texts itself."""
    given = [options_of(feature) for feature in (features or {}).values()]
    if len(given) != 1 or not isinstance(given[0], Text):
        raise InvalidError(f'recipe: {name} takes text: features must name exactly one column, of type "text".')
    if canonical_feature(given[0]) != "text" and given[0] != Text(missing="zero"):
        raise InvalidError(f"recipe: {name} counts words itself: set the options of the text column in its params.")


def with_column_name(document: Any, message: str) -> str:
    """Return msgspec's `message` about a recipe with the name of the column, which msgspec leaves out."""
    reason = message.partition(" - at ")[0]
    for name, feature in _entries(document):
        try:
            msgspec.convert(feature, Feature)
        except msgspec.ValidationError as error:
            if str(error).partition(" - at ")[0] == reason:
                return message.replace("$.features[...]", f"$.features[{name[:40]!r}]")
    return message


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    features = document.get("features") if isinstance(document, dict) else None
    if isinstance(features, dict):
        yield from ((name, feature) for name, feature in features.items() if isinstance(name, str))

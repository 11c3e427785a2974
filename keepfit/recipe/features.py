"""Feature columns of a recipe: their kinds, their options, and where each one's values stand.

Owns the form of `features` and the layout that follows from it: of a request's row, of :class:`keepfit.rows.rows.Rows`,
and of the estimator's matrix. Never sees a value, and never imports scikit-learn. Invariant: one recipe has one layout;
an option that a kind does not take is refused when the recipe is posted.
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
Part = Literal["hour", "weekday", "month", "seconds"]
Encoding = Literal["ordinal", "onehot", "hash"]
Places = NDArray[np.intp]

COLUMNS_MAX = 10_000
MATRIX_WIDTH_MAX = 1_000_000
# Of one request: what a gigabyte holds.
MATRIX_VALUES_MAX = 2**27
NAME_LENGTH_MAX = 256
# n-grams of all lengths up to this take scikit-learn 0.2 s for the longest text there may be.
NGRAM_MAX = 8


class _Options(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type"):
    """Options of one column."""


class Number(_Options, frozen=True, tag="number"):
    """A number."""

    missing: Literal["mean", "zero", "indicator"] | None = None


class Timestamp(_Options, frozen=True, tag="timestamp"):
    """Seconds since 1970-01-01T00:00:00Z, as they are, or the parts of that time in UTC that `expand` names."""

    missing: Literal["mean", "zero", "indicator"] | None = None
    expand: tuple[Part, ...] = ()


class Category(_Options, frozen=True, tag="category"):
    """A label."""

    missing: Literal["zero", "indicator"] | None = None


class Text(_Options, frozen=True, tag="text"):
    """Words, counted by scikit-learn's HashingVectorizer; the options but `missing` are its parameters."""

    missing: Literal["zero", "indicator"] | None = None
    n_features: int = 1024
    analyzer: Literal["word", "char", "char_wb"] = "word"
    ngram_range: tuple[int, int] = (1, 1)
    lowercase: bool = True
    alternate_sign: bool = True
    norm: Literal["l1", "l2"] | None = "l2"


Options = Number | Timestamp | Category | Text
PLAIN: tuple[Part, ...] = ("seconds",)
# A kind alone stands for it with no option.
Feature = Kind | Options
KINDS: Mapping[Kind, Options] = {
    "number": Number(),
    "category": Category(),
    "text": Text(),
    "timestamp": Timestamp(),
}


def options_of(feature: Feature) -> Options:
    """Options of a column, where only its kind is given the kind's own."""
    return KINDS[feature] if isinstance(feature, str) else feature


def shortest(feature: Feature) -> Feature:
    """The one form of a column that a recipe is stored in.

    >>> shortest(Number()), shortest(Number(missing="mean"))
    ('number', Number(missing='mean'))
    """
    if isinstance(feature, str):
        return feature
    return kind_of(feature) if feature == KINDS[kind_of(feature)] else feature


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a recipe.

    `index` is its place in a row, `wire` that among the number or the word columns of :class:`keepfit.rows.rows.Rows`.
    In the matrix it begins at `start`, and an indicator of its missing values, if it has one, stands at `flag`.
    """

    name: str
    kind: Kind
    options: Options
    index: int
    wire: int
    start: int
    width: int
    flag: int | None

    @property
    def nullable(self) -> bool:
        """Whether a value may be missing."""
        return self.options.missing is not None

    @property
    def parts(self) -> tuple[Part, ...]:
        """What a number column becomes: `seconds` stands for the number as it is."""
        return (isinstance(self.options, Timestamp) and self.options.expand) or PLAIN


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the values of a recipe's columns stand; empty without `features`.

    `plain` tells that all columns are numbers, none of them missing, so that the matrix is the rows. `numbers` (which
    timestamps are too) and `words` (categories and texts) are the columns of :class:`keepfit.rows.rows.Rows`, `odd`
    those numbers of which not just any is right, or that may be missing. Of the matrix,
    `places` are the columns of the numbers after expansion; `averaged` says which of these have a running mean,
    `flagged` which tells the indicator at `flags` that a value was missing. `hashed` is where the hashed categories
    begin.
    """

    columns: tuple[Column, ...]
    numbers: tuple[Column, ...]
    words: tuple[Column, ...]
    odd: tuple[Column, ...]
    optional: frozenset[str]
    plain: bool
    expands: bool
    gaps: bool
    places: Places
    averaged: Places
    flagged: Places
    flags: Places
    hashed: int
    width: int

    @property
    def rows_max(self) -> int:
        """How many rows one request may have."""
        return MATRIX_VALUES_MAX // max(1, self.width)


# Models of one recipe share it, and it is not made again with each bundle that a worker loads.
@lru_cache(64)
def layout(
    features: tuple[tuple[str, Feature], ...], encoding: Encoding, max_categories: int, n_features: int
) -> Layout:
    """Lay columns out in the recipe's order, each in one piece, its indicator last; hashed categories at the end."""
    columns, start, wires = [], 0, {True: 0, False: 0}
    for index, (name, feature) in enumerate(features):
        options = options_of(feature)
        width = _width(options, encoding, max_categories)
        is_word = isinstance(options, Category | Text)
        flag = options.missing == "indicator" and not isinstance(options, Category)
        column = Column(
            name,
            kind_of(options),
            options,
            index,
            wires[is_word],
            start,
            width,
            start + width if flag else None,
        )
        columns.append(column)
        wires[is_word] += 1
        start += width + flag
    numbers = tuple(column for column in columns if column.kind in ("number", "timestamp"))
    words = tuple(column for column in columns if column.kind in ("category", "text"))
    expanded = [(column, column.start + i) for column in numbers for i in range(len(column.parts))]
    averaged = [i for i, (column, _) in enumerate(expanded) if column.options.missing in ("mean", "indicator")]
    # The first of a column's parts speaks for all: they are missing together.
    first = [i for i, (column, place) in enumerate(expanded) if place == column.start and column.flag is not None]
    has_hashed = encoding == "hash" and any(column.kind == "category" for column in columns)
    return Layout(
        tuple(columns),
        numbers,
        words,
        tuple(column for column in numbers if column.kind == "timestamp" or column.nullable),
        frozenset(column.name for column in columns if column.nullable),
        all(column.kind == "number" and not column.nullable for column in columns),
        any(column.parts != PLAIN for column in numbers),
        any(column.nullable for column in numbers),
        np.array([place for _, place in expanded], np.intp),
        np.array(averaged, np.intp),
        np.array(first, np.intp),
        np.array([column.flag for column in numbers if column.flag is not None], np.intp),
        start,
        start + (n_features if has_hashed else 0),
    )


def kind_of(options: Options) -> Kind:
    """Kind of a column."""
    kind: Kind = options.__struct_config__.tag  # type: ignore[assignment]
    return kind


def _width(options: Options, encoding: Encoding, max_categories: int) -> int:
    if isinstance(options, Text):
        return options.n_features
    if isinstance(options, Category):
        return {"ordinal": 1, "onehot": max_categories, "hash": 0}[encoding]
    return len(options.expand) or 1 if isinstance(options, Timestamp) else 1


def check(features: Mapping[str, Feature]) -> None:
    """Refuse columns that no row could have.

    Raises
    ------
    InvalidError
        With the column and what would be right.
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
            return f"ngram_range must be two numbers from 1 to {NGRAM_MAX}, the first not the greater one"
        if not 1 <= options.n_features <= MATRIX_WIDTH_MAX:
            return f"n_features must be between 1 and {MATRIX_WIDTH_MAX}"
    return None


def has_numbers(features: Mapping[str, Feature]) -> bool:
    """Whether a column is a number or a timestamp."""
    return any(isinstance(options_of(feature), Number | Timestamp) for feature in features.values())


def check_width(features: Mapping[str, Feature], encoding: Encoding, max_categories: int, n_features: int) -> None:
    """Refuse categories and texts that become too many columns."""
    words = [options for options in map(options_of, features.values()) if isinstance(options, Category | Text)]
    is_hashed = encoding == "hash" and any(isinstance(options, Category) for options in words)
    width = sum(_width(options, encoding, max_categories) for options in words) + (n_features if is_hashed else 0)
    if width > MATRIX_WIDTH_MAX:
        how = encoding if any(isinstance(options, Category) for options in words) else "text"
        raise InvalidError(f"recipe: {how} makes {width} columns, more than {MATRIX_WIDTH_MAX}.")


def check_alone(features: Mapping[str, Feature] | None, name: str) -> None:
    """Refuse other columns than a single text for an estimator, called `name`, that takes text as it is."""
    given = [options_of(feature) for feature in (features or {}).values()]
    if len(given) != 1 or not isinstance(given[0], Text):
        raise InvalidError(f'recipe: {name} takes text: features must name one column, and that of type "text".')
    if shortest(given[0]) != "text" and given[0] != Text(missing="zero"):
        raise InvalidError(f"recipe: {name} counts the words itself: options of the text column belong to its params.")


def where(document: Any, message: str) -> str:
    """Name the column in msgspec's `message` about a recipe's document, which only says that it is one of them."""
    said = message.partition(" - at ")[0]
    for name, feature in _entries(document):
        try:
            msgspec.convert(feature, Feature)
        except msgspec.ValidationError as error:
            if str(error).partition(" - at ")[0] == said:
                return message.replace("$.features[...]", f"$.features[{name[:40]!r}]")
    return message


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    features = document.get("features") if isinstance(document, dict) else None
    if isinstance(features, dict):
        yield from ((name, feature) for name, feature in features.items() if isinstance(name, str))

"""Feature columns of a recipe: their kinds, their options, and the positions of their values.

Owns the form of `features` and the layout that follows from it: of a row in a request, of
:class:`keepfit.rows.rows.Rows`, and of the estimator's matrix. Never reads a value and never imports scikit-learn.
Invariants: one recipe has one layout; an option that a kind does not have is refused when the recipe is posted.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from keepfit.errors import InvalidError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Titles name these types in the OpenAPI document.
Kind = Annotated[Literal["number", "category", "text", "timestamp", "boolean"], Meta(title="ColumnType")]
TimePart = Annotated[Literal["hour", "weekday", "month", "seconds"], Meta(title="TimePart")]
Encoding = Annotated[Literal["ordinal", "onehot", "hash"], Meta(title="Encoding")]

COLUMNS_MAX = 10_000
# Codes of a category column with the encoding `ordinal`, if it has no `max_categories`.
ORDINAL_CATEGORIES_MAX = 2**16
MATRIX_WIDTH_MAX = 1_000_000
# Per request. As float64 they take 1 GiB.
MATRIX_VALUES_MAX = 2**27
# Per request: characters of its texts, each counted for each length of n-gram. scikit-learn takes 0.5 to 2 µs for one.
NGRAMS_MAX = 2**23
NAME_LENGTH_MAX = 256
# scikit-learn takes 0.2 s for all n-grams up to this length of the longest text that is accepted.
NGRAM_MAX = 8


class _Options(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type"):
    """Options of one column."""


MISSING = "What a missing value becomes; null: a missing value is refused."
MissingNumber = Annotated[Literal["mean", "zero", "indicator"], Meta(title="MissingNumber", description=MISSING)]
MissingText = Annotated[Literal["zero", "indicator"], Meta(title="MissingText", description=MISSING)]


class NumberOptions(_Options, frozen=True, tag="number"):
    """A number."""

    missing: MissingNumber | None = None


class BooleanOptions(_Options, frozen=True, tag="boolean"):
    """True or false, as 1 or 0."""

    missing: MissingNumber | None = None


class TimestampOptions(_Options, frozen=True, tag="timestamp"):
    """A time: seconds since 1970-01-01T00:00:00Z or ISO 8601 text; `expand` names the parts of its UTC time to use."""

    missing: MissingNumber | None = None
    expand: Annotated[tuple[TimePart, ...], Meta(description="Parts of the time, one column of the matrix each.")] = ()


class CategoryOptions(_Options, frozen=True, tag="category"):
    """A label: a string or an integer."""

    missing: MissingText | None = None
    max_categories: (
        Annotated[
            int,
            Meta(
                description="Codes of this column, that of infrequent labels among them; null: those of the encoding."
            ),
        ]
        | None
    ) = None


class TextOptions(_Options, frozen=True, tag="text"):
    """Text whose words scikit-learn's HashingVectorizer counts. All options except `missing` are its parameters."""

    missing: MissingText | None = None
    n_features: Annotated[int, Meta(description="Columns of the matrix.")] = 1024
    analyzer: Annotated[Literal["word", "char", "char_wb"], Meta(title="Analyzer", description="What is counted.")] = (
        "word"
    )
    ngram_range: Annotated[tuple[int, int], Meta(description="Shortest and longest n-gram.")] = (1, 1)
    lowercase: Annotated[bool, Meta(description="Convert the text to lower case first.")] = True
    alternate_sign: Annotated[bool, Meta(description="Give the counts alternating signs.")] = True
    norm: Annotated[Literal["l1", "l2"], Meta(title="Norm", description="Norm of the counts of a text.")] | None = "l2"


Options = NumberOptions | TimestampOptions | BooleanOptions | CategoryOptions | TextOptions
UNEXPANDED: tuple[TimePart, ...] = ("seconds",)
# A kind alone means that kind without options.
Feature = Kind | Options
KINDS: Mapping[Kind, Options] = {
    "number": NumberOptions(),
    "category": CategoryOptions(),
    "text": TextOptions(),
    "timestamp": TimestampOptions(),
    "boolean": BooleanOptions(),
}
# Kinds whose values are numbers in :class:`keepfit.rows.rows.Rows`.
NUMERIC_KINDS: tuple[Kind, ...] = ("number", "timestamp", "boolean")


def options_of(feature: Feature) -> Options:
    """Return the options of a column; where only the kind is given, those of the kind."""
    return KINDS[feature] if isinstance(feature, str) else feature


def nullable(feature: Feature) -> Feature:
    """Return a column whose values may be missing."""
    options = options_of(feature)
    return options if options.missing is not None else msgspec.structs.replace(options, missing="zero")


def canonical_feature(feature: Feature) -> Feature:
    """Return the form of a column in which a recipe is stored: the kind alone where no option is set.

    >>> canonical_feature(NumberOptions()), canonical_feature(NumberOptions(missing="mean"))
    ('number', NumberOptions(missing='mean'))
    """
    if isinstance(feature, str):
        return feature
    return kind_of(feature) if feature == KINDS[kind_of(feature)] else feature


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a recipe.

    `row_index` is its position in a row of a request, `rows_index` that among the number columns or the non-numeric
    columns of :class:`keepfit.rows.rows.Rows`. In the matrix it begins at `start` and takes `width` columns;
    `indicator` is the column that marks its missing values, None without one. `categories_max` is the number of codes
    of a category column that has a label list, else 0.
    """

    name: str
    kind: Kind
    options: Options
    row_index: int
    rows_index: int
    start: int
    width: int
    indicator: int | None
    categories_max: int = 0

    @property
    def nullable(self) -> bool:
        """Whether a value may be missing."""
        return self.options.missing is not None

    @property
    def time_parts(self) -> tuple[TimePart, ...]:
        """The parts to which a number column is expanded; `seconds` is the number itself."""
        return (isinstance(self.options, TimestampOptions) and self.options.expand) or UNEXPANDED


@dataclass(frozen=True)
class Layout:
    """The positions of the values of a recipe's columns; empty without `features`.

    `numbers` (with timestamps and booleans) and `non_numeric` (categories and texts) are the columns of
    :class:`keepfit.rows.rows.Rows`. `checked_numbers` are the numbers that may be missing or that have a smaller range.
    `nullable` are the names of all columns that may be missing. `numbers_only` means that all columns are numbers and
    none may be missing, so that the matrix equals the rows. `has_expanded`: a timestamp is expanded.
    `has_nullable_numbers`: a number may be missing.
    In the matrix, hashed categories begin at `hash_start`, and `width` counts all columns.
    """

    columns: tuple[Column, ...]
    numbers: tuple[Column, ...]
    non_numeric: tuple[Column, ...]
    checked_numbers: tuple[Column, ...]
    nullable: frozenset[str]
    numbers_only: bool
    has_expanded: bool
    has_nullable_numbers: bool
    hash_start: int
    width: int
    _number_places: tuple[int, ...]
    _with_mean: tuple[int, ...]
    _indicator_sources: tuple[int, ...]
    _indicators: tuple[int, ...]

    @cached_property
    def number_places(self) -> "NDArray[np.intp]":
        """Columns of the matrix that are the numbers after expansion."""
        return _places(self._number_places)

    @cached_property
    def with_mean(self) -> "NDArray[np.intp]":
        """Positions in `number_places` of the numbers with a running mean."""
        return _places(self._with_mean)

    @cached_property
    def indicator_sources(self) -> "NDArray[np.intp]":
        """Positions in `number_places` of the numbers whose missing values `indicators` mark."""
        return _places(self._indicator_sources)

    @cached_property
    def indicators(self) -> "NDArray[np.intp]":
        """Columns of the matrix that mark missing values."""
        return _places(self._indicators)

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
        is_non_numeric = isinstance(options, CategoryOptions | TextOptions)
        has_indicator = options.missing == "indicator" and not isinstance(options, CategoryOptions)
        column = Column(
            name,
            kind_of(options),
            options,
            index,
            positions[is_non_numeric],
            start,
            width,
            start + width if has_indicator else None,
            _categories_max(options, encoding, max_categories),
        )
        columns.append(column)
        positions[is_non_numeric] += 1
        start += width + has_indicator
    numbers = tuple(column for column in columns if column.kind in NUMERIC_KINDS)
    non_numeric = tuple(column for column in columns if column.kind not in NUMERIC_KINDS)
    expanded = [(column, column.start + i) for column in numbers for i in range(len(column.time_parts))]
    with_mean = [i for i, (column, _) in enumerate(expanded) if column.options.missing in ("mean", "indicator")]
    # All parts of a column are missing together, so the first one is enough.
    first = [i for i, (column, place) in enumerate(expanded) if place == column.start and column.indicator is not None]
    has_hashed = encoding == "hash" and any(column.kind == "category" for column in columns)
    return Layout(
        tuple(columns),
        numbers,
        non_numeric,
        tuple(column for column in numbers if column.kind != "number" or column.nullable),
        frozenset(column.name for column in columns if column.nullable),
        all(column.kind == "number" and not column.nullable for column in columns),
        any(column.time_parts != UNEXPANDED for column in numbers),
        any(column.nullable for column in numbers),
        start,
        start + (n_features if has_hashed else 0),
        tuple(place for _, place in expanded),
        tuple(with_mean),
        tuple(first),
        tuple(column.indicator for column in numbers if column.indicator is not None),
    )


def _places(numbers: tuple[int, ...]) -> "NDArray[np.intp]":
    import numpy as np  # noqa: PLC0415 - clients have no matrix, and must not wait for it

    return np.array(numbers, np.intp)


def kind_of(options: Options) -> Kind:
    """Return the kind of a column."""
    kind: Kind = options.__struct_config__.tag  # type: ignore[assignment]
    return kind


def _width(options: Options, encoding: Encoding, max_categories: int) -> int:
    if isinstance(options, TextOptions):
        return options.n_features
    if isinstance(options, CategoryOptions):
        return (
            _categories_max(options, encoding, max_categories) if encoding == "onehot" else int(encoding == "ordinal")
        )
    return len(options.expand) or 1 if isinstance(options, TimestampOptions) else 1


def _categories_max(options: Options, encoding: Encoding, max_categories: int) -> int:
    if not isinstance(options, CategoryOptions) or encoding == "hash":
        return 0
    return options.max_categories or (max_categories if encoding == "onehot" else ORDINAL_CATEGORIES_MAX)


def check(features: Mapping[str, Feature]) -> None:
    """Check the names and options of the columns.

    Raises
    ------
    InvalidError
        With the name of the column and what would be right.
    """
    if not 0 < len(features) <= COLUMNS_MAX:
        raise InvalidError(f"recipe: features must name between 1 and {COLUMNS_MAX} columns.")
    forms: set[str] = set()
    for name, feature in features.items():
        if not 0 < len(name) <= NAME_LENGTH_MAX or "\0" in name:
            raise InvalidError(f"recipe: the feature {name[:40]!r} has no usable name.")
        form = unicodedata.normalize("NFC", name)
        if form in forms:
            raise InvalidError(f"recipe: the feature {name[:40]!r} is named twice, in two Unicode forms.")
        forms.add(form)
        wrong = _fault(options_of(feature))
        if wrong is not None:
            raise InvalidError(f"recipe: the feature {name[:40]!r}: {wrong}.")


def _fault(options: Options) -> str | None:
    if isinstance(options, TimestampOptions) and len(set(options.expand)) < len(options.expand):
        return "expand names a part twice"
    bound = options.max_categories if isinstance(options, CategoryOptions) else None
    if bound is not None and not 1 <= bound <= MATRIX_WIDTH_MAX:
        return f"max_categories must be between 1 and {MATRIX_WIDTH_MAX}"
    if isinstance(options, TextOptions):
        low, high = options.ngram_range
        if not 1 <= low <= high <= NGRAM_MAX:
            return f"ngram_range must be two numbers from 1 to {NGRAM_MAX}, in ascending order"
        if not 1 <= options.n_features <= MATRIX_WIDTH_MAX:
            return f"n_features must be between 1 and {MATRIX_WIDTH_MAX}"
    return None


def has_numbers(features: Mapping[str, Feature]) -> bool:
    """Whether a column is a number, a timestamp or a boolean."""
    return any(kind_of(options_of(feature)) in NUMERIC_KINDS for feature in features.values())


def has_categories(features: Mapping[str, Feature]) -> bool:
    """Whether a column is a category."""
    return any(isinstance(options_of(feature), CategoryOptions) for feature in features.values())


def check_categories(features: Mapping[str, Feature], encoding: Encoding) -> None:
    """Raise InvalidError for a bound of labels where no label has a code."""
    for name, feature in features.items():
        options = options_of(feature)
        if encoding == "hash" and isinstance(options, CategoryOptions) and options.max_categories is not None:
            raise InvalidError(
                f'recipe: the feature {name[:40]!r}: leave out max_categories, which has no effect with "hash".'
            )


def onehot_columns(features: Mapping[str, Feature], max_categories: int) -> int:
    """Return the number of columns that all categories become with the encoding `onehot`."""
    options = map(options_of, features.values())
    return sum(_width(one, "onehot", max_categories) for one in options if isinstance(one, CategoryOptions))


def check_width(features: Mapping[str, Feature], encoding: Encoding, max_categories: int, n_features: int) -> None:
    """Raise InvalidError if categories and texts become too many columns."""
    options_non_numeric = [
        options for options in map(options_of, features.values()) if isinstance(options, CategoryOptions | TextOptions)
    ]
    is_hashed = encoding == "hash" and any(isinstance(options, CategoryOptions) for options in options_non_numeric)
    width = sum(_width(options, encoding, max_categories) for options in options_non_numeric) + (
        n_features if is_hashed else 0
    )
    if width > MATRIX_WIDTH_MAX:
        how = encoding if any(isinstance(options, CategoryOptions) for options in options_non_numeric) else "text"
        raise InvalidError(f"recipe: {how} makes {width} columns, more than {MATRIX_WIDTH_MAX}.")


def check_single_text(features: Mapping[str, Feature] | None, name: str) -> None:
    """Raise InvalidError unless the only column is a text; for the estimator `name`, which reads texts itself."""
    given = [options_of(feature) for feature in (features or {}).values()]
    if len(given) != 1 or not isinstance(given[0], TextOptions):
        raise InvalidError(f'recipe: {name} takes text: features must name exactly one column, of type "text".')
    if canonical_feature(given[0]) != "text" and given[0] != TextOptions(missing="zero"):
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

"""Shaping of rows: invalid rows are rejected with row and column, valid rows keep every bit."""

import json
import pickle
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.errors import Fault, InvalidError, TooLargeError
from keepfit.recipe.features import NGRAMS_MAX
from keepfit.recipe.recipe import LABEL_LENGTH_MAX, Recipe, parse
from keepfit.rows import served, shaping
from keepfit.rows.chunks import Collector
from keepfit.rows.rows import BYTES_MAX, Rows, check_bytes, concatenate, numbers_offset
from keepfit.rows.shaping import shape
from keepfit.rows.values import FAULTS_MAX, NUMBER_MAX
from tests.comparison_counter import ComparisonCounter

PLAIN = parse({"estimator": "SGDRegressor"})
SHOES = parse({"estimator": "SGDRegressor", "features": {"make": "category", "year": "number", "size": "number"}})
STRINGS = parse({"estimator": "SGDClassifier", "classes": ["no", "yes", "1"]})
INTEGERS = parse({"estimator": "SGDClassifier", "classes": [0, 1, 2]})
BOOLEANS = parse({"estimator": "SGDClassifier", "classes": [False, True]})
CLUSTERS = parse({"estimator": "MiniBatchKMeans"})
UNWEIGHTED = parse({"estimator": "Birch"})

# Valid values of X: every double within the bound, including signed zeros and subnormal numbers.
floats = st.floats(-NUMBER_MAX, NUMBER_MAX, allow_nan=False)
labels = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.integers(-(2**53) + 1, 2**53 - 1)


def bits(values: Any) -> bytes:
    """Return doubles as bytes, which distinguishes 0.0 from -0.0."""
    flat = [float(value) for value in values]
    return struct.pack(f"<{len(flat)}d", *flat)


def learn(recipe: Recipe, X: Any, y: Any = None, sample_weight: Any = None) -> Rows:
    """Return rows with their target."""
    return shape(recipe, X, y, sample_weight, learning=True)


def rejected(recipe: Recipe, X: Any, y: Any = None, sample_weight: Any = None) -> InvalidError:
    """Return the error that rejects the rows."""
    with pytest.raises(InvalidError) as caught:
        learn(recipe, X, y, sample_weight)
    assert len(str(caught.value)) < 300
    assert str(caught.value).endswith(".")
    return caught.value


def test_the_size_of_rows_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are encoded once to count their bytes, however often the size is compared."""
    encoded, pieces = [], Rows.pieces

    def counted(rows: Rows) -> Any:
        encoded.append(rows)
        return pieces(rows)

    monkeypatch.setattr(Rows, "pieces", counted)
    rows = Rows(1, b"", [["x" * 100_000]])
    rows.check_size()
    assert not rows.fits(1000)
    assert rows.size_bytes > 100_000
    assert len(encoded) == 1


def test_lists_and_objects_are_the_same_rows() -> None:
    """A row may be a list in the recipe's order or an object in any order; one request may mix both."""
    listed = learn(SHOES, [["nike", 2001, 4.5], ["puma", 2003, 5]], [1, 2])
    named = learn(
        SHOES, [{"size": 4.5, "make": "nike", "year": 2001}, {"year": 2003, "size": 5, "make": "puma"}], [1, 2]
    )
    mixed = learn(SHOES, [["nike", 2001, 4.5], {"year": 2003, "size": 5, "make": "puma"}], [1.0, 2.0])
    assert listed == named == mixed
    assert listed.categories == [["nike", "puma"]]
    assert listed.number_matrix().tolist() == [[2001.0, 4.5], [2003.0, 5.0]]
    assert listed.target().tolist() == [1.0, 2.0]
    assert (listed.n, listed.width, listed.weights()) == (2, 3, None)


def test_shapes_of_the_arrays() -> None:
    """Numbers are a writable float64 array (n, k), targets and weights (n,), also without number columns."""
    rows = learn(PLAIN, [[1, 2, 3], [4, 5, 6]], [0, 1], [1, 0.5])
    matrix, weights = rows.number_matrix(), rows.weights()
    assert matrix.shape == (2, 3)
    assert matrix.dtype == np.float64
    assert matrix.flags.writeable
    assert rows.target().shape == (2,)
    assert weights is not None
    assert weights.tolist() == [1.0, 0.5]
    only_labels = learn(parse({"estimator": "SGDRegressor", "features": {"a": "category"}}), [["x"], ["y"]], [0, 1])
    assert only_labels.number_matrix().shape == (2, 0)
    assert only_labels.width == 1


def test_rows_to_predict_have_no_target() -> None:
    """Rows to predict have no target for any estimator."""
    assert shape(PLAIN, [[1.0]], learning=False).target() is None
    assert shape(STRINGS, [[1.0]], learning=False).y is None


# Invalid rows, as in the table of docs/reference/validation.md: (recipe, X, y, sample_weight, message, row, column).
BAD: list[tuple[Recipe, Any, Any, Any, str, int | None, str | int | None]] = [
    # The form of X.
    (PLAIN, None, [1], None, "X must be a list of at least one row", None, None),
    (PLAIN, {"a": [1]}, [1], None, "X must be a list of at least one row", None, None),
    (PLAIN, "rows", [1], None, "X must be a list of at least one row", None, None),
    (PLAIN, [], [], None, "X must be a list of at least one row", None, None),
    (PLAIN, [[]], [1], None, "the row is empty", 0, None),
    (PLAIN, [[1], []], [1, 2], None, "the row is empty", 1, None),
    (PLAIN, [1, 2], [1, 2], None, "a row is a list of values or an object", 0, None),
    (PLAIN, ["ab"], [1], None, "a row is a list of values or an object", 0, None),
    (PLAIN, [[1], None], [1, 2], None, "a row is a list of values or an object", 1, None),
    (PLAIN, [{"a": 1}], [1], None, "the recipe names no features, so a row is a list of numbers", 0, None),
    # Ragged rows, wrong width, unknown and missing columns.
    (PLAIN, [[1, 2], [1, 2], [1]], [1, 2, 3], None, "the row has 1 values where 2 are expected", 2, None),
    (PLAIN, [[1], [1, 2]], [1, 2], None, "the row has 2 values where 1 are expected", 1, None),
    (SHOES, [["nike", 2001]], [1], None, "the row has 2 values where 3 are expected", 0, None),
    (SHOES, [["nike", 2001, 4, 5]], [1], None, "the row has 4 values where 3 are expected", 0, None),
    (SHOES, [{"make": "nike", "year": 2001}], [1], None, "column 'size': the column is missing", 0, "size"),
    (
        SHOES,
        [["nike", 2001, 4], {"make": "nike", "year": 1, "size": 2, "Make": "x"}],
        [1, 2],
        None,
        "column 'Make': the recipe has no such column",
        1,
        "Make",
    ),
    # Strings, true, null and whole structures as numbers.
    (PLAIN, [[1, "1"]], [1], None, "column 1: '1' is not a number", 0, 1),
    (PLAIN, [[1], [True]], [1, 2], None, "column 0: true is not a number", 1, 0),
    (PLAIN, [[None]], [1], None, "column 0: null is not a number", 0, 0),
    (PLAIN, [[[1.0]]], [1], None, "column 0: a list is not a number", 0, 0),
    (PLAIN, [[{"a": 1}]], [1], None, "column 0: an object is not a number", 0, 0),
    (SHOES, [["nike", "abc", 4]], [1], None, "column 'year': 'abc' is not a number (row 0)", 0, "year"),
    (SHOES, [["a", 1, 2], ["b", 1, False]], [1, 2], None, "column 'size': false is not a number (row 1)", 1, "size"),
    # NaN, infinities, numbers over the bound, integers that no double holds.
    (PLAIN, [[float("nan")]], [1], None, "nan is not a finite number within ±1e+38", 0, 0),
    (PLAIN, [[1, float("inf")]], [1], None, "inf is not a finite number", 0, 1),
    (PLAIN, [[1], [-float("inf")]], [1, 2], None, "-inf is not a finite number", 1, 0),
    (PLAIN, [[1e308]], [1], None, "1e+308 is not a finite number within", 0, 0),
    (PLAIN, [[-1.01e38]], [1], None, "is not a finite number within", 0, 0),
    (PLAIN, [[2**53]], [1], None, "9007199254740992 is 2^53 or more, which no double holds exactly; send", 0, 0),
    (PLAIN, [[0], [-(2**53)]], [1, 2], None, "is 2^53 or more", 1, 0),
    (PLAIN, [[2**53 + 1, 0.5]], [1], None, "9007199254740993 is 2^53 or more", 0, 0),
    (PLAIN, [[10**400]], [1], None, f"1{'0' * 36}... is 2^53 or more", 0, 0),
    # Categories.
    (SHOES, [[None, 1, 2]], [1], None, "column 'make': null is not a category: send a string or an integer", 0, "make"),
    (SHOES, [[1.5, 1, 2]], [1], None, "column 'make': 1.5 is not a category", 0, "make"),
    (SHOES, [["a", 1, 2], [True, 1, 2]], [1, 2], None, "column 'make': true is not a category", 1, "make"),
    (SHOES, [[["a"], 1, 2]], [1], None, "column 'make': a list is not a category", 0, "make"),
    (SHOES, [[2**53, 1, 2]], [1], None, "is 2^53 or more; send it as a string", 0, "make"),
    (SHOES, [["x" * (LABEL_LENGTH_MAX + 1), 1, 2]], [1], None, "the label has 1025 characters, more than", 0, "make"),
    # y.
    (PLAIN, [[1]], None, None, "y must be a list of 1 values, one per row of X", None, None),
    (PLAIN, [[1]], 5, None, "y must be a list of 1 values", None, None),
    (PLAIN, [[1]], {"0": 1}, None, "y must be a list of 1 values", None, None),
    (PLAIN, [[1], [2]], [1], None, "X has 2 rows and y has 1 values; the numbers must be equal", None, None),
    (PLAIN, [[1]], [1, 2], None, "X has 1 rows and y has 2 values", None, None),
    (PLAIN, [[1], [2]], [1, "2"], None, "target 'y': '2' is not a number (row 1)", 1, "y"),
    (PLAIN, [[1]], [[1]], None, "target 'y': a list is not a number", 0, "y"),
    (PLAIN, [[1]], [True], None, "target 'y': true is not a number", 0, "y"),
    (PLAIN, [[1]], [float("nan")], None, "target 'y': nan is not a finite number", 0, "y"),
    (PLAIN, [[1]], [1e39], None, "target 'y': 1e+39 is not a finite number within", 0, "y"),
    (CLUSTERS, [[1]], [1], None, "MiniBatchKMeans takes no y: leave it out", None, None),
    (CLUSTERS, [[1]], [], None, "takes no y", None, None),
    (STRINGS, [[1]], None, None, "y must be a list of 1 values", None, None),
    (STRINGS, [[1], [2]], ["no", "may\0be"], None, "target 'y': a label holds a NUL", 1, "y"),
    (STRINGS, [[1]], [1], None, "1 is not one of the recipe's classes", 0, "y"),
    (STRINGS, [[1]], [None], None, "null is not a label: send a string, an integer or a boolean", 0, "y"),
    (STRINGS, [[1]], [["no"]], None, "a list is not a label", 0, "y"),
    (INTEGERS, [[1]], ["1"], None, "'1' is not one of the recipe's classes", 0, "y"),
    (INTEGERS, [[1]], [True], None, "true is not one of the recipe's classes", 0, "y"),
    (INTEGERS, [[1]], [1.0], None, "1.0 is not a label", 0, "y"),
    (INTEGERS, [[1]], [2**53], None, "the label 9007199254740992 is 2^53 or more", 0, "y"),
    (BOOLEANS, [[1], [2]], [True, 1], None, "1 is not one of the recipe's classes", 1, "y"),
    (BOOLEANS, [[1]], ["true"], None, "'true' is not one of the recipe's classes", 0, "y"),
    # sample_weight.
    (PLAIN, [[1]], [1], 1, "sample_weight must be a list of 1 numbers, one per row of X", None, None),
    (PLAIN, [[1], [2]], [1, 2], [1], "sample_weight must be a list of 2 numbers", None, None),
    (PLAIN, [[1]], [1], [], "sample_weight must be a list of 1 numbers", None, None),
    (PLAIN, [[1], [2]], [1, 2], [1, -0.5], "weights 'sample_weight': -0.5 is negative (row 1)", 1, "sample_weight"),
    (PLAIN, [[1]], [1], ["1"], "weights 'sample_weight': '1' is not a number", 0, "sample_weight"),
    (PLAIN, [[1]], [1], [True], "true is not a number", 0, "sample_weight"),
    (PLAIN, [[1]], [1], [float("inf")], "inf is not a finite number", 0, "sample_weight"),
    (PLAIN, [[1], [2]], [1, 2], [0, 0.0], "sample_weight is 0 for every row", None, None),
    (UNWEIGHTED, [[1]], None, [1], "Birch takes no sample_weight", None, None),
]


@pytest.mark.parametrize(
    ("recipe", "X", "y", "sample_weight", "message", "row", "column"),
    BAD,
    ids=[f"{n}: {b[4][:40]}" for n, b in enumerate(BAD)],
)
def test_bad_input_is_rejected_with_row_and_column(
    recipe: Recipe, X: Any, y: Any, sample_weight: Any, message: str, row: int | None, column: str | int | None
) -> None:
    """Each line of the table raises InvalidError, and its first fault names row and column."""
    error = rejected(recipe, X, y, sample_weight)
    assert message in str(error)
    if row is None:
        assert error.faults == ()
    else:
        assert (error.faults[0].row, error.faults[0].column) == (row, column)
        assert f"(row {row})" in str(error)


@pytest.mark.parametrize("value", [NUMBER_MAX, -NUMBER_MAX, 2.0**53, 1e20, 2**53 - 1, -(2**53) + 1, 5e-324, -0.0, 0])
def test_numbers_at_the_bounds_are_accepted(value: float) -> None:
    """Floats up to 1e38, including whole floats of 2^53 and more, and integers below 2^53 keep their value."""
    rows = learn(PLAIN, [[value]], [value], [abs(value) or 1])
    assert rows.numbers == rows.y == bits([value])


def test_a_large_integer_among_floats_is_rejected() -> None:
    """An integer of 2^53 or more is rejected even if a float in the same column is larger."""
    rows = [[1e20], [2**53], [1.5]]
    assert rejected(PLAIN, rows, [1, 2, 3]).faults == (
        Fault("9007199254740992 is 2^53 or more, which no double holds exactly; send it as a float", 1, 0),
    )


def test_at_most_20_faults_are_reported() -> None:
    """Up to 20 invalid values are reported at once; the message counts the values after the first."""
    error = rejected(PLAIN, [["a"], [1], ["b"]], [1, 2, 3])
    assert [(fault.row, fault.column) for fault in error.faults] == [(0, 0), (2, 0)]
    assert str(error) == "column 0: 'a' is not a number (row 0), and 1 more."
    assert len(rejected(PLAIN, [["a"]] * 1000, [1] * 1000).faults) == FAULTS_MAX
    assert len(rejected(PLAIN, [[1, 2]] + [[1]] * 1000, [1] * 1001).faults) == FAULTS_MAX
    assert len(rejected(SHOES, [{}] * 1000, [1] * 1000).faults) == FAULTS_MAX
    both = rejected(SHOES, [{"make": "nike", "year": 2001, "sise": 4}], [1]).faults
    assert [(fault.column, fault.detail) for fault in both] == [
        ("size", "the column is missing"),
        ("sise", "the recipe has no such column"),
    ]


def test_the_first_row_with_values_defines_the_width() -> None:
    """An empty or malformed first row is the only fault; the valid rows after it are not reported."""
    malformed: list[Any] = [[], {"a": 1}, None]
    for first in malformed:
        assert [fault.row for fault in rejected(PLAIN, [first, [1, 2], [3, 4]], [1, 2, 3]).faults] == [0]


def test_a_huge_invalid_value_is_truncated_in_the_message() -> None:
    """A list or text of megabytes in a number column is named in 40 characters, and a list is not even formatted."""
    huge: Any = [0.5] * 300_000
    many = [[huge]] * 1000
    tracemalloc.start()
    try:
        assert "a list is not a number" in str(rejected(PLAIN, many, [1] * 1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The text of one list has 1.5 MB.
    assert peak < 1_000_000
    assert len(str(rejected(PLAIN, [["x" * 1_000_000]], [1]))) < 100


def test_many_unknown_columns_are_rejected_in_linear_time() -> None:
    """A thousand unknown names against a thousand known ones are looked up by hash, not by a million comparisons."""
    wide = parse({"estimator": "SGDRegressor", "features": {f"f{i}": "number" for i in range(1000)}})
    counter = ComparisonCounter()
    rejected(wide, [{counter.text(f"g{i}"): 1 for i in range(1000)}], [1])
    assert counter.comparisons < 10_000


def test_labels_keep_value_and_type() -> None:
    """Category labels keep their value and type; "1" and 1 are two labels."""
    recipe = parse({"estimator": "SGDRegressor", "features": {"a": "category"}})
    sent_labels: list[Any] = ["1", 1, "", "é", "nike\0", -5, "x" * LABEL_LENGTH_MAX]
    rows = learn(recipe, [[label] for label in sent_labels], [0] * len(sent_labels))
    assert rows.categories == [sent_labels]
    assert [type(label) for label in rows.categories[0]] == [type(label) for label in sent_labels]


@pytest.mark.parametrize(
    ("recipe", "y", "dtype"),
    [(STRINGS, ["no", "1", "yes"], "U"), (INTEGERS, [0, 2, 1], "i"), (BOOLEANS, [True, False, True], "b")],
)
def test_class_labels_keep_their_type(recipe: Recipe, y: list[Any], dtype: str) -> None:
    """Labels of a classifier become an array of their own type, also after encoding and decoding."""
    rows = Rows.decode(learn(recipe, [[1], [2], [3]], y).encode())
    assert rows.target().dtype.kind == dtype
    assert rows.target().tolist() == y
    assert [type(label) for label in rows.target().tolist()] == [type(label) for label in y]


matrices = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.tuples(st.lists(floats, min_size=width, max_size=width), floats, st.floats(1e-3, NUMBER_MAX)),
        min_size=1,
        max_size=6,
    )
)


@settings(deadline=None)
@given(matrices)
def test_numbers_keep_every_bit(data: list[tuple[list[float], float, float]]) -> None:
    """Every double of X, y and sample_weight keeps all its bits from JSON text to the worker's arrays."""
    X, y, weights = [row[0] for row in data], [row[1] for row in data], [row[2] for row in data]
    body = json.loads(json.dumps({"X": X, "y": y, "sample_weight": weights}))
    rows = Rows.decode(learn(PLAIN, body["X"], body["y"], body["sample_weight"]).encode())
    assert rows.number_matrix().tobytes() == bits(value for row in X for value in row)
    assert rows.target().tobytes() == bits(y)
    decoded = rows.weights()
    assert decoded is not None
    assert decoded.tobytes() == bits(weights)
    assert rows.number_matrix().shape == (len(X), rows.width)


shoe_requests = st.lists(
    st.lists(st.tuples(labels, floats, floats, floats), min_size=1, max_size=4), min_size=1, max_size=4
)


@settings(deadline=None)
@given(shoe_requests, st.booleans())
def test_concatenate_equals_shaping_the_concatenated_lists(
    requests: list[list[tuple[Any, ...]]], weighted: bool
) -> None:
    """Concatenating shaped requests gives the same rows as shaping the concatenated requests."""

    def shaped(request: list[tuple[Any, ...]]) -> Rows:
        X = [[label, year, size] for label, year, size, _ in request]
        return learn(SHOES, X, [y for *_, y in request], [1.5] * len(request) if weighted else None)

    joined = shaped([row for request in requests for row in request])
    assert concatenate([shaped(request) for request in requests]) == joined
    assert Rows.decode(joined.encode()) == joined


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(["no", "yes", "1"]), min_size=1, max_size=4), min_size=1, max_size=4))
def test_concatenate_labels_and_rows_without_target(requests: list[list[str]]) -> None:
    """Labels of classifiers are concatenated in order, and so are rows without a target."""
    all_labels = [label for request in requests for label in request]
    X = [[float(i)] for i in range(len(all_labels))]
    shaped, start = [], 0
    for request in requests:
        shaped.append(learn(STRINGS, X[start : start + len(request)], request))
        start += len(request)
    assert concatenate(shaped) == learn(STRINGS, X, all_labels)
    untargeted = [Rows(rows.n, rows.numbers, rows.categories) for rows in shaped]
    assert concatenate(untargeted) == shape(STRINGS, X, learning=False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([PLAIN, SHOES, STRINGS, CLUSTERS]), json_values, json_values, json_values)
def test_any_json_is_shaped_or_rejected(recipe: Recipe, X: Any, y: Any, sample_weight: Any) -> None:
    """Any JSON as X, y and sample_weight becomes finite numbers or raises InvalidError, and no other exception."""
    try:
        rows = learn(recipe, X, y, sample_weight)
    except InvalidError:
        return
    assert rows.n == len(X)
    assert np.isfinite(rows.number_matrix()).all()


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(json_values, min_size=2, max_size=2), min_size=1, max_size=4))
def test_any_json_in_a_matrix_is_shaped_or_rejected(X: list[list[Any]]) -> None:
    """A matrix is accepted if and only if each value is a float within the bound or an integer below 2^53."""
    valid = all(
        type(value) in (int, float) and abs(value) <= NUMBER_MAX and (type(value) is float or abs(value) < 2**53)
        for row in X
        for value in row
    )
    if valid:
        assert shape(PLAIN, X, learning=False).numbers == bits(value for row in X for value in row)
    else:
        with pytest.raises(InvalidError):
            shape(PLAIN, X, learning=False)


@settings(deadline=None)
@given(
    st.sampled_from([PLAIN, SHOES, STRINGS]),
    st.lists(st.lists(floats | labels, min_size=1, max_size=4), min_size=1, max_size=4) | json_values,
)
def test_few_values_are_shaped_like_many(recipe: Recipe, X: Any) -> None:
    """The implementation for few values returns what the one for many returns, or leaves the rows to it."""
    small = shaping._shape_small(recipe, X)
    if small is not None:
        assert small == shaping._shape_many(recipe, X)


@pytest.mark.parametrize("n", [1, 3, 20, 300, 10_001, 70_000])
def test_pieces_concatenate_to_the_encoding(n: int) -> None:
    """The pieces concatenate to the encoding byte for byte, each at most 1 MiB, and size_bytes is their sum."""
    labels_sent: list[Any] = [f"label {i}" if i % 3 else i for i in range(n)]
    requests = [
        Rows(n, bytes(8 * n), []),
        Rows(n, memoryview(bytearray(b"12345678" * 3 * n)), [labels_sent, labels_sent], bytes(8 * n), bytes(8 * n)),  # type: ignore[arg-type]
        Rows(n, b"", [labels_sent] * 17, ["no", "yes"] * (n // 2)),
    ]
    for rows in requests:
        pieces = list(rows.pieces())
        assert b"".join(pieces) == rows.encode()
        assert rows.size_bytes == len(rows.encode())
        assert max(map(len, pieces)) <= 1 << 20
        assert Rows.decode(rows.encode()) == rows


def test_a_large_number_buffer_is_not_copied_into_its_pieces() -> None:
    """The pieces of the numbers are views of the buffer of the rows."""
    body = bytearray(3_000_000)
    rows = Rows(375_000, memoryview(body), [])  # type: ignore[arg-type]
    views = [piece for piece in rows.pieces() if isinstance(piece, memoryview)]
    assert sum(map(len, views)) == len(body)
    assert all(view.obj is body for view in views)


@pytest.mark.parametrize("labels", [["a"], ["é" * 1024], ["\U0001f45f" * 1024, "b"]])
def test_fits_compares_the_size_of_the_encoding(labels: list[str]) -> None:
    """fits() is true from the exact length of the encoding on and false below, with and without the upper bound."""
    recipe = parse(
        {"estimator": "SGDClassifier", "features": {"a": "category", "b": "number"}, "classes": [*labels, "z"]}
    )
    rows = shape(recipe, [[label, 1.5] for label in labels], labels, [1.0] * len(labels), learning=True)
    size = len(rows.encode())
    assert rows.fits(size)
    assert not rows.fits(size - 1)
    assert rows.fits(1 << 30)


TEXTS: list[tuple[dict[str, Any], int]] = [
    ({"estimator": "SGDRegressor", "features": {"t": {"type": "text", "analyzer": "char", "ngram_range": [1, 8]}}}, 8),
    ({"estimator": "HashingVectorizer", "params": {"ngram_range": [2, 5]}, "features": {"t": "text"}}, 4),
]


@pytest.mark.parametrize(("document", "lengths"), TEXTS)
@pytest.mark.parametrize("characters", [1000, 65_536])
def test_the_ngrams_of_a_request_are_bounded(document: dict[str, Any], lengths: int, characters: int) -> None:
    """Texts that would take a worker too long are refused with the number of rows that fit, in one part or several."""
    recipe = parse(document)
    fitting = NGRAMS_MAX // (lengths * characters)
    X = [["x" * characters]] * fitting
    shape(recipe, X, learning=False)
    with pytest.raises(InvalidError, match=f"The first {fitting + 1} rows have texts of .*: send at most {fitting} of"):
        shape(recipe, [*X, ["x" * characters]], learning=False)
    collector = Collector(recipe, learning=False)
    collector.add(X)
    with pytest.raises(InvalidError, match=f"send at most {fitting} of"):
        collector.add([["x" * characters]])


def test_where_no_row_fits_no_number_of_rows_is_named() -> None:
    """The message about a single row that is too large gives other advice."""
    text = {"type": "text", "analyzer": "char", "ngram_range": [1, 8]}
    recipe = parse({"estimator": "SGDRegressor", "features": {f"t{i}": text for i in range(17)}})
    with pytest.raises(InvalidError, match=r"The first row has texts of .*: send shorter texts"):
        shape(recipe, [["x" * 65_536] * 17], learning=False)
    with pytest.raises(TooLargeError, match="not even one of them fits"):
        check_bytes(2, 2 * BYTES_MAX + 2)


@pytest.mark.parametrize("n", [100, 200, 1000, 70_000])
@pytest.mark.parametrize("shift", range(8))
def test_large_rows_are_decoded_without_a_copy_where_they_are_aligned(n: int, shift: int) -> None:
    """Wherever the encoding lies in memory, the same rows are decoded; where it is aligned, it is shared."""
    rows = Rows(n, np.arange(float(70_000 // n * n)).tobytes(), [["a"] * n], ["b"] * n, bytes(8 * n))
    encoded = rows.encode()
    memory = np.empty(len(encoded) + 8, np.uint8)
    memory[shift : shift + len(encoded)] = np.frombuffer(encoded, np.uint8)
    decoded = Rows.decode(memory.data[shift : shift + len(encoded)])  # type: ignore[arg-type]
    assert decoded == rows
    numbers = np.frombuffer(decoded.numbers, np.uint8)
    is_aligned = (memory.ctypes.data + shift + numbers_offset(encoded)) % 8 == 0
    assert np.shares_memory(numbers, memory) == is_aligned
    assert decoded.number_view().flags.aligned


def test_rows_that_wait_do_not_hold_their_request() -> None:
    """Rows that are stored with a bundle are pickled, and have no other memory than their own."""
    rows = Rows(100, bytes(800_000), [])
    memory = np.frombuffer(bytes(8 - numbers_offset(rows.encode()) % 8) + rows.encode(), np.uint8).copy()
    shared = Rows.decode(memory.data[8 - numbers_offset(rows.encode()) % 8 :])  # type: ignore[arg-type]
    assert type(shared.numbers) is not bytes
    assert pickle.loads(pickle.dumps(served.plain(shared))) == rows

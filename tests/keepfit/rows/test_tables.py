"""Tables: npy and Arrow bodies give the same rows as the same values in lists, or are rejected."""

import io
import random
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from keepfit.errors import InvalidError, KeepfitError, MalformedError
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows import arrow, npy, tables
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape

PLAIN = parse({"estimator": "SGDRegressor"})
SHOES = parse({"estimator": "SGDRegressor", "features": {"make": "category", "year": "number"}})
NUMBERS = parse({"estimator": "SGDRegressor", "features": {"a": "number", "b": "number"}})
STRINGS = parse({"estimator": "SGDClassifier", "classes": ["no", "yes"]})
INTEGERS = parse({"estimator": "SGDClassifier", "classes": [0, 1]})
BOOLEANS = parse({"estimator": "SGDClassifier", "classes": [False, True]})
CLUSTERS = parse({"estimator": "MiniBatchKMeans"})
UNWEIGHTED = parse({"estimator": "Birch"})
KIND_NAMES = ("number", "timestamp", "boolean", "category", "text")


def npy_bytes(array: Any) -> bytearray:
    """Return an array as numpy saves it."""
    file = io.BytesIO()
    np.save(file, array)
    return bytearray(file.getvalue())


def arrow_bytes(columns: Any, rows_in_batch: int = 2, **options: Any) -> bytearray:
    """Return columns as a stream that pyarrow wrote."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=rows_in_batch)
    return bytearray(file.getvalue())


def rejected(recipe: Recipe, body: bytearray, *, learning: bool = True, read: Any = npy.read_npy) -> InvalidError:
    """Return the error that rejects a table's content."""
    with pytest.raises(InvalidError) as caught:
        read(body).shape(recipe, learning=learning)
    assert len(str(caught.value)) < 300
    return caught.value


@pytest.mark.parametrize("dtype", ["?", "i1", "<i2", ">i4", "i8", "u1", "u8", "f2", "<f4", ">f4", "<f8", ">f8", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_gives_the_rows_of_the_same_lists(dtype: str, order: Any) -> None:
    """Every dtype and byte order, in row or column order, gives the same rows as the same values in lists."""
    array = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]]).astype(dtype, order=order)
    lists = [[float(value) for value in row] for row in array]
    expected = shape(PLAIN, [row[:2] for row in lists], [row[2] for row in lists], learning=True)
    assert npy.read_npy(npy_bytes(array)).shape(PLAIN, learning=True) == expected
    assert npy.read_npy(npy_bytes(array)).shape(PLAIN, learning=False) == shape(PLAIN, lists, learning=False)
    assert npy.read_npy(npy_bytes(array)).shape(CLUSTERS, learning=True) == shape(CLUSTERS, lists, learning=True)
    labels = shape(INTEGERS, [row[:2] for row in lists], [int(row[2]) for row in lists], learning=True)
    assert npy.read_npy(npy_bytes(array)).shape(INTEGERS, learning=True) == labels
    as_booleans = npy.read_npy(npy_bytes(array)).shape(BOOLEANS, learning=True).target()
    assert as_booleans.tolist() == [True, False, True, True]
    assert npy.read_npy(npy_bytes(array[:, :2])).shape(NUMBERS, learning=False).width == 2


@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("learning", [False, True])
def test_a_float64_array_is_not_copied(monkeypatch: pytest.MonkeyPatch, width: int, learning: bool) -> None:
    """The rows of a float64 array share its memory, compacted over the target's column; every bit is kept."""
    monkeypatch.setattr(tables, "BLOCK_VALUES", 30)
    array = np.random.default_rng(1).standard_normal((101, width + learning))
    body = npy_bytes(array)
    rows = npy.read_npy(body).shape(PLAIN, learning=learning)
    assert np.shares_memory(np.frombuffer(rows.numbers, np.uint8), np.frombuffer(body, np.uint8))
    assert rows.number_matrix().tobytes() == array[:, :width].tobytes()
    if learning:
        assert rows.target().tobytes() == array[:, -1].tobytes()
    assert b"".join(rows.pieces()) == rows.encode()
    assert Rows.decode(rows.encode()) == rows


@pytest.mark.parametrize(
    ("array", "recipe", "message", "location"),
    [
        (np.array([["a"]]), PLAIN, "The dtype <U1 is not numeric: send bool, int", None),
        (np.array([[1j]]), PLAIN, "dtype complex128", None),
        (np.array([["2020-01-01"]], "M8[D]"), PLAIN, "dtype datetime64", None),
        (np.array([[object()]], object), PLAIN, "dtype object", None),
        (np.zeros(3), PLAIN, "1 dimensions; send two", None),
        (np.zeros((1, 1, 1)), PLAIN, "3 dimensions; send two", None),
        (np.array(1.0), PLAIN, "0 dimensions; send two", None),
        (np.zeros((0, 3)), PLAIN, "at least one row", None),
        (np.zeros((3, 0)), PLAIN, "at least one row and one column", None),
        (np.zeros((3, 1)), PLAIN, "one column, which is y", None),
        (np.zeros((3, 4)), NUMBERS, "3 columns for X where the recipe names 2", None),
        (np.zeros((3, 3)), SHOES, "column 'make' is a category", None),
        (np.array([[1, np.nan, 1]]), PLAIN, "nan is not a finite number", (0, 1)),
        (np.array([[1, 2, 1], [np.inf, 2, 1]], "f4"), NUMBERS, "column 'a': inf is not a finite", (1, "a")),
        (np.array([[1, 2], [1, 1e39]]), PLAIN, "target 'y': 1e+39 is not a finite", (1, "y")),
        (np.array([[1e300, 2]], "g"), PLAIN, "1e+300 is not a finite", (0, 0)),
        (np.array([[2**53, 2]]), PLAIN, "9007199254740992 is 2^53 or more", (0, 0)),
        (np.array([[-(2**63), 2]]), PLAIN, "-9223372036854775808 is 2^53 or more", (0, 0)),
        (np.array([[2**64 - 1, 2]], "u8"), PLAIN, "18446744073709551615 is 2^53 or more", (0, 0)),
        (np.array([[1, 0.5]]), INTEGERS, "0.5 is not a label", (0, "y")),
        (np.array([[1, np.nan]]), INTEGERS, "nan is not a label", (0, "y")),
        (np.array([[1, 1]]), STRINGS, "1 is not one of the recipe's classes", (0, "y")),
        (np.array([[1, 2]]), BOOLEANS, "2 is not one of the recipe's classes", (0, "y")),
        (np.zeros(1, [("a", "f8", 2), ("y", "f8")]), PLAIN, "is not numeric", None),
        (np.zeros((1, 1), [("a", "f8"), ("y", "f8")]), PLAIN, "must have one dimension", None),
    ],
)
def test_invalid_arrays_are_rejected(array: Any, recipe: Recipe, message: str, location: Any) -> None:
    """Arrays that no model can learn are rejected, with row and column where a value is the reason."""
    error = rejected(recipe, npy_bytes(array))
    assert message in str(error)
    assert [(fault.row, fault.column) for fault in error.faults] == ([] if location is None else [location])


VALID = npy_bytes(np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not an npy file"),
        (b"PK\3\4" + bytes(200), "not an npy file"),
        (VALID[:60], "not an npy file"),
        (VALID[:-1], "announces 48 bytes of data; the body has 47"),
        (VALID + b"\0", "announces 48 bytes of data; the body has 49"),
        (VALID.replace(b"(2, 3)", b"(9**9, 3)"), "not an npy file"),
        (VALID.replace(b"(2, 3), }   ", b"(1<<60,3), }"), "not an npy file"),
        (VALID.replace(b"(2, 3), }          ", b"(99999999999, 3), }"), "announces 2399999999976 bytes of data"),
        (VALID.replace(b"(2, 3), }  ", b"(-2, -3), }"), "negative length"),
        (VALID.replace(b"'<f8'", b"'xyz'"), "not an npy file"),
        (VALID.replace(b"NUMPY\1", b"NUMPY\3"), "not an npy file"),
        (VALID.replace(b"NUMPY\1", b"NUMPY\7"), "not an npy file|format is 7.0"),
    ],
)
def test_malformed_npy_files_are_rejected(body: bytes, message: str) -> None:
    """A body that is not an npy file, or not as long as its header says, is malformed; no memory is allocated."""
    with pytest.raises(MalformedError, match=message):
        npy.read_npy(bytearray(body))


def test_corrupt_tables_raise_only_keepfit_errors() -> None:
    """An npy file or Arrow stream with changed bytes is read or raises a KeepfitError."""
    choice = random.Random(3)
    stream = arrow_bytes(
        {"make": pa.array(["a", "b", "a"]).dictionary_encode(), "year": [1, 2, 3], "y": [1.0, 2.0, 3.0]}
    )
    for valid, read, recipe in ((VALID, npy.read_npy, PLAIN), (stream, arrow.read_arrow, SHOES)):
        rejections = 0
        for _ in range(600):
            body = bytearray(valid)
            for _ in range(choice.randint(1, 4)):
                body[choice.randrange(len(body))] = choice.choice([0, 1, 127, 128, 255, choice.randrange(256)])
            try:
                read(body).shape(recipe, learning=True)
            except KeepfitError:
                rejections += 1
        assert 0 < rejections < 600


def test_fields_of_a_structured_array_are_columns() -> None:
    """Fields of a structured array are columns by name, in any order, each with its own dtype."""
    array = np.array(
        [(4.0, 2, 1.5, 1), (5.0, 3, 2.5, 2)], [("y", "f4"), ("b", ">i2"), ("a", "f8"), ("sample_weight", "u1")]
    )
    expected = shape(NUMBERS, [[1.5, 2], [2.5, 3]], [4.0, 5.0], [1, 2], learning=True)
    assert npy.read_npy(npy_bytes(array)).shape(NUMBERS, learning=True) == expected


MAKES = ["nike", "puma", "nike", "é", ""]
YEARS = [2001, 2002, 2003, 2004, 2005]
SHOE_ROWS = shape(SHOES, [list(row) for row in zip(MAKES, YEARS, strict=True)], YEARS, learning=True)


@pytest.mark.parametrize(
    "makes",
    [
        pa.array(MAKES),
        pa.array(MAKES, pa.large_string()),
        pa.array(MAKES).dictionary_encode(),
        pa.array(MAKES, pa.large_string()).dictionary_encode(),
    ],
)
@pytest.mark.parametrize("rows_in_batch", [1, 2, 100])
def test_an_arrow_stream_gives_the_rows_of_the_same_lists(makes: Any, rows_in_batch: int) -> None:
    """Text, plain or dictionary-encoded, in any number of batches and column order gives the rows of the same lists."""
    for kind in (pa.int16(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()):
        body = arrow_bytes(
            {"y": YEARS, "year": pa.array(map(float, YEARS)).cast(pa.float64()), "make": makes}, rows_in_batch
        )
        assert arrow.read_arrow(body).shape(SHOES, learning=True) == SHOE_ROWS
        plain = arrow_bytes({"a": pa.array([1, 2]).cast(kind), "b": pa.array([True, False])}, rows_in_batch)
        assert arrow.read_arrow(plain).shape(PLAIN, learning=False) == shape(PLAIN, [[1, 1], [2, 0]], learning=False)


def test_categories_weights_and_labels_of_an_arrow_stream() -> None:
    """Categories may be integers; weights are a column; labels of classifiers keep their type."""
    years = pa.array([7, 8, 7])
    for makes in (years, years.dictionary_encode()):
        body = arrow_bytes({"make": makes, "year": [1, 2, 3], "sample_weight": [1, 0, 2], "y": [1, 2, 3]})
        rows = arrow.read_arrow(body).shape(SHOES, learning=True)
        assert rows == shape(SHOES, [[7, 1], [8, 2], [7, 3]], [1, 2, 3], [1, 0, 2], learning=True)
    for recipe, y in ((STRINGS, ["no", "yes"]), (INTEGERS, [0, 1]), (BOOLEANS, [False, True])):
        rows = arrow.read_arrow(arrow_bytes({"a": [1.0, 2.0], "y": y})).shape(recipe, learning=True)
        assert rows == shape(recipe, [[1.0], [2.0]], y, learning=True)
        assert [type(label) for label in rows.y or ()] == [type(label) for label in y]


@pytest.mark.parametrize(
    ("columns", "recipe", "message", "location"),
    [
        ({"make": ["a"], "y": [1]}, SHOES, "column 'year': the column is missing.", (None, "year")),
        ({"make": ["a"], "year": [1], "z": [1], "y": [1]}, SHOES, "has no such column", (None, "z")),
        ({"make": ["a", "b", None], "year": [1, 2, 3], "y": [1, 2, 3]}, SHOES, "value is missing (row 2)", (2, "make")),
        ({"make": ["a"], "year": [None], "y": [1]}, SHOES, "the value is missing (row 0)", (0, "year")),
        ({"make": ["a"], "year": ["1"], "y": [1]}, SHOES, "column 'year': '1' is not a number", (0, "year")),
        ({"make": [1.5], "year": [1], "y": [1]}, SHOES, "1.5 is not a category", (0, "make")),
        ({"make": [True], "year": [1], "y": [1]}, SHOES, "true is not a category", (0, "make")),
        ({"a": [1, 1, 1], "b": [1.0, 2.0, np.inf], "y": [1, 1, 1]}, PLAIN, "inf is not a finite", (2, "b")),
        ({"a": [1, 1, 1, 2**60], "y": [1, 1, 1, 1]}, PLAIN, "is 2^53 or more", (3, "a")),
        ({"a": [1], "y": ["x"]}, PLAIN, "target 'y': 'x' is not a number", (0, "y")),
        ({"a": [1]}, PLAIN, "no column 'y'", None),
        ({"y": [1]}, PLAIN, "no columns for X", None),
        ({"a": [1], "y": [1]}, CLUSTERS, "takes no y", None),
        ({"a": [1], "y": ["may\0be"]}, STRINGS, "a label holds a NUL", (0, "y")),
        ({"a": [1], "sample_weight": [1]}, UNWEIGHTED, "Birch takes no sample_weight", None),
        ({"a": [1, 2], "y": [1, 2], "sample_weight": [1, -0.5]}, PLAIN, "-0.5 is negative", (1, "sample_weight")),
        ({"a": [1], "y": [1], "sample_weight": [0]}, PLAIN, "0 for every row", None),
        ({"a": [[1]], "y": [1]}, PLAIN, "has the type list", None),
        (
            {"a": pa.array([1]).cast(pa.timestamp("s")), "y": [1]},
            PLAIN,
            "column 'a': timestamps, where a number is",
            None,
        ),
        ({"a": pa.array([], pa.int64())}, PLAIN, "at least one row", None),
        ({}, PLAIN, "at least one row", None),
    ],
)
def test_invalid_arrow_streams_are_rejected(
    columns: dict[str, Any], recipe: Recipe, message: str, location: Any
) -> None:
    """Invalid values, columns and types are rejected, with row and column where a value is the reason."""
    error = rejected(recipe, arrow_bytes(columns), read=arrow.read_arrow)
    assert message in str(error)
    assert [(fault.row, fault.column) for fault in error.faults] == ([] if location is None else [location])


KINDS = parse(
    {
        "estimator": "SGDRegressor",
        "features": {
            "size": {"type": "number", "missing": "mean"},
            "make": {"type": "category", "missing": "indicator"},
            "note": {"type": "text", "missing": "zero"},
            "at": "timestamp",
        },
    }
)
TIMED = parse(
    {"estimator": "SGDRegressor", "features": {"a": {"type": "number", "missing": "zero"}, "at": "timestamp"}}
)


@pytest.mark.parametrize("rows_in_batch", [1, 2, 100])
def test_nulls_of_an_arrow_stream_are_missing_values(rows_in_batch: int) -> None:
    """In a nullable column, a null of any type equals a null of JSON, and so does an absent column."""
    at, y = [0, -1, 2.5], [1, 2, 3]
    makes, notes = ["nike", None, "nike"], [None, "red", ""]
    X = [list(row) for row in zip([None, 2, None], makes, notes, at, strict=True)]
    expected = shape(KINDS, X, y, learning=True)
    sizes = [pa.array([None, 2, None], kind) for kind in (pa.int64(), pa.uint8(), pa.float16(), pa.float64())]
    for size in [*sizes, pa.array([np.nan, 2, None]), pa.array([None, 2, None], pa.int8()).dictionary_encode()]:
        for make in (pa.array(makes), pa.array(makes).dictionary_encode()):
            body = arrow_bytes({"at": at, "note": notes, "make": make, "size": size, "y": y}, rows_in_batch)
            assert arrow.read_arrow(body).shape(KINDS, learning=True) == expected
    only = arrow_bytes({"at": at, "y": y}, rows_in_batch)
    absent = shape(KINDS, [{"at": time} for time in at], y, learning=True)
    assert arrow.read_arrow(only).shape(KINDS, learning=True) == absent
    codes = arrow_bytes({"at": at, "make": pa.array([7, None, 8]), "y": y}, rows_in_batch)
    coded = shape(KINDS, [{"at": t, "make": m} for t, m in zip(at, [7, None, 8], strict=True)], y, learning=True)
    assert arrow.read_arrow(codes).shape(KINDS, learning=True) == coded


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (pa.array([2**62], pa.timestamp("s")), "timestamp", "is not a time in seconds within the years 1 to 9999"),
        (pa.array([-(2**63) + 1], pa.timestamp("ms")), "timestamp", "is not a time in seconds within"),
        (pa.array([None], pa.timestamp("ns")), "timestamp", "the value is missing (row 0)"),
        (pa.array([True]), "timestamp", "true is not a time: send seconds since 1970 or ISO 8601"),
        (pa.array(["1700000000"]), "timestamp", "'1700000000' is not a time"),
        (pa.array([1], pa.timestamp("s")), "category", "timestamps, where a category is expected"),
        (pa.array([1], pa.timestamp("s")), "text", "timestamps, where a text is expected"),
        (pa.array([1], pa.date32()), "number", "timestamps, where a number is expected"),
        (pa.array([1], pa.date32()), "boolean", "timestamps, where a boolean is expected"),
        (pa.array([1], pa.duration("s")), "timestamp", "has the type duration[s]"),
        (pa.array([1], pa.time64("us")), "timestamp", "has the type time64[us]"),
        (pa.array([2]), "boolean", "2 is not a boolean: send true or false, or 1 or 0"),
        (pa.array([0.5]), "boolean", "0.5 is not a boolean"),
        (pa.array(["true"]), "boolean", "'true' is not a boolean"),
        (pa.array([b"a"]), "category", "has the type binary"),
        (pa.array([b"a"], pa.binary_view()), "text", "has the type binary_view"),
        (pa.array([[1]]), "number", "has the type list"),
        (pa.array([{"a": 1}]), "number", "has the type struct"),
        (pa.RunEndEncodedArray.from_arrays([1], ["a"]), "category", "has the type run_end_encoded"),
        (pa.nulls(1), "category", "the value is missing (row 0)"),
        (pa.array([2**53], pa.uint64()), "number", "is 2^53 or more"),
        (pa.array([2**63], pa.uint64()), "category", "is 2^53 or more; send it as a string"),
        (pa.array([Decimal(2**53)], pa.decimal128(38, 0)), "number", "is 2^53 or more"),
        (pa.array([Decimal(10) ** 40], pa.decimal256(60, 1)), "number", "is not a finite number"),
        (pa.array([Decimal("1.5")]), "category", "1.5 is not a category"),
        (pa.array(["x" * 1025], pa.string_view()), "category", "has 1025 characters"),
    ],
)
def test_values_of_another_kind_are_rejected(values: Any, kind: str, message: str) -> None:
    """A value or a type that the recipe's column does not take is rejected with the column."""
    recipe = parse({"estimator": "SGDRegressor", "features": {"a": kind}})
    error = rejected(recipe, arrow_bytes({"a": values, "y": [1.0]}), read=arrow.read_arrow)
    assert message in str(error)
    assert "'a'" in str(error)


def test_a_null_column_is_missing_everywhere() -> None:
    """A column of Arrow's null type, as pandas and polars write one without any value, is missing in each row."""
    recipe = parse({"estimator": "SGDRegressor", "features": {k: {"type": k, "missing": "zero"} for k in KIND_NAMES}})
    empty = pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int8()), pa.nulls(0))
    expected = shape(recipe, [{}, {}], [1, 2], learning=True)
    for nulls in (pa.nulls(2), empty):
        body = arrow_bytes({**dict.fromkeys(KIND_NAMES, nulls), "y": [1.0, 2.0]})
        assert arrow.read_arrow(body).shape(recipe, learning=True).encode() == expected.encode()


def test_the_index_of_a_data_frame_is_no_column() -> None:
    """The index of a pandas data frame is left out unless the recipe names it."""
    frame = pd.DataFrame({"a": [1.5, 2.5], "y": [1.0, 2.0]}, index=pd.Index([7, 8], name="b"))
    for kept in (frame, frame.rename_axis(None)):
        body = arrow_bytes(pa.Table.from_pandas(kept))
        assert arrow.read_arrow(body).shape(PLAIN, learning=True).number_list() == [1.5, 2.5]
    body = arrow_bytes(pa.Table.from_pandas(frame))
    assert arrow.read_arrow(body).shape(NUMBERS, learning=True).number_list() == [1.5, 7, 2.5, 8]


def test_booleans_are_labels_of_a_classifier() -> None:
    """Booleans as the target are the labels true and false, as in JSON, unless the recipe's classes are integers."""
    recipe = parse({"estimator": "SGDClassifier"})
    array = np.array([(1.0, True), (2.0, False)], [("a", "f8"), ("y", "?")])
    for recipe_of_classes, labels in ((recipe, [True, False]), (BOOLEANS, [True, False]), (INTEGERS, [1, 0])):
        expected = shape(recipe_of_classes, [[1.0], [2.0]], labels, learning=True).encode()
        body = arrow_bytes({"a": [1.0, 2.0], "y": [True, False]})
        assert arrow.read_arrow(body).shape(recipe_of_classes, learning=True).encode() == expected
        assert npy.read_npy(npy_bytes(array)).shape(recipe_of_classes, learning=True).encode() == expected


def test_names_in_two_unicode_forms_are_one() -> None:
    """A table with one name in two Unicode forms is rejected, as is a row of JSON."""
    recipe = parse({"estimator": "SGDRegressor", "features": {"é": "number"}})
    body = arrow_bytes({"é": [1.0], "e\u0301": [2.0], "y": [1.0]})
    assert "have the same name" in str(rejected(recipe, body, read=arrow.read_arrow))
    with pytest.raises(InvalidError, match="no such column"):
        shape(recipe, [{"é": 1.0, "e\u0301": 2.0}], [1.0], learning=True)
    with pytest.raises(InvalidError, match="named twice, in two Unicode forms"):
        parse({"estimator": "SGDRegressor", "features": {"é": "number", "e\u0301": "number"}})


def test_overlapping_views_are_rejected() -> None:
    """Views of one long text in many rows are rejected before pyarrow reads each of them."""
    text = b"x" * 10_000
    views = struct.pack("<i4sii", len(text), text[:4], 0, 0) * 2_000
    array = pa.Array.from_buffers(pa.string_view(), 2_000, [None, pa.py_buffer(views), pa.py_buffer(text)])
    body = arrow_bytes({"make": array, "year": [1] * 2_000, "y": [1] * 2_000}, rows_in_batch=2_000)
    assert "overlap too much" in str(rejected(SHOES, body, read=arrow.read_arrow))


def test_nan_is_a_missing_value_of_a_nullable_column() -> None:
    """NaN in a column with `missing` is a missing value, in every float dtype."""
    X = np.array([[np.nan, 1], [2, -1]])
    expected = shape(TIMED, [[None, 1], [2, -1]], learning=False)
    for array in (X, X.astype("f4"), X.astype(">f8"), np.asfortranarray(X)):
        assert npy.read_npy(npy_bytes(array)).shape(TIMED, learning=False) == expected
    named = np.array([(1, np.nan), (-1, 2)], [("at", "i2"), ("a", "f4")])
    assert npy.read_npy(npy_bytes(named)).shape(TIMED, learning=False) == expected


@pytest.mark.parametrize(
    ("body", "read", "recipe", "message", "location"),
    [
        (npy_bytes(np.array([[1, np.nan, 1]])), npy.read_npy, TIMED, "column 'at': nan is not a time", (0, "at")),
        (npy_bytes(np.array([[1, 2, np.nan]])), npy.read_npy, TIMED, "target 'y': nan is not a finite", (0, "y")),
        (npy_bytes(np.array([[1, 10**12, 1]])), npy.read_npy, TIMED, "1000000000000 is not a time", (0, "at")),
        (npy_bytes(np.array([[np.inf, 1, 1]])), npy.read_npy, TIMED, "column 'a': inf is not a finite", (0, "a")),
        (npy_bytes(np.zeros((1, 5))), npy.read_npy, KINDS, "column 'make' is a category", None),
        (arrow_bytes({"at": [1, None], "y": [1, 2]}), arrow.read_arrow, KINDS, "value is missing (row 1)", (1, "at")),
        (arrow_bytes({"at": [1, 2], "y": [1, None]}), arrow.read_arrow, KINDS, "value is missing (row 1)", (1, "y")),
        (
            arrow_bytes({"at": [1, 2], "y": [1, 2], "sample_weight": [None, 1]}),
            arrow.read_arrow,
            KINDS,
            "value is missing (row 0)",
            (0, "sample_weight"),
        ),
        (arrow_bytes({"at": [1], "note": [5], "y": [1]}), arrow.read_arrow, KINDS, "5 is not a text", (0, "note")),
        (arrow_bytes({"at": [1e12], "y": [1]}), arrow.read_arrow, KINDS, "is not a time in seconds", (0, "at")),
        (arrow_bytes({"size": [1], "y": [1]}), arrow.read_arrow, KINDS, "'at': the column is missing", (None, "at")),
    ],
)
def test_invalid_missing_values_and_timestamps_are_rejected(
    body: bytearray, read: Any, recipe: Recipe, message: str, location: Any
) -> None:
    """Missing values of other columns, of the target and of weights are rejected, and so are invalid timestamps."""
    error = rejected(recipe, body, read=read)
    assert message in str(error)
    assert [(fault.row, fault.column) for fault in error.faults] == ([] if location is None else [location])


def test_target_and_weights_are_rejected_where_not_allowed() -> None:
    """Rows to predict have no target, scores have no weights, and a feature cannot have the name of either."""
    body = arrow_bytes({"a": [1], "y": [1], "sample_weight": [1]})
    assert "have no y" in str(rejected(PLAIN, body, learning=False, read=arrow.read_arrow))
    with pytest.raises(InvalidError, match="score takes no sample_weight"):
        arrow.read_arrow(body).shape(PLAIN, learning=True, weighted=False)
    recipe = parse({"estimator": "SGDRegressor", "features": {"y": "number"}})
    only = arrow_bytes({"y": [1]})
    assert "send JSON" in str(rejected(recipe, only, read=arrow.read_arrow))
    assert arrow.read_arrow(only).shape(recipe, learning=False) == shape(recipe, [[1]], learning=False)


@pytest.mark.parametrize("makes", [pa.array(MAKES), pa.array(MAKES).dictionary_encode()])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_record_batches_are_rejected(makes: Any, codec: str) -> None:
    """Record batches with compression are rejected before they are decompressed, because they may have any size."""
    body = arrow_bytes({"make": makes, "year": YEARS}, options=pa.ipc.IpcWriteOptions(compression=codec))
    assert "The record batches are compressed" in str(rejected(SHOES, body, read=arrow.read_arrow))


def test_a_large_dictionary_for_tiny_batches_is_rejected() -> None:
    """A stream that would make pyarrow traverse a large dictionary for very many batches is rejected."""
    labels = pa.array([f"label {i:0100}" for i in range(200)])
    makes = pa.DictionaryArray.from_arrays(pa.array([0, 199] * 100, pa.int32()), labels)
    body = arrow_bytes({"make": makes, "year": range(200), "y": range(200)}, rows_in_batch=200)
    rows = arrow.read_arrow(body).shape(SHOES, learning=True)
    assert rows.categories == [[labels[0].as_py(), labels[199].as_py()] * 100]
    tiny = arrow_bytes({"make": makes, "year": range(200), "y": range(200)}, rows_in_batch=1)
    assert "write more rows per batch" in str(rejected(SHOES, tiny, read=arrow.read_arrow))


def test_malformed_arrow_streams_are_rejected() -> None:
    """A stream that is truncated, has bytes after its end, or is not a stream is malformed; equal names are invalid."""
    valid = arrow_bytes({"a": [1, 2, 3], "y": [1.0, 2.0, 3.0]})
    for body in [valid[:end] for end in range(len(valid))] + [
        valid + valid,
        valid + b"\0",
        valid + valid[-8:],
        valid[-8:],
    ]:
        with pytest.raises(MalformedError):
            arrow.read_arrow(bytearray(body))
    twice = pa.table([[1], [2]], ["a", "a"])
    file = io.BytesIO()
    with pa.ipc.new_stream(file, twice.schema) as writer:
        writer.write_table(twice)
    assert "same name" in str(rejected(PLAIN, bytearray(file.getvalue()), read=arrow.read_arrow))

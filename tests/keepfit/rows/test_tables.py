"""Tables: npy and Arrow bodies give the same rows as the same values in lists, or are rejected."""

import io
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from keepfit.errors import InvalidError, KeepfitError, MalformedError
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows import arrow, tables
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


def npy_bytes(array: Any) -> bytearray:
    """Return an array as numpy saves it."""
    file = io.BytesIO()
    np.save(file, array)
    return bytearray(file.getvalue())


def arrow_bytes(columns: dict[str, Any], rows_in_batch: int = 2, **options: Any) -> bytearray:
    """Return columns as a stream that pyarrow wrote."""
    table = pa.table(columns)
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=rows_in_batch)
    return bytearray(file.getvalue())


def rejected(recipe: Recipe, body: bytearray, *, learning: bool = True, read: Any = tables.read_npy) -> InvalidError:
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
    assert tables.read_npy(npy_bytes(array)).shape(PLAIN, learning=True) == expected
    assert tables.read_npy(npy_bytes(array)).shape(PLAIN, learning=False) == shape(PLAIN, lists, learning=False)
    assert tables.read_npy(npy_bytes(array)).shape(CLUSTERS, learning=True) == shape(CLUSTERS, lists, learning=True)
    labels = shape(INTEGERS, [row[:2] for row in lists], [int(row[2]) for row in lists], learning=True)
    assert tables.read_npy(npy_bytes(array)).shape(INTEGERS, learning=True) == labels
    as_booleans = tables.read_npy(npy_bytes(array)).shape(BOOLEANS, learning=True).target()
    assert as_booleans.tolist() == [True, False, True, True]
    assert tables.read_npy(npy_bytes(array[:, :2])).shape(NUMBERS, learning=False).width == 2


@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("learning", [False, True])
def test_a_float64_array_is_not_copied(monkeypatch: pytest.MonkeyPatch, width: int, learning: bool) -> None:
    """The rows of a float64 array share its memory, compacted over the target's column; every bit is kept."""
    monkeypatch.setattr(tables, "BLOCK_VALUES", 30)
    array = np.random.default_rng(1).standard_normal((101, width + learning))
    body = npy_bytes(array)
    rows = tables.read_npy(body).shape(PLAIN, learning=learning)
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
        (VALID.replace(b"NUMPY\1", b"NUMPY\3"), "format is 3.0"),
        (VALID.replace(b"NUMPY\1", b"NUMPY\7"), "not an npy file|format is 7.0"),
    ],
)
def test_malformed_npy_files_are_rejected(body: bytes, message: str) -> None:
    """A body that is not an npy file, or not as long as its header says, is malformed; no memory is allocated."""
    with pytest.raises(MalformedError, match=message):
        tables.read_npy(bytearray(body))


def test_corrupt_tables_raise_only_keepfit_errors() -> None:
    """An npy file or Arrow stream with changed bytes is read or raises a KeepfitError."""
    choice = random.Random(3)
    stream = arrow_bytes(
        {"make": pa.array(["a", "b", "a"]).dictionary_encode(), "year": [1, 2, 3], "y": [1.0, 2.0, 3.0]}
    )
    for valid, read, recipe in ((VALID, tables.read_npy, PLAIN), (stream, arrow.read_arrow, SHOES)):
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
    assert tables.read_npy(npy_bytes(array)).shape(NUMBERS, learning=True) == expected


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
        ({"make": ["a"], "year": [None], "y": [1]}, SHOES, "has the type null", None),
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
        ({"a": pa.array([1]).cast(pa.timestamp("s")), "y": [1]}, PLAIN, "has the type timestamp", None),
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


def test_nan_is_a_missing_value_of_a_nullable_column() -> None:
    """NaN in a column with `missing` is a missing value, in every float dtype."""
    X = np.array([[np.nan, 1], [2, -1]])
    expected = shape(TIMED, [[None, 1], [2, -1]], learning=False)
    for array in (X, X.astype("f4"), X.astype(">f8"), np.asfortranarray(X)):
        assert tables.read_npy(npy_bytes(array)).shape(TIMED, learning=False) == expected
    named = np.array([(1, np.nan), (-1, 2)], [("at", "i2"), ("a", "f4")])
    assert tables.read_npy(npy_bytes(named)).shape(TIMED, learning=False) == expected


@pytest.mark.parametrize(
    ("body", "read", "recipe", "message", "location"),
    [
        (npy_bytes(np.array([[1, np.nan, 1]])), tables.read_npy, TIMED, "column 'at': nan is not a time", (0, "at")),
        (npy_bytes(np.array([[1, 2, np.nan]])), tables.read_npy, TIMED, "target 'y': nan is not a finite", (0, "y")),
        (npy_bytes(np.array([[1, 10**12, 1]])), tables.read_npy, TIMED, "1000000000000 is not a time", (0, "at")),
        (npy_bytes(np.array([[np.inf, 1, 1]])), tables.read_npy, TIMED, "column 'a': inf is not a finite", (0, "a")),
        (npy_bytes(np.zeros((1, 5))), tables.read_npy, KINDS, "column 'make' is a category", None),
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

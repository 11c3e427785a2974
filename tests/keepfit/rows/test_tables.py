"""Tables: npy and Arrow bodies become the rows that the same values give as lists, or are refused."""

import io
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from keepfit.errors import InvalidError, KeepfitError, MalformedError
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows import arrow as frames
from keepfit.rows import tables
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


def npy(array: Any) -> bytearray:
    """An array as numpy saves it."""
    file = io.BytesIO()
    np.save(file, array)
    return bytearray(file.getvalue())


def arrow(columns: dict[str, Any], rows_in_batch: int = 2, **options: Any) -> bytearray:
    """Columns as pyarrow writes a stream of them."""
    table = pa.table(columns)
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=rows_in_batch)
    return bytearray(file.getvalue())


def refused(recipe: Recipe, body: bytearray, *, learning: bool = True, by: Any = tables.read_npy) -> InvalidError:
    """Return the error with which a table's content is refused."""
    with pytest.raises(InvalidError) as caught:
        by(body).shape(recipe, learning=learning)
    assert len(str(caught.value)) < 300
    return caught.value


@pytest.mark.parametrize("dtype", ["?", "i1", "<i2", ">i4", "i8", "u1", "u8", "f2", "<f4", ">f4", "<f8", ">f8", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_gives_the_rows_of_its_list(dtype: str, order: Any) -> None:
    """Every width and byte order of numbers, by rows or by columns, is what the same values are as lists."""
    array = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]]).astype(dtype, order=order)
    lists = [[float(value) for value in row] for row in array]
    given = shape(PLAIN, [row[:2] for row in lists], [row[2] for row in lists], learning=True)
    assert tables.read_npy(npy(array)).shape(PLAIN, learning=True) == given
    assert tables.read_npy(npy(array)).shape(PLAIN, learning=False) == shape(PLAIN, lists, learning=False)
    assert tables.read_npy(npy(array)).shape(CLUSTERS, learning=True) == shape(CLUSTERS, lists, learning=True)
    labels = shape(INTEGERS, [row[:2] for row in lists], [int(row[2]) for row in lists], learning=True)
    assert tables.read_npy(npy(array)).shape(INTEGERS, learning=True) == labels
    as_booleans = tables.read_npy(npy(array)).shape(BOOLEANS, learning=True).target()
    assert as_booleans.tolist() == [True, False, True, True]
    assert tables.read_npy(npy(array[:, :2])).shape(NUMBERS, learning=False).width == 2


@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("learning", [False, True])
def test_a_large_array_stays_where_it_is(monkeypatch: pytest.MonkeyPatch, width: int, learning: bool) -> None:
    """The rows of a float64 array are its own memory, closed up where the target stood; no bit is lost."""
    monkeypatch.setattr(tables, "BLOCK_VALUES", 30)
    array = np.random.default_rng(1).standard_normal((101, width + learning))
    body = npy(array)
    rows = tables.read_npy(body).shape(PLAIN, learning=learning)
    assert np.shares_memory(np.frombuffer(rows.numbers, np.uint8), np.frombuffer(body, np.uint8))
    assert rows.number_matrix().tobytes() == array[:, :width].tobytes()
    if learning:
        assert rows.target().tobytes() == array[:, -1].tobytes()
    assert b"".join(rows.pieces()) == rows.encode()
    assert Rows.decode(rows.encode()) == rows


@pytest.mark.parametrize(
    ("array", "recipe", "words", "place"),
    [
        (np.array([["a"]]), PLAIN, "The dtype <U1 holds no plain numbers: send bool, int", None),
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
        (np.zeros(1, [("a", "f8", 2), ("y", "f8")]), PLAIN, "holds no plain numbers", None),
        (np.zeros((1, 1), [("a", "f8"), ("y", "f8")]), PLAIN, "must have one dimension", None),
    ],
)
def test_arrays_that_are_no_rows(array: Any, recipe: Recipe, words: str, place: Any) -> None:
    """What numpy can hold and no model can learn is refused, with row and column where it is a value."""
    error = refused(recipe, npy(array))
    assert words in str(error)
    assert [(fault.row, fault.column) for fault in error.faults] == ([] if place is None else [place])


GOOD = npy(np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no npy file"),
        (b"PK\3\4" + bytes(200), "no npy file"),
        (GOOD[:60], "no npy file"),
        (GOOD[:-1], "ends before"),
        (GOOD + b"\0", "ends after"),
        (GOOD.replace(b"(2, 3)", b"(9**9, 3)"), "no npy file"),
        (GOOD.replace(b"(2, 3), }   ", b"(1<<60,3), }"), "no npy file"),
        (GOOD.replace(b"(2, 3), }          ", b"(99999999999, 3), }"), "ends before"),
        (GOOD.replace(b"(2, 3), }  ", b"(-2, -3), }"), "negative length"),
        (GOOD.replace(b"'<f8'", b"'xyz'"), "no npy file"),
        (GOOD.replace(b"NUMPY\1", b"NUMPY\3"), "format is 3.0"),
        (GOOD.replace(b"NUMPY\1", b"NUMPY\7"), "no npy file|format is 7.0"),
    ],
)
def test_what_is_no_npy_file(body: bytes, words: str) -> None:
    """A body that is not an npy file, or not as long as it says, is malformed; nothing is allocated for its claims."""
    with pytest.raises(MalformedError, match=words):
        tables.read_npy(bytearray(body))


def test_no_damage_to_a_table_makes_it_crash() -> None:
    """Whatever bytes of an npy file or Arrow stream are changed, it is read or refused by an error of ours."""
    choice = random.Random(3)
    stream = arrow({"make": pa.array(["a", "b", "a"]).dictionary_encode(), "year": [1, 2, 3], "y": [1.0, 2.0, 3.0]})
    for good, read, recipe in ((GOOD, tables.read_npy, PLAIN), (stream, frames.read_arrow, SHOES)):
        refusals = 0
        for _ in range(600):
            body = bytearray(good)
            for _ in range(choice.randint(1, 4)):
                body[choice.randrange(len(body))] = choice.choice([0, 1, 127, 128, 255, choice.randrange(256)])
            try:
                read(body).shape(recipe, learning=True)
            except KeepfitError:
                refusals += 1
        assert 0 < refusals < 600


def test_named_fields_are_columns() -> None:
    """A structured array has its columns by name, in any order, each of its own type."""
    array = np.array(
        [(4.0, 2, 1.5, 1), (5.0, 3, 2.5, 2)], [("y", "f4"), ("b", ">i2"), ("a", "f8"), ("sample_weight", "u1")]
    )
    given = shape(NUMBERS, [[1.5, 2], [2.5, 3]], [4.0, 5.0], [1, 2], learning=True)
    assert tables.read_npy(npy(array)).shape(NUMBERS, learning=True) == given


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
def test_a_stream_gives_the_rows_of_its_lists(makes: Any, rows_in_batch: int) -> None:
    """Text, plain or by dictionary, in any number of batches, and columns in any order are the rows as lists."""
    for kind in (pa.int16(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()):
        given = arrow(
            {"y": YEARS, "year": pa.array(map(float, YEARS)).cast(pa.float64()), "make": makes}, rows_in_batch
        )
        assert frames.read_arrow(given).shape(SHOES, learning=True) == SHOE_ROWS
        plain = arrow({"a": pa.array([1, 2]).cast(kind), "b": pa.array([True, False])}, rows_in_batch)
        assert frames.read_arrow(plain).shape(PLAIN, learning=False) == shape(PLAIN, [[1, 1], [2, 0]], learning=False)


def test_categories_weights_and_labels_of_a_stream() -> None:
    """Integers may be categories; weights come as a column; labels of classifiers keep their type."""
    years = pa.array([7, 8, 7])
    for makes in (years, years.dictionary_encode()):
        body = arrow({"make": makes, "year": [1, 2, 3], "sample_weight": [1, 0, 2], "y": [1, 2, 3]})
        rows = frames.read_arrow(body).shape(SHOES, learning=True)
        assert rows == shape(SHOES, [[7, 1], [8, 2], [7, 3]], [1, 2, 3], [1, 0, 2], learning=True)
    for recipe, y in ((STRINGS, ["no", "yes"]), (INTEGERS, [0, 1]), (BOOLEANS, [False, True])):
        rows = frames.read_arrow(arrow({"a": [1.0, 2.0], "y": y})).shape(recipe, learning=True)
        assert rows == shape(recipe, [[1.0], [2.0]], y, learning=True)
        assert [type(label) for label in rows.y or ()] == [type(label) for label in y]


@pytest.mark.parametrize(
    ("columns", "recipe", "words", "place"),
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
def test_streams_that_are_no_rows(columns: dict[str, Any], recipe: Recipe, words: str, place: Any) -> None:
    """Missing values, columns and types are refused, with row and column where it is a value."""
    error = refused(recipe, arrow(columns), by=frames.read_arrow)
    assert words in str(error)
    assert [(fault.row, fault.column) for fault in error.faults] == ([] if place is None else [place])


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
def test_nulls_of_a_stream_are_those_of_its_lists(rows_in_batch: int) -> None:
    """Where a value may be missing, a null of any type is that of JSON, and so is a column that is not there."""
    at, y = [0, -1, 2.5], [1, 2, 3]
    makes, notes = ["nike", None, "nike"], [None, "red", ""]
    X = [list(row) for row in zip([None, 2, None], makes, notes, at, strict=True)]
    expected = shape(KINDS, X, y, learning=True)
    sizes = [pa.array([None, 2, None], kind) for kind in (pa.int64(), pa.uint8(), pa.float16(), pa.float64())]
    for size in [*sizes, pa.array([np.nan, 2, None]), pa.array([None, 2, None], pa.int8()).dictionary_encode()]:
        for make in (pa.array(makes), pa.array(makes).dictionary_encode()):
            given = arrow({"at": at, "note": notes, "make": make, "size": size, "y": y}, rows_in_batch)
            assert frames.read_arrow(given).shape(KINDS, learning=True) == expected
    only = arrow({"at": at, "y": y}, rows_in_batch)
    absent = shape(KINDS, [{"at": time} for time in at], y, learning=True)
    assert frames.read_arrow(only).shape(KINDS, learning=True) == absent
    codes = arrow({"at": at, "make": pa.array([7, None, 8]), "y": y}, rows_in_batch)
    coded = shape(KINDS, [{"at": t, "make": m} for t, m in zip(at, [7, None, 8], strict=True)], y, learning=True)
    assert frames.read_arrow(codes).shape(KINDS, learning=True) == coded


def test_nan_in_an_array_is_missing_where_it_may_be() -> None:
    """NaN of a column with `missing` stays where it is, in every kind of float."""
    X = np.array([[np.nan, 1], [2, -1]])
    expected = shape(TIMED, [[None, 1], [2, -1]], learning=False)
    for array in (X, X.astype("f4"), X.astype(">f8"), np.asfortranarray(X)):
        assert tables.read_npy(npy(array)).shape(TIMED, learning=False) == expected
    named = np.array([(1, np.nan), (-1, 2)], [("at", "i2"), ("a", "f4")])
    assert tables.read_npy(npy(named)).shape(TIMED, learning=False) == expected


@pytest.mark.parametrize(
    ("given", "read", "recipe", "words", "place"),
    [
        (npy(np.array([[1, np.nan, 1]])), tables.read_npy, TIMED, "column 'at': nan is not a time", (0, "at")),
        (npy(np.array([[1, 2, np.nan]])), tables.read_npy, TIMED, "target 'y': nan is not a finite", (0, "y")),
        (npy(np.array([[1, 10**12, 1]])), tables.read_npy, TIMED, "1000000000000 is not a time", (0, "at")),
        (npy(np.array([[np.inf, 1, 1]])), tables.read_npy, TIMED, "column 'a': inf is not a finite", (0, "a")),
        (npy(np.zeros((1, 5))), tables.read_npy, KINDS, "column 'make' is a category", None),
        (arrow({"at": [1, None], "y": [1, 2]}), frames.read_arrow, KINDS, "value is missing (row 1)", (1, "at")),
        (arrow({"at": [1, 2], "y": [1, None]}), frames.read_arrow, KINDS, "value is missing (row 1)", (1, "y")),
        (
            arrow({"at": [1, 2], "y": [1, 2], "sample_weight": [None, 1]}),
            frames.read_arrow,
            KINDS,
            "value is missing (row 0)",
            (0, "sample_weight"),
        ),
        (arrow({"at": [1], "note": [5], "y": [1]}), frames.read_arrow, KINDS, "5 is not a text", (0, "note")),
        (arrow({"at": [1e12], "y": [1]}), frames.read_arrow, KINDS, "is not a time in seconds", (0, "at")),
        (arrow({"size": [1], "y": [1]}), frames.read_arrow, KINDS, "'at': the column is missing", (None, "at")),
    ],
)
def test_what_may_not_be_missing(given: bytearray, read: Any, recipe: Recipe, words: str, place: Any) -> None:
    """Missing values of other columns, of the target and of weights are refused, and so are times that are none."""
    error = refused(recipe, given, by=read)
    assert words in str(error)
    assert [(fault.row, fault.column) for fault in error.faults] == ([] if place is None else [place])


def test_target_and_weights_where_none_are_taken() -> None:
    """Rows to predict come without target, scores without weights, and a feature cannot share its name with either."""
    given = arrow({"a": [1], "y": [1], "sample_weight": [1]})
    assert "come without y" in str(refused(PLAIN, given, learning=False, by=frames.read_arrow))
    with pytest.raises(InvalidError, match="score takes no sample_weight"):
        frames.read_arrow(given).shape(PLAIN, learning=True, weighted=False)
    recipe = parse({"estimator": "SGDRegressor", "features": {"y": "number"}})
    only = arrow({"y": [1]})
    assert "send JSON" in str(refused(recipe, only, by=frames.read_arrow))
    assert frames.read_arrow(only).shape(recipe, learning=False) == shape(recipe, [[1]], learning=False)


@pytest.mark.parametrize("makes", [pa.array(MAKES), pa.array(MAKES).dictionary_encode()])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_stream_compressed_within_is_refused(makes: Any, codec: str) -> None:
    """Compressed batches could become any size in memory, so they are refused before they are inflated."""
    body = arrow({"make": makes, "year": YEARS}, options=pa.ipc.IpcWriteOptions(compression=codec))
    assert "compressed within" in str(refused(SHOES, body, by=frames.read_arrow))


def test_a_large_dictionary_for_tiny_batches_is_refused() -> None:
    """A dictionary is gone through with each batch, so a stream that makes this work without end is refused."""
    labels = pa.array([f"label {i:0100}" for i in range(200)])
    makes = pa.DictionaryArray.from_arrays(pa.array([0, 199] * 100, pa.int32()), labels)
    body = arrow({"make": makes, "year": range(200), "y": range(200)}, rows_in_batch=200)
    rows = frames.read_arrow(body).shape(SHOES, learning=True)
    assert rows.categories == [[labels[0].as_py(), labels[199].as_py()] * 100]
    tiny = arrow({"make": makes, "year": range(200), "y": range(200)}, rows_in_batch=1)
    assert "write more rows in each" in str(refused(SHOES, tiny, by=frames.read_arrow))


def test_what_is_no_whole_stream() -> None:
    """A stream that is cut anywhere, goes on after its end, or is no stream is malformed; so are two columns in one."""
    good = arrow({"a": [1, 2, 3], "y": [1.0, 2.0, 3.0]})
    for body in [good[:end] for end in range(len(good))] + [good + good, good + b"\0", good + good[-8:], good[-8:]]:
        with pytest.raises(MalformedError):
            frames.read_arrow(bytearray(body))
    twice = pa.table([[1], [2]], ["a", "a"])
    file = io.BytesIO()
    with pa.ipc.new_stream(file, twice.schema) as writer:
        writer.write_table(twice)
    assert "same name" in str(refused(PLAIN, bytearray(file.getvalue()), by=frames.read_arrow))

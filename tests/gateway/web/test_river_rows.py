"""Rows for River models: any columns, missing values, and the same bundle in whichever form they are sent."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.errors import InvalidError
from keepfit.model import river_adapter
from keepfit.model.fit_loop import fit_requests
from keepfit.model.object_bundle import new_bundle
from keepfit.objects import dump
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.store.dead_letters import decode_payload
from keepfit_gateway.web import rows_body
from tests.gateway.web.test_entrances import large, small, stream, strict, table
from tests.keepfit.test_objects import KEYS, UPLOADS


class Recorder:
    """Records its rows."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def learn_one(self, x: dict[Any, Any], y: float) -> None:
        """Record a row."""
        self.rows.append((x, y))

    def predict_one(self, x: dict[Any, Any]) -> float:
        """Return the number of columns."""
        return float(len(x))


OBJECT = dump(Recorder(), KEYS, kind="regressor")
FREE = parse({"object": OBJECT}, UPLOADS)
FEATURES = {"n": "number", "c": "category", "b": "boolean", "t": "timestamp", "é": "text"}
NAMED = parse({"object": OBJECT, "features": FEATURES}, UPLOADS)
NAN = float("nan")

values: dict[str, Any] = {
    "n": st.floats(-1e9, 1e9),
    "c": st.sampled_from(["", "1", "nike", "e\u0301"]),
    "b": st.booleans(),
    "t": st.integers(0, 2**31).map(float),
    "é": st.sampled_from(["", "red shoes"]),
}
named_rows = st.fixed_dictionaries({}, optional={name: value | st.none() for name, value in values.items()})
free_rows = st.dictionaries(
    st.sampled_from(["n", "c", "new", "e\u0301", "x y"]), st.one_of(st.none(), *values.values(), st.just("cafe\u0301"))
)


def dicts(recipe: Recipe, rows: Rows) -> list[dict[Any, Any]]:
    """Return rows as the model gets them, in a worker."""
    return river_adapter.to_dicts(recipe, Rows.decode(rows.encode()))


def normal(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the model gets for a row of JSON: text with composed accents."""
    composed = {"e\u0301": "é", "cafe\u0301": "café"}
    return {composed.get(name, name): composed.get(v, v) if type(v) is str else v for name, v in row.items()}


@settings(deadline=None)
@pytest.mark.parametrize(("recipe", "rows"), [(FREE, free_rows), (NAMED, named_rows)], ids=["free", "named"])
@given(data=st.data())
def test_rows_are_the_same_by_every_parser_and_alone(recipe: Recipe, rows: Any, data: st.DataObject) -> None:
    """Each row reaches the model with its own columns and nulls, by each JSON parser, in a batch and alone."""
    X = data.draw(st.lists(rows, min_size=1, max_size=5))
    y = [float(i) for i in range(len(X))]
    body = json.dumps({"X": X, "y": y}).encode()
    for read in (small, strict, large):
        shaped = read(body, recipe)
        assert dicts(recipe, shaped) == [normal(row) for row in X]
        assert shaped.encode() == small(body, recipe).encode()
    alone = [dicts(recipe, shape(recipe, [row], learning=False))[0] for row in X]
    assert alone == [normal(row) for row in X]
    assert [{name: type(v) for name, v in row.items()} for row in alone] == [
        {name: type(v) for name, v in normal(row).items()} for row in X
    ]
    sent = decode_payload(recipe, shape(recipe, X, y, learning=True).encode())
    assert shape(recipe, sent["X"], sent["y"], learning=True) == shape(recipe, X, y, learning=True)


def test_tables_give_the_dicts_of_json() -> None:
    """Arrow and npy with named fields give the dicts of JSON objects; a null is None, an absent column is absent."""
    X = [{"n": 1.5, "b": True, "c": "a"}, {"n": None, "b": None, "c": None}]
    columns = {"c": ["a", None], "b": [True, None], "n": [1.5, None], "y": [1.0, 2.0]}
    body = stream(pa.table(columns), 1)
    for recipe in (FREE, NAMED):
        expected = shape(recipe, X, [1.0, 2.0], learning=True)
        assert table(body, rows_body.ARROW, recipe).encode() == expected.encode()
    array = np.array([(1.5, 1.0), (NAN, 2.0)], [("n", "f8"), ("y", "f8")])
    file = io.BytesIO()
    np.save(file, array)
    for recipe in (FREE, NAMED):
        expected = shape(recipe, [{"n": 1.5}, {"n": None}], [1.0, 2.0], learning=True)
        assert table(file.getvalue(), rows_body.NPY, recipe).encode() == expected.encode()


def test_lists_are_rows_by_position() -> None:
    """A list is a row by position, with null for a missing value, as a matrix with NaN is."""
    rows = shape(FREE, [[1, None], ["a", True]], [1, 2], learning=True)
    assert dicts(FREE, rows) == [{0: 1.0, 1: None}, {0: "a", 1: True}]
    file = io.BytesIO()
    np.save(file, [[1, NAN, 3], [2, 5, 4]])
    expected = shape(FREE, [[1, None], [2, 5]], [3, 4], learning=True)
    assert table(file.getvalue(), rows_body.NPY, FREE) == expected


def test_the_order_of_columns_does_not_matter() -> None:
    """Columns reach the model in one order, so that sums over a dict have one result."""
    rows = [shape(FREE, [row], learning=False) for row in ({"a": 1, "b": 2}, {"b": 2.0, "a": 1.0})]
    assert rows[0].encode() == rows[1].encode()


def test_numbers_are_floats() -> None:
    """1 and 1.0 are the same number, as clients in JavaScript cannot tell them apart; true is not a number."""
    (row,) = dicts(FREE, shape(FREE, [{"a": 1, "b": -0.0, "c": True, "d": "1"}], learning=False))
    assert [repr(value) for value in row.values()] == ["1.0", "-0.0", "True", "'1'"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": [1]}, "column 'a': a list is not a value: send a number, text, true, false or null (row 1)"),
        ({"a": {"b": 1}}, "column 'a': an object is not a value"),
        ({"a": 2**53}, "column 'a': 9007199254740992 is 2^53 or more"),
        ({"a": 1e39}, "column 'a': 1e+39 is not a finite number"),
        ({"a": "x" * 65_537}, "column 'a': the text has 65537 characters"),
        ({"": 1}, "column '': the name is empty, longer than 256 characters, or holds a NUL"),
        ({"é": 1, "e\u0301": 2}, "the row has one name in two Unicode forms (row 1)"),
        ([], "the row is empty (row 1)"),
        (7, "a row is a list of values or an object by column name (row 1)"),
    ],
)
def test_invalid_free_rows_are_rejected(row: Any, message: str) -> None:
    """A value that is nested or too large, and a name that cannot be used, are rejected with row and column."""
    with pytest.raises(InvalidError) as caught:
        shape(FREE, [{"a": 1}, row], learning=False)
    assert message in str(caught.value)


def test_named_columns_are_checked() -> None:
    """With features a row may lack columns, and neither have others nor values of another kind."""
    with pytest.raises(InvalidError, match="column 'z': the recipe has no such column"):
        shape(NAMED, [{"z": 1}], learning=False)
    with pytest.raises(InvalidError, match="column 'n': 'a' is not a number"):
        shape(NAMED, [{"n": "a"}], learning=False)


@pytest.mark.parametrize("features", [None, FEATURES], ids=["free", "named"])
def test_merged_requests_of_different_forms(features: Any) -> None:
    """Pending requests with and without missing columns, and of 0.1, are learned in their order as one by one."""
    recipe = parse({"object": OBJECT, "features": features, "updates": "merged"}, UPLOADS)
    X: list[Any] = [{"n": 1.0, "c": "a", "b": True, "t": 5.0, "é": "x"}, {"n": 2.0}, {"c": None}, {}]
    requests = [shape(recipe, [row], [i], learning=True) for i, row in enumerate(X)]
    if features is None:
        requests.append(Rows(1, np.array([7.0, 8.0]).tobytes(), [], np.array([4.0]).tobytes()))
        X.append({0: 7.0, 1: 8.0})

    class Request:
        change = None
        wants_answer = False
        accepted_s = 0.0

        def __init__(self, rows: Rows) -> None:
            self._rows = rows

        def rows(self) -> Rows:
            """Return its rows."""
            return self._rows

    commit: Callable[[Any, Any], Any] = lambda bundle, fitted: (bundle.estimator.rows, fitted.count)  # noqa: E731
    learned, count = fit_requests(
        new_bundle(recipe, UPLOADS), lambda: new_bundle(recipe, UPLOADS), [Request(r) for r in requests], commit, 10
    )
    assert learned == [(row, float(i)) for i, row in enumerate(X)]
    assert count == len(X)

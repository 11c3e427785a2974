"""Columns: growing label lists, the scaler, and the matrix they give."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction import FeatureHasher
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

from keepfit.model.columns import UNKNOWN, Columns
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape

FEATURES = {"make": "category", "year": "number", "colour": "category", "size": "number"}
labels = st.sampled_from(["nike", "puma", "asics", "", "é", 1, 2, "1"])


def recipe(**fields: Any) -> Recipe:
    """Recipe with the columns of this module."""
    return parse({"estimator": "SGDRegressor", "features": FEATURES, **fields})


def rows(wanted: Recipe, *X: list[Any]) -> Rows:
    """Rows without a target."""
    return shape(wanted, list(X), learning=False)


def learned(wanted: Recipe, *X: list[Any]) -> Columns:
    """Columns that have learned the rows `X`, one call."""
    columns = Columns.new(wanted)
    columns.partial_fit(wanted, rows(wanted, *X))
    return columns


def test_labels_get_codes_in_order_of_first_sight() -> None:
    """Each column counts its own labels from 0, in the order in which they were learned."""
    columns = learned(recipe(), ["nike", 1, "red", 1], ["puma", 1, "red", 1], ["nike", 1, "blue", 1])
    assert columns.labels == [{"nike": 0, "puma": 1}, {"red": 0, "blue": 1}]
    columns.partial_fit(recipe(), rows(recipe(), ["asics", 1, "blue", 1]))
    assert columns.labels == [{"nike": 0, "puma": 1, "asics": 2}, {"red": 0, "blue": 1}]


def test_text_and_number_are_two_labels() -> None:
    """The string "1" and the integer 1 get codes of their own."""
    assert learned(recipe(), ["1", 0, 1, 0], [1, 0, "1", 0]).labels == [{"1": 0, 1: 1}, {1: 0, "1": 1}]


@settings(deadline=None)
@given(st.lists(st.lists(labels, min_size=1, max_size=4), min_size=1, max_size=6))
def test_a_label_keeps_its_code_for_ever(batches: list[list[Any]]) -> None:
    """Whatever is learned later, a code once given stays; codes are 0, 1, 2, … without gaps."""
    wanted = parse({"estimator": "SGDRegressor", "features": {"a": "category"}})
    columns, before = Columns.new(wanted), dict[Any, int]()
    for batch in batches:
        columns.partial_fit(wanted, rows(wanted, *([label] for label in batch)))
        (known,) = columns.labels
        assert before.items() <= known.items()
        assert list(known.values()) == list(range(len(known)))
        codes = columns.transform(wanted, rows(wanted, *([label] for label in batch)))[:, 0]
        assert codes.tolist() == [known[label] for label in batch]
        before = dict(known)


def test_ordinal_keeps_the_recipes_order_and_says_unknown() -> None:
    """Ordinal columns stand where the recipe has them; a label not learned yet is -1."""
    wanted = recipe()
    columns = learned(wanted, ["nike", 2001, "red", 4], ["puma", 2003, "blue", 5])
    matrix = columns.transform(wanted, rows(wanted, ["puma", 2010, "red", 6], ["asics", 2011, "blue", 7]))
    assert matrix.tolist() == [[1.0, 2010.0, 0.0, 6.0], [UNKNOWN, 2011.0, 1.0, 7.0]]
    assert matrix.dtype == np.float64


def test_onehot_keeps_the_recipes_order_and_unknown_is_zeros() -> None:
    """One-hot blocks stand where the recipe has their column; a label not learned yet is all zeros."""
    wanted = recipe(encoding="onehot", max_categories=3)
    columns = learned(wanted, ["nike", 2001, "red", 4], ["puma", 2003, "blue", 5])
    matrix = columns.transform(wanted, rows(wanted, ["puma", 2010, "red", 6], ["asics", 2011, "blue", 7]))
    assert matrix.tolist() == [
        [0.0, 1.0, 0.0, 2010.0, 1.0, 0.0, 0.0, 6.0],
        [0.0, 0.0, 0.0, 2011.0, 0.0, 1.0, 0.0, 7.0],
    ]


def test_labels_beyond_max_categories_are_zeros() -> None:
    """The label after the last column is learned, keeps its code, and is encoded as zeros."""
    wanted = parse(
        {"estimator": "SGDRegressor", "features": {"a": "category"}, "encoding": "onehot", "max_categories": 2}
    )
    columns = learned(wanted, ["x"], ["y"], ["z"])
    assert columns.labels == [{"x": 0, "y": 1, "z": 2}]
    matrix = columns.transform(wanted, rows(wanted, ["x"], ["y"], ["z"], ["unseen"]))
    assert matrix.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("encoding", ["onehot", "hash"])
def test_the_width_never_changes(encoding: str) -> None:
    """However many labels are learned, the estimator sees the same number of columns."""
    wanted = recipe(encoding=encoding, max_categories=4, n_features=8)
    columns = Columns.new(wanted)
    width = {"onehot": 4 + 1 + 4 + 1, "hash": 2 + 8}[encoding]
    for number in range(10):
        batch = rows(wanted, [f"make{number}", number, f"colour{number}", number])
        assert columns.transform(wanted, batch).shape == (1, width)
        columns.partial_fit(wanted, batch)
        assert columns.transform(wanted, batch).shape == (1, width)


def test_hash_is_feature_hashing_of_column_and_label() -> None:
    """Number columns come first, then scikit-learn's FeatureHasher over "column=label"."""
    wanted = recipe(encoding="hash", n_features=16)
    matrix = learned(wanted, ["nike", 2001, "red", 4]).transform(wanted, rows(wanted, ["puma", 2010, "red", 6]))
    hasher = FeatureHasher(n_features=16, input_type="string")
    assert matrix[:, :2].tolist() == [[2010.0, 6.0]]
    assert matrix[:, 2:].tolist() == hasher.transform([["make=puma", "colour=red"]]).toarray().tolist()
    assert matrix[:, 2:].any()


def test_hash_needs_to_have_learned_nothing() -> None:
    """A label is hashed the same before and after it was learned."""
    wanted = recipe(encoding="hash", n_features=16)
    columns, batch = Columns.new(wanted), rows(wanted, ["nike", 2001, "red", 4])
    before = columns.transform(wanted, batch)
    columns.partial_fit(wanted, batch)
    assert columns.transform(wanted, batch).tolist() == before.tolist()


@pytest.mark.parametrize("scaler", [StandardScaler, MinMaxScaler, MaxAbsScaler])
def test_the_scaler_sees_number_columns_only(scaler: type[Any]) -> None:
    """Numbers are scaled as scikit-learn's scaler does it, fed the same batches; codes are left alone."""
    wanted = recipe(scaler=scaler.__name__)
    columns, plain = Columns.new(wanted), scaler()
    for X in ([["nike", 1, "red", 10]], [["puma", 5, "red", 30], ["puma", 7, "blue", -20]]):
        columns.partial_fit(wanted, rows(wanted, *X))
        plain.partial_fit(np.array([[row[1], row[3]] for row in X], dtype=float))
    matrix = columns.transform(wanted, rows(wanted, ["puma", 2, "blue", 3]))
    assert matrix[:, [1, 3]].tobytes() == plain.transform(np.array([[2.0, 3.0]])).tobytes()
    assert matrix[:, [0, 2]].tolist() == [[1.0, 1.0]]


def test_without_features_the_matrix_is_the_rows() -> None:
    """Plain numeric rows pass as they are, or scaled."""
    plain = parse({"estimator": "SGDRegressor"})
    assert learned(plain, [1, 2]).transform(plain, rows(plain, [3, 4.5])).tolist() == [[3.0, 4.5]]
    scaled = parse({"estimator": "SGDRegressor", "scaler": "MaxAbsScaler"})
    assert learned(scaled, [2, 4]).transform(scaled, rows(scaled, [1, 1])).tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize("encoding", ["ordinal", "onehot", "hash"])
@pytest.mark.parametrize("scaler", [None, "StandardScaler"])
def test_transform_changes_nothing(encoding: str, scaler: str | None) -> None:
    """Encoding rows with unseen labels neither learns them nor touches the rows."""
    wanted = recipe(encoding=encoding, scaler=scaler)
    columns = learned(wanted, ["nike", 2001, "red", 4], ["puma", 2003, "blue", 5])
    batch = rows(wanted, ["unseen", 1e6, "unseen", -1e6], ["nike", 2001, "red", 4])
    before, batch_before = pickle.dumps(columns), copy.deepcopy(batch)
    first = columns.transform(wanted, batch)
    assert columns.transform(wanted, batch).tobytes() == first.tobytes()
    assert pickle.dumps(columns) == before
    assert batch == batch_before


def test_only_categories_give_a_matrix_of_floats() -> None:
    """Without number columns the codes still come as float64, as estimators want them."""
    wanted = parse({"estimator": "SGDRegressor", "features": {"a": "category", "b": "category"}})
    matrix = learned(wanted, ["x", "y"]).transform(wanted, rows(wanted, ["x", "z"], ["w", "y"]))
    assert matrix.tolist() == [[0.0, -1.0], [-1.0, 0.0]]
    assert matrix.dtype == np.float64

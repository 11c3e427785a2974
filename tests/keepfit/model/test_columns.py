"""Columns: label lists, the scaler, and the matrix that they give."""

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
    """Return a recipe with the columns of this module."""
    return parse({"estimator": "SGDRegressor", "features": FEATURES, **fields})


def rows(target_recipe: Recipe, *X: list[Any]) -> Rows:
    """Return rows without a target."""
    return shape(target_recipe, list(X), learning=False)


def learned(target_recipe: Recipe, *X: list[Any]) -> Columns:
    """Return columns that have learned the rows `X` in one call."""
    columns = Columns.new(target_recipe)
    columns.partial_fit(target_recipe, rows(target_recipe, *X))
    return columns


def test_labels_get_codes_in_order_of_first_occurrence() -> None:
    """Codes of each column count from 0, in the order in which labels are learned."""
    columns = learned(recipe(), ["nike", 1, "red", 1], ["puma", 1, "red", 1], ["nike", 1, "blue", 1])
    assert columns.labels == [{"nike": 0, "puma": 1}, {"red": 0, "blue": 1}]
    columns.partial_fit(recipe(), rows(recipe(), ["asics", 1, "blue", 1]))
    assert columns.labels == [{"nike": 0, "puma": 1, "asics": 2}, {"red": 0, "blue": 1}]


def test_text_and_number_are_two_labels() -> None:
    """The string "1" and the integer 1 get different codes."""
    assert learned(recipe(), ["1", 0, 1, 0], [1, 0, "1", 0]).labels == [{"1": 0, 1: 1}, {1: 0, "1": 1}]


@settings(deadline=None)
@given(st.lists(st.lists(labels, min_size=1, max_size=4), min_size=1, max_size=6))
def test_a_label_keeps_its_code(batches: list[list[Any]]) -> None:
    """A code never changes when more labels are learned; codes are 0, 1, 2, … without gaps."""
    target_recipe = parse({"estimator": "SGDRegressor", "features": {"a": "category"}})
    columns, before = Columns.new(target_recipe), dict[Any, int]()
    for batch in batches:
        columns.partial_fit(target_recipe, rows(target_recipe, *([label] for label in batch)))
        (known,) = columns.labels
        assert before.items() <= known.items()
        assert list(known.values()) == list(range(len(known)))
        codes = columns.transform(target_recipe, rows(target_recipe, *([label] for label in batch)))[:, 0]
        assert codes.tolist() == [known[label] for label in batch]
        before = dict(known)


def test_ordinal_encoding_keeps_the_column_order_and_marks_unknown_labels() -> None:
    """Ordinal columns are in the recipe's order; an unknown label is -1."""
    target_recipe = recipe()
    columns = learned(target_recipe, ["nike", 2001, "red", 4], ["puma", 2003, "blue", 5])
    matrix = columns.transform(target_recipe, rows(target_recipe, ["puma", 2010, "red", 6], ["asics", 2011, "blue", 7]))
    assert matrix.tolist() == [[1.0, 2010.0, 0.0, 6.0], [UNKNOWN, 2011.0, 1.0, 7.0]]
    assert matrix.dtype == np.float64


def test_one_hot_encoding_keeps_the_column_order_and_unknown_labels_are_zeros() -> None:
    """One-hot blocks are in the recipe's order; an unknown label is all zeros."""
    target_recipe = recipe(encoding="onehot", max_categories=3)
    columns = learned(target_recipe, ["nike", 2001, "red", 4], ["puma", 2003, "blue", 5])
    matrix = columns.transform(target_recipe, rows(target_recipe, ["puma", 2010, "red", 6], ["asics", 2011, "blue", 7]))
    assert matrix.tolist() == [
        [0.0, 1.0, 0.0, 2010.0, 1.0, 0.0, 0.0, 6.0],
        [0.0, 0.0, 0.0, 2011.0, 0.0, 1.0, 0.0, 7.0],
    ]


def test_labels_beyond_max_categories_are_zeros() -> None:
    """A label beyond the last one-hot column is learned, keeps its code, and is encoded as zeros."""
    target_recipe = parse(
        {"estimator": "SGDRegressor", "features": {"a": "category"}, "encoding": "onehot", "max_categories": 2}
    )
    columns = learned(target_recipe, ["x"], ["y"], ["z"])
    assert columns.labels == [{"x": 0, "y": 1, "z": 2}]
    matrix = columns.transform(target_recipe, rows(target_recipe, ["x"], ["y"], ["z"], ["unseen"]))
    assert matrix.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("encoding", ["onehot", "hash"])
def test_the_matrix_width_is_constant(encoding: str) -> None:
    """The number of matrix columns does not depend on the number of learned labels."""
    target_recipe = recipe(encoding=encoding, max_categories=4, n_features=8)
    columns = Columns.new(target_recipe)
    width = {"onehot": 4 + 1 + 4 + 1, "hash": 2 + 8}[encoding]
    for number in range(10):
        batch = rows(target_recipe, [f"make{number}", number, f"colour{number}", number])
        assert columns.transform(target_recipe, batch).shape == (1, width)
        columns.partial_fit(target_recipe, batch)
        assert columns.transform(target_recipe, batch).shape == (1, width)


def test_hash_encoding_equals_feature_hasher() -> None:
    """The matrix has the number columns first, then the output of scikit-learn's FeatureHasher for "column=label"."""
    target_recipe = recipe(encoding="hash", n_features=16)
    matrix = learned(target_recipe, ["nike", 2001, "red", 4]).transform(
        target_recipe, rows(target_recipe, ["puma", 2010, "red", 6])
    )
    hasher = FeatureHasher(n_features=16, input_type="string")
    assert matrix[:, :2].tolist() == [[2010.0, 6.0]]
    assert matrix[:, 2:].tolist() == hasher.transform([["make=puma", "colour=red"]]).toarray().tolist()
    assert matrix[:, 2:].any()


def test_hash_encoding_does_not_depend_on_learned_labels() -> None:
    """A label has the same hash before and after it is learned."""
    target_recipe = recipe(encoding="hash", n_features=16)
    columns, batch = Columns.new(target_recipe), rows(target_recipe, ["nike", 2001, "red", 4])
    before = columns.transform(target_recipe, batch)
    columns.partial_fit(target_recipe, batch)
    assert columns.transform(target_recipe, batch).tolist() == before.tolist()


@pytest.mark.parametrize("scaler", [StandardScaler, MinMaxScaler, MaxAbsScaler])
def test_the_scaler_scales_number_columns_only(scaler: type[Any]) -> None:
    """Numbers are scaled as scikit-learn's scaler does after the same batches; codes are not scaled."""
    target_recipe = recipe(scaler=scaler.__name__)
    columns, plain = Columns.new(target_recipe), scaler()
    for X in ([["nike", 1, "red", 10]], [["puma", 5, "red", 30], ["puma", 7, "blue", -20]]):
        columns.partial_fit(target_recipe, rows(target_recipe, *X))
        plain.partial_fit(np.array([[row[1], row[3]] for row in X], dtype=float))
    matrix = columns.transform(target_recipe, rows(target_recipe, ["puma", 2, "blue", 3]))
    assert matrix[:, [1, 3]].tobytes() == plain.transform(np.array([[2.0, 3.0]])).tobytes()
    assert matrix[:, [0, 2]].tolist() == [[1.0, 1.0]]


def test_without_features_the_matrix_is_the_rows() -> None:
    """Rows of numbers are the matrix, unchanged or scaled."""
    plain = parse({"estimator": "SGDRegressor"})
    assert learned(plain, [1, 2]).transform(plain, rows(plain, [3, 4.5])).tolist() == [[3.0, 4.5]]
    scaled = parse({"estimator": "SGDRegressor", "scaler": "MaxAbsScaler"})
    assert learned(scaled, [2, 4]).transform(scaled, rows(scaled, [1, 1])).tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize("encoding", ["ordinal", "onehot", "hash"])
@pytest.mark.parametrize("scaler", [None, "StandardScaler"])
def test_transform_changes_nothing(encoding: str, scaler: str | None) -> None:
    """Encoding rows with unknown labels neither learns them nor changes the rows."""
    target_recipe = recipe(encoding=encoding, scaler=scaler)
    columns = learned(target_recipe, ["nike", 2001, "red", 4], ["puma", 2003, "blue", 5])
    batch = rows(target_recipe, ["unseen", 1e6, "unseen", -1e6], ["nike", 2001, "red", 4])
    before, batch_before = pickle.dumps(columns), copy.deepcopy(batch)
    first = columns.transform(target_recipe, batch)
    assert columns.transform(target_recipe, batch).tobytes() == first.tobytes()
    assert pickle.dumps(columns) == before
    assert batch == batch_before


def test_a_matrix_of_categories_only_is_float64() -> None:
    """Without number columns the codes are still float64, which estimators require."""
    target_recipe = parse({"estimator": "SGDRegressor", "features": {"a": "category", "b": "category"}})
    matrix = learned(target_recipe, ["x", "y"]).transform(target_recipe, rows(target_recipe, ["x", "z"], ["w", "y"]))
    assert matrix.tolist() == [[0.0, -1.0], [-1.0, 0.0]]
    assert matrix.dtype == np.float64

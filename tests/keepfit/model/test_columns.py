"""Columns: label lists, the scaler, and the matrix that they give."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction import FeatureHasher
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, OneHotEncoder, StandardScaler

from keepfit.errors import InvalidError
from keepfit.model.columns import Columns
from keepfit.recipe.features import ORDINAL_CATEGORIES_MAX
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.scoring import category_codes
from keepfit.scoring.category_codes import RULE_JSON, RULE_TEXT, SIZE_MAX, SIZE_OF_LABEL

FEATURES = {"make": "category", "year": "number", "colour": "category", "size": "number"}
labels = st.sampled_from(["nike", "puma", "asics", "", "é", 1, 2, "1"])


def recipe(**fields: Any) -> Recipe:
    """Return a recipe with the columns of this module."""
    return parse({"estimator": "SGDRegressor", "features": FEATURES, "encoding": "ordinal", **fields})


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
    target_recipe = parse({"estimator": "SGDRegressor", "features": {"a": "category"}, "encoding": "ordinal"})
    columns, before = Columns.new(target_recipe), dict[Any, int]()
    for batch in batches:
        columns.partial_fit(target_recipe, rows(target_recipe, *([label] for label in batch)))
        (known,) = columns.labels
        assert before.items() <= known.items()
        assert list(known.values()) == list(range(len(known)))
        codes = columns.transform(target_recipe, rows(target_recipe, *([label] for label in batch)))[:, 0]
        assert codes.tolist() == [known[label] + 1 for label in batch]
        before = dict(known)


def test_ordinal_encoding_keeps_the_column_order_and_unknown_labels_are_zero() -> None:
    """Ordinal columns are in the recipe's order; codes begin with 1, and an unknown label is 0."""
    target_recipe = recipe()
    columns = learned(target_recipe, ["nike", 2001, "red", 4], ["puma", 2003, "blue", 5])
    matrix = columns.transform(target_recipe, rows(target_recipe, ["puma", 2010, "red", 6], ["asics", 2011, "blue", 7]))
    assert matrix.tolist() == [[2.0, 2010.0, 1.0, 6.0], [0.0, 2011.0, 2.0, 7.0]]
    assert matrix.dtype == np.float64


def test_one_hot_encoding_keeps_the_column_order_and_unknown_labels_are_zeros() -> None:
    """One-hot blocks are in the recipe's order; an unknown label is all zeros."""
    target_recipe = recipe(encoding="onehot", max_categories=4)
    columns = learned(target_recipe, ["nike", 2001, "red", 4], ["puma", 2003, "blue", 5])
    matrix = columns.transform(target_recipe, rows(target_recipe, ["puma", 2010, "red", 6], ["asics", 2011, "blue", 7]))
    assert matrix.tolist() == [
        [0.0, 1.0, 0.0, 0.0, 2010.0, 1.0, 0.0, 0.0, 0.0, 6.0],
        [0.0, 0.0, 0.0, 0.0, 2011.0, 0.0, 1.0, 0.0, 0.0, 7.0],
    ]


def one_column(encoding: str, **options: Any) -> Recipe:
    """Return a recipe with one category column, "a"."""
    features = {"a": {"type": "category", **options}}
    return parse({"estimator": "SGDRegressor", "features": features, "encoding": encoding})


@pytest.mark.parametrize("missing", [None, "zero", "indicator"])
def test_labels_beyond_max_categories_are_infrequent(missing: str | None) -> None:
    """Once all codes have labels, other labels share the last column, as in scikit-learn; a missing one is zeros."""
    target_recipe = one_column("onehot", max_categories=3, **({"missing": missing} if missing else {}))
    columns = learned(target_recipe, ["x"])
    # There is a column left for it.
    assert columns.transform(target_recipe, rows(target_recipe, ["z"])).tolist() == [[0.0, 0.0, 0.0]]
    columns.partial_fit(target_recipe, rows(target_recipe, ["y"], ["z"]))
    assert columns.labels == [{"x": 0, "y": 1}]
    matrix = columns.transform(target_recipe, rows(target_recipe, ["x"], ["y"], ["z"], ["unseen"]))
    assert matrix.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    encoder = OneHotEncoder(max_categories=3, handle_unknown="infrequent_if_exist", sparse_output=False)
    encoder.fit([["x"], ["x"], ["y"], ["y"], ["z"], ["w"]])
    assert matrix.tolist() == encoder.transform([["x"], ["y"], ["z"], ["unseen"]]).tolist()
    assert columns.names(target_recipe) == ["a=x", "a=y", "a:infrequent"]
    if missing is not None:
        matrix = columns.transform(target_recipe, rows(target_recipe, [None]))
        assert matrix.tolist() == [[0.0, 0.0, float(missing == "indicator")]]


def test_ordinal_labels_beyond_the_limit_are_infrequent() -> None:
    """After 65,535 labels an ordinal column keeps their codes, and gives all further labels the code 0."""
    target_recipe = one_column("ordinal")
    columns = learned(target_recipe, *([label] for label in range(ORDINAL_CATEGORIES_MAX - 2)))
    columns.partial_fit(target_recipe, rows(target_recipe, ["last"], ["beyond"], ["further"]))
    assert len(columns.labels[0]) == ORDINAL_CATEGORIES_MAX - 1
    matrix = columns.transform(target_recipe, rows(target_recipe, [0], ["last"], ["beyond"]))
    assert matrix.tolist() == [[1.0], [ORDINAL_CATEGORIES_MAX - 1.0], [0.0]]


@pytest.mark.parametrize("encoding", ["onehot", "ordinal"])
@pytest.mark.parametrize("max_categories", [1, 2, 5])
def test_each_column_has_a_bound_of_its_own(encoding: str, max_categories: int) -> None:
    """A column's `max_categories` counts the code of infrequent labels, and changes no other column."""
    features = {"a": {"type": "category", "max_categories": max_categories}, "b": "category"}
    target_recipe = parse({"estimator": "SGDRegressor", "features": features, "encoding": encoding})
    columns = learned(target_recipe, *([f"a{i}", f"b{i}"] for i in range(10)))
    assert [len(known) for known in columns.labels] == [max_categories - 1, 10]
    matrix = columns.transform(target_recipe, rows(target_recipe, ["a9", "b9"]))
    if encoding == "onehot":
        assert matrix[0].nonzero()[0].tolist() == [max_categories - 1, max_categories + 9]
        assert target_recipe.layout.width == max_categories + 128
    else:
        assert matrix.tolist() == [[0.0, 10.0]]


def test_a_bound_of_labels_needs_an_encoding_with_labels() -> None:
    """`max_categories` of a column is refused with hashes, and if it is no number of columns."""
    with pytest.raises(InvalidError, match="the feature 'a': leave out max_categories, which has no effect with"):
        one_column("hash", max_categories=3)
    for wrong in (0, -1, 10**9):
        with pytest.raises(InvalidError, match="the feature 'a': max_categories must be between 1 and 1000000"):
            one_column("ordinal", max_categories=wrong)


@pytest.mark.parametrize("encoding", ["onehot", "ordinal"])
def test_the_labels_of_all_columns_share_a_bound(encoding: str) -> None:
    """Long labels get codes until the labels of all columns have 8 Mi characters; then new ones are infrequent."""
    features = {name: {"type": "category", "max_categories": 20_000} for name in "ab"}
    target_recipe = parse({"estimator": "SGDRegressor", "features": features, "encoding": encoding})
    columns = Columns.new(target_recipe)
    long = 1024 - 8
    for start in (0, 3000):
        part = [[f"{i:08}" + "x" * long, f"{i:08}" + "y" * long] for i in range(start, start + 3000)]
        columns.partial_fit(target_recipe, rows(target_recipe, *part))
    total = sum(map(len, columns.labels))
    assert total == SIZE_MAX // (1024 + SIZE_OF_LABEL)
    assert min(map(len, columns.labels)) > 2000
    last = rows(target_recipe, ["x" * 1024, "00000001" + "y" * long])
    columns.partial_fit(target_recipe, last)
    assert sum(map(len, columns.labels)) == total
    matrix = columns.transform(target_recipe, last)
    assert matrix[0].nonzero()[0].tolist() == ([19_999, 20_001] if encoding == "onehot" else [1])


def test_labels_get_the_same_codes_however_rows_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the labels of all columns have no more room, those of earlier rows have codes, whatever their column."""
    monkeypatch.setattr(category_codes, "SIZE_MAX", 5 * (SIZE_OF_LABEL + 2))
    target_recipe = parse({"estimator": "SGDRegressor", "features": {"a": "category", "b": "category"}})
    listed = [[f"a{i}", f"b{i}"] for i in range(5)]
    one_by_one, together = Columns.new(target_recipe), Columns.new(target_recipe)
    for row in listed:
        one_by_one.partial_fit(target_recipe, rows(target_recipe, row))
    together.partial_fit(target_recipe, rows(target_recipe, *listed))
    assert one_by_one.labels == together.labels == [{"a0": 0, "a1": 1, "a2": 2}, {"b0": 0, "b1": 1}]
    assert one_by_one.room == together.room == Columns(None, together.labels).room == 0


def test_a_bundle_of_an_earlier_release_goes_on_as_it_began() -> None:
    """Its codes stay those with which its weights were learned: without a code of infrequent labels."""
    target_recipe = one_column("onehot", max_categories=2)
    columns = Columns(None, [{"x": 0}], rule=RULE_JSON)
    columns.partial_fit(target_recipe, rows(target_recipe, ["y"], ["new"]))
    assert columns.labels == [{"x": 0, "y": 1}]
    assert columns.transform(target_recipe, rows(target_recipe, ["y"], ["z"])).tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert columns.names(target_recipe) == ["a=x", "a=y"]
    # 0.1 stored labels for which there is no column.
    columns = Columns(None, [{"x": 0, "y": 1, "z": 2}], rule=RULE_TEXT)
    columns.partial_fit(target_recipe, rows(target_recipe, ["z"], ["new"]))
    assert columns.labels == [{"x": 0, "y": 1, "z": 2}]
    assert columns.transform(target_recipe, rows(target_recipe, ["y"], ["z"])).tolist() == [[0.0, 1.0], [0.0, 0.0]]
    columns = Columns(None, [{"x": 0, "y": 1}], rule=RULE_TEXT)
    ordinal = one_column("ordinal")
    assert columns.transform(ordinal, rows(ordinal, ["y"], ["new"])).tolist() == [[1.0], [-1.0]]


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
    """The matrix has the number columns first, then scikit-learn's FeatureHasher of the JSON of column and label."""
    target_recipe = recipe(encoding="hash", n_features=16)
    matrix = learned(target_recipe, ["nike", 2001, "red", 4]).transform(
        target_recipe, rows(target_recipe, ["puma", 2010, "red", 6])
    )
    hasher = FeatureHasher(n_features=16, input_type="string")
    assert matrix[:, :2].tolist() == [[2010.0, 6.0]]
    assert matrix[:, 2:].tolist() == hasher.transform([['["make","puma"]', '["colour","red"]']]).toarray().tolist()
    assert matrix[:, 2:].any()


def test_labels_of_different_types_have_different_hashes() -> None:
    """No two of text, number, empty text and missing label are hashed alike, nor two columns whose names hold "="."""
    target_recipe = parse(
        {
            "estimator": "SGDRegressor",
            "encoding": "hash",
            "n_features": 2**18,
            "features": {name: {"type": "category", "missing": "indicator"} for name in ("a", "a=b")},
        }
    )
    columns = Columns.new(target_recipe)
    labels: list[Any] = ["1", 1, "1.0", "true", "True", "null", "None", None, "", " ", "b=1", '"1"', "01"]
    batch = rows(target_recipe, *([label, label] for label in labels))
    matrix = columns.transform(target_recipe, batch)
    assert len(np.unique(matrix, axis=0)) == len(labels)
    # Each row has its two labels in two places.
    assert np.abs(matrix).sum(axis=1).tolist() == [2.0] * len(labels)
    assert len(np.flatnonzero(np.abs(matrix).sum(axis=0))) == 2 * len(labels)


def test_a_bundle_of_0_1_keeps_its_hashes() -> None:
    """A bundle that was learned with the earlier rule goes on with it: a number and its text stay one label."""
    target_recipe = recipe(encoding="hash", n_features=16)
    columns = Columns(None, rule=RULE_TEXT)
    matrix = columns.transform(target_recipe, rows(target_recipe, ["1", 0, 1, 0], [1, 0, "1", 0]))
    hasher = FeatureHasher(n_features=16, input_type="string")
    assert matrix[:, 2:].tolist() == hasher.transform([["make=1", "colour=1"]] * 2).toarray().tolist()


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
    assert matrix[:, [0, 2]].tolist() == [[2.0, 2.0]]


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
    target_recipe = recipe(features={"a": "category", "b": "category"})
    matrix = learned(target_recipe, ["x", "y"]).transform(target_recipe, rows(target_recipe, ["x", "z"], ["w", "y"]))
    assert matrix.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert matrix.dtype == np.float64

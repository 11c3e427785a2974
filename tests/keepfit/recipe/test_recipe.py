"""Recipes: invalid ones are rejected when they are posted, valid ones have one canonical text."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.errors import InvalidError
from keepfit.identity import parse_json
from keepfit.model import recipe_check
from keepfit.model.bundle import Bundle
from keepfit.recipe.features import COLUMNS_MAX, MATRIX_WIDTH_MAX, NAME_LENGTH_MAX
from keepfit.recipe.recipe import CLASSES_MAX, LABEL_LENGTH_MAX, from_text, is_same, left_out, parse

SGD = {"estimator": "SGDRegressor"}
CLASSIFIER = {"estimator": "SGDClassifier", "classes": ["no", "yes"]}
CATEGORIES = {"features": {"make": "category", "year": "number"}}

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=10)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "Expected `object`, got `null`"),
        ([SGD], "Expected `object`, got `array`"),
        ("SGDRegressor", "Expected `object`, got `str`"),
        ({}, "exactly one of estimator"),
        ({"estimator": None}, r"exactly one of estimator"),
        ({"estimator": "LinearRegression"}, "cannot learn row by row; regressors that can: SGDRegressor"),
        ({"estimator": "sklearn.linear_model.SGDRegressor"}, "write the name alone, 'SGDRegressor'"),
        ({**SGD, "learning_rate": 1}, "unknown field `learning_rate`"),
        ({**SGD, "params": None}, r"Expected `object`, got `null` - at `\$.params`"),
        ({**SGD, "params": []}, r"Expected `object`, got `array` - at `\$.params`"),
        ({**SGD, "params": {"alpha": -1}}, r"'alpha' parameter .* must be a float in the range \[0.0, inf\)"),
        ({**SGD, "params": {"alpah": 1}}, "there is no 'alpah'; known: alpha"),
        ({**SGD, "params": {"alpha": 1e20}}, "no canonical JSON form: 100000000000000000000 exceeds"),
        (
            {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [float("inf")]}},
            "no canonical JSON form: inf",
        ),
        ({**SGD, "features": []}, r"Expected `object \| null`, got `array`"),
        ({**SGD, "features": {}}, "features must name between 1 and 10000 columns"),
        ({**SGD, "features": {"a": "numeric"}}, "Invalid enum value 'numeric'"),
        ({**SGD, "features": {"a": None}}, "got `null`"),
        ({**SGD, "features": {"": "number"}}, "the feature '' has no usable name"),
        ({**SGD, "features": {"a\0": "number"}}, "has no usable name"),
        ({**SGD, "features": {"x" * (NAME_LENGTH_MAX + 1): "number"}}, "has no usable name"),
        ({**SGD, "features": dict.fromkeys(map(str, range(COLUMNS_MAX + 1)), "number")}, "between 1 and 10000"),
        ({**SGD, "scaler": "RobustScaler"}, "cannot learn row by row; use one of StandardScaler, MinMaxScaler"),
        ({**SGD, "scaler": {"StandardScaler": {}}}, r"Expected `str \| null`"),
        ({**SGD, "scaler": "StandardScaler", "features": {"a": "category"}}, "a scaler needs number columns"),
        ({**SGD, "encoding": "one-hot"}, "Invalid enum value 'one-hot'"),
        ({**SGD, "max_categories": 0}, "must be 1 or more"),
        ({**SGD, "n_features": -5}, "must be 1 or more"),
        ({**SGD, "max_categories": 1.5}, "Expected `int`, got `float`"),
        ({**SGD, "max_categories": True}, "Expected `int`, got `bool`"),
        ({**SGD, "max_categories": "8"}, "Expected `int`, got `str`"),
        (
            {**SGD, **CATEGORIES, "encoding": "onehot", "max_categories": MATRIX_WIDTH_MAX + 1},
            "onehot makes 1000001 columns, more than 1000000",
        ),
        (
            {**SGD, "features": {"a": "category", "b": "category"}, "encoding": "onehot", "max_categories": 600_000},
            "onehot makes 1200000 columns",
        ),
        ({**SGD, **CATEGORIES, "encoding": "onehot", "max_categories": 10**30}, "more than 1000000"),
        ({**SGD, **CATEGORIES, "encoding": "hash", "n_features": MATRIX_WIDTH_MAX + 1}, "hash makes 1000001 columns"),
        ({**SGD, "updates": "batched"}, "Invalid enum value 'batched'"),
        ({**SGD, "classes": [0, 1]}, "is not a classifier and takes no classes"),
        ({"estimator": "MiniBatchKMeans", "classes": ["a", "b"]}, "takes no classes"),
        ({**CLASSIFIER, "classes": "ab"}, "Expected `array"),
        ({**CLASSIFIER, "classes": []}, "between 1 and 10000 labels; leave it out"),
        ({**CLASSIFIER, "classes": list(range(CLASSES_MAX + 1))}, "between 1 and 10000 labels"),
        ({**CLASSIFIER, "classes": ["a", "b", "a"]}, "names a label twice"),
        ({**CLASSIFIER, "classes": [1, "1"]}, "all strings, all integers or all booleans"),
        ({**CLASSIFIER, "classes": [0, 1, True]}, "all strings, all integers or all booleans"),
        ({**CLASSIFIER, "classes": [1.0, 2.0]}, r"Expected `bool \| int \| str \| array`, got `float`"),
        ({**CLASSIFIER, "classes": [None, "a"]}, "got `null`"),
        ({**CLASSIFIER, "classes": [1, 2**53]}, r"2\^53 or more"),
        ({**CLASSIFIER, "classes": ["a", "a\0"]}, "a NUL"),
        ({**CLASSIFIER, "classes": ["a", "b" * (LABEL_LENGTH_MAX + 1)]}, "more than 1024"),
        ({**CLASSIFIER, "params": {"class_weight": {"maybe": 2}}}, "class_weight names 'maybe': add it to"),
        ({"estimator": "SGDClassifier", "params": {"class_weight": {"0": 2}}}, "class_weight names '0'"),
        ({**SGD, "window": 9}, "window must be between 10 and 1000000 rows"),
        ({**SGD, "window": 1_000_001}, "window must be between"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:60],
)
def test_invalid_recipes_are_rejected(document: Any, words: str) -> None:
    """Each invalid recipe raises InvalidError with one short sentence: what is wrong or what would be right."""
    with pytest.raises(InvalidError, match=words) as caught:
        recipe_check.check(document)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "document",
    [
        {**SGD, "features": dict.fromkeys(map(str, range(COLUMNS_MAX)), "number")},
        {**SGD, "features": {"x" * NAME_LENGTH_MAX: "category"}},
        {**SGD, "features": {" $weird. näme ": "number"}},
        {**SGD, **CATEGORIES, "encoding": "onehot", "max_categories": MATRIX_WIDTH_MAX},
        {**SGD, **CATEGORIES, "encoding": "hash", "n_features": 1},
        {**CLASSIFIER, "classes": [False, True]},
        {**CLASSIFIER, "classes": [-(2**53) + 1, 2**53 - 1]},
        {**CLASSIFIER, "classes": ["", "x" * LABEL_LENGTH_MAX]},
        {**CLASSIFIER, "classes": list(range(CLASSES_MAX))},
        {**CLASSIFIER, "params": {"class_weight": {"yes": 2.5}}},
        {"estimator": "SGDClassifier", "classes": [0, 1], "params": {"class_weight": {"0": 2}}},
        {"estimator": "SGDClassifier", "classes": [True], "params": {"class_weight": {"true": 2}}},
        {"estimator": "SGDClassifier"},
        {**SGD, "window": 10},
        {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [8, 4], "solver": "sgd"}, "updates": "merged"},
        {"estimator": "Birch", "scaler": "MaxAbsScaler"},
    ],
    ids=lambda document: str(document)[:60],
)
def test_valid_recipes_can_be_built(document: Any) -> None:
    """A recipe at a limit is valid, and a bundle can be built from it."""
    assert Bundle.new(recipe_check.check(document)).rows_seen == 0


def test_the_text_is_fixed() -> None:
    """The text that is stored and compared has these fields in this order, and params in canonical form."""
    document = {**SGD, "params": {"eta0": 1.0, "alpha": 1e-7}, "features": {"b": "number", "a": "category"}}
    assert parse(document).text() == (
        '{"estimator":"SGDRegressor","params":{"alpha":1e-7,"eta0":1},"steps":null,"object":null,"features":{"b":"number","a":"category"},'
        '"scaler":null,"encoding":"onehot","max_categories":128,"n_features":256,"classes":null,"updates":"exact",'
        '"window":1000}'
    )


# What 0.1 stored after the fields that a client named: the text ends with its defaults.
DEFAULTS_OF_0_1 = (
    '"encoding":"ordinal","max_categories":128,"n_features":256,"classes":null,"updates":"exact","window":1000}'
)
STORED_BY_0_1: list[tuple[dict[str, Any], str]] = [
    (
        {"estimator": "PassiveAggressiveRegressor", "params": {"C": 0.5}, **CATEGORIES, "scaler": "StandardScaler"},
        (
            '{"estimator":"PassiveAggressiveRegressor","params":{"C":0.5},"steps":null,"object":null,'
            '"features":{"make":"category","year":"number"},"scaler":"StandardScaler",'
        ),
    ),
    (
        {"estimator": "CategoricalNB", "features": {"make": "category"}},
        (
            '{"estimator":"CategoricalNB","params":{},"steps":null,"object":null,"features":{"make":"category"},'
            '"scaler":null,'
        ),
    ),
    (
        {"estimator": "SGDClassifier"},
        '{"estimator":"SGDClassifier","params":{},"steps":null,"object":null,"features":null,"scaler":null,',
    ),
    (
        {
            "steps": [{"StandardScaler": {}}, {"SGDRegressor": {}}],
            "features": {"make": {"type": "category", "missing": "zero"}},
        },
        (
            '{"estimator":null,"params":{},"steps":[{"StandardScaler":{}},{"SGDRegressor":{}}],"object":null,'
            '"features":{"make":{"type":"category","missing":"zero"}},"scaler":null,'
        ),
    ),
]


@pytest.mark.parametrize(("document", "beginning"), STORED_BY_0_1, ids=lambda value: str(value)[:60])
def test_a_field_left_out_may_have_the_default_of_0_1(document: dict[str, Any], beginning: str) -> None:
    """The document from which 0.1 made a model is still its recipe, and the model keeps the fields that 0.1 filled in.

    That holds for each field: the document leaves out as many as it can.
    """
    stored = beginning + DEFAULTS_OF_0_1
    recipe = from_text(stored)
    assert is_same(recipe, parse(document), left_out(document))
    assert recipe.text() == stored
    assert [column.width for column in recipe.layout.columns if column.kind == "category"] in ([], [1])
    # A field that a document names means what it says, and so does an encoding that was never a default.
    assert not is_same(recipe, parse({**document, "window": 10}), left_out({**document, "window": 10}))
    if recipe.categories:
        hashed = {**document, "encoding": "hash"}
        assert not is_same(recipe, parse(hashed), left_out(hashed))
        assert not is_same(parse(hashed), parse(document), left_out(document))


def test_an_encoding_without_categories_is_null() -> None:
    """Without category columns there is no encoding to show, and the text is that of 0.1; one that is named stays."""
    assert parse(SGD).encoding is None
    assert parse({**SGD, "encoding": "ordinal"}) == parse(SGD)
    assert '"encoding":"ordinal"' in parse(SGD).text()
    assert parse({**SGD, "encoding": "hash"}).encoding == "hash"


def test_explicit_defaults_are_the_same_recipe() -> None:
    """An explicit default or another order of fields gives the same text."""
    spelled: dict[str, Any] = {
        "updates": "exact",
        "classes": None,
        "n_features": 256,
        "max_categories": 128,
        "encoding": "ordinal",
        "scaler": None,
        "features": None,
        "params": {},
        "estimator": "SGDRegressor",
    }
    assert parse(SGD).text() == parse(spelled).text()


def test_params_have_a_canonical_form() -> None:
    """The order of params at any depth, and 1 for 1.0 as JavaScript writes it, give the same recipe."""
    one = {**CLASSIFIER, "params": {"eta0": 1.0, "class_weight": {"no": 1.0, "yes": 2}, "alpha": 0.5}}
    two = {**CLASSIFIER, "params": {"alpha": 0.5, "class_weight": {"yes": 2.0, "no": 1}, "eta0": 1}}
    assert parse(one).text() == parse(two).text()
    assert parse(one).text() != parse({**one, "params": {**one["params"], "eta0": True}}).text()  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "change",
    [
        {"params": {"alpha": 0.5}},
        {"features": {"year": "number", "make": "category"}},
        {"features": {"make": "number", "year": "number"}},
        {"scaler": "StandardScaler"},
        {"encoding": "hash"},
        {"encoding": "ordinal"},
        {"max_categories": 129},
        {"n_features": 257},
        {"updates": "merged"},
        {"estimator": "MLPRegressor"},
    ],
    ids=str,
)
def test_every_field_changes_the_text(change: dict[str, Any]) -> None:
    """A change of any field, including the order of features, changes the text."""
    document = {**SGD, **CATEGORIES}
    assert parse({**document, **change}).text() != parse(document).text()


@settings(deadline=None)
@given(
    st.dictionaries(names, st.sampled_from(["number", "category"]), min_size=1, max_size=8),
    st.floats(0, 1e6),
    st.sampled_from(["ordinal", "onehot", "hash"]),
    st.sampled_from(["exact", "merged"]),
)
def test_a_recipe_survives_its_text(features: dict[str, str], alpha: float, encoding: str, updates: str) -> None:
    """from_text(text()) is the same recipe with the same order of features, and has the same text."""
    document = {**SGD, "params": {"alpha": alpha}, "features": features, "encoding": encoding, "updates": updates}
    recipe = parse(parse_json(json.dumps(document).encode()))
    again = from_text(recipe.text())
    assert again == recipe
    assert again.text() == recipe.text()
    assert list((again.features or {}).items()) == list(features.items())
    assert again.numbers == [name for name, kind in features.items() if kind == "number"]
    assert again.categories == [name for name, kind in features.items() if kind == "category"]


@pytest.mark.parametrize("classes", [["b", "a"], [3, 1, 2], [True, False]], ids=str)
def test_labels_keep_type_and_order(classes: list[Any]) -> None:
    """Labels read from the text have their types and their order in the recipe."""
    again = from_text(parse({**CLASSIFIER, "classes": classes}).text())
    assert again.classes == classes
    assert [type(label) for label in again.classes or []] == [type(label) for label in classes]


def test_without_features_there_are_no_names() -> None:
    """A recipe without features names no columns."""
    recipe = parse(SGD)
    assert (recipe.features, recipe.numbers, recipe.categories) == (None, [], [])

"""Labels: codes and names of labels, including late ones, and how bundles return them."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import SGDClassifier

from keepfit.errors import InvalidError
from keepfit.model.bundle import Bundle
from keepfit.model.labels import Labels, json_name
from keepfit.recipe.recipe import CLASSES_MAX, parse
from keepfit.rows.shaping import shape

MIXED = ["1", 1, True, "true", False, 0, "", -7, "é"]


def learned(document: dict[str, Any], *requests: tuple[list[list[float]], list[Any]]) -> Bundle:
    """Return the bundle of a recipe after learning requests, each of rows and labels."""
    bundle = Bundle.new(parse(document))
    for X, y in requests:
        bundle.partial_fit(shape(bundle.recipe, X, y, learning=True))
    return bundle


def separable(y: list[Any]) -> tuple[list[list[float]], list[Any]]:
    """Return rows that separate the labels: each label has a column of its own that is 1."""
    # Compared as JSON, because False == 0 in Python.
    positions = [json.dumps(label) for label in MIXED]
    return np.eye(len(MIXED))[[positions.index(json.dumps(label)) for label in y]].tolist(), y


def test_labels_keep_their_type() -> None:
    """Strings, integers and booleans are never confused, although True == 1 in Python."""
    bundle = learned({"estimator": "Perceptron"}, *[separable([label]) for _ in range(6) for label in MIXED])
    X, _ = separable(MIXED)
    predicted = bundle.predict(shape(bundle.recipe, X, learning=False))
    assert json.dumps(predicted) == json.dumps(MIXED)
    assert json.dumps(bundle.classes) == json.dumps(MIXED)


def test_codes_are_assigned_in_order_and_never_reused() -> None:
    """Named classes have the first codes, sorted; other labels get codes in order of first occurrence and keep them."""
    labels = Labels.from_classes(["b", "a"])
    assert labels.partial_fit_encode(["z", "b", "y", "z"]).tolist() == [2, 1, 3, 2]
    assert labels.partial_fit_encode(["a", "y", "x"]).tolist() == [0, 3, 4]
    assert labels.decode(np.arange(5)) == ["a", "b", "z", "y", "x"]
    assert labels.encode(["x", "new", "a", "newer", "new"]).tolist() == [4, 5, 0, 6, 5]
    assert labels.n_classes == 5


def test_a_class_without_a_label_is_never_predicted() -> None:
    """While one label is known, it is predicted with probability 1, and unknown labels do not take its code."""
    bundle = learned({"estimator": "SGDClassifier", "params": {"loss": "log_loss"}}, ([[1.0, 0.0]], ["only"]))
    to_predict = shape(bundle.recipe, [[1.0, 0.0], [-9.0, 5.0]], learning=False)
    assert bundle.predict(to_predict) == ["only", "only"]
    assert bundle.predict_proba(to_predict) == [[1.0], [1.0]]
    to_score = shape(bundle.recipe, [[1.0, 0.0], [-9.0, 5.0]], ["only", "other"], learning=True)
    assert bundle.score(to_score)["accuracy"] == 0.5
    assert bundle.classes == ["only"]


def test_unknown_labels_count_as_wrong() -> None:
    """A label that is not learned yet counts as wrong, in prequential metrics and in a score."""
    bundle = learned(
        {"estimator": "MultinomialNB"}, separable(["1"]), separable([1]), separable(["1"]), separable(["true"])
    )
    # The first request is not evaluated; of the other three, only the third can be predicted correctly.
    assert (bundle.metrics()["accuracy"], bundle.metrics()["rows"]) == (pytest.approx(1 / 3), 3)
    X, y = separable(["1", 0])
    assert bundle.score(shape(bundle.recipe, X, y, learning=True))["accuracy"] == 0.5
    assert bundle.classes == ["1", 1, "true"]
    assert np.array(bundle.predict_proba(shape(bundle.recipe, X, learning=False))).shape == (2, 3)


def test_too_many_labels_are_rejected_and_none_is_learned() -> None:
    """Ten thousand labels are learned; one more raises an error, and the label list does not change."""
    labels = Labels.from_classes(None)
    labels.partial_fit_encode(list(range(CLASSES_MAX - 1)))
    with pytest.raises(ValueError, match="more than 10000 labels: is it a number to be predicted"):
        labels.partial_fit_encode(["a", "b"])
    assert labels.partial_fit_encode(["c"]).tolist() == [CLASSES_MAX - 1]
    assert len(labels.known) == CLASSES_MAX


def test_an_estimator_grows_to_the_maximum_number_of_classes() -> None:
    """The last of 10,000 labels is learned and predicted like the first one."""
    classes = list(range(CLASSES_MAX - 1))
    X = [[9.0, 1.0], [1.0, 9.0]]
    bundle = learned({"estimator": "MultinomialNB", "classes": classes}, (X[:1], [0]), (X[1:], [CLASSES_MAX - 1]))
    assert bundle.estimator.feature_count_.shape == (CLASSES_MAX, 2)
    assert bundle.predict(shape(bundle.recipe, X, learning=False)) == [0, CLASSES_MAX - 1]


@pytest.mark.parametrize(
    ("classes", "weights"),
    [
        (["no", "yes"], {"yes": 5.0}),
        ([0, 7], {"7": 5.0}),
        ([False, True], {"true": 5.0}),
    ],
)
def test_class_weights_are_keyed_by_json_name(classes: list[Any], weights: dict[str, float]) -> None:
    """A weight applies to the label with that JSON name, before and after late labels are learned, bit for bit."""
    document = {"estimator": "SGDClassifier", "params": {"class_weight": weights}, "classes": classes}
    late = {str: "late", int: 99}.get(type(classes[0]))
    X, y = [[0.5, 1.0], [1.0, -1.0]], classes
    expected = SGDClassifier(class_weight={1: 5.0}, shuffle=False, random_state=0)
    expected.partial_fit(X, [0, 1], classes=[0, 1])
    bundle = learned(document, (X, y))
    assert bundle.estimator.coef_.tobytes() == expected.coef_.tobytes()
    if late is not None:
        bundle.partial_fit(shape(bundle.recipe, [[3.0, 3.0]], [late], learning=True))
        assert bundle.estimator._expanded_class_weight.tolist() == [1.0, 5.0, 1.0]


def test_class_weights_of_unknown_classes_are_rejected() -> None:
    """A weight of a label that is not among the classes is rejected when the recipe is posted."""
    with pytest.raises(InvalidError, match="add it to classes"):
        parse({"estimator": "Perceptron", "params": {"class_weight": {"maybe": 2.0}}, "classes": ["no", "yes"]})
    assert json_name("7") == json_name(7)

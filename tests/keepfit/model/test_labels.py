"""Labels: what a label is called and its code, also of one that turns up later, and how a bundle says it again."""

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
    """Bundle of a recipe that has learned requests, each of rows and labels."""
    bundle = Bundle.new(parse(document))
    for X, y in requests:
        bundle.partial_fit(shape(bundle.recipe, X, y, learning=True))
    return bundle


def apart(y: list[Any]) -> tuple[list[list[float]], list[Any]]:
    """Rows that tell the labels apart: each is 1 in a column of its own."""
    # As texts, because Python says that False == 0.
    places = [json.dumps(label) for label in MIXED]
    return np.eye(len(MIXED))[[places.index(json.dumps(label)) for label in y]].tolist(), y


def test_labels_come_back_as_they_came_in() -> None:
    """Strings, integers and booleans are never taken for each other, though Python says that True == 1."""
    bundle = learned({"estimator": "Perceptron"}, *[apart([label]) for _ in range(6) for label in MIXED])
    X, _ = apart(MIXED)
    predicted = bundle.predict(shape(bundle.recipe, X, learning=False))
    assert json.dumps(predicted) == json.dumps(MIXED)
    assert json.dumps(bundle.classes) == json.dumps(MIXED)


def test_codes_are_given_in_order_and_never_again() -> None:
    """Named classes have the first codes, sorted; a label keeps the code of its first sight."""
    labels = Labels.from_classes(["b", "a"])
    assert labels.partial_fit_encode(["z", "b", "y", "z"]).tolist() == [2, 1, 3, 2]
    assert labels.partial_fit_encode(["a", "y", "x"]).tolist() == [0, 3, 4]
    assert labels.decode(np.arange(5)) == ["a", "b", "z", "y", "x"]
    assert labels.encode(["x", "new", "a", "newer", "new"]).tolist() == [4, 5, 0, 6, 5]
    assert labels.n_classes == 5


def test_a_class_that_waits_for_its_label_is_never_predicted() -> None:
    """With one label known so far that one is predicted, with certainty, and unknown ones do not take its place."""
    bundle = learned({"estimator": "SGDClassifier", "params": {"loss": "log_loss"}}, ([[1.0, 0.0]], ["only"]))
    asked = shape(bundle.recipe, [[1.0, 0.0], [-9.0, 5.0]], learning=False)
    assert bundle.predict(asked) == ["only", "only"]
    assert bundle.predict_proba(asked) == [[1.0], [1.0]]
    scored = shape(bundle.recipe, [[1.0, 0.0], [-9.0, 5.0]], ["only", "other"], learning=True)
    assert bundle.score(scored)["accuracy"] == 0.5
    assert bundle.classes == ["only"]


def test_labels_not_learned_yet_count_as_missed() -> None:
    """A label is evaluated before it is learned: it cannot be right then, in the running figures or in a score."""
    bundle = learned({"estimator": "MultinomialNB"}, apart(["1"]), apart([1]), apart(["1"]), apart(["true"]))
    # The first request is not evaluated; of the other three only the third can be right.
    assert (bundle.metrics()["accuracy"], bundle.metrics()["rows"]) == (pytest.approx(1 / 3), 3)
    X, y = apart(["1", 0])
    assert bundle.score(shape(bundle.recipe, X, y, learning=True))["accuracy"] == 0.5
    assert bundle.classes == ["1", 1, "true"]
    assert np.array(bundle.predict_proba(shape(bundle.recipe, X, learning=False))).shape == (2, 3)


def test_more_labels_than_there_may_be_are_refused_and_none_is_learned() -> None:
    """Ten thousand labels are learned; one more is refused with the reason, and the list stays as it was."""
    labels = Labels.from_classes(None)
    labels.partial_fit_encode(list(range(CLASSES_MAX - 1)))
    with pytest.raises(ValueError, match="more than 10000 labels: is it a number to be predicted"):
        labels.partial_fit_encode(["a", "b"])
    assert labels.partial_fit_encode(["c"]).tolist() == [CLASSES_MAX - 1]
    assert len(labels.known) == CLASSES_MAX


def test_an_estimator_grows_to_as_many_classes_as_there_may_be() -> None:
    """The last of 10,000 labels is learned and predicted like the first."""
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
def test_class_weights_are_named_as_json_names_them(classes: list[Any], weights: dict[str, float]) -> None:
    """A weight is of the label with that name, in learning before and after other labels turn up, to the bit."""
    document = {"estimator": "SGDClassifier", "params": {"class_weight": weights}, "classes": classes}
    late = {str: "late", int: 99}.get(type(classes[0]))
    X, y = [[0.5, 1.0], [1.0, -1.0]], classes
    by_hand = SGDClassifier(class_weight={1: 5.0}, shuffle=False, random_state=0)
    by_hand.partial_fit(X, [0, 1], classes=[0, 1])
    bundle = learned(document, (X, y))
    assert bundle.estimator.coef_.tobytes() == by_hand.coef_.tobytes()
    if late is not None:
        bundle.partial_fit(shape(bundle.recipe, [[3.0, 3.0]], [late], learning=True))
        assert bundle.estimator._expanded_class_weight.tolist() == [1.0, 5.0, 1.0]


def test_weights_of_labels_that_are_no_classes_are_refused() -> None:
    """A weight of a label that is not named among the classes is refused when the recipe is posted."""
    with pytest.raises(InvalidError, match="name it among the classes too"):
        parse({"estimator": "Perceptron", "params": {"class_weight": {"maybe": 2.0}}, "classes": ["no", "yes"]})
    assert json_name("7") == json_name(7)

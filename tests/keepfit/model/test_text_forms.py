"""A label has one Unicode form, wherever it comes from: rows, recipes, and what keepfit 0.1 stored."""

from typing import Any

import numpy as np
import pytest

from keepfit.errors import InvalidError
from keepfit.model.bundle import Bundle
from keepfit.model.format2 import StoredObject, converted
from keepfit.model.labels import Labels
from keepfit.recipe.recipe import from_text, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape

ONE, TWO = "é", "e\u0301"
FEATURES = {"make": "category", "size": "number"}


@pytest.mark.parametrize("classes", [None, [TWO, "a"], [ONE, "a"]])
def test_two_forms_are_one_label(classes: Any) -> None:
    """A label and a category in two forms are one of each, and are answered in the composed form."""
    recipe = parse({"estimator": "SGDClassifier", "features": FEATURES, "classes": classes})
    bundle = Bundle.new(recipe)
    for form in (ONE, TWO):
        bundle.partial_fit(shape(recipe, [[form, 1], ["b", 2]], [form, "a"], learning=True))
    assert sorted(bundle.classes) == ["a", ONE]
    assert list(bundle.columns.labels[0]) == [ONE, "b"]
    predictions = [bundle.predict(shape(recipe, [[form, 1]], learning=False)) for form in (ONE, TWO)]
    assert predictions[0] == predictions[1]


def test_classes_and_weights_of_a_recipe() -> None:
    """Classes in two forms are one class named twice; weights find their class in each form."""
    with pytest.raises(InvalidError, match="names a label twice"):
        parse({"estimator": "SGDClassifier", "classes": [ONE, TWO]})
    recipe = parse({"estimator": "SGDClassifier", "classes": [ONE, "a"], "params": {"class_weight": {TWO: 2.0}}})
    assert Bundle.new(recipe).estimator.class_weight == {1: 2.0}
    # A recipe that 0.1 stored is the one that its client posts again.
    stored = '{"estimator":"SGDClassifier","classes":["e\\u0301","a"]}'
    assert from_text(stored).text() == parse({"estimator": "SGDClassifier", "classes": [TWO, "a"]}).text()


def test_rows_that_0_1_stored_are_composed() -> None:
    """Pending and logged rows of 0.1 get the form that rows have now when they are decoded."""
    rows = Rows(2, b"", [[TWO, 1], ["a", None]], [TWO, "b"])
    assert Rows.decode(rows.encode()) == Rows(2, b"", [[ONE, 1], ["a", None]], [ONE, "b"])


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([TWO, "a"], [ONE, "a"]),
        # Both were learned: the composed one goes on, and the other keeps its code.
        ([TWO, "a", ONE], [TWO, "a", ONE]),
        (["\u212b", "A\u030a", "\0true"], ["Å", "A\u030a", "\0true"]),
    ],
)
def test_labels_that_0_1_learned_keep_their_codes(known: list[Any], expected: list[Any]) -> None:
    """Labels of a bundle of 0.1 keep their codes under the composed form, and none is lost."""
    codes = {label: code for code, label in enumerate(known)}
    columns, labels = StoredObject(), StoredObject()
    columns.fields = {"means": None, "scaler": None, "labels": [dict(codes)]}
    labels.fields = {"codes": dict(codes)}
    state = converted((2, None, ([], []), columns, labels, None, [], 0, [], {}))
    renamed = {label: code for code, label in enumerate(expected)}
    assert state[1][1] == [renamed]
    assert state[2] == [renamed]
    assert len(Labels.of_codes(renamed).known) == len(known)
    assert np.array_equal(list(renamed.values()), range(len(known)))

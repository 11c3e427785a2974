"""The catalogue of estimators against scikit-learn's registry."""

import inspect
import warnings

import pytest
from sklearn.utils import all_estimators

from keepfit.errors import InvalidError
from keepfit.model.estimators import PASSIVE_AGGRESSIVE
from keepfit.recipe.catalogue import CATALOGUE, entry_of, entry_with_inner
from tests.catalogue import made


def test_the_catalogue_equals_scikit_learns_registry() -> None:
    """The catalogue holds exactly the estimators of scikit-learn that have partial_fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the PassiveAggressive classes, as they are made
        wanted = {name for name, cls in all_estimators() if hasattr(cls, "partial_fit")}
    assert set(CATALOGUE) == wanted
    assert len(wanted) == 29


def test_kinds_equal_scikit_learns() -> None:
    """Each entry has the kind that its class declares, and the type of target that the class learns."""
    for name, entry in CATALOGUE.items():
        if name in PASSIVE_AGGRESSIVE:
            continue
        tags = made(name).__sklearn_tags__()
        # A SelectFromModel passes for what is in it, and a RBM for nothing.
        if name not in ("SelectFromModel", "BernoulliRBM"):
            assert (tags.estimator_type or "transformer") == entry.kind, name
        assert hasattr(made(name), "transform") or entry.kind not in ("transformer",)
    assert {name for name, entry in CATALOGUE.items() if entry.multi_output} == {
        "MultiOutputClassifier",
        "MultiOutputRegressor",
    }
    assert {name for name, entry in CATALOGUE.items() if entry.target == "labels"} == {
        name for name in CATALOGUE if name.endswith(("NB", "Classifier", "Perceptron"))
    }
    assert entry_with_inner("SelectFromModel", "SGDRegressor").target == "numbers"
    assert entry_with_inner("SelectFromModel", "SGDClassifier").target == "labels"
    assert not entry_with_inner("StandardScaler", None).takes_y


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_sample_weight_is_accepted_where_partial_fit_has_it(name: str) -> None:
    """An entry accepts sample_weight exactly if the partial_fit of the built object has the parameter."""
    parameters = inspect.signature(made(name).partial_fit).parameters
    passes_on = name == "SelectFromModel" and "partial_fit_params" in parameters
    assert entry_of(name).takes_sample_weight == ("sample_weight" in parameters or passes_on)


def test_an_unknown_name_is_answered_with_the_closest_names() -> None:
    """The message suggests the closest names, and cuts a name that is as long as a body."""
    for name in ("SGDRegresor", "sgdregressor", "SGD_Regressor"):
        with pytest.raises(InvalidError, match=rf"'{name}' is not an estimator with partial_fit; known: SGDRegressor"):
            entry_of(name)
    with pytest.raises(InvalidError) as caught:
        entry_of("S" * 1_000_000)
    assert len(str(caught.value)) < 700

"""Estimators that a recipe may not name are answered with why not, and with what can be used instead."""

import importlib
import inspect
import warnings
from collections.abc import Iterator

import pytest
from sklearn.base import OutlierMixin
from sklearn.utils import all_estimators

from keepfit.errors import InvalidError
from keepfit.recipe.catalogue import CATALOGUE, check_scaler, entry_of
from keepfit.recipe.other_estimators import (
    IN_A_RECIPE,
    KIND_WITHOUT,
    RIVER,
    RIVER_SIMILAR,
    SIMILAR,
    WITHOUT_PARTIAL_FIT,
)

FILTERS = {"classifier": "classifier", "regressor": "regressor", "clusterer": "cluster", "transformer": "transformer"}


def kinds() -> Iterator[tuple[str, str]]:
    """Yield the estimators of scikit-learn without partial_fit, each with its kind."""
    by_kind = {kind: dict(all_estimators(type_filter=name)) for kind, name in FILTERS.items()}
    for name, cls in all_estimators():
        # Experimental ones are registered if a test before this one has asked for them, as the estimator checks do.
        if hasattr(cls, "partial_fit") or name.startswith("Halving"):
            continue
        first = next((kind for kind, names in by_kind.items() if name in names), "")
        yield name, "outlier_detector" if issubclass(cls, OutlierMixin) else first


def test_the_list_equals_scikit_learns_registry() -> None:
    """The list holds exactly the estimators of scikit-learn that have no partial_fit, by kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert dict(kinds()) == KIND_WITHOUT
    assert sum(map(len, WITHOUT_PARTIAL_FIT.values())) == len(KIND_WITHOUT)


def test_rivers_models_are_where_the_list_says() -> None:
    """Each listed model of River is a class of the named module that learns row by row."""
    for name, module in RIVER.items():
        found = getattr(importlib.import_module(f"river.{module}"), name)
        assert inspect.isclass(found)
        assert hasattr(found, "learn_one"), name


def test_every_recommendation_can_be_used() -> None:
    """What the messages recommend is in the catalogue, or is River's."""
    assert set(SIMILAR.values()) <= set(CATALOGUE)
    assert set(SIMILAR) | set(RIVER_SIMILAR) | set(IN_A_RECIPE) <= set(KIND_WITHOUT)
    assert set(RIVER_SIMILAR.values()) <= set(RIVER)


@pytest.mark.parametrize("name", sorted(KIND_WITHOUT))
def test_an_estimator_without_partial_fit_is_answered_with_those_of_its_kind(name: str) -> None:
    """The message says that it cannot learn row by row, and names the estimators of its kind that can."""
    with pytest.raises(InvalidError) as caught:
        entry_of(name)
    message = str(caught.value)
    if name in IN_A_RECIPE:
        assert message == f"estimator {name!r} is not part of a recipe: {IN_A_RECIPE[name]}."
        return
    assert message.startswith(f"estimator {name!r} cannot learn row by row; ")
    same = {each for each, entry in CATALOGUE.items() if entry.kind == KIND_WITHOUT[name]}
    assert all(each in message for each in same)
    assert f"can: {SIMILAR[name]}" in message if name in SIMILAR else True


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "RandomForestRegressor",
            "regressors that can: .* River's forest.ARFRegressor can be sent as an uploaded object",
        ),
        ("RandomForestRegresor", "is unknown. RandomForestRegressor cannot learn row by row; regressors that can: "),
        ("Random Forest Classifier", "is unknown. RandomForestClassifier cannot learn row by row; classifiers that"),
        ("sklearn.ensemble.RandomForestRegressor(10)", "cannot learn row by row; regressors that can: "),
        ("sklearn.linear_model.SGDRegressor", "write the name alone, 'SGDRegressor', and its parameters in `params`"),
        ("SGDRegressor(alpha=1.5)", "write the name alone, 'SGDRegressor'"),
        ("HoeffdingTreeClassifier", "is River's tree.HoeffdingTreeClassifier; send it as an uploaded object"),
        ("HoefdingTreeClasifier", "is unknown. River's tree.HoeffdingTreeClassifier can be sent as an uploaded object"),
        ("river.linear_model.LinearRegression", "is a model of River; send it as an uploaded object"),
        ("xgboost.XGBRegressor", "is a path; name an estimator of scikit-learn, or send your own as an uploaded obj"),
        ("SGD", "known: SGDClassifier, SGDOneClassSVM, SGDRegressor"),
        ("", "known: BernoulliNB, .*, StandardScaler"),
        ("no such thing", "known: BernoulliNB, .*, StandardScaler"),
    ],
)
def test_names_paths_and_misspellings_are_answered_with_what_is_right(name: str, message: str) -> None:
    """Misspelt names, paths, calls and River's names get the answer that helps."""
    with pytest.raises(InvalidError, match=message):
        entry_of(name)


def test_a_scaler_that_cannot_learn_row_by_row_is_answered_with_those_that_can() -> None:
    """The message names the three scalers."""
    with pytest.raises(InvalidError, match="'RobustScaler' cannot learn row by row; use one of StandardScaler, MinMax"):
        check_scaler("RobustScaler")

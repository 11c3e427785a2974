"""Estimators whose models are on a gateway behave as scikit-learn's own."""

import copy
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import SGDRegressor
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import keepfit
from keepfit import Client, RemoteClassifier, RemoteRegressor
from keepfit.errors import InvalidError
from tests.conftest import Stack

# Stochastic gradient descent takes a step for each row: a row twice is two steps, a row with the weight 2 a longer one.
STEPS = "the descent takes a step for each row, whatever its weight"
NOT_EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": STEPS,
    "check_sample_weight_equivalence_on_sparse_data": STEPS,
}


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    """Open a client for all tests of the module."""
    with Client(stack.url) as opened:
        yield opened


@pytest.mark.parametrize(
    ("make", "not_expected"),
    [
        (lambda client: RemoteRegressor(client=client, epochs=4), NOT_EXPECTED),
        (lambda client: RemoteClassifier("GaussianNB", client=client), {}),
    ],
    ids=["regressor", "classifier"],
)
def test_the_checks_of_scikit_learn(client: Client, make: Any, not_expected: dict[str, str]) -> None:
    """All checks of scikit-learn that apply pass; those that do not are listed with the reason."""
    results = check_estimator(make(client), expected_failed_checks=not_expected, on_skip=None, on_fail="raise")
    counts = {status: [r["check_name"] for r in results if r["status"] == status] for status in ("xfail", "skipped")}
    assert set(counts["xfail"]) == set(not_expected)
    # It needs an environment variable, and arrays that are not numpy's.
    assert counts["skipped"] == ["check_array_api_input"]
    assert sum(result["status"] == "passed" for result in results) > 55


def test_predictions_are_those_of_scikit_learn(client: Client) -> None:
    """A fit on the gateway has the result of the same fit here."""
    X, y = make_classification(300, random_state=0)
    here, there = GaussianNB().fit(X, y), RemoteClassifier("GaussianNB", client=client).fit(X, y)
    assert np.array_equal(there.predict(X), here.predict(X))
    assert np.allclose(there.predict_proba(X), here.predict_proba(X))
    assert there.score(X, y) == here.score(X, y)
    labels = np.array(["no", "yes"])[y]
    named = RemoteClassifier("GaussianNB", client=client).partial_fit(X[:100], labels[:100], classes=["no", "yes"])
    named.partial_fit(X[100:], labels[100:])
    assert np.array_equal(named.predict(X), np.array(["no", "yes"])[here.predict(X)])


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.delattr(keepfit, "remote_estimators")
    monkeypatch.setitem(sys.modules, "keepfit.remote_estimators", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        _ = keepfit.RemoteRegressor


def test_in_the_tools_of_scikit_learn(client: Client) -> None:
    """Pipeline, cross_val_predict and GridSearchCV work; each fit has a model of its own."""
    X, y = make_regression(200, 4, noise=1, random_state=0)
    y = y / y.std()
    remote = RemoteRegressor(SGDRegressor(), client=client, epochs=3)
    pipeline = make_pipeline(StandardScaler(), remote)
    assert cross_val_predict(pipeline, X, y, cv=3).shape == (200,)
    search = GridSearchCV(pipeline, {"remoteregressor__estimator__alpha": [0.0001, 1000.0]}, cv=2).fit(X, y)
    assert search.best_params_ == {"remoteregressor__estimator__alpha": 0.0001}
    assert search.best_score_ > 0.8
    first, second = clone(remote).fit(X, y), clone(remote).fit(X, y)
    assert first.model_.hash != second.model_.hash
    first.delete()
    assert second.model_.describe()["rows_seen"] == 600


def test_named_columns_go_as_they_are(client: Client) -> None:
    """With features in the recipe, X is a data frame with texts, which the gateway encodes."""
    frame = pd.DataFrame({"make": ["nike", "puma"] * 100, "year": np.arange(200) % 20 + 2000})
    size = (frame["make"] == "nike") * 2.0
    recipe = {"features": {"make": "category", "year": "number"}, "scaler": "StandardScaler"}
    remote = RemoteRegressor(client=client, recipe=recipe, epochs=5).fit(frame, size)
    assert remote.score(frame, size) > 0.9


def test_probabilities_are_there_if_the_estimator_has_them(client: Client) -> None:
    """hasattr says whether predict_proba answers, as in scikit-learn."""
    assert not hasattr(RemoteClassifier(client=client), "predict_proba")
    assert hasattr(RemoteClassifier("GaussianNB", client=client), "predict_proba")
    with_loss = RemoteClassifier(recipe={"params": {"loss": "log_loss"}}, client=client)
    assert hasattr(with_loss, "predict_proba")
    with pytest.raises(InvalidError, match="a float is none"):
        RemoteClassifier._sent([0.5])


def test_copies_share_the_client_and_pickles_make_one(client: Client, stack: Stack) -> None:
    """A clone has the client itself; a pickle goes to another process, with a client of its own."""
    assert copy.deepcopy(client) is client
    X, y = make_regression(50, 2, random_state=0)
    fitted = RemoteRegressor(client=client).fit(X, y)
    loaded = pickle.loads(pickle.dumps(fitted))
    assert loaded.client is not client
    assert np.array_equal(loaded.predict(X), fitted.predict(X))
    by_url = RemoteRegressor(client=stack.url).fit(X, y)
    assert np.array_equal(by_url.predict(X), fitted.predict(X))
    loaded.client.close()

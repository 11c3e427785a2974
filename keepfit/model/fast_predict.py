"""Fast path of ``transform``, ``predict`` and ``predict_proba``: scikit-learn's computation without its validation.

scikit-learn validates each matrix three times, which takes 140 µs for one row of four numbers where computing takes 5;
rows are checked when they are accepted. Owns the list of classes whose validation is skipped;
:mod:`keepfit.scoring` computes. Never learns and never
writes to what was learned. Invariants: results are those of scikit-learn bit for bit, because they come from the same
operations in the same order on a matrix of the same layout; classes that are not listed here, matrices of another width
than was learned, and values that are not finite go to scikit-learn, which computes the result or raises an error.
"""

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit
from sklearn.cluster import MiniBatchKMeans
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, _predict_binary
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

from keepfit.rows.values import Floats
from keepfit.scoring import bayes, clusters, functions, linear, network, scalers, wrappers

# Takes a fitted object and a matrix, shape (n, width), C-contiguous float64.
Computation = Callable[[Any, Floats], Any]


def transform(scaler: Any, X: Any) -> Floats:
    """Return ``scaler.transform(X)``, never sparse; `X`, shape (n, width), may be overwritten.

    For a vectorizer, `X` is an array of n texts.

    Raises
    ------
    ValueError
        As scikit-learn raises it, if another width was learned, or nothing.
    """
    compute = SCALE.get(type(scaler))
    if compute is None or getattr(scaler, "n_features_in_", None) != X.shape[1]:
        # A vectorizer stores the id of its stop words on use; a prediction must not change the model.
        transformed = (copy(scaler) if type(scaler) is HashingVectorizer else scaler).transform(X)
        return np.ascontiguousarray(transformed.toarray() if issparse(transformed) else transformed)
    scaled: Floats = compute(scaler, X)
    return scaled


def predict(estimator: Any, X: Floats) -> Any:
    """Return ``estimator.predict(X)`` for `X`, shape (n, width): an array of n values of the same dtype.

    Raises
    ------
    ValueError, IndexError
        As scikit-learn raises them, for a matrix that is not finite (scaling may overflow a number), another width, or
        categories that CategoricalNB has not learned.
    """
    compute = find_predict(estimator)
    return estimator.predict(X) if compute is None or not _is_supported(estimator, X) else compute(estimator, X)


def predict_proba(estimator: Any, X: Floats) -> Any:
    """Return ``estimator.predict_proba(X)``, shape (n, classes); raises what :func:`predict` raises."""
    compute = find_predict_proba(estimator)
    return estimator.predict_proba(X) if compute is None or not _is_supported(estimator, X) else compute(estimator, X)


def find_predict(estimator: Any) -> Computation | None:
    """Return the implementation of ``predict`` for this exact class; None where only scikit-learn has one."""
    if type(estimator) is OneVsRestClassifier and type(estimator.estimators_[0]) not in REST_MEMBERS:
        return None
    return PREDICT.get(type(estimator))


def find_predict_proba(estimator: Any) -> Computation | None:
    """Return the implementation of ``predict_proba`` for `estimator`; None where only scikit-learn has one."""
    kind = type(estimator)
    if kind is SGDClassifier and not has_predict_proba(estimator):
        return None
    if kind is OneVsRestClassifier and type(estimator.estimators_[0]) not in REST_MEMBERS:
        return None
    return PROBABILITIES.get(kind)


def has_predict_proba(estimator: Any) -> bool:
    """Return whether `estimator` has ``predict_proba``; hasattr alone takes 5 µs where scikit-learn has it disabled."""
    if type(estimator) is SGDClassifier:
        return estimator.loss in ("log_loss", "modified_huber")
    return type(estimator) not in (SGDRegressor, Perceptron) and hasattr(estimator, "predict_proba")


def _is_supported(estimator: Any, X: Floats) -> bool:
    return bool(X.shape[1] == getattr(estimator, "n_features_in_", None) and functions.is_finite(X))


def inlier_scores(estimator: Any, X: Floats) -> Any:
    """Return ``estimator.decision_function(X)`` of an outlier detector; raises what :func:`predict` raises."""
    is_known = type(estimator) is SGDOneClassSVM and _is_supported(estimator, X)
    return linear.inlier_scores(estimator, X) if is_known else estimator.decision_function(X)


def _expit(values: Floats) -> Floats:
    """Replace `values` by their logistic function: the bits of :func:`functions.logistic`, for large arrays."""
    replaced: Floats = expit(values, out=values)
    return replaced


def _nearest_cluster(estimator: Any, X: Floats) -> Any:
    found = clusters.nearest(estimator, X)
    return estimator.predict(X) if found is None else found


def _rest_label(estimator: Any, X: Floats) -> Any:
    is_linear = type(estimator.estimators_[0]) in (SGDClassifier, Perceptron)
    score = linear.decision if is_linear else _second_probability
    return wrappers.rest_label(estimator, X, score, wrappers.threshold(is_linear=is_linear))


def _second_probability(estimator: Any, X: Floats) -> Any:
    return predict_proba(estimator, X)[:, 1]


def _paired_label(estimator: Any, X: Floats) -> Any:
    """Return the votes of the pairs; a pair without rows has no vote, where scikit-learn would raise an error."""
    if all(hasattr(pair, "classes_") for pair in estimator.estimators_):
        return estimator.predict(X)
    votes, sums = np.zeros((2, len(X), len(estimator.classes_)))
    for (i, j), pair in zip(combinations(range(votes.shape[1]), 2), estimator.estimators_, strict=True):
        if hasattr(pair, "classes_"):
            confidence, second = _predict_binary(pair, X), predict(pair, X) == 1
            votes[:, i] += ~second
            votes[:, j] += second
            sums[:, i] -= confidence
            sums[:, j] += confidence
    return estimator.classes_[(votes + sums / (3 * (np.abs(sums) + 1))).argmax(axis=1)]


SCALE: Mapping[type[Any], Computation] = {
    StandardScaler: scalers.standard,
    MinMaxScaler: scalers.min_max,
    MaxAbsScaler: scalers.max_abs,
}
LIKELIHOODS: Mapping[type[Any], bayes.Likelihood] = {
    GaussianNB: bayes.gaussian,
    MultinomialNB: bayes.multinomial,
    ComplementNB: bayes.complement,
    BernoulliNB: bayes.bernoulli,
}
REST_MEMBERS = frozenset({SGDClassifier, Perceptron, MLPClassifier, *LIKELIHOODS})
PREDICT: Mapping[type[Any], Computation] = {
    SGDRegressor: linear.values,
    SGDClassifier: linear.label,
    Perceptron: linear.label,
    SGDOneClassSVM: linear.inlier_label,
    MLPRegressor: partial(network.values, logistic=_expit),
    MLPClassifier: partial(network.label, logistic=_expit),
    MiniBatchKMeans: _nearest_cluster,
    OneVsRestClassifier: _rest_label,
    OneVsOneClassifier: _paired_label,
    MultiOutputClassifier: partial(wrappers.output_predictions, predict=predict),
    MultiOutputRegressor: partial(wrappers.output_predictions, predict=predict),
    **{kind: partial(bayes.label, likelihood) for kind, likelihood in LIKELIHOODS.items()},
}
PROBABILITIES: Mapping[type[Any], Computation] = {
    SGDClassifier: partial(linear.probabilities, logistic=_expit),
    MLPClassifier: partial(network.probabilities, logistic=_expit),
    OneVsRestClassifier: partial(wrappers.rest_probabilities, probabilities=predict_proba),
    MultiOutputClassifier: partial(wrappers.output_probabilities, probabilities=predict_proba),
    **{kind: partial(bayes.probabilities, likelihood) for kind, likelihood in LIKELIHOODS.items()},
}

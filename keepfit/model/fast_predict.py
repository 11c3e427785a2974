"""What scikit-learn's ``transform``, ``predict`` and ``predict_proba`` compute, without their validation.

scikit-learn validates each matrix three times over, which takes one row of four numbers 140 µs where computing takes 5;
rows were checked when they came in. Owns the list of classes for which the validation is left out. Never learns, never
writes into what was learned. Invariants: results are those of scikit-learn bit for bit, because they come from the same
operations in the same order on a matrix of the same layout; whatever is not known here by its exact class, has another
width than was learned or is not finite goes to scikit-learn, which computes it or says what is wrong with it.
"""

from collections.abc import Callable, Mapping
from copy import copy
from itertools import combinations
from math import isfinite
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import Perceptron, SGDClassifier, SGDOneClassSVM, SGDRegressor
from sklearn.multiclass import OneVsOneClassifier, _predict_binary
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

from keepfit.rows.values import Floats

# Of something learned and a matrix, shape (n, width), C-contiguous float64.
Computation = Callable[[Any, Floats], Any]


def transform(scaler: Any, X: Any) -> Floats:
    """Transform `X`, shape (n, width), which may be overwritten; as ``scaler.transform`` does, and never sparse.

    A vectorizer takes an array of n texts.

    Raises
    ------
    ValueError
        scikit-learn's own, where another width was learned, or nothing.
    """
    compute = SCALE.get(type(scaler))
    if compute is None or getattr(scaler, "n_features_in_", None) != X.shape[1]:
        # A vectorizer notes where in memory its stop words are, and asking is to change nothing.
        found = (copy(scaler) if type(scaler) is HashingVectorizer else scaler).transform(X)
        return np.ascontiguousarray(found.toarray() if issparse(found) else found)
    scaled: Floats = compute(scaler, X)
    return scaled


def predict(estimator: Any, X: Floats) -> Any:
    """Predict `X`, shape (n, width), as ``estimator.predict`` does: an array of n values of the same type.

    Raises
    ------
    ValueError, IndexError
        scikit-learn's own, for a matrix that is not finite (a number may be too large once it is scaled), another
        width, or categories that CategoricalNB has not learned.
    """
    compute = prediction(estimator)
    return estimator.predict(X) if compute is None or not _sound(estimator, X) else compute(estimator, X)


def predict_proba(estimator: Any, X: Floats) -> Any:
    """Probabilities of `X`, shape (n, classes), as ``estimator.predict_proba`` gives them; errors as in `predict`."""
    compute = probabilities(estimator)
    return estimator.predict_proba(X) if compute is None or not _sound(estimator, X) else compute(estimator, X)


def prediction(estimator: Any) -> Computation | None:
    """Choose what computes ``predict`` of this exact class; None where only scikit-learn does."""
    return PREDICT.get(type(estimator))


def probabilities(estimator: Any) -> Computation | None:
    """Choose what computes ``predict_proba`` of `estimator`; None where only scikit-learn does."""
    if type(estimator) is MLPClassifier:
        return _network_chances
    return _logistic if type(estimator) is SGDClassifier and estimator.loss == "log_loss" else None


def gives_probabilities(estimator: Any) -> bool:
    """Tell whether `estimator` has ``predict_proba``, for which scikit-learn takes 5 µs where it has not."""
    if type(estimator) is SGDClassifier:
        return estimator.loss in ("log_loss", "modified_huber")
    return type(estimator) not in (SGDRegressor, Perceptron) and hasattr(estimator, "predict_proba")


def _sound(estimator: Any, X: Floats) -> bool:
    return bool(X.shape[1] == getattr(estimator, "n_features_in_", None) and finite(X))


def finite(X: Floats) -> bool:
    """Tell whether all of `X` is; the sum of squares is the fastest look, and says no of very large numbers too."""
    return isfinite(np.vdot(X, X)) or bool(np.isfinite(X).all())


def _standard(scaler: Any, X: Floats) -> Floats:
    if scaler.with_mean:
        X -= scaler.mean_
    if scaler.with_std:
        X /= scaler.scale_
    return X


def _min_max(scaler: Any, X: Floats) -> Floats:
    X *= scaler.scale_
    X += scaler.min_
    return np.clip(X, *scaler.feature_range, out=X) if scaler.clip else X


def _max_abs(scaler: Any, X: Floats) -> Floats:
    X /= scaler.scale_
    return np.clip(X, -1.0, 1.0, out=X) if scaler.clip else X


def _linear(estimator: Any, X: Floats) -> Any:
    return (X @ estimator.coef_.T + estimator.intercept_).ravel()


def _inlier(estimator: Any, X: Floats) -> Any:
    inside = X @ estimator.coef_.T - estimator.offset_ >= 0
    return np.where(inside.ravel(), np.int32(1), np.int32(-1))


def _decision(estimator: Any, X: Floats) -> Any:
    """Scores of the second of two classes, shape (n,), or of each of more, shape (n, classes)."""
    scores = X @ estimator.coef_.T + estimator.intercept_
    return scores.ravel() if scores.shape[1] == 1 else scores


def _linear_label(estimator: Any, X: Floats) -> Any:
    scores = _decision(estimator, X)
    return estimator.classes_[(scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)]


def _logistic(estimator: Any, X: Floats) -> Any:
    """Logistic function of each score, one against the rest, so that each row's sum is 1."""
    scores = _decision(estimator, X)
    chances = expit(scores, out=scores)
    if chances.ndim == 1:
        return np.stack([1 - chances, chances], axis=1)
    total = chances.sum(axis=1)
    nowhere = total == 0
    chances[nowhere] = 1
    total[nowhere] = chances.shape[1]
    chances /= total[:, np.newaxis]
    return chances


# Below, the core of scikit-learn's own predict is called by its private name, as its public one does after validation.


def _bayes_label(estimator: Any, X: Floats) -> Any:
    return estimator.classes_[estimator._joint_log_likelihood(X).argmax(axis=1)]


def _bernoulli_label(estimator: Any, X: Floats) -> Any:
    return _bayes_label(
        estimator, X if estimator.binarize is None else np.greater(X, estimator.binarize).astype(np.float64)
    )


def _network(estimator: Any, X: Floats) -> Any:
    return estimator._predict(X, check_input=False)


def _network_label(estimator: Any, X: Floats) -> Any:
    out = estimator._forward_pass_fast(X, check_input=False)
    return estimator.classes_[(out.ravel() > 0.5).astype(np.intp) if estimator.n_outputs_ == 1 else out.argmax(axis=1)]


def _network_chances(estimator: Any, X: Floats) -> Any:
    out = estimator._forward_pass_fast(X, check_input=False)
    return np.concatenate([1 - out, out], axis=1) if estimator.n_outputs_ == 1 else out


def _paired_label(estimator: Any, X: Floats) -> Any:
    """Votes of the pairs; one of two classes without a row has none, where scikit-learn would not predict at all."""
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
    StandardScaler: _standard,
    MinMaxScaler: _min_max,
    MaxAbsScaler: _max_abs,
}
PREDICT: Mapping[type[Any], Computation] = {
    SGDRegressor: _linear,
    SGDClassifier: _linear_label,
    Perceptron: _linear_label,
    SGDOneClassSVM: _inlier,
    GaussianNB: _bayes_label,
    MultinomialNB: _bayes_label,
    ComplementNB: _bayes_label,
    BernoulliNB: _bernoulli_label,
    MLPRegressor: _network,
    MLPClassifier: _network_label,
    OneVsOneClassifier: _paired_label,
}

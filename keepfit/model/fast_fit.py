"""What scikit-learn's ``partial_fit`` of StandardScaler and SGD computes, without its validation.

Learning one row of four numbers takes scikit-learn 450 µs, of which computing is a tenth; rows were checked when they
came in. Owns the list of classes for which the validation is left out. Never makes a first call, which decides widths,
classes and types. Invariants: what is learned is what scikit-learn learns, bit for bit and in every attribute, because
it comes from the same operations in the same order; whatever is not known here by its exact class and parameters, is
not finite or has weights goes to scikit-learn, which learns it or says what is wrong with it.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import isfinite, sqrt
from typing import Any

import numpy as np
from sklearn._loss._loss import CyHalfBinomialLoss
from sklearn.linear_model import Perceptron, SGDClassifier, SGDRegressor
from sklearn.linear_model._sgd_fast import _plain_sgd64
from sklearn.preprocessing import StandardScaler
from sklearn.utils._seq_dataset import ArrayDataset64

from keepfit.model.fast_predict import finite
from keepfit.rows.values import Floats

EPSILON = float(np.finfo(np.float64).eps)
# A row of so few numbers is computed number by number in less time than numpy takes to begin.
NARROW = 16
ONE, FOR_NO_VALIDATION = np.ones(1), np.zeros(1, dtype=np.bool_)
# Only drawn from where rows are shuffled, or sampled at random, which nothing here does.
SEED = 1
NO_CALLBACK, NOT_ONE_CLASS, DENSE_INTERCEPT_DECAY = None, 0, 1.0


def scale(scaler: Any, X: Floats) -> None:
    """Learn `X`, shape (n, width), as ``scaler.partial_fit`` does.

    Raises
    ------
    ValueError
        scikit-learn's own.
    """
    known = type(scaler) is StandardScaler and _known(scaler, X.shape[1])
    if known and len(X) == 1 and X.shape[1] <= NARROW and isfinite(sum(row := X[0].tolist())):
        _standard_narrow(scaler, row)
    elif known and finite(X):
        _standard(scaler, X)
    else:
        scaler.partial_fit(X)


def scale_single(scaler: Any, row: list[float]) -> tuple[Floats, Floats] | None:
    """Learn a single row, and give it scaled as it was before that and as it is after, of shape (1, width) each.

    The same as ``transform``, ``partial_fit`` and ``transform``, in a third of the time; None, and nothing learned,
    where that is not known of this scaler, this width or these numbers.
    """
    known = type(scaler) is StandardScaler and len(row) <= NARROW and _known(scaler, len(row))
    return _standard_narrow(scaler, row) if known and scaler.with_mean and isfinite(sum(row)) else None


def _known(scaler: Any, width: int) -> bool:
    return bool(
        getattr(scaler, "n_features_in_", None) == width and scaler.with_std and scaler.n_samples_seen_.ndim == 0
    )


def _standard(scaler: Any, X: Floats) -> None:
    """Update mean and variance, as Chan, Golub and LeVeque (1983) do."""
    seen, n = float(scaler.n_samples_seen_), float(X.shape[0])
    total = seen + n
    mean = scaler.mean_
    old_sum = mean * seen
    if n == 1.0:
        # Of a single row, the distance from its own mean is zero.
        new_sum = X[0]
        spread = scaler.var_ * seen
    else:
        new_sum = X.sum(axis=0)
        off = X - new_sum / n
        correction = off.sum(axis=0)
        off *= off
        spread = scaler.var_ * seen + (off.sum(axis=0) - correction * correction / n)
    ratio = seen / n
    shift = old_sum / ratio - new_sum
    shift *= shift
    shift *= ratio / total
    spread += shift
    spread /= total
    mean = (old_sum + new_sum) / total
    constant = total * mean * EPSILON
    constant *= constant
    constant += total * EPSILON * spread
    deviation = np.sqrt(spread)
    deviation[spread <= constant] = 1.0
    scaler.mean_, scaler.var_, scaler.scale_, scaler.n_samples_seen_ = mean, spread, deviation, np.float64(total)


def _standard_narrow(scaler: Any, row: list[float]) -> tuple[Floats, Floats]:
    """Do with a single row of few numbers what :func:`_standard` does with arrays, in the same order.

    Returns the row scaled as before and as after, where ``with_mean`` is set.
    """
    seen = float(scaler.n_samples_seen_)
    total = seen + 1.0
    weight, tolerance = seen / total, total * EPSILON
    means, variances, deviations, before, after = [], [], [], [], []
    learned = scaler.mean_.tolist(), scaler.var_.tolist(), scaler.scale_.tolist()
    for x, old_mean, variance, deviation in zip(row, *learned, strict=True):
        old_sum = old_mean * seen
        shift = old_sum / seen - x
        spread = (variance * seen + shift * shift * weight) / total
        mean = (old_sum + x) / total
        constant = total * mean * EPSILON
        scale = 1.0 if spread <= constant * constant + tolerance * spread else sqrt(spread)
        means.append(mean)
        variances.append(spread)
        deviations.append(scale)
        before.append((x - old_mean) / deviation)
        after.append((x - mean) / scale)
    scaler.mean_, scaler.var_, scaler.scale_ = np.array(means), np.array(variances), np.array(deviations)
    scaler.n_samples_seen_ = np.float64(total)
    return np.array([before]), np.array([after])


def learn(estimator: Any, X: Floats, y: Any) -> bool:
    """Learn `X`, shape (n, width), and `y` as ``estimator.partial_fit(X, y)`` does; False if scikit-learn has to.

    Raises
    ------
    ValueError
        scikit-learn's own, where a number overflows.
    """
    step = STEPS.get(type(estimator))
    if step is None or not _plain(estimator, X):
        return False
    step(estimator, X, y)
    return True


def _plain(estimator: Any, X: Floats) -> bool:
    """Whether nothing about the call is known to scikit-learn only: no first call, averages, shuffling, output.

    A classifier whose parameters were changed has no loss function until scikit-learn makes it.
    """
    coef = getattr(estimator, "coef_", None)
    return (
        coef is not None
        and (type(estimator) is SGDRegressor or hasattr(estimator, "_loss_function_"))
        and coef.shape[-1] == X.shape[1]
        and not (estimator.average or estimator.shuffle or estimator.early_stopping or estimator.verbose)
        and finite(X)
    )


def _sgd(estimator: Any, X: Floats, y: Floats, loss: Any, coef: Floats, intercept: float, *weights: float) -> Any:
    """One pass of scikit-learn's own loop, which changes `coef`; returns the intercept and the number of passes."""
    n = X.shape[0]
    if n == 1:
        kept_X, kept_y, dataset = _row(X.shape[1])
        kept_X[:], kept_y[:] = X, y
    else:
        dataset = ArrayDataset64(X, y, np.ones(n), SEED)
    _, intercept, _, _, passes = _plain_sgd64(
        coef,
        intercept,
        None,
        0,
        loss,
        estimator._get_penalty_type(estimator.penalty),
        estimator.alpha,
        estimator._get_l1_ratio(),
        dataset,
        FOR_NO_VALIDATION if n == 1 else np.zeros(n, dtype=np.bool_),
        False,
        NO_CALLBACK,
        int(estimator.n_iter_no_change),
        1,
        -np.inf if estimator.tol is None else estimator.tol,
        int(estimator.fit_intercept),
        0,
        0,
        SEED,
        *weights,
        estimator._get_learning_rate_type(estimator.learning_rate),
        estimator.eta0,
        estimator.power_t,
        NOT_ONE_CLASS,
        estimator.t_,
        DENSE_INTERCEPT_DECAY,
        estimator.average,
    )
    return intercept, passes


@lru_cache(maxsize=64)
def _row(width: int) -> tuple[Floats, Floats, ArrayDataset64]:
    """Room for one row and its target, as scikit-learn's loop reads them; used for a moment, by one thread."""
    X, y = np.zeros((1, width)), np.zeros(1)
    return X, y, ArrayDataset64(X, y, ONE, SEED)


def _values(estimator: Any, X: Floats, y: Floats) -> None:
    loss = estimator._get_loss_function(estimator.loss)
    intercept, passes = _sgd(estimator, X, y, loss, estimator.coef_, estimator.intercept_[0], 1.0, 1.0)
    estimator.n_iter_ = passes
    estimator.t_ += passes * X.shape[0]
    estimator.intercept_ = np.array([intercept])


def _labels(estimator: Any, X: Floats, y: Any) -> None:
    """Learn one class against the other, or each of more against the rest."""
    loss, weights = estimator._loss_function_, estimator._expanded_class_weight
    no = 0.0 if isinstance(loss, CyHalfBinomialLoss) else -1.0
    if len(estimator.classes_) == 2:
        target = np.where(y == estimator.classes_[1], 1.0, no)
        coef, start = estimator.coef_.ravel(), estimator.intercept_[0]
        intercept, passes = _sgd(estimator, X, target, loss, coef, start, weights[1], weights[0])
        estimator.coef_, estimator.intercept_ = coef.reshape(1, -1), np.array([intercept])
    else:
        for i, label in enumerate(estimator.classes_):
            target = np.where(y == label, 1.0, no)
            coef, start = estimator.coef_[i], estimator.intercept_[i]
            estimator.intercept_[i], passes = _sgd(estimator, X, target, loss, coef, start, weights[i], 1.0)
    estimator.n_iter_ = passes
    estimator.t_ += passes * X.shape[0]


STEPS: Mapping[type[Any], Callable[[Any, Floats, Any], None]] = {
    SGDRegressor: _values,
    SGDClassifier: _labels,
    Perceptron: _labels,
}

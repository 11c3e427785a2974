"""Fast path of learning: ``partial_fit`` of StandardScaler and SGD without scikit-learn's validation.

scikit-learn takes 450 µs to learn one row of four numbers, of which computing is a tenth; rows are checked when they
are accepted. Owns the list of classes whose validation is skipped. Never makes a first call, which decides widths,
classes and dtypes. Invariants: the result is what scikit-learn learns, bit for bit and in every attribute, because it
comes from the same operations in the same order; classes and parameters that are not listed here, values that are not
finite, and rows with weights go to scikit-learn, which learns them or raises an error.
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

from keepfit.rows.values import Floats
from keepfit.scoring.functions import is_finite

EPSILON = float(np.finfo(np.float64).eps)
# Up to this width, a Python loop over a row is faster than the fixed cost of numpy.
ROW_WIDTH_SMALL_MAX = 16
ONE, NO_VALIDATION_MASK = np.ones(1), np.zeros(1, dtype=np.bool_)
# Only used to shuffle or sample rows, which nothing here does.
SEED = 1
NO_CALLBACK, NOT_ONE_CLASS, DENSE_INTERCEPT_DECAY = None, 0, 1.0


def partial_fit_scaler(scaler: Any, X: Floats) -> None:
    """Learn `X`, shape (n, width), as ``scaler.partial_fit(X)`` does.

    Raises
    ------
    ValueError
        As scikit-learn raises it.
    """
    supported = type(scaler) is StandardScaler and _is_supported_scaler(scaler, X.shape[1])
    if supported and len(X) == 1 and X.shape[1] <= ROW_WIDTH_SMALL_MAX and isfinite(sum(row := X[0].tolist())):
        _update_standard_row(scaler, row)
    elif supported and is_finite(X):
        _update_standard(scaler, X)
    else:
        scaler.partial_fit(X)


def partial_fit_scaler_row(scaler: Any, row: list[float]) -> tuple[Floats, Floats] | None:
    """Learn a single row; return it scaled as before and as after learning, shape (1, width) each.

    Does the same as ``transform``, ``partial_fit`` and ``transform``, in a third of the time. Returns None and learns
    nothing if the scaler, the width or the values are not supported.
    """
    supported = (
        type(scaler) is StandardScaler and len(row) <= ROW_WIDTH_SMALL_MAX and _is_supported_scaler(scaler, len(row))
    )
    return _update_standard_row(scaler, row) if supported and scaler.with_mean and isfinite(sum(row)) else None


def _is_supported_scaler(scaler: Any, width: int) -> bool:
    return bool(
        getattr(scaler, "n_features_in_", None) == width and scaler.with_std and scaler.n_samples_seen_.ndim == 0
    )


def _update_standard(scaler: Any, X: Floats) -> None:
    """Update mean and variance by the method of Chan, Golub and LeVeque (1983)."""
    seen, n = float(scaler.n_samples_seen_), float(X.shape[0])
    total = seen + n
    mean = scaler.mean_
    old_sum = mean * seen
    if n == 1.0:
        # The deviation of a single row from its own mean is zero.
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


def _update_standard_row(scaler: Any, row: list[float]) -> tuple[Floats, Floats]:
    """Do for a single row of few numbers what :func:`_update_standard` does for arrays, in the same order.

    Returns the row scaled as before and as after learning, valid where ``with_mean`` is set.
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


def partial_fit(estimator: Any, X: Floats, y: Any) -> bool:
    """Learn `X`, shape (n, width), and `y`, shape (n,), as ``estimator.partial_fit(X, y)`` does.

    Returns False and learns nothing if the caller has to call scikit-learn.

    Raises
    ------
    ValueError
        As scikit-learn raises it, if a number overflows.
    """
    fitter = FITTERS.get(type(estimator))
    if fitter is None or not _is_supported_estimator(estimator, X):
        return False
    fitter(estimator, X, y)
    return True


def _is_supported_estimator(estimator: Any, X: Floats) -> bool:
    """Return whether this is not a first call and uses no averaging, shuffling, early stopping or verbose output.

    A classifier whose parameters were changed has no loss function until scikit-learn creates it.
    """
    coef = getattr(estimator, "coef_", None)
    return (
        coef is not None
        and (type(estimator) is SGDRegressor or hasattr(estimator, "_loss_function_"))
        and coef.shape[-1] == X.shape[1]
        and not (estimator.average or estimator.shuffle or estimator.early_stopping or estimator.verbose)
        and is_finite(X)
    )


def _run_sgd(estimator: Any, X: Floats, y: Floats, loss: Any, coef: Floats, intercept: float, *weights: float) -> Any:
    """Run one pass of scikit-learn's own loop, which changes `coef`; return the intercept and the number of passes."""
    n = X.shape[0]
    if n == 1:
        buffer_X, buffer_y, dataset = _row_buffers(X.shape[1])
        buffer_X[:], buffer_y[:] = X, y
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
        NO_VALIDATION_MASK if n == 1 else np.zeros(n, dtype=np.bool_),
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
def _row_buffers(width: int) -> tuple[Floats, Floats, ArrayDataset64]:
    """Return buffers for one row and its target, and the dataset that reads them; for one call of one thread."""
    X, y = np.zeros((1, width)), np.zeros(1)
    return X, y, ArrayDataset64(X, y, ONE, SEED)


def _fit_regressor(estimator: Any, X: Floats, y: Floats) -> None:
    loss = estimator._get_loss_function(estimator.loss)
    intercept, passes = _run_sgd(estimator, X, y, loss, estimator.coef_, estimator.intercept_[0], 1.0, 1.0)
    estimator.n_iter_ = passes
    estimator.t_ += passes * X.shape[0]
    estimator.intercept_ = np.array([intercept])


def _fit_classifier(estimator: Any, X: Floats, y: Any) -> None:
    """Learn one class against the other or, of three and more classes, each against the rest."""
    loss, weights = estimator._loss_function_, estimator._expanded_class_weight
    negative = 0.0 if isinstance(loss, CyHalfBinomialLoss) else -1.0
    if len(estimator.classes_) == 2:
        target = np.where(y == estimator.classes_[1], 1.0, negative)
        coef, start = estimator.coef_.ravel(), estimator.intercept_[0]
        intercept, passes = _run_sgd(estimator, X, target, loss, coef, start, weights[1], weights[0])
        estimator.coef_, estimator.intercept_ = coef.reshape(1, -1), np.array([intercept])
    else:
        for i, label in enumerate(estimator.classes_):
            target = np.where(y == label, 1.0, negative)
            coef, start = estimator.coef_[i], estimator.intercept_[i]
            estimator.intercept_[i], passes = _run_sgd(estimator, X, target, loss, coef, start, weights[i], 1.0)
    estimator.n_iter_ = passes
    estimator.t_ += passes * X.shape[0]


FITTERS: Mapping[type[Any], Callable[[Any, Floats, Any], None]] = {
    SGDRegressor: _fit_regressor,
    SGDClassifier: _fit_classifier,
    Perceptron: _fit_classifier,
}

"""Functions of arrays that the computations share.

Owns the logistic function without SciPy. Never changes what a model has learned. Invariant: :func:`logistic` gives
SciPy's ``expit`` bit for bit, because both take the C library's exponential function, value by value; numpy's own
exponential differs in the last bit.
"""

from collections.abc import Callable
from math import exp, isfinite

import numpy as np

from keepfit.rows.values import Floats

# Replaces the values of an array by their logistic function, and returns the array.
Logistic = Callable[[Floats], Floats]


def is_finite(X: Floats) -> bool:
    """Return whether all values of `X` are finite.

    The sum of squares is the fastest check; it also fails for very large values, which the second check decides.
    """
    return isfinite(np.vdot(X, X)) or bool(np.isfinite(X).all())


def logistic(values: Floats) -> Floats:
    """Replace `values` by 1 / (1 + exp(-x)), and return the array. For few values: Python computes each.

    >>> logistic(np.array([0.0, -1e9, 1e9])).tolist()
    [0.5, 0.0, 1.0]
    """
    listed = values.ravel().tolist()
    values[...] = np.array([_logistic(x) for x in listed]).reshape(values.shape)
    return values


def _logistic(x: float) -> float:
    try:
        return 1.0 / (1.0 + exp(-x))
    except OverflowError:
        return 0.0


def logsumexp(values: Floats) -> Floats:
    """Return the logarithm of the sum of the exponentials of each row of `values`, shape (n,), as scikit-learn does.

    The largest values of a row are taken out of the sum, so that nothing overflows and small terms count.

    >>> logsumexp(np.array([[0.0, 0.0], [1000.0, -np.inf]])).tolist()
    [0.6931471805599453, 1000.0]
    """
    largest = np.max(values, axis=1, keepdims=True)
    is_largest = values == largest
    others = values.copy(order="K")
    others[is_largest] = -np.inf
    count = np.sum(is_largest.astype(np.float64), axis=1, keepdims=True)
    terms = np.exp(others - np.where(np.isfinite(largest), largest, 0.0))
    rest = np.sum(terms, axis=1, keepdims=True)
    rest = np.where(rest == 0, rest, rest / count)
    found: Floats = np.squeeze(np.log1p(rest) + np.log(count) + largest, axis=1)
    return found

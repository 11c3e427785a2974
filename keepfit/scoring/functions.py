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

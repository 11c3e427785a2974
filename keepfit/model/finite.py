"""Whether what was learned is still numbers: nothing that an estimator or scaler keeps may become NaN or infinite.

Owns the search through an object's attributes, whatever their names are, so that no estimator has a corner that is not
looked at. Never changes anything. Invariant: what passes holds no NaN, and an infinity only where one is right.
"""

import math
from typing import Any

import numpy as np

# The logarithm of a count of zero, and the best loss before there was one.
INFINITE_ENDINGS = ("log_prob_", "log_prior_", "best_loss_")
# A history whose last value stands in `loss_` as well, which grows with every call; and shares of a variance that may
# be zero, which each call computes anew of what is looked at.
SKIPPED = frozenset({"loss_curve_", "explained_variance_ratio_"})
# What are objects of their own and learned: the moments of a neural network's optimizer, and the estimators that a
# wrapper stands around. A Birch tree is not searched, because its leaves stand in `subcluster_centers_` and its nodes
# are sums of them.
NESTED = frozenset({"_optimizer", "estimator_", "estimators_"})
# Most of what an estimator has are parameters of these; looking at no more than their type halves the time of a look.
NUMBERLESS = frozenset({str, bool, int, type(None)})


def fault(learned: Any) -> str | None:
    """Name of an attribute that holds a NaN, or an infinity where none may be; None if all is well.

    >>> class Learned: coef_, class_log_prior_, intercept_ = np.zeros(2), np.array([-np.inf]), 0.0
    >>> learned = Learned()
    >>> vars(learned).update(vars(Learned))
    >>> fault(learned)
    >>> learned.intercept_ = float("nan")
    >>> fault(learned)
    'intercept_'
    """
    attributes: dict[str, Any] = vars(learned)
    for name, value in attributes.items():
        if type(value) in NUMBERLESS or name in SKIPPED:
            continue
        if not _sound(value) and not (name.endswith(INFINITE_ENDINGS) and not _has_nan(value)):
            return name
        if name in NESTED:
            for part in value if isinstance(value, list) else [value]:
                nested = fault(part)
                if nested is not None:
                    return f"{name}.{nested}"
    return None


def _sound(value: Any) -> bool:
    """Tell whether all numbers in a value are finite; what holds none is sound."""
    kind = type(value)
    if kind is np.ndarray:
        # A product is the fastest look at a whole array; only a very large one needs the second.
        return value.dtype.kind != "f" or math.isfinite(np.vdot(value, value)) or bool(np.isfinite(value).all())
    if kind is float or kind is np.float64:
        return math.isfinite(value)
    return kind is not list or all(map(_sound, value))


def _has_nan(value: Any) -> bool:
    return any(map(_has_nan, value)) if isinstance(value, list) else bool(np.isnan(value).any())

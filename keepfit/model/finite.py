"""Check that everything a model has learned is finite: no NaN, and no infinity except where one is valid.

Owns the search through all attributes of a scaler or estimator, whatever their names, so that no attribute of any
estimator is left out. Never changes anything. Invariant: an object that passes holds no NaN, and an infinity only in
attributes where it is valid.
"""

import math
from typing import Any

import numpy as np

# Infinity is valid here: the logarithm of a count of zero, and the best loss before there is one.
INFINITE_ENDINGS = ("log_prob_", "log_prior_", "best_loss_")
# A list whose last value is also in `loss_`, and which grows with every call; and shares of a variance that may be
# zero, which each call computes again from attributes that are checked.
SKIPPED = frozenset({"loss_curve_", "explained_variance_ratio_"})
# Attributes that are objects with learned state: the optimizer of a neural network, and the members of a wrapper. A
# Birch tree is not searched, because its leaves are in `subcluster_centers_` and its nodes are sums of them.
NESTED = frozenset({"_optimizer", "estimator_", "estimators_"})
# Most attributes are parameters of these types; skipping them by type halves the time of a check.
NON_NUMERIC_TYPES = frozenset({str, bool, int, type(None)})


def find_non_finite(learned: Any) -> str | None:
    """Return the name of an attribute that holds a NaN, or an infinity where none is valid; None if there is none.

    >>> class Learned: coef_, class_log_prior_, intercept_ = np.zeros(2), np.array([-np.inf]), 0.0
    >>> learned = Learned()
    >>> vars(learned).update(vars(Learned))
    >>> find_non_finite(learned)
    >>> learned.intercept_ = float("nan")
    >>> find_non_finite(learned)
    'intercept_'
    """
    attributes: dict[str, Any] = vars(learned)
    for name, value in attributes.items():
        if type(value) in NON_NUMERIC_TYPES or name in SKIPPED:
            continue
        if not _is_finite(value) and not (name.endswith(INFINITE_ENDINGS) and not _has_nan(value)):
            return name
        if name in NESTED:
            for member in value if isinstance(value, list) else [value]:
                nested = find_non_finite(member)
                if nested is not None:
                    return f"{name}.{nested}"
    return None


def _is_finite(value: Any) -> bool:
    """Return whether all numbers in a value are finite; true of a value without numbers."""
    kind = type(value)
    if kind is np.ndarray:
        # The sum of squares is the fastest check of a whole array; only very large values need the second one.
        return value.dtype.kind != "f" or math.isfinite(np.vdot(value, value)) or bool(np.isfinite(value).all())
    if kind is float or kind is np.float64:
        return math.isfinite(value)
    return kind is not list or all(map(_is_finite, value))


def _has_nan(value: Any) -> bool:
    return any(map(_has_nan, value)) if isinstance(value, list) else bool(np.isnan(value).any())


def finite_attributes(learner: Any) -> set[str]:
    """Return the names of the attributes of an object that hold numbers, all of them finite."""
    attributes: dict[str, Any] = getattr(learner, "__dict__", {})
    numbers = {name: value for name, value in attributes.items() if isinstance(value, np.ndarray | float)}
    return {name for name, value in numbers.items() if _holds_finite(value)}


def _holds_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())

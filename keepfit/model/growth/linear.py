"""Growth of linear classifiers: SGDClassifier, Perceptron and estimators derived from them.

Owns the rows of their weights. scikit-learn has one row for two classes, w for the second and -w for the first, and for
three and more classes one row per class against the rest. Never changes the step counter, which all classes share.

The score of a new class is the mean of the old scores minus a margin. A mean is never above the maximum, so a new class
never wins over an old one on any row; weights of zero with a negative intercept would win wherever all old scores are
even lower, which without a scaler is nearly everywhere. For two classes that mean is zero, since the two rows cancel.
"""

from collections.abc import Sequence
from copy import deepcopy
from math import log
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

WEIGHTS = ("coef_", "_standard_coef", "_average_coef")
INTERCEPTS = ("intercept_", "_standard_intercept", "_average_intercept")


def add_classes(estimator: Any, n_classes: int) -> None:
    """Extend `estimator` to one row of weights for each of `n_classes` classes."""
    added = n_classes - len(estimator.classes_)
    binary = len(estimator.classes_) == 2
    margin = _margin(estimator)
    learned = _learned(estimator)
    # With averaging, two attributes share one array, and must share one afterwards.
    grown: dict[int, Any] = {}
    for name, value in learned.items():
        if id(value) not in grown:
            rows = value.reshape(1, -1) if name in WEIGHTS and binary else value
            if binary:
                rows = np.concatenate([-rows, rows])
            new_row = rows.mean(axis=0) - (margin if name in INTERCEPTS else 0.0)
            grown[id(value)] = np.concatenate([rows, np.stack([new_row] * added)])
        setattr(estimator, name, grown[id(value)])
    estimator.classes_ = np.arange(n_classes)
    estimator._expanded_class_weight = compute_class_weight(
        estimator.class_weight, classes=estimator.classes_, y=estimator.classes_
    )


def swap_classes(member: Any) -> None:
    """Swap the two classes by negating all weights."""
    learned = _learned(member)
    negated = {id(value): -value for value in learned.values()}
    for name, value in learned.items():
        setattr(member, name, negated[id(value)])


def new_rest_member(members: Sequence[Any]) -> Any:
    """Return a member whose score is the mean of those of `members` minus a margin."""
    margin = _margin(members[0])
    return _copied(members[0], lambda name: np.mean([getattr(member, name) for member in members], axis=0), margin)


def new_pair_member(member: Any, code: int) -> Any:
    """Return a member with zero weights, which predicts class 0 for every row."""
    return _copied(member, lambda name: np.zeros_like(getattr(member, name)), _margin(member))


def _copied(member: Any, value_of: Any, margin: float) -> Any:
    """Return a copy of `member` with the weights that `value_of` gives by name, intercepts minus `margin`."""
    copied = deepcopy(member)
    values: dict[int, Any] = {}
    for name, value in _learned(copied).items():
        if id(value) not in values:
            values[id(value)] = value_of(name) - (margin if name in INTERCEPTS else 0.0)
        setattr(copied, name, values[id(value)])
    return copied


def _learned(estimator: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(estimator).items() if name in (*WEIGHTS, *INTERCEPTS)}


def _margin(estimator: Any) -> float:
    """Return the margin: 1, at which a hinge loss is zero; for log_loss, Laplace's rule for 0 of the rows learned."""
    if not estimator.fit_intercept:
        # An intercept that is never learned must stay zero.
        return 0.0
    return log(estimator.t_) if estimator.loss == "log_loss" else 1.0

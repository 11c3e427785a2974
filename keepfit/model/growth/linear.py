"""Growth of linear classifiers: SGDClassifier, Perceptron and what is built of them.

Owns the rows of their weights. scikit-learn keeps one row for two classes, w for the second and so -w for the first,
and from three on a row for each class against the rest. Never touches the count of steps, which all classes share.

A new class begins where its score is the mean of the old ones' less a margin. As no mean is above the largest, it wins
over no old class on any row whatever; weights of zero with a negative intercept would win wherever all old scores are
lower still, which without a scaler is nearly everywhere. Of two classes that mean is zero, since the two rows cancel.
"""

from collections.abc import Sequence
from copy import deepcopy
from math import log
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

WEIGHTS = ("coef_", "_standard_coef", "_average_coef")
INTERCEPTS = ("intercept_", "_standard_intercept", "_average_intercept")


def widen(estimator: Any, slots: int) -> None:
    """Give `estimator` a row of weights for each of `slots` classes."""
    added = slots - len(estimator.classes_)
    binary = len(estimator.classes_) == 2
    off = _margin(estimator)
    learned = _learned(estimator)
    # With averages, one array is kept under two names, and has to be one array afterwards.
    grown: dict[int, Any] = {}
    for name, value in learned.items():
        if id(value) not in grown:
            rows = value.reshape(1, -1) if name in WEIGHTS and binary else value
            if binary:
                rows = np.concatenate([-rows, rows])
            fresh = rows.mean(axis=0) - (off if name in INTERCEPTS else 0.0)
            grown[id(value)] = np.concatenate([rows, np.stack([fresh] * added)])
        setattr(estimator, name, grown[id(value)])
    estimator.classes_ = np.arange(slots)
    estimator._expanded_class_weight = compute_class_weight(
        estimator.class_weight, classes=estimator.classes_, y=estimator.classes_
    )


def mirror(member: Any) -> None:
    """Exchange the two classes: all weights change their sign."""
    learned = _learned(member)
    negated = {id(value): -value for value in learned.values()}
    for name, value in learned.items():
        setattr(member, name, negated[id(value)])


def rest(members: Sequence[Any]) -> Any:
    """Make a member that scores as the mean of `members` does, less a margin."""
    off = _margin(members[0])
    return _copied(members[0], lambda name: np.mean([getattr(member, name) for member in members], axis=0), off)


def pair(member: Any, place: int) -> Any:
    """Make a member without weights, for which every row is of class 0."""
    return _copied(member, lambda name: np.zeros_like(getattr(member, name)), _margin(member))


def _copied(member: Any, value_of: Any, off: float) -> Any:
    copied = deepcopy(member)
    made: dict[int, Any] = {}
    for name, value in _learned(copied).items():
        if id(value) not in made:
            made[id(value)] = value_of(name) - (off if name in INTERCEPTS else 0.0)
        setattr(copied, name, made[id(value)])
    return copied


def _learned(estimator: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(estimator).items() if name in (*WEIGHTS, *INTERCEPTS)}


def _margin(estimator: Any) -> float:
    """How far below: where a hinge is content or, of chances, Laplace's rule for a class with none of so many rows."""
    if not estimator.fit_intercept:
        # An intercept that is not learned must stay zero.
        return 0.0
    return log(estimator.t_) if estimator.loss == "log_loss" else 1.0

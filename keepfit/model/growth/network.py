"""Growth of MLPClassifier: its output layer, and the optimizer's moments of that layer.

Owns the columns of the last layer. scikit-learn has one output for two classes, z for the second, and for three and
more classes a softmax over one column each: for [0, z] it gives the same two probabilities. Never changes the other
layers, the step counter, the loss history or the learning rate.

The output of a new class is the mean of the old outputs: a mean is never above the maximum, so a new class never wins
over an old one on any row, and a network that takes small steps would need long to raise an output that starts lower.
Inside a wrapper there is no such mean: there the output starts at Laplace's rule for a class with none of the rows
seen.
"""

from collections.abc import Sequence
from copy import deepcopy
from math import log1p
from typing import Any

import numpy as np

# Attributes of the optimizer: moving means of gradients, which have a sign, and of squared gradients, which have none.
SIGNED, SQUARED = ("velocities", "ms"), ("vs",)


def add_classes(estimator: Any, n_classes: int) -> None:
    """Extend `estimator` to one output for each of `n_classes` classes."""
    binary = estimator.n_outputs_ == 1
    added = n_classes - len(estimator.classes_)
    for layers in (estimator.coefs_, estimator.intercepts_, estimator._best_coefs, estimator._best_intercepts):
        layers[-1] = _outputs(layers[-1], 0.0 if binary else None, added, np.mean)
    for moments, last, sign in _moments(estimator):
        # The gradient of the first of two outputs is the negated gradient of the second.
        moments[last] = _outputs(moments[last], sign if binary else None, added, _zeros)
    estimator.classes_ = np.arange(n_classes)
    estimator._label_binarizer.fit(estimator.classes_)
    estimator.n_outputs_, estimator.out_activation_ = n_classes, "softmax"


def swap_classes(member: Any) -> None:
    """Swap the two classes by negating the output layer."""
    for weights, intercepts in _layers(member):
        weights[-1], intercepts[-1] = -weights[-1], -intercepts[-1]
    for moments, last, sign in _moments(member):
        moments[last] = sign * moments[last]


def new_rest_member(members: Sequence[Any]) -> Any:
    """Return a member with the inner layers of the first of `members`, which predicts the rest for every row."""
    return new_pair_member(members[0], 0)


def new_pair_member(member: Any, code: int) -> Any:
    """Return a member with the inner layers of `member`, which predicts class 0 for every row."""
    copied = deepcopy(member)
    for weights, intercepts in _layers(copied):
        weights[-1] = np.zeros_like(weights[-1])
        intercepts[-1] = np.full_like(intercepts[-1], -log1p(member.t_))
    for moments, last, _ in _moments(copied):
        moments[last] = np.zeros_like(moments[last])
    return copied


def _outputs(old: Any, first: float | None, added: int, new_column: Any) -> Any:
    """Return the columns of `old` followed by `added` new ones.

    With `first`, `old` has a single column, and `first` times that column is put before it.
    """
    columns = old if first is None else np.concatenate([first * old, old], axis=-1)
    new = np.asarray(new_column(columns, axis=-1))[..., np.newaxis]
    return np.ascontiguousarray(np.concatenate([columns, *[new] * added], axis=-1))


def _zeros(columns: Any, axis: int) -> Any:
    return np.zeros(columns.shape[:axis])


def _layers(estimator: Any) -> list[tuple[list[Any], list[Any]]]:
    return [(estimator.coefs_, estimator.intercepts_), (estimator._best_coefs, estimator._best_intercepts)]


def _moments(estimator: Any) -> list[tuple[list[Any], int, float]]:
    """Return the optimizer's lists, each with an index of the output layer in it, and the sign of its swapped value."""
    optimizer = estimator._optimizer
    return [
        (getattr(optimizer, name), index, sign)
        for names, sign in ((SIGNED, -1.0), (SQUARED, 1.0))
        for name in names
        if hasattr(optimizer, name)
        for index in (len(estimator.coefs_) - 1, -1)
    ]

"""Growth of MLPClassifier: its output layer, and what the optimizer remembers of it.

Owns the columns of the last layer. scikit-learn has one output for two classes, z for the second, and from three on a
softmax over a column each: of [0, z] it gives the very same two probabilities. Never touches the other layers, the
count of steps, the history of losses or the learning rate.

A new class begins at the mean of the old outputs: as no mean is above the largest, it wins over no old class on any row
whatever, and a network of small steps needs long to bring up what begins lower. Within a wrapper there is no such mean:
there the output begins at Laplace's rule for a class that none of the rows seen was of.
"""

from collections.abc import Sequence
from copy import deepcopy
from math import log1p
from typing import Any

import numpy as np

# Where the optimizer keeps what it remembers: means of gradients, which have a direction, and of their squares.
DIRECTED, SQUARED = ("velocities", "ms"), ("vs",)


def widen(estimator: Any, slots: int) -> None:
    """Give `estimator` an output for each of `slots` classes."""
    binary = estimator.n_outputs_ == 1
    added = slots - len(estimator.classes_)
    for layers in (estimator.coefs_, estimator.intercepts_, estimator._best_coefs, estimator._best_intercepts):
        layers[-1] = _outputs(layers[-1], 0.0 if binary else None, added, np.mean)
    for moments, last, sign in _moments(estimator):
        # The gradient of the first of two outputs is the second's with the other sign.
        moments[last] = _outputs(moments[last], sign if binary else None, added, _nothing)
    estimator.classes_ = np.arange(slots)
    estimator._label_binarizer.fit(estimator.classes_)
    estimator.n_outputs_, estimator.out_activation_ = slots, "softmax"


def mirror(member: Any) -> None:
    """Exchange the two classes: all of the output layer changes its sign."""
    for weights, intercepts in _layers(member):
        weights[-1], intercepts[-1] = -weights[-1], -intercepts[-1]
    for moments, last, sign in _moments(member):
        moments[last] = sign * moments[last]


def rest(members: Sequence[Any]) -> Any:
    """Make a member with the inner layers of the first of `members`, which takes every row for the rest."""
    return pair(members[0], 0)


def pair(member: Any, place: int) -> Any:
    """Make a member with the inner layers of `member` for which every row is of class 0."""
    copied = deepcopy(member)
    for weights, intercepts in _layers(copied):
        weights[-1] = np.zeros_like(weights[-1])
        intercepts[-1] = np.full_like(intercepts[-1], -log1p(member.t_))
    for moments, last, _ in _moments(copied):
        moments[last] = np.zeros_like(moments[last])
    return copied


def _outputs(old: Any, first: float | None, added: int, fresh: Any) -> Any:
    """Columns of `old`, before them `first` times the only one where there is but one, behind them `added` new ones."""
    columns = old if first is None else np.concatenate([first * old, old], axis=-1)
    new = np.asarray(fresh(columns, axis=-1))[..., np.newaxis]
    return np.ascontiguousarray(np.concatenate([columns, *[new] * added], axis=-1))


def _nothing(columns: Any, axis: int) -> Any:
    return np.zeros(columns.shape[:axis])


def _layers(estimator: Any) -> list[tuple[list[Any], list[Any]]]:
    return [(estimator.coefs_, estimator.intercepts_), (estimator._best_coefs, estimator._best_intercepts)]


def _moments(estimator: Any) -> list[tuple[list[Any], int, float]]:
    """Lists of the optimizer, places of the output layer's weights and intercepts in them, and their mirror's sign."""
    optimizer = estimator._optimizer
    return [
        (getattr(optimizer, name), place, sign)
        for names, sign in ((DIRECTED, -1.0), (SQUARED, 1.0))
        for name in names
        if hasattr(optimizer, name)
        for place in (len(estimator.coefs_) - 1, -1)
    ]

"""Predictions of neural networks: MLPRegressor and MLPClassifier, and their records.

Owns the forward pass. Never learns. Invariant: results are those of scikit-learn bit for bit, because they come from
the same operations in the same order. The functions take a fitted estimator of scikit-learn, or the record with its
attributes, and a finite matrix, shape (n, width), C-contiguous.
"""

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from keepfit.rows.values import Floats
from keepfit.scoring import functions
from keepfit.scoring.class_labels import CLASSES_MIN
from keepfit.scoring.functions import Logistic
from keepfit.scoring.records import FIXED_CALLS, LOGISTIC_COST, Estimator

Activation = Literal["identity", "logistic", "tanh", "relu"]


class _Network(Estimator, frozen=True):
    """What the records of networks have in common: weights and intercepts of each layer."""

    coefs_: list[Floats]
    intercepts_: list[Floats]
    activation: Activation

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.coefs_[0].shape[0])

    @cached_property
    def n_outputs_(self) -> int:
        """Number of units of the last layer."""
        return int(self.coefs_[-1].shape[1])

    @property
    def calls(self) -> int:
        """Calls of numpy: product, sum and activation of each layer."""
        return FIXED_CALLS + 5 * len(self.coefs_)

    @property
    def row_cost(self) -> int:
        """Multiplications and additions for a row; of a logistic function, that of a value."""
        units = sum(map(len, self.intercepts_)) if self.activation == "logistic" else len(self.intercepts_[-1])
        return super().row_cost + LOGISTIC_COST * units

    def fits(self) -> bool:
        """Return whether each layer takes what the one before gives."""
        return (
            len(self.coefs_) == len(self.intercepts_) > 0
            and all(weights.ndim == 2 for weights in self.coefs_)
            and all(left.shape[1] == right.shape[0] for left, right in pairwise(self.coefs_))
            and all(b.shape == W.shape[1:] for W, b in zip(self.coefs_, self.intercepts_, strict=True))
        )


class NetworkRegressor(_Network, tag="network_regressor", frozen=True):
    """An MLPRegressor with one output."""

    out_activation_: Literal["identity", "exp"]

    def fits(self) -> bool:
        """Return whether the layers fit each other, and the last one has one unit."""
        return super().fits() and self.n_outputs_ == 1


class NetworkClassifier(_Network, tag="network_classifier", frozen=True):
    """An MLPClassifier: one unit for two classes, or one for each of three and more."""

    out_activation_: Literal["logistic", "softmax"]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return max(CLASSES_MIN, self.n_outputs_)

    @property
    def has_probabilities(self) -> bool:
        """It has."""
        return True

    def fits(self) -> bool:
        """Return whether the layers fit each other, and two classes have one unit."""
        if not super().fits() or self.n_outputs_ == CLASSES_MIN:
            return False
        return self.out_activation_ == ("logistic" if self.n_outputs_ == 1 else "softmax")


def output(estimator: Any, X: Floats, logistic: Logistic = functions.logistic) -> Floats:
    """Return the last layer's values, shape (n, outputs)."""
    values, last = X, len(estimator.coefs_) - 1
    for i, (weights, intercepts) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        values = values @ weights
        values += intercepts
        _activate(values, estimator.activation if i < last else estimator.out_activation_, logistic)
    return values


def _activate(values: Floats, name: str, logistic: Logistic) -> None:
    """Replace `values`, shape (n, units), by those of the activation function `name`."""
    if name == "logistic":
        logistic(values)
    elif name != "identity":
        IN_PLACE[name](values)


def _softmax(values: Floats) -> None:
    shifted = values - values.max(axis=1)[:, np.newaxis]
    np.exp(shifted, out=values)
    values /= values.sum(axis=1)[:, np.newaxis]


def values(estimator: Any, X: Floats, logistic: Logistic = functions.logistic) -> Floats:
    """Return the predictions of a regressor, shape (n,), or (n, outputs) of several."""
    predicted = output(estimator, X, logistic)
    return predicted.ravel() if predicted.shape[1] == 1 else predicted


def label(estimator: Any, X: Floats, logistic: Logistic = functions.logistic) -> Any:
    """Return the most probable classes, shape (n,)."""
    out = output(estimator, X, logistic)
    return estimator.classes_[(out.ravel() > 0.5).astype(np.intp) if estimator.n_outputs_ == 1 else out.argmax(axis=1)]


def probabilities(estimator: Any, X: Floats, logistic: Logistic = functions.logistic) -> Floats:
    """Return the probabilities of the classes, shape (n, classes)."""
    out = output(estimator, X, logistic)
    return np.concatenate([1 - out, out], axis=1) if estimator.n_outputs_ == 1 else out


IN_PLACE: dict[str, Callable[[Floats], Any]] = {
    "exp": lambda values: np.exp(values, out=values),
    "tanh": lambda values: np.tanh(values, out=values),
    "relu": lambda values: np.maximum(values, 0, out=values),
    "softmax": _softmax,
}

"""Predictions of linear models: SGDRegressor, SGDClassifier, Perceptron and SGDOneClassSVM, and their records.

Owns scores, labels and probabilities from weights. Never learns. Invariant: results are those of scikit-learn bit for
bit, because they come from the same operations in the same order. The functions take a fitted estimator of
scikit-learn, or the record with its attributes, and a finite matrix, shape (n, width), C-contiguous.
"""

from typing import Any, Literal

import numpy as np

from keepfit.rows.values import Floats
from keepfit.scoring import functions
from keepfit.scoring.class_labels import CLASSES_MIN
from keepfit.scoring.functions import Logistic
from keepfit.scoring.records import Estimator


class LinearRegressor(Estimator, tag="linear_regressor", frozen=True):
    """An SGDRegressor."""

    coef_: Floats
    intercept_: Floats

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.coef_.shape[0])

    def fits(self) -> bool:
        """Return whether there is a weight for each column, and one intercept."""
        return self.coef_.ndim == 1 and self.intercept_.shape == (1,)


class LinearClassifier(Estimator, tag="linear_classifier", frozen=True):
    """An SGDClassifier or a Perceptron; `loss` is None if it has no probabilities."""

    coef_: Floats
    intercept_: Floats
    loss: Literal["log_loss", "modified_huber"] | None

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.coef_.shape[1])

    @property
    def n_classes(self) -> int:
        """Number of classes: two have one row of weights, more have one each."""
        return max(CLASSES_MIN, int(self.coef_.shape[0]))

    @property
    def has_probabilities(self) -> bool:
        """Whether the loss gives probabilities."""
        return self.loss is not None

    def fits(self) -> bool:
        """Return whether there are weights and an intercept for each class, or of two for the second."""
        return (
            self.coef_.ndim == 2
            and self.coef_.shape[0] != CLASSES_MIN
            and self.intercept_.shape == (self.coef_.shape[0],)
        )


class InlierDetector(Estimator, tag="inlier_detector", frozen=True):
    """An SGDOneClassSVM."""

    coef_: Floats
    offset_: Floats

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.coef_.shape[0])

    def fits(self) -> bool:
        """Return whether there is a weight for each column, and one offset."""
        return self.coef_.ndim == 1 and self.offset_.shape == (1,)


def values(estimator: Any, X: Floats) -> Floats:
    """Return the predictions of a regressor, shape (n,)."""
    predicted: Floats = (X @ estimator.coef_.T + estimator.intercept_).ravel()
    return predicted


def decision(estimator: Any, X: Floats) -> Floats:
    """Return the scores of the second of two classes, shape (n,), or of each of three and more, shape (n, classes)."""
    scores: Floats = X @ estimator.coef_.T + estimator.intercept_
    return scores.ravel() if scores.shape[1] == 1 else scores


def label(estimator: Any, X: Floats) -> Any:
    """Return the classes with the highest scores, shape (n,)."""
    scores = decision(estimator, X)
    return estimator.classes_[(scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)]


def probabilities(estimator: Any, X: Floats, logistic: Logistic = functions.logistic) -> Floats:
    """Return the probabilities of the classes, shape (n, classes), for the losses log_loss and modified_huber."""
    scores = decision(estimator, X)
    if estimator.loss == "log_loss":
        shares = logistic(scores)
    else:
        shares = np.clip(scores, -1.0, 1.0, out=scores)
        shares += 1.0
        shares /= 2.0
    if shares.ndim == 1:
        return np.stack([1 - shares, shares], axis=1)
    total = shares.sum(axis=1)
    all_zero = total == 0
    shares[all_zero] = 1
    total[all_zero] = shares.shape[1]
    shares /= total[:, np.newaxis]
    return shares


def inlier_scores(estimator: Any, X: Floats) -> Floats:
    """Return the distances from an outlier detector's hyperplane, shape (n,), negative for outliers."""
    scores: Floats = (X @ estimator.coef_.T - estimator.offset_).ravel()
    return scores


def inlier_label(estimator: Any, X: Floats) -> Any:
    """Return 1 for inliers and -1 for outliers, shape (n,)."""
    return np.where(inlier_scores(estimator, X) >= 0, np.int32(1), np.int32(-1))

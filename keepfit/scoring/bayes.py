"""Predictions of naive Bayes: GaussianNB, MultinomialNB, ComplementNB and BernoulliNB, and their records.

Owns the joint log-likelihood of rows and classes, and what follows from it. Never learns. Invariant: results are those
of scikit-learn bit for bit, because they come from the same operations in the same order on arrays of the same layout.
The functions take a fitted estimator of scikit-learn, or the record with its attributes, and a finite matrix, shape
(n, width), C-contiguous.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keepfit.rows.values import Floats
from keepfit.scoring.functions import logsumexp
from keepfit.scoring.records import FIXED_CALLS, Estimator

# Up to so many differences of rows and means, all classes are computed at once.
TOGETHER_VALUES_MAX = 1 << 14

# Takes an estimator and a matrix; returns the joint log-likelihood, shape (n, classes).
Likelihood = Callable[[Any, Floats], Floats]


class GaussianBayes(Estimator, tag="gaussian_bayes", frozen=True):
    """A GaussianNB."""

    theta_: Floats
    var_: Floats
    class_prior_: Floats

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.theta_.shape[1])

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.theta_.shape[0])

    @property
    def has_probabilities(self) -> bool:
        """It has."""
        return True

    @property
    def calls(self) -> int:
        """Calls of numpy."""
        return 2 * FIXED_CALLS

    def fits(self) -> bool:
        """Return whether each class has a mean and a variance of each column, and a prior."""
        return (
            self.theta_.ndim == 2
            and self.var_.shape == self.theta_.shape
            and self.class_prior_.shape == self.theta_.shape[:1]
        )


class _DiscreteBayes(Estimator, frozen=True):
    """What the records of counts have in common."""

    feature_log_prob_: Floats
    class_log_prior_: Floats

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return int(self.feature_log_prob_.shape[1])

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.feature_log_prob_.shape[0])

    @property
    def has_probabilities(self) -> bool:
        """It has."""
        return True

    def fits(self) -> bool:
        """Return whether each class has a logarithm for each column, and one of its prior."""
        return self.feature_log_prob_.ndim == 2 and self.class_log_prior_.shape == self.feature_log_prob_.shape[:1]


class MultinomialBayes(_DiscreteBayes, tag="multinomial_bayes", frozen=True):
    """A MultinomialNB."""


class ComplementBayes(_DiscreteBayes, tag="complement_bayes", frozen=True):
    """A ComplementNB."""


class BernoulliBayes(_DiscreteBayes, tag="bernoulli_bayes", frozen=True):
    """A BernoulliNB; values above `binarize` count as 1, unless it is None."""

    binarize: float | None

    @property
    def calls(self) -> int:
        """Calls of numpy, with a share for the logarithms of all weights."""
        return 2 * FIXED_CALLS + self.feature_log_prob_.size // 10


def gaussian(estimator: Any, X: Floats) -> Floats:
    """Return the joint log-likelihood of GaussianNB."""
    is_small = X.shape[0] * estimator.theta_.size <= TOGETHER_VALUES_MAX
    if is_small and estimator.theta_.flags.c_contiguous and estimator.var_.flags.c_contiguous:
        return _gaussian_together(estimator, X)
    joint = []
    for i in range(len(estimator.classes_)):
        variance = estimator.var_[i, :]
        constant = -0.5 * np.sum(np.log(2.0 * np.pi * variance))
        distance = 0.5 * np.sum(((X - estimator.theta_[i, :]) ** 2) / variance, axis=1)
        joint.append(np.log(estimator.class_prior_[i]) + (constant - distance))
    # Sums along the classes depend on the order in memory.
    return np.stack(joint).T


def _gaussian_together(estimator: Any, X: Floats) -> Floats:
    """Compute all classes at once: the same operations and sums over the same values, with fewer calls of numpy."""
    variances = estimator.var_[:, np.newaxis]
    constants = -0.5 * np.sum(np.log(2.0 * np.pi * estimator.var_), axis=1)
    distances = 0.5 * np.sum(((X - estimator.theta_[:, np.newaxis]) ** 2) / variances, axis=2)
    joint: Floats = np.log(estimator.class_prior_)[:, np.newaxis] + (constants[:, np.newaxis] - distances)
    return joint.T


def multinomial(estimator: Any, X: Floats) -> Floats:
    """Return the joint log-likelihood of MultinomialNB."""
    joint: Floats = X @ estimator.feature_log_prob_.T + estimator.class_log_prior_
    return joint


def complement(estimator: Any, X: Floats) -> Floats:
    """Return the joint log-likelihood of ComplementNB, which has priors for a single class only."""
    joint: Floats = X @ estimator.feature_log_prob_.T
    if len(estimator.classes_) == 1:
        joint += estimator.class_log_prior_
    return joint


def bernoulli(estimator: Any, X: Floats) -> Floats:
    """Return the joint log-likelihood of BernoulliNB."""
    if estimator.binarize is not None:
        X = np.greater(X, estimator.binarize).astype(np.float64)
    absent = np.log(1 - np.exp(estimator.feature_log_prob_))
    joint: Floats = X @ (estimator.feature_log_prob_ - absent).T
    joint += estimator.class_log_prior_ + absent.sum(axis=1)
    return joint


def label(likelihood: Likelihood, estimator: Any, X: Floats) -> Any:
    """Return the most probable classes, shape (n,)."""
    return estimator.classes_[likelihood(estimator, X).argmax(axis=1)]


def probabilities(likelihood: Likelihood, estimator: Any, X: Floats) -> Floats:
    """Return the probabilities of the classes, shape (n, classes)."""
    joint = likelihood(estimator, X)
    return np.exp(joint - np.atleast_2d(logsumexp(joint)).T)

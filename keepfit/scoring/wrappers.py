"""Predictions of wrappers: OneVsRestClassifier, MultiOutputClassifier and MultiOutputRegressor, and their records.

Owns how the predictions of the members become that of the wrapper. Never learns. Invariant: results are those of
scikit-learn bit for bit, because they come from the same operations in the same order on arrays of the same layout. The
functions take a fitted estimator of scikit-learn, or the record with its attributes, and what computes with a member.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keepfit.rows.values import Floats
from keepfit.scoring.bayes import BernoulliBayes, ComplementBayes, GaussianBayes, MultinomialBayes
from keepfit.scoring.linear import LinearClassifier, LinearRegressor
from keepfit.scoring.network import NetworkClassifier, NetworkRegressor
from keepfit.scoring.records import FIXED_CALLS, Estimator

# Takes a member and a matrix.
Computation = Callable[[Any, Floats], Any]

Member = (
    LinearRegressor
    | LinearClassifier
    | GaussianBayes
    | MultinomialBayes
    | ComplementBayes
    | BernoulliBayes
    | NetworkRegressor
    | NetworkClassifier
)


class _Wrapper(Estimator, frozen=True):
    """What the records of wrappers have in common."""

    estimators_: list[Member]

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        return self.estimators_[0].n_features_in_

    @property
    def has_probabilities(self) -> bool:
        """Whether all members have probabilities."""
        return all(member.has_probabilities for member in self.estimators_)

    @property
    def calls(self) -> int:
        """Calls of numpy, of all members."""
        return FIXED_CALLS + sum(member.calls for member in self.estimators_)

    @property
    def row_cost(self) -> int:
        """Multiplications and additions for a row, of all members."""
        return sum(member.row_cost for member in self.estimators_)

    def check(self) -> None:
        """Check the members, too."""
        for member in self.estimators_:
            member.check()
        super().check()

    def fits(self) -> bool:
        """Return whether all members are of one kind and take as many columns."""
        return len({(type(member), member.n_features_in_) for member in self.estimators_}) == 1


class OneVsRest(_Wrapper, tag="one_vs_rest", frozen=True):
    """A OneVsRestClassifier: one member for the second of two classes, or one for each of three and more."""

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return max(2, len(self.estimators_))

    def fits(self) -> bool:
        """Return whether the members fit each other, and each tells two classes apart."""
        return super().fits() and len(self.estimators_) != 2 and all(one.n_classes == 2 for one in self.estimators_)


class MultiOutput(_Wrapper, tag="multi_output", frozen=True):
    """A MultiOutputClassifier or MultiOutputRegressor: one member for each output."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """Number of classes of each output."""
        return tuple(member.n_classes for member in self.estimators_)


def threshold(*, is_linear: bool) -> float:
    """Return the score above which the second of two classes is the answer: a distance, or a probability."""
    return 0.0 if is_linear else 0.5


def rest_label(estimator: Any, X: Floats, score: Computation, threshold: float) -> Any:
    """Return the classes with the highest scores, shape (n,); `score` gives those of a member, shape (n,).

    Of two classes, the second one has a score above the `threshold`.
    """
    members = estimator.estimators_
    if len(members) == 1:
        return estimator.classes_[(score(members[0], X) > threshold).astype(np.intp)]
    highest, found = np.full(len(X), -np.inf), np.zeros(len(X), np.intp)
    # Backwards, so that of equal scores the first one wins.
    for code in range(len(members) - 1, -1, -1):
        scores = score(members[code], X)
        np.maximum(highest, scores, out=highest)
        found[highest == scores] = code
    return estimator.classes_[found]


def rest_probabilities(estimator: Any, X: Floats, probabilities: Computation) -> Floats:
    """Return the probabilities of the members' second classes, normalized to a sum of 1, shape (n, classes)."""
    shares: Floats = np.array([probabilities(member, X)[:, 1] for member in estimator.estimators_]).T
    if len(estimator.estimators_) == 1:
        shares = np.concatenate((1 - shares, shares), axis=1)
    sums = np.sum(shares, axis=1)[:, np.newaxis]
    np.divide(shares, sums, out=shares, where=sums != 0)
    return shares


def output_predictions(estimator: Any, X: Floats, predict: Computation) -> Any:
    """Return the predictions of the members, shape (n, outputs)."""
    return np.asarray([predict(member, X) for member in estimator.estimators_]).T


def output_probabilities(estimator: Any, X: Floats, probabilities: Computation) -> list[Floats]:
    """Return the probabilities of each member's classes, one array of shape (n, classes) for each output."""
    return [probabilities(member, X) for member in estimator.estimators_]

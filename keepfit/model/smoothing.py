"""Answers of Gaussian naive Bayes where a variance is zero: after single rows, and in a constant column.

scikit-learn adds a share (`var_smoothing`) of the variance of the *last call's* rows to each variance. A single row has
none, so after single rows a class whose column is constant has the variance 0, and its answers are NaN for ever.

Owns which smoothing is used in an answer: the share of the variance of *all rows so far*, which is what one call with
all of them would give. Never changes what was learned. Invariant: where scikit-learn's answers are finite, they stay
what they are, bit for bit, because an estimator without a zero variance is returned unchanged.
"""

from copy import copy
from typing import Any

from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB

WRAPPERS = frozenset({OneVsOneClassifier, OneVsRestClassifier, MultiOutputClassifier})
# The variance of all rows if they are equal in every column.
VARIANCE_OF_EQUAL_ROWS = 1.0


def smoothed(estimator: Any) -> Any:
    """Return the fitted `estimator`, or a copy that answers with smoothed variances, also inside a wrapper.

    >>> learned = GaussianNB().partial_fit([[1.0, 5.0]], [0], classes=[0, 1]).partial_fit([[3.0, 5.0]], [1])
    >>> smoothed(learned).predict_proba([[1.0, 5.0], [3.0, 5.0]]).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    >>> float(learned.var_.max())
    0.0
    """
    kind = type(estimator)
    if kind is GaussianNB:
        return _smoothed_bayes(estimator)
    if kind in WRAPPERS:
        members = [smoothed(member) for member in estimator.estimators_]
        if any(new is not old for new, old in zip(members, estimator.estimators_, strict=True)):
            estimator = copy(estimator)
            estimator.estimators_ = members
    return estimator


def _smoothed_bayes(estimator: Any) -> Any:
    variances = getattr(estimator, "var_", None)
    if variances is None or variances.min() > 0.0:
        return estimator
    # The sum of weights, which may all be zero.
    shares = estimator.class_count_ / (estimator.class_count_.sum() or 1.0)
    of_all_rows = shares @ (variances + (estimator.theta_ - shares @ estimator.theta_) ** 2)
    estimator = copy(estimator)
    estimator.var_ = variances + estimator.var_smoothing * (float(of_all_rows.max()) or VARIANCE_OF_EQUAL_ROWS)
    return estimator

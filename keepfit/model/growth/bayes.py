"""Growth of naive Bayes: GaussianNB, BernoulliNB, MultinomialNB, ComplementNB and CategoricalNB.

Owns their counts, means and variances by class. All else, logarithms and priors, is computed from those by
scikit-learn's own functions, so that an estimator that has grown has what it would have had if the class had been named
from the beginning and never seen; once it is seen, the two are equal to the bit.

Priors that were given are of the classes that there were: each new class gets the mean of all, 1/m of m classes, and
the old ones share what is left as they did before.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from sklearn.naive_bayes import GaussianNB

# The old classes whose rows a new class has: one, none, or two taken together.
Group = tuple[int, ...]
# The first rows of a class replace it; with 0 a class without rows would win everywhere, as a NaN.
VARIANCE_UNSEEN = 1.0


def widen(estimator: Any, slots: int) -> None:
    """Give `estimator` room for `slots` classes; those added have no rows."""
    old = len(estimator.classes_)
    _share_priors(estimator, slots)
    _arrange(estimator, [(code,) for code in range(old)] + [()] * (slots - old))


def mirror(member: Any) -> None:
    """Exchange the two classes; priors that were given are of the places, and stay."""
    _arrange(member, [(1,), (0,)])


def rest(members: Sequence[Any]) -> Any:
    """Make a member that takes all rows, which each of `members` has seen, for the rest."""
    return _arranged(members[0], [(0, 1), ()])


def pair(member: Any, place: int) -> Any:
    """Make a member that has the rows of one class of `member`."""
    return _arranged(member, [(place,), ()])


def _arranged(member: Any, groups: Sequence[Group]) -> Any:
    copied = deepcopy(member)
    _arrange(copied, groups)
    return copied


def _arrange(estimator: Any, groups: Sequence[Group]) -> None:
    """Have as many classes as there are `groups`, each with the rows of the old classes in it."""
    estimator.classes_ = np.arange(len(groups))
    if isinstance(estimator, GaussianNB):
        _arrange_normal(estimator, groups)
        return
    for name in ("class_count_", "feature_count_"):
        if hasattr(estimator, name):
            setattr(estimator, name, _counts(getattr(estimator, name), groups))
    if hasattr(estimator, "category_count_"):
        estimator.category_count_ = [_counts(counts, groups) for counts in estimator.category_count_]
    if hasattr(estimator, "feature_all_"):
        estimator.feature_all_ = estimator.feature_count_.sum(axis=0)
    with np.errstate(all="ignore"):
        # Without smoothing a class without rows has no probabilities yet.
        estimator._update_feature_log_prob(estimator._check_alpha())
    estimator._update_class_log_prior(class_prior=estimator.class_prior)


def _counts(counts: Any, groups: Sequence[Group]) -> Any:
    return np.stack([counts[list(group)].sum(axis=0) for group in groups])


def _arrange_normal(estimator: Any, groups: Sequence[Group]) -> None:
    old = estimator.class_count_, estimator.theta_, estimator.var_
    rows = [_normal(*(values[list(group)] for values in old)) for group in groups]
    estimator.class_count_, estimator.theta_, estimator.var_ = map(np.stack, zip(*rows, strict=True))
    if estimator.priors is None:
        estimator.class_prior_ = estimator.class_count_ / np.sum(estimator.class_count_)
    else:
        estimator.class_prior_ = np.array(estimator.priors, dtype=np.float64)


def _normal(counts: Any, means: Any, variances: Any) -> tuple[Any, Any, Any]:
    """Count, mean and variance of some classes' rows taken together (Chan, Golub and LeVeque, 1983)."""
    if len(counts) == 1:
        return counts[0], means[0], variances[0]
    total = counts.sum()
    if not total:
        return np.float64(0.0), np.zeros(means.shape[1]), np.full(means.shape[1], VARIANCE_UNSEEN)
    mean = counts @ means / total
    return total, mean, counts @ (variances + (means - mean) ** 2) / total


def _share_priors(estimator: Any, slots: int) -> None:
    name = "priors" if isinstance(estimator, GaussianNB) else "class_prior"
    given = getattr(estimator, name)
    if given is None:
        return
    old = np.asarray(given, dtype=np.float64)
    shared = np.concatenate([old * (len(old) / slots), np.full(slots - len(old), old.sum() / slots)])
    setattr(estimator, name, shared.tolist())

"""Growth of naive Bayes: GaussianNB, BernoulliNB, MultinomialNB, ComplementNB and CategoricalNB.

Owns their counts, means and variances per class. scikit-learn's own functions compute everything else from these
(logarithms, priors), so a grown estimator is equal to one for which the class was named at the first call and has no
rows yet; once the class has rows, the two are equal bit for bit.

Priors set as a parameter cover the old classes only: each new class gets the mean prior, 1/m for m classes, and the old
ones share the rest in their old proportions.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from sklearn.naive_bayes import GaussianNB

# Codes of the old classes whose rows a class gets: one, none, or two merged.
Group = tuple[int, ...]
# The first rows of a class replace it; with 0, the NaN score of a class without rows would win everywhere.
VARIANCE_UNSEEN = 1.0


def add_classes(estimator: Any, n_classes: int) -> None:
    """Extend `estimator` to `n_classes` classes; the new ones have no rows."""
    old = len(estimator.classes_)
    _share_priors(estimator, n_classes)
    _regroup(estimator, [(code,) for code in range(old)] + [()] * (n_classes - old))


def swap_classes(member: Any) -> None:
    """Swap the two classes; priors set as a parameter belong to positions, and stay."""
    _regroup(member, [(1,), (0,)])


def new_rest_member(members: Sequence[Any]) -> Any:
    """Return a member for which all rows, which each of `members` has learned, belong to the rest."""
    return _regrouped_copy(members[0], [(0, 1), ()])


def new_pair_member(member: Any, code: int) -> Any:
    """Return a member that has the rows of class `code` of `member`."""
    return _regrouped_copy(member, [(code,), ()])


def _regrouped_copy(member: Any, groups: Sequence[Group]) -> Any:
    copied = deepcopy(member)
    _regroup(copied, groups)
    return copied


def _regroup(estimator: Any, groups: Sequence[Group]) -> None:
    """Replace the classes by one per group, each with the rows of the old classes in its group."""
    estimator.classes_ = np.arange(len(groups))
    if isinstance(estimator, GaussianNB):
        _regroup_gaussian(estimator, groups)
        return
    for name in ("class_count_", "feature_count_"):
        if hasattr(estimator, name):
            setattr(estimator, name, _regroup_counts(getattr(estimator, name), groups))
    if hasattr(estimator, "category_count_"):
        estimator.category_count_ = [_regroup_counts(counts, groups) for counts in estimator.category_count_]
    if hasattr(estimator, "feature_all_"):
        estimator.feature_all_ = estimator.feature_count_.sum(axis=0)
    with np.errstate(all="ignore"):
        # Without smoothing, a class without rows has no defined probabilities yet.
        estimator._update_feature_log_prob(estimator._check_alpha())
    estimator._update_class_log_prior(class_prior=estimator.class_prior)


def _regroup_counts(counts: Any, groups: Sequence[Group]) -> Any:
    return np.stack([counts[list(group)].sum(axis=0) for group in groups])


def _regroup_gaussian(estimator: Any, groups: Sequence[Group]) -> None:
    old = estimator.class_count_, estimator.theta_, estimator.var_
    rows = [_merge_gaussian(*(values[list(group)] for values in old)) for group in groups]
    estimator.class_count_, estimator.theta_, estimator.var_ = map(np.stack, zip(*rows, strict=True))
    if estimator.priors is None:
        estimator.class_prior_ = estimator.class_count_ / np.sum(estimator.class_count_)
    else:
        estimator.class_prior_ = np.array(estimator.priors, dtype=np.float64)


def _merge_gaussian(counts: Any, means: Any, variances: Any) -> tuple[Any, Any, Any]:
    """Return count, mean and variance of the merged rows of some classes (Chan, Golub and LeVeque, 1983)."""
    if len(counts) == 1:
        return counts[0], means[0], variances[0]
    total = counts.sum()
    if not total:
        return np.float64(0.0), np.zeros(means.shape[1]), np.full(means.shape[1], VARIANCE_UNSEEN)
    mean = counts @ means / total
    return total, mean, counts @ (variances + (means - mean) ** 2) / total


def _share_priors(estimator: Any, n_classes: int) -> None:
    """Extend the priors that were set as a parameter to `n_classes` classes."""
    name = "priors" if isinstance(estimator, GaussianNB) else "class_prior"
    priors = getattr(estimator, name)
    if priors is None:
        return
    old = np.asarray(priors, dtype=np.float64)
    shared = np.concatenate([old * (len(old) / n_classes), np.full(n_classes - len(old), old.sum() / n_classes)])
    setattr(estimator, name, shared.tolist())

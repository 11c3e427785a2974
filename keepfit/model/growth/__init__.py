"""Growth: new classes for a classifier that has already learned.

Owns how each of scikit-learn's incremental classifiers, and its wrappers around another, gets a class that was not
named at the first call. Never changes what was learned of the old classes, not by one bit. Invariants: after
:func:`grow` the estimator's next ``partial_fit`` takes the codes of all classes, and it has all attributes that
scikit-learn would have given it for as many; a new class has the state of a class without rows and scores below the old
ones.
"""

from collections.abc import Sequence
from copy import deepcopy
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from sklearn.base import clone
from sklearn.linear_model._stochastic_gradient import BaseSGDClassifier
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB, _BaseDiscreteNB
from sklearn.neural_network import MLPClassifier

from keepfit.model.growth import bayes, linear, network

# One-vs-one has an estimator for each pair of classes: 4,950 for 100 classes.
PAIRED_CLASSES_MAX = 100


class Family(Protocol):
    """Operations on the estimators of one family; the members of a wrapper are binary, with the classes 0 and 1."""

    def add_classes(self, estimator: Any, n_classes: int) -> None:
        """Extend `estimator` to `n_classes` classes, more than it has."""

    def swap_classes(self, member: Any) -> None:
        """Swap the two classes of a binary `member`."""

    def new_rest_member(self, members: Sequence[Any]) -> Any:
        """Return a one-vs-rest member for a new class: all rows so far, those of `members`, belong to the rest."""

    def new_pair_member(self, member: Any, code: int) -> Any:
        """Return a one-vs-one member whose class 0 is class `code` of `member` and whose class 1 has no rows."""


def grow(estimator: Any, n_classes: int | Sequence[int]) -> None:
    """Extend `estimator`, which has learned, to `n_classes` classes with the codes 0, …, `n_classes` - 1.

    For several outputs, `n_classes` has one number per output. Does nothing if there are enough classes already. An
    estimator that is not scikit-learn's may have a method ``grow(n_classes)`` of its own, which is called.

    Raises
    ------
    ValueError
        If the estimator cannot grow (:func:`can_grow` tells in advance) or would become too large.
    """
    if isinstance(estimator, MultiOutputClassifier):
        counts = [n_classes] * len(estimator.estimators_) if isinstance(n_classes, int) else n_classes
        for member, count in zip(estimator.estimators_, counts, strict=True):
            grow(member, count)
        return
    own_grow = getattr(estimator, "grow", None)
    if own_grow is not None:
        own_grow(n_classes)
        return
    family = _family(estimator)
    if family is None or not isinstance(n_classes, int):
        raise ValueError(f"{type(estimator).__name__} cannot learn more classes than those of its first call")
    if n_classes > len(estimator.classes_):
        family.add_classes(estimator, n_classes)


def can_grow(estimator: Any) -> bool:
    """Return whether :func:`grow` supports `estimator`, which may not have learned anything yet."""
    if hasattr(estimator, "grow"):
        return True
    if isinstance(estimator, MultiOutputClassifier | OneVsRestClassifier | OneVsOneClassifier):
        return can_grow(estimator.estimator)
    return _family(estimator) is not None


def _family(estimator: Any) -> Family | None:
    return next((family for kinds, family in FAMILIES if isinstance(estimator, kinds)), None)


def _member_family(member: Any) -> Family:
    family = _family(member)
    if family is None:
        raise ValueError(f"{type(member).__name__} inside another estimator cannot learn more classes")
    return family


class OneVsRest:
    """One estimator per class against all others; with two classes, only the second has one."""

    def add_classes(self, estimator: Any, n_classes: int) -> None:
        """Add members that have rows of other classes only; where two classes shared one member, add its swap too."""
        members = list(estimator.estimators_)
        family = _member_family(members[0])
        if len(members) == 1:
            members.insert(0, _swapped_copy(family, members[0]))
        members += [family.new_rest_member(members) for _ in range(n_classes - len(members))]
        estimator.estimators_ = members
        estimator.classes_ = np.arange(n_classes)
        estimator.label_binarizer_.fit(estimator.classes_)

    def swap_classes(self, member: Any) -> None:
        """Swap the classes of the only member."""
        inner = member.estimators_[0]
        _member_family(inner).swap_classes(inner)

    def new_rest_member(self, members: Sequence[Any]) -> Any:
        """Wrap a new member of the members' own members."""
        inner = [member.estimators_[0] for member in members]
        return _wrapped(members[0], _member_family(inner[0]).new_rest_member(inner))

    def new_pair_member(self, member: Any, code: int) -> Any:
        """Wrap a new member of the member's own member."""
        inner = member.estimators_[0]
        return _wrapped(member, _member_family(inner).new_pair_member(inner, code))


class OneVsOne(OneVsRest):
    """One estimator per pair of classes."""

    def add_classes(self, estimator: Any, n_classes: int) -> None:
        """Add pairs of an old and a new class, which have the old one's rows, and pairs of new classes.

        Pairs of new classes have learned nothing, like those of scikit-learn before their first row. The order is that
        of :func:`itertools.combinations`.
        """
        if n_classes > PAIRED_CLASSES_MAX:
            raise ValueError(f"one-vs-one would have {n_classes} classes, more than {PAIRED_CLASSES_MAX}")
        old = len(estimator.classes_)
        pairs = dict(zip(combinations(range(old), 2), estimator.estimators_, strict=True))
        for code in range(old):
            member = pairs[0, max(1, code)]
            for new in range(old, n_classes):
                fitted = hasattr(member, "classes_")
                pairs[code, new] = (
                    _member_family(member).new_pair_member(member, int(code > 0))
                    if fitted
                    else clone(estimator.estimator)
                )
        estimator.estimators_ = [
            pairs[pair] if pair in pairs else clone(estimator.estimator) for pair in combinations(range(n_classes), 2)
        ]
        estimator.classes_ = np.arange(n_classes)


def _swapped_copy(family: Family, member: Any) -> Any:
    swapped = deepcopy(member)
    family.swap_classes(swapped)
    return swapped


def _wrapped(wrapper: Any, member: Any) -> Any:
    """Return a copy of a binary wrapper with `member` as its only member."""
    copied = deepcopy(wrapper)
    copied.estimators_ = [member]
    return copied


FAMILIES: Sequence[tuple[Any, Family]] = (
    (BaseSGDClassifier, linear),
    (GaussianNB | _BaseDiscreteNB, bayes),
    (MLPClassifier, network),
    (OneVsRestClassifier, OneVsRest()),
    (OneVsOneClassifier, OneVsOne()),
)

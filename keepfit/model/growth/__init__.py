"""Growth: a classifier that has learned some classes gets room for more.

Owns how each of scikit-learn's incremental classifiers, and its wrappers around another, takes in a class that was not
there at the first call. Never changes what was learned of the old classes, not by a bit. Invariants: after :func:`grow`
the estimator's next ``partial_fit`` takes codes of all classes, and has all attributes that scikit-learn would have
given it for as many; a new class stands where one would of which no row has come yet, below the old ones.
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

# One against one keeps an estimator for each pair of classes: of 100 classes 4,950.
PAIRED_CLASSES_MAX = 100


class Family(Protocol):
    """What the estimators of one family do; a wrapper's members are binary, with the classes 0 and 1."""

    def widen(self, estimator: Any, slots: int) -> None:
        """Give `estimator` room for `slots` classes, more than it has."""

    def mirror(self, member: Any) -> None:
        """Exchange the two classes of a binary `member`."""

    def rest(self, members: Sequence[Any]) -> Any:
        """Make a member for one class against the rest where all rows so far, those of `members`, were the rest's."""

    def pair(self, member: Any, place: int) -> Any:
        """Make a member whose class 0 is the class `place` of `member` and whose class 1 has had no row."""


def grow(estimator: Any, slots: int | Sequence[int]) -> None:
    """Give `estimator`, which has learned, room for `slots` classes with the codes 0, …, `slots` - 1.

    Of several outputs, `slots` has a number for each. Nothing happens where there is room already. What is no estimator
    of scikit-learn may have a method ``grow(slots)`` of its own.

    Raises
    ------
    ValueError
        If it cannot grow, as :func:`grows` says beforehand, or would become too large.
    """
    if isinstance(estimator, MultiOutputClassifier):
        wanted = [slots] * len(estimator.estimators_) if isinstance(slots, int) else slots
        for member, number in zip(estimator.estimators_, wanted, strict=True):
            grow(member, number)
        return
    own = getattr(estimator, "grow", None)
    if own is not None:
        own(slots)
        return
    family = _family(estimator)
    if family is None or not isinstance(slots, int):
        raise ValueError(f"{type(estimator).__name__} cannot learn more classes than those of its first call")
    if slots > len(estimator.classes_):
        family.widen(estimator, slots)


def grows(estimator: Any) -> bool:
    """Whether :func:`grow` knows what to do with `estimator`, which need not have learned anything yet."""
    if hasattr(estimator, "grow"):
        return True
    if isinstance(estimator, MultiOutputClassifier | OneVsRestClassifier | OneVsOneClassifier):
        return grows(estimator.estimator)
    return _family(estimator) is not None


def _family(estimator: Any) -> Family | None:
    return next((family for kinds, family in FAMILIES if isinstance(estimator, kinds)), None)


def _member_family(member: Any) -> Family:
    family = _family(member)
    if family is None:
        raise ValueError(f"{type(member).__name__} inside of another estimator cannot learn more classes")
    return family


class OneVsRest:
    """One estimator for each class against all others; of two classes only the second has one."""

    def widen(self, estimator: Any, slots: int) -> None:
        """Add members that have seen rows of other classes only, where two classes shared one, a mirrored one too."""
        members = list(estimator.estimators_)
        family = _member_family(members[0])
        if len(members) == 1:
            members.insert(0, _mirrored(family, members[0]))
        members += [family.rest(members) for _ in range(slots - len(members))]
        estimator.estimators_ = members
        estimator.classes_ = np.arange(slots)
        estimator.label_binarizer_.fit(estimator.classes_)

    def mirror(self, member: Any) -> None:
        """Exchange the classes of the one member that there is."""
        inner = member.estimators_[0]
        _member_family(inner).mirror(inner)

    def rest(self, members: Sequence[Any]) -> Any:
        """Make it of the members' own members."""
        inner = [member.estimators_[0] for member in members]
        return _around(members[0], _member_family(inner[0]).rest(inner))

    def pair(self, member: Any, place: int) -> Any:
        """Make it of the member's own member."""
        inner = member.estimators_[0]
        return _around(member, _member_family(inner).pair(inner, place))


class OneVsOne(OneVsRest):
    """One estimator for each pair of classes."""

    def widen(self, estimator: Any, slots: int) -> None:
        """Add a pair of each old class with each new one, which knows the old one's rows, and pairs of new ones.

        Those have learned nothing, like scikit-learn's until a row of theirs comes; the order is that of
        :func:`itertools.combinations`.
        """
        if slots > PAIRED_CLASSES_MAX:
            raise ValueError(f"one against one would be of {slots} classes, more than {PAIRED_CLASSES_MAX}")
        old = len(estimator.classes_)
        pairs = dict(zip(combinations(range(old), 2), estimator.estimators_, strict=True))
        for code in range(old):
            known = pairs[0, max(1, code)]
            for new in range(old, slots):
                fitted = hasattr(known, "classes_")
                pairs[code, new] = (
                    _member_family(known).pair(known, int(code > 0)) if fitted else clone(estimator.estimator)
                )
        estimator.estimators_ = [
            pairs[pair] if pair in pairs else clone(estimator.estimator) for pair in combinations(range(slots), 2)
        ]
        estimator.classes_ = np.arange(slots)


def _mirrored(family: Family, member: Any) -> Any:
    mirrored = deepcopy(member)
    family.mirror(mirrored)
    return mirrored


def _around(wrapper: Any, member: Any) -> Any:
    """Copy a binary wrapper, with `member` as all that it has learned."""
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

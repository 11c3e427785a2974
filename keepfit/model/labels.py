"""Label lists of a classifier: what a label is called, and the code under which its estimator knows it.

Owns both directions. Never forgets a label and never gives a code twice, so an estimator can grow while what it has
learned stays where it was. Invariants: codes are 0, 1, 2, … without gaps, those of a recipe's classes in sorted order,
as scikit-learn has them, all others in order of first sight; a label comes back as it came in, string, integer or
boolean.
This is the LabelEncoder with ``partial_fit`` that scikit-learn lacks (scikit-learn #8136).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from keepfit.recipe.recipe import CLASSES_MAX, Label

Codes = NDArray[np.int64]

# Python takes True for 1; no label holds a NUL.
BOOLEANS = {True: "\0true", False: "\0false"}
# scikit-learn's classifiers begin with two classes; the second waits for its label.
SLOTS_MIN = 2


@dataclass(slots=True)
class Labels:
    """Labels of one output, in order of their codes."""

    known: list[Label] = field(default_factory=list)
    codes: dict[Label, int] = field(default_factory=dict)

    @classmethod
    def of(cls, classes: Iterable[Label] | None) -> Self:
        """Labels that a recipe names; none where it names none.

        >>> Labels.of(["yes", "no"]).known
        ['no', 'yes']
        """
        labels = cls()
        labels.learn(sorted(classes or ()))
        return labels

    @property
    def slots(self) -> int:
        """Classes that the estimator has to have, at least two."""
        return max(SLOTS_MIN, len(self.known))

    def learn(self, y: Sequence[Label]) -> Codes:
        """Codes of `y`, shape (n,); labels not known yet get the next ones.

        Raises
        ------
        ValueError
            If there would be more than 10,000 labels; then none is learned.

        >>> labels = Labels.of([False, True])
        >>> labels.learn([True, 1, "1", False]).tolist()
        [1, 2, 3, 0]
        """
        keys = _keys(y)
        fresh = dict.fromkeys(key for key in keys if key not in self.codes)
        if fresh:
            if len(self.known) + len(fresh) > CLASSES_MAX:
                raise ValueError(
                    f"the target would have more than {CLASSES_MAX} labels: is it a number to be predicted?"
                )
            first = dict(zip(reversed(keys), reversed(y), strict=True))
            for key in fresh:
                self.codes[key] = len(self.known)
                self.known.append(first[key])
        return np.array([self.codes[key] for key in keys], dtype=np.int64)

    def encode(self, y: Sequence[Label]) -> Codes:
        """Codes of `y` without learning: labels that are not known get codes beyond those of the estimator."""
        codes = dict(self.codes)
        beyond = self.slots - len(codes)
        return np.array([codes.setdefault(key, len(codes) + beyond) for key in _keys(y)], dtype=np.int64)

    def decode(self, codes: Any) -> list[Label]:
        """Labels of an estimator's `codes`, shape (n,); a class that still waits for its label was not learned."""
        known = self.known
        return [known[code] for code in self.settle(codes).tolist()]

    def settle(self, codes: Any) -> Any:
        """`codes` with the class that has no label yet taken for the one that has."""
        return np.where(codes < len(self.known), codes, 0) if len(self.known) < SLOTS_MIN else codes

    def chances(self, probabilities: Any) -> Any:
        """Probabilities of the known labels, shape (n, labels), of those of all classes."""
        return probabilities if len(self.known) >= SLOTS_MIN else np.ones((len(probabilities), len(self.known)))

    def weights(self, class_weight: Any) -> Any:
        """`class_weight` of a recipe, whose names are JSON's, by code."""
        if not isinstance(class_weight, dict):
            return class_weight
        names = {named(label): code for code, label in enumerate(self.known)}
        return {names[name]: weight for name, weight in class_weight.items()}


def named(label: Label) -> str:
    """Name of a label as a key in JSON.

    >>> named("7"), named(7), named(True)
    ('7', '7', 'true')
    """
    return str(label).lower() if isinstance(label, bool) else str(label)


def _keys(y: Sequence[Label]) -> Sequence[Label]:
    return [BOOLEANS[label] if type(label) is bool else label for label in y] if bool in set(map(type, y)) else y

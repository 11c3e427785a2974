"""Label lists of a classifier: the mapping between labels and the integer codes that its estimator learns.

Owns both directions. Never forgets a label and never reuses a code, so an estimator can grow while everything it has
learned stays in place. Invariants: codes are 0, 1, 2, … without gaps; the classes that the recipe names have the first
codes in sorted order, as scikit-learn has them, and all others follow in order of first occurrence; a label is returned
as it was sent: string, integer or boolean.
This is the LabelEncoder with ``partial_fit`` that scikit-learn lacks (scikit-learn #8136).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from keepfit.recipe.recipe import CLASSES_MAX, Label
from keepfit.rows.values import normalized
from keepfit.scoring import class_labels
from keepfit.scoring.class_labels import CLASSES_MIN

Codes = NDArray[np.int64]

# Dictionary keys of booleans, because Python treats True as 1. No label contains a NUL.
BOOLEAN_KEYS = {True: "\0true", False: "\0false"}


@dataclass(slots=True)
class Labels:
    """Labels of one output, in order of their codes."""

    known: list[Label] = field(default_factory=list)
    codes: dict[Label, int] = field(default_factory=dict)

    @classmethod
    def from_classes(cls, classes: Iterable[Label] | None) -> Self:
        """Return the labels that a recipe names; none where it names none.

        >>> Labels.from_classes(["yes", "no"]).known
        ['no', 'yes']
        """
        labels = cls()
        labels.partial_fit_encode(sorted(classes or ()))
        return labels

    @classmethod
    def of_codes(cls, codes: dict[Label, int]) -> Self:
        """Labels that were learned before: their codes in ascending order.

        >>> Labels.of_codes(Labels.from_classes([False, True]).codes).known
        [False, True]
        """
        labels = cls(list(codes), codes)
        for label, key in BOOLEAN_KEYS.items():
            if key in codes:
                labels.known[codes[key]] = label
        return labels

    @property
    def n_classes(self) -> int:
        """Number of classes that the estimator must have, at least two."""
        return max(CLASSES_MIN, len(self.known))

    def partial_fit_encode(self, y: Sequence[Label]) -> Codes:
        """Return the codes of `y`, shape (n,); new labels get the next codes.

        Raises
        ------
        ValueError
            If there would be more than 10,000 labels; then none is learned.

        >>> labels = Labels.from_classes([False, True])
        >>> labels.partial_fit_encode([True, 1, "1", False]).tolist()
        [1, 2, 3, 0]
        """
        keys = _keys(y)
        new_keys = dict.fromkeys(key for key in keys if key not in self.codes)
        if new_keys:
            if len(self.known) + len(new_keys) > CLASSES_MAX:
                raise ValueError(
                    f"the target would have more than {CLASSES_MAX} labels: is it a number to be predicted?"
                )
            first_by_key = dict(zip(reversed(keys), reversed(y), strict=True))
            for key in new_keys:
                self.codes[key] = len(self.known)
                self.known.append(first_by_key[key])
        return np.array([self.codes[key] for key in keys], dtype=np.int64)

    def encode(self, y: Sequence[Label]) -> Codes:
        """Return the codes of `y`, shape (n,), without learning: unknown labels get codes beyond the estimator's."""
        codes = dict(self.codes)
        offset = self.n_classes - len(codes)
        return np.array([codes.setdefault(key, len(codes) + offset) for key in _keys(y)], dtype=np.int64)

    def decode(self, codes: Any) -> list[Label]:
        """Return the labels of an estimator's `codes`, shape (n,), replaced as :meth:`clip_to_known` does."""
        return class_labels.decode(self.known, codes)

    def clip_to_known(self, codes: Any) -> Any:
        """Return `codes`, shape (n,), with a class that has no label yet replaced by the class that has one."""
        return class_labels.clip_to_known(self.known, codes)

    def known_probabilities(self, probabilities: Any) -> Any:
        """Return the probabilities of the known labels, shape (n, labels), given those of all classes."""
        return class_labels.known_probabilities(self.known, probabilities)

    def class_weight_by_code(self, class_weight: Any) -> Any:
        """Return a recipe's `class_weight`, whose keys are JSON names of labels, keyed by code."""
        if not isinstance(class_weight, dict):
            return class_weight
        codes = {json_name(label): code for code, label in enumerate(self.known)}
        names = normalized(list(class_weight))
        return {codes[name]: weight for name, weight in zip(names, class_weight.values(), strict=True)}


def json_name(label: Label) -> str:
    """Return a label as a key of a JSON object.

    >>> json_name("7"), json_name(7), json_name(True)
    ('7', '7', 'true')
    """
    return str(label).lower() if isinstance(label, bool) else str(label)


def key_of(label: Label) -> Label:
    """Return the key of a label in :attr:`Labels.codes`.

    >>> key_of(1) == key_of(True), key_of("a")
    (False, 'a')
    """
    return BOOLEAN_KEYS[label] if isinstance(label, bool) else label


def _keys(y: Sequence[Label]) -> Sequence[Label]:
    return list(map(key_of, y)) if bool in set(map(type, y)) else y

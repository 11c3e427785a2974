"""Labels that predictions name: from the codes of an estimator to the labels of a classifier.

Owns what is answered while a classifier knows a single label: scikit-learn's classifiers need two classes, the second
of which has none yet. Never learns a label: :mod:`keepfit.model.labels` does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keepfit.recipe.recipe import Label

# scikit-learn's classifiers need two classes from the start; the second may have no label yet.
CLASSES_MIN = 2


def decode(known: Sequence[Label], codes: Any) -> list[Label]:
    """Return the labels of an estimator's `codes`, shape (n,), replaced as :func:`clip_to_known` does.

    >>> decode(["no", "yes"], np.array([1, 0])), decode(["no"], np.array([1, 0]))
    (['yes', 'no'], ['no', 'no'])
    """
    return [known[code] for code in clip_to_known(known, codes).tolist()]


def clip_to_known(known: Sequence[Label], codes: Any) -> Any:
    """Return `codes`, shape (n,), with a class that has no label yet replaced by the class that has one."""
    return np.where(codes < len(known), codes, 0) if len(known) < CLASSES_MIN else codes


def known_probabilities(known: Sequence[Label], probabilities: Any) -> Any:
    """Return the probabilities of the known labels, shape (n, labels), given those of all classes."""
    return probabilities if len(known) >= CLASSES_MIN else np.ones((len(probabilities), len(known)))


def decode_outputs(each: Sequence[Sequence[Label]], codes: Any) -> list[list[Label]]:
    """Return the labels of `codes`, shape (n, outputs), as one list per row; `each` has those of an output.

    >>> decode_outputs([["a", "b"], [True, False]], np.array([[1, 0]]))
    [['b', True]]
    """
    columns = [decode(known, codes[:, i]) for i, known in enumerate(each)]
    return [list(row) for row in zip(*columns, strict=True)]


def by_row(probabilities: Sequence[Any]) -> list[list[list[float]]]:
    """Return the probabilities of several outputs, one array of shape (n, labels) each, as one list per row."""
    return [list(row) for row in zip(*[of_output.tolist() for of_output in probabilities], strict=True)]

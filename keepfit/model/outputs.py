"""Targets with several values per row, as the MultiOutput estimators have them.

Owns their form in memory, one column per output (:class:`keepfit.rows.rows.Rows` holds one flat list, row by row).
Never changes the number of outputs once rows have been learned. Invariant: each output has a label list of its own, so
a label of one output says nothing about another. Targets are checked by :mod:`keepfit.rows.targets`; a single output
uses :mod:`keepfit.model.labels` directly.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from keepfit.errors import InvalidError
from keepfit.model.labels import Labels
from keepfit.model.scores import UNANSWERED
from keepfit.recipe.recipe import Label
from keepfit.scoring import class_labels

# The scores of which the largest of all outputs counts.
LARGEST = ("max_error", UNANSWERED)


@dataclass(slots=True)
class Outputs:
    """Labels of each output; the recipe's classes define how many there are, or else the first rows."""

    each: list[Labels] = field(default_factory=list)

    @classmethod
    def from_classes(cls, classes: Iterable[Any] | None) -> Self:
        """Return the labels that a recipe names for each output."""
        return cls([Labels.from_classes(of_output) for of_output in classes or ()])

    def partial_fit_encode(self, columns: Sequence[Sequence[Label]]) -> Any:
        """Return the codes of the target's columns, shape (n, outputs); new labels get the next codes.

        Raises
        ------
        InvalidError
            If the number of columns is not that of the outputs.
        ValueError
            If an output would have more than 10,000 labels.

        >>> labels = Outputs()
        >>> labels.partial_fit_encode([["a", "b"], [True, True]]).tolist()
        [[0, 0], [1, 0]]
        >>> labels.decode(np.array([[1, 0]]))
        [['b', True]]
        """
        if not self.each:
            self.each = [Labels() for _ in columns]
        check_output_count(len(self.each), len(columns))
        return np.column_stack(
            [labels.partial_fit_encode(column) for labels, column in zip(self.each, columns, strict=True)]
        )

    def encode(self, columns: Sequence[Sequence[Label]]) -> Any:
        """Return the codes without learning, shape (n, outputs), as :meth:`Labels.encode` gives them.

        Raises
        ------
        InvalidError
            If the number of columns is not that of the outputs.
        """
        check_output_count(len(self.each), len(columns))
        return np.column_stack([labels.encode(column) for labels, column in zip(self.each, columns, strict=True)])

    def clip_to_known(self, codes: Any) -> Any:
        """Return `codes`, shape (n, outputs), with classes that have no label yet replaced by one that has."""
        return np.column_stack([labels.clip_to_known(codes[:, i]) for i, labels in enumerate(self.each)])

    def decode(self, codes: Any) -> list[list[Label]]:
        """Return the labels of `codes`, shape (n, outputs), as one list per row."""
        return class_labels.decode_outputs([labels.known for labels in self.each], codes)

    def known_probabilities(self, probabilities: Sequence[Any]) -> list[Any]:
        """Return the probabilities of the known labels, one array of shape (n, labels) per output.

        `probabilities` holds one array of shape (n, classes) per output.
        """
        pairs = zip(self.each, probabilities, strict=True)
        return [labels.known_probabilities(of_output) for labels, of_output in pairs]


def check_output_count(learned: int, sent: int) -> None:
    """Reject rows whose number of values in `y` differs from what was learned.

    Raises
    ------
    InvalidError
        With both numbers.
    """
    if learned != sent:
        raise InvalidError(f"y has {sent} values in each row where the model has learned {learned}.")


def output_columns(y: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """Return the columns of a flat target of `n` rows.

    >>> output_columns(["a", "x", "b", "y"], 2)
    [['a', 'b'], ['x', 'y']]
    """
    count = len(y) // n
    return [y[i::count] for i in range(count)]


def combine_scores(each: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Combine the scores of all outputs: the largest of some, the mean of any other; None where one is None.

    An output of which no row could be evaluated is in none of them, except in the rows without a prediction.

    >>> combine_scores([{"accuracy": 0.5}, {"accuracy": None, "rows_without_prediction": 3}])
    {'accuracy': 0.5, 'rows_without_prediction': 3}
    """
    combined: dict[str, float | None] = {}
    for name in dict.fromkeys(name for scores in each for name in scores):
        values = [scores.get(name, 0) for scores in each if name == UNANSWERED or _is_evaluated(scores)]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            combined[name] = None
        else:
            combined[name] = max(known) if name in LARGEST else sum(known) / len(known)
    return combined


def _is_evaluated(scores: Mapping[str, float | None]) -> bool:
    return any(value is not None for name, value in scores.items() if name != UNANSWERED)

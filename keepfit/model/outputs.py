"""Targets of several values a row, as the MultiOutput estimators have them.

Owns their form: on the wire one flat list, row by row; in memory one column for each output. Never changes how many
outputs there are once rows have been learned. Invariant: each output has label lists of its own, so a label of one says
nothing about another. The form of single values is :mod:`keepfit.rows.targets`' and :mod:`keepfit.model.labels`' own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from keepfit.errors import InvalidError
from keepfit.model.labels import Labels
from keepfit.recipe.recipe import Label


@dataclass(slots=True)
class Outputs:
    """Labels of each output; how many there are the recipe's classes tell, or else the first rows."""

    each: list[Labels] = field(default_factory=list)

    @classmethod
    def of(cls, classes: Iterable[Any] | None) -> Self:
        """Labels that a recipe names for each output."""
        return cls([Labels.of(one) for one in classes or ()])

    def learn(self, columns: Sequence[Sequence[Label]]) -> Any:
        """Codes of the target's columns, shape (n, outputs); labels not known yet get the next ones.

        >>> labels = Outputs()
        >>> labels.learn([["a", "b"], [True, True]]).tolist()
        [[0, 0], [1, 0]]
        >>> labels.decode(np.array([[1, 0]]))
        [['b', True]]
        """
        if not self.each:
            self.each = [Labels() for _ in columns]
        check_count(len(self.each), len(columns))
        return np.column_stack([labels.learn(column) for labels, column in zip(self.each, columns, strict=True)])

    def encode(self, columns: Sequence[Sequence[Label]]) -> Any:
        """Codes without learning, shape (n, outputs), as :meth:`Labels.encode` gives them."""
        check_count(len(self.each), len(columns))
        return np.column_stack([labels.encode(column) for labels, column in zip(self.each, columns, strict=True)])

    def settle(self, codes: Any) -> Any:
        """`codes`, shape (n, outputs), with classes that have no label yet taken for those that have."""
        return np.column_stack([labels.settle(codes[:, i]) for i, labels in enumerate(self.each)])

    def decode(self, codes: Any) -> list[list[Label]]:
        """Labels of `codes`, shape (n, outputs): a list for each row."""
        columns = [labels.decode(codes[:, i]) for i, labels in enumerate(self.each)]
        return [list(row) for row in zip(*columns, strict=True)]

    def chances(self, probabilities: Sequence[Any]) -> list[list[list[float]]]:
        """For each row and output the probabilities of its labels, of one array of shape (n, classes) per output."""
        columns = [labels.chances(one).tolist() for labels, one in zip(self.each, probabilities, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]


def check_count(learned: int, given: int) -> None:
    """Refuse rows with another number of values in `y` than were learned."""
    if learned != given:
        raise InvalidError(f"y has {given} values in each row where the model has learned {learned}.")


def columns_of(y: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """Columns of a flat target of `n` rows.

    >>> columns_of(["a", "x", "b", "y"], 2)
    [['a', 'b'], ['x', 'y']]
    """
    count = len(y) // n
    return [y[i::count] for i in range(count)]


def score(each: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Scores of all outputs together: the largest `max_error`, and the mean of all else; None where one has none."""
    together: dict[str, float | None] = {}
    for name in each[0]:
        values = [one[name] for one in each]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            together[name] = None
        else:
            together[name] = max(known) if name == "max_error" else sum(known) / len(known)
    return together

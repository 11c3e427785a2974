"""Learning the labels of category columns, and their names.

A learned label gets the next code while there is one: the first labels and not the most frequent ones have codes. How
frequent a label is, is known only later, and if a code passed to another label, so would what the estimator has learned
about it.

Owns which labels are learned; :mod:`keepfit.scoring.category_codes` has the bounds and the codes. Invariants: a label
keeps its code for ever, and no code ever has two labels; no list grows beyond its bound.
"""

from collections.abc import Sequence

from keepfit.recipe.features import Column
from keepfit.rows.values import NonNumeric
from keepfit.scoring.category_codes import RULE, Known, is_label, labels_max, size


def learn(
    lists: Sequence[Known], columns: Sequence[Column], values: Sequence[Sequence[NonNumeric]], rule: int, room: int
) -> int:
    """Add the labels of `values`, one sequence for each of `columns`, to their `lists`, as far as they have codes.

    `room` is the size that labels of all columns may still have; returns what is left of it. Labels are added row by
    row: which of them have codes does not depend on how rows were grouped into calls.
    """
    growing = [
        (known, column, labels_max(column, rule), labels)
        for known, column, labels in zip(lists, columns, values, strict=True)
        if len(known) < labels_max(column, rule)
    ]
    for row in zip(*[labels for *_, labels in growing], strict=True):
        for (known, column, most, _), label in zip(growing, row, strict=True):
            if label not in known and len(known) < most and is_label(label, column) and size([label]) <= room:
                room -= size([label])
                known[label] = len(known)
    return room


def onehot_names(known: Known, column: Column, rule: int) -> list[str]:
    """Return the names of a column's one-hot columns: "make=nike", and "make[2]" where there is no label yet."""
    labels = ["null" if label is None else str(label) for label in list(known)[: column.width]]
    names = [f"{column.name}={label}" for label in labels]
    names += [f"{column.name}[{index}]" for index in range(len(labels), column.width)]
    return [*names[:-1], f"{column.name}:infrequent"] if rule == RULE else names

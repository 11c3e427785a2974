"""Codes of category columns: which labels have one of their own, and which share that of infrequent ones.

The first labels of a column have codes of their own, while the column has one left and the labels of all columns have
room; all later labels are *infrequent* and share one code. This is scikit-learn's ``OneHotEncoder(max_categories=...,
handle_unknown="infrequent_if_exist")`` for a stream.

Owns both bounds, and the code of each label. Never adds a label: :mod:`keepfit.model.categories` learns. Lists are
dicts from labels to positions, in order of first occurrence; :mod:`keepfit.scoring.matrix` writes the codes.
"""

from collections.abc import Sequence

from keepfit.recipe.features import Column
from keepfit.rows.values import NonNumeric

Known = dict[NonNumeric, int]

# What bundles know of infrequent labels: those that earlier releases wrote go on as they began, because their weights
# were learned with it. The text of a label that is hashed has rules, too.
RULE_TEXT, RULE_JSON, RULE = 1, 2, 3
# The code of a label that is unknown: all zeros of one-hot columns.
UNKNOWN = -1
# Size of the labels of all columns, which are read and written with each commit: their characters, and 16 for each.
SIZE_MAX, SIZE_OF_LABEL = 2**23, 16


def ordinal_codes(known: Known, labels: Sequence[NonNumeric], rule: int) -> list[int]:
    """Return codes from 1; 0 is that of all other labels. By the rules of earlier releases codes from 0, and -1.

    >>> ordinal_codes({"a": 0, "b": 1}, ["b", "c"], RULE), ordinal_codes({"a": 0, "b": 1}, ["b", "c"], RULE_JSON)
    ([2, 0], [1, -1])
    """
    first = 1 if rule == RULE else 0
    return [known.get(label, UNKNOWN) + first for label in labels]


def onehot_codes(known: Known, column: Column, labels: Sequence[NonNumeric], rule: int, room: int) -> list[int]:
    """Return the positions among the `column`'s one-hot columns, the last of which is that of infrequent labels.

    A label that would get a code if it were learned, and a missing value that is no label, are UNKNOWN. `room` is the
    size that labels of all columns may still have.
    """
    codes = [known.get(label, UNKNOWN) for label in labels]
    if rule != RULE or UNKNOWN not in codes:
        return codes
    infrequent = column.width - 1
    if len(known) >= labels_max(column, rule):
        room = 0
    return [
        infrequent if code == UNKNOWN and is_label(label, column) and size([label]) > room else code
        for label, code in zip(labels, codes, strict=True)
    ]


def size(labels: Sequence[NonNumeric] | Known) -> int:
    """Return the size of labels: their characters, and 16 for each of them.

    >>> size(["a", "bcd", 7, None])
    68
    """
    return sum([len(label) for label in labels if type(label) is str]) + SIZE_OF_LABEL * len(labels)


def labels_max(column: Column, rule: int) -> int:
    """Return the number of labels of `column` that have codes of their own."""
    return column.categories_max - (rule == RULE)


def is_label(value: NonNumeric, column: Column) -> bool:
    """Return whether `value` is a label: a missing value is one only where it has an indicator."""
    return value is not None or column.options.missing == "indicator"

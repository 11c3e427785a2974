"""Bundles of format 2: pickles of keepfit's own classes, under the module names of that time.

Owns the table of those names (:data:`CLASSES`), which :mod:`keepfit.model.pickling` looks up, and the conversion of
an unpickled state to format 3. Never unpickles and never writes. Invariant: nothing here depends on a class of keepfit,
so that those can change. Bundles of format 2 come from Redis and snapshots; each commit stores format 3.
"""

from collections.abc import Callable, Mapping
from typing import Any

from keepfit.rows.values import normalized
from keepfit.scoring.category_codes import RULE_TEXT

FORMAT = 2
# A pickle of format 2 begins with the number and the class of the bundle, whose module's name stands in these bytes.
HEAD_BYTES, MARK = 64, b"keepfit."


class StoredObject:
    """The fields of an object whose class is gone, by name."""

    __slots__ = ("fields",)

    fields: dict[str, Any]

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        """Take the state that pickle stores of a class with ``__slots__``: nothing, and the values of the slots."""
        _, self.fields = state


def rows_of(*fields: Any) -> tuple[Any, ...]:
    """Return the fields of stored rows: n, numbers, categories, y, sample_weight."""
    return fields


# What stands for each class, by module and name in the pickle.
CLASSES: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("keepfit.bundle", "Bundle"): StoredObject,
    ("keepfit.chain", "Chain"): StoredObject,
    ("keepfit.columns", "Columns"): StoredObject,
    ("keepfit.columns", "Means"): StoredObject,
    ("keepfit.foreign", "ObjectBundle"): StoredObject,
    ("keepfit.labels", "Labels"): StoredObject,
    ("keepfit.outputs", "Outputs"): StoredObject,
    ("keepfit.prequential", "Running"): StoredObject,
    ("keepfit.rows", "Rows"): rows_of,
}


def names_classes(payload: bytes) -> bool:
    """Whether a pickle may be of format 2; one of format 3 may be taken for it, which is harmless."""
    return MARK in payload[:HEAD_BYTES]


def converted(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the unpickled `state` of a bundle of format 2 in the form of format 3, without the format's number.

    The class of the bundle is dropped, because the recipe tells it; so are the lists of labels, which the codes hold.
    """
    _, _, links, columns, labels, estimator, running, rows_seen, waiting, changed = state
    means = columns.fields["means"]
    return (
        links,
        (
            columns.fields["scaler"],
            [_in_normal_form(codes) for codes in columns.fields["labels"]],
            None if means is None else (means.fields["totals"], means.fields["counts"]),
            RULE_TEXT,
        ),
        None if labels is None else _label_codes(labels),
        [*estimator.fields["steps"], estimator.fields["last"]] if type(estimator) is StoredObject else [estimator],
        [tuple(scores.fields[name] for name in ("window", "total", "parts", "first")) for scores in running],
        rows_seen,
        list(waiting),
        changed,
    )


def _label_codes(labels: StoredObject) -> list[dict[Any, int]]:
    """Return the codes of each output's labels, in ascending order."""
    outputs = labels.fields.get("each", [labels])
    return [_in_normal_form(each.fields["codes"]) for each in outputs]


def _in_normal_form(codes: dict[Any, int]) -> dict[Any, int]:
    """Return `codes` with labels in Unicode's normal form C, as rows have them now; a label that has it already wins.

    >>> list(_in_normal_form({"cafe\u0301": 0, "tea": 1}))[0] == "café"
    True
    """
    if all(label.isascii() for label in codes if type(label) is str):
        return codes
    renamed: dict[Any, int] = {}
    for label, code in codes.items():
        (normal,) = normalized([label])
        renamed[label if normal in codes or normal in renamed else normal] = code
    return renamed

"""Convert metadata to labels, key-value pairs that MongoDB can index, and filters to conditions on labels.

Pure. :mod:`keepfit.conditions` owns which values are compared. Invariant: a filter compares values. No key and no value
of a user is ever interpreted as an operator.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from keepfit.conditions import Conditions, Scalar, to_scalar, values_of
from keepfit.errors import MalformedError
from keepfit.history.mongo import Document

# As OpenAPI's deepObject style writes a key; generated clients send it.
BRACKETED = re.compile(r"metadata\[(.+)\]")


def to_labels(metadata: Mapping[str, Any]) -> list[Document]:
    """Return the top-level scalars of metadata as pairs of key ``k`` and value ``v``.

    Keys are stored as values, so that a user's key is never a field name or an operator.
    """
    scalars = {key: to_scalar(value) for key, value in metadata.items()}
    return [{"k": key, "v": value} for key, value in scalars.items() if value is not None]


def label_condition(key: str, values: Sequence[Scalar]) -> Document:
    """Return the condition that the label `key` has one of `values`."""
    return {"labels": {"$elemMatch": {"k": key, "v": {"$in": list(values)}}}}


def label_conditions(where: Conditions) -> list[Document]:
    """Return the conditions on labels that stand for conditions on metadata; all must hold."""
    return [label_condition(key, values_of(texts)) for key, texts in where]


def filters_of(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the filters by metadata in the parameters of a query: ``brand=nike`` or ``metadata[brand]=nike``.

    >>> filters_of({"brand": "nike", "metadata[limit]": "5"})
    {'brand': 'nike', 'limit': '5'}

    Raises
    ------
    MalformedError
        If a key is named in both ways.
    """
    filters: dict[str, str] = {}
    for name, text in parameters.items():
        bracketed = BRACKETED.fullmatch(name)
        key = bracketed[1] if bracketed else name
        if key in filters:
            raise MalformedError(f"The query filters twice by {key!r}: send {key!r} or 'metadata[{key}]', not both.")
        filters[key] = text
    return filters

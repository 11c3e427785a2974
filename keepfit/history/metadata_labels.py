"""Convert metadata to labels, key-value pairs that MongoDB can index.

Pure. Invariant: a filter compares values. No key and no value of a user is ever interpreted as an operator.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from keepfit.errors import MalformedError
from keepfit.history.mongo import Document
from keepfit.identity import INTEGER_MAX

# As OpenAPI's deepObject style writes a key; generated clients send it.
BRACKETED = re.compile(r"metadata\[(.+)\]")


def to_labels(metadata: Mapping[str, Any]) -> list[Document]:
    """Return the top-level scalars of metadata as pairs of key ``k`` and value ``v``.

    Keys are stored as values, so that a user's key is never a field name or an operator.
    """
    return [
        {"k": key, "v": float(value) if isinstance(value, int) and not isinstance(value, bool) else value}
        for key, value in metadata.items()
        if isinstance(value, str | int | float | bool)
    ]


def possible_values(text: str) -> list[str | float | bool]:
    """Return the metadata values that text of a query string may stand for.

    >>> possible_values("nike"), possible_values("2001"), possible_values("true")
    (['nike'], ['2001', 2001.0], ['true', True])
    """
    values: list[str | float | bool] = [text]
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return values
    if isinstance(parsed, bool):
        values.append(parsed)
    elif isinstance(parsed, int | float) and abs(parsed) <= INTEGER_MAX:
        values.append(float(parsed))
    return values


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

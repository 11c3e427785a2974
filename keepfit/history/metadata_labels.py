"""Labels: the scalars of metadata as key-value pairs, so that no key or value of a user's is ever an operator.

Pure. Invariant: a filter compares values; nothing in it is interpreted, whatever it looks like.
"""

import json
from collections.abc import Mapping
from typing import Any

from keepfit.history.mongo import Document
from keepfit.identity import INTEGER_MAX


def labels_of(metadata: Mapping[str, Any]) -> list[Document]:
    """Top-level scalars as key-value pairs: searched by value, so that no key of a user's is ever an operator."""
    return [
        {"k": key, "v": float(value) if isinstance(value, int) and not isinstance(value, bool) else value}
        for key, value in metadata.items()
        if isinstance(value, str | int | float | bool)
    ]


def meanings_of(text: str) -> list[str | float | bool]:
    """What a value in a query string may stand for in metadata.

    >>> meanings_of("nike"), meanings_of("2001"), meanings_of("true")
    (['nike'], ['2001', 2001.0], ['true', True])
    """
    meanings: list[str | float | bool] = [text]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return meanings
    if isinstance(value, bool):
        meanings.append(value)
    elif isinstance(value, int | float) and abs(value) <= INTEGER_MAX:
        meanings.append(float(value))
    return meanings

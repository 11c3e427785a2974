"""Documents as users store them, and as they lie in MongoDB.

Pure. A document of users must hold ``type`` and ``timestamp``; what else it holds lies under ``document``, its scalars
(and those of its ``metadata``) as labels too. Invariant: a document's ``_id`` follows from what identifies it, so that
storing it twice, at once or again, gives one document.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keepfit.errors import InvalidError
from keepfit.history.metadata_labels import labels_of
from keepfit.history.mongo import Document
from keepfit.history.times import parse_time


def wrap(document: Mapping[str, Any], keys: Sequence[str] = ()) -> Document:
    """Return a document as it is stored; identified by its type and `keys`, or by all that it holds.

    Raises
    ------
    InvalidError
        If it has no type or timestamp, or not `keys`.
    MalformedError
        If its timestamp is no time.
    """
    type_ = document.get("type")
    if not isinstance(type_, str) or not type_:
        raise InvalidError("A document of the history holds a type, a text that is not empty.")
    if "timestamp" not in document:
        raise InvalidError("A document of the history holds a timestamp.")
    if not all(isinstance(key, str) for key in document):
        raise InvalidError("The names of a document's fields are texts.")
    rest = {key: _plain(value) for key, value in document.items() if key not in ("_id", "type", "timestamp")}
    timestamp = parse_time(document["timestamp"])
    metadata = rest.get("metadata")
    labelled = {**(metadata if isinstance(metadata, dict) else {}), **rest, "type": type_}
    whole = {**rest, "type": type_, "timestamp": timestamp}
    if missing := [key for key in keys if key not in whole]:
        raise InvalidError(f"A document has no {missing[0]!r}, which was to identify it.")
    return {
        "_id": identity(type_, {key: whole[key] for key in keys} if keys else whole),
        "type": type_,
        "timestamp": timestamp,
        "labels": labels_of({key: value for key, value in labelled.items() if _is_label(value)}),
        "document": rest,
    }


def identity(type_: str, values: Mapping[str, Any]) -> str:
    """What identifies a document of a type with these values, as 64 hexadecimal digits."""
    text = json.dumps([type_, values], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_label(value: Any) -> bool:
    # Longer numbers have no place in a double.
    return not isinstance(value, int) or abs(value) < 2**1023


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's own."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value

"""Convert documents of users to the form in which MongoDB stores them.

Pure. A document must have ``type`` and ``timestamp``; all other fields are stored under ``document``, and scalars (also
those of ``metadata``) as labels as well. Invariant: ``_id`` is a digest of the values that identify a document, so that
storing it twice, concurrently or later, results in one document.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keepfit.errors import InvalidError
from keepfit.history.metadata_labels import to_labels
from keepfit.history.mongo import Document
from keepfit.times import parse_time


def to_stored(document: Mapping[str, Any], keys: Sequence[str] = ()) -> Document:
    """Return a document in its stored form, identified by its type and `keys`, without keys by all its fields.

    Raises
    ------
    InvalidError
        If it has no type or timestamp, or lacks one of `keys`.
    MalformedError
        If its timestamp is not a time.
    """
    if not isinstance(document, Mapping):
        raise InvalidError(f"A document must be a dictionary, not {document!r:.100}.")
    type_ = document.get("type")
    if not isinstance(type_, str) or not type_:
        raise InvalidError("A document needs a type: a string that is not empty.")
    if "timestamp" not in document:
        raise InvalidError("A document needs a timestamp.")
    if not all(isinstance(key, str) for key in document):
        raise InvalidError("The names of a document's fields must be strings.")
    rest = {key: _to_python(value) for key, value in document.items() if key not in ("_id", "type", "timestamp")}
    timestamp = parse_time(document["timestamp"])
    metadata = rest.get("metadata")
    scalars = {**(metadata if isinstance(metadata, dict) else {}), **rest, "type": type_}
    fields = {**rest, "type": type_, "timestamp": timestamp}
    if missing := [key for key in keys if key not in fields]:
        raise InvalidError(f"A document has no field {missing[0]!r}, which is one of its keys.")
    return {
        "_id": document_id(type_, {key: fields[key] for key in keys} if keys else fields),
        "type": type_,
        "timestamp": timestamp,
        "labels": to_labels(scalars),
        "document": rest,
    }


def document_id(type_: str, values: Mapping[str, Any]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of a type and the values that identify a document."""
    text = json.dumps([type_, values], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _to_python(value: Any) -> Any:
    """Return a value with numpy's numbers and arrays converted to Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _to_python(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_python(inner) for inner in value]
    return value

"""Check documents of users before they are stored: names, depth, sizes, numbers.

Pure. Owns what a document of the history may hold when it comes from outside; :mod:`keepfit.history.documents` has the
stored form. Invariants: a name is never an operator or a path, so that a query can name each field; a document that
passes can be stored by MongoDB, and is read again as it was sent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from keepfit.errors import InvalidError

# A document in JSON, so a line of a stream.
DOCUMENT_BYTES_MAX = 1 << 20
NAME_MAX = 256
# As many names as the dotted name of a field may have (:mod:`keepfit.history.queries.sources`), `document` included.
DEPTH_MAX = 15
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1
KEYS_MAX = 16
# `kind` tells a document of a user from one of a snapshot, in every query; `_id` is what MongoDB has.
RESERVED = frozenset({"_id", "kind"})
# By these fields together, readers of both kinds know the document of a snapshot.
SNAPSHOT_FIELDS = frozenset({"hash", "uri"})
# Characters of a name or value that a message repeats.
SHOWN_MAX = 60


def check_document(document: Any) -> Mapping[str, Any]:
    """Return a document unchanged if it may be stored; it needs no timestamp.

    Raises
    ------
    InvalidError
        If it is no object, has no type, a name that no query can use, or a value that MongoDB cannot store.

    >>> check_document({"type": "vote", "fit": {"size": 4.5}})
    {'type': 'vote', 'fit': {'size': 4.5}}
    """
    if not isinstance(document, Mapping):
        raise InvalidError(f"a document is an object, not {_shown(document)}.")
    type_ = document.get("type")
    if not isinstance(type_, str) or not type_:
        raise InvalidError("a document needs a type: text that is not empty.")
    if len(type_) > NAME_MAX or "\0" in type_:
        raise InvalidError(f"the type {_shown(type_)} is longer than {NAME_MAX} characters, or holds a NUL character.")
    if reserved := RESERVED & document.keys():
        raise InvalidError(f"a document cannot have a field {min(reserved)!r}: the name has a meaning of its own.")
    if document.keys() >= SNAPSHOT_FIELDS:
        raise InvalidError("a document cannot have the fields 'hash' and 'uri' both: they are those of a snapshot.")
    _check_object(document, "", 1)
    return document


def check_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the fields that identify a document.

    Raises
    ------
    InvalidError
        If one is no name, or there are too many.
    """
    if isinstance(keys, str):
        raise InvalidError(f"keys must be a list of names, not {keys!r}.")
    if len(keys) > KEYS_MAX:
        raise InvalidError(f"keys may have {KEYS_MAX} names, not {len(keys)}.")
    for key in keys:
        _check_name(key, "keys: ")
    return tuple(dict.fromkeys(keys))


def _check_object(document: Mapping[str, Any], path: str, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise InvalidError(f"{path[:SHOWN_MAX]}: fields are nested deeper than {DEPTH_MAX} levels.")
    for name, value in document.items():
        _check_name(name, f"{path[:SHOWN_MAX]}: " if path else "")
        _check_value(value, f"{path}.{name}" if path else name, depth)


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidError(f"{where}the name of a field is text that is not empty, not {_shown(name)}.")
    if name.startswith("$") or "." in name or "\0" in name:
        raise InvalidError(
            f"{where}the name {_shown(name)} begins with '$', or holds '.' or a NUL character: write a.b as an object "
            "in an object."
        )
    if len(name) > NAME_MAX:
        raise InvalidError(f"{where}the name {_shown(name)} is longer than {NAME_MAX} characters.")


def _check_value(value: Any, path: str, depth: int) -> None:
    if isinstance(value, Mapping):
        _check_object(value, path, depth + 1)
    elif isinstance(value, list | tuple):
        if depth >= DEPTH_MAX:
            raise InvalidError(f"{path[:SHOWN_MAX]}: fields are nested deeper than {DEPTH_MAX} levels.")
        for item in value:
            _check_value(item, path, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidError(f"{path[:SHOWN_MAX]}: {value} is not a finite number.")
    elif isinstance(value, int) and not INTEGER_MIN <= value <= INTEGER_MAX:
        raise InvalidError(
            f"{path[:SHOWN_MAX]}: {str(value)[:SHOWN_MAX]} has more than 64 bits: send it as text or with a decimal "
            "point."
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"

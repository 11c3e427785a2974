"""Conditions on metadata: which models a filter of a listing, or an API key, means.

Pure. Owns how text stands for values of metadata, the comparison, and the stored form of the conditions of an API key.
Invariants: the comparison in Python (:func:`matches`) and that in MongoDB (:mod:`keepfit.history`) use the same values,
so that a listing and a lookup agree; values are compared, never interpreted, and only scalars on the top level.

Conditions are pairs of a key and the texts of which one must match; all pairs must hold. Stored, they are
``type=shoes+brand=nike+brand=puma``: keys and values percent-encoded (RFC 3986), so that no separator is in them.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from keepfit.errors import InvalidError, MalformedError
from keepfit.identity import INTEGER_MAX

Scalar = str | float | bool
# Sorted by key, the texts of a key sorted too: two equal conditions are equal values.
Conditions = tuple[tuple[str, tuple[str, ...]], ...]

# Stored form; the settings hold one for each API key.
TEXT_MAX = 4096
ENCODED = re.compile(r"(?:[\w.~-]|%[0-9A-Fa-f]{2})*", re.ASCII)
# Characters of an argument that a message repeats.
SHOWN_MAX = 80
# Parsed conditions that are kept: one entry for each API key in use.
PARSED_MAX = 4096


def to_scalar(value: Any) -> Scalar | None:
    """Return a value of metadata as it is compared (:func:`to_number`); None for one that no condition matches."""
    if isinstance(value, int) and not isinstance(value, bool):
        return to_number(value)
    return value if isinstance(value, str | float | bool) else None


def to_number(value: float) -> float | None:
    """Return a number as it is compared: as a float, but an integer of 64 bits that has no float as itself.

    Identifiers may have 64 bits: as floats, several of them would be one. None for a number beyond the largest float.

    >>> to_number(7), to_number(2**53 + 1), to_number(2**70)
    (7.0, 9007199254740993, 1.1805916207174113e+21)
    """
    if isinstance(value, int) and INTEGER_MAX < abs(value) < 2**63:
        return value
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def possible_values(text: str) -> list[Scalar]:
    """Return the metadata values that text of a query string may stand for.

    >>> possible_values("nike"), possible_values("2001"), possible_values("true")
    (['nike'], ['2001', 2001.0], ['true', True])
    """
    values: list[Scalar] = [text]
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return values
    if isinstance(parsed, bool):
        values.append(parsed)
    elif isinstance(parsed, int | float) and (number := to_number(parsed)) is not None:
        values.append(number)
    return values


def values_of(texts: Iterable[str]) -> list[Scalar]:
    """Return the metadata values that one of several texts may stand for."""
    return [value for text in texts for value in possible_values(text)]


def matches(metadata: Mapping[str, Any], conditions: Conditions) -> bool:
    """Return whether metadata fulfil all conditions.

    >>> where = parse(["type=shoes", "brand=nike", "brand=puma"])
    >>> matches({"type": "shoes", "brand": "puma", "size": 9}, where), matches({"type": "shoes"}, where)
    (True, False)
    """
    for key, accepted in _accepted(conditions):
        value = to_scalar(metadata.get(key))
        if value is None or (isinstance(value, bool), value) not in accepted:
            return False
    return True


@lru_cache(maxsize=PARSED_MAX)
def _accepted(conditions: Conditions) -> tuple[tuple[str, frozenset[tuple[bool, Scalar]]], ...]:
    # True and 1.0 are equal in Python, and different values of metadata.
    return tuple(
        (key, frozenset((isinstance(value, bool), value) for value in values_of(texts))) for key, texts in conditions
    )


def parse(arguments: Iterable[str]) -> Conditions:
    """Return the conditions that ``key=value`` arguments state. Several values of one key: one of them must match.

    Raises
    ------
    MalformedError
        If an argument is not a key, ``=`` and a value.
    InvalidError
        If a condition can never match, or the conditions are too long to store.
    """
    pairs: list[tuple[str, str]] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise MalformedError(f"{argument[:SHOWN_MAX]!r} is not key=value, as type=shoes is.")
        pairs.append((key, value))
    return _checked(pairs)


def _checked(pairs: Iterable[tuple[str, str]]) -> Conditions:
    found: dict[str, set[str]] = {}
    for key, value in pairs:
        _check(key, value)
        found.setdefault(key, set()).add(value)
    conditions = tuple((key, tuple(sorted(values))) for key, values in sorted(found.items()))
    if len(encode(conditions)) > TEXT_MAX:
        raise InvalidError(f"the conditions are longer than {TEXT_MAX} characters when they are stored.")
    return conditions


def _check(key: str, value: str) -> None:
    """Raise InvalidError for a condition that no metadata can fulfil (:func:`keepfit.identity.check_metadata`)."""
    shown = key[:SHOWN_MAX]
    if not key or key.startswith("$") or "." in key or key == "timestamp":
        raise InvalidError(
            f"{shown!r} is no key of metadata: it is empty, begins with '$', holds '.' or is 'timestamp'. Values "
            "inside other values cannot be compared."
        )
    for what, text in (("key", key), ("value", value)):
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidError(f"the {what} of the condition on {shown!r} holds something that is not text.")
        if not unicodedata.is_normalized("NFC", text):
            raise InvalidError(f"the {what} of the condition on {shown!r} is not in Unicode normal form C.")
    if key == "type" and not value:
        raise InvalidError("the type of a model is never empty.")


def encode(conditions: Conditions) -> str:
    """Return conditions in their stored form.

    >>> encode(parse(["brand=nike & co", "type=shoes"]))
    'brand=nike%20%26%20co+type=shoes'
    """
    return "+".join(f"{quote(key, safe='')}={quote(text, safe='')}" for key, texts in conditions for text in texts)


def decode(stored: str) -> Conditions:
    """Return the conditions of a stored form; raises as :func:`parse`.

    >>> decode("brand=nike%20%26%20co+type=shoes")
    (('brand', ('nike & co',)), ('type', ('shoes',)))
    """
    pairs: list[tuple[str, str]] = []
    for item in stored.split("+"):
        key, equals, value = item.partition("=")
        if not equals or not ENCODED.fullmatch(key) or not ENCODED.fullmatch(value):
            raise MalformedError(
                "conditions are key=value, joined by +, with all else but letters, digits and ._~- as %."
            )
        try:
            pairs.append((unquote(key, errors="strict"), unquote(value, errors="strict")))
        except UnicodeDecodeError:
            raise MalformedError("a percent-encoded character of a condition is not UTF-8.") from None
    return _checked(pairs)


def describe(conditions: Conditions) -> str:
    """Return conditions for a message.

    >>> describe(parse(["type=shoes", "brand=nike", "brand=puma"]))
    'brand=nike or puma, type=shoes'
    """
    return ", ".join(f"{key}={' or '.join(texts)}" for key, texts in conditions)

"""Comparisons: conditions on one value of a document, as `rows_seen>=1000` or `brand in nike,puma` state them.

Pure. Owns the operators that a query may use, their text and their form in Python. Invariants: an operator is one of
:data:`OPERATORS`, and never comes from a value or a name; ``!=``, ``not in`` and ``not exists`` select exactly the
documents that ``=``, ``in`` and ``exists`` do not.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keepfit.conditions import Scalar, possible_values, to_number
from keepfit.errors import InvalidError, MalformedError

ORDER = ("<", "<=", ">", ">=")
OPERATORS = ("=", "!=", *ORDER, "in", "not in", "exists", "not exists")
VALUES_MAX = 1_000
COMPARISONS_MAX = 32
TEXT_MAX = 4_096
SHOWN_MAX = 80

_QUOTED = r'"(?:[^"\\]|\\.)*"'
TEXT = re.compile(
    rf'\s*(?P<key>{_QUOTED}|[^\s"<>=!](?:[^"<>=!]*[^\s"<>=!])?)\s*'
    r"(?:(?P<sign><=|>=|!=|<|>|=)(?P<value>.*))?",
    re.DOTALL,
)
WORDS = re.compile(
    r"(?P<key>.*?\S)\s+(?:(?P<exists>(?:not\s+)?exists)|(?P<in>(?:not\s+)?in)\s+(?P<values>.*))", re.DOTALL
)
# Half of a character, which no database stores.
SURROGATE = re.compile("[\ud800-\udfff]")
WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
ITEM = re.compile(rf"\s*({_QUOTED}|[^,\"][^,]*)\s*(?:,|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The value of `key` compared with `values` by an `operator`, one of :data:`OPERATORS`.

    `in` has any number of values, `exists` none, ``=`` those that its text may stand for, the others one.
    """

    key: str
    operator: str
    values: tuple[Scalar, ...] = ()


def parse(text: str) -> Comparison:
    """Return the comparison that a text states.

    Names and values with special characters are written as JSON strings. A value in quotes is text, and never a number.

    >>> parse("rows_seen>=1000"), parse('brand in nike,"a, b"'), parse('"a<b" exists')
    ... # doctest: +NORMALIZE_WHITESPACE
    (Comparison(key='rows_seen', operator='>=', values=(1000.0,)),
     Comparison(key='brand', operator='in', values=('nike', 'a, b')),
     Comparison(key='a<b', operator='exists', values=()))

    Raises
    ------
    MalformedError
        If it is none; the message has the operators.
    InvalidError
        If it is too long, or there are too many values.
    """
    if len(text) > TEXT_MAX:
        raise InvalidError(f"A comparison has at most {TEXT_MAX:,} characters, not {len(text):,}.")
    named = WORDS.fullmatch(text)
    if named and _is_name(named["key"]):
        key = _name(named["key"].strip(), text)
        if named["exists"]:
            return Comparison(key, " ".join(named["exists"].split()))
        values = [value for item in _items(named["values"], text) for value in _values(item, text)]
        return Comparison(key, " ".join(named["in"].split()), _few(values))
    found = TEXT.fullmatch(text)
    if found is None or found["sign"] is None:
        raise MalformedError(_refusal(text))
    key, sign, value = _name(found["key"], text), found["sign"], found["value"].strip()
    if value.startswith(("<", ">", "=")):
        raise MalformedError(f"{_refusal(text)} A value that begins with {value[0]} is written in quotes.")
    if sign in ORDER:
        return Comparison(key, sign, (_ordered(value, text),))
    return Comparison(key, sign, tuple(_values(value, text)))


def of_mapping(key: str, given: Mapping[Any, Any]) -> Iterator[Comparison]:
    """Yield the comparisons of ``{">=": 3, "<": 5}``, of ``{"in": ["nike", "puma"]}``, or of ``{"exists": True}``.

    Raises
    ------
    InvalidError
        If an operator is unknown, or a value is not one that it compares; the message says what to write instead.
    """
    if not given:
        raise InvalidError(f"{key!r}: a comparison is {{operator: value}}, with one of {', '.join(OPERATORS)}.")
    for operator, value in given.items():
        if operator not in OPERATORS:
            raise InvalidError(f"{key!r}: {str(operator)[:SHOWN_MAX]!r} is not an operator: use {_cure(operator)}.")
        if operator in ("exists", "not exists"):
            if not isinstance(value, bool):
                raise InvalidError(f"{key!r}: {operator} takes True or False, not {value!r:.80}.")
            yield Comparison(key, "exists" if value == (operator == "exists") else "not exists")
        elif operator in ("in", "not in"):
            if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
                raise InvalidError(f"{key!r}: {operator} takes a list of values, not {value!r:.80}.")
            yield Comparison(key, operator, _few([to_value(key, each) for each in value]))
        else:
            scalar = to_value(key, value)
            if operator in ORDER and isinstance(scalar, bool):
                raise InvalidError(f"{key!r}: {operator} compares numbers or texts, not {value!r}.")
            yield Comparison(key, operator, (scalar,))


def to_value(key: str, given: Any) -> Scalar:
    """Return a value as it is compared; raise InvalidError if it is none that is."""
    value = given.item() if isinstance(given, np.generic) else given
    if isinstance(value, bool | float) or (isinstance(value, str) and not SURROGATE.search(value)):
        return value
    if isinstance(value, int) and (number := to_number(value)) is not None:
        return number
    raise InvalidError(f"{key!r}: a filter value must be a string, a number, true or false.")


def _few(values: list[Scalar]) -> tuple[Scalar, ...]:
    if not 1 <= len(values) <= VALUES_MAX:
        raise InvalidError(f"in compares with 1 to {VALUES_MAX:,} values, not {len(values):,}.")
    return tuple(values)


def _is_name(text: str) -> bool:
    """Return whether a text before `in` or `exists` is a name, and not a comparison whose value ends with that word."""
    found = TEXT.fullmatch(text)
    return found is not None and found["sign"] is None


def _name(text: str, whole: str) -> str:
    name = str(_unquoted(text, whole)) if text.startswith('"') else text
    if not name:
        raise MalformedError(_refusal(whole))
    return name


def _unquoted(text: str, whole: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, str) or SURROGATE.search(found):
        raise MalformedError(f"{whole[:SHOWN_MAX]!r}: {text[:SHOWN_MAX]} is not a JSON string.")
    return found


def _values(text: str, whole: str) -> list[Scalar]:
    return [_unquoted(text, whole)] if text.startswith('"') else possible_values(text)


def _ordered(text: str, whole: str) -> Scalar:
    if text.startswith('"'):
        return _unquoted(text, whole)
    if WHOLE.fullmatch(text) and (number := to_number(int(text))) is not None:
        return number
    return float(text) if NUMBER.fullmatch(text) else text


def _items(text: str, whole: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        found = ITEM.match(text, place)
        if found is None:
            raise MalformedError(f"{whole[:SHOWN_MAX]!r}: values of in are separated by commas: brand in nike,puma.")
        yield found[1].strip()
        place = found.end()


def _refusal(text: str) -> str:
    return (
        f"{text[:SHOWN_MAX]!r} is not a comparison: write brand=nike, brand!=nike, rows_seen>=1000 (or <, <=, >), "
        "'brand in nike,puma', 'brand not in nike', 'brand exists' or 'brand not exists'."
    )


# Names of operators in MongoDB's language, which users of funtime passed on, and what they are here.
_MONGO = {
    "$eq": "=", "$ne": "!=", "$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">=", "$in": "in", "$nin": "not in",
    "$exists": "exists",
}  # fmt: skip


def _cure(operator: object) -> str:
    known = _MONGO.get(operator) if isinstance(operator, str) else None
    return repr(known) if known else f"one of {', '.join(OPERATORS)}"

"""Syntax of request header fields (RFC 9110, 5): fields that occur once, lists, parameters, weights.

Owns how the lines of a field are read. Never decides what a value means. Invariant: a field with a single value is
used only if it occurs once: which of two values a proxy in front of the gateway used is unknown. aiohttp's parser
refuses two of Host, Content-Type and of what frames a body; :func:`single` reads the others.
"""

import re
from collections.abc import Iterator, Mapping

from multidict import CIMultiDict, CIMultiDictProxy

from keepfit.errors import MalformedError

Headers = CIMultiDictProxy[str] | CIMultiDict[str]

# Text between separators that are outside of quoted strings.
_ITEM = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"?)+')
_PARAMETER = re.compile(r'(?:[^";]|"(?:[^"\\]|\\.)*"?)+')
_WEIGHT = re.compile(r"q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def single(headers: Headers, name: str) -> str | None:
    """Return the value of a field that may occur once; None without it.

    Raises
    ------
    MalformedError
        If it occurs more than once, even with the same value.
    """
    if name not in headers:
        return None
    values = headers.getall(name)
    if len(values) > 1:
        raise MalformedError(f"The header {name} occurs {len(values)} times; send it once.")
    return values[0]


def items(headers: Headers, name: str) -> list[str]:
    """Return the items of a list field, from all its lines, without those that are empty."""
    return [item for line in headers.getall(name, ()) for item in split(line)]


def split(line: str) -> list[str]:
    """Return the items of one line of a list field, without those that are empty.

    >>> split('a="1, 2", , wait=5')
    ['a="1, 2"', 'wait=5']
    """
    return [item for each in _ITEM.findall(line) if (item := each.strip())]


def parameters(item: str) -> list[str]:
    """Return the value of a list item and its parameters.

    >>> parameters('foo="a;b" ; wait=5')
    ['foo="a;b"', 'wait=5']
    """
    return [part.strip() for part in _PARAMETER.findall(item)]


def weights(line: str) -> Mapping[str, float]:
    """Return the weights of the items of a line, by name in lower case; an item with an invalid weight is ignored.

    >>> weights("GZIP;q=0.5, zstd, br;q=x, *;q=0")
    {'gzip': 0.5, 'zstd': 1.0, '*': 0.0}
    """
    return dict(_weights(line))


def _weights(line: str) -> Iterator[tuple[str, float]]:
    for item in split(line):
        value, *rest = parameters(item) or [""]
        found = [_WEIGHT.fullmatch(each) for each in rest if each[:1] in "qQ"]
        if not found:
            yield value.lower(), 1.0
        elif found[0] is not None:
            yield value.lower(), float(found[0][1])

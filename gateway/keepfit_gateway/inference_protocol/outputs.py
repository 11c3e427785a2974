"""Predictions as tensors: the JSON that a worker, a cache or a scorer answers, as numbers or texts of one datatype.

Owns the choice of the datatype, and both forms of the values. Never computes a prediction. Invariant: the values of a
large answer are converted a hundred kilobytes at a time, so that they are never lists of Python as a whole and other
threads run in between. Long lists are cut where a value may end; a cut is right if each part is a list.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from keepfit.errors import InvalidError

STEP_BYTES = 128 * 1024
# The brackets before the first value that is not null.
BEGIN = re.compile(rb"\[(?:null,)*(\[*)")
NULL = type(None)
NOT_HERE = "ask /v1/models/{hash}/predict, whose JSON has it"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[Any]).decode


@dataclass(frozen=True, slots=True)
class Output:
    """The values of a tensor, row by row, in `pieces`: of its bytes, or of the items of a JSON list."""

    datatype: str
    shape: list[int]
    pieces: list[bytes]


@dataclass(slots=True)
class _Form:
    """What one pass over the values has found: their types, the number of rows, and the lengths of the lists in it."""

    types: set[type] = field(default_factory=set)
    rows: int = 0
    lengths: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))


def output_of(name: str, text: bytes, *, binary: bool, numeric: bool = False) -> Output:
    """Return the tensor of a JSON list, or of a list of lists; `numeric` if its values are numbers in any case.

    Raises
    ------
    InvalidError
        If no tensor can hold the values: lists of different lengths, or objects.
    """
    depth = len(BEGIN.match(text)[1])  # type: ignore[index]
    form = _Form()
    for items in _chunks(text, depth):
        _survey(name, items, depth, form)
    lengths = [*map(max, form.lengths[:depth])]
    datatype = "FP64" if numeric else _datatype(form.types)
    encode = _as_bytes if binary else _as_json
    pieces = [encode(datatype, _flat(items, lengths)) for items in _chunks(text, depth)]
    return Output(datatype, [form.rows, *lengths], pieces)


def _datatype(types: set[type]) -> str:
    """Return the datatype that holds values of these types.

    >>> _datatype({int}), _datatype({int, type(None)}), _datatype({bool}), _datatype({str, int})
    ('INT64', 'FP64', 'BOOL', 'BYTES')
    """
    if types == {int}:
        return "INT64"
    if types == {bool}:
        return "BOOL"
    return "FP64" if types <= {int, float, NULL} else "BYTES"


def _survey(name: str, items: list[Any], depth: int, form: _Form) -> None:
    """Add the types and lengths of some rows to `form`."""
    form.rows += len(items)
    values: Sequence[Any] = items
    for lengths in form.lengths[:depth]:
        lists = [value for value in values if value is not None]
        if any(type(value) is not list for value in lists):
            raise InvalidError(f"{name} has no tensor: some rows are lists and some are not; {NOT_HERE}.")
        lengths.update(map(len, lists))
        if len(lengths) > 1:
            raise InvalidError(f"{name} has no tensor: its lists differ in length; {NOT_HERE}.")
        if len(lists) < len(values):
            form.types.add(NULL)
        values = list(chain.from_iterable(lists))
    form.types.update(map(type, values))
    if form.types & {dict, list}:
        raise InvalidError(f"{name} has no tensor: its values have names or are nested; {NOT_HERE}.")


def _flat(items: list[Any], lengths: Sequence[int]) -> list[Any]:
    """Return the values of some rows in one list; a row that is null has null for each of its values."""
    for length in lengths:
        nulls = [None] * length
        items = list(chain.from_iterable([nulls if item is None else item for item in items]))
    return items


def _as_bytes(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        texts = [_text(value).encode() for value in values]
        return b"".join(chain.from_iterable((struct.pack("<I", len(text)), text) for text in texts))
    return np.array(values, {"INT64": "<i8", "BOOL": "?", "FP64": "<f8"}[datatype]).tobytes()


def _as_json(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        values = [_text(value) for value in values]
    return _encode(values)[1:-1]


def _text(value: Any) -> str:
    """Return a label as text: itself, or its JSON; a missing one is empty."""
    if type(value) is str:
        return value
    return "" if value is None else _encode(value).decode()


def _chunks(text: bytes, depth: int) -> Iterator[list[Any]]:
    """Yield the items of a JSON list in lists of about :data:`STEP_BYTES` of text."""
    if len(text) <= STEP_BYTES:
        yield _decode(text)
        return
    view, begin, end, separator = memoryview(text), 1, len(text) - 1, b"]" * depth + b","
    while begin < end:
        size = STEP_BYTES
        while True:
            part = view[begin : min(begin + size, end)].tobytes()
            cut = len(part) if begin + size >= end else part.rfind(separator) + depth
            items = _try_decode(part[:cut]) if cut > depth or cut == len(part) else None
            if items is not None:
                break
            size *= 2
        yield items
        begin += cut + 1


def _try_decode(part: bytes) -> list[Any] | None:
    try:
        return _decode(b"[%b]" % part)
    except (msgspec.MsgspecError, UnicodeError):
        return None

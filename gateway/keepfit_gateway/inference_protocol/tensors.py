"""Tensors of requests: the values of an input, from JSON or from the bytes after it.

Owns the datatypes of the protocol and both forms of their values (Open Inference Protocol v2, and its extension for
binary tensor data). Never knows the model. Invariants: the size of a tensor is compared with its shape before memory is
taken for it; numbers that were sent as bytes are read where they are. Inputs come from
:mod:`keepfit_gateway.inference_protocol.messages`; :mod:`keepfit_gateway.inference_protocol.rows` makes rows of them.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepfit.errors import InvalidError, MalformedError
from keepfit.rows.values import INTEGER_END, format_value
from keepfit_gateway.schemas import InputTensor

Array = NDArray[Any]

TEXT, BOOLEAN, BFLOAT = "BYTES", "BOOL", "BF16"
# Little-endian, as the protocol sends them. numpy has no bfloat16: it is the upper half of a float32.
DTYPES = {
    "BOOL": "u1",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "BF16": "<u2",
    "FP32": "<f4",
    "FP64": "<f8",
}
# Types of values in JSON; null is a missing value.
NULL = type(None)
JSON_TYPES = {name: {float, int, NULL} if name[:2] in ("FP", "BF") else {int, NULL} for name in DTYPES}
JSON_TYPES |= {TEXT: {str, NULL}, BOOLEAN: {bool, NULL}}
LENGTH = struct.Struct("<I")
# Equal texts of a tensor are one object, up to this number of different ones.
SHARED_TEXTS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input: `values` row by row, or `texts` in place of them, each None where it is missing.

    The values lie in `memory` from `offset` on.
    """

    name: str
    shape: tuple[int, ...]
    values: Array
    texts: list[str | None] | None = None
    memory: bytes | bytearray = b""
    offset: int = 0


def from_bytes(form: InputTensor, body: bytes | bytearray, start: int, end: int) -> Tensor:
    """Return the tensor whose values are the bytes of `body` from `start` to `end`, within the body.

    Raises
    ------
    MalformedError
        If the bytes are not as many as the shape needs, or not of the datatype.
    InvalidError
        If the tensor is empty, or a text is not UTF-8.
    """
    count = _count(form)
    if form.datatype == TEXT:
        texts: list[str | None] = [*_texts(form, body, start, end, count)]
        return Tensor(form.name, tuple(form.shape), np.empty(0), texts)
    dtype = np.dtype(DTYPES[form.datatype])
    if count * dtype.itemsize != end - start:
        raise MalformedError(
            f"input {_shown(form)}: {form.datatype} of the shape {form.shape} has {count * dtype.itemsize} bytes, and "
            f"binary_data_size is {end - start}."
        )
    values: Array = np.frombuffer(body, dtype, count, start)
    if form.datatype == BOOLEAN:
        if values.max() > 1:
            raise MalformedError(f"input {_shown(form)}: a BOOL is one byte, 0 or 1.")
        values = values.view(np.bool_)
    elif form.datatype == BFLOAT:
        return _owning(form, (values.astype("<u4") << 16).view("<f4"))
    return Tensor(form.name, tuple(form.shape), values, None, body, start)


def from_json(form: InputTensor, data: Sequence[Any]) -> Tensor:
    """Return the tensor with the values of a list, or of a list per row.

    Numbers with a missing one among them become float64, with NaN for it.

    Raises
    ------
    MalformedError
        If the values are not as many as the shape needs.
    InvalidError
        If the tensor is empty, or a value is not of the datatype.
    """
    values = _flat(form, data, _count(form))
    types = set(map(type, values))
    if not types <= JSON_TYPES[form.datatype]:
        number, wrong = next((i, v) for i, v in enumerate(values) if type(v) not in JSON_TYPES[form.datatype])
        raise InvalidError(f"input {_shown(form)}: {format_value(wrong)} is not {form.datatype} (element {number}).")
    if form.datatype == TEXT:
        return Tensor(form.name, tuple(form.shape), np.empty(0), list(values))
    try:
        return _owning(form, _array(form.datatype, values, has_missing=NULL in types))
    except OverflowError:
        raise InvalidError(f"input {_shown(form)}: a number is outside of the range of {form.datatype}.") from None


def _array(datatype: str, values: Sequence[Any], *, has_missing: bool) -> Array:
    if JSON_TYPES[datatype] >= {float}:
        # The type of a float is its precision: the value is the same as in binary form.
        with np.errstate(over="ignore"):
            return np.array(values, np.float64).astype("<f4" if datatype == BFLOAT else DTYPES[datatype])
    present = [0 if value is None else value for value in values] if has_missing else values
    array = np.array(present, np.bool_ if datatype == BOOLEAN else DTYPES[datatype])
    if not has_missing:
        return array
    if any(abs(value) >= INTEGER_END for value in present):
        raise OverflowError
    array = array.astype(np.float64)
    array[[i for i, value in enumerate(values) if value is None]] = np.nan
    return array


def _owning(form: InputTensor, values: Array) -> Tensor:
    """Return a tensor with values that are no part of the body."""
    memory = bytearray(values.tobytes())
    return Tensor(form.name, tuple(form.shape), np.frombuffer(memory, values.dtype), None, memory)


def _count(form: InputTensor) -> int:
    """Return the number of values, which Python counts without overflow."""
    count = math.prod(form.shape)
    if count == 0:
        raise InvalidError(f"input {_shown(form)}: there must be at least one row and one column.")
    return count


def _flat(form: InputTensor, data: Sequence[Any], count: int) -> Sequence[Any]:
    """Return the values of all rows in one list."""
    if any(type(item) is list for item in data):
        width = form.shape[1] if len(form.shape) > 1 else 0
        if len(data) != form.shape[0] or any(type(row) is not list or len(row) != width for row in data):
            raise MalformedError(f"input {_shown(form)}: the lists in data have another form than {form.shape}.")
        data = list(chain.from_iterable(data))
    if len(data) != count:
        raise MalformedError(
            f"input {_shown(form)}: the shape {form.shape} has {count} values, and data has {len(data)}."
        )
    return data


def _texts(form: InputTensor, body: bytes | bytearray, start: int, end: int, count: int) -> list[str]:
    """Return texts of which each follows its length in bytes, a little-endian uint32."""
    if count * LENGTH.size > end - start:
        raise MalformedError(
            f"input {_shown(form)}: {count} lengths alone have {count * LENGTH.size} bytes, and binary_data_size is "
            f"{end - start}."
        )
    texts: list[str] = []
    shared: dict[bytes, str] = {}
    for number in range(count):
        if end - start < LENGTH.size:
            raise MalformedError(f"input {_shown(form)}: the bytes end before element {number}.")
        (length,) = LENGTH.unpack_from(body, start)
        start += LENGTH.size
        if length > end - start:
            raise MalformedError(
                f"input {_shown(form)}: element {number} has {length} bytes, and {end - start} are left."
            )
        text = bytes(body[start : start + length])
        start += length
        found = shared.get(text)
        if found is None:
            try:
                found = text.decode()
            except UnicodeDecodeError:
                raise InvalidError(f"input {_shown(form)}: element {number} is not UTF-8 text.") from None
            if len(shared) < SHARED_TEXTS_MAX:
                shared[text] = found
        texts.append(found)
    if start != end:
        raise MalformedError(f"input {_shown(form)}: {end - start} bytes follow the last element.")
    return texts


def _shown(form: InputTensor) -> str:
    return format_value(form.name)

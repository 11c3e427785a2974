"""Scorers as bytes: a checksum, and msgpack with the bytes of each array.

Owns the form, and that reading it is safe: types, shapes, sizes and numbers are checked, no code is run, and what is
read takes no more memory than a small multiple of the bytes. Never reads a bundle. Invariant: a scorer that is decoded
answers every question with the bytes that the encoded one gives, because each array keeps its order in memory: matrix
products sum arrays of another order in another order. Scorers come from :mod:`keepfit.model.scorers` and go from
workers to gateways.
"""

import math
import zlib
from typing import Any

import msgspec
import numpy as np

from keepfit.errors import ScorerError
from keepfit.recipe.recipe import Recipe
from keepfit.rows.values import LITTLE_ENDIAN, Floats
from keepfit.scoring.scorer import Scorer
from keepfit.scoring.state import State

# A matrix has two dimensions.
DIMENSIONS_MAX = 2
# CRC-32 of the rest, most significant byte first.
CHECKSUM_BYTES = 4


def encode(state: State) -> bytes:
    """Return the state of a scorer as bytes.

    Raises
    ------
    ScorerError
        If it has an array that is not contiguous, or text that has no encoding.
    """
    try:
        data = _encode(state)
    except (ValueError, TypeError, OverflowError) as error:
        raise ScorerError(f"The scorer cannot be encoded: {error}.") from None
    return zlib.crc32(data).to_bytes(CHECKSUM_BYTES) + data


def decode(data: bytes, recipe: Recipe) -> Scorer:
    """Return the scorer that :func:`encode` wrote, for a model with `recipe`.

    Raises
    ------
    ScorerError
        If the bytes are not a scorer of such a model.
    """
    checksum, body = data[:CHECKSUM_BYTES], memoryview(data)[CHECKSUM_BYTES:]
    if zlib.crc32(body).to_bytes(CHECKSUM_BYTES) != checksum:
        raise ScorerError("The bytes of the scorer are damaged: their checksum is another one.")
    try:
        state = _decode(body)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ScorerError(f"The bytes are not a scorer: {error}.") from None
    state.check(recipe)
    return Scorer(state, recipe)


def _array_to_wire(array: Any) -> list[Any]:
    """Return an array as its bytes, its order in memory, and its shape."""
    if type(array) is not np.ndarray or array.dtype != np.float64:
        raise TypeError(f"{type(array).__name__} is not an array of numbers")
    if not 1 <= array.ndim <= DIMENSIONS_MAX or 0 in array.shape:
        raise ValueError(f"an array of the shape {array.shape} is not stored")
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise ValueError("an array is not contiguous")
    order = "C" if array.flags.c_contiguous else "F"
    return [array.astype(LITTLE_ENDIAN, copy=False).tobytes("A"), order, *array.shape]


def _array_from_wire(_: type, wire: Any) -> Floats:
    """Return the array that :func:`_array_to_wire` wrote, which cannot be written to."""
    if type(wire) is not list:
        raise ValueError("an array is a list")
    data, order, *shape = wire
    if not 1 <= len(shape) <= DIMENSIONS_MAX or type(data) is not bytes or order not in ("C", "F"):
        raise ValueError("an array has bytes, an order and a shape")
    if any(type(size) is not int or size < 1 for size in shape) or 8 * math.prod(shape) != len(data):
        raise ValueError("an array has another size than its shape")
    array: Floats = np.frombuffer(data, LITTLE_ENDIAN).astype(np.float64, copy=False)
    return array if len(shape) == 1 else array.reshape(shape, order=order)


_encode = msgspec.msgpack.Encoder(enc_hook=_array_to_wire).encode
_decode = msgspec.msgpack.Decoder(State, dec_hook=_array_from_wire).decode

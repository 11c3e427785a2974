"""When rows were accepted, and under which id: the last element of the payload of a learning request.

Owns the msgpack of this element, which gateways append to the array of the rows (:mod:`keepfit.rows.rows`,
:mod:`keepfit.rows.train_score_predict`), or of the rows with served predictions (:mod:`keepfit.rows.served`). Never
reads the rows. Invariant: what reads the rows does not see the element, and a payload without one, or with the id
alone, as release 0.1 wrote them, has no time. Inbox, dead letters and row log carry payloads unchanged, so a replay
knows the same times.
"""

import struct
import time
from collections.abc import Iterator
from typing import Protocol

import msgspec

from keepfit.rows.rows import Rows

# First bytes of payloads that may have the element: arrays of six and eight elements, and of nine with predictions.
FIRST_BYTES = (0x96, 0x98, 0x99)
# A time is the end of the element: a float64, behind its first byte.
FLOAT, FLOAT_BYTES = 0xCB, 9
# An array of the id and the time.
PAIR = 0x92

_encode = msgspec.msgpack.Encoder().encode
_elements = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_unpack = struct.Struct(">d").unpack


def now_s() -> float:
    """Return the seconds since 1970, to the millisecond."""
    return round(time.time(), 3)


def encode(accepted_s: float, request_id: str) -> bytes:
    """Return the element: the time (0.0: not known), and before it the id that the client gave its request, "" if none.

    >>> encode(0.0, "abc"), encode(1.5, "").hex(), encode(1.5, "abc").hex()
    (b'\\xa3abc', 'cb3ff8000000000000', '92a3616263cb3ff8000000000000')
    """
    if not accepted_s:
        return _encode(request_id)
    return _encode((request_id, accepted_s)) if request_id else _encode(accepted_s)


def append(payload: bytes, element: bytes) -> bytes:
    """Return an encoded array with one more element."""
    return bytes((payload[0] + 1,)) + payload[1:] + element


class Digest(Protocol):
    """A digest that is being computed."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add bytes."""


def pieces(rows: Rows, element: bytes, digest: Digest | None = None) -> Iterator[bytes | memoryview]:
    """Yield encoded rows with one more element in pieces (`element` b"": without one); the whole is never in memory.

    `digest` gets the bytes of the rows alone.
    """
    for number, piece in enumerate(rows.pieces()):
        if digest is not None:
            digest.update(piece)
        yield append(bytes(piece), b"") if element and not number else piece
    if element:
        yield element


def accepted_s(payload: bytes) -> float:
    """Return when the rows of a payload were accepted, in seconds since 1970; 0.0 if it does not say.

    >>> payload = Rows(1, bytes(8), []).encode()
    >>> [accepted_s(append(payload, encode(seconds, "abc"))) for seconds in (1.5, 0.0)], accepted_s(payload)
    ([1.5, 0.0], 0.0)
    """
    if len(payload) <= FLOAT_BYTES or payload[0] not in FIRST_BYTES or payload[-FLOAT_BYTES] != FLOAT:
        return 0.0
    # The same byte may belong to the numbers before a short id.
    last = memoryview(_elements(payload)[-1])
    found: float = _unpack(last[1 - FLOAT_BYTES :])[0] if last[0] in (FLOAT, PAIR) else 0.0
    return found


def request_id_of(payload: bytes) -> str:
    """Return the client's request id that is stored in a payload; "" if there is none, or the payload is unreadable."""
    try:
        decoded = msgspec.msgpack.decode(payload)
        *_, last = decoded.values() if isinstance(decoded, dict) else decoded
    except (msgspec.DecodeError, TypeError, ValueError):
        return ""
    if isinstance(last, list) and last and isinstance(decoded, list):
        last = last[0]
    return last if isinstance(last, str) else ""

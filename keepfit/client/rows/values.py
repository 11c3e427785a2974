"""Values of any library as JSON: numbers of numpy, times, missing values.

Pure. Never imports numpy or pandas: their values are recognised by what they can do. Invariant: an infinite number is
refused and never sent as a missing value.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from keepfit.errors import InvalidError

INFINITE = (float("inf"), float("-inf"))
# The missing values of pandas, which are singletons of these types.
MISSING = ("NAType", "NaTType")


def encode(value: Any) -> bytes:
    """Return a value as JSON; NaN, NaT and NA are null.

    >>> encode({"X": [[1, None, float("nan")]]})
    b'{"X":[[1,null,null]]}'

    Raises
    ------
    InvalidError
        For infinite numbers, and for values that JSON cannot have.
    """
    try:
        text = ENCODER.encode(value)
    except (TypeError, ValueError, NotImplementedError, RecursionError, OverflowError) as error:
        raise InvalidError(f"A value cannot be sent as JSON: {error}.") from None
    # Infinity is written as null, too.
    if b"null" in text:
        _refuse_infinite(value)
    return text


def _refuse_infinite(value: Any) -> None:
    if isinstance(value, Mapping):
        for one in value.values():
            _refuse_infinite(one)
    elif isinstance(value, list | tuple):
        for one in value:
            _refuse_infinite(one)
    elif isinstance(value, float):
        if value in INFINITE:
            raise InvalidError(f"{value} is not a finite number.")
    elif hasattr(value, "tolist"):
        _refuse_infinite(value.tolist())


def _plain(value: Any) -> Any:
    """Return a value that msgspec knows in place of one that it does not know."""
    if type(value).__name__ in MISSING:
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    # Before tolist, because a datetime64 gives a number of nanoseconds.
    if type(value).__name__ == "datetime64":
        return None if str(value) == "NaT" else str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(f"{type(value).__name__} is neither a number, a text, a boolean nor a time")


ENCODER = msgspec.json.Encoder(enc_hook=_plain, decimal_format="number")

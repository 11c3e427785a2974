"""Payloads of changes: of parameters, or of an object's code.

Owns how a pending request that is a change differs from one with rows. Never checks a change;
:mod:`keepfit.recipe.patch` and :mod:`keepfit.model.parameters` have. Invariant: the payload of a change is a msgpack
map, and that of rows an array. Changes come from :mod:`keepfit.store.inbox` and the row log.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from keepfit.recipe.patch import LEARN_AGAIN, STATE


def encode(params: Mapping[str, Any]) -> bytes:
    """Return the payload of a change.

    >>> params_of(encode({"alpha": 0.5}))
    {'alpha': 0.5}
    """
    return msgspec.msgpack.encode({"params": params})


def params_of(payload: bytes) -> dict[str, Any] | None:
    """Return what a pending request changes; None for rows and for the digest of rows."""
    if not is_change(payload):
        return None
    params: dict[str, Any] = msgspec.msgpack.decode(payload)["params"]
    return params


def is_change(payload: bytes) -> bool:
    """Return whether a pending request is a change; its first byte is enough."""
    return payload[:1] in (b"\x81", b"\x82")


def learns_again(payload: bytes) -> bool:
    """Return whether a pending request is a change of code after which all rows are learned again.

    >>> learns_again(encode({"object": "S0Yy", "state": "learn_again"})), learns_again(encode({"alpha": 0.5}))
    (True, False)
    """
    params = params_of(payload)
    return params is not None and params.get(STATE) == LEARN_AGAIN

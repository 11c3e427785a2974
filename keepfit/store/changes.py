"""Payloads of changes: of parameters, or of an object's code.

Owns how a pending request that is a change differs from one with rows. Never checks a change;
:mod:`keepfit.recipe.patch` and :mod:`keepfit.model.parameters` have. Invariant: the payload of a change is a msgpack
map, and that of rows an array. Changes come from :mod:`keepfit.store.inbox` and the row log.
"""

from collections.abc import Mapping
from typing import Any

import msgspec


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

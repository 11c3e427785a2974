"""The bound key of the request that is being answered: an API key for the models with certain metadata alone.

Owns the context variable that holds it, and the checks of metadata and hashes against it. Never reads Redis or MongoDB.
:mod:`keepfit_gateway.auth.guard` sets it, :class:`keepfit_gateway.model_lookup.ModelLookup` and everything that turns
metadata into a hash ask for it, so handlers need not. Invariant: while a request of a bound key is answered, also in
threads and tasks that it starts, the variable holds its key; for all other requests it holds None and costs nothing
more than its lookup.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from keepfit import identity
from keepfit.conditions import Conditions, describe
from keepfit.errors import ForbiddenError
from keepfit.security.api_keys import Key

_current: ContextVar[Key | None] = ContextVar("bound_key", default=None)


async def run(key: Key, handler: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    """Call `handler` for a request with this bound key."""
    token = _current.set(key)
    try:
        return await handler(request)
    finally:
        _current.reset(token)


def conditions() -> Conditions:
    """Return the conditions that restrict the present request; empty if it may see all models."""
    key = _current.get()
    return () if key is None else key.where


def is_set() -> bool:
    """Return whether the present request has a bound key."""
    return _current.get() is not None


def may_use(metadata: Mapping[str, Any]) -> bool:
    """Return whether there is a model with these metadata for the present request."""
    key = _current.get()
    return key is None or key.may_use(metadata)


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise ForbiddenError for metadata that the present request itself names and its key may not use."""
    key = _current.get()
    if key is not None and not key.may_use(metadata):
        raise ForbiddenError(
            f"The API key {key.name!r} is for models with {describe(key.where)}; these metadata do not have that."
        )


def hash_of_text(text: bytes, source: str = identity.BODY) -> str:
    """Return the hash of the metadata whose JSON is `text`, part of `source`, which the present request names.

    Raises
    ------
    MalformedError, InvalidError
        As :func:`keepfit.identity.hash_of_text` does.
    ForbiddenError
        If the key may not use models with these metadata, whether there is one or not.
    """
    found = identity.hash_of_text(text, source)
    if is_set():
        check_metadata(identity.parse_json(text))
    return found


def hash_of(metadata: dict[str, Any]) -> str:
    """Return the hash of metadata that the present request names; raises as :func:`hash_of_text`."""
    found = identity.hash_of(identity.check_metadata(metadata))
    check_metadata(metadata)
    return found

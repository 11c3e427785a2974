"""What each route permits to API keys that are bound to metadata.

Owns the check before the handler. Invariant: a route whose path names no model by its hash, and which does not say
otherwise, refuses bound keys, so that a new route shows them nothing; one whose path does is called only for models
that the key may use. docs/contributing/routes.md has the rules for a new route.
"""

from collections.abc import Awaitable, Callable

from aiohttp import web

from keepfit.conditions import describe
from keepfit.errors import ForbiddenError
from keepfit.security.api_keys import OPEN
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.handlers.inputs import HASH
from keepfit_gateway.routes.route import BOUND_FILTERED, BOUND_METADATA, BOUND_PATH, Route
from keepfit_gateway.service import SERVICE


def check_of(route: Route) -> Callable[[web.Request], Awaitable[None]] | None:
    """Return the check of a request with a bound key; None if the route needs none."""
    if route.needs == OPEN or route.bound in (BOUND_METADATA, BOUND_FILTERED):
        return None
    return check_path if route.bound == BOUND_PATH else refuse


async def check_path(request: web.Request) -> None:
    """Raise NotFoundError if the path names a model that does not exist for the key. A malformed hash names none."""
    model_hash = request.match_info["hash"]
    if HASH.fullmatch(model_hash):
        await request.app[SERVICE].models.check(model_hash)


async def refuse(request: web.Request) -> None:
    """Raise ForbiddenError."""
    key = request[CALLER]
    raise ForbiddenError(
        f"The API key {key.name!r} is for models with {describe(key.where)}; this call is about the whole service."
    )

"""The second form of each route about a model: metadata name the model instead of its hash.

Owns how one follows from the other, so that a new route has both. Never handles a request:
:func:`keepfit_gateway.handlers.inputs.named_hash` reads the name. Invariant: the two forms differ in the path, in the
place of the name and in nothing else.
"""

from collections.abc import Iterable
from dataclasses import replace

from keepfit_gateway import schemas
from keepfit_gateway.parameters import HASH, METADATA_INSTEAD, METADATA_NAME
from keepfit_gateway.routes.route import BOUND_METADATA, Route

BY_HASH = "/v1/models/{hash}"
# The path of a call without its prefix `/models/{hash}`; of the model itself this one.
MODEL = "/v1/model"


def with_routes_by_metadata(routes: Iterable[Route]) -> tuple[Route, ...]:
    """Return the routes, and for each that names a model by its hash the one by metadata, at the end."""
    given = tuple(routes)
    return (*given, *(_by_metadata(route) for route in given if route.path.startswith(BY_HASH)))


def _by_metadata(route: Route) -> Route:
    form = route.form
    if form is None and route.method == "POST":
        form = schemas.Call
    # Where a JSON body is required, the query need not name the model; then it has no example, or both would name it.
    in_query = METADATA_NAME if form is None else METADATA_INSTEAD
    return replace(
        route,
        path=f"/v1{rest}" if (rest := route.path.removeprefix(BY_HASH)) else MODEL,
        summary=f"{route.summary}, by metadata",
        form=None if form is None else schemas.with_metadata(form),
        errors=tuple(dict.fromkeys((*route.errors, *((408, 413, 415) if form is schemas.Call else ()), 400, 422))),
        own_parameters=(in_query, *(each for each in route.own_parameters if each is not HASH)),
        body_optional=route.body_optional or form is schemas.Call,
        bound_keys=BOUND_METADATA,
        by_metadata=True,
    )

"""The table of routes: method, path, handler, form and answers. The OpenAPI document is generated from it.

Owns no behaviour. Invariant: every path of the API is in this table, with the scope that it needs. The files that
pages load are no calls: they are in a list beside it.
"""

from collections.abc import Mapping

from keepfit.security.api_keys import OPEN
from keepfit_gateway import api_page, dashboard
from keepfit_gateway.handlers import api_page as page_handlers
from keepfit_gateway.handlers import dashboard as dashboard_handlers
from keepfit_gateway.routes import estimators, history, jobs, models, operation, protocol, rows, session, snapshots
from keepfit_gateway.routes.by_metadata import with_routes_by_metadata
from keepfit_gateway.routes.route import TAGS, Handler, Route
from keepfit_gateway.web.incoming import SERVER_PATH

__all__ = ["OPEN_PATHS", "PAGE_FILES", "ROUTES", "TAGS", "Handler", "Route", "methods_of_paths"]

ROUTES = with_routes_by_metadata(
    (
        *models.ROUTES,
        *estimators.ROUTES,
        *rows.ROUTES,
        *jobs.ROUTES,
        *snapshots.ROUTES,
        *history.ROUTES,
        *protocol.ROUTES,
        *operation.ROUTES,
        *session.ROUTES,
    )
)

# The files that pages load, by path.
PAGE_FILES: Mapping[str, Handler] = {
    **{f"/docs/{name}": page_handlers.file(name) for name in api_page.FILES},
    **{f"/dashboard/{name}": dashboard_handlers.file(name) for name in dashboard.FILES},
}


def methods_of_paths() -> dict[str, set[str]]:
    """Return the methods of each path: those of the table, HEAD beside GET, OPTIONS; of `SERVER_PATH` all of them."""
    methods: dict[str, set[str]] = {SERVER_PATH: {"OPTIONS"}}
    for route in ROUTES:
        of_path = {"GET", "HEAD", "OPTIONS"} if route.method == "GET" else {route.method, "OPTIONS"}
        methods.setdefault(route.path, set()).update(of_path)
        methods[SERVER_PATH] |= of_path
    return methods | {path: {"GET", "HEAD", "OPTIONS"} for path in PAGE_FILES}


# Paths without an API key: probes have none, and the description of the API is public.
OPEN_PATHS = frozenset(route.path for route in ROUTES if route.needs == OPEN) | PAGE_FILES.keys()

"""Sessions of browsers: their routes.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from keepfit.security.api_keys import OPEN
from keepfit_gateway import schemas
from keepfit_gateway.handlers import session
from keepfit_gateway.routes.route import BODY_ERRORS, BOUND_FILTERED, OPERATION, Route

ROUTES = (
    Route(
        "POST", "/v1/session", session.begin_session, OPERATION, "Begin a session",
        "Exchange an API key for a cookie, which stands for the key in requests of the gateway's own pages for 12 "
        "hours. Scripts cannot read it. A gateway without API keys sets none.",
        {200: schemas.CallerAnswer}, schemas.BeginSession, (*BODY_ERRORS, 401, 403, 503),
        headers={200: ("Set-Cookie", "Cache-Control")}, scope=OPEN,
    ),
    Route(
        "GET", "/v1/caller", session.show_caller, OPERATION, "Describe the caller",
        "Name and scopes of the API key or of the session.",
        {200: schemas.CallerAnswer}, errors=(503,), headers={200: ("Cache-Control",)}, bound_keys=BOUND_FILTERED,
    ),
    Route(
        "DELETE", "/v1/session", session.end_session, OPERATION, "End the session",
        "The browser forgets the cookie.",
        {204: None}, errors=(403, 503), headers={204: ("Set-Cookie", "Cache-Control")}, scope=OPEN,
    ),
)  # fmt: skip

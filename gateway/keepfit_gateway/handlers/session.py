"""Handlers of sessions: begin, describe, end.

Owns the cookie's attributes; :mod:`keepfit_gateway.auth.sessions` owns its content. Invariant: no script can read the
cookie, and browsers send it to this gateway's own pages alone.
"""

from aiohttp import hdrs, web

from keepfit.security.api_keys import OPEN
from keepfit_gateway import schemas
from keepfit_gateway.auth.guard import CALLER, GUARD
from keepfit_gateway.auth.sessions import COOKIE, SESSION_S, check_own_page
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.bodies import read_json
from keepfit_gateway.web.responses import json_response

BODY_BYTES_MAX = 4096
NOT_STORED: dict[str, str] = {hdrs.CACHE_CONTROL: "no-store"}


async def begin_session(request: web.Request) -> web.Response:
    """POST /v1/session: exchange an API key for a cookie."""
    document = await read_json(request, request.app[SERVICE].settings, BODY_BYTES_MAX)
    form = schemas.convert(document, schemas.BeginSession)
    key, session = await request[GUARD].begin_session(request, form.key)
    response = _answer(key.name, key.scopes, None if session is None else session.ends)
    if session is not None:
        response.set_cookie(
            COOKIE, session.cookie, max_age=SESSION_S, path="/", httponly=True, samesite="Strict",
            secure=_is_https(request),
        )  # fmt: skip
    return response


async def show_caller(request: web.Request) -> web.Response:
    """GET /v1/caller: who calls."""
    caller = request[CALLER]
    return _answer(caller.name, caller.scopes, request[GUARD].session_end(request))


async def end_session(request: web.Request) -> web.Response:
    """DELETE /v1/session: have the browser forget the cookie."""
    check_own_page(request)
    response = web.Response(status=204, headers=NOT_STORED)
    response.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict", secure=_is_https(request))
    return response


def _answer(name: str, scopes: frozenset[str], ends: int | None) -> web.Response:
    return json_response(schemas.CallerAnswer(name=name, scopes=sorted(scopes - {OPEN}), ends=ends), headers=NOT_STORED)


def _is_https(request: web.Request) -> bool:
    """Return whether the browser uses HTTPS. A client that lies about it restricts its own cookie alone."""
    return request.secure or request.headers.get(hdrs.X_FORWARDED_PROTO, "").lower() == "https"

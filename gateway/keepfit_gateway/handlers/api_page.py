"""Handlers of the API page and its files, and how files of pages are sent.

Owns their header fields; :mod:`keepfit_gateway.api_page` has the files. Invariants: the page runs under a policy that
permits the files of this gateway and calls of this gateway, nothing inside the page and nothing from elsewhere; a body
is sent in pieces, so that a client which does not read it costs no memory of its size.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import hdrs, web

from keepfit_gateway import api_page
from keepfit_gateway.api_page import PAGE, File
from keepfit_gateway.prediction.http_caching import matches
from keepfit_gateway.web import codings
from keepfit_gateway.web.responses import COMPRESSED_BYTES_MIN

# Swagger UI's style sheet has its images as data: URLs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# For addresses that name the content by its digest.
UNCHANGING = "public, max-age=31536000, immutable"


async def docs(request: web.Request) -> web.Response:
    """GET /docs: the page that shows the OpenAPI document."""
    return await respond(request, api_page.load, PAGE)


def file(name: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return the handler of a file that the page loads."""

    async def handle(request: web.Request) -> web.Response:
        return await respond(request, api_page.load, name)

    return handle


async def respond(request: web.Request, load: Callable[[], Mapping[str, File]], name: str) -> web.Response:
    """Return a file of a page, or a 304 if the client has it; `load` reads the files at its first call."""
    found = (await asyncio.to_thread(load))[name]
    etag = f'W/"{found.digest}"'
    headers = {
        **SECURITY,
        hdrs.ETAG: etag,
        hdrs.CACHE_CONTROL: UNCHANGING if request.query.get("v") == found.digest else "no-cache",
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
    }
    if matches(request.headers, etag):
        return web.Response(status=304, headers=headers)
    coding = codings.negotiate(request.headers, small=found.size_bytes < COMPRESSED_BYTES_MIN) or "identity"
    if coding != "identity":
        headers[hdrs.CONTENT_ENCODING] = coding
    headers[hdrs.CONTENT_TYPE] = f"{found.media_type}; charset=utf-8"
    return web.Response(body=io.BytesIO(await asyncio.to_thread(found.body, coding)), headers=headers)

"""Handlers of the dashboard and its files.

Owns nothing but which file is which; :mod:`keepfit_gateway.handlers.api_page` sends files of pages, under its policy.
"""

from collections.abc import Awaitable, Callable

from aiohttp import web

from keepfit_gateway import dashboard
from keepfit_gateway.handlers.api_page import respond


async def show_dashboard(request: web.Request) -> web.Response:
    """GET /: the page."""
    return await respond(request, dashboard.load, dashboard.PAGE)


def file(name: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return the handler of a file that the page loads."""

    async def handle(request: web.Request) -> web.Response:
        return await respond(request, dashboard.load, name)

    return handle

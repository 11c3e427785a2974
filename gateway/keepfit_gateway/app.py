"""The aiohttp application and its server.

Owns how the parts are put together and how they stop. Invariants: building the application connects to nothing; a
SIGTERM lets requests in hand finish.
"""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import uvloop
from aiohttp import web

from keepfit.errors import SettingsError
from keepfit.settings import Settings
from keepfit_gateway import fast_path, openapi, service
from keepfit_gateway.auth import guard
from keepfit_gateway.auth.guard import ApiKeyGuard
from keepfit_gateway.handlers.models import DOCUMENT
from keepfit_gateway.routes import OPEN_PATHS, ROUTES
from keepfit_gateway.web.bodies import ROOM, BodyMemoryLimit, leaves_room
from keepfit_gateway.web.connection import ProblemHandler
from keepfit_gateway.web.problems import problems
from keepfit_gateway.web.request_counts import count_requests
from keepfit_gateway.web.responses import compress_responses

log = structlog.get_logger(__name__)

# Waiting learners are sent home at once; this is for predictions in hand. aiohttp may wait this long twice, and whoever
# stops us (`keepfit up`, Kubernetes) kills after 30 s.
SHUTDOWN_S = 10.0
# Python's own begin a collection of garbage at every 700th new object; nearly all of a request's go by their own count.
GC_THRESHOLDS = (20_000, 20, 50)
HANDLER_OPTIONS: dict[str, Any] = {
    # Bodies are inflated here, with a limit and a check of their end; see `keepfit_gateway.web.bodies`.
    "auto_decompress": False,
    "access_log": None,
    # Longer than the 60 s that proxies keep idle connections for; aiohttp's own hour would let them pile up.
    "keepalive_timeout": 75.0,
}


def build_app(settings: Settings) -> web.Application:
    """Put the application together."""
    app = web.Application(middlewares=[leaves_room, compress_responses, problems])
    app[service.SETTINGS] = settings
    app[ROOM] = BodyMemoryLimit(settings.bodies_bytes_max)
    app[DOCUMENT] = openapi.document(ROUTES, keys=guard.requires_keys(settings))
    for route in ROUTES:
        handler = guard.require_scope(route.needs, route.handler)
        app.router.add_route(route.method, route.path, handler)
        if route.method == "GET":
            app.router.add_route("HEAD", route.path, handler)
    app.cleanup_ctx.append(service.lifespan)
    app.on_shutdown.append(service.release_waiters)
    return app


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """Serve while the block runs; gives the gateway's URL.

    Raises
    ------
    SettingsError
        If the address cannot be bound, or should not be without API keys; if the API keys cannot be read.
    """
    application = build_app(settings)
    async with ApiKeyGuard.opened(settings, OPEN_PATHS) as door, _listening(application, settings, door) as url:
        yield url


@asynccontextmanager
async def _listening(application: web.Application, settings: Settings, door: ApiKeyGuard) -> AsyncIterator[str]:
    runner = web.AppRunner(application, shutdown_timeout=SHUTDOWN_S, **HANDLER_OPTIONS)
    await runner.setup()
    loop = asyncio.get_running_loop()
    server: Any = runner.server
    here = application[service.SERVICE]
    short = fast_path.install_fast_path(here, server.request_handler)
    server.request_handler = count_requests(here.request_metrics, door.guard(short))

    def connection() -> ProblemHandler:
        return ProblemHandler(server, loop=loop, head_timeout_s=settings.body_timeout_s, **HANDLER_OPTIONS)

    try:
        try:
            listener = await loop.create_server(connection, settings.host, settings.port, backlog=1024)
        except OSError as error:
            raise SettingsError(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
        host, port, *_ = listener.sockets[0].getsockname()
        try:
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
        finally:
            listener.close()
    finally:
        await runner.cleanup()


async def serve(settings: Settings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called with the gateway's URL once it listens."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with serving(settings) as url:
        log.info("gateway_listening", url=url)
        # What is there by now stays, scikit-learn above all; no collection of garbage shall go through it again.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        ready(url)
        await stop.wait()
    log.info("gateway_stopped")


def run(settings: Settings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Run the gateway in this process."""
    uvloop.run(serve(settings, ready))

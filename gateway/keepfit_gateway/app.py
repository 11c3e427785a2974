"""The aiohttp application and its server.

Owns how the modules are assembled, and the shutdown. Invariants: building the application opens no connection; after a
SIGTERM requests that were accepted are finished.
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
from keepfit_gateway.handlers.operations import DOCUMENT
from keepfit_gateway.routes import OPEN_PATHS, ROUTES
from keepfit_gateway.web.bodies import BODY_MEMORY, BodyMemoryLimit, release_body_memory
from keepfit_gateway.web.connection import ProblemHandler
from keepfit_gateway.web.problems import problems
from keepfit_gateway.web.request_counts import count_requests
from keepfit_gateway.web.responses import compress_responses

log = structlog.get_logger(__name__)

# Requests that wait for a commit are released at once; this is for pending predictions. aiohttp may wait this long
# twice, and `keepfit up` and Kubernetes kill the process after 30 s.
SHUTDOWN_S = 10.0
# Python's default starts a garbage collection at every 700th new object; nearly all objects of a request are freed by
# reference counting.
GC_THRESHOLDS = (20_000, 20, 50)
HANDLER_OPTIONS: dict[str, Any] = {
    # `keepfit_gateway.web.bodies` inflates bodies, with a limit and a check of their end.
    "auto_decompress": False,
    "access_log": None,
    # Longer than the 60 s for which proxies keep idle connections; with aiohttp's default of an hour they accumulate.
    "keepalive_timeout": 75.0,
}


def build_app(settings: Settings) -> web.Application:
    """Assemble the application."""
    app = web.Application(middlewares=[release_body_memory, compress_responses, problems])
    app[service.SETTINGS] = settings
    app[BODY_MEMORY] = BodyMemoryLimit(settings.bodies_bytes_max)
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
    """Serve while the block runs; yields the URL of the gateway.

    Raises
    ------
    SettingsError
        If the address cannot be bound or must not be without API keys, or the API keys cannot be read.
    """
    application = build_app(settings)
    async with (
        ApiKeyGuard.opened(settings, OPEN_PATHS) as api_key_guard,
        _listening(application, settings, api_key_guard) as url,
    ):
        yield url


@asynccontextmanager
async def _listening(
    application: web.Application, settings: Settings, api_key_guard: ApiKeyGuard
) -> AsyncIterator[str]:
    runner = web.AppRunner(application, shutdown_timeout=SHUTDOWN_S, **HANDLER_OPTIONS)
    await runner.setup()
    loop = asyncio.get_running_loop()
    server: Any = runner.server
    opened = application[service.SERVICE]
    handler = fast_path.install_fast_path(opened, server.request_handler)
    server.request_handler = count_requests(opened.request_metrics, api_key_guard.guard(handler))

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
    """Serve until SIGTERM or SIGINT; `ready` is called with the URL of the gateway when it listens."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with serving(settings) as url:
        log.info("gateway_listening", url=url)
        # What is allocated by now stays: exclude it from garbage collections.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        ready(url)
        await stop.wait()
    log.info("gateway_stopped")


def run(settings: Settings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Run the gateway in this process."""
    uvloop.run(serve(settings, ready))

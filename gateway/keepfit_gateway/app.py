"""The aiohttp application and its server.

Owns how the modules are assembled, and the shutdown. Invariants: building the application opens no connection; after a
SIGTERM requests whose head has arrived are answered, within `SHUTDOWN_S`.
"""

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import structlog
import uvloop
from aiohttp import web

from keepfit.backends import addresses
from keepfit.observability.process_counts import Parts, ProcessCounts
from keepfit.security.api_keys import OPEN
from keepfit.settings import Settings
from keepfit.settings_check import requires_keys
from keepfit_gateway import fast_path, metrics, openapi, service
from keepfit_gateway.access_log import log_request
from keepfit_gateway.auth import guard
from keepfit_gateway.auth.guard import ApiKeyGuard
from keepfit_gateway.bound_routes import check_of
from keepfit_gateway.handlers.operations import DOCUMENT, options
from keepfit_gateway.immediate import ImmediateAnswers, NoImmediateAnswers
from keepfit_gateway.memory import return_freed_blocks, return_holes
from keepfit_gateway.routes import OPEN_PATHS, PAGE_FILES, ROUTES, Handler, Route, methods_of_paths
from keepfit_gateway.shared_port import SharedPort
from keepfit_gateway.web.bodies import BODY_MEMORY, BodyMemoryLimit
from keepfit_gateway.web.connection import ProblemHandler, limit_unread_answers
from keepfit_gateway.web.incoming import request_factory
from keepfit_gateway.web.open_connections import raise_file_limit
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
# A thread that computes gives Python's global lock to the event loop after this time; Python's default is 5 ms.
SWITCH_INTERVAL_S = 0.001
# Connections that the kernel holds until they are accepted, for each process.
BACKLOG = 1024
HANDLER_OPTIONS: dict[str, Any] = {
    # `keepfit_gateway.web.bodies` inflates bodies, with a limit and a check of their end.
    "auto_decompress": False,
    "access_log": None,
    # Longer than the 60 s for which proxies keep idle connections; with aiohttp's default of an hour they accumulate.
    "keepalive_timeout": 75.0,
}


class Place(NamedTuple):
    """What a process shares with the others of its gateway: the port, and memory for what they count."""

    port: SharedPort
    parts: Parts


def build_app(settings: Settings, parts: Parts | None = None) -> web.Application:
    """Assemble the application."""
    app = web.Application(middlewares=[compress_responses, problems])
    app[service.SETTINGS] = settings
    app[service.PARTS] = parts or Parts(ProcessCounts())
    app[BODY_MEMORY] = BodyMemoryLimit(settings.bodies_bytes_max)
    app[DOCUMENT] = openapi.document(ROUTES, keys=requires_keys(settings))
    served = [(route.method, route.path, _guarded(route)) for route in ROUTES]
    served += [("GET", path, guard.require_scope(OPEN, handler)) for path, handler in PAGE_FILES.items()]
    for method, path, handler in served:
        app.router.add_route(method, path, handler)
        if method == "GET":
            app.router.add_route("HEAD", path, handler)
    for path, methods in methods_of_paths().items():
        app.router.add_route("OPTIONS", path, guard.require_scope(OPEN, options(methods)))
    app.cleanup_ctx.append(service.lifespan)
    app.cleanup_ctx.append(metrics.publishing)
    app.on_shutdown.append(service.release_waiters)
    return app


def _guarded(route: Route) -> Handler:
    """Return the handler of a route, restricted to callers with its scopes."""
    handler = guard.require_scope(route.needs, route.handler, check_of(route))
    return handler if route.also_needs is None else guard.require_scope(route.also_needs, handler)


@asynccontextmanager
async def serving(settings: Settings, place: Place | None = None) -> AsyncIterator[str]:
    """Serve while the block runs, by default as the only process of the gateway; yields the URL of the gateway.

    Raises
    ------
    SettingsError
        If the address cannot be bound or must not be without API keys, or the API keys cannot be read.
    """
    application = build_app(settings, None if place is None else place.parts)
    async with (
        ApiKeyGuard.opened(settings, OPEN_PATHS) as api_key_guard,
        _listening(application, settings, api_key_guard, None if place is None else place.port) as url,
    ):
        yield url


@asynccontextmanager
async def _listening(
    application: web.Application, settings: Settings, api_key_guard: ApiKeyGuard, port: SharedPort | None
) -> AsyncIterator[str]:
    runner = web.AppRunner(application, shutdown_timeout=SHUTDOWN_S, **HANDLER_OPTIONS)
    await runner.setup()
    loop = asyncio.get_running_loop()
    server: Any = runner.server
    opened = application[service.SERVICE]
    memory = application[BODY_MEMORY]
    handler = fast_path.install_fast_path(opened, memory, server.request_handler)
    server.request_factory = request_factory(server.request_factory)
    opened.request_metrics.set_routes(methods_of_paths())
    immediate = NoImmediateAnswers() if settings.access_log else ImmediateAnswers(opened, api_key_guard)
    note = log_request if settings.access_log else None
    server.request_handler = count_requests(opened.request_metrics, api_key_guard.guard(handler), note)

    def connection() -> ProblemHandler:
        return ProblemHandler(
            server,
            loop=loop,
            head_timeout_s=settings.head_timeout_s,
            memory=memory,
            metrics=opened.request_metrics,
            connections=opened.connections,
            immediate=immediate,
            **HANDLER_OPTIONS,
        )

    try:
        servers = await _listen(connection, settings, port)
        sockets = [listener for each in servers for listener in each.sockets]
        limit_unread_answers(sockets, settings.answer_timeout_s)
        host, number, *_ = sockets[0].getsockname()
        try:
            yield addresses.http_url(host, number)
        finally:
            for each in servers:
                each.close()
    finally:
        await runner.cleanup()


async def _listen(
    connection: Callable[[], ProblemHandler], settings: Settings, port: SharedPort | None
) -> list[asyncio.Server]:
    """Listen on the address of the settings, or on a port that several processes share."""
    loop = asyncio.get_running_loop()
    try:
        if port is None:
            return [await loop.create_server(connection, settings.host, settings.port, backlog=BACKLOG)]
        return [await loop.create_server(connection, sock=each, backlog=BACKLOG) for each in port.listeners()]
    except (OSError, UnicodeError) as error:
        raise addresses.listen_error(settings.host, settings.port, error) from None


async def serve(
    settings: Settings, ready: Callable[[str], None] = lambda url: None, place: Place | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called with the URL of the gateway when it listens.

    A process with a `place` serves until SIGTERM; its supervisor handles both signals, and logs for all processes.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT) if place is None else (signal.SIGTERM,):
        loop.add_signal_handler(signum, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return_freed_blocks()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with serving(settings, place) as url:
        if place is None:
            log.info("gateway_listening", url=url)
        # What is allocated by now stays: exclude it from garbage collections.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        ready(url)
        returning = asyncio.create_task(return_holes())
        await stop.wait()
        returning.cancel()
    if place is None:
        log.info("gateway_stopped")


def run(settings: Settings, ready: Callable[[str], None] = lambda url: None, place: Place | None = None) -> None:
    """Run the gateway in this process, as its only one or at a `place` among others."""
    raise_file_limit()
    uvloop.run(serve(settings, ready, place))

"""The aiohttp application and its server.

Owns how the parts are put together and how they stop. Invariants: building the application connects to nothing; a
SIGTERM lets requests in hand finish.
"""

import asyncio
import signal
from collections.abc import Callable

import structlog
import uvloop
from aiohttp import web

from gateway import openapi, service
from gateway.body import gzip_answers
from gateway.handlers import DOCUMENT
from gateway.problems import ProblemHandler, problems
from gateway.routes import ROUTES
from keepfit.envelope import Keyring
from keepfit.errors import SettingsError
from keepfit.settings import Settings

log = structlog.get_logger(__name__)

SHUTDOWN_S = 15.0


def build_app(settings: Settings) -> web.Application:
    """Put the application together."""
    # Gateways sign nothing, but one without keys beside workers that have them is a mistake worth telling at the start.
    Keyring.from_text(settings.signing_keys.get_secret_value())
    app = web.Application(middlewares=[gzip_answers, problems])
    app[service.SETTINGS] = settings
    app[DOCUMENT] = openapi.document(ROUTES)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    app.cleanup_ctx.append(service.lifespan)
    return app


async def serve(settings: Settings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called with the gateway's URL once it listens.

    Raises
    ------
    SettingsError
        If the address cannot be bound.
    """
    # Bodies are inflated here, with a limit and a check of their end; see `gateway.body`.
    options = {"auto_decompress": False, "access_log": None}
    runner = web.AppRunner(build_app(settings), **options)  # type: ignore[arg-type]
    await runner.setup()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    try:
        try:
            server = await loop.create_server(
                lambda: ProblemHandler(runner.server, loop=loop, **options),  # type: ignore[arg-type]
                settings.host,
                settings.port,
                backlog=1024,
            )
        except OSError as error:
            raise SettingsError(f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
        host, port, *_ = server.sockets[0].getsockname()
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("gateway_listening", url=url)
        ready(url)
        await stop.wait()
        server.close()
    finally:
        await runner.cleanup()
        log.info("gateway_stopped")


def run(settings: Settings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Run the gateway in this process."""
    uvloop.run(serve(settings, ready))

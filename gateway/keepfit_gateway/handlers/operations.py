"""Handlers of operation: probes, workers, metrics, and the OpenAPI document.

Owns the translation between HTTP and :mod:`keepfit_gateway.health` and :mod:`keepfit_gateway.metrics`, nothing else.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from aiohttp import hdrs, web

from keepfit_gateway import health, metrics, schemas
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.problems import SEES_REASONS
from keepfit_gateway.web.responses import json_response

# What callers without an admin key read instead of a reason, which may name addresses, paths and hashes.
FAILS = "fails"
DOCUMENT = web.AppKey("openapi", dict[str, Any])


async def livez(request: web.Request) -> web.Response:
    """GET /livez: the process responds."""
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: whether this gateway can learn and predict; other failures are reported with a 200."""
    answer = ready_answer(request, await health.probe(request.app[SERVICE]))
    return json_response(answer, 503 if answer.status == "unavailable" else 200)


def ready_answer(request: web.Request, dependencies: health.Dependencies) -> schemas.Ready:
    """Return the state of the dependencies, with reasons for callers who may see them."""
    with_reason = request.get(SEES_REASONS, False)

    def state(found: str) -> str:
        return found if found == health.OK or with_reason else FAILS

    return schemas.Ready(
        status=dependencies.status,
        redis=state(dependencies.store),
        queue=state(dependencies.queue),
        mongo=state(dependencies.mongo),
        snapshots=state(dependencies.snapshots),
        workers=dependencies.workers.alive,
        row_log=msgspec.UNSET if dependencies.row_log is None else state(dependencies.row_log),
        detail=dependencies.detail or msgspec.UNSET,
    )


async def list_workers(request: web.Request) -> web.Response:
    """GET /v1/workers: each worker that is alive."""
    found = await request.app[SERVICE].queues.worker_records()
    return json_response({"workers": [dataclasses.asdict(worker) for worker in found]})


async def show_metrics(request: web.Request) -> web.Response:
    """GET /metrics: the metrics of this gateway in the text format of Prometheus."""
    service = request.app[SERVICE]
    text = await asyncio.to_thread(metrics.exposition, service, await health.probe(service))
    return web.Response(body=text, headers={"Content-Type": metrics.MEDIA_TYPE})


def options(methods: Iterable[str]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return the handler of OPTIONS of a path that supports these `methods`."""
    allowed = ", ".join(sorted(methods))

    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=204, headers={hdrs.ALLOW: allowed})

    return handle


async def openapi(request: web.Request) -> web.Response:
    """GET /openapi.json: the OpenAPI document of this API."""
    return json_response(request.app[DOCUMENT])

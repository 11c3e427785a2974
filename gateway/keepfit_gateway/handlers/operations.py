"""Handlers of operation: probes, metrics, and the OpenAPI document.

Owns the translation between HTTP and :mod:`keepfit_gateway.health` and :mod:`keepfit_gateway.metrics`, nothing else.
"""

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from keepfit_gateway import health, metrics, schemas
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.responses import json_response

DOCUMENT = web.AppKey("openapi", dict[str, Any])


async def livez(request: web.Request) -> web.Response:
    """GET /livez: the process responds."""
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: whether this gateway can learn and predict; other failures are reported with a 200."""
    dependencies = await health.probe(request.app[SERVICE])
    answer = schemas.Ready(
        status=dependencies.status,
        redis=dependencies.store,
        queue=dependencies.queue,
        mongo=dependencies.mongo,
        snapshots=dependencies.snapshots,
        workers=dependencies.workers,
        row_log=msgspec.UNSET if dependencies.row_log is None else dependencies.row_log,
    )
    return json_response(answer, 503 if dependencies.status == "unavailable" else 200)


async def show_metrics(request: web.Request) -> web.Response:
    """GET /metrics: the metrics of this gateway in the text format of Prometheus."""
    service = request.app[SERVICE]
    text = await asyncio.to_thread(metrics.exposition, service, await health.probe(service))
    return web.Response(body=text, headers={"Content-Type": metrics.MEDIA_TYPE})


async def openapi(request: web.Request) -> web.Response:
    """GET /openapi.json: the OpenAPI document of this API."""
    return json_response(request.app[DOCUMENT])

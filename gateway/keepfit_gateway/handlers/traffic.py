"""Handler of the traffic of one model: rows in and out, predictions by source and their latency, of all gateways.

Owns nothing but the answer; :mod:`keepfit.jobs.traffic` reads the counts and sums them. Changes nothing.
"""

from aiohttp import web

from keepfit.jobs import traffic
from keepfit_gateway import schemas
from keepfit_gateway.handlers.inputs import model_hash_of
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.responses import json_response


async def show_traffic(request: web.Request) -> web.Response:
    """GET …/traffic: the traffic of a model in the last minute."""
    service, model_hash = request.app[SERVICE], await model_hash_of(request)
    model = await service.models.find(model_hash)
    counts = (await service.queues.traffic([model.hash]))[model.hash]
    return json_response(schemas.ModelTraffic(hash=model.hash, **traffic.describe(counts)))

"""Handler of the learning curve of a model.

Owns the query parameters, and the condition under which a client has the newest answer. Never reads a bundle: workers,
which have the keys, do. Invariant: an answer is the curve of the version that it names.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import hdrs, web

from keepfit.errors import MalformedError
from keepfit.jobs.messages import CurveOptions, WorkerReply
from keepfit.store.models import Model
from keepfit_gateway.handlers.inputs import METADATA, model_hash_of, timeout_parameter
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.http_caching import Reply
from keepfit_gateway.service import SERVICE, Service

PARAMETERS = ("metric", "since_rows", "timeout")
ROWS = re.compile(r"[0-9]{1,15}")
NAME = re.compile(r"[a-z0-9_]{1,64}")
METRICS_MAX = 16
# Memory of the JSON of a curve with all points.
ANSWER_BYTES = 512 * 1024


async def show_curve(request: web.Request) -> web.Response:
    """GET …/curve: the learning curve of the live version."""
    service, options, timeout_s = request.app[SERVICE], parameters(request), timeout_parameter(request)
    model_hash = await model_hash_of(request)
    # Restores a model that Redis lost.
    model = await service.models.describe(model_hash)
    key = hashlib.blake2b(msgspec.msgpack.encode((model_hash, "curve", options))).digest()
    etag = http_caching.etag_of(key, model.generation, model.version)
    if request.headers.get(hdrs.IF_NONE_MATCH, "").strip() != "*" and http_caching.matches(request.headers, etag):
        return http_caching.respond(request.headers, Reply(etag, b""))
    reply = await service.models.run(model_hash, partial(_ask, service, options, timeout_s))
    etag = http_caching.etag_of(key, reply.generation, reply.version)
    # An object with the other fields.
    rest = reply.result[1:]
    body = b'{"hash":"%b","version":%d,"rows_seen":%d,%b' % (model_hash.encode(), reply.version, reply.rows_seen, rest)
    return http_caching.respond(request.headers, Reply(etag, body))


async def _ask(service: Service, options: CurveOptions, timeout_s: float | None, model: Model) -> WorkerReply:
    """Ask a worker; many at a time take turns, because answers may be large."""
    timeout_s = service.settings.predict_timeout_s if timeout_s is None else timeout_s
    async with service.answers.turn(ANSWER_BYTES, timeout_s) as left_s:
        return await service.queues.ask(model.hash, "curve", model.generation, timeout_s=left_s, curve=options)


def parameters(request: web.Request) -> CurveOptions:
    """Return what the query parameters ``metric`` and ``since_rows`` ask for.

    Raises
    ------
    MalformedError
        If one of them occurs twice or has another form, or there is a parameter of another name.
    """
    query = request.query
    unknown = [name for name in query if name not in (*PARAMETERS, METADATA)]
    if unknown:
        raise MalformedError(f"The only query parameters are {', '.join(PARAMETERS)}; {unknown[0]!r} is none.")
    since, metric = (query.getall(name, []) for name in ("since_rows", "metric"))
    if len(since) > 1 or len(metric) > 1:
        raise MalformedError("metric and since_rows must occur once.")
    if since and not ROWS.fullmatch(since[0]):
        raise MalformedError("since_rows must be an integer from 0 on: a number of rows.")
    return CurveOptions(_names(metric), int(since[0]) if since else 0)


def _names(values: Sequence[str]) -> tuple[str, ...]:
    if not values:
        return ()
    names = values[0].split(",")
    if len(names) > METRICS_MAX or not all(map(NAME.fullmatch, names)):
        raise MalformedError(
            f"metric must be names of metrics, separated by commas, at most {METRICS_MAX}: metric=accuracy,f1."
        )
    return tuple(sorted(set(names)))

"""The fast path of small requests to learn and predict, ahead of aiohttp's routing and middlewares.

Owns which requests take it: small JSON bodies without special header fields, sent to the four paths with the most
requests, with an API key that has the scope. Never does what the regular path does not: it calls the same functions.
Invariant: every other request goes to the regular path unchanged, including its body.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_request import BaseRequest

from keepfit.jobs.traffic import KEPT
from keepfit.security.api_keys import LEARN, PREDICT
from keepfit_gateway import schemas
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.handlers.learning import accept_rows
from keepfit_gateway.handlers.prediction import answer_here, predict_rows, question_of
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.http_caching import Reply
from keepfit_gateway.service import Service
from keepfit_gateway.web import rows_body
from keepfit_gateway.web.bodies import BodyMemoryLimit
from keepfit_gateway.web.fields import Headers
from keepfit_gateway.web.incoming import expects_continue
from keepfit_gateway.web.parsed_rows import ParsedRows
from keepfit_gateway.web.problems import to_problem
from keepfit_gateway.web.responses import COMPRESSED_BYTES_MIN, compress, encode_json
from keepfit_gateway.web.small_body import BODY_BYTES_MAX, is_plain, peek
from keepfit_gateway.web.small_response import SmallResponse

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]

PATH = re.compile(r"/v1/(?:models/([0-9a-f]{64})/)?(predict|partial_fit)")
# Time for a body that follows right after its head; the regular path has the limits for slower ones.
BODY_WAIT_S = 0.05


def install_fast_path(service: Service, memory: BodyMemoryLimit, handler: Handler) -> Handler:
    """Return a handler that answers small requests itself and passes all others to `handler`."""

    async def handle(request: BaseRequest) -> Any:
        path = PATH.fullmatch(request.raw_path)
        if path is None or not is_plain(request.method, request.headers):
            return await handler(request)
        answer, scope = ANSWERS[path[2]]
        caller = request[CALLER]
        if scope not in caller.scopes or (caller.where and not _may_use(service, path[1])):
            # Unauthorized requests fall through to the regular path, which answers 401, 403 or 404.
            return await handler(request)
        body = peek(request.content) if request.content.is_eof() or await _arrives_soon(request) else None
        if body is None:
            return await handler(request)
        try:
            response = await answer(service, request, path[1], body)
            if response is None:
                return await handler(request)
            if not isinstance(response, SmallResponse):
                await compress(memory, request, response)
        except Exception as error:  # noqa: BLE001 - converted to a response
            problem = to_problem(request, error)
            await compress(memory, request, problem)
            return problem
        return response

    return handle


def _may_use(service: Service, model_hash: str | None) -> bool:
    """Return whether a bound key is known to permit the model: kept answers are found before the model is looked up."""
    return model_hash is not None and service.models.cached(model_hash) is not None


async def _predict(service: Service, request: BaseRequest, model_hash: str | None, body: bytes) -> Any:
    """Answer as :func:`~keepfit_gateway.handlers.prediction.predict`; a repeated body is not parsed. None: do not."""
    begun_s, headers, raw = time.perf_counter(), request.headers, (request.raw_path, body)
    control = http_caching.cache_control(headers)
    cached = service.cache.find_raw(raw, control.age_s_max) if control.use_cached else None
    if cached is not None:
        service.traffic.predicted(cached.watched.model_hash, KEPT, cached.rows, time.perf_counter() - begun_s)
        return _prediction(headers, Reply(cached.etag, cached.body, service.cache.age_s(cached)))
    rows = rows_body.parse(body, schemas.Predict if model_hash else schemas.PredictByMetadata, model_hash)
    if isinstance(rows, ParsedRows) and rows.ids is not None:
        # Such rows are kept before they are answered, which the regular path does.
        return None
    model, question = service.models.cached(rows.model_hash), None
    if model is not None:
        # Most requests end here, and take no more steps than that needs.
        question = question_of(model, rows)
        reply = answer_here(service, question, headers, control, raw)
        if reply is not None:
            service.traffic.predicted(model.hash, reply.source, reply.rows, time.perf_counter() - begun_s)
            return _prediction(headers, reply)
    reply = await service.models.run(
        rows.model_hash,
        lambda model: predict_rows(service, model, rows, headers, control, raw, question=question),
    )
    return _prediction(headers, reply)


async def _learn(service: Service, request: BaseRequest, model_hash: str | None, body: bytes) -> SmallResponse:
    """Answer as :func:`~keepfit_gateway.handlers.learning.partial_fit`."""
    rows = rows_body.parse(body, schemas.PartialFit if model_hash else schemas.PartialFitByMetadata, model_hash)
    accepted = await service.models.run(rows.model_hash, lambda model: accept_rows(service, model, rows, None))
    return SmallResponse(202, encode_json(accepted))


def _prediction(headers: Headers, reply: Reply) -> SmallResponse | web.Response:
    if len(reply.body) >= COMPRESSED_BYTES_MIN:
        return http_caching.respond(headers, reply)
    age = "" if reply.age_s is None else f"Age: {int(reply.age_s)}\r\n"
    status = f"Cache-Status: {reply.cache_status}\r\n" if reply.cache_status else ""
    fields = f"Cache-Control: no-cache\r\nVary: Accept-Encoding\r\nETag: {reply.etag}\r\n{age}{status}"
    return SmallResponse(200, reply.body, fields)


ANSWERS = {"predict": (_predict, PREDICT), "partial_fit": (_learn, LEARN)}


async def _arrives_soon(request: BaseRequest) -> bool:
    """Wait a moment for the rest of a small body; return whether it has arrived."""
    length = request.content_length
    if length is None or length > BODY_BYTES_MAX or expects_continue(request):
        return False
    try:
        async with asyncio.timeout(BODY_WAIT_S):
            await request.content.wait_eof()
    except (TimeoutError, ConnectionError, web.RequestPayloadError):
        return False
    return True

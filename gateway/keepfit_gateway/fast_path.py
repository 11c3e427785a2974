"""The short way of small requests to learn and predict, ahead of aiohttp's routing and middlewares.

Owns which requests may take it: JSON of a few KiB that comes whole, to the four addresses that are asked most, about
models that this gateway knows, with a key that may. Never does what the long way would not: it calls the same
functions. Invariant: what it does not understand goes the long way untouched, body and all.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.streams import StreamReader
from aiohttp.web_request import BaseRequest
from multidict import istr

from keepfit.errors import NotFoundError, StaleModelError
from keepfit.jobs.messages import Operation
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.security.api_keys import LEARN, PREDICT
from keepfit.store.inbox import Accepted
from keepfit.store.models import Model
from keepfit_gateway import schemas
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.handlers.prediction import CachedReply, encode, predicted
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.cache import key_of
from keepfit_gateway.service import Service
from keepfit_gateway.web import fast_json
from keepfit_gateway.web.problems import to_problem
from keepfit_gateway.web.responses import GZIP_BYTES_MIN
from keepfit_gateway.web.small_response import SmallResponse

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]

ADDRESS = re.compile(r"/v1/(?:models/([0-9a-f]{64})/)?(predict|partial_fit)")
BODY_BYTES_MAX = 4096
# For bodies that come right behind their heads; a slower one goes the long way, which has the limits for that.
PATIENCE_S = 0.05
PREFER, IDEMPOTENCY_KEY = istr("Prefer"), istr("Idempotency-Key")


def install_fast_path(service: Service, handler: Handler) -> Handler:
    """Answer small requests about models that are known; `handler` answers all others."""

    async def handle(request: BaseRequest) -> Any:
        address = ADDRESS.fullmatch(request.raw_path)
        body = None if address is None or not _is_plain(request) else await _small_body(request)
        answer = None
        if address is not None and body is not None:
            act, scope = ACTS[address[2]]
            try:
                # Who may not is told so on the long way.
                answer = await act(service, request, address[1], body) if scope in request[CALLER].scopes else None
            except Exception as error:  # noqa: BLE001 - each is told of
                return to_problem(request, error)
        return await handler(request) if answer is None else answer

    return handle


def _is_plain(request: BaseRequest) -> bool:
    """Tell whether nothing is asked for that only the long way gives."""
    headers = request.headers
    return (
        request.method == "POST"
        and headers.get(hdrs.CONTENT_TYPE) == "application/json"
        and hdrs.CONTENT_ENCODING not in headers
        and hdrs.EXPECT not in headers
        and hdrs.UPGRADE not in headers
        and hdrs.IF_NONE_MATCH not in headers
        and PREFER not in headers
        and IDEMPOTENCY_KEY not in headers
    )


async def _predict(service: Service, request: BaseRequest, model_hash: str | None, body: bytes) -> Any:
    """Predict; None leaves it to the long way."""
    headers = request.headers
    wanted, raw = http_caching.cache_control(headers), (request.raw_path, body)
    kept = service.cache.find_raw(raw, wanted.age_s_max) if wanted.use_cached else None
    if kept is not None:
        return _answer(headers, CachedReply(kept.etag, kept.body, service.cache.age_s(kept)))
    found = fast_json.decode(body, schemas.Predict if model_hash else schemas.PredictByMetadata)
    model = None if found is None else service.models.cached(model_hash or found.hash or "")
    if found is None or model is None:
        request[http_caching.RAW] = raw
        return None
    operation: Operation = "proba" if found.proba else "predict"
    try:
        rows = shape(model.recipe, found.X, learning=False)
        key = key_of(model.hash, operation, rows)
        return _answer(headers, await predicted(service, model, operation, rows, key, wanted, raw))
    except (NotFoundError, StaleModelError):
        service.models.invalidate(model.hash)
        request[http_caching.RAW] = raw
        return None


async def _learn(service: Service, request: BaseRequest, model_hash: str | None, body: bytes) -> Any:
    """Accept rows; None leaves it to the long way."""
    found = fast_json.decode(body, schemas.PartialFit if model_hash else schemas.PartialFitByMetadata)
    model = None if found is None else service.models.cached(model_hash or found.hash or "")
    if found is None or model is None:
        return None
    try:
        rows = shape(model.recipe, found.X, found.y, found.sample_weight, learning=True)
        accepted = await service.acceptor.accept(model.hash, model.generation, rows, None)
    except (NotFoundError, StaleModelError):
        service.models.invalidate(model.hash)
        return None
    return _accepted(service, model, rows, accepted)


def _answer(headers: http_caching.Headers, given: CachedReply) -> Any:
    if len(given.body) >= GZIP_BYTES_MIN:
        return http_caching.respond(headers, *given)
    age = "" if given.age_s is None else f"Age: {int(given.age_s)}\r\n"
    return SmallResponse(
        200, given.body, f"Cache-Control: no-cache\r\nVary: Accept-Encoding\r\nETag: {given.etag}\r\n{age}"
    )


def _accepted(service: Service, model: Model, rows: Rows, accepted: Accepted) -> SmallResponse:
    service.cache.observe_version(model.hash, model.generation, accepted.version)
    answer = schemas.AcceptedAnswer(
        hash=model.hash,
        accepted=rows.n,
        sequence=accepted.sequence,
        generation=model.generation,
        version=accepted.version,
    )
    return SmallResponse(202, encode(answer))


ACTS = {"predict": (_predict, PREDICT), "partial_fit": (_learn, LEARN)}


async def _small_body(request: BaseRequest) -> bytes | None:
    """Look at a body that is whole and small, without taking it; None for any other."""
    content = request.content
    if not content.is_eof():
        length = request.content_length
        if length is None or length > BODY_BYTES_MAX:
            return None
        try:
            async with asyncio.timeout(PATIENCE_S):
                await content.wait_eof()
        except (TimeoutError, ConnectionError, web.RequestPayloadError):
            return None
    if type(content) is not StreamReader or content.exception() is not None or content.total_bytes > BODY_BYTES_MAX:
        return None
    # aiohttp can put back what was read only by a call that it has deprecated.
    chunks = content._buffer
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)

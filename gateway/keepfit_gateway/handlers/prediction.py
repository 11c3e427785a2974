"""Handlers of prediction and score: answer from the cache, or ask the workers.

Owns :func:`predict_rows`, which the fast path calls too. Invariant: a model is watched before the workers are asked
(:mod:`keepfit_gateway.prediction.cache` has the reason).
"""

from functools import partial
from typing import NamedTuple

from aiohttp import web

from keepfit.jobs import messages
from keepfit.jobs.messages import Operation, WorkerReply
from keepfit.rows.rows import Rows
from keepfit.store.models import Model
from keepfit_gateway import schemas
from keepfit_gateway.handlers.inputs import read_rows, time_left, timeout_parameter
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.cache import Raw, key_of
from keepfit_gateway.prediction.http_caching import CacheControl
from keepfit_gateway.service import SERVICE, Service
from keepfit_gateway.web.fields import Headers
from keepfit_gateway.web.large_requests import ANSWERS_BYTES_MAX
from keepfit_gateway.web.offload import INLINE_BYTES_MAX, compute, compute_in_thread
from keepfit_gateway.web.responses import json_response
from keepfit_gateway.web.rows_body import RowsBody

# A number in an answer has at most so many characters, with its comma.
VALUE_BYTES = 26


class CachedReply(NamedTuple):
    """A prediction: its ETag, its JSON (empty if the client has it), and its age in seconds if it was cached."""

    etag: str
    body: bytes
    age_s: float | None = None


async def predict_rows(
    service: Service,
    model: Model,
    rows: RowsBody,
    headers: Headers,
    control: CacheControl,
    raw: Raw | None = None,
    timeout_s: float | None = None,
) -> CachedReply:
    """Check rows against the model's recipe and predict them, or return the cached prediction.

    `raw` is the path and body of the request, by which the cache finds the same request again before it is parsed.

    Raises
    ------
    InvalidError
        If the rows do not fit the recipe.
    TooLargeError
        If the answer would have too many values.
    NotFoundError, StaleModelError
        If the model was deleted or has another generation by now.
    QueueFullError, DeadlineError, UnavailableError, ConflictError
        As :meth:`~keepfit_gateway.worker_client.WorkerClient.ask`; the second also if other large answers take as long.
    """
    operation: Operation = "proba" if rows.proba else "predict"
    if rows.size <= INLINE_BYTES_MAX:
        shaped, key, values = _shape_and_key(model, rows, operation)
    else:
        shaped, key, values = await compute_in_thread(rows.size, _shape_and_key, model, rows, operation)
    cache = service.cache
    if control.use_cached:
        etag = http_caching.current_etag(cache, headers, control, model, key)
        if etag is not None:
            return CachedReply(etag, b"")
        cached = cache.find(key, model.generation, control.age_s_max)
        if cached is not None:
            if raw is not None:
                cache.alias(cached, raw)
            return CachedReply(cached.etag, cached.body, cache.age_s(cached))
    with cache.watch(model.hash) as watched:
        ask = partial(service.worker_client.ask, model.hash, operation, model.generation, shaped)
        size = min(values * VALUE_BYTES, ANSWERS_BYTES_MAX)
        if size <= INLINE_BYTES_MAX:
            reply = await ask(timeout_s)
        else:
            timeout_s = service.settings.predict_timeout_s if timeout_s is None else timeout_s
            async with service.answers.turn(size, timeout_s) as left_s:
                reply = await ask(left_s)
        body = _answer(model.hash, operation, reply)
        etag = http_caching.etag_of(key, reply.generation, reply.version)
        if control.store:
            cached = cache.store(watched, (reply.generation, reply.version), key, body, etag)
            if cached is not None and raw is not None:
                cache.alias(cached, raw)
    return CachedReply(etag, body)


def _shape_and_key(model: Model, rows: RowsBody, operation: Operation) -> tuple[Rows, bytes, int]:
    """Return the rows, the key of their prediction, and how many values the answer has as far as the recipe tells."""
    shaped = rows.shape(model.recipe, learning=False)
    # The worker counts again with the labels that were learned since.
    classes = (model.recipe.classes or []) if operation == "proba" else []
    labels = sum([len(one) if isinstance(one, list) else 1 for one in classes])
    messages.check_answer_size(shaped.n, 1 + labels)
    return shaped, key_of(model.hash, operation, shaped), shaped.n * (1 + labels)


def _answer(model_hash: str, operation: Operation, reply: WorkerReply) -> bytes:
    """Return a :class:`~keepfit_gateway.schemas.PredictAnswer` as JSON, around the JSON that the worker sent."""
    head = b'{"hash":"%b","version":%d,"rows_seen":%d,' % (model_hash.encode(), reply.version, reply.rows_seen)
    result: bytes = reply.result
    # Of `proba` it is an object with the other fields.
    return head + result[1:] if operation == "proba" else b'%b"predictions":%b}' % (head, result)


async def predict(request: web.Request) -> web.Response:
    """POST …/predict: predict rows with the newest bundle, or answer with a cached prediction that is still valid."""
    service, headers, timeout_s = request.app[SERVICE], request.headers, timeout_parameter(request)
    rows = await read_rows(request, schemas.Predict, schemas.PredictByMetadata, timeout_s)
    control, timeout_s = http_caching.cache_control(headers), time_left(request, timeout_s)
    run = partial(predict_rows, service, rows=rows, headers=headers, control=control, timeout_s=timeout_s)
    return http_caching.respond(headers, *await service.models.run(rows.model_hash, run))


async def score(request: web.Request) -> web.Response:
    """POST …/score: score the newest bundle on rows and their target."""
    service, timeout_s = request.app[SERVICE], timeout_parameter(request)
    rows = await read_rows(request, schemas.Score, schemas.ScoreByMetadata, timeout_s)
    timeout_s = time_left(request, timeout_s)

    async def ask(model: Model) -> WorkerReply:
        shaped = await compute(rows.size, rows.shape, model.recipe, learning=True)
        return await service.worker_client.ask(model.hash, "score", model.generation, shaped, timeout_s)

    reply = await service.models.run(rows.model_hash, ask)
    service.cache.observe_version(rows.model_hash, reply.generation, reply.version)
    answer = schemas.ScoreAnswer(hash=rows.model_hash, version=reply.version, rows_seen=reply.rows_seen, **reply.result)
    return json_response(answer)

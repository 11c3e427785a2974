"""Handlers of prediction and score: answer from the cache, compute with a scorer, or ask the workers.

Owns :func:`predict_rows` and its first half :func:`answer_here`, which the fast path calls too. Invariant: a model is
watched before the workers are asked (:mod:`keepfit_gateway.prediction.cache` has the reason).
"""

import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import hdrs, web
from multidict import CIMultiDict

from keepfit.errors import KeepfitError
from keepfit.jobs import messages
from keepfit.jobs.messages import Operation, WorkerReply
from keepfit.jobs.traffic import SCORED, WORKER
from keepfit.rows.shaping import pack_row
from keepfit.store.models import Model
from keepfit_gateway import schemas
from keepfit_gateway.handlers.inputs import read_rows, time_left, timeout_parameter
from keepfit_gateway.prediction import http_caching, with_ids, without_worker
from keepfit_gateway.prediction.cache import Cache, Raw, WatchedModel
from keepfit_gateway.prediction.http_caching import CacheControl, Reply
from keepfit_gateway.prediction.keys import key_of, row_key
from keepfit_gateway.prediction.without_worker import Question
from keepfit_gateway.service import SERVICE, Service
from keepfit_gateway.web.fields import Headers
from keepfit_gateway.web.large_requests import ANSWERS_BYTES_MAX
from keepfit_gateway.web.offload import INLINE_BYTES_MAX, compute, compute_in_thread
from keepfit_gateway.web.parsed_rows import ParsedRows
from keepfit_gateway.web.problems import status_of
from keepfit_gateway.web.responses import json_response
from keepfit_gateway.web.rows_body import RowsBody

# A number in an answer has at most so many characters, with its comma.
VALUE_BYTES = 26
# Statuses from this one on are errors that `stale-if-error` is about (RFC 5861): those of the server.
SERVER_ERRORS_FROM = 500
NO_HEADERS: Headers = CIMultiDict()


def question_of(model: Model, rows: RowsBody) -> Question:
    """Check rows against the model's recipe, and return what is asked about them.

    Raises
    ------
    InvalidError
        If the rows do not fit the recipe.
    TooLargeError
        If the answer would have too many values.
    """
    operation: Operation = "proba" if rows.proba else "predict"
    shaped = rows.shape(model.recipe, learning=False)
    values = 1
    if rows.proba:
        values += sum([len(one) if isinstance(one, list) else 1 for one in model.recipe.classes or []])
    messages.check_answer_size(shaped.n, values)
    return Question(model, operation, shaped, key_of(model.hash, operation, shaped), shaped.n * values)


def answer_here(
    service: Service,
    question: Question,
    headers: Headers,
    control: CacheControl,
    raw: Raw | None = None,
    bytes_max: float = math.inf,
) -> Reply | None:
    """Answer from the cache, or compute with a scorer; None if a worker must be asked, or the body would be longer.

    `raw` is the path and body of the request, by which the cache finds the same request again before it is parsed.
    Without an answer nothing is counted or stored.
    """
    cache, model = service.cache, question.model
    if control.use_cached:
        etag = http_caching.current_etag(cache, headers, control, model, question.key)
        if etag is not None:
            return Reply(etag, b"", rows=question.rows.n)
        cached = cache.find(question.key, model.generation, control.age_s_max, bytes_max)
        if cached is not None:
            if raw is not None:
                cache.alias(cached, raw)
            return Reply(cached.etag, cached.body, cache.age_s(cached), rows=cached.rows)
    scored = without_worker.score(service.scorers, question) if control.score else None
    if scored is None or len(scored[0]) > bytes_max:
        return None
    body, scorer, watched = scored
    service.predictions.scored += 1
    if control.use_cached:
        cache.count_miss()
    version = scorer.generation, scorer.version
    if control.store and cache.seen(question.key):
        return _stored(service.cache, watched, version, question.key, body, raw, SCORED, question.rows.n)
    etag = http_caching.etag_of(question.key, *version)
    return Reply(etag, body, source=SCORED, rows=question.rows.n)


def answer_row(service: Service, model: Model, row: Any, raw: Raw, bytes_max: float) -> Reply | None:
    """Answer a single row of numbers as :func:`answer_here` does, with fewer steps; None for all other rows and models.

    `row` is a list, or a dict by column name, of numbers as JSON has them.
    """
    found = service.scorers.find(model)
    if found is None or found[0].answer_row is None:
        return None
    scorer, watched = found
    numbers = pack_row(model.recipe, row)
    if numbers is None or len(numbers) != scorer.row_bytes:
        return None
    cache, key = service.cache, row_key(model.hash, numbers)
    cached = cache.find(key, model.generation, bytes_max=bytes_max)
    if cached is not None:
        cache.alias(cached, raw)
        return Reply(cached.etag, cached.body, cache.age_s(cached))
    version = scorer.version
    result = found[0].answer_row(numbers)
    body = without_worker.predictions_body(model.hash, version, scorer.rows_seen, result)
    if len(body) > bytes_max:
        return None
    cache.count_miss()
    service.predictions.scored += 1
    if cache.seen(key):
        return _stored(cache, watched, (model.generation, version), key, body, raw, SCORED, 1)
    return Reply(http_caching.etag_of(key, model.generation, version), body, None, "", SCORED)


async def predict_rows(
    service: Service,
    model: Model,
    rows: RowsBody,
    headers: Headers,
    control: CacheControl,
    raw: Raw | None = None,
    timeout_s: float | None = None,
    question: Question | None = None,
) -> Reply:
    """Predict rows: from the cache, with a scorer, or by a worker.

    `question` is what is asked about them if :func:`answer_here` had no answer to it.

    Raises
    ------
    InvalidError, TooLargeError
        As :func:`question_of`.
    NotFoundError, StaleModelError
        If the model was deleted or has another generation by now.
    QueueFullError, DeadlineError, UnavailableError, ConflictError
        As :meth:`~keepfit_gateway.worker_client.WorkerClient.ask`; the second also if other large answers take as long.
    """
    begun_s = time.perf_counter()
    reply = await _predict_rows(service, model, rows, headers, control, raw, timeout_s, question)
    service.traffic.predicted(model.hash, reply.source, reply.rows, time.perf_counter() - begun_s)
    return reply


async def _predict_rows(
    service: Service,
    model: Model,
    rows: RowsBody,
    headers: Headers,
    control: CacheControl,
    raw: Raw | None,
    timeout_s: float | None,
    question: Question | None,
) -> Reply:
    if question is None or question.model is not model:
        if rows.size <= INLINE_BYTES_MAX:
            question = question_of(model, rows)
        else:
            question = await compute_in_thread(rows.size, question_of, model, rows)
        reply = answer_here(service, question, headers, control, raw)
        if reply is not None:
            return reply
    ask = partial(_ask, service, question, control, raw, timeout_s)
    stale_s_max = control.stale_s_max(service.settings.stale_if_error_s)
    return await (ask() if not stale_s_max else _ask_or_stale(service, question, stale_s_max, ask))


async def ask_in_turn(
    service: Service, question: Question, timeout_s: float | None, ask: Callable[[float | None], Awaitable[WorkerReply]]
) -> WorkerReply:
    """Ask a worker with a limit of seconds; a question whose answer may be large waits for its turn before."""
    size = min(question.values * VALUE_BYTES, ANSWERS_BYTES_MAX)
    if size <= INLINE_BYTES_MAX:
        return await ask(timeout_s)
    timeout_s = service.settings.predict_timeout_s if timeout_s is None else timeout_s
    async with service.answers.turn(size, timeout_s) as left_s:
        return await ask(left_s)


async def _ask(
    service: Service, question: Question, control: CacheControl, raw: Raw | None, timeout_s: float | None
) -> Reply:
    """Ask a worker."""
    model, scorers = question.model, service.scorers
    if control.use_cached:
        service.cache.count_miss()
    with service.cache.watch(model.hash) as watched:
        asked = scorers.begin_question(watched)
        noted = partial(scorers.end_question, watched, asked)
        try:
            ask = partial(service.queues.ask, model.hash, question.operation, model.generation, question.rows)
            reply = await ask_in_turn(service, question, timeout_s, partial(ask, scorer_bytes_max=asked))
            version = reply.generation, reply.version
            scorer = await scorers.decode_large(reply.scorer, model.recipe) if reply.scorer else None
            noted = partial(noted, version, reply.scorer, scorer)
        finally:
            noted()
        service.predictions.worker += 1
        body = question.body(reply.version, reply.rows_seen, reply.result)
        if control.store:
            return _stored(service.cache, watched, version, question.key, body, raw, WORKER, question.rows.n)
        etag = http_caching.etag_of(question.key, *version)
        return Reply(etag, body, source=WORKER, rows=question.rows.n)


def _stored(
    cache: Cache,
    watched: WatchedModel,
    version: tuple[int, int],
    key: bytes,
    body: bytes,
    raw: Raw | None,
    source: int,
    rows: int,
) -> Reply:
    """Return a new answer, which is stored for the next request."""
    etag = http_caching.etag_of(key, *version)
    cached = cache.store(watched, version, key, body, etag, rows)
    if cached is not None and raw is not None:
        cache.alias(cached, raw)
    return Reply(etag, body, None, "", source, rows)


async def _ask_or_stale(
    service: Service, question: Question, stale_s_max: float, ask: Callable[[], Awaitable[Reply]]
) -> Reply:
    """Ask a worker, and return an earlier answer if that fails; at once if no worker answers at present."""
    client = service.queues.client_of(question.model.hash)
    find = partial(without_worker.find_stale, service.cache, service.scorers, question, stale_s_max)
    error = client.away
    found = None if error is None else await find(error, forwarded=False)
    if found is None:
        try:
            return await ask()
        except KeepfitError as failure:
            found = await find(failure, forwarded=True) if status_of(failure) >= SERVER_ERRORS_FROM else None
            if found is None:
                raise
    client.ask_until_back(question.model.hash, question.operation, question.model.generation, question.rows)
    service.predictions.stale += 1
    return found


async def predict(request: web.Request) -> web.Response:
    """POST …/predict: predict rows with the newest bundle, or answer with a cached prediction that is still valid."""
    service, headers, timeout_s = request.app[SERVICE], request.headers, timeout_parameter(request)
    rows = await read_rows(request, schemas.Predict, timeout_s)
    control, timeout_s = http_caching.cache_control(headers), time_left(request, timeout_s)
    if isinstance(rows, ParsedRows) and rows.ids is not None:
        return await _predict_with_ids(service, rows, rows.ids, control, timeout_s)
    run = partial(predict_rows, service, rows=rows, headers=headers, control=control, timeout_s=timeout_s)
    return http_caching.respond(headers, await service.models.run(rows.model_hash, run))


async def _predict_with_ids(
    service: Service, rows: ParsedRows, ids: list[str], control: CacheControl, timeout_s: float | None
) -> web.Response:
    """Predict rows and keep them until their labels come, which no cache may do in place of the gateway."""
    with_ids.check_ids(ids, rows.X)

    async def run(model: Model) -> Reply:
        async def ask(asked: ParsedRows) -> bytes:
            return (await predict_rows(service, model, asked, NO_HEADERS, control, timeout_s=timeout_s)).body

        return await with_ids.predict_and_keep(service.open_rows, model, rows, ids, ask)

    reply = await service.models.run(rows.model_hash, run)
    headers = {hdrs.CACHE_CONTROL: "no-store", hdrs.ETAG: reply.etag}
    return web.Response(body=reply.body, content_type="application/json", headers=headers)


async def score(request: web.Request) -> web.Response:
    """POST …/score: score the newest bundle on rows and their target."""
    service, timeout_s = request.app[SERVICE], timeout_parameter(request)
    rows = await read_rows(request, schemas.Score, timeout_s)
    timeout_s = time_left(request, timeout_s)

    async def ask(model: Model) -> WorkerReply:
        shaped = await compute(rows.size, rows.shape, model.recipe, learning=True)
        return await service.queues.ask(model.hash, "score", model.generation, shaped, timeout_s)

    reply = await service.models.run(rows.model_hash, ask)
    service.cache.observe_version(rows.model_hash, reply.generation, reply.version)
    answer = schemas.ScoreAnswer(hash=rows.model_hash, version=reply.version, rows_seen=reply.rows_seen, **reply.result)
    return json_response(answer)

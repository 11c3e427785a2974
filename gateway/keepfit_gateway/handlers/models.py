"""Handlers of all routes: read a form, call the service, write an answer.

Owns the translation between HTTP and the library, and nothing else. Invariants: a 202 is sent only after the rows are
in Redis; what can be checked is checked before.
"""

import asyncio
import re
from contextlib import nullcontext
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from keepfit import identity
from keepfit.errors import MalformedError
from keepfit.jobs.messages import Operation, WorkerReply
from keepfit.store import listing
from keepfit.store.inbox import Accepted
from keepfit.store.models import Model
from keepfit_gateway import health, metrics, recipe_checker, schemas
from keepfit_gateway.handlers import prediction
from keepfit_gateway.learning import commit_feed
from keepfit_gateway.prediction import cache, http_caching
from keepfit_gateway.schemas import Form
from keepfit_gateway.service import SERVICE, SETTINGS
from keepfit_gateway.web import rows_body
from keepfit_gateway.web.bodies import ROOM, read_json
from keepfit_gateway.web.offload import INLINE_BYTES_MAX, run_in_thread_if_large
from keepfit_gateway.web.responses import json_response
from keepfit_gateway.web.rows_body import RowsBody

HASH = re.compile(r"[0-9a-f]{64}")
KEY = re.compile(r"[\x21-\x7e]{1,128}")
WAIT = re.compile(r"(?:^|[,;]\s*)wait\s*=\s*\"?(\d{1,9})\"?", re.IGNORECASE)
WAIT_S_MAX = 60
SECONDS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?")
TIMEOUT_S_MAX = 600
DOCUMENT = web.AppKey("openapi", dict[str, Any])
PAGE_MAX = 1000
NUMBER = re.compile(r"[0-9]{1,9}")
PAGE = 100
# Ten thousand labels of some hundred characters; MongoDB holds no document of 16 MiB.
RECIPE_BYTES_MAX = 8 * 2**20


async def create_model(request: web.Request) -> web.Response:
    """POST /v1/models: make a model."""
    service = request.app[SERVICE]
    document = await read_json(request, service.settings, RECIPE_BYTES_MAX)
    form = schemas.convert(document, schemas.CreateModel)
    metadata = identity.check_metadata(form.metadata)
    model, made = await service.models.create(metadata, await recipe_checker.check(form.recipe, service.uploads))
    headers = {"Location": f"/v1/models/{model.hash}"}
    return json_response(listing.describe(model), 201 if made else 200, headers=headers)


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: list models, filtered by their metadata."""
    filters = dict(request.query)
    if len(filters) != len(request.query):
        raise MalformedError("A query parameter stands twice.")
    limit, after = filters.pop("limit", str(PAGE)), filters.pop("after", "")
    if not NUMBER.fullmatch(limit) or not 1 <= int(limit) <= PAGE_MAX:
        raise MalformedError(f"limit must be a whole number from 1 to {PAGE_MAX}.")
    if after and not HASH.fullmatch(after):
        raise MalformedError("after must be the hash that the page before named as next.")
    found, following = await request.app[SERVICE].models.page(filters, int(limit), after)
    return json_response({"models": found, "next": following})


async def get_model(request: web.Request) -> web.Response:
    """GET /v1/models/{hash}: describe a model."""
    return json_response(listing.describe(await request.app[SERVICE].models.describe(named_hash(request))))


async def delete_model(request: web.Request) -> web.Response:
    """DELETE /v1/models/{hash}: forget a model."""
    await request.app[SERVICE].models.delete(named_hash(request))
    return web.Response(status=204)


async def partial_fit(request: web.Request) -> web.Response:
    """POST …/partial_fit: accept rows to be learned, and wait for it where that is preferred."""
    service = request.app[SERVICE]
    model_hash, sent = await _read(request, schemas.PartialFit, schemas.PartialFitByMetadata)
    key, wait_s = idempotency_key(request), preferred_wait(request)

    async def accept(sent: RowsBody, model: Model) -> tuple[int, int, Accepted]:
        shaped = await run_in_thread_if_large(sent.size, sent.shape, model.recipe, learning=True)
        accepted = await service.acceptor.accept(model.hash, model.generation, shaped, key)
        service.cache.observe_version(model.hash, model.generation, accepted.version)
        return shaped.n, model.generation, accepted

    # To be told of a commit one listens before the rows are accepted.
    with service.commit_feed.watch(model_hash) if wait_s else nullcontext() as watch:
        count, generation, accepted = await service.models.run(model_hash, partial(accept, sent))
        # The rows may be many, and the wait long.
        del sent
        request.app[ROOM].leave(request)
        done = None
        if watch is not None and key is not None:
            # A key that came before may stand for rows long learned; no commit will tell of them again.
            done = await service.commit_feed.known(model_hash, generation, accepted.sequence)
        if watch is not None and done is None:
            done = await commit_feed.learned(watch, generation, accepted.sequence, wait_s)
    if done is None:
        accepted_answer = schemas.AcceptedAnswer(
            hash=model_hash,
            accepted=count,
            sequence=accepted.sequence,
            generation=generation,
            version=accepted.version,
        )
        return json_response(accepted_answer, 202)
    learned_answer = schemas.LearnedAnswer(
        hash=model_hash,
        accepted=count,
        sequence=accepted.sequence,
        version=done.version,
        rows_seen=done.rows_seen,
    )
    return json_response(learned_answer, headers={"Preference-Applied": f"wait={wait_s}"})


async def predict(request: web.Request) -> web.Response:
    """POST …/predict: predict rows by the newest bundle, or give an answer again that is still right."""
    read = await _read(request, schemas.Predict, schemas.PredictByMetadata)
    service, headers, timeout_s = request.app[SERVICE], request.headers, _timeout(request)
    model_hash, sent = read
    operation: Operation = "proba" if sent.proba else "predict"
    wanted = http_caching.cache_control(headers)

    async def ask(model: Model) -> web.Response:
        shaped = await run_in_thread_if_large(sent.size, sent.shape, model.recipe, learning=False)
        key = await run_in_thread_if_large(sent.size, cache.key_of, model_hash, operation, shaped)
        unchanged = http_caching.not_modified(service.cache, headers, wanted, model, key)
        if unchanged is not None:
            return unchanged
        raw = request.get(http_caching.RAW)
        given = await prediction.predicted(service, model, operation, shaped, key, wanted, raw, timeout_s)
        return http_caching.respond(headers, *given)

    return await service.models.run(model_hash, ask)


async def score(request: web.Request) -> web.Response:
    """POST …/score: score the newest bundle on rows and their target."""
    model_hash, sent = await _read(request, schemas.Score, schemas.ScoreByMetadata)
    scored = await _ask(request, model_hash, "score", sent)
    request.app[SERVICE].cache.observe_version(model_hash, scored.generation, scored.version)
    return json_response(
        schemas.ScoreAnswer(hash=model_hash, version=scored.version, rows_seen=scored.rows_seen, **scored.result)
    )


async def livez(request: web.Request) -> web.Response:
    """GET /livez: the process answers."""
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: whether this gateway can learn and predict; what else is amiss is told of with a 200."""
    found = await health.probe(request.app[SERVICE])
    answer = schemas.Ready(
        status=found.status,
        redis=found.store,
        queue=found.queue,
        mongo=found.mongo,
        snapshots=found.snapshots,
        workers=found.workers,
        row_log=msgspec.UNSET if found.row_log is None else found.row_log,
    )
    return json_response(answer, 503 if found.status == "unavailable" else 200)


async def show_metrics(request: web.Request) -> web.Response:
    """GET /metrics: what this gateway has counted, for Prometheus."""
    service = request.app[SERVICE]
    text = await asyncio.to_thread(metrics.exposition, service, await health.probe(service))
    return web.Response(body=text, headers={"Content-Type": metrics.MEDIA_TYPE})


async def openapi(request: web.Request) -> web.Response:
    """GET /openapi.json: this API, described."""
    return json_response(request.app[DOCUMENT])


def named_hash(request: web.Request) -> str:
    """Hash of the model that the path names."""
    found: str = request.match_info["hash"]
    if not HASH.fullmatch(found):
        raise MalformedError("A model's hash is 64 hexadecimal digits, in lower case.")
    return found


async def _read(request: web.Request, form: type[Form], form_by_metadata: type[Form]) -> tuple[str, RowsBody]:
    """Read a request about one model, addressed by hash in the path or by metadata in the body."""
    if "hash" in request.match_info:
        model_hash = named_hash(request)
        length = request.content_length
        if length is None or length > INLINE_BYTES_MAX:
            # Rows that nobody will take need not be read.
            await request.app[SERVICE].models.find(model_hash)
        return await rows_body.read(request, request.app[SETTINGS], form, model_hash)
    return await rows_body.read(request, request.app[SETTINGS], form_by_metadata)


async def _ask(request: web.Request, model_hash: str, operation: Any, sent: RowsBody) -> WorkerReply:
    """Shape rows by the model's recipe and ask the workers."""
    service = request.app[SERVICE]
    timeout_s = _timeout(request)

    async def ask(model: Model) -> WorkerReply:
        shaped = await run_in_thread_if_large(sent.size, sent.shape, model.recipe, learning=operation == "score")
        return await service.worker_client.ask(model_hash, operation, model.generation, shaped, timeout_s)

    return await service.models.run(model_hash, ask)


def _timeout(request: web.Request) -> float | None:
    """Seconds of the query parameter ``timeout``, after which nobody wants the answer; None where there is none."""
    given = request.query.get("timeout") if request.query_string else None
    if given is None:
        return None
    if not SECONDS.fullmatch(given) or not 0 < float(given) <= TIMEOUT_S_MAX:
        raise MalformedError(f"timeout must be a number of seconds above 0, up to {TIMEOUT_S_MAX}.")
    return float(given)


def idempotency_key(request: web.Request) -> str | None:
    """The client's ``Idempotency-Key``; None where there is none."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not KEY.fullmatch(key):
        raise MalformedError("Idempotency-Key must be 1 to 128 visible ASCII characters.")
    return key


def preferred_wait(request: web.Request, otherwise: int = 0) -> int:
    """Seconds of ``Prefer: wait=N`` (RFC 7240), `otherwise` where there is none."""
    if "Prefer" not in request.headers:
        return otherwise
    found = WAIT.search(",".join(request.headers.getall("Prefer")))
    return min(int(found[1]), WAIT_S_MAX) if found else otherwise

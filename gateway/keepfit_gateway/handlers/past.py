"""Handler of predictions with a version or a time: by a snapshot, beside the live model.

Owns what the query parameters `version` and `at` mean; without them :mod:`keepfit_gateway.handlers.prediction` answers.
Never restores a version, and never uses a kept answer or a scorer, which are those of the live version. Invariant: an
answer is that of the version that was asked for, or an error.
"""

import re
from functools import partial
from typing import NamedTuple

import msgspec
from aiohttp import hdrs, web

from keepfit import times
from keepfit.errors import MalformedError, NotFoundError
from keepfit.history import Document
from keepfit.history.registry import past
from keepfit.jobs.messages import PastVersion
from keepfit.store.models import Model
from keepfit_gateway import schemas
from keepfit_gateway.handlers import prediction
from keepfit_gateway.handlers.inputs import read_rows, time_left, timeout_parameter
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.http_caching import CacheControl, Reply
from keepfit_gateway.service import SERVICE, Service
from keepfit_gateway.web.offload import compute
from keepfit_gateway.web.parsed_rows import ParsedRows
from keepfit_gateway.web.rows_body import RowsBody

VERSION = re.compile(r"[0-9]{1,15}")
# For the live version: what a worker computes from the live bundle, now.
COMPUTED = CacheControl(use_cached=False, store=False, score=False, stale_if_error_s=0)


class Asked(NamedTuple):
    """The snapshot that a request names: the newest not later than `at` (seconds), and of `version`, where given."""

    at: float | None
    version: int | None


class Versioned(msgspec.Struct):
    """The field of an answer that says which version it is of."""

    version: int


_version_of = msgspec.json.Decoder(Versioned).decode


async def predict(request: web.Request) -> web.Response:
    """POST …/predict: predict rows with the live model, or with the snapshot that `version` or `at` names."""
    asked = parameters(request)
    if asked is None:
        return await prediction.predict(request)
    service, headers, timeout_s = request.app[SERVICE], request.headers, timeout_parameter(request)
    rows = await read_rows(request, schemas.Predict, timeout_s)
    if isinstance(rows, ParsedRows) and rows.ids is not None:
        raise MalformedError(
            "Rows with an id are kept until their labels come, and predicted by the live model: leave out id, or "
            "version and at."
        )
    timeout_s = time_left(request, timeout_s)
    model = await service.models.describe(rows.model_hash)
    reply = None
    if asked.at is None and asked.version == model.version:
        reply = await _ask_live(service, model, rows, timeout_s)
        if reply is None:
            model = await service.models.describe(rows.model_hash)
    if reply is None:
        document = await _choose(service, model, asked)
        reply = await _ask_snapshot(service, model, rows, document, request, timeout_s)
    return http_caching.respond(headers, reply)


def parameters(request: web.Request) -> Asked | None:
    """Return the query parameters ``version`` and ``at``; None without both.

    Raises
    ------
    MalformedError
        If one of them occurs twice, or is no version or time.
    InvalidError
        If `at` is in the future.
    """
    if not request.query_string:
        return None
    versions, ats = request.query.getall("version", []), request.query.getall("at", [])
    if not versions and not ats:
        return None
    if len(versions) > 1 or len(ats) > 1:
        raise MalformedError("version and at must occur once.")
    if versions and not VERSION.fullmatch(versions[0]):
        raise MalformedError("version must be an integer from 0 on: that of a snapshot, or of the live model.")
    # Times in plain words beyond the simple forms need a library that uses as much memory as half a gateway.
    at = times.parse_past_time(ats[0], words=False) if ats else None
    return Asked(at, int(versions[0]) if versions else None)


async def _ask_live(service: Service, model: Model, rows: RowsBody, timeout_s: float | None) -> Reply | None:
    """Have a worker answer with the live bundle; None if that has another version by now."""
    run = partial(
        prediction.predict_rows,
        service,
        rows=rows,
        headers=prediction.NO_HEADERS,
        control=COMPUTED,
        timeout_s=timeout_s,
    )
    reply = await service.models.run(model.hash, run)
    return reply if _version_of(reply.body).version == model.version else None


async def _choose(service: Service, model: Model, asked: Asked) -> Document:
    registered = await service.history.find(model.hash)
    if registered is None:
        raise NotFoundError(f"The model {model.hash} has just been deleted.")
    try:
        return await past.choose(service.history, registered, asked.at, asked.version)
    except NotFoundError as error:
        raise NotFoundError(f"{error} The live version is {model.version}.") from None


async def _ask_snapshot(
    service: Service, model: Model, rows: RowsBody, document: Document, request: web.Request, timeout_s: float | None
) -> Reply:
    """Have a worker answer with a snapshot, unless the client has the answer, which never becomes outdated."""
    question = await compute(rows.size, prediction.question_of, model, rows)
    version = PastVersion(
        int(document["generation"]), int(document["version"]), str(document["sha256"]), proba=question.proba
    )
    etag = http_caching.etag_of(question.key, version.generation, version.version)
    if request.headers.get(hdrs.IF_NONE_MATCH, "").strip() != "*" and http_caching.matches(request.headers, etag):
        return Reply(etag, b"")
    ask = partial(service.queues.ask, model.hash, "past", version.generation, question.rows, past=version)
    reply = await prediction.ask_in_turn(service, question, timeout_s, ask)
    service.predictions.worker += 1
    return Reply(etag, question.body(reply.version, reply.rows_seen, reply.result))

"""Handlers of the Open Inference Protocol, version 2: health, metadata, inference.

Owns the translation between HTTP and :mod:`keepfit_gateway.inference_protocol`. Never predicts in a way of its own:
:func:`~keepfit_gateway.handlers.prediction.predict_rows` does, with its cache and limits. Invariant: a path with a
version answers for that version of the model or not at all.
"""

import re
from functools import partial
from typing import NamedTuple

import msgspec
from aiohttp import web
from multidict import CIMultiDict

import keepfit
from keepfit.errors import ConflictError, InvalidError, MalformedError, NotFoundError
from keepfit.rows.values import format_value
from keepfit.store.models import Model
from keepfit_gateway import health, schemas
from keepfit_gateway.handlers.inputs import begin_turn, find_before_body, model_hash_of, time_left
from keepfit_gateway.handlers.prediction import predict_rows
from keepfit_gateway.inference_protocol import messages, metadata
from keepfit_gateway.inference_protocol.messages import Asked
from keepfit_gateway.inference_protocol.outputs import Output, output_of
from keepfit_gateway.inference_protocol.rows import rows_of
from keepfit_gateway.prediction import http_caching
from keepfit_gateway.prediction.http_caching import CacheControl, Reply
from keepfit_gateway.service import SERVICE, SETTINGS, Service
from keepfit_gateway.web import bodies, fields
from keepfit_gateway.web.fields import Headers
from keepfit_gateway.web.offload import compute
from keepfit_gateway.web.responses import json_response
from keepfit_gateway.web.rows_body import BINARY, RowsBody

NAME = "keepfit"
EXTENSIONS = ["binary_tensor_data"]
# Clients send JSON and tensors with either type, or with none.
MEDIA_TYPES = (bodies.JSON, BINARY, "")
VERSION = re.compile(r"[0-9]{1,16}")
LENGTH = re.compile(r"[0-9]{1,15}")
# The protocol has no conditional requests.
NO_HEADERS: Headers = CIMultiDict()


class Predicted(NamedTuple):
    """A prediction, and whether it consists of numbers by the recipe."""

    reply: Reply
    numeric: bool


ABSENT = msgspec.Raw()


class Parts(msgspec.Struct):
    """The parts of a prediction, as JSON."""

    version: int
    predictions: msgspec.Raw
    probabilities: msgspec.Raw = ABSENT
    classes: msgspec.Raw = ABSENT
    scores: msgspec.Raw = ABSENT


_parts_of = msgspec.json.Decoder(Parts).decode


async def server_metadata(request: web.Request) -> web.Response:
    """GET /v2: name and version of the server, and its extensions."""
    return json_response(schemas.ServerMetadata(name=NAME, version=keepfit.__version__, extensions=EXTENSIONS))


async def server_live(request: web.Request) -> web.Response:
    """GET /v2/health/live: the process responds."""
    return json_response(schemas.ServerLive(live=True))


async def server_ready(request: web.Request) -> web.Response:
    """GET /v2/health/ready: whether this gateway can learn and predict, as /readyz says it."""
    dependencies = await health.probe(request.app[SERVICE])
    if dependencies.status != "unavailable":
        return json_response(schemas.ServerReady(ready=True))
    reason = dependencies.detail or "A dependency or all workers are unavailable; /readyz names them."
    return json_response(schemas.ServerReady(ready=False, error=reason), 503)


async def model_metadata(request: web.Request) -> web.Response:
    """GET /v2/models/{hash}: the inputs and outputs of a model, and its live version."""
    model = await _model(request)
    answer = schemas.ModelMetadata(
        name=model.hash,
        versions=[str(model.version)],
        platform=NAME,
        inputs=metadata.inputs_of(model.recipe),
        outputs=metadata.outputs_of(model.recipe),
    )
    return json_response(answer)


async def model_ready(request: web.Request) -> web.Response:
    """GET /v2/models/{hash}/ready: 200 if the model has learned rows, so that it can predict; else an error."""
    model = await _model(request)
    if not model.rows_seen:
        raise ConflictError("The model has learned no rows yet: send some with partial_fit.")
    if model.is_unloadable:
        raise ConflictError("No worker loads the model at present: GET /v1/models/{hash} has the reason.")
    return json_response(schemas.ModelReady(name=model.hash, ready=True))


async def _model(request: web.Request) -> Model:
    """Return the model of the path; raise NotFoundError if it does not exist or has another version."""
    model = await request.app[SERVICE].models.describe(await model_hash_of(request))
    _check_version(_version(request), model.version)
    return model


def _version(request: web.Request) -> int | None:
    """Return the version in the path; None without one."""
    text = request.match_info.get("version")
    if text is None:
        return None
    if not VERSION.fullmatch(text):
        raise MalformedError(f"The version of a model is an integer, not {format_value(text)}.")
    return int(text)


def _check_version(asked: int | None, live: int) -> None:
    if asked not in (None, live):
        raise NotFoundError(f"The model has version {live} now, and answers for no other one; you ask for {asked}.")


async def infer(request: web.Request) -> web.Response:
    """POST /v2/models/{hash}/infer: predict the rows in the tensors with the newest bundle."""
    service, version = request.app[SERVICE], _version(request)
    model_hash = await model_hash_of(request)
    rows, asked = await _read(request, model_hash)
    control = http_caching.cache_control(request.headers)
    timeout_s = _time_left(request, asked)
    predict = partial(_predict, service, rows=rows, asked=asked, control=control, timeout_s=timeout_s)
    predicted = await service.models.run(model_hash, predict)
    del rows, predict
    reply = predicted.reply
    body, json_bytes = await compute(len(reply.body), _answer, asked, model_hash, version, predicted)
    headers = http_caching.status_fields(reply)
    if json_bytes is not None:
        headers[messages.HEADER_LENGTH] = str(json_bytes)
    return web.Response(body=body, content_type=bodies.JSON if json_bytes is None else BINARY, headers=headers)


async def _read(request: web.Request, model_hash: str) -> tuple[RowsBody, Asked]:
    """Read and parse the body, which has its turn if it is large."""
    await find_before_body(request, model_hash)
    header = fields.single(request.headers, messages.HEADER_LENGTH)
    if header is not None and not LENGTH.fullmatch(header):
        raise MalformedError(f"{messages.HEADER_LENGTH} must be the number of bytes of the JSON.")
    body = await bodies.read(request, request.app[SETTINGS], MEDIA_TYPES)
    await begin_turn(request, len(body), None)
    tensors, asked = await compute(len(body), messages.parse, body, None if header is None else int(header))
    proba = any(name != metadata.PREDICTIONS for name in asked.outputs)
    return rows_of(len(body), tensors, proba=proba, model_hash=model_hash), asked


def _time_left(request: web.Request, asked: Asked) -> float | None:
    """Return the seconds for the answer: those of the request or the setting, without the wait for a turn."""
    left_s = time_left(request, None)
    if asked.timeout_s is None or left_s is None:
        return left_s
    return max(asked.timeout_s - (request.app[SETTINGS].predict_timeout_s - left_s), 0.0)


async def _predict(
    service: Service, model: Model, rows: RowsBody, asked: Asked, control: CacheControl, timeout_s: float | None
) -> Predicted:
    metadata.check_outputs(model.recipe, list(asked.outputs))
    reply = await predict_rows(service, model, rows, NO_HEADERS, control, None, timeout_s)
    return Predicted(reply, metadata.predicts_numbers(model.recipe))


def _answer(asked: Asked, model_hash: str, version: int | None, predicted: Predicted) -> tuple[bytes, int | None]:
    """Return the body of the answer, and the length of its JSON if tensors follow it."""
    parts = _parts_of(predicted.reply.body)
    _check_version(version, parts.version)
    outputs = {name: _output(name, parts, predicted, binary=binary) for name, binary in asked.outputs.items()}
    return messages.encode(asked, model_hash, parts.version, outputs)


def _output(name: str, parts: Parts, predicted: Predicted, *, binary: bool) -> Output:
    text = bytes(getattr(parts, name))
    if not text:
        raise InvalidError(f"The model answers no {name} for these rows.")
    is_number = name in (metadata.PROBABILITIES, metadata.SCORES)
    return output_of(
        name, text, binary=binary, numeric=is_number or (name == metadata.PREDICTIONS and predicted.numeric)
    )

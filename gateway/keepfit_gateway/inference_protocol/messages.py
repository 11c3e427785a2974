"""Requests and answers of the protocol as bytes: JSON, and after it the bytes of tensors.

Owns the layout of both messages and the meaning of their parameters. Never knows the model. Invariants: each byte of a
request belongs to its JSON or to one tensor; JSON of more than 4 MiB is refused before it is parsed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from keepfit.errors import InvalidError, MalformedError
from keepfit.identity import parse_json
from keepfit.rows.values import format_value
from keepfit_gateway import schemas
from keepfit_gateway.inference_protocol import tensors
from keepfit_gateway.inference_protocol.metadata import PREDICTIONS
from keepfit_gateway.inference_protocol.outputs import Output
from keepfit_gateway.inference_protocol.tensors import Tensor
from keepfit_gateway.schemas import InferenceRequest, InputTensor
from keepfit_gateway.web.rows_body import STRICT_BYTES_MAX, check_width

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_SIZE, BINARY_OUTPUT, BINARY = "binary_data_size", "binary_data_output", "binary_data"
MICROSECONDS_MAX = 600 * 10**6
# What other servers offer, by the parameter that asks for it.
UNSUPPORTED = {"shared_memory_region": "shared memory", "classification": "the classification extension"}

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: its outputs by name, whether each is to be sent as bytes, and the time for the answer.

    `timeout_s` is None without a time of its own, `id` where the answer needs none.
    """

    outputs: Mapping[str, bool]
    id: str | None
    timeout_s: float | None


def parse(body: bytes | bytearray, header_length: int | None) -> tuple[list[Tensor], Asked]:
    """Return the tensors of a request and what it asks for.

    The first `header_length` bytes of the body are JSON; None if all of it is.

    Raises
    ------
    MalformedError, InvalidError
        If it is not usable JSON, does not have the form, or a tensor has another size than its shape says.
    web.HTTPRequestEntityTooLarge
        If the JSON is too large, or a matrix too wide.
    """
    end = len(body) if header_length is None else header_length
    if end > len(body):
        raise MalformedError(f"{HEADER_LENGTH} is {end}, and the body has {len(body)} bytes.")
    if end > STRICT_BYTES_MAX:
        raise web.HTTPRequestEntityTooLarge(
            max_size=STRICT_BYTES_MAX,
            actual_size=end,
            text=f"The JSON of a request may have {STRICT_BYTES_MAX} bytes: send large tensors as binary data.",
        )
    request = schemas.convert(parse_json(body[:end]), InferenceRequest)
    _check_names("input", [each.name for each in request.inputs])
    found = []
    for each in request.inputs:
        check_width(each.shape[-1] if len(each.shape) > 1 else 1)
        tensor, end = _tensor(each, body, end, is_binary=header_length is not None)
        found.append(tensor)
    if end != len(body):
        raise MalformedError(f"{len(body) - end} bytes follow the tensors.")
    return found, _asked(request)


def _tensor(form: InputTensor, body: bytes | bytearray, start: int, *, is_binary: bool) -> tuple[Tensor, int]:
    """Return a tensor, and where the bytes of the next one begin."""
    parameters = form.parameters or {}
    _check_supported(parameters)
    size = _parameter(parameters, BINARY_SIZE, int)
    name = format_value(form.name)
    if (size is None) is (form.data is None):
        raise MalformedError(f"input {name} needs either data or {BINARY_SIZE}.")
    if size is None:
        return tensors.from_json(form, form.data or []), start
    if not is_binary:
        raise MalformedError(f"input {name} is binary: send the length of the JSON as {HEADER_LENGTH}.")
    if not 0 <= size <= len(body) - start:
        raise MalformedError(f"input {name} has a {BINARY_SIZE} of {size}, and {len(body) - start} bytes are left.")
    return tensors.from_bytes(form, body, start, start + size), start + size


def _asked(request: InferenceRequest) -> Asked:
    parameters = request.parameters or {}
    binary = _parameter(parameters, BINARY_OUTPUT, bool) or False
    microseconds = _parameter(parameters, "timeout", int) or 0
    if not 0 <= microseconds <= MICROSECONDS_MAX:
        raise MalformedError(f"timeout must be a number of microseconds, at most {MICROSECONDS_MAX}.")
    outputs: dict[str, bool] = {}
    for output in request.outputs or ():
        own = output.parameters or {}
        _check_supported(own)
        as_bytes = _parameter(own, BINARY, bool)
        outputs[output.name] = binary if as_bytes is None else as_bytes
    _check_names("output", [output.name for output in request.outputs or ()])
    return Asked(outputs or {PREDICTIONS: binary}, request.id, microseconds / 10**6 or None)


def _parameter(parameters: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """Return a parameter of the type `kind`, or None without it."""
    value = parameters.get(name)
    if value is not None and type(value) is not kind:
        expected = "true or false" if kind is bool else "an integer"
        raise MalformedError(f"The parameter {name} must be {expected}, not {format_value(value)}.")
    return value


def _check_supported(parameters: Mapping[str, Any]) -> None:
    for name, extension in UNSUPPORTED.items():
        if parameters.get(name):
            raise InvalidError(f"{name}: this server does not have {extension}.")


def _check_names(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise MalformedError(f"The {kind} {format_value(twice)} occurs twice.")


def encode(asked: Asked, model_hash: str, version: int, outputs: Mapping[str, Output]) -> tuple[bytes, int | None]:
    """Return an answer, and the length of its JSON if bytes of tensors follow it."""
    described, tail = [], list[bytes]()
    for name, output in outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": output.datatype, "shape": output.shape}
        if asked.outputs[name]:
            tensor["parameters"] = {BINARY_SIZE: sum(map(len, output.pieces))}
            tail += output.pieces
        else:
            tensor["data"] = msgspec.Raw(b"[%b]" % b",".join(filter(None, output.pieces)))
        described.append(tensor)
    answer: dict[str, Any] = {"model_name": model_hash, "model_version": str(version)}
    if asked.id is not None:
        answer["id"] = asked.id
    head = _encode({**answer, "outputs": described})
    if True not in asked.outputs.values():
        return head, None
    return b"".join([head, *tail]), len(head)

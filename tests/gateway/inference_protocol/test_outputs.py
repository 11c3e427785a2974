"""Predictions as tensors: the values of the JSON, in one datatype, in bytes and in JSON."""

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from keepfit.errors import InvalidError
from keepfit_gateway.inference_protocol import outputs
from keepfit_gateway.inference_protocol.outputs import Output, output_of
from keepfit_gateway.web.responses import encode_json

KINDS: dict[str, Any] = {
    "FP64": strategies.floats(allow_nan=False, allow_infinity=False),
    "INT64": strategies.integers(-(2**53) + 1, 2**53 - 1),
    "BOOL": strategies.booleans(),
    "BYTES": strategies.text(),
}
DTYPES = {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}


def values_of(output: Output, *, binary: bool) -> list[Any]:
    """Return the values of a tensor, row by row."""
    if not binary:
        found: list[Any] = json.loads(b"[%b]" % b",".join(filter(None, output.pieces)))
        return found
    data, texts = b"".join(output.pieces), []
    if output.datatype != "BYTES":
        return list(np.frombuffer(data, DTYPES[output.datatype]).tolist())
    while data:
        (length,) = struct.unpack_from("<I", data)
        texts.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return texts


@settings(max_examples=200, deadline=None)
@given(
    data=strategies.data(),
    kind=strategies.sampled_from(sorted(KINDS)),
    shape=strategies.lists(strategies.integers(1, 4), min_size=1, max_size=3),
    binary=strategies.booleans(),
    step=strategies.integers(8, 64),
)
def test_values_are_those_of_the_json(data: Any, kind: str, shape: list[int], binary: bool, step: int) -> None:
    """A tensor has the shape and the values of nested lists, wherever the text is cut."""
    flat = data.draw(strategies.lists(KINDS[kind], min_size=math.prod(shape), max_size=math.prod(shape)))
    text = encode_json(np.array([*flat, None], dtype=object)[:-1].reshape(shape).tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "STEP_BYTES", step)
        output = output_of("predictions", text, binary=binary)
    assert (output.datatype, output.shape) == (kind, shape)
    assert values_of(output, binary=binary) == flat


@pytest.mark.parametrize(
    ("text", "datatype", "shape", "values"),
    [
        ("[1,2]", "INT64", [2], [1, 2]),
        ("[1,null]", "FP64", [2], [1.0, None]),
        ("[null]", "FP64", [1], [None]),
        ("[1,2.5]", "FP64", [2], [1.0, 2.5]),
        ('["a",1,true,null,2.5]', "BYTES", [5], ["a", "1", "true", "", "2.5"]),
        ("[1,true]", "BYTES", [2], ["1", "true"]),
        ("[true,null]", "BYTES", [2], ["true", ""]),
        ("[null,[1.5,2]]", "FP64", [2, 2], [None, None, 1.5, 2.0]),
        ("[[],[]]", "FP64", [2, 0], []),
        ("[[[0.5],[1]],[[1],[0]]]", "FP64", [2, 2, 1], [0.5, 1.0, 1.0, 0.0]),
    ],
)
def test_datatypes(text: str, datatype: str, shape: list[int], values: list[Any]) -> None:
    """Mixed labels are text, numbers with a missing one FP64 with NaN, which is null in JSON."""
    for binary in (True, False):
        output = output_of("predictions", text.encode(), binary=binary)
        assert (output.datatype, output.shape) == (datatype, shape)
        found = [None if value != value else value for value in values_of(output, binary=binary)]  # noqa: PLR0124
        assert found == values


def test_whole_numbers_of_a_regressor_are_floats() -> None:
    """The recipe decides that predictions are numbers, also if all of them happen to be whole."""
    assert output_of("predictions", b"[1,2]", binary=True, numeric=True).datatype == "FP64"


@pytest.mark.parametrize("text", ["[[1],[2,3]]", "[[1],2]", '[{"a":1}]', "[[[[1]]]]", "[[[1],[2]],[[1]]]"])
def test_what_no_tensor_can_hold_is_refused(text: str) -> None:
    """Lists of different lengths, objects and deep lists have no tensor; the message says where to find them."""
    with pytest.raises(InvalidError, match="/v1/models"):
        output_of("predictions", text.encode(), binary=True)

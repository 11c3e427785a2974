"""Requests as bytes: whatever arrives is a request or an error of the client."""

import json
import struct
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings, strategies

from keepfit.errors import InvalidError, MalformedError, TooLargeError
from keepfit.recipe import recipe as recipes
from keepfit.rows import shaping
from keepfit_gateway.inference_protocol import messages, rows
from keepfit_gateway.inference_protocol.messages import Asked
from keepfit_gateway.inference_protocol.outputs import output_of

REFUSALS = (MalformedError, InvalidError, TooLargeError, web.HTTPRequestEntityTooLarge)
DATATYPES = ["FP64", "FP16", "BF16", "INT8", "UINT64", "BOOL", "BYTES"]
RECIPES = [
    recipes.parse({"estimator": "SGDRegressor"}),
    recipes.parse(
        {"estimator": "SGDRegressor", "features": {"X": "number", "b": {"type": "boolean", "missing": "zero"}}}
    ),
    recipes.parse(
        {
            "estimator": "SGDRegressor",
            "features": {
                "X": {"type": "category", "missing": "zero"},
                "b": "text",
                "c": {"type": "timestamp", "missing": "mean"},
            },
        }
    ),
]


def request_of(*inputs: tuple[str, str, list[int], bytes]) -> tuple[bytes, int]:
    """Return a body with binary tensors, and the length of its JSON."""
    described = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, datatype, shape, data in inputs
    ]
    head = json.dumps({"id": "1", "inputs": described, "outputs": [{"name": "predictions"}]}).encode()
    return head + b"".join(data for *_, data in inputs), len(head)


GOOD = request_of(("X", "FP64", [1, 2], struct.pack("<2d", 1, 2)), ("b", "BYTES", [1], b"\1\0\0\0a"))


@settings(max_examples=400, deadline=None)
@given(
    position=strategies.integers(0, len(GOOD[0]) - 1),
    removed=strategies.integers(0, 9),
    added=strategies.binary(max_size=9),
    shift=strategies.sampled_from([0, 0, -1, 1, -20, 20, 10**15]),
)
def test_any_change_of_a_request_is_a_request_or_refused(position: int, removed: int, added: bytes, shift: int) -> None:
    """A body with any bytes changed, and with another length of its JSON, raises errors of the client only."""
    body, length = GOOD
    changed = body[:position] + added + body[position + removed :]
    for header_length in (max(length + shift + len(added) - removed, 0), length, None):
        try:
            messages.parse(changed, header_length)
        except REFUSALS:
            continue


@settings(max_examples=400, deadline=None)
@given(
    recipe=strategies.sampled_from(RECIPES),
    inputs=strategies.lists(
        strategies.tuples(
            strategies.sampled_from(["X", "b", "c", "d"]),
            strategies.sampled_from(DATATYPES),
            strategies.lists(strategies.integers(1, 3), min_size=1, max_size=2),
            strategies.sampled_from(
                [bytes(1), bytes(4), bytes(8), b"\1\0\0\0\xff", b"\1\0\0\0a", b"\xff" * 8, bytes(16)]
            ),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_any_tensors_are_rows_or_refused(recipe: recipes.Recipe, inputs: list[Any]) -> None:
    """Tensors of any name, datatype, shape and bytes are rows of the recipe, or raise errors of the client."""
    try:
        tensors, _ = messages.parse(*request_of(*inputs))
        shaped = rows.shape(tensors, recipe, learning=False)
    except REFUSALS:
        return
    assert shaped.n == inputs[0][2][0]
    assert len(shaped.numbers) == shaped.n * 8 * (shaped.width - len(shaped.categories))


def test_tensors_become_the_rows_of_the_json_api() -> None:
    """A matrix, and columns, are the rows that the same values are in JSON, to the bit."""
    tensors, asked = messages.parse(*request_of(("X", "FP64", [2, 2], struct.pack("<4d", 1, 0.1, 3, 1e-300))))
    expected = shaping.shape(RECIPES[0], [[1, 0.1], [3, 1e-300]], learning=False)
    shaped = rows.shape(tensors, RECIPES[0], learning=False)
    assert bytes(shaped.numbers) == expected.numbers
    assert asked == Asked({"predictions": False}, "1", None)
    tensors, _ = messages.parse(
        *request_of(
            ("c", "BYTES", [2], b"\x14\0\0\x002026-11-20T00:00:00Z" + bytes(4)),
            ("X", "BYTES", [2, 1], bytes(4) + b"\1\0\0\0a"),
            ("b", "BYTES", [2], b"\3\0\0\0e\xcc\x81" + bytes(4)),
        )
    )
    expected = shaping.shape(RECIPES[2], [[None, "é", "2026-11-20T00:00:00Z"], ["a", "", None]], learning=False)
    shaped = rows.shape(tensors, RECIPES[2], learning=False)
    assert (bytes(shaped.numbers), shaped.categories) == (expected.numbers, expected.categories)


@pytest.mark.parametrize("binary", [(True, False), (False, True), (True, True), (False, False)])
def test_answers_have_bytes_after_their_json(binary: tuple[bool, bool]) -> None:
    """The bytes of outputs follow the JSON in their order; without any there is no length of the JSON."""
    asked = Asked(dict(zip(("predictions", "classes"), binary, strict=True)), None, None)
    outputs = {
        name: output_of(name, text, binary=asked.outputs[name])
        for name, text in (("predictions", b'["a","b"]'), ("classes", b"[1,2,3]"))
    }
    body, length = messages.encode(asked, "0" * 64, 7, outputs)
    document = msgspec.json.decode(body if length is None else body[:length])
    assert (document["model_name"], document["model_version"], "id" in document) == ("0" * 64, "7", False)
    tail = b"" if length is None else body[length:]
    expected = [
        (b"\1\0\0\0a\1\0\0\0b", ["a", "b"]),
        (struct.pack("<3q", 1, 2, 3), [1, 2, 3]),
    ]
    for output, as_bytes, (data, values) in zip(document["outputs"], binary, expected, strict=True):
        if as_bytes:
            assert output["parameters"] == {"binary_data_size": len(data)}
            assert tail.startswith(data)
            tail = tail[len(data) :]
        else:
            assert output["data"] == values
    assert tail == b""

"""Tensors of requests: every value arrives as it was sent, and nothing else is accepted."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra import numpy as arrays

from keepfit.errors import InvalidError, MalformedError
from keepfit_gateway.inference_protocol import tensors
from keepfit_gateway.inference_protocol.tensors import DTYPES, from_bytes, from_json
from keepfit_gateway.schemas import InputTensor

NUMPY = {**DTYPES, "BOOL": "?"}
NUMPY.pop("BF16")
SHAPES = arrays.array_shapes(min_dims=1, max_dims=2, max_side=6)


def form(datatype: Any, shape: list[int], name: str = "x") -> InputTensor:
    """Return an input without values."""
    return InputTensor(name=name, shape=shape, datatype=datatype)


def serialized(values: list[str]) -> bytes:
    """Return texts as the bytes of a tensor."""
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)


@settings(max_examples=200, deadline=None)
@given(data=strategies.data(), datatype=strategies.sampled_from(sorted(NUMPY)), padding=strategies.binary(max_size=9))
def test_numbers_have_one_value_in_both_forms(data: Any, datatype: str, padding: bytes) -> None:
    """A tensor has the values of its bytes, wherever they begin, and the same from JSON, flat or by rows."""
    elements = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    array = data.draw(arrays.arrays(NUMPY[datatype], data.draw(SHAPES), elements=elements))
    body = padding + array.tobytes() + padding
    shape = list(array.shape)
    found = from_bytes(form(datatype, shape), body, len(padding), len(padding) + array.nbytes)
    assert found.shape == array.shape
    assert found.texts is None
    assert found.values.tobytes() == array.tobytes()
    assert bytes(memoryview(found.memory)[found.offset : found.offset + array.nbytes]) == array.tobytes()
    for sent in (array.tolist(), array.ravel().tolist()):
        assert from_json(form(datatype, shape), sent).values.tobytes() == array.tobytes()


@settings(max_examples=100, deadline=None)
@given(strategies.lists(strategies.text(), min_size=1), strategies.binary(max_size=9))
def test_texts_have_one_value_in_both_forms(values: list[str], padding: bytes) -> None:
    """Texts are those of the bytes, and of JSON."""
    data = serialized(values)
    shape = form("BYTES", [len(values)])
    assert from_bytes(shape, padding + data + padding, len(padding), len(padding) + len(data)).texts == values
    assert from_json(shape, values).texts == values


@settings(max_examples=300, deadline=None)
@given(
    datatype=strategies.sampled_from([*DTYPES, "BYTES"]),
    shape=strategies.lists(strategies.integers(0, 10**30), min_size=1, max_size=2),
    data=strategies.binary(max_size=64),
)
def test_any_bytes_and_shape_are_a_tensor_or_refused(datatype: str, shape: list[int], data: bytes) -> None:
    """Whatever is sent is a tensor of the shape or an error of the client, and takes no memory for the shape."""
    try:
        found = from_bytes(form(datatype, shape), data, 0, len(data))
    except (MalformedError, InvalidError):
        return
    count = len(found.texts) if found.texts is not None else found.values.size
    assert count == np.prod(shape)


@settings(max_examples=300, deadline=None)
@given(
    datatype=strategies.sampled_from([*DTYPES, "BYTES"]),
    shape=strategies.lists(strategies.integers(0, 4), min_size=1, max_size=2),
    data=strategies.recursive(
        strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text(),
        lambda items: strategies.lists(items, max_size=4),
        max_leaves=16,
    ),
)
def test_any_json_is_a_tensor_or_refused(datatype: str, shape: list[int], data: Any) -> None:
    """Whatever JSON holds is a tensor of the shape or an error of the client."""
    try:
        found = from_json(form(datatype, shape), data if isinstance(data, list) else [data])
    except (MalformedError, InvalidError):
        return
    count = len(found.texts) if found.texts is not None else found.values.size
    assert count == np.prod(shape)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "reason"),
    [
        pytest.param("FP64", [2], bytes(15), "has 16 bytes, and binary_data_size is 15", id="too few bytes"),
        pytest.param("FP64", [2], bytes(24), "has 16 bytes, and binary_data_size is 24", id="too many bytes"),
        pytest.param("FP64", [2**40, 2**40], bytes(16), "and binary_data_size is 16", id="huge shape"),
        pytest.param("BYTES", [2**62], bytes(16), "lengths alone have", id="huge number of texts"),
        pytest.param("BOOL", [2], b"\1\2", "one byte, 0 or 1", id="no boolean"),
        pytest.param("BYTES", [1], b"\5\0\0\0abcd", "element 0 has 5 bytes, and 4 are left", id="text too long"),
        pytest.param("BYTES", [1], b"\xff\xff\xff\xffabcd", "has 4294967295 bytes", id="huge text"),
        pytest.param("BYTES", [1], b"\1\0\0\0abc", "2 bytes follow the last element", id="bytes left"),
        pytest.param("BYTES", [2], b"\4\0\0\0abcd", "end before element 1", id="text missing"),
        pytest.param("BYTES", [2], b"\3\0\0\0abc\0", "end before element 1", id="length cut short"),
    ],
)
def test_malformed_bytes(datatype: str, shape: list[int], data: bytes, reason: str) -> None:
    """Bytes that do not agree with the shape are malformed, with the numbers."""
    with pytest.raises(MalformedError, match=reason):
        from_bytes(form(datatype, shape), data, 0, len(data))


@pytest.mark.parametrize(
    ("datatype", "data", "reason"),
    [
        ("INT8", [128], "outside of the range of INT8"),
        ("UINT8", [-1], "outside of the range of UINT8"),
        ("INT64", [2**63], "outside of the range"),
        ("INT64", [2**53, None], "outside of the range"),
        ("FP64", [10**400], "outside of the range"),
        ("INT32", [1.5], "1.5 is not INT32"),
        ("INT32", [True], "true is not INT32"),
        ("FP64", ["1"], "'1' is not FP64"),
        ("FP64", [False], "false is not FP64"),
        ("BOOL", [1], "1 is not BOOL"),
        ("BYTES", [1], "1 is not BYTES"),
        ("BYTES", [{}], "an object is not BYTES"),
    ],
)
def test_invalid_json_values(datatype: str, data: list[Any], reason: str) -> None:
    """Values of another type or out of range are invalid, with the value."""
    with pytest.raises(InvalidError, match=reason):
        from_json(form(datatype, [len(data)]), data)


@pytest.mark.parametrize(
    ("shape", "data"),
    [([3], [1.0]), ([2, 2], [1.0] * 3), ([2, 2], [[1.0, 2.0]]), ([2, 2], [[1.0], [2.0]]), ([2], [[1.0], [2.0]]),
     ([2, 2], [[1.0, 2.0], 3.0])],
)  # fmt: skip
def test_json_of_another_shape(shape: list[int], data: list[Any]) -> None:
    """Values that do not have the shape are malformed."""
    with pytest.raises(MalformedError, match="input 'x'"):
        from_json(form("FP64", shape), data)


def test_text_that_is_not_utf_8() -> None:
    """A text that is not UTF-8 is invalid, with the number of its element."""
    with pytest.raises(InvalidError, match="element 1 is not UTF-8"):
        from_bytes(form("BYTES", [2]), b"\1\0\0\0a\1\0\0\0\xff", 0, 10)


def test_a_missing_number_is_nan() -> None:
    """null among numbers of any type is NaN."""
    for datatype in ("FP64", "FP16", "BF16", "INT64", "UINT8", "BOOL"):
        values = from_json(form(datatype, [2]), [None, True if datatype == "BOOL" else 1]).values
        assert np.isnan(values[0])
        assert values[1] == 1


def test_equal_texts_are_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that occur often take no memory of their own; the number of different ones is bounded."""
    labels = [f"label {i % 3}" for i in range(300)]
    data = serialized(labels)
    found = from_bytes(form("BYTES", [300]), data, 0, len(data)).texts or []
    assert len(set(map(id, found))) == 3
    monkeypatch.setattr(tensors, "SHARED_TEXTS_MAX", 1)
    assert from_bytes(form("BYTES", [300]), data, 0, len(data)).texts == labels

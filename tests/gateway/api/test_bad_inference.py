"""Bad requests of the inference protocol, row by row of `docs/reference/validation.md`: each is refused with 4xx."""

import io
import json
from typing import Any

import aiohttp
import pytest

from keepfit.settings import Settings
from keepfit_gateway.web.rows_body import STRICT_BYTES_MAX
from tests.gateway.api.test_inference_protocol import FEATURES, MIXED, ROWS, Protocol, X, binary, matrix, tensor, texts
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, Api, serving

GOOD = {"inputs": [matrix(X)]}
PAIR = {"name": "X", "datatype": "FP64", "shape": [1, 2]}
BINARY = {**PAIR, "parameters": {"binary_data_size": 16}}
SHARED = {**PAIR, "parameters": {"shared_memory_region": "a", "shared_memory_byte_size": 16}, "data": [1, 2]}


@pytest.fixture
async def protocol(api: Api, metadata: dict[str, Any]) -> Protocol:
    """Return the protocol about a model of a matrix with two columns."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, X, [1, 2, 3])
    return Protocol(api, path)


@pytest.fixture
async def columns(api: Api, metadata: dict[str, Any]) -> Protocol:
    """Return the protocol about a model with a column of each kind."""
    path = await api.make(metadata, MIXED)
    await api.learn(path, ROWS, [1, 2])
    return Protocol(api, path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"{", "not JSON", id="cut short"),
        pytest.param(b"[]", "Expected `object`", id="no object"),
        pytest.param(b"\xff", "not UTF-8", id="not UTF-8"),
        pytest.param(b'{"inputs":[],"inputs":[]}', "'inputs' occurs twice", id="repeated key"),
        pytest.param(b"[" * 100_000, "nested too deeply", id="deep"),
        pytest.param({}, "missing required field `inputs`", id="no inputs"),
        pytest.param({"inputs": []}, "$.inputs", id="empty inputs"),
        pytest.param({**GOOD, "input": []}, "unknown field `input`", id="unknown field"),
        pytest.param({**GOOD, "outputs": {}}, "$.outputs", id="outputs are no list"),
        pytest.param({**GOOD, "id": 1}, "$.id", id="id is a number"),
        pytest.param({"inputs": [{**PAIR, "data": 1}]}, "$.inputs[0].data", id="data is no list"),
        pytest.param({"inputs": [{**PAIR, "datatype": "FP8", "data": [1, 2]}]}, "'FP8'", id="datatype"),
        pytest.param({"inputs": [{**PAIR, "shape": [-1, 2], "data": [1, 2]}]}, "shape[0]", id="negative shape"),
        pytest.param({"inputs": [{**PAIR, "shape": [1.5, 2], "data": [1, 2]}]}, "shape[0]", id="fraction"),
        pytest.param({"inputs": [{**PAIR, "shape": [], "data": [1]}]}, "shape", id="no dimension"),
        pytest.param({"inputs": [{**PAIR, "shape": [1, 2, 1], "data": [1, 2]}]}, "shape", id="three dimensions"),
        pytest.param({"inputs": [{**PAIR, "shape": [10**30, 2], "data": [1, 2]}]}, "data has 2", id="huge shape"),
        pytest.param({"inputs": [{**PAIR, "data": [1, 2, 3]}]}, "data has 3", id="too many values"),
        pytest.param({"inputs": [{**PAIR, "data": [[1], [2]]}]}, "another form", id="another form"),
        pytest.param({"inputs": [PAIR]}, "needs either data or binary_data_size", id="no data"),
        pytest.param({"inputs": [BINARY]}, "Inference-Header-Content-Length", id="binary without a header"),
        pytest.param({"inputs": [{**BINARY, "data": [1, 2]}]}, "either data or", id="data and bytes"),
        pytest.param({"inputs": [matrix(X), matrix(X)]}, "'X' occurs twice", id="repeated input"),
        pytest.param({**GOOD, "outputs": [{"name": "predictions"}] * 2}, "occurs twice", id="repeated output"),
        pytest.param({**GOOD, "parameters": {"timeout": -1}}, "timeout", id="negative timeout"),
        pytest.param({**GOOD, "parameters": {"timeout": 10**9}}, "timeout", id="timeout too long"),
        pytest.param({**GOOD, "parameters": {"timeout": "1"}}, "timeout", id="timeout is text"),
        pytest.param({**GOOD, "parameters": {"binary_data_output": 1}}, "true or false", id="no boolean"),
    ],
)
async def test_malformed_inference_requests(protocol: Protocol, body: Any, reason: str) -> None:
    """A request that is not JSON or does not have the form of the protocol answers 400 with the reason."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = await protocol.send(data, {"Content-Type": "application/json"})
    assert reason in reply.inference_error(400)


@pytest.mark.parametrize(
    ("length", "tail", "size", "reason"),
    [
        pytest.param("-1", b"", 0, "number of bytes of the JSON", id="negative header"),
        pytest.param("1e3", b"", 0, "number of bytes of the JSON", id="no integer"),
        pytest.param("999999", b"", 0, "the body has", id="header beyond the body"),
        pytest.param("0", bytes(16), 16, "not JSON", id="no JSON"),
        pytest.param(None, bytes(8), 16, "and 8 bytes are left", id="bytes missing"),
        pytest.param(None, bytes(16), 10**30, "and 16 bytes are left", id="huge size"),
        pytest.param(None, bytes(16), -16, "and 16 bytes are left", id="negative size"),
        pytest.param(None, bytes(16), 8, "has 16 bytes, and binary_data_size is 8", id="size of another shape"),
        pytest.param(None, bytes(24), 16, "8 bytes follow the tensors", id="bytes left"),
        pytest.param(None, bytes(16), 16.0, "must be an integer", id="fraction"),
        pytest.param(None, bytes(16), True, "must be an integer", id="boolean"),
        pytest.param(None, bytes(16), "16", "must be an integer", id="text"),
    ],
)
async def test_malformed_binary_tensors(
    protocol: Protocol, length: str | None, tail: bytes, size: Any, reason: str
) -> None:
    """Lengths that do not agree with the body or the shape answer 400, before memory is taken for them."""
    head = json.dumps({"inputs": [{**PAIR, "parameters": {"binary_data_size": size}}]}).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(head))}
    reply = await protocol.send(head + tail, {**headers, "Content-Type": "application/octet-stream"})
    assert reason in reply.inference_error(400)


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        pytest.param(b"\5\0\0\0abcd", 400, "element 0 has 5 bytes", id="length beyond the tensor"),
        pytest.param(b"\xff\xff\xff\xff", 400, "4294967295 bytes", id="huge length"),
        pytest.param(texts("a") + b"x", 400, "1 bytes follow the last element", id="bytes left"),
        pytest.param(b"\1\0\0\0\xff", 422, "element 0 is not UTF-8", id="not UTF-8"),
        pytest.param(b"", 400, "lengths alone have 4 bytes", id="empty"),
    ],
)
async def test_malformed_texts(columns: Protocol, data: bytes, status: int, reason: str) -> None:
    """Lengths of texts that do not agree with their tensor answer 400, text that is not UTF-8 422."""
    reply = await columns.send(*binary(("make", "BYTES", [1], data)))
    assert reason in reply.inference_error(status)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        pytest.param({"inputs": [tensor("Y", "FP64", [[1, 2]], [1, 2])]}, "one input, 'X'", id="another name"),
        pytest.param({"inputs": [tensor("X", "FP64", [1, 2])]}, "a single row is [1, 2]", id="one dimension"),
        pytest.param({"inputs": [tensor("X", "BYTES", ["a", "b"], [1, 2])]}, "send numbers", id="text"),
        pytest.param({"inputs": [matrix([[1, 2, 3]])]}, "where the model has learned 2", id="another width"),
        pytest.param({"inputs": [matrix([[1, None]])]}, "nan is not a finite number", id="missing"),  # type: ignore[list-item]
        pytest.param({"inputs": [tensor("X", "FP64", [], [0, 2])]}, "at least one row", id="no rows"),
        pytest.param({"inputs": [tensor("X", "FP64", [1e39, 1], [1, 2])]}, "finite number", id="too large"),
        pytest.param({"inputs": [tensor("X", "INT64", [2**53, 1], [1, 2])]}, "2^53", id="large integer"),
        pytest.param({"inputs": [tensor("X", "INT8", [1, 300], [1, 2])]}, "outside of the range", id="out of range"),
        pytest.param({"inputs": [tensor("X", "INT8", [1, "a"], [1, 2])]}, "'a' is not INT8", id="another type"),
        pytest.param({**GOOD, "outputs": [{"name": "scores"}]}, "no output 'scores'; it has predictions", id="output"),
        pytest.param({"inputs": [SHARED]}, "shared memory", id="shared memory"),
        pytest.param(
            {**GOOD, "outputs": [{"name": "predictions", "parameters": {"classification": 3}}]},
            "classification",
            id="classification",
        ),
    ],
)
async def test_invalid_inference_requests(protocol: Protocol, document: Any, reason: str) -> None:
    """Tensors or outputs that the model does not have, and invalid values, answer 422 with the reason."""
    reply = await protocol.api.post(f"{protocol.root}/infer", document)
    assert reason in reply.inference_error(422)


VALID = {
    "make": tensor("make", "BYTES", ["nike"]),
    "note": tensor("note", "BYTES", ["red"]),
    "sold": tensor("sold", "FP64", [0.0]),
    "worn": tensor("worn", "BOOL", [True]),
    "price": tensor("price", "FP64", [1.0]),
}


@pytest.mark.parametrize(
    ("name", "replaced", "reason"),
    [
        pytest.param("note", None, "column 'note': the column is missing", id="missing"),
        pytest.param("more", tensor("more", "FP64", [1.0]), "no such column", id="unknown"),
        pytest.param("price", tensor("price", "FP64", [1.0, 2.0]), "a column of 1 rows has [1]", id="more rows"),
        pytest.param("price", tensor("price", "FP64", [[1.0, 2.0]], [1, 2]), "has the shape [1, 2]", id="two columns"),
        pytest.param("price", tensor("price", "BYTES", ["abc"]), "'abc' is not a number", id="text as a number"),
        pytest.param("make", tensor("make", "FP64", [1.5]), "not a category", id="number as a category"),
        pytest.param("make", tensor("make", "BOOL", [True]), "not a category", id="boolean as a category"),
        pytest.param("note", tensor("note", "INT64", [1]), "not a text", id="number as a text"),
        pytest.param("note", tensor("note", "BYTES", [None]), "the value is missing", id="missing text"),
        pytest.param("sold", tensor("sold", "BYTES", ["soon"]), "'soon' is not a time", id="no time"),
        pytest.param("worn", tensor("worn", "INT64", [2]), "not a boolean", id="no boolean"),
    ],
)
async def test_columns_that_do_not_fit_the_recipe(columns: Protocol, name: str, replaced: Any, reason: str) -> None:
    """A missing or unknown column, another number of rows, and values of another kind answer 422."""
    assert VALID.keys() == FEATURES.keys()
    inputs = {**VALID, name: replaced}
    reply = await columns.ask([each for each in inputs.values() if each is not None])
    assert reason in reply.inference_error(422)


async def test_a_matrix_has_no_text(columns: Protocol) -> None:
    """A model with text or category columns takes no matrix: the message says to send columns."""
    assert "one input for each column" in (await columns.ask([matrix([[1, 2, 3, 4, 5]])])).inference_error(422)


async def test_limits_of_inference_requests(protocol: Protocol) -> None:
    """JSON of more than 4 MiB, and a matrix of more than 10,000 columns, answer 413 with the limit."""
    padded = b" " * STRICT_BYTES_MAX + json.dumps(GOOD).encode()
    reply = await protocol.send(padded, {"Content-Type": "application/json"})
    assert "send large tensors as binary data" in reply.inference_error(413)
    wide = binary(("X", "UINT8", [1, 10_001], bytes(10_001)))
    assert "the limit is 10000" in (await protocol.send(*wide)).inference_error(413)


async def test_inference_without_a_prediction(api: Api, metadata: dict[str, Any]) -> None:
    """A model without rows answers 409; probabilities of an estimator that has none 422."""
    path = await api.make(metadata, CLASSIFIER)
    protocol = Protocol(api, path)
    assert "partial_fit" in (await protocol.ask([matrix(X)])).inference_error(409)
    await api.learn(path, X, ["no", "yes", "no"])
    reply = await protocol.ask([matrix(X)], [{"name": "probabilities"}])
    assert "no probabilities" in reply.inference_error(422)


@pytest.mark.parametrize("call", ["config", "stats", "versions/1/config", "trace/setting", "infer"])
async def test_calls_that_this_server_does_not_have(protocol: Protocol, call: str) -> None:
    """Calls of other servers answer 404 or 405 in the protocol's form."""
    (await protocol.api.get(f"{protocol.root}/{call}")).inference_error(405 if call == "infer" else 404)


async def test_names_that_no_model_has(api: Api) -> None:
    """A name that is no hash answers 400, an unknown hash 404, also before a large body is read."""
    assert "hexadecimal" in (await api.get("/v2/models/resnet")).inference_error(400)
    assert "There is no model" in (await api.get(f"/v2/models/{'0' * 64}")).inference_error(404)
    reply = await api.call("POST", f"/v2/models/{'0' * 64}/infer", data=io.BytesIO(bytes(1 << 20)))
    assert "There is no model" in reply.inference_error(404)


async def test_an_error_of_the_head_has_the_form_of_the_protocol(settings: Settings) -> None:
    """What is refused before the route is known has the form of its path, and is never coded."""
    async with serving(settings) as api, aiohttp.ClientSession(api.url) as http:
        for headers, status in (({"Expect": "klingon"}, 417), ({"Host": "evil.example"}, 421)):
            async with http.post("/v2/models/a/infer", data=b"{}", headers=headers) as response:
                assert response.status == status
                assert response.headers["Content-Type"] == "application/json"
                assert (await response.json()).keys() == {"error"}

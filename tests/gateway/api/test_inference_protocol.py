"""The Open Inference Protocol over HTTP: metadata, readiness, and predictions equal to those of the JSON API."""

import gzip
import io
import json
import struct
import zlib
from typing import Any

import aiohttp
import numpy as np
import pytest

from keepfit.security.api_keys import PREDICT, READ, new_key
from keepfit.settings import Settings
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, Api, Reply, serving

MISSING = "0" * 64
X = [[0.5, 1.0], [2.0, -3.0], [4.0, 0.25]]
FEATURES: dict[str, Any] = {
    "make": {"type": "category", "missing": "indicator"},
    "note": {"type": "text", "n_features": 8},
    "sold": {"type": "timestamp", "expand": ["hour"]},
    "worn": "boolean",
    "price": {"type": "number", "missing": "mean"},
}
MIXED = {"estimator": "SGDRegressor", "features": FEATURES, "scaler": "StandardScaler"}
ROWS = [["nike", "red", 1_700_000_000, True, 1.5], ["puma", "blue", 1_800_000_000, False, 2.0]]


def tensor(name: str, datatype: str, data: list[Any], shape: list[int] | None = None) -> dict[str, Any]:
    """Return an input in JSON."""
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": data}


def matrix(rows: list[list[float]], datatype: str = "FP64") -> dict[str, Any]:
    """Return the input of a model without columns."""
    return tensor("X", datatype, rows, [len(rows), len(rows[0])])


def binary(*tensors: tuple[str, str, list[int], bytes], **fields: Any) -> tuple[bytes, dict[str, str]]:
    """Return a body with binary tensors, and its header fields."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, datatype, shape, data in tensors
    ]
    head = json.dumps({"inputs": inputs, **fields}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return head + b"".join(data for *_, data in tensors), headers


def texts(*values: str) -> bytes:
    """Return texts as the bytes of a tensor."""
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)


def outputs_of(reply: Reply) -> dict[str, Any]:
    """Return the outputs of an answer by name: their values in their shape, with the datatype."""
    size = reply.headers.get("Inference-Header-Content-Length")
    head = json.loads(reply.body if size is None else reply.body[: int(size)])
    assert reply.headers["Content-Type"] == ("application/json" if size is None else "application/octet-stream")
    start, found = len(reply.body) if size is None else int(size), {}
    for output in head["outputs"]:
        values = output.get("data")
        if values is None:
            end = start + output["parameters"]["binary_data_size"]
            values, start = values_of(output["datatype"], reply.body[start:end]), end
        array = np.array(values, dtype=object).reshape(output["shape"])
        found[output["name"]] = (output["datatype"], array.tolist())
    assert start == len(reply.body)
    return found


def values_of(datatype: str, data: bytes) -> list[Any]:
    """Return the values in the bytes of a tensor."""
    if datatype != "BYTES":
        return list(np.frombuffer(data, {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}[datatype]).tolist())
    found = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        found.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return found


class Protocol:
    """Calls of the protocol about one model."""

    def __init__(self, api: Api, path: str) -> None:
        self.api, self.path = api, path
        self.root = path.replace("/v1/", "/v2/")

    async def ask(self, inputs: list[Any], outputs: list[Any] | None = None, **more: Any) -> Reply:
        """Send an inference request in JSON."""
        document = {"inputs": inputs, **more} if outputs is None else {"inputs": inputs, "outputs": outputs, **more}
        return await self.api.post(f"{self.root}/infer", document)

    async def send(self, body: bytes, headers: dict[str, str]) -> Reply:
        """Send an inference request as bytes."""
        return await self.api.call("POST", f"{self.root}/infer", data=io.BytesIO(body), headers=headers)


async def learned(api: Api, metadata: dict[str, Any], recipe: Any, X: list[Any], y: list[Any] | None) -> Protocol:
    """Return the protocol about a new model that has learned rows."""
    path = await api.make(metadata, recipe)
    await api.learn(path, X, y)
    return Protocol(api, path)


# Server and models.


async def test_the_server_describes_itself(api: Api) -> None:
    """Server metadata, liveness and readiness need no model."""
    server = (await api.get("/v2")).of(200)
    assert (server["name"], server["extensions"]) == ("keepfit", ["binary_tensor_data"])
    assert (await api.get("/v2/health/live")).of(200) == {"live": True}
    assert (await api.get("/v2/health/ready")).of(200) == {"ready": True}


async def test_a_server_without_workers_is_not_ready(workerless: Api) -> None:
    """Readiness answers 503 with the reason if the gateway cannot predict."""
    reply = await workerless.get("/v2/health/ready")
    assert reply.status == 503
    document = reply.json()
    assert document["ready"] is False
    assert document["error"]


async def test_a_model_is_ready_once_it_has_learned(api: Api, metadata: dict[str, Any]) -> None:
    """A model is ready after its first row, by the live version only; an unknown one never."""
    path = await api.make(metadata, REGRESSOR)
    root = path.replace("/v1/", "/v2/")
    assert "partial_fit" in (await api.get(f"{root}/ready")).inference_error(409)
    version = (await api.learn(path, X, [1, 2, 3]))["version"]
    for prefix in (root, f"{root}/versions/{version}"):
        assert (await api.get(f"{prefix}/ready")).of(200) == {"name": root.rpartition("/")[2], "ready": True}
    assert f"has version {version} now" in (await api.get(f"{root}/versions/0/ready")).inference_error(404)
    assert "There is no model" in (await api.get(f"/v2/models/{MISSING}/ready")).inference_error(404)
    assert "integer" in (await api.get(f"{root}/versions/latest/ready")).inference_error(400)


@pytest.mark.parametrize(
    ("recipe", "inputs", "outputs"),
    [
        (REGRESSOR, [("X", "FP64", [-1, -1])], [("predictions", "FP64", [-1])]),
        (
            MIXED,
            [("make", "BYTES", [-1]), ("note", "BYTES", [-1]), ("sold", "FP64", [-1]), ("worn", "BOOL", [-1]),
             ("price", "FP64", [-1])],
            [("predictions", "FP64", [-1])],
        ),
        (
            {**CLASSIFIER, "classes": [1, 2]},
            [("X", "FP64", [-1, -1])],
            [("predictions", "INT64", [-1]), ("probabilities", "FP64", [-1, -1]), ("classes", "INT64", [-1])],
        ),
        (
            {"estimator": "SGDOneClassSVM"},
            [("X", "FP64", [-1, -1])],
            [("predictions", "INT64", [-1]), ("scores", "FP64", [-1])],
        ),
        ({"estimator": "IncrementalPCA"}, [("X", "FP64", [-1, -1])], [("predictions", "FP64", [-1, -1])]),
    ],
    ids=["matrix", "columns", "integers", "outliers", "transformer"],
)  # fmt: skip
async def test_a_model_describes_its_tensors(
    api: Api, metadata: dict[str, Any], recipe: Any, inputs: list[Any], outputs: list[Any]
) -> None:
    """Metadata name the live version, an input for each column or one matrix, and the outputs of the estimator."""
    root = (await api.make(metadata, recipe)).replace("/v1/", "/v2/")
    described = (await api.get(root)).of(200)
    assert described == (await api.get(f"{root}/versions/0")).of(200)
    assert (described["versions"], described["platform"]) == (["0"], "keepfit")
    for name, expected in (("inputs", inputs), ("outputs", outputs)):
        assert [(each["name"], each["datatype"], each["shape"]) for each in described[name]] == expected


# Inference.


@pytest.mark.parametrize(
    ("recipe", "y", "datatype"),
    [
        (REGRESSOR, [1, 2, 3], "FP64"),
        ({"estimator": "GaussianNB"}, ["a", "b", "a"], "BYTES"),
        ({"estimator": "GaussianNB"}, [7, 8, 7], "INT64"),
        ({"estimator": "GaussianNB"}, [True, False, True], "BOOL"),
        ({"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2}}, None, "INT64"),
        ({"estimator": "StandardScaler"}, None, "FP64"),
        ({"estimator": "MultiOutputRegressor", "params": {"estimator": {"SGDRegressor": {}}}}, X, "FP64"),
    ],
    ids=["numbers", "strings", "integers", "booleans", "clusters", "transformer", "outputs"],
)  # fmt: skip
async def test_predictions_equal_those_in_json(
    api: Api, metadata: dict[str, Any], recipe: Any, y: Any, datatype: str
) -> None:
    """Predictions are those of the JSON API to the bit, from JSON and from bytes, in JSON and in bytes."""
    protocol = await learned(api, metadata, recipe, X, y)
    expected = (await api.predict(protocol.path, X))["predictions"]
    data = np.array(X).tobytes()
    body, headers = binary(("X", "FP64", [3, 2], data))
    as_bytes, more = binary(("X", "FP64", [3, 2], data), parameters={"binary_data_output": True}, id="x")
    replies = [
        await protocol.ask([matrix(X)], id="x"),
        await protocol.ask([tensor("X", "FP64", [*X[0], *X[1], *X[2]], [3, 2])], [{"name": "predictions"}]),
        await protocol.ask([matrix(X)], [{"name": "predictions", "parameters": {"binary_data": True}}]),
        await protocol.send(body, headers),
        await protocol.send(as_bytes, more),
    ]
    for reply in replies:
        assert reply.status == 200
        assert outputs_of(reply) == {"predictions": (datatype, expected)}
    answer = replies[0].json()
    assert answer["id"] == "x"
    assert (answer["model_name"], answer["model_version"]) == (protocol.path.rpartition("/")[2], "1")


async def test_other_datatypes_hold_the_same_rows(api: Api, metadata: dict[str, Any]) -> None:
    """Integers and floats of any width give the predictions of the numbers that they are."""
    whole = [[1, 2], [3, 4]]
    protocol = await learned(api, metadata, REGRESSOR, whole, [1, 2])
    expected = (await api.predict(protocol.path, whole))["predictions"]
    dtypes = {"INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2",
              "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4"}  # fmt: skip
    for datatype, dtype in dtypes.items():
        body, headers = binary(("X", datatype, [2, 2], np.array(whole, dtype).tobytes()))
        for reply in (await protocol.send(body, headers), await protocol.ask([matrix(whole, datatype)])):
            assert outputs_of(reply)["predictions"][1] == expected, datatype
    halves = (np.array(whole, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    assert outputs_of(await protocol.send(*binary(("X", "BF16", [2, 2], halves))))["predictions"][1] == expected


async def test_columns_are_tensors(api: Api, metadata: dict[str, Any]) -> None:
    """Each column is a tensor of its kind, [n] or [n, 1], in any order; the rows are those of the JSON API."""
    protocol = await learned(api, metadata, MIXED, ROWS, [1, 2])
    expected = (await api.predict(protocol.path, ROWS))["predictions"]
    inputs = [
        tensor("price", "FP32", [[1.5], [2.0]], [2, 1]),
        tensor("make", "BYTES", ["nike", "puma"]),
        tensor("worn", "BOOL", [True, False]),
        tensor("sold", "INT64", [1_700_000_000, 1_800_000_000]),
        tensor("note", "BYTES", ["red", "blue"], [2, 1]),
    ]
    assert outputs_of(await protocol.ask(inputs)) == {"predictions": ("FP64", expected)}
    body, headers = binary(
        ("make", "BYTES", [2], texts("nike", "puma")),
        ("note", "BYTES", [2, 1], texts("red", "blue")),
        ("sold", "BYTES", [2], texts("2023-11-14T22:13:20Z", "2027-01-15T08:00:00Z")),
        ("worn", "BOOL", [2], b"\1\0"),
        ("price", "FP64", [2], np.array([1.5, 2.0]).tobytes()),
    )
    assert outputs_of(await protocol.send(body, headers)) == {"predictions": ("FP64", expected)}


async def test_missing_values(api: Api, metadata: dict[str, Any]) -> None:
    """null, NaN, an empty text and an absent column are missing values, in columns that the recipe allows to miss."""
    protocol = await learned(api, metadata, MIXED, ROWS, [1, 2])
    row = [None, "red", 1_700_000_000, True, None]
    expected = (await api.predict(protocol.path, [row]))["predictions"]
    others = [tensor("note", "BYTES", ["red"]), tensor("sold", "FP64", [1.7e9]), tensor("worn", "BOOL", [True])]
    for make in ([tensor("make", "BYTES", [None])], [tensor("make", "BYTES", [""])], []):
        for price in ([tensor("price", "FP64", [None])], [tensor("price", "INT32", [None])], []):
            assert outputs_of(await protocol.ask([*make, *price, *others])) == {"predictions": ("FP64", expected)}
    body, headers = binary(
        ("make", "BYTES", [1], texts("")),
        ("note", "BYTES", [1], texts("red")),
        ("sold", "FP64", [1], np.array([1.7e9]).tobytes()),
        ("worn", "UINT8", [1], b"\1"),
        ("price", "FP64", [1], np.array([np.nan]).tobytes()),
    )
    assert outputs_of(await protocol.send(body, headers)) == {"predictions": ("FP64", expected)}


async def test_integers_are_labels_of_a_category(api: Api, metadata: dict[str, Any]) -> None:
    """An integer tensor in a category column holds integer labels, as integers do in JSON."""
    recipe = {"estimator": "SGDRegressor", "features": {"size": "category"}}
    protocol = await learned(api, metadata, recipe, [[42], [43]], [1, 2])
    expected = (await api.predict(protocol.path, [[42], [43]]))["predictions"]
    assert outputs_of(await protocol.ask([tensor("size", "INT32", [42, 43])])) == {"predictions": ("FP64", expected)}


async def test_a_matrix_of_number_columns(api: Api, metadata: dict[str, Any]) -> None:
    """A model whose columns are all numbers also takes them as one matrix, in the recipe's order."""
    recipe = {"estimator": "SGDRegressor", "features": {"a": "number", "b": {"type": "number", "missing": "zero"}}}
    protocol = await learned(api, metadata, recipe, X, [1, 2, 3])
    rows: list[list[Any]] = [[1.0, None], [2.0, 3.0]]
    expected = (await api.predict(protocol.path, rows))["predictions"]
    assert outputs_of(await protocol.ask([matrix(rows)])) == {"predictions": ("FP64", expected)}


async def test_probabilities_and_scores(api: Api, metadata: dict[str, Any]) -> None:
    """Probabilities with their classes, and scores of outliers, are outputs that a request names."""
    protocol = await learned(api, metadata, {"estimator": "GaussianNB"}, X, ["no", "yes", "no"])
    expected = await api.predict(protocol.path, X, proba=True)
    names = ("classes", "probabilities", "predictions")
    for as_bytes in (True, False):
        asked = [{"name": name, "parameters": {"binary_data": as_bytes}} for name in names]
        assert outputs_of(await protocol.ask([matrix(X)], asked)) == {
            "classes": ("BYTES", expected["classes"]),
            "probabilities": ("FP64", expected["probabilities"]),
            "predictions": ("BYTES", expected["predictions"]),
        }
    outliers = await learned(api, {**metadata, "type": "o"}, {"estimator": "SGDOneClassSVM"}, X, None)
    expected = await api.predict(outliers.path, X, proba=True)
    found = outputs_of(await outliers.ask([matrix(X)], [{"name": "scores"}]))
    assert found == {"scores": ("FP64", expected["scores"])}


async def test_labels_of_several_outputs(api: Api, metadata: dict[str, Any]) -> None:
    """Labels of several outputs are a matrix, mixed types as text; probabilities have one more dimension."""
    recipe = {"estimator": "MultiOutputClassifier", "params": {"estimator": {"GaussianNB": {}}}}
    protocol = await learned(api, metadata, recipe, X, [["a", 1], ["b", 2], ["a", 1]])
    expected = await api.predict(protocol.path, X, proba=True)
    found = outputs_of(await protocol.ask([matrix(X)], [{"name": "predictions"}, {"name": "probabilities"}]))
    assert found["predictions"] == ("BYTES", [[str(label) for label in row] for row in expected["predictions"]])
    assert found["probabilities"] == ("FP64", expected["probabilities"])


async def test_the_cache_of_predictions_is_shared(api: Api, metadata: dict[str, Any]) -> None:
    """An answer that the JSON API has cached is found by the protocol, with its age, and Cache-Control applies."""
    protocol = await learned(api, metadata, {"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2}}, X, None)
    await api.predict(protocol.path, X)
    reply = await protocol.ask([matrix(X)])
    assert "Age" in reply.headers
    headers = {"Cache-Control": "no-cache"}
    assert "Age" not in (await api.post(f"{protocol.root}/infer", {"inputs": [matrix(X)]}, headers)).headers
    # The protocol has no 304.
    headers = {"If-None-Match": "*"}
    assert (await api.post(f"{protocol.root}/infer", {"inputs": [matrix(X)]}, headers)).status == 200


async def test_a_version_answers_while_it_is_live(api: Api, metadata: dict[str, Any]) -> None:
    """The path of the live version predicts; that of another one answers 404 with the live version."""
    protocol = await learned(api, metadata, REGRESSOR, X, [1, 2, 3])
    document = {"inputs": [matrix(X)]}
    reply = await api.post(f"{protocol.root}/versions/1/infer", document)
    assert reply.of(200)["model_version"] == "1"
    await api.learn(protocol.path, X, [1, 2, 3])
    message = (await api.post(f"{protocol.root}/versions/1/infer", document)).inference_error(404)
    assert "has version 2 now" in message


@pytest.mark.parametrize("rows", [1, 400, 40_000])
async def test_bodies_and_answers_are_coded(api: Api, metadata: dict[str, Any], rows: int) -> None:
    """gzip and deflate work both ways for any size; JSON answers other than tensors are never coded, nor zstd used."""
    protocol = await learned(api, metadata, REGRESSOR, X, [1, 2, 3])
    many = np.random.default_rng(3).normal(size=(rows, 2))
    body, headers = binary(("X", "FP64", [rows, 2], many.tobytes()), parameters={"binary_data_output": True})
    expected = await protocol.send(body, headers)
    assert len(outputs_of(expected)["predictions"][1]) == rows
    packers = {"gzip": (gzip.compress, gzip.decompress), "deflate": (zlib.compress, zlib.decompress)}
    accepted = {"gzip": "gzip, deflate, br, zstd", "deflate": "deflate"}
    async with aiohttp.ClientSession(api.url, auto_decompress=False) as http:
        for coding, (pack, unpack) in packers.items():
            more = {**headers, "Content-Encoding": coding, "Accept-Encoding": accepted[coding]}
            async with http.post(f"{protocol.root}/infer", data=pack(body), headers=more) as response:
                got = await response.read()
            assert response.status == 200
            assert response.headers.get("Content-Encoding") == (coding if rows > 100 else None)
            assert (unpack(got) if rows > 100 else got) == expected.body
        wide = {"estimator": "SGDRegressor", "features": {f"column{i}": "number" for i in range(99)}}
        root = (await api.make({**metadata, "wide": True}, wide)).replace("/v1/", "/v2/")
        async with http.get(root, headers={"Accept-Encoding": "gzip, zstd"}) as response:
            assert "Content-Encoding" not in response.headers
            assert len((await response.json())["inputs"]) == 99


async def test_large_requests(api: Api, metadata: dict[str, Any]) -> None:
    """Large tensors are predicted like the same rows in JSON, and a large answer of text labels has all of them."""
    labels = ["a label of some length, nö", "yes", "a label of some length, nö"]
    protocol = await learned(api, metadata, {"estimator": "GaussianNB"}, X, labels)
    rows = np.random.default_rng(4).normal(size=(20_000, 2))
    body, headers = binary(("X", "FP64", [*rows.shape], rows.tobytes()), outputs=[{"name": "predictions"}])
    datatype, found = outputs_of(await protocol.send(body, headers))["predictions"]
    assert (datatype, found) == ("BYTES", (await api.predict(protocol.path, rows.tolist()))["predictions"])
    more, headers = binary(
        ("X", "FP64", [*rows.shape], rows.tobytes()),
        outputs=[{"name": "probabilities", "parameters": {"binary_data": True}}],
    )
    _, shares = outputs_of(await protocol.send(more, headers))["probabilities"]
    few = (await api.predict(protocol.path, rows[:50].tolist(), proba=True))["probabilities"]
    assert shares[:50] == few
    assert len(shares) == len(rows)


async def test_a_request_without_a_media_type(api: Api, metadata: dict[str, Any]) -> None:
    """Requests need no Content-Type: tritonclient sends none."""
    protocol = await learned(api, metadata, REGRESSOR, X, [1, 2, 3])
    async with aiohttp.ClientSession(api.url, skip_auto_headers=["Content-Type"]) as http:
        data = json.dumps({"inputs": [matrix(X)]}).encode()
        async with http.post(f"{protocol.root}/infer", data=data) as response:
            assert response.status == 200
        async with http.post(f"{protocol.root}/infer", data=data, headers={"Content-Type": "text/plain"}) as response:
            assert response.status == 415
            assert response.headers["Accept"] == "application/json, application/octet-stream"


async def test_the_time_for_an_answer(workerless: Api, metadata: dict[str, Any]) -> None:
    """The parameter `timeout` limits the time in microseconds."""
    root = (await workerless.make(metadata, REGRESSOR)).replace("/v1/", "/v2/")
    document = {"inputs": [matrix(X)], "parameters": {"timeout": 50_000}}
    reply = await workerless.post(f"{root}/infer", document)
    assert reply.inference_error(503)
    assert reply.headers["Retry-After"]


async def test_scopes(settings: Settings, metadata: dict[str, Any]) -> None:
    """Health needs no key, metadata any key, inference the scope predict; refusals have the protocol's form."""
    (reader, stored), (predictor, more) = new_key("reader", [READ]), new_key("predictor", [PREDICT])
    async with serving(Settings(**{**settings.model_dump(), "api_keys": f"{stored},{more}"})) as api:
        (await api.get("/v2")).of(200)
        (await api.get(f"/v2/models/{MISSING}")).inference_error(401)
        bearer = {"Authorization": f"Bearer {reader}"}
        (await api.call("GET", f"/v2/models/{MISSING}", headers=bearer)).inference_error(404)
        infer = f"/v2/models/{MISSING}/infer"
        assert "'predict'" in (await api.post(infer, {"inputs": [matrix(X)]}, bearer)).inference_error(403)
        bearer = {"Authorization": f"Bearer {predictor}"}
        (await api.post(infer, {"inputs": [matrix(X)]}, bearer)).inference_error(404)

"""The OpenAPI document: valid, complete and correct."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from keepfit import identity
from keepfit.recipe.recipe import Recipe
from keepfit.settings import Settings
from keepfit_gateway.app import build_app
from keepfit_gateway.handlers import history_stream
from keepfit_gateway.openapi import examples
from keepfit_gateway.openapi.document import operation_id
from keepfit_gateway.routes import PAGE_FILES, ROUTES
from keepfit_gateway.web import inference_answers, influx_answers
from keepfit_gateway.web.rows_body import ARROW, BINARY, NPY
from tests.conftest import SIGNING_KEYS
from tests.examples_in_docs import assert_same_form
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, WAIT, Api
from tests.gateway.conformance import DOCUMENT, GUARDED

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
OPERATIONS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in item]
# Calls whose body is a file.
FILES = {"/v1/estimator"}
# The call whose body is line protocol alone.
WRITE = "/api/v2/write"


def references(node: Any) -> set[str]:
    """Return every `$ref` below a node of the document."""
    if isinstance(node, list):
        return {found for item in node for found in references(item)}
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"]} if "$ref" in node else set()
    return own | {found for item in node.values() for found in references(item)}


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the component to which a schema, or its first alternative, refers."""
    reference = schema.get("$ref") or schema["anyOf"][0]["$ref"]
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator of one schema of the document."""
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


async def test_the_document_is_served(api: Api) -> None:
    """/openapi.json is the document of all routes."""
    assert (await api.get("/openapi.json")).of(200) == DOCUMENT


@pytest.mark.parametrize("document", [DOCUMENT, GUARDED], ids=["open", "guarded"])
def test_a_validator_accepts_the_document(document: dict[str, Any]) -> None:
    """The document of a gateway with or without API keys is valid OpenAPI 3.1."""
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_is_openapi_3_1() -> None:
    """The document has the fields that OpenAPI 3.1 requires, and path items hold methods only."""
    assert re.fullmatch(r"3\.1\.\d+", DOCUMENT["openapi"])
    assert DOCUMENT["info"]["title"] == "keepfit"
    assert DOCUMENT["info"]["version"]
    assert all(path.startswith("/") for path in DOCUMENT["paths"])
    assert {method for _, method in OPERATIONS} <= METHODS


def test_exactly_the_routes_are_documented() -> None:
    """The operations are the routes of the application, except HEAD, OPTIONS and the files of the API page."""
    app = build_app(Settings(signing_keys=SIGNING_KEYS))
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and route.method not in ("HEAD", "OPTIONS")
    }
    assert routes == {*OPERATIONS, *((path, "get") for path in PAGE_FILES)}
    assert len(OPERATIONS) == len(ROUTES)


def test_operation_ids_are_unique() -> None:
    """Each operation has a unique id that is a valid function name for a generated client."""
    names = [DOCUMENT["paths"][path][method]["operationId"] for path, method in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_every_reference_resolves() -> None:
    """Each `$ref` names a component, each component is referred to, and each schema is valid."""
    components = DOCUMENT["components"]
    named = {f"#/components/{kind}/{name}" for kind in ("schemas", "headers") for name in components[kind]}
    found = references(GUARDED)
    assert found == named
    for schema in components["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_an_operation_is_complete(path: str, method: str) -> None:
    """An operation has a summary, every parameter of its path, its request body, and all its responses."""
    operation = DOCUMENT["paths"][path][method]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    placeholders = set(re.findall(r"{(\w+)}", path))
    parameters = operation["parameters"]
    assert {parameter["name"] for parameter in parameters if parameter["in"] == "path"} == placeholders
    for parameter in parameters:
        # A call without a body has no other place for metadata.
        names_model = (
            parameter["name"] == "metadata"
            and "style" not in parameter
            and ("requestBody" not in operation or path in FILES)
        )
        assert parameter["required"] is (parameter["in"] == "path" or names_model)
        assert parameter["description"]
        Draft202012Validator.check_schema(parameter["schema"])
    assert len({(parameter["in"], parameter["name"]) for parameter in parameters}) == len(parameters)
    # Creating a snapshot takes no body, unless that names the model.
    assert ("requestBody" in operation) is (method in ("post", "patch") and not path.endswith("}/snapshot"))
    if "requestBody" in operation and path not in FILES and path != WRITE:
        assert operation["requestBody"]["content"]["application/json"]["examples"]
    statuses = operation["responses"].keys()
    assert "default" in statuses
    assert any(status.startswith("2") for status in statuses)
    in_json = inference_answers.is_path(path) or influx_answers.is_path(path)
    for status, answer in operation["responses"].items():
        assert answer["description"]
        assert "X-Request-ID" in answer["headers"]
        media = set(answer.get("content", {}))
        if status in ("204", "304"):
            assert not media
        elif status == "default" or (
            status >= "400" and not in_json and (path, status) not in (("/readyz", "503"), ("/health", "503"))
        ):
            assert media == {"application/problem+json"}
        else:
            binary = {BINARY} if path.endswith("/infer") and status == "200" else set()
            others = {
                "/metrics": "text/plain",
                "/docs": "text/html",
                "/": "text/html",
                "/v1/events": "text/event-stream",
            }
            is_file = path.endswith("/estimator") and method == "get"
            streams = set(history_stream.MEDIA_TYPES) if (path, method) == ("/v1/history", "get") else set()
            assert media == {BINARY if is_file else others.get(path, "application/json"), *binary, *streams}


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_every_operation_may_answer_is_documented(path: str, method: str) -> None:
    """Each operation has the statuses of what is checked for all; the test suite checks each answer that it gets."""
    assert {"400", "406", "417", "421", "500", "default"} <= DOCUMENT["paths"][path][method]["responses"].keys()


def test_request_bodies_list_the_accepted_media_types() -> None:
    """Calls about rows also accept tables, uploads a file, line protocol bytes; all other calls accept JSON only."""
    for path, method in OPERATIONS:
        body = DOCUMENT["paths"][path][method].get("requestBody")
        if body is not None and path in FILES:
            assert set(body["content"]) == {BINARY}
        elif body is not None:
            takes_tables = path.rpartition("/")[2] in ("partial_fit", "predict", "score")
            takes_tensors = path.endswith("/infer")
            usual = {"application/json", *((BINARY,) if takes_tables or takes_tensors else ())}
            assert set(body["content"]) == ({BINARY} if path == WRITE else usual)
            assert all(table in body.get("description", "") for table in (NPY, ARROW)) is takes_tables


class CheckedApi:
    """Calls of the API by paths of the document; :mod:`tests.gateway.conformance` checks each."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.hash = self.job = ""
        self.seen: set[tuple[str, str]] = set()

    async def __call__(
        self, method: str, template: str, document: Any = None, headers: dict[str, str] | None = None, query: str = ""
    ) -> Any:
        """Send a request about the model; return the answer, which must have a documented status."""
        path = template.replace("{hash}", self.hash).replace("{job}", self.job)
        if "{version}" in path:
            path = path.replace("{version}", str((await self.api.model(f"/v1/models/{self.hash}"))["version"]))
        reply = await self.api.call(method, path + query, document, headers=headers)
        assert str(reply.status) in DOCUMENT["paths"][template][method.lower()]["responses"]
        self.seen.add((template, method.lower()))
        if reply.headers.get("Location", "").startswith("/v1/jobs/"):
            self.job = reply.headers["Location"].rpartition("/")[2]
        return reply.json() if reply.headers.get("Content-Type", "").partition(";")[0].endswith("json") else None

    async def make(self, metadata: dict[str, Any], recipe: dict[str, Any]) -> None:
        """Create the model that the next calls are about."""
        self.hash = (await self("POST", "/v1/models", {"metadata": metadata, "recipe": recipe}))["hash"]


@pytest.fixture
def check(api: Api) -> CheckedApi:
    """Return the checked API of the shared stack."""
    return CheckedApi(api)


async def test_real_answers_match_the_document(check: CheckedApi, metadata: dict[str, Any]) -> None:
    """Real responses of every operation, successes and errors, match their documented schemas."""
    rows, labelled = {"X": [[1.0], [2.0]]}, {"X": [[1.0], [2.0]], "y": ["no", "yes"]}
    recipe = {**CLASSIFIER, "params": {"loss": "log_loss"}}
    await check.make(metadata, recipe)
    await check("POST", "/v1/models", {"metadata": metadata, "recipe": recipe})
    await check("POST", "/v1/models", {"metadata": metadata, "recipe": REGRESSOR})
    await check("POST", "/v1/models/{hash}/predict", rows)
    for prefix, extra in (("/v1/models/{hash}", {}), ("/v1", {"metadata": metadata})):
        await check("POST", f"{prefix}/partial_fit", {**labelled, **extra})
        await check("POST", f"{prefix}/partial_fit", {**labelled, **extra}, WAIT)
        await check("POST", f"{prefix}/partial_fit", {**rows, **extra})
        await check("POST", f"{prefix}/predict", {**rows, **extra})
        await check("POST", f"{prefix}/predict", {**rows, "proba": True, **extra})
        await check("POST", f"{prefix}/train_score_predict", {**labelled, "X_pred": [[1.0]], "proba": True, **extra})
        await check("POST", f"{prefix}/train_score_predict", {**labelled, "X_pred": [[1.0, 2.0]], **extra})
        await check("POST", f"{prefix}/predict", {**rows, "id": [f"{prefix}-1", 7], **extra})
        await check("POST", f"{prefix}/labels", {"labels": [{"id": f"{prefix}-1", "y": "no"}], **extra})
        await check("POST", f"{prefix}/labels", {"labels": [{"id": 7, "y": "no"}, {"id": 8, "y": "no"}], **extra}, WAIT)
        await check("POST", f"{prefix}/labels", {"labels": [{"id": 7, "y": [1.5]}], **extra})
        await check("POST", f"{prefix}/score", {**labelled, **extra})
        await check("POST", f"{prefix}/score", {"X": [["a"]], **extra})
    name = f"?metadata={quote(json.dumps(metadata))}"
    for prefix, extra, query in (("/v1/models/{hash}", {}, ""), ("/v1", {"metadata": metadata}, name)):
        await check("GET", f"{prefix}/dead", query=query)
        await check("GET", f"{prefix}/traffic", query=query)
        await check("GET", f"{prefix}/estimator", query=query)
        for options in ("metric=accuracy", "since_rows=x", "metric=none"):
            await check("GET", f"{prefix}/curve", query=f"{query}{'&' if query else '?'}{options}")
        await check("POST", f"{prefix}/dead/retry", extra)
        await check("POST", f"{prefix}/dead/retry", {"ids": ["1-1"], **extra})
        await check("POST", f"{prefix}/dead/discard", {"ids": ["1-1"], **extra})
        await check("POST", f"{prefix}/snapshot", query=query)
        await check("GET", f"{prefix}/snapshots", query=query)
        await check("POST", f"{prefix}/restore", extra)
        await check("POST", f"{prefix}/restore", {"version": 99, **extra})
    await check("GET", "/v1/models")
    await check("GET", "/v1/models/{hash}")
    await check("GET", "/v1/model", query=name)
    for query in ("", "?every=1d&stat=count&group=type", "?every=1d", "?last=x"):
        await check("GET", "/v1/history", query=query)
    for document in ({"type": metadata["session"]}, [], {"timestamp": 1}):
        await check("POST", "/v1/history", document)
    for query in (f"?type={metadata['session']}", "", "?limit=1"):
        await check("DELETE", "/v1/history", query=query)
    await check("POST", "/api/v2/write", query="?org=a&bucket=b")
    await check("POST", "/api/v2/write", query="?precision=h")
    for path in ("/ping", "/health"):
        await check("GET", path)
    tensors = {"inputs": [{"name": "X", "shape": [2, 1], "datatype": "FP64", "data": [1.0, 2.0]}]}
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        await check("GET", path)
    for prefix in ("/v2/models/{hash}", "/v2/models/{hash}/versions/{version}"):
        await check("GET", prefix)
        await check("GET", f"{prefix}/ready")
        await check("POST", f"{prefix}/infer", tensors)
        outputs = [{"name": name} for name in ("predictions", "probabilities", "classes")]
        await check("POST", f"{prefix}/infer", {**tensors, "id": "1", "outputs": outputs})
        await check("POST", f"{prefix}/infer", {**tensors, "parameters": {"binary_data_output": True}})
        await check("POST", f"{prefix}/infer", {"inputs": [{**tensors["inputs"][0], "name": "Y"}]})
    pull = {"url": "s3://data/daily/a.csv"}
    await check("POST", "/v1/models/{hash}/pull", pull)
    await check("POST", "/v1/models/{hash}/pull", {**pull, "sample_weight": 1})
    await check("POST", "/v1/pull", {**pull, "metadata": metadata})
    await check("POST", "/v1/pull", {"url": "s3://other/a.csv", "metadata": metadata})
    for path in ("/v1/jobs", "/v1/jobs/{job}"):
        await check("GET", path)
    await check("DELETE", "/v1/jobs/{job}")
    for path in (
        "/",
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/v1/workers",
        "/v1/system",
        "/v1/caller",
    ):
        await check("GET", path)
    await check("POST", "/v1/session", {"key": "kf_none"})
    await check("POST", "/v1/session", {})
    await check("DELETE", "/v1/session")
    await check("POST", "/v1/estimator", query="?metadata=1")
    await check("GET", "/v1/events", query="?last_event_id=0-0&timeout=0.2")
    await check("GET", "/v1/events", query="?kind=x")
    await check("PATCH", "/v1/models/{hash}", {"params": {"alpha": 0.01}})
    await check("PATCH", "/v1/models/{hash}", {"params": {"alpha": 0.02}}, {"Prefer": "wait=0"})
    await check("PATCH", "/v1/models/{hash}", {"params": {"alpha": -1}})
    await check("PATCH", "/v1/model", {"params": {"alpha": 0.03}, "metadata": metadata})
    await check("DELETE", "/v1/models/{hash}")
    await check("GET", "/v1/models/{hash}")
    await check("DELETE", "/v1/model", query=name)
    assert check.seen == set(OPERATIONS)


MIXED = {
    "make": {"type": "category", "missing": "indicator"},
    "note": {"type": "text", "n_features": 8, "ngram_range": [1, 2], "norm": None, "missing": "zero"},
    "sold": {"type": "timestamp", "expand": ["hour", "weekday"], "missing": "mean"},
    "worn": {"type": "boolean", "missing": "zero"},
    "price": "number",
}
MIXED_ROWS = [["nike", "red", 1_700_000_000, True, 1.5], {"price": 2}, {"make": 7, "price": 3.0, "sold": "2026-11-20"}]
MULTI = {"estimator": "MultiOutputClassifier", "params": {"estimator": {"SGDClassifier": {"loss": "log_loss"}}}}


@pytest.mark.parametrize(
    ("recipe", "X", "y"),
    [
        ({"estimator": "SGDRegressor", "features": MIXED, "scaler": "StandardScaler"}, MIXED_ROWS, [1, 2.5, 3]),
        ({"steps": [{"MinMaxScaler": {}}, {"GaussianNB": {}}], "classes": [1, 2]}, [[1, 2], [3, 4], [5, 1]], [1, 2, 1]),
        ({"estimator": "SGDClassifier"}, [[1], [2], [3]], [True, False, True]),
        ({"estimator": "SGDOneClassSVM"}, [[1], [2], [3]], None),
        (MULTI, [[1], [2], [3]], [["a", 1], ["b", 2], ["a", 1]]),
        ({"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2}}, [[1], [2], [3]], None),
    ],
    ids=["mixed", "steps", "booleans", "outliers", "outputs", "clusters"],
)  # fmt: skip
async def test_answers_about_each_kind_of_model_match_the_document(
    check: CheckedApi, metadata: dict[str, Any], recipe: dict[str, Any], X: list[Any], y: list[Any] | None
) -> None:
    """Recipes with options, metrics, predictions and probabilities of each kind of estimator match their schemas."""
    await check.make(metadata, recipe)
    rows = {"X": X} if y is None else {"X": X, "y": y}
    for body in (rows, rows):
        assert (await check("POST", "/v1/models/{hash}/partial_fit", body, WAIT))["accepted"] == 3
    assert len((await check("POST", "/v1/models/{hash}/predict", {"X": X}))["predictions"]) == 3
    await check("POST", "/v1/models/{hash}/predict", {"X": X, "proba": True})
    await check("POST", "/v1/models/{hash}/score", rows)
    model = await check("GET", "/v1/models/{hash}")
    assert (y is not None) is bool(model["metrics"])
    # What an answer shows can be sent again.
    await check.make(model["metadata"], model["recipe"])


async def test_dead_letters_match_the_document(check: CheckedApi, metadata: dict[str, Any]) -> None:
    """A dead letter with its rows matches its schema."""
    await check.make(metadata, {"estimator": "MultinomialNB", "classes": ["a", "b"]})
    await check("POST", "/v1/models/{hash}/partial_fit", {"X": [[-1.0]], "y": ["a"], "sample_weight": [2]}, WAIT)
    (dead,) = (await check("GET", "/v1/models/{hash}/dead"))["dead"]
    assert (dead["X"], dead["y"], dead["sample_weight"]) == ([[-1.0]], ["a"], [2.0])
    await check("POST", "/v1/models/{hash}/dead/discard", {"ids": [dead["id"]]})


def with_session(value: Any, session: str) -> Any:
    """Return a document of the examples, about the model of a session."""
    return json.loads(json.dumps(value).replace('"nike"', f'"{session}"'))


async def test_the_examples_are_a_session(check: CheckedApi, metadata: dict[str, Any]) -> None:
    """The requests of the examples, in their order, get the answers of the examples."""
    session = metadata["session"]
    check.hash = identity.hash_of(with_session(examples.METADATA, session))
    route_of = {operation_id(route): route for route in ROUTES}
    assert identity.hash_of(examples.METADATA) == examples.HASH
    for name, example in examples.EXAMPLES.items():
        route = route_of[name]
        if route.file:
            # tests/gateway/api/test_trained_models.py sends files.
            continue
        query = example.query.replace("nike", session)
        for request in [*example.requests.values()] or [None]:
            for status, shown in example.answers.items():
                body = with_session(request, session)
                got = await check(route.method, route.path, body, dict(example.headers.get(status, {})), query)
                assert_same_form(got, shown)


def test_every_operation_has_an_example() -> None:
    """Each operation whose bodies are JSON of this API has examples, which match their schemas."""
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.path][route.method.lower()]
        contents = [operation.get("requestBody", {}).get("content", {}).get("application/json")]
        if route.path not in ("/metrics", "/openapi.json"):
            contents += [
                operation["responses"][str(status)].get("content", {}).get("application/json")
                for status in route.answers
                if status in (200, 201) or len(route.answers) == 1
            ]
        for content in filter(None, contents):
            assert content["examples"], route.path
            for example in content["examples"].values():
                validator(content["schema"]).validate(example["value"])


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas in it."""
    if isinstance(schema, dict):
        yield schema
        parts = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
        parts += [schema.get("items"), schema.get("additionalProperties")]
        for part in parts:
            yield from nodes(part)


def test_schemas_have_what_generators_need() -> None:
    """Arrays have items, objects of any keys a schema of their values, enums a type; defaults are in the text only."""
    every = [node for schema in DOCUMENT["components"]["schemas"].values() for node in nodes(schema)]
    assert len(every) > 100
    for node in every:
        assert node.keys() & {"$ref", "type", "anyOf"} or not node, node
        assert node.get("type") != "array" or "items" in node, node
        assert node.get("type") != "object" or node.keys() & {"properties", "additionalProperties"}, node
        assert not node.keys() & {"default", "discriminator", "prefixItems", "oneOf", "allOf"}, node
        assert "enum" not in node or node["type"] == "string", node


def test_the_recipe_is_described_field_by_field() -> None:
    """The schema of a recipe has a description of each field, with its default value if it has one."""
    recipe = DOCUMENT["components"]["schemas"]["Recipe"]
    assert recipe["properties"].keys() == set(Recipe.__struct_fields__)
    assert recipe["additionalProperties"] is False
    assert "required" not in recipe
    for name, default in zip(Recipe.__struct_fields__, Recipe.__struct_defaults__, strict=True):
        description = (
            recipe["properties"][name].get("description") or resolve(recipe["properties"][name])["description"]
        )
        assert description
        if isinstance(default, str | int):
            assert description.endswith(f"Default: {json.dumps(default)}"), name


@pytest.mark.parametrize(
    ("path", "document", "valid"),
    [
        ("/v1/models/{hash}/partial_fit", {"X": [[1]], "y": [1]}, True),
        ("/v1/models/{hash}/partial_fit", {"X": [{"a": 1}]}, True),
        ("/v1/models/{hash}/partial_fit", {"X": []}, False),
        ("/v1/models/{hash}/partial_fit", {"X": [1]}, False),
        ("/v1/models/{hash}/partial_fit", {"X": [[1]], "z": 1}, False),
        ("/v1/partial_fit", {"X": [[1]], "y": [1]}, False),
        ("/v1/partial_fit", {"X": [[1]], "y": [1], "metadata": {"type": "a"}}, True),
    ],
)
def test_request_schemas_accept_what_the_gateway_accepts(path: str, document: dict[str, Any], valid: bool) -> None:
    """The request schema of the document accepts what the gateway accepts and rejects what it rejects."""
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert validator(schema).is_valid(document) is valid

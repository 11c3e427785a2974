"""The OpenAPI document: valid, complete and correct."""

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from keepfit.settings import Settings
from keepfit_gateway import openapi
from keepfit_gateway.app import build_app
from keepfit_gateway.routes import ROUTES
from keepfit_gateway.web.rows_body import TABLES
from tests.conftest import SIGNING_KEYS
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, WAIT, Api

DOCUMENT = openapi.document(ROUTES)
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
OPERATIONS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in item]


def references(node: Any) -> set[str]:
    """Return every `$ref` below a node of the document."""
    if isinstance(node, list):
        return {found for item in node for found in references(item)}
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"]} if "$ref" in node else set()
    return own | {found for item in node.values() for found in references(item)}


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator of one schema of the document."""
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


async def test_the_document_is_served(api: Api) -> None:
    """/openapi.json is the document of all routes."""
    assert (await api.get("/openapi.json")).of(200) == DOCUMENT


def test_the_document_is_openapi_3_1() -> None:
    """The document has the fields that OpenAPI 3.1 requires, and path items hold methods only."""
    assert re.fullmatch(r"3\.1\.\d+", DOCUMENT["openapi"])
    assert DOCUMENT["info"]["title"] == "keepfit"
    assert DOCUMENT["info"]["version"]
    assert all(path.startswith("/") for path in DOCUMENT["paths"])
    assert {method for _, method in OPERATIONS} <= METHODS


def test_exactly_the_routes_are_documented() -> None:
    """The operations of the document are the routes of the application, except HEAD."""
    app = build_app(Settings(signing_keys=SIGNING_KEYS))
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert routes == set(OPERATIONS)
    assert len(OPERATIONS) == len(ROUTES)


def test_operation_ids_are_unique() -> None:
    """Each operation has a unique id that is a valid function name for a generated client."""
    names = [DOCUMENT["paths"][path][method]["operationId"] for path, method in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_every_reference_resolves() -> None:
    """Each `$ref` names an existing schema, and each schema is valid."""
    schemas = DOCUMENT["components"]["schemas"]
    found = references(DOCUMENT)
    assert found
    assert found <= {f"#/components/schemas/{name}" for name in schemas}
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_an_operation_is_complete(path: str, method: str) -> None:
    """An operation has a summary, every parameter of its path, its request body, and all its responses."""
    operation = DOCUMENT["paths"][path][method]
    assert operation["summary"]
    placeholders = set(re.findall(r"{(\w+)}", path))
    parameters = operation["parameters"]
    assert {parameter["name"] for parameter in parameters if parameter["in"] == "path"} == placeholders
    for parameter in parameters:
        assert parameter["required"] is (parameter["in"] == "path")
        assert parameter["description"]
        Draft202012Validator.check_schema(parameter["schema"])
    assert len({(parameter["in"], parameter["name"]) for parameter in parameters}) == len(parameters)
    # Creating a snapshot takes no body.
    assert ("requestBody" in operation) is (method in ("post", "patch") and not path.endswith("/snapshot"))
    statuses = operation["responses"].keys()
    assert "default" in statuses
    assert any(status.startswith("2") for status in statuses)
    for status, answer in operation["responses"].items():
        assert answer["description"]
        media = set(answer.get("content", {}))
        if status in ("204", "304"):
            assert not media
        elif status == "default" or (status >= "400" and path != "/readyz"):
            assert media == {"application/problem+json"}
        else:
            assert media == {"text/plain" if path == "/metrics" else "application/json"}


def test_request_bodies_list_the_accepted_media_types() -> None:
    """Calls about rows by hash also accept tables; all other calls accept JSON only."""
    for path, method in OPERATIONS:
        body = DOCUMENT["paths"][path][method].get("requestBody")
        if body is not None:
            takes_tables = path.startswith("/v1/models/{hash}/") and path.rpartition("/")[2] in (
                "partial_fit",
                "predict",
                "score",
            )
            assert set(body["content"]) == {"application/json", *(TABLES if takes_tables else ())}


async def test_real_answers_match_the_document(api: Api, metadata: dict[str, Any]) -> None:
    """Real responses of every operation, successes and errors, match their documented schemas."""
    seen: set[tuple[str, str]] = set()

    async def check(
        method: str, template: str, document: Any = None, headers: dict[str, str] | None = None, query: str = ""
    ) -> Any:
        reply = await api.call(method, template.replace("{hash}", model_hash) + query, document, headers=headers)
        answer = DOCUMENT["paths"][template][method.lower()]["responses"][str(reply.status)]
        seen.add((template, method.lower()))
        if "content" not in answer:
            assert reply.body == b""
            return None
        media_type = reply.headers["Content-Type"].partition(";")[0]
        shown = reply.json() if media_type.endswith("json") else reply.body.decode()
        validator(answer["content"][media_type]["schema"]).validate(shown)
        return shown

    rows, labelled = {"X": [[1.0], [2.0]]}, {"X": [[1.0], [2.0]], "y": ["no", "yes"]}
    recipe = {**CLASSIFIER, "params": {"loss": "log_loss"}}
    model_hash = ""
    model_hash = (await check("POST", "/v1/models", {"metadata": metadata, "recipe": recipe}))["hash"]
    await check("POST", "/v1/models", {"metadata": metadata, "recipe": recipe})
    await check("POST", "/v1/models", {"metadata": metadata, "recipe": REGRESSOR})
    await check("POST", "/v1/models/{hash}/predict", rows)
    for prefix, extra in (("/v1/models/{hash}", {}), ("/v1", {"metadata": metadata})):
        await check("POST", f"{prefix}/partial_fit", {**labelled, **extra})
        await check("POST", f"{prefix}/partial_fit", {**labelled, **extra}, WAIT)
        await check("POST", f"{prefix}/partial_fit", {**rows, **extra})
        await check("POST", f"{prefix}/predict", {**rows, **extra})
        await check("POST", f"{prefix}/predict", {**rows, "proba": True, **extra})
        await check("POST", f"{prefix}/score", {**labelled, **extra})
        await check("POST", f"{prefix}/score", {"X": [["a"]], **extra})
    await check("GET", "/v1/models/{hash}/dead")
    await check("POST", "/v1/models/{hash}/dead/retry", {})
    await check("POST", "/v1/models/{hash}/dead/retry", {"ids": ["1-1"]})
    await check("POST", "/v1/models/{hash}/dead/discard", {"ids": ["1-1"]})
    await check("POST", "/v1/models/{hash}/snapshot")
    await check("GET", "/v1/models/{hash}/snapshots")
    await check("POST", "/v1/models/{hash}/restore", {})
    await check("POST", "/v1/models/{hash}/restore", {"version": 99})
    await check("GET", "/v1/models")
    await check("GET", "/v1/models/{hash}")
    for query in ("", "?every=1d&stat=count&group=type", "?every=1d", "?last=x"):
        await check("GET", "/v1/history", query=query)
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
        await check("GET", path)
    await check("PATCH", "/v1/models/{hash}", {"params": {"alpha": 0.01}})
    await check("PATCH", "/v1/models/{hash}", {"params": {"alpha": -1}})
    await check("DELETE", "/v1/models/{hash}")
    await check("GET", "/v1/models/{hash}")
    assert seen == set(OPERATIONS)


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

"""Checks of real requests and answers against the OpenAPI document.

Every call of :class:`tests.gateway.api_client.Api` is checked, so that a field, a value or a status code which the
document lacks fails the test that meets it first.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from keepfit_gateway import openapi
from keepfit_gateway.routes import ROUTES
from keepfit_gateway.routes.by_metadata import BY_HASH
from keepfit_gateway.web.rows_body import BINARY

DOCUMENT = openapi.document(ROUTES)
# Of a gateway with API keys, which may answer more.
GUARDED = openapi.document(ROUTES, keys=True)
# Larger bodies repeat the values of small ones, and take long to validate.
BYTES_MAX = 16_384
EVENT = {"$ref": "#/components/schemas/Event"}
FORMS = {"{hash}": "[0-9a-f]{64}", "{version}": "[0-9]{1,16}", "{job}": "[0-9a-f]{32}"}
TEMPLATES = [(re.compile(re.sub(r"{\w+}", lambda found: FORMS[found[0]], path)), path) for path in DOCUMENT["paths"]]


def close(schema: Any) -> Any:
    """Return a schema that refuses the fields of an object that it does not name."""
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: close(item) for name, item in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        return {"additionalProperties": False, **closed}
    return closed


CLOSED = close(DOCUMENT["components"])


@cache
def _validator(text: str) -> Draft202012Validator:
    return Draft202012Validator({**close(json.loads(text)), "components": CLOSED})


def validate(schema: Mapping[str, Any], value: Any) -> None:
    """Check a value against a schema of the document, with no field that the schema does not name."""
    _validator(json.dumps(schema)).validate(value)


def template_of(path: str) -> str | None:
    """Return the path of the document that a request's path matches, or None."""
    return next((template for pattern, template in TEMPLATES if pattern.fullmatch(path.partition("?")[0])), None)


def check_request(method: str, path: str, document: Any) -> None:
    """Check a JSON body that a gateway has accepted."""
    template = template_of(path)
    assert template is not None
    if "?metadata=" in path:
        # The query names the model, so the body has the form of the call by hash.
        template = template.replace("/v1/", f"{BY_HASH}/").replace(f"{BY_HASH}/model", BY_HASH)
    content = DOCUMENT["paths"][template][method.lower()]["requestBody"]["content"]
    validate(content["application/json"]["schema"], document)


def check_answer(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Check that the document has the status of an answer, its header fields and its body."""
    template = template_of(path)
    of_method = [document["paths"].get(template, {}).get(method.lower()) for document in (DOCUMENT, GUARDED)]
    responses = {
        status: answer for operation in of_method if operation for status, answer in operation["responses"].items()
    }
    if not responses:
        return
    assert str(status) in responses, f"{method} {template} answers {status}"
    answer = responses[str(status)]
    for name, reference in answer["headers"].items():
        header = DOCUMENT["components"]["headers"][reference["$ref"].rpartition("/")[2]]
        assert name in headers or not header["required"], f"{method} {template}: {status} without {name}"
    if "content" not in answer:
        assert body == b""
    elif len(body) <= BYTES_MAX:
        media_type = headers["Content-Type"].partition(";")[0]
        if media_type == BINARY:
            assert BINARY in answer["content"]
            return
        schema = answer["content"][media_type]["schema"]
        if media_type == "text/event-stream":
            for line in body.decode().splitlines():
                if line.startswith("data: "):
                    validate(EVENT, json.loads(line.removeprefix("data: ")))
            return
        is_json = media_type.endswith("json") and not media_type.endswith("ndjson")
        validate(schema, json.loads(body) if is_json else body.decode())

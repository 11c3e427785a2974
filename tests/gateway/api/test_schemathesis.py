"""A running gateway conforms to its OpenAPI document, tested by schemathesis."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from keepfit_gateway.openapi.examples import BY_NAME, BY_POSITION, METADATA, RECIPE, TARGET
from keepfit_gateway.parameters import EXAMPLE_HASH
from keepfit_gateway.routes import ROUTES
from tests.gateway.api_client import Api

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
)
# DELETE has its own models, or the other operations would have none; so have the paths with a version, which changes.
CONFIGURATION = """
[parameters]
"path.hash" = "{taught}"

[[operations]]
include-method = "DELETE"
parameters = {{ "path.hash" = "{deleted}", "query.metadata" = '{unwanted}' }}

[[operations]]
include-name = ["GET /v1/model", "GET /v1/dead", "GET /v1/snapshots"]
parameters = {{ "query.metadata" = '{metadata}' }}

[[operations]]
include-path-regex = "/versions/"
parameters = {{ "path.hash" = "{fixed}", "path.version" = "{version}" }}

# Streams end by themselves only after this time.
[[operations]]
include-path = "/v1/events"
parameters = {{ "query.timeout" = 0.01 }}
"""
EXAMPLES = 8


# It sends thousands of requests, and takes four times as long on a machine that other tests keep busy.
@pytest.mark.timeout(420)
async def test_schemathesis_finds_no_deviation(api: Api, metadata: dict[str, Any], tmp_path: Path) -> None:
    """Examples, boundary values and random data, valid and invalid, get documented answers only."""
    # The document's examples are rows of this recipe.
    taught = await api.make(metadata, RECIPE)
    deleted = await api.make({**metadata, "type": "boots"}, RECIPE)
    fixed = await api.make({**metadata, "type": "sandals"}, RECIPE)
    await api.learn(taught, BY_NAME, TARGET)
    unwanted = await api.make({**metadata, "type": "socks"}, RECIPE)
    version = (await api.learn(fixed, BY_NAME, TARGET))["version"]
    (await api.call("POST", f"{taught}/snapshot")).of(201)
    # The model of the examples has something to restore.
    await api.post("/v1/models", {"metadata": METADATA, "recipe": RECIPE})
    await api.learn(f"/v1/models/{EXAMPLE_HASH}", BY_NAME, TARGET)
    (await api.post("/v1/snapshot", {"metadata": METADATA})).of(201)
    names = {
        name: path.rpartition("/")[2] for name, path in (("taught", taught), ("deleted", deleted), ("fixed", fixed))
    }
    texts = {"metadata": json.dumps(metadata), "unwanted": json.dumps({**metadata, "type": "socks"})}
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION.format(**names, **texts, version=version))
    report = tmp_path / "report.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from schemathesis.cli import schemathesis as run; run()",
        "--config-file", str(tmp_path / "schemathesis.toml"), "--no-color",
        "run", f"{api.url}/openapi.json", "--phases", "examples,coverage,fuzzing", "--workers", "1",
        "--max-examples", str(EXAMPLES), "--generation-deterministic",
        "--checks", ",".join(CHECKS), "--warnings", "off", "--report-json-path", str(report),
        # In the temporary folder, because it writes files.
        cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    results = json.loads(report.read_text())
    # Every operation was tested, and each succeeded at least once: else only its rejections would be proven.
    rates = {
        name: sum(phase["accepted"] for phase in phases.values()) for name, phases in results["valid_rates"].items()
    }
    assert rates.keys() == {f"{route.method} {route.path}" for route in ROUTES if route.path != "/openapi.json"}
    # A model can be deleted once only; that it is gone proves the success.
    for gone, path in ((deleted, "/v1/models/{hash}"), (unwanted, "/v1/model")):
        (await api.get(gone)).problem(404)
        del rates[f"DELETE {path}"]
    # Random bytes are no file with a trained object; test_trained_models.py uploads some.
    del rates["POST /v1/estimator"]
    # Nor are they points; test_influx.py writes some.
    del rates["POST /api/v2/write"]
    assert [name for name, accepted in rates.items() if not accepted] == []
    assert len((await api.predict(taught, BY_POSITION))["predictions"]) == 2

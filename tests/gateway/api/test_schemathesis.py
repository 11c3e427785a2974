"""What the OpenAPI document promises, held against a running gateway by data that somebody else makes up."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from keepfit_gateway.routes import ROUTES
from tests.gateway.api_client import REGRESSOR, Api

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
# The one that deletes has a model of its own, or the others would have none.
CONFIGURATION = """
[parameters]
"path.hash" = "{kept}"

[[operations]]
include-method = "DELETE"
parameters = {{ "path.hash" = "{deleted}" }}
"""
EXAMPLES = 12


async def test_the_document_is_kept_to(api: Api, metadata: dict[str, Any], tmp_path: Path) -> None:
    """Examples, values at every bound, and random data right and wrong find no answer that the document lacks."""
    kept = await api.make(metadata, REGRESSOR)
    deleted = await api.make({**metadata, "type": "boots"}, REGRESSOR)
    # Of the width of the document's examples: what is asked shall not depend on how soon a worker has learned those.
    await api.learn(kept, [[1.0, 2.0], [3.0, 4.0]], [0.5, 1.5])
    # The document's example goes back to the first version.
    (await api.call("POST", f"{kept}/snapshot")).of(201)
    names = {name: path.rpartition("/")[2] for name, path in (("kept", kept), ("deleted", deleted))}
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION.format(**names))
    report = tmp_path / "report.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from schemathesis.cli import schemathesis as run; run()",
        "--config-file", str(tmp_path / "schemathesis.toml"), "--no-color",
        "run", f"{api.url}/openapi.json", "--phases", "examples,coverage,fuzzing", "--workers", "1",
        "--max-examples", str(EXAMPLES), "--generation-deterministic",
        "--checks", ",".join(CHECKS), "--warnings", "off", "--report-json-path", str(report),
        # Not where the tests were started: it would leave its files there.
        cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    told = json.loads(report.read_text())
    # None was left out, and each was found to do its work, too, or all that is proven is that it refuses.
    rates = {name: sum(phase["accepted"] for phase in phases.values()) for name, phases in told["valid_rates"].items()}
    assert rates.keys() == {f"{route.method} {route.path}" for route in ROUTES if route.path != "/openapi.json"}
    # A model is deleted once and then not there: what shows it is that it is gone.
    (await api.get(deleted)).problem(404)
    del rates["DELETE /v1/models/{hash}"]
    assert all(rates.values()), rates
    assert len((await api.predict(kept, [[1.0, 2.0]]))["predictions"]) == 1

"""Clients generated from the OpenAPI document: complete, without warnings or type errors, and working.

The generators have an environment of their own, because openapi-python-client needs an older typer than keepfit. It is
made once for each set of pins.
"""

import asyncio
import io
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from aiohttp import ClientSession

from keepfit import identity
from keepfit_gateway import openapi
from keepfit_gateway.openapi.document import operation_id
from keepfit_gateway.routes import ROUTES
from tests.clients.node import NODE, PINS, installed, run
from tests.conftest import Stack

HERE = Path(__file__).parent
GUIDE = HERE.parents[1] / "docs/guides/generated-clients.md"
BIN = Path(sys.executable).parent
DOCUMENTS = {"open": openapi.document(ROUTES), "guarded": openapi.document(ROUTES, keys=True)}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="session")
def generators() -> Path:
    """Install the generators, unless an earlier run has; return their folder."""
    return installed(HERE, "generated-clients", (*PINS, "requirements.txt"), _install_python)


def _install_python(folder: Path) -> None:
    run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    run(BIN / "uv", "pip", "install", "--quiet", "--python", python, "-r", "requirements.txt", cwd=folder)


def program_of_guide(language: str, url: str, session: str) -> str:
    """Return the program of the guide, for a live gateway and a model of this session."""
    (program,) = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert "http://127.0.0.1:8000" in program
    assert '"typed"' in program
    return str(program).replace("http://127.0.0.1:8000", url).replace('"typed"', json.dumps(session))


@pytest.fixture(scope="module")
def python_clients(generators: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Generate the Python client of each document; return the folder of each."""
    scripts, folders = generators / "venv/bin", {}
    for name, document in DOCUMENTS.items():
        folder = folders[name] = tmp_path_factory.mktemp(name)
        (folder / "openapi.json").write_text(json.dumps(document))
        output = run(
            scripts / "openapi-python-client", "generate", "--path", "openapi.json", "--meta", "none",
            "--output-path", "models_client", "--fail-on-warning",
            cwd=folder, PATH=f"{scripts}{os.pathsep}{os.environ['PATH']}",
        )  # fmt: skip
        assert "warning" not in output.lower()
    return folders


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_the_python_generator_makes_every_operation(python_clients: dict[str, Path], name: str) -> None:
    """The generator warns about nothing, makes a module for each operation, and a class for each object and enum."""
    folder = python_clients[name] / "models_client"
    made = {path.stem for path in (folder / "api").rglob("*.py") if path.stem != "__init__"}
    assert made == {operation_id(route) for route in ROUTES}
    exported = (folder / "models/__init__.py").read_text()
    for component, schema in DOCUMENTS[name]["components"]["schemas"].items():
        is_class = schema.get("type") == "object" or "enum" in schema
        assert (f'"{component}"' in exported) is is_class, component
    # Names of the document, never numbered parts of other names.
    assert "_type_" not in exported


def test_the_python_client_works(
    python_clients: dict[str, Path], generators: Path, stack: Stack, tmp_path: Path
) -> None:
    """A program with the generated client has no type errors, and gets an answer of the right type from every call."""
    folder, python, session = python_clients["open"], generators / "venv/bin/python", uuid.uuid4().hex
    shutil.copy(HERE / "program.py", folder)
    (folder / "guide.py").write_text(program_of_guide("python", stack.url, session))
    programs = ("program.py", "guide.py")
    checked = subprocess.run(
        [BIN / "mypy", "--strict", "--python-executable", python, "--cache-dir", tmp_path / "mypy", *programs],
        cwd=folder, env={**os.environ, "MYPYPATH": "."}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    # The generator's own client.py, the same for every document, has errors in strict mode.
    errors = [line for line in checked.stdout.splitlines() if ": error:" in line]
    assert [line for line in errors if not line.startswith("models_client/client.py:")] == []
    assert "checked 2 source files" in checked.stdout, checked.stdout + checked.stderr
    table = io.BytesIO()
    np.save(table, np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 0.5]]))
    got = json.loads(run(python, "program.py", stack.url, session, cwd=folder, stdin=table.getvalue()))
    expected_hash = identity.hash_of({"type": "shoes", "language": "python", "session": session})
    assert got == {
        "hash": expected_hash,
        "created": [201, True],
        "encoding": "onehot",
        "learned": 3,
        "accepted": 3,
        "alpha": 0.01,
        "predictions": [True, True],
        "not_modified": True,
        "scores": True,
        "running": 3,
        "problem": {
            "type": "urn:keepfit:problem:invalid",
            "errors": [{"detail": "'old' is not a number", "row": 0, "column": "year"}],
        },
        "missing": [404, "urn:keepfit:problem:not-found"],
        "listed": [expected_hash],
        "snapshots": [True],
        "documents": [expected_hash],
        "points": [6],
        "dead": [0, 0, 0],
        "restored": True,
        "document": "3.1.0",
        "probes": ["ok", "ok"],
        "metrics": True,
        "of_table": 2,
        "deleted": [204, 204],
    }
    (prediction,) = json.loads(run(python, "guide.py", cwd=folder))
    assert isinstance(prediction, float)


async def test_the_typescript_client_works(generators: Path, stack: Stack, tmp_path: Path) -> None:
    """A program with the generated types passes tsc in strict mode, and gets the answers that the types promise."""
    session, modules = uuid.uuid4().hex, generators / "node_modules"
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for name in ("program.ts", "tsconfig.json"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "openapi.json").write_text(json.dumps(DOCUMENTS["open"]))
    run(NODE, modules / "openapi-typescript/bin/cli.js", "openapi.json", "--output", "api.d.ts", cwd=tmp_path)
    (tmp_path / "guide.ts").write_text(program_of_guide("typescript", stack.url, session))
    run(NODE, modules / "typescript/bin/tsc", "--project", ".", cwd=tmp_path)
    got = json.loads(run(NODE, "--no-warnings", "program.ts", stack.url, session, cwd=tmp_path))
    expected_hash = identity.hash_of({"type": "shoes", "language": "typescript", "session": session})
    assert got.pop("label") in ("true to size", "small")
    assert got == {
        "hash": expected_hash,
        "created": 201,
        "encoding": "onehot",
        "learned": 3,
        "accepted": 3,
        "alpha": 0.01,
        "same_label": True,
        "probabilities": 1,
        "classes": ["true to size", "small"],
        "not_modified": 304,
        "accuracy": True,
        "running": True,
        "problem": {
            "type": "urn:keepfit:problem:invalid",
            "errors": [{"detail": "'old' is not a number", "row": 0, "column": "year"}],
        },
        "listed": [expected_hash],
        "snapshots": [True],
        "documents": [expected_hash],
        "points": [6],
        "dead": 0,
        "restored": True,
        "ready": "ok",
        "deleted": 204,
    }
    recipe = {"estimator": "SGDRegressor", "features": {"make": "category", "year": "number"}}
    metadata = {"type": "shoes", "session": session}
    async with ClientSession(stack.url) as http:
        for path, body in (
            ("models", {"metadata": metadata, "recipe": recipe}),
            ("partial_fit", {"metadata": metadata, "X": [["nike", 2001]], "y": [4]}),
        ):
            async with http.post(f"/v1/{path}", json=body, headers={"Prefer": "wait=30"}) as response:
                assert response.ok
    assert re.fullmatch(r"\[ -?[0-9.]+ \]\n", await asyncio.to_thread(run, NODE, "guide.ts", cwd=tmp_path))

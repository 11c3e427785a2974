"""Unmodified clients of the inference protocol work: tritonclient (sync and aio) and kserve.

They have an environment of their own, because they need many packages that keepfit does not. It is made once for each
set of pins.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conftest import Stack
from tests.examples_in_docs import assert_same_form
from tests.gateway.api_client import Api
from tests.made_once import made_once
from tests.test_reference import call

HERE = Path(__file__).parent
UV = Path(sys.executable).parent / "uv"
PINS = HERE / "requirements.txt"
PAGE = HERE.parents[1] / "docs/reference/inference-protocol.md"
X = [[0.5, 1.0], [2.0, -3.0], [4.0, 0.25], [1.0, 1.0]]
SHOES = [["pegasus", 2001], ["cortez", 2010]]
LABELS = ["no", "yes", "yes", "no"]
WIDTH = 100
MODELS: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "matrix": ({"estimator": "SGDRegressor"}, X, [1, 2, 3, 4]),
    "shoes": (
        {"estimator": "SGDRegressor", "features": {"make": "category", "year": "number"}, "scaler": "StandardScaler"},
        SHOES,
        [0.5, -0.5],
    ),
    "labels": ({"estimator": "GaussianNB", "classes": ["no", "yes"]}, X, LABELS),
    "wide": (
        {"estimator": "SGDRegressor", "features": {f"column{i}": "number" for i in range(WIDTH)}},
        [[1.0] * WIDTH],
        [1],
    ),
}
# For each client: CALLS=10000 before the command of one file is the load of a long day.
CALLS = int(os.environ.get("CALLS", "320"))
NAN = "column 0: nan is not a finite number"

pytestmark = pytest.mark.timeout(300 + CALLS // 10)


@pytest.fixture(scope="session")
def clients() -> Path:
    """Install the clients, unless an earlier run has; return the Python that has them."""
    return made_once("inference-clients", {PINS.name: PINS}, _install) / "venv/bin/python"


def _install(folder: Path) -> None:
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, "-r", PINS.name], cwd=folder, check=True)


def test_the_examples_of_the_page_work(clients: Path, stack: Stack) -> None:
    """The session of the reference page gives the answers shown, and its programs predict with the model of it."""
    text = PAGE.read_text().replace("http://127.0.0.1:8000", stack.url)
    text = text.replace("127.0.0.1:8000", stack.url.removeprefix("http://"))
    (session,) = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    for command, shown in re.findall(r"^\$ (curl .*)\n(.*)$", session, re.MULTILINE):
        assert_same_form(call(command, stack.url), json.loads(shown))
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    printed = [
        subprocess.run([clients, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True).stdout
        for program in programs
    ]
    assert [re.findall("large|small", output) for output in printed] == [["large", "small"]] * 2


async def test_unmodified_clients_work(clients: Path, stack: Stack, http: aiohttp.ClientSession) -> None:
    """Each client gets health, metadata, predictions in each form and errors, and no wrong answer in many calls."""
    api, session, models = Api(http), uuid.uuid4().hex, dict[str, Any]()
    for name, (recipe, rows, target) in MODELS.items():
        path = await api.make({"type": name, "session": session}, recipe)
        await api.learn(path, rows, target)
        models[name] = {"hash": path.rpartition("/")[2], **await api.predict(path, rows)}
    probabilities = (await api.predict(f"/v1/models/{models['labels']['hash']}", X, proba=True))["probabilities"]
    models["matrix"]["expected"] = expected = models["matrix"]["predictions"]
    done = await asyncio.to_thread(
        subprocess.run,
        [clients, HERE / "program.py", stack.url, str(CALLS)],
        input=json.dumps({"models": models, "X": X}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.keys() == {"sync", "aio", "kserve"}
    for each in found.values():
        assert (each["calls"], each["errors"]) == (CALLS, 0)
        assert each["health"] == [True, True]
        assert each["ready"] == [True, False]
        assert each["matrix"] == [expected] * len(each["matrix"])
    sync = found["sync"]
    assert sync["version"] == [True, False]
    assert sync["server"] == ["binary_tensor_data"]
    assert [[each["name"] for each in inputs] for inputs in sync["inputs"]] == [["X"], ["make", "year"]]
    assert [status for status, _ in sync["refused"]] == ["404", "404"]
    assert sync["shoes"] == [models["shoes"]["predictions"]] * 2
    assert sync["labels"] == {"predictions": LABELS, "probabilities": probabilities, "classes": ["no", "yes"]}
    assert sync["error"][0] == "422"
    assert NAN in sync["error"][1]
    assert found["aio"]["inputs"] == WIDTH
    assert "'X'" in found["aio"]["error"][1]
    assert found["kserve"]["labels"] == {"predictions": LABELS, "probabilities": probabilities}
    # kserve shows the text of an error only if its media type is application/json.
    assert NAN in found["kserve"]["error"]

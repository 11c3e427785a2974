"""Every code block of the documentation is run by a test, or stands in a list with the reason why it is not."""

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keepfit.cli.yaml_values import parse_yaml
from keepfit.identity import check_metadata
from keepfit.recipe.recipe import parse
from keepfit.security.envelope import Keyring
from keepfit.times import format_time
from tests.conftest import Stack, start_stack, stop_stack
from tests.examples_in_docs import ROOT, Block, assert_shown, blocks, run

# Pages whose blocks another test runs.
COVERED = {
    "README.md": "tests/test_readme.py",
    "docs/guides/generated-clients.md": "tests/clients/test_generated_clients.py",
    "docs/guides/nodejs-client.md": "tests/clients/test_node_client.py",
    "clients/node/README.md": "tests/clients/test_node_client.py",
    "docs/reference/http-api.md": "tests/test_reference.py",
    "docs/reference/inference-protocol.md": "tests/inference_clients/test_inference_clients.py",
    "examples/fastapi/README.md": "tests/examples/test_fastapi.py",
    "examples/sneakers/README.md": "tests/examples/test_sneakers.py",
    "examples/stream/README.md": "tests/examples/test_stream.py",
    "examples/telegraf/README.md": "tests/examples/test_telegraf.py",
}
# Blocks that are not run, by page and the beginning of the block, each with the reason.
NOT_RUN = {
    (
        "CONTRIBUTING.md",
        "$ git clone",
    ): "its commands are the test run itself, and the demo, which tests/keepfit/local runs",
    (
        "docs/contributing/scripts.md",
        "$ make mutants",
    ): "it takes some minutes; tests/scripts/test_mutants.py runs its parts",
    (
        "docs/getting-started/quickstart.md",
        "$ python3 -m venv",
    ): "it installs from the index, as every run of the tests does",
    ("docs/getting-started/quickstart.md", "$ .venv/bin/keepfit up"): "the stack of the test is what it starts",
    ("docs/getting-started/quickstart.md", "$ keepfit up"): "tests/test_base_install.py runs it where it says that",
    ("docs/guides/events.md", "$ curl -sN"): "it does not end by itself; tests/gateway/events listens",
    ("docs/guides/events.md", "$ keepfit watch"): "its first event is that of any model; tests/keepfit/cli watches",
    ("docs/guides/events.md", "const source"): "it needs a browser; its form is that of tests/gateway/events",
    ("docs/guides/events.md", "async function listen"): "tests/gateway/events/test_guide.py runs it",
    (
        "docs/guides/history.md",
        "[[outputs",
    ): "a part of Telegraf's configuration; test_influx.py sends what Telegraf does",
    ("docs/operations/security.md", "$ KEEPFIT_CORS"): "it keeps running; tests/gateway/auth sets what it sets",
    ("docs/reference/errors.md", '{"type"'): "the form of an answer; tests/gateway checks it on every error",
    ("k8s/README.md", "images:"): "a part of a file; tests/k8s builds an overlay with a digest",
    ("k8s/README.md", "kubectl -n keepfit create secret tls"): "it needs a certificate",
}
# Pages whose commands need a deployment with a past, by the texts that stand for its values.
RUN_HERE = {
    "docs/getting-started/first-model.md",
    "docs/getting-started/quickstart.md",
    "docs/getting-started/tutorial.md",
    "docs/guides/deploy.md",
    "docs/guides/export-and-import.md",
    "docs/guides/history.md",
    "docs/guides/late-labels.md",
    "docs/guides/moving-over.md",
    "docs/guides/python-client.md",
    "docs/guides/restore.md",
    "docs/guides/sending-rows.md",
    "docs/guides/trained-models.md",
    "docs/guides/your-own-objects.md",
    "docs/operations/security.md",
    "docs/reference/request-bodies.md",
    "k8s/README.md",
}
HISTORY: dict[str, Any] = {"type": "shoes", "brand": "nike", "page": "examples"}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run a stack for the pages, which restore and import all of it; it has one model with snapshots."""
    stack = start_stack(tmp_path_factory.mktemp("pages") / "data", workers=1)
    yield stack
    assert stop_stack(stack) == 0


def pages(*languages: str) -> dict[str, list[Block]]:
    """Return the blocks of these languages that this module runs, by page."""
    found: dict[str, list[Block]] = {}
    for block in blocks():
        if block.language in languages and block.page not in COVERED and reason(block) is None:
            found.setdefault(block.page, []).append(block)
    return found


def reason(block: Block) -> str | None:
    """Return why a block is not run; None if it is."""
    return next(
        (why for (page, start), why in NOT_RUN.items() if (block.page, True) == (page, block.text.startswith(start))),
        None,
    )


def post(url: str, document: Any) -> Any:
    """Post a document and wait for what it asks for; return the answer."""
    headers = {"Content-Type": "application/json", "Prefer": "wait=10"}
    request = urllib.request.Request(url, json.dumps(document).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def model(deployment: Stack) -> dict[str, Any]:
    """Create the model of the pages on the deployment: two snapshots, of the versions 12 and 14."""
    recipe = {
        "estimator": "SGDRegressor",
        "features": {"make": "category", "year": "number"},
        "scaler": "StandardScaler",
    }
    made = post(f"{deployment.url}/v1/models", {"metadata": HISTORY, "recipe": recipe})
    path = f"{deployment.url}/v1/models/{made['hash']}"
    snapshots = []
    for rows in (12, 2):
        for number in range(rows):
            post(f"{path}/partial_fit", {"X": [{"make": "nike", "year": 2000 + number}], "y": [3.5]})
        snapshots.append(post(f"{path}/snapshot", {}))
    return {"hash": made["hash"], "snapshots": snapshots}


def check(page: str, folder: Path, stack: Stack, texts: dict[str, str], **hosts: Stack) -> list[str]:
    """Run the blocks of a page and compare the outputs that it shows; return all outputs."""
    chosen = pages("console", "sh", "python")[page]
    variables = {name: each.environment() for name, each in {"": stack, **hosts}.items()}
    variables[""]["URL"] = stack.url
    outputs = run(chosen, folder, variables, {"http://127.0.0.1:8000": stack.url, "localhost:8000": stack.url, **texts})
    for step, output in zip((step for block in chosen for step in block.steps()), outputs, strict=True):
        if step.shown:
            assert_shown(output, step.shown)
    return outputs


def newest(texts: str) -> str:
    """Return the last line of an output."""
    return texts.strip().splitlines()[-1]


def test_a_restore(deployment: Stack, model: dict[str, Any], tmp_path: Path) -> None:
    """The commands of the guide restore the model: what Redis lost, to a version, to a time."""
    texts = {"3f…": model["hash"], '"2026-11-20 12:00"': f"{format_time(model['snapshots'][0]['timestamp'])!r} --force"}
    outputs = check("docs/guides/restore.md", tmp_path, deployment, texts)
    assert json.loads(newest(outputs[-1]))["version"] > 0


def test_the_quickstart(deployment: Stack, tmp_path: Path) -> None:
    """The commands of the quickstart give the answers shown."""
    check("docs/getting-started/quickstart.md", tmp_path, deployment, {".venv/bin/keepfit": "keepfit"})


def test_files_of_rows(deployment: Stack, tmp_path: Path) -> None:
    """The commands that send a file create, learn and predict as shown."""
    check("docs/guides/sending-rows.md", tmp_path, deployment, {"examples/": f"{ROOT}/examples/"})


def test_late_labels(deployment: Stack, tmp_path: Path) -> None:
    """The commands of the guide keep rows and label them as shown."""
    check("docs/guides/late-labels.md", tmp_path, deployment, {})


def test_the_python_client(deployment: Stack, tmp_path: Path) -> None:
    """The programs of the guide learn, ask and search on the stack."""
    learned, again, asked, searched = check("docs/guides/python-client.md", tmp_path, deployment, {})
    assert 8 < float(learned.splitlines()[0]) < 10
    assert again.splitlines()[0].split() == ["True", "10002"]
    assert again.splitlines()[1].endswith("0 year")
    assert asked.split()[0] == "100"
    assert "remoteregressor__estimator__alpha" in searched


def test_the_first_model(deployment: Stack, tmp_path: Path) -> None:
    """The commands of the tutorial give the answers shown."""
    outputs = check("docs/getting-started/first-model.md", tmp_path, deployment, {"@examples": f"@{ROOT}/examples"})
    nike, puma, unknown = next(json.loads(one)["predictions"] for one in outputs if "predictions" in one)
    assert 1 < puma < unknown < nike < 5


def test_the_tutorial(deployment: Stack, tmp_path: Path) -> None:
    """From a CSV file: the model is tested on a month that it has not seen, goes on learning, and is put back."""
    outputs = check("docs/getting-started/tutorial.md", tmp_path, deployment, {})
    before, after = (json.loads(output) for output in outputs if output.startswith("{"))
    assert before == after
    assert (before["mean_absolute_error"] < 12.5, before["r2"] > 0.8) == (True, True)
    error, baseline = next(map(float, output.split()) for output in outputs if len(output.split()) == 2)
    assert error < 0.55 * baseline


@pytest.mark.usefixtures("model")
def test_the_history(deployment: Stack, tmp_path: Path) -> None:
    """The queries of the history's guide find the model, from the shell and from Python."""
    texts = {"mongodb://127.0.0.1:27017/keepfit": deployment.environment()["KEEPFIT_MONGO_URL"]}
    outputs = check("docs/guides/history.md", tmp_path, deployment, texts)
    assert sum("mean_absolute_error" in output for output in outputs) > 0


@pytest.mark.usefixtures("model")
def test_an_export(deployment: Stack, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A model of one deployment is exported, and imported into another one with other keys."""
    (tmp_path / "old-keys").write_text(deployment.environment()["KEEPFIT_SIGNING_KEYS"])
    other = start_stack(tmp_path_factory.mktemp("new") / "data", workers=1)
    try:
        check("docs/guides/export-and-import.md", tmp_path, deployment, {}, old=deployment, new=other)
        question = {"metadata": HISTORY, "X": [{"make": "nike", "year": 2005}]}
        before, after = (post(f"{each.url}/v1/predict", question) for each in (deployment, other))
    finally:
        assert stop_stack(other) == 0
    assert after["predictions"] == before["predictions"]


def test_an_object_of_the_guide(deployment: Stack, tmp_path: Path) -> None:
    """The scripts that send an object, and new code for it, print the predictions that the page states."""
    for output in check("docs/guides/your-own-objects.md", tmp_path, deployment, {}):
        assert f"It prints `{output.strip()}`" in (ROOT / "docs/guides/your-own-objects.md").read_text()


def test_a_trained_model_of_the_guide(deployment: Stack, tmp_path: Path) -> None:
    """The script that uploads a pipeline prints that it answers as scikit-learn does, before and after learning."""
    page = (ROOT / "docs/guides/trained-models.md").read_text()
    for output in check("docs/guides/trained-models.md", tmp_path, deployment, {}):
        assert f"It prints `{' '.join(output.split())}`" in page


def test_moved_models_of_the_guide(deployment: Stack, tmp_path: Path) -> None:
    """The scripts that move a model print that it answers as it did in its former place, before and after learning."""
    page = (ROOT / "docs/guides/moving-over.md").read_text()
    printed = [" ".join(output.split()) for output in check("docs/guides/moving-over.md", tmp_path, deployment, {})]
    # The service by hand is only imported.
    assert [text for text in printed if text] == re.findall("It prints `([^`]+)`", page)


def test_a_table_as_body(deployment: Stack, tmp_path: Path) -> None:
    """The script that sends an array is accepted."""
    made = post(f"{deployment.url}/v1/models", {"metadata": {"type": "table"}, "recipe": {"estimator": "SGDRegressor"}})
    check(
        "docs/reference/request-bodies.md",
        tmp_path,
        deployment,
        {"5f0c…": made["hash"]},
    )


def test_the_creation_of_keys(deployment: Stack, tmp_path: Path) -> None:
    """The command that creates an API key prints what the page shows."""
    check("docs/operations/security.md", tmp_path, deployment, {})


def test_kubernetes(deployment: Stack, tmp_path: Path) -> None:
    """The commands for a cluster create valid objects, and name what the manifests of the page's overlay have."""
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    (tmp_path / "api-keys").write_text("")
    check("k8s/README.md", tmp_path, deployment, {})


def test_compose(deployment: Stack, tmp_path: Path) -> None:
    """The commands for one machine make the secrets that compose.yaml needs."""
    check("docs/guides/deploy.md", tmp_path, deployment, {})
    made = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    needed = set(re.findall(r"\$\{(\w+):\?\}", (ROOT / "compose.yaml").read_text()))
    assert needed == made.keys() | {"KEEPFIT_API_KEYS"}
    assert Keyring.from_text(made["KEEPFIT_SIGNING_KEYS"]).keys
    assert len({made["REDIS_PASSWORD"], made["QUEUE_PASSWORD"], made["MONGO_PASSWORD"]}) == 3


def test_every_block_is_run_or_has_a_reason() -> None:
    """Each block with a language is run here or by another test, or its reason not to be run is written down."""
    languages = {block.language for block in blocks() if block.page not in COVERED and reason(block) is None}
    assert languages - {""} <= {"console", "sh", "python", "json", "yaml"}
    assert set(pages("console", "sh", "python")) == RUN_HERE
    stale = {key for key in NOT_RUN if not any(b.page == key[0] and b.text.startswith(key[1]) for b in blocks())}
    assert stale == set()
    # A block without a language is a picture or a form; a session in it would not be run.
    unmarked = [
        b for b in blocks() if not b.language and re.match(r"\w*\$ |(keepfit|curl|pip|docker|kubectl) ", b.text)
    ]
    assert unmarked == []


@pytest.mark.parametrize("block", [b for page in pages("json").values() for b in page], ids=lambda b: b.page)
def test_json_is_json_and_recipes_are_recipes(block: Block) -> None:
    """A JSON block is one JSON value or one in each line, and each recipe among them is accepted."""
    rest, decoder, values = block.text.strip(), json.JSONDecoder(), []
    while rest:
        value, end = decoder.raw_decode(rest)
        values.append(value)
        rest = rest[end:].strip()
    recipes = [value for value in values if isinstance(value, dict) and {"estimator", "steps", "object"} & value.keys()]
    for recipe in recipes:
        assert parse(recipe).name


@pytest.mark.parametrize("block", [b for page in pages("yaml").values() for b in page], ids=lambda b: b.page)
def test_yaml_describes_models(block: Block) -> None:
    """A YAML block describes models, whose recipes are accepted."""
    for document in parse_yaml(block.text, block.page):
        assert check_metadata(document["metadata"])
        assert parse(document["recipe"]).name

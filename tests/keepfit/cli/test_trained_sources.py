"""`keepfit upload` of models that were trained elsewhere: pickles, folders of MLflow, chantilly's answers.

MLflow and chantilly are not installed: the first is large, and the second does not import with the River of today. The
folder has the files that MLflow's `save_model` documents, with the fields that are read and some that are not; the
server has chantilly's route of a model, with what it answers to a name that it does not know.
"""

import asyncio
import json
import pickle
import sys
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pytest
import skops.io
from aiohttp import web
from aiohttp.test_utils import TestServer
from river import compose, linear_model, preprocessing
from sklearn import __version__ as sklearn_version
from sklearn.linear_model import SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keepfit
from keepfit.errors import InvalidError
from keepfit.model import unsigned
from keepfit.security.envelope import UPLOAD_KEYS
from tests.conftest import Stack
from tests.keepfit.cli import command
from tests.keepfit.cli.command import Done, error_line

X = np.random.default_rng(0).normal(size=(50, 3))
Y = X.sum(axis=1)
# The classes in the estimator, in the order in which they are loaded.
STEPS = ("StandardScaler", "SGDRegressor", "Pipeline")
MLMODEL = """artifact_path: model
flavors:
  python_function:
    env: {{conda: conda.yaml, virtualenv: python_env.yaml}}
    loader_module: mlflow.sklearn
    model_path: {name}
    predict_fn: predict
    python_version: 3.11.7
  sklearn:
    code: null
    pickled_model: {name}
    serialization_format: {format}
    sklearn_version: {version}
is_signature_from_type_hint: false
mlflow_version: 3.6.0
model_id: m-5f0c
utc_time_created: '2026-11-30 20:00:00.000000'
"""


class Touch:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def trained() -> Any:
    """Return a pipeline that has learned."""
    return make_pipeline(StandardScaler(), SGDRegressor(random_state=0)).fit(X, Y)


def mlflow_folder(folder: Path, form: str, data: bytes) -> Path:
    """Write a model as MLflow does; return its folder."""
    folder.mkdir()
    name = "model.skops" if form == "skops" else "model.pkl"
    (folder / name).write_bytes(data)
    (folder / "MLmodel").write_text(MLMODEL.format(name=name, format=form, version=sklearn_version))
    (folder / "requirements.txt").write_text(f"scikit-learn=={sklearn_version}\n")
    return folder


def upload(stack: Stack, cwd: Path, source: str, *words: str, metadata: dict[str, Any] | None = None) -> Done:
    """Run `keepfit upload` with the settings of the stack."""
    given = ("--metadata", json.dumps(metadata or new_metadata()), "--data", str(stack.data))
    return command.keepfit("upload", source, *words, *given, cwd=cwd)


def new_metadata() -> dict[str, Any]:
    """Return the metadata of no other model."""
    return {"type": "moved", "session": uuid.uuid4().hex}


def written_by_joblib(estimator: Any) -> bytes:
    """Return the bytes of a compressed file of joblib."""
    file = BytesIO()
    joblib.dump(estimator, file, compress=3)
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "dumps", "words"),
    [
        ("skops", skops.io.dumps, ()),
        ("pickle", pickle.dumps, ("--trust",)),
        ("cloudpickle", cloudpickle.dumps, ("--trust",)),
        ("joblib", written_by_joblib, ("--trust",)),
    ],
)
def test_a_moved_estimator_answers_as_before_and_learns_on(
    stack: Stack, tmp_path: Path, form: str, dumps: Any, words: tuple[str, ...]
) -> None:
    """A folder of MLflow in each of its formats, or a file of joblib, becomes a model with the same predictions."""
    estimator, metadata = trained(), new_metadata()
    if form == "joblib":
        (tmp_path / "moved").write_bytes(dumps(estimator))
    else:
        mlflow_folder(tmp_path / "moved", form, dumps(estimator))
    done = upload(stack, tmp_path, "moved", *words, metadata=metadata)
    assert (done.returncode, done.stderr) == (0, "")
    with keepfit.Client(stack.url) as client:
        model = client.model(done.stdout.strip())
        assert model.hash == client.model(metadata).hash
        assert [model.predict(row)[0] for row in X[:, None]] == [estimator.predict(row)[0] for row in X[:, None]]
        model.partial_fit(X[:1], Y[:1], wait=True)
        estimator[0].partial_fit(X[:1])
        estimator[1].partial_fit(estimator[0].transform(X[:1]), Y[:1])
        assert model.predict(X[1:2])[0] == estimator.predict(X[1:2])[0]


async def test_a_model_of_chantilly_is_moved(stack: Stack, tmp_path: Path) -> None:
    """The pickle that chantilly answers becomes a model of River with what it has learned."""
    river = compose.Pipeline(preprocessing.StandardScaler(), linear_model.LinearRegression())
    for number in range(20):
        river.learn_one({"distance": number % 7}, 2.0 * (number % 7))

    async def model_route(request: web.Request) -> web.Response:
        if request.match_info["name"] != "linear":
            return web.Response(status=500)
        return web.Response(body=pickle.dumps(river), content_type="text/html")

    app = web.Application()
    app.router.add_get("/api/model/{name}", model_route)
    async with TestServer(app) as server:
        url = str(server.make_url("/api/model/"))
        done = await asyncio.to_thread(upload, stack, tmp_path, f"{url}linear", "--trust")
        unknown = await asyncio.to_thread(upload, stack, tmp_path, f"{url}none", "--trust")
        missing = await asyncio.to_thread(upload, stack, tmp_path, str(server.make_url("/none")), "--trust")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{url}none has no model: its server answers 500" in error_line(unknown)
    assert "its server answers 404" in error_line(missing)
    async with keepfit.AsyncClient(stack.url) as client:
        (prediction,) = await client.model(done.stdout.strip()).predict({"distance": 3})
    assert prediction == river.predict_one({"distance": 3})


def test_a_pickle_is_loaded_with_trust_alone(stack: Stack, tmp_path: Path) -> None:
    """Without --trust, or without a key to sign it with, the code of a pickle does not run."""
    mlflow_folder(tmp_path / "folder", "cloudpickle", pickle.dumps(Touch(tmp_path / "ran")))
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    for source in ("folder", "file.pkl"):
        assert "if you trust its author, repeat the command with --trust" in error_line(upload(stack, tmp_path, source))
    words = ("upload", "file.pkl", "--trust", "--metadata", "type=moved", "--url", stack.url, "--data", str(tmp_path))
    without_key = command.keepfit(*words, cwd=tmp_path, variables={UPLOAD_KEYS: ""})
    assert "there is no upload key: set KEEPFIT_UPLOAD_KEYS" in error_line(without_key)
    assert not (tmp_path / "ran").exists()
    error_line(upload(stack, tmp_path, "file.pkl", "--trust"))
    assert (tmp_path / "ran").exists()
    (tmp_path / "none.pkl").write_bytes(b"no pickle")
    assert "none.pkl cannot be loaded here: " in error_line(upload(stack, tmp_path, "none.pkl", "--trust"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that lacks what a pickle needs, joblib for one, says so in the error of the file."""
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(InvalidError, match=r"x\.pkl cannot be loaded here: ModuleNotFoundError: .*joblib"):
        unsigned.load(pickle.dumps(1), "x.pkl")


def test_another_version_of_scikit_learn_is_reported(stack: Stack, tmp_path: Path) -> None:
    """A pickle that another version has written is moved, with a warning that names both."""
    former = "0" + sklearn_version[1:]
    data = pickle.dumps(trained())
    assert sklearn_version.encode() in data
    (tmp_path / "old.pkl").write_bytes(data.replace(sklearn_version.encode(), former.encode()))
    done = upload(stack, tmp_path, "old.pkl", "--trust")
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: old.pkl: Trying to unpickle")]
    assert [name for one in warnings for name in STEPS if f" estimator {name} " in one] == list(STEPS)
    assert all(former in one and sklearn_version in one for one in warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is a folder without a file MLmodel"),
        ("- a\n", "has no flavor sklearn; its flavors: none."),
        ("a: 1\n---\nb: 2\n", "does not describe one model."),
        (
            "flavors: {xgboost: {}, python_function: {}}",
            "has no flavor sklearn; its flavors: xgboost, python_function.",
        ),
        (
            "flavors: {sklearn: {pickled_model: a, serialization_format: onnx}}",
            "the serialization_format 'onnx' is not read; pickle, cloudpickle, skops are.",
        ),
        (
            "flavors: {sklearn: {pickled_model: ../a}}",
            "the pickled_model '../a' is not a path of a file in this folder.",
        ),
        ("flavors: {sklearn: {pickled_model: /a}}", "the pickled_model '/a' is not a path"),
        ("flavors: {sklearn: {}}", "the pickled_model None is not a path"),
        ("flavors: {sklearn: {pickled_model: none.pkl}}", "There is no file folder/none.pkl."),
        ("flavors: [", "folder/MLmodel is not YAML"),
    ],
)
def test_a_folder_that_is_not_read_says_why(stack: Stack, tmp_path: Path, text: str | None, message: str) -> None:
    """A folder that is none of MLflow's sklearn flavor is refused with what it is."""
    (tmp_path / "folder").mkdir()
    if text is not None:
        (tmp_path / "folder/MLmodel").write_text(text)
    assert message in error_line(upload(stack, tmp_path, "folder", "--trust"))

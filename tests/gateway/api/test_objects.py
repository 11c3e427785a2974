"""Uploaded objects over HTTP with real workers: accepted objects, rejected objects, and objects that misbehave."""

import io
import json
import pickle
import warnings
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from river import compose, linear_model, multioutput, preprocessing
from sklearn.linear_model import SGDRegressor
from sklearn.naive_bayes import GaussianNB

from keepfit.objects import dump
from keepfit.recipe import uploads
from keepfit.security.envelope import UPLOAD_KEYS, Keyring
from tests.conftest import Stack
from tests.gateway.api_client import Api


@pytest.fixture(scope="session")
def keys(stack: Stack) -> str:
    """Return the upload keys of the stack."""
    return stack.environment()[UPLOAD_KEYS]


def difficult() -> Any:
    """Create an object that misbehaves depending on the row: it prints, warns, exits or holds a lock."""

    class Difficult:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def partial_fit(self, X: Any, y: Any) -> None:
            for value in y.tolist():
                self.seen.append(value)
                if value == 13.0:
                    raise SystemExit("bye")
                if value == 14.0:
                    raise KeyboardInterrupt
                if value == 15.0:
                    import threading  # noqa: PLC0415

                    self.lock = threading.Lock()
                if value == 16.0:
                    print("a line of text")  # noqa: T201
                    warnings.warn("a warning", stacklevel=1)

        def predict(self, X: Any) -> Any:
            self.seen.append(-1.0)
            if X[0, 0] == 13.0:
                raise SystemExit("bye")
            return np.full(len(X), sum(1 for value in self.seen if value >= 0))

    return Difficult()


async def make(api: Api, metadata: dict[str, Any], text: str, **recipe: Any) -> str:
    """Create a model of an object; return its path."""
    return await api.make(metadata, {"object": text, **recipe})


async def test_an_uploaded_object_learns_and_predicts(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """An uploaded estimator learns and predicts as in this process; the same upload again returns the model."""
    learner = SGDRegressor(shuffle=False)
    text = dump(learner, keys)
    path = await make(api, metadata, text, features={"a": "number", "b": "number"})
    X, y = [[1.0, 2.0], [0.5, 0.1], [0.2, 0.9]], [1.0, 2.0, 3.0]
    for count in (1, 2):
        learned = await api.learn(path, X, y)
        learner.partial_fit(np.array(X), np.array(y))
        assert (learned["version"], learned["rows_seen"]) == (count, 3 * count)
    assert (await api.predict(path, [{"b": 2, "a": 1}]))["predictions"] == learner.predict([[1.0, 2.0]]).tolist()
    described = await api.model(path)
    assert described["recipe"]["object"] == text
    assert described["metrics"]["rows"] == 3
    recipe = {"object": text, "features": {"a": "number", "b": "number"}}
    assert (await api.post("/v1/models", {"metadata": metadata, "recipe": recipe})).of(200)["version"] == 2
    again = {"metadata": metadata, "recipe": {"object": dump(SGDRegressor(alpha=1.0), keys)}}
    (await api.post("/v1/models", again)).problem(409)


async def test_a_trained_object_answers_at_once(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """Before a row was learned, a trained classifier predicts and is scored; an untrained one answers 409."""
    X, y = [[0.0, 1.0], [0.5, 1.0], [9.0, 1.0], [9.5, 1.0]], ["a", "a", "b", "c"]
    learner = GaussianNB().fit(X, ["a", "a", "b", "b"])
    path = await make(api, metadata, dump(learner, keys))
    answer = (await api.post(f"{path}/predict", {"X": X, "proba": True})).of(200)
    assert (answer["version"], answer["predictions"], answer["classes"]) == (0, ["a", "a", "b", "b"], ["a", "b"])
    score = (await api.post(f"{path}/score", {"X": X, "y": y})).of(200)
    assert score["accuracy"] == 0.75
    await api.learn(path, X, [*y[:3], "b"])
    metrics = (await api.model(path))["metrics"]
    assert (metrics["rows"], metrics["accuracy"], metrics["baseline_accuracy"]) == (4, 1.0, None)
    untrained = await make(api, {**metadata, "trained": False}, dump(GaussianNB(), keys))
    problem = (await api.post(f"{untrained}/predict", {"X": X})).problem(409)
    assert "has not learned any row yet" in problem["detail"]


@pytest.mark.parametrize("named", [False, True], ids=["any columns", "features"])
async def test_river_rows_may_lack_columns(api: Api, metadata: dict[str, Any], keys: str, named: bool) -> None:
    """A River model learns rows with null, without columns and with new ones, and predicts a batch as row by row."""
    model = compose.Pipeline(preprocessing.OneHotEncoder(), linear_model.LinearRegression())
    features = {"features": {"size": "number", "make": "category", "new": "boolean"}} if named else {}
    path = await make(api, metadata, dump(model.clone(), keys), **features)
    rows: list[Any] = [{"size": 42.0, "make": "nike"}, {"size": None}, {"make": "puma", "new": True}, {"new": None}, {}]
    rows += [{"size": 40.5, "make": "puma", "new": False}]
    for row in rows:
        await api.learn(path, [row], [1.0])
    frame = pa.table({"size": [42.0, None], "make": [None, "nike"], "y": [2.0, 3.0]})
    file = io.BytesIO()
    with pa.ipc.new_stream(file, frame.schema) as writer:
        writer.write_table(frame)
    headers = {"Content-Type": "application/vnd.apache.arrow.stream", "Prefer": "wait=30"}
    (await api.call("POST", f"{path}/partial_fit", data=file.getvalue(), headers=headers)).of(200)
    for row in rows:
        model.learn_one(row, 1.0)
    model.learn_one({"size": 42.0, "make": None}, 2.0)
    model.learn_one({"size": None, "make": "nike"}, 3.0)
    batch = (await api.predict(path, rows))["predictions"]
    assert batch == [(await api.predict(path, [row]))["predictions"][0] for row in rows]
    assert batch == pytest.approx([model.predict_one(row) for row in rows])
    problem = (await api.post(f"{path}/predict", {"X": [{"make": ["nike"]}]})).problem(422)
    assert problem["errors"][0]["column"] == "make"
    assert (await api.get(f"{path}/dead")).of(200)["dead"] == []


async def test_a_river_model_with_several_targets(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """Targets are objects by name: they are learned, predicted, scored and evaluated by name."""
    chain = multioutput.RegressorChain(linear_model.LinearRegression(), order=["u", "v"])
    path = await make(api, metadata, dump(chain.clone(), keys))
    X, y = [{"a": 1.0}, {"a": 2.0, "b": 0.5}], [{"u": 1.0, "v": 3}, {"u": 2.5, "v": -1.0}]
    for _ in range(3):
        await api.learn(path, X, y)
        for row, target in zip(X, y, strict=True):
            chain.learn_one(row, target)
    assert (await api.predict(path, X))["predictions"] == [chain.predict_one(row) for row in X]
    score = (await api.post(f"{path}/score", {"X": X, "y": y})).of(200)
    errors = [abs(chain.predict_one(x)[name] - t[name]) for x, t in zip(X, y, strict=True) for name in "uv"]
    assert score["mean_absolute_error"] == pytest.approx(sum(errors) / 4)
    assert [output["target"] for output in (await api.model(path))["metrics"]["outputs"]] == ["u", "v"]
    problem = (await api.post(f"{path}/partial_fit", {"X": X, "y": [1.0, 2.0]})).problem(422)
    assert "a target is an object or a list" in problem["detail"]


async def test_uploaded_code_cannot_end_a_worker(api: Api, stack: Stack, metadata: dict[str, Any], keys: str) -> None:
    """Rows whose learning exits, interrupts or cannot be stored are put aside; workers survive, the rest is learned."""
    path = await make(api, metadata, dump(difficult(), keys, kind="regressor"))
    workers = stack.workers()
    targets = [1.0, 13.0, 2.0, 14.0, 15.0, 16.0, 3.0]
    for y in targets[:-1]:
        (await api.post(f"{path}/partial_fit", {"X": [[y]], "y": [y]})).of(202)
    learned = await api.learn(path, [[3.0]], [3.0])
    assert learned["rows_seen"] == 4
    dead = (await api.get(f"{path}/dead")).of(200)["dead"]
    reasons = [entry["reason"] for entry in dead]
    assert [entry["sequence"] for entry in dead] == [2, 4, 5]
    assert "SystemExit: bye" in reasons[0]
    assert "KeyboardInterrupt" in reasons[1]
    assert "cannot be stored: TypeError: cannot pickle" in reasons[2]
    # Repeated predictions are equal, although each one changes the copy that predicts.
    for _ in range(3):
        assert (await api.predict(path, [[1.0]]))["predictions"] == [4]
    problem = (await api.post(f"{path}/predict", {"X": [[13.0]]})).problem(422)
    assert problem["detail"] == "Difficult cannot predict these rows: it raised SystemExit: bye"
    assert (await api.learn(path, [[4.0]], [4.0]))["rows_seen"] == 5
    assert (await api.predict(path, [[1.0]]))["predictions"] == [5]
    assert stack.workers() == workers


async def test_a_river_model_learns_over_http(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """A River classifier learns raw rows and predicts labels and probabilities."""
    pytest.importorskip("river", reason="the extra `river` is not installed")
    from river import tree  # noqa: PLC0415

    model = tree.HoeffdingTreeClassifier(grace_period=5, nominal_attributes=["make"])
    path = await make(api, metadata, dump(model, keys), features={"make": "category", "year": "number"})
    X, y = [["nike", 2001], ["puma", 2010], ["nike", 2003], ["puma", 2011]], ["old", "new", "old", "new"]
    learned = await api.learn(path, X, y)
    assert learned["rows_seen"] == 4
    for row, label in zip(X, y, strict=True):
        model.learn_one({"make": row[0], "year": float(row[1])}, label)
    answer = await api.predict(path, [{"make": "puma", "year": 2012}], proba=True)
    expected = model.predict_proba_one({"make": "puma", "year": 2012.0})
    assert answer["predictions"] == [max(expected, key=expected.__getitem__)]
    assert answer["probabilities"] == [[expected[label] for label in answer["classes"]]]
    assert answer["classes"] == ["old", "new"]


class Canary:
    """An object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


async def test_unsigned_objects_are_rejected_without_unpickling(
    api: Api, stack: Stack, metadata: dict[str, Any], keys: str, tmp_path: Path
) -> None:
    """A plain pickle, an object with a foreign key and a spliced one answer 422; no process unpickles them."""
    mark = tmp_path / "ran"
    malicious = pickle.dumps(Canary(mark))
    good = uploads.decode(dump(SGDRegressor(), keys))
    foreign = Keyring.from_text(keys.partition(":")[0] + ":" + "ab" * 32, UPLOAD_KEYS)
    header = uploads.header_of(b64encode(good).decode())
    forgeries = {
        "not a keepfit envelope": malicious,
        "Signature mismatch": foreign.seal(header, malicious),
        "the data is corrupt, tampered": good[: -len(malicious)] + malicious,
    }
    for words, forged in forgeries.items():
        document = {"metadata": metadata, "recipe": {"object": b64encode(forged).decode()}}
        problem = (await api.post("/v1/models", document)).problem(422)
        assert words in problem["detail"]
    both = {"object": b64encode(good).decode(), "estimator": "SGDRegressor"}
    assert (
        "not estimator and object"
        in (await api.post("/v1/models", {"metadata": metadata, "recipe": both})).problem(422)["detail"]
    )
    assert not mark.exists()
    secret = keys.partition(":")[2]
    for service in ("gateway", "workers"):
        assert secret not in stack.log(service)


async def test_a_gateway_without_upload_keys_rejects_objects(workerless: Api, metadata: dict[str, Any]) -> None:
    """Without upload keys the answer names the setting."""
    text = dump(SGDRegressor(), "u1:" + "ab" * 32)
    problem = (await workerless.post("/v1/models", {"metadata": metadata, "recipe": {"object": text}})).problem(422)
    assert "KEEPFIT_UPLOAD_KEYS" in problem["detail"]
    assert json.dumps(problem).count("keepfit key upload") == 1

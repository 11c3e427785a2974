"""Uploaded objects over HTTP with real workers: accepted objects, rejected objects, and objects that misbehave."""

import json
import pickle
import warnings
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import SGDRegressor

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
    foreign = Keyring.from_text("local:" + "ab" * 32, UPLOAD_KEYS)
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

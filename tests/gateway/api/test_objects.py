"""Objects of one's own over HTTP, learned by real workers: what is taken, what is refused, what they may not break."""

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
    """Upload keys of the stack."""
    return stack.environment()[UPLOAD_KEYS]


def difficult() -> Any:
    """Make an object that learns, and does what it is told to by the row: print, warn, exit, hold a lock."""

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
                    print("a word to nobody")  # noqa: T201
                    warnings.warn("a warning to nobody", stacklevel=1)

        def predict(self, X: Any) -> Any:
            self.seen.append(-1.0)
            if X[0, 0] == 13.0:
                raise SystemExit("bye")
            return np.full(len(X), sum(1 for value in self.seen if value >= 0))

    return Difficult()


async def make(api: Api, metadata: dict[str, Any], text: str, **recipe: Any) -> str:
    """Make a model of an object; return its path."""
    return await api.make(metadata, {"object": text, **recipe})


async def test_an_object_learns_and_answers(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """A posted estimator learns by partial_fit and predicts what it predicts here; posted again, it is found."""
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


async def test_code_that_no_worker_has_cannot_end_one(
    api: Api, stack: Stack, metadata: dict[str, Any], keys: str
) -> None:
    """What exits, interrupts or cannot be stored is put aside with the reason; workers live, the rest is learned."""
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
    # Asked again and again it is the same, although each question changes the copy that is asked.
    for _ in range(3):
        assert (await api.predict(path, [[1.0]]))["predictions"] == [4]
    problem = (await api.post(f"{path}/predict", {"X": [[13.0]]})).problem(422)
    assert problem["detail"] == "Difficult cannot predict these rows: it raised SystemExit: bye"
    assert (await api.learn(path, [[4.0]], [4.0]))["rows_seen"] == 5
    assert (await api.predict(path, [[1.0]]))["predictions"] == [5]
    assert stack.workers() == workers


async def test_a_river_model_learns_over_http(api: Api, metadata: dict[str, Any], keys: str) -> None:
    """A River classifier gets raw rows and gives labels and probabilities, in the same process as everything else."""
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
    """What leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


async def test_what_is_not_signed_is_refused_unread(
    api: Api, stack: Stack, metadata: dict[str, Any], keys: str, tmp_path: Path
) -> None:
    """A plain pickle, a foreign key's object and one spliced of two are 422; no process runs any of them."""
    mark = tmp_path / "ran"
    evil = pickle.dumps(Canary(mark))
    good = uploads.decode(dump(SGDRegressor(), keys))
    foreign = Keyring.from_text("local:" + "ab" * 32, UPLOAD_KEYS)
    header = uploads.header_of(b64encode(good).decode())
    forgeries = {
        "not a keepfit envelope": evil,
        "Signature mismatch": foreign.seal(header, evil),
        "the data is corrupt, tampered": good[: -len(evil)] + evil,
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
    for part in ("gateway", "workers"):
        assert secret not in stack.log(part)


async def test_a_gateway_without_upload_keys_takes_no_object(lonely: Api, metadata: dict[str, Any]) -> None:
    """Where the setting is not set, the answer says which it is."""
    text = dump(SGDRegressor(), "u1:" + "ab" * 32)
    problem = (await lonely.post("/v1/models", {"metadata": metadata, "recipe": {"object": text}})).problem(422)
    assert "KEEPFIT_UPLOAD_KEYS" in problem["detail"]
    assert json.dumps(problem).count("keepfit key upload") == 1

"""train_score_predict over HTTP: one step, the answer of one version, exactly once."""

import asyncio
import io
import json
from typing import Any

import pytest

from keepfit.rows import shaping
from keepfit_gateway.handlers import train_score_predict as handler
from keepfit_gateway.web.rows_body import STRICT_BYTES_MAX
from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, WAIT, Api, Twin

X = [[float(i), i % 3 - 1.0] for i in range(10)]
Y = [2.0 * i + 1 for i in range(10)]
ASKED = [[3.5, 0.0], [7.0, 1.0]]
BODY = {"X": X, "y": Y, "X_pred": ASKED}


def score_of(twin: Twin, rows: Any, y: Any) -> dict[str, Any]:
    """Score rows with the library's own call."""
    return twin.bundle.score(shaping.shape(twin.recipe, rows, y, learning=True))


async def test_it_trains_scores_learns_the_rest_and_predicts(api: Api, metadata: dict[str, Any]) -> None:
    """The score is that of the last quarter by a model of the rows before it; predictions are those of all rows."""
    path, twin = await api.make(metadata, REGRESSOR), Twin(REGRESSOR)
    twin.learn(X[:7], Y[:7])
    score = score_of(twin, X[7:], Y[7:])
    twin.learn(X[7:], Y[7:])
    answer = (await api.post(f"{path}/train_score_predict", BODY)).of(200)
    assert answer == {
        "hash": path.rpartition("/")[2], "accepted": 10, "sequence": 1, "version": 1, "rows_seen": 10,
        "train_rows": 7, "test_rows": 3, "score": score, "predictions": twin.predict(ASKED), "warnings": [],
    }  # fmt: skip
    predicted = await api.predict(path, ASKED)
    assert (predicted["version"], predicted["predictions"]) == (1, answer["predictions"])


@pytest.mark.parametrize(("test_size", "test_rows"), [(0.2, 2), (1, 1), (10, 10), (0.99, 10)])
async def test_the_part_that_is_scored(api: Api, metadata: dict[str, Any], test_size: float, test_rows: int) -> None:
    """`test_size` is a share or a number of the last rows; if it is all of them, the version before is scored."""
    path, twin = await api.make(metadata, REGRESSOR), Twin(REGRESSOR)
    await api.learn(path, X, Y)
    twin.learn(X, Y)
    weights, begin = [1.0 + i for i in range(10)], 10 - test_rows
    if begin:
        twin.learn(X[:begin], Y[:begin], weights[:begin])
    score = score_of(twin, X[begin:], Y[begin:])
    twin.learn(X[begin:], Y[begin:], weights[begin:])
    body = {**BODY, "sample_weight": weights, "test_size": test_size}
    answer = (await api.post("/v1/train_score_predict", {"metadata": metadata, **body})).of(200)
    assert (answer["train_rows"], answer["test_rows"], answer["score"]) == (begin, test_rows, score)
    assert answer["predictions"] == twin.predict(ASKED)
    assert (answer["version"], answer["rows_seen"]) == (2, 20)


async def test_probabilities_and_columns_by_name(api: Api, metadata: dict[str, Any]) -> None:
    """With proba the answer has probabilities, as predict has them; rows may be objects, with unknown labels."""
    recipe = {**SHOES_RECIPE, "estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "classes": ["s", "l"]}
    path, twin = await api.make(metadata, recipe), Twin(recipe)
    rows = [{"make": "nike", "year": 2000 + i} for i in range(4)]
    body = {"X": rows, "y": ["s", "l", "s", "l"], "X_pred": [{"make": "puma", "year": 2001}], "proba": True}
    twin.learn(rows[:3], body["y"][:3])
    score = score_of(twin, rows[3:], body["y"][3:])
    twin.learn(rows[3:], body["y"][3:])
    answer = (await api.post(f"{path}/train_score_predict", body)).of(200)
    assert (answer["score"], answer["classes"]) == (score, ["l", "s"])
    assert answer["probabilities"] == twin.predict_proba(body["X_pred"])
    asked = (await api.post(f"{path}/predict", {"X": body["X_pred"], "proba": True})).of(200)
    assert (asked["version"], asked["probabilities"]) == (answer["version"], answer["probabilities"])


async def test_answers_are_of_their_version_while_others_learn(api: Api, metadata: dict[str, Any]) -> None:
    """Among many requests, each answer is what a loop in the order of the sequences gives at its place."""
    path = await api.make(metadata, REGRESSOR)
    bodies = [{"X": [[float(i), 1.0], [1.0, float(i)]], "y": [1.0, 2.0], "X_pred": ASKED} for i in range(12)]
    rows = [{"X": [[0.5 * i, 2.0]], "y": [3.0]} for i in range(40)]
    answers, others = await asyncio.gather(
        asyncio.gather(*(api.post(f"{path}/train_score_predict", body, WAIT) for body in bodies)),
        asyncio.gather(*(api.post(f"{path}/partial_fit", one) for one in rows)),
    )
    calls: dict[int, Any] = {reply.of(202)["sequence"]: one for reply, one in zip(others, rows, strict=True)}
    answered = {reply.of(200)["sequence"]: (reply.json(), one) for reply, one in zip(answers, bodies, strict=True)}
    twin, versions = Twin(REGRESSOR), []
    for sequence in range(1, 53):
        if sequence in calls:
            twin.learn(**calls[sequence])
            continue
        answer, body = answered[sequence]
        twin.learn(body["X"][:1], body["y"][:1])
        assert answer["score"] == score_of(twin, body["X"][1:], body["y"][1:])
        twin.learn(body["X"][1:], body["y"][1:])
        assert answer["predictions"] == twin.predict(ASKED)
        assert answer["rows_seen"] == twin.bundle.rows_seen
        versions.append(answer["version"])
    assert versions == sorted(set(versions))


async def test_a_repeat_gets_the_first_answer(api: Api, metadata: dict[str, Any]) -> None:
    """With an Idempotency-Key, by hash or metadata, a repeat gets the answer of the first call; it learns once."""
    path, key = await api.make(metadata, REGRESSOR), {"Idempotency-Key": "once"}
    first = (await api.post(f"{path}/train_score_predict", BODY, key)).of(200)
    await api.learn(path, X, Y)
    async with asyncio.timeout(20):
        again = await api.post("/v1/train_score_predict", {"metadata": metadata, **BODY}, {**key, "Prefer": "wait=60"})
    assert again.of(200) == first
    assert again.headers["Preference-Applied"] == "wait=60"
    other = await api.post(f"{path}/train_score_predict", {**BODY, "test_size": 5}, key)
    assert other.problem(422)["type"].endswith(":idempotency")
    other = await api.post(f"{path}/train_score_predict", {**BODY, "X_pred": X}, key)
    assert other.problem(422)["type"].endswith(":idempotency")
    assert (await api.model(path))["rows_seen"] == 20


async def test_large_rows(api: Api, metadata: dict[str, Any]) -> None:
    """A call above the size of a script call is staged, and answered like a small one; its answer is large, too."""
    path, twin = await api.make(metadata, REGRESSOR), Twin(REGRESSOR)
    rows, y = [[i / 7, 1.5] for i in range(20_000)], [1.0] * 20_000
    body = {"X": rows, "y": y, "X_pred": rows[:15_000], "test_size": 1}
    twin.learn(rows[:-1], y[:-1])
    twin.learn(rows[-1:], y[-1:])
    for _ in range(2):
        answer = (await api.post(f"{path}/train_score_predict", body, {"Idempotency-Key": "large", **WAIT})).of(200)
        assert answer["predictions"] == twin.predict(rows[:15_000])
        assert answer["sequence"] == 1


async def test_without_a_worker_the_answer_comes_later(workerless: Api, metadata: dict[str, Any]) -> None:
    """When the time is up the answer is a 202 with the sequence, as partial_fit has it."""
    path = await workerless.make(metadata, REGRESSOR)
    accepted = (await workerless.post(f"{path}/train_score_predict", BODY, {"Prefer": "wait=0"})).of(202)
    assert accepted == {"hash": path.rpartition("/")[2], "accepted": 10, "sequence": 1, "generation": 1, "version": 0}
    assert (await workerless.model(path))["inbox"] == 1


# Kinds of models.


async def test_merged_updates_keep_the_order(api: Api, metadata: dict[str, Any]) -> None:
    """With merged updates the rows of a call are merged with no others, and its answers are of its place."""
    recipe = {"estimator": "GaussianNB", "classes": ["no", "yes"], "updates": "merged"}
    path = await api.make(metadata, recipe)
    labelled = {"X": X, "y": ["no", "yes"] * 5}
    replies = await asyncio.gather(
        *(api.post(f"{path}/partial_fit", labelled) for _ in range(10)),
        api.post(f"{path}/train_score_predict", {**labelled, "X_pred": ASKED}),
        *(api.post(f"{path}/partial_fit", labelled) for _ in range(10)),
    )
    answer = replies[10].of(200)
    assert answer["rows_seen"] == 10 * answer["sequence"]
    assert (answer["train_rows"], answer["test_rows"], len(answer["predictions"])) == (7, 3, 2)
    last = await api.learn(path, **labelled)
    assert last["rows_seen"] == 220


async def test_a_model_without_a_target_has_no_score(api: Api, metadata: dict[str, Any]) -> None:
    """An estimator that takes no y learns and predicts; the score is null, and a warning says why."""
    path = await api.make(metadata, {"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2}})
    answer = (await api.post(f"{path}/train_score_predict", {"X": X, "X_pred": ASKED})).of(200)
    assert answer["score"] is None
    assert len(answer["predictions"]) == 2
    assert answer["warnings"] == ["score: MiniBatchKMeans takes no y: there is nothing to score against."]


async def test_a_first_row_has_no_score(api: Api, metadata: dict[str, Any]) -> None:
    """One row for a model without rows is learned and predicted; there is nothing to score it with."""
    path = await api.make(metadata, REGRESSOR)
    answer = (await api.post(f"{path}/train_score_predict", {"X": [[1.0]], "y": [2.0], "X_pred": [[1.0]]})).of(200)
    assert (answer["train_rows"], answer["test_rows"], answer["score"]) == (0, 1, None)
    assert "has not learned any row yet" in answer["warnings"][0]
    assert len(answer["predictions"]) == 1


async def test_rows_that_the_estimator_refuses(api: Api, metadata: dict[str, Any]) -> None:
    """Rows that cannot be learned become a dead letter as a whole; the client gets the reason, and a retry keeps it."""
    path = await api.make(metadata, {"estimator": "MultinomialNB", "classes": ["no", "yes"]})
    body = {"X": [[1.0], [-1.0]], "y": ["no", "yes"], "X_pred": [[1.0]], "test_size": 1}
    assert "Negative values" in (await api.post(f"{path}/train_score_predict", body)).problem(422)["detail"]
    (dead,) = (await api.get(f"{path}/dead")).of(200)["dead"]
    assert (dead["X"], dead["y"], dead["rows"]) == (body["X"], body["y"], 2)
    assert (await api.model(path))["rows_seen"] == 0
    (await api.post(f"{path}/dead/retry", {})).of(202)
    (await api.post(f"{path}/partial_fit", {"X": [[1.0]], "y": ["no"]}, WAIT)).of(200)
    assert (await api.model(path))["rows_seen"] == 1


# Bad input.


@pytest.mark.parametrize(
    ("status", "change", "reason"),
    [
        (400, {"X_pred": None}, "X_pred"),
        (400, {"X_pred": [1]}, "X_pred"),
        (400, {"test_size": "0.2"}, "test_size"),
        (400, {"test_size": True}, "test_size"),
        (422, {"X_pred": []}, "X_pred: X must be a list of at least one row"),
        (422, {"X_pred": [["a", 1]]}, "X_pred: "),
        (422, {"X_pred": [[1.0]]}, "X_pred: the rows have 1 values where those of X have 2"),
        (422, {"test_size": 0}, "test_size must be a share"),
        (422, {"test_size": 11}, "from 1 to 10"),
        (422, {"test_size": 1.0}, "test_size must be a share"),
        (422, {"test_size": -0.5}, "test_size must be a share"),
        (422, {"y": Y[1:]}, "y"),
        (413, {"X_pred": [[1, 1]] * 32_769}, "at most 32,768 rows in X_pred"),
    ],
)
async def test_invalid_calls(
    workerless: Api, metadata: dict[str, Any], status: int, change: dict[str, Any], reason: str
) -> None:
    """A call with a wrong form, rows or part is rejected by hash and by metadata, and nothing of it is accepted."""
    path = await workerless.make(metadata, REGRESSOR)
    for call, named in ((path, {}), ("/v1", {"metadata": metadata})):
        reply = await workerless.post(f"{call}/train_score_predict", {**BODY, **change, **named})
        assert reason in reply.problem(status)["detail"]
    assert (await workerless.model(path))["inbox"] == 0


async def test_a_call_is_json_of_limited_size(workerless: Api, metadata: dict[str, Any]) -> None:
    """A table answers 415, and a body over 4 MiB 413."""
    path = await workerless.make(metadata, CLASSIFIER)
    call = f"{path}/train_score_predict"
    (await workerless.call("POST", call, data=b"x", headers={"Content-Type": "application/x-npy"})).problem(415)
    body = json.dumps(BODY).encode() + b" " * STRICT_BYTES_MAX
    (await workerless.call("POST", call, data=io.BytesIO(body))).problem(413)


def test_the_number_of_rows_that_are_scored() -> None:
    """A share is rounded up, as scikit-learn rounds it."""
    assert [handler.test_rows_of(0.25, n) for n in (1, 3, 4, 5, 8)] == [1, 1, 1, 2, 2]

"""Late labels over HTTP: rows predicted with an id are learned with their label, once, and scored as served."""

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from keepfit.backends import redis_clients, redis_keys
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import parse
from keepfit.rows import shaping
from keepfit.rows.served import Served, ServedRows
from keepfit.store import open_rows
from tests.conftest import SHOES_RECIPE, Stack
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, WAIT, Api

RNG = np.random.default_rng(11)
MATRIX: list[list[float]] = RNG.normal(size=(60, 2)).tolist()
TARGETS: list[float] = [3 * a - b for a, b in MATRIX]
YES_NO = ["yes" if target > 0 else "no" for target in TARGETS]
SHOES = [[("nike", "adidas", "puma")[i % 3], 2000 + i] for i in range(60)]
LOGISTIC = {"estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "classes": ["no", "yes"]}

# Recipe, rows, targets: estimators that a scorer and that only a worker computes, with and without probabilities.
CASES: dict[str, tuple[Mapping[str, Any], list[Any], list[Any]]] = {
    "regressor": ({**REGRESSOR, "scaler": "StandardScaler"}, MATRIX, TARGETS),
    "categories": (SHOES_RECIPE, SHOES, TARGETS),
    "labels": (CLASSIFIER, MATRIX, YES_NO),
    "probabilities": (LOGISTIC, MATRIX, YES_NO),
    "merged": ({**LOGISTIC, "updates": "merged"}, MATRIX, YES_NO),
    "new labels": ({"estimator": "GaussianNB"}, MATRIX, [*"abab" * 10, *"abc" * 6, "d", "d"]),
    "outputs": ({"estimator": "MultiOutputRegressor", "params": {"estimator": {"SGDRegressor": {}}}}, MATRIX,
                [[target, -target] for target in TARGETS]),
}  # fmt: skip


def expected_bundle(
    recipe: Mapping[str, Any], X: list[Any], y: list[Any], served: list[Served], order: list[int], first: int
) -> Bundle:
    """Return what a loop learns: the `first` rows together, then each row with what was served for it, in order."""
    parsed = parse(recipe)
    bundle = Bundle.new(parsed)
    bundle.partial_fit(shaping.shape(parsed, X[:first], y[:first], learning=True))
    for i in order:
        rows = shaping.shape(parsed, [X[first + i]], [y[first + i]], learning=True)
        bundle.partial_fit(ServedRows(1, rows.numbers, rows.categories, rows.y, predictions=[served[i]]))
    return bundle


async def predict(api: Api, path: str, X: list[Any], ids: Any, **fields: Any) -> dict[str, Any]:
    """Predict rows with ids."""
    answer: dict[str, Any] = (await api.post(f"{path}/predict", {"X": X, "id": ids, **fields})).of(200)
    return answer


@pytest.mark.parametrize("case", CASES)
async def test_rows_are_learned_with_their_label_and_scored_as_served(
    api: Api, metadata: dict[str, Any], case: str
) -> None:
    """Rows predicted at several versions and labelled in random order give the model and metrics of a plain loop."""
    recipe, X, y = CASES[case]
    path, first = await api.make(metadata, recipe), 20
    await api.learn(path, X[:first], y[:first])
    has_probabilities = case in ("probabilities", "merged", "new labels")
    served, order = [], list(range(40))
    random.Random(case).shuffle(order)
    done: list[int] = []
    for begin in range(0, 40, 10):
        some = range(begin, begin + 10)
        answer = await predict(
            api, path, [X[first + i] for i in some], [f"row-{i}" for i in some], proba=has_probabilities
        )
        shares = answer.get("probabilities") or [None] * 10
        for prediction, share in zip(answer["predictions"], shares, strict=True):
            classes = answer.get("classes") if share else None
            served.append(Served(answer["version"], answer["rows_seen"], prediction, share, classes))
        # Half of the rows so far are labelled, which changes the model before the next ones are predicted.
        now = [i for i in order if i < begin + 10 and i not in done][:5]
        done += now
        await label(api, path, now, [y[first + i] for i in now])
    rest = [i for i in order if i not in done]
    await label(api, path, rest, [y[first + i] for i in rest])
    described = await api.model(path)
    assert described["rows_seen"] == 60
    assert "open_rows" not in described
    if case != "merged":
        bundle = expected_bundle(recipe, X, y, served, done + rest, first)
        assert described["metrics"] == bundle.metrics()
        plain = (await api.post(f"{path}/predict", {"X": X[:5]})).of(200)
        assert plain["predictions"] == bundle.predict(shaping.shape(parse(recipe), X[:5], learning=False))
    else:
        assert described["metrics"]["rows"] == 40


async def label(api: Api, path: str, rows: list[int], targets: list[Any]) -> None:
    """Label rows and wait until they are learned."""
    labels = [{"id": f"row-{i}", "y": target} for i, target in zip(rows, targets, strict=True)]
    answer = (await api.post(f"{path}/labels", {"labels": labels}, WAIT)).of(200)
    assert (answer["accepted"], answer["errors"]) == (len(rows), [])
    assert {"hash", "sequence", "version", "rows_seen"} <= answer.keys()


async def test_each_label_that_is_not_accepted_is_named_with_its_reason(api: Api, metadata: dict[str, Any]) -> None:
    """Unknown and second labels are reported one by one, also within one call; the others are learned."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, MATRIX[:5], TARGETS[:5])
    await predict(api, path, MATRIX[:3], ["a", "b", 7])
    assert (await api.model(path))["open_rows"] == 3
    labels = [("a", 1.0), ("never", 1.0), ("7", 2.0), ("a", 3.0)]
    body = {"labels": [{"id": name, "y": y} for name, y in labels]}
    answer = (await api.post(f"{path}/labels", body)).of(202)
    assert (answer["accepted"], answer["sequence"]) == (2, 3)
    assert [(error["index"], error["id"], error["reason"]) for error in answer["errors"]] == [
        (1, "never", "unknown"),
        (3, "a", "labelled"),
    ]
    again = (await api.post(f"{path}/labels", body)).of(202)
    assert (again["accepted"], again["sequence"]) == (0, None)
    assert [error["reason"] for error in again["errors"]] == ["labelled", "unknown", "labelled", "labelled"]
    assert (await api.model(path))["open_rows"] == 1


async def test_a_repeated_call_gets_the_first_answer(api: Api, metadata: dict[str, Any]) -> None:
    """The same key with the same labels gives the first answer with its errors; with others 422."""
    path, key = await api.make(metadata, REGRESSOR), {"Idempotency-Key": "labels-1"}
    await api.learn(path, MATRIX[:5], TARGETS[:5])
    await predict(api, path, MATRIX[:2], ["a", "b"])
    body = {"metadata": metadata, "labels": [{"id": "no", "y": 1.0}, {"id": "a", "y": 1.0}]}
    first = (await api.post("/v1/labels", body, key)).of(202)
    await predict(api, path, MATRIX[:1], "no")
    again = (await api.post("/v1/labels", body, {**key, **WAIT})).of(200)
    assert (again["sequence"], again["accepted"], again["errors"]) == (first["sequence"], 1, first["errors"])
    other = await api.post(f"{path}/labels", {"labels": [{"id": "b", "y": 1.0}]}, key)
    other.problem(422)
    assert (await api.model(path))["rows_seen"] == 6


async def test_a_repeated_prediction_gets_the_first_answer(api: Api, metadata: dict[str, Any]) -> None:
    """While its rows are open, the same request gets the prediction that is stored; other rows get 409."""
    path = await api.make(metadata, LOGISTIC)
    await api.learn(path, MATRIX[:10], YES_NO[:10])
    first = await predict(api, path, MATRIX[:2], ["a", "b"], proba=True)
    await api.learn(path, MATRIX[10:50], YES_NO[10:50])
    assert await predict(api, path, MATRIX[:2], ["a", "b"], proba=True) == first
    fresh = (await api.post(f"{path}/predict", {"X": MATRIX[:2], "proba": True})).of(200)
    assert fresh["version"] > first["version"]
    for X, ids, extra in (
        (MATRIX[1:3], ["a", "b"], {"proba": True}),
        (MATRIX[:2], ["a", "b"], {}),
        (MATRIX[:3], ["a", "b", "c"], {"proba": True}),
    ):
        problem = (await api.post(f"{path}/predict", {"X": X, "id": ids, **extra})).problem(409)
        assert "'a'" in problem["detail"] or "'b'" in problem["detail"]
    (await api.post(f"{path}/labels", {"labels": [{"id": "a", "y": "yes"}]})).of(202)
    labelled = (await api.post(f"{path}/predict", {"X": MATRIX[:1], "id": "a", "proba": True})).problem(409)
    assert "has its label already" in labelled["detail"]
    assert (await api.model(path))["open_rows"] == 1


async def test_rows_of_several_versions_have_no_common_answer(api: Api, metadata: dict[str, Any]) -> None:
    """A request that joins the rows of two earlier ones, by different versions with other labels, is a 409."""
    path = await api.make(metadata, {"estimator": "GaussianNB"})
    for name, labels in (("a", "abab"), ("b", "abcd")):
        await api.learn(path, MATRIX[:4], list(labels))
        await predict(api, path, MATRIX[:1], name, proba=True)
    both = {"X": [MATRIX[0], MATRIX[0]], "id": ["a", "b"], "proba": True}
    assert "several versions" in (await api.post(f"{path}/predict", both)).problem(409)["detail"]
    assert (await api.model(path))["open_rows"] == 2


async def test_an_answer_with_an_id_equals_one_without(api: Api, metadata: dict[str, Any]) -> None:
    """The body is the same, whether a scorer, the cache or a worker answers; it may not be stored."""
    path = await api.make(metadata, LOGISTIC)
    await api.learn(path, MATRIX[:10], YES_NO[:10])
    for number, (fields, headers) in enumerate(
        (proba, control) for proba in ({}, {"proba": True}) for control in ({}, {"Cache-Control": "no-cache"})
    ):
        plain = await api.post(f"{path}/predict", {"X": MATRIX[:3], **fields}, headers)
        ids = [number, f"b{number}", f"c{number}"]
        kept = await api.post(f"{path}/predict", {"X": MATRIX[:3], "id": ids, **fields}, headers)
        assert (kept.of(200), kept.body) == (plain.of(200), plain.body)
        assert (kept.headers["Cache-Control"], kept.headers["ETag"]) == ("no-store", plain.headers["ETag"])


async def test_an_invalid_label_refuses_the_call(api: Api, metadata: dict[str, Any]) -> None:
    """A label of another type, or an invalid weight, is reported with its position, and nothing of the call is kept."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, MATRIX[:5], TARGETS[:5])
    await predict(api, path, MATRIX[:2], ["a", "b"])
    good = {"id": "a", "y": 1.0}
    for bad, column in ((("high", None), "y"), ((1.0, -1), "sample_weight"), ((1.0, 0), "sample_weight")):
        entry = {"id": "b", "y": bad[0], **({} if bad[1] is None else {"sample_weight": bad[1]})}
        problem = (await api.post(f"{path}/labels", {"labels": [good, entry]})).problem(422)
        assert [(fault["row"], fault["column"]) for fault in problem["errors"]] == [(1, column)]
    assert (await api.model(path))["open_rows"] == 2
    weighted = {"labels": [{**good, "sample_weight": 2.0}, {"id": "b", "y": 2.0}]}
    assert (await api.post(f"{path}/labels", weighted, WAIT)).of(200)["rows_seen"] == 7


async def test_a_model_without_target_has_no_labels(api: Api, metadata: dict[str, Any]) -> None:
    """An estimator that takes no y refuses both ids and labels."""
    path = await api.make(metadata, {"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2}})
    await api.learn(path, MATRIX[:5], None)
    assert "leave out id" in (await api.post(f"{path}/predict", {"X": MATRIX[:1], "id": "a"})).problem(422)["detail"]
    (await api.post(f"{path}/labels", {"labels": [{"id": "a", "y": 1}]})).problem(422)


async def test_a_prediction_that_fails_keeps_nothing(api: Api, metadata: dict[str, Any]) -> None:
    """Before the first row a prediction with an id is a 409, and no row is open."""
    path = await api.make(metadata, REGRESSOR)
    (await api.post(f"{path}/predict", {"X": MATRIX[:1], "id": "a"})).problem(409)
    answer = (await api.post(f"{path}/labels", {"labels": [{"id": "a", "y": 1.0}]})).of(202)
    assert answer["errors"][0]["reason"] == "unknown"


async def test_expired_rows_are_reported_and_their_ids_free(api: Api, stack: Stack, metadata: dict[str, Any]) -> None:
    """A label after the end of its row is reported as expired; the id can be used again."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, MATRIX[:5], TARGETS[:5])
    await predict(api, path, MATRIX[:1], "a")
    model_hash = path.rpartition("/")[2]
    with redis_clients.store_sync(stack.settings()) as client:
        client.zadd(redis_keys.open_row_ends(model_hash), {"a": 1})
    label_a = {"labels": [{"id": "a", "y": 1.0}]}
    assert (await api.post(f"{path}/labels", label_a)).of(202)["errors"][0]["reason"] == "expired"
    await predict(api, path, MATRIX[1:2], "a")
    assert (await api.post(f"{path}/labels", label_a, WAIT)).of(200)["accepted"] == 1


async def test_deleting_a_model_deletes_its_open_rows(api: Api, stack: Stack, metadata: dict[str, Any]) -> None:
    """After a deletion no key of the model's open rows is left, and the register counts them no more."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, MATRIX[:5], TARGETS[:5])
    await predict(api, path, MATRIX[:4], ["a", "b", "c", "d"])
    (await api.post(f"{path}/labels", {"labels": [{"id": "a", "y": 1.0}]}, WAIT)).of(200)
    model_hash = path.rpartition("/")[2]
    client = redis_clients.store_async(stack.settings())
    try:
        assert (await client.hget(redis_keys.OPEN_ROWS, model_hash)).startswith(b"3 ")
        assert (await api.call("DELETE", path)).status == 204
        assert [name for name in await client.keys(f"kf:{{{model_hash}}}:*") if b":idem:" not in name] == []
        assert (await client.hget(redis_keys.OPEN_ROWS, model_hash)).startswith(b"0 0 ")
        total, noted = await open_rows.total(client), await client.hgetall(redis_keys.OPEN_ROWS)
        assert total.rows == sum(int(v.split()[0]) for name, v in noted.items() if name not in (b"rows", b"bytes"))
    finally:
        await client.aclose()


async def test_many_at_once(api: Api, metadata: dict[str, Any]) -> None:
    """Concurrent predictions and labels share round trips; each label is learned once."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, MATRIX[:5], TARGETS[:5])
    await asyncio.gather(*(predict(api, path, MATRIX[i : i + 1], i) for i in range(60)))
    calls = ({"labels": [{"id": i, "y": TARGETS[i]}]} for i in range(60))
    answers = await asyncio.gather(*(api.post(f"{path}/labels", call, WAIT) for call in calls))
    assert sorted(answer.of(200)["sequence"] for answer in answers) == list(range(2, 62))
    scraped = (await api.get("/metrics")).body.decode()
    assert 'keepfit_late_labels_total{outcome="accepted"}' in scraped
    assert "keepfit_open_rows " in scraped


async def test_malformed_ids_and_labels(api: Api, metadata: dict[str, Any]) -> None:
    """Ids that are no ids, or not one for each row, and labels of another form are a 400, and nothing is kept."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, MATRIX[:5], TARGETS[:5])
    for ids in ("", "i" * 129, 1.5, True, ["a"], ["a", "a"], ["a", "b", "c"], [["a"], "b"], {"a": 1}, 2**60):
        (await api.post(f"{path}/predict", {"X": MATRIX[:2], "id": ids})).problem(400)
    many = [str(i) for i in range(open_rows.CALL_ROWS_MAX + 1)]
    (await api.post(f"{path}/predict", {"X": [MATRIX[0]] * len(many), "id": many})).problem(400)
    too_many = [{"id": name, "y": 1.0} for name in many]
    for labels in ([], [{"id": "a"}], [{"y": 1.0}], [{"id": "a", "y": 1.0, "z": 1}], "a", too_many):
        (await api.post(f"{path}/labels", {"labels": labels})).problem(400)
    assert "open_rows" not in await api.model(path)


async def test_a_row_that_is_too_large_is_not_kept(api: Api, metadata: dict[str, Any]) -> None:
    """A row above the limit is a 413, and nothing is kept."""
    width = open_rows.ROW_BYTES_MAX // 8
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[0.0] * width], [1.0])
    refused = await api.post(f"{path}/predict", {"X": [[0.0] * width], "id": "a"})
    assert "Leave out id" in refused.problem(413)["detail"]
    assert "open_rows" not in await api.model(path)


async def test_snapshots_say_how_many_rows_are_open(api: Api, metadata: dict[str, Any]) -> None:
    """A snapshot has the number of open rows; after a rewind they can still be labelled."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, MATRIX[:5], TARGETS[:5])
    await predict(api, path, MATRIX[:3], ["a", "b", "c"])
    saved = (await api.call("POST", f"{path}/snapshot")).of(201)
    assert saved["open_rows"] == 3
    await api.learn(path, MATRIX[5:9], TARGETS[5:9])
    restored = (await api.post(f"{path}/restore", {"version": saved["version"]})).of(200)
    assert restored["rows_seen"] == 5
    labels = [{"id": name, "y": 1.0} for name in ("a", "b", "c")]
    answer = (await api.post(f"{path}/labels", {"labels": labels}, WAIT)).of(200)
    assert (answer["accepted"], answer["rows_seen"]) == (3, 8)

"""Predictions over HTTP: one per row, equal to the newest bundle's, without side effects."""

import asyncio
import random
from typing import Any

import numpy as np
import pytest
import redis

from keepfit.backends import redis_clients, redis_keys
from tests.conftest import SHOES_RECIPE, Stack
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, Api, Twin

RNG = np.random.default_rng(7)
MATRIX: list[list[float]] = RNG.normal(size=(40, 3)).tolist()
NUMBERS: list[float] = RNG.normal(size=40).tolist()
SIGNS = [sum(row) > 0 for row in MATRIX]
SHOES = [[("nike", "adidas", "puma")[i % 3], 2000 + i] for i in range(40)]

# Each type of estimator and target: recipe, rows, targets.
CASES: dict[str, tuple[dict[str, Any], list[Any], list[Any] | None]] = {
    "regressor": ({"estimator": "SGDRegressor", "scaler": "StandardScaler"}, MATRIX, NUMBERS),
    "neural regressor": ({"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [5]}}, MATRIX, NUMBERS),
    "ordinal": (SHOES_RECIPE, SHOES, NUMBERS),
    "onehot": ({**SHOES_RECIPE, "encoding": "onehot", "max_categories": 4}, SHOES, NUMBERS),
    "hash": ({**SHOES_RECIPE, "encoding": "hash", "n_features": 16}, SHOES, NUMBERS),
    "strings": (
        {"estimator": "SGDClassifier", "classes": ["no", "yes"]},
        MATRIX,
        ["yes" if s else "no" for s in SIGNS],
    ),
    "integers": ({"estimator": "SGDClassifier", "classes": [7, -3]}, MATRIX, [7 if s else -3 for s in SIGNS]),
    "booleans": ({"estimator": "GaussianNB", "classes": [True, False]}, MATRIX, SIGNS),
    "three labels": ({"estimator": "Perceptron", "classes": ["b", "c", "a"]}, MATRIX, ["a", "b", "c", "c"] * 10),
    "clusterer": ({"estimator": "MiniBatchKMeans", "params": {"n_clusters": 3}}, MATRIX, None),
}


@pytest.mark.parametrize("case", CASES)
async def test_predictions_equal_those_of_the_bundle(api: Api, metadata: dict[str, Any], case: str) -> None:
    """Each prediction equals that of a bundle that learned in one process, in every digit and in type."""
    recipe, X, y = CASES[case]
    path, twin = await api.make(metadata, recipe), Twin(recipe)
    learned: dict[str, Any] = {}
    for rows in (slice(0, 15), slice(15, 40)):
        targets = None if y is None else y[rows]
        learned = await api.learn(path, X[rows], targets)
        twin.learn(X[rows], targets)
    answer = await api.predict(path, X)
    assert answer.keys() == {"hash", "version", "rows_seen", "predictions"}
    assert answer["hash"] == learned["hash"]
    assert (answer["version"], answer["rows_seen"]) == (learned["version"], 40)
    expected = twin.predict(X)
    assert answer["predictions"] == expected
    assert list(map(type, answer["predictions"])) == list(map(type, expected))
    if y is not None and isinstance(y[0], str | bool):
        assert set(map(type, answer["predictions"])) == {type(y[0])}


async def test_predict_by_metadata(api: Api, metadata: dict[str, Any]) -> None:
    """A hash and its metadata name the same model."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, MATRIX, NUMBERS)
    by_metadata = (await api.post("/v1/predict", {"metadata": metadata, "X": MATRIX})).of(200)
    assert by_metadata == await api.predict(path, MATRIX)


@pytest.mark.parametrize("classes", [["no", "yes"], [1, 0], [True, False]])
async def test_probabilities_have_their_classes(api: Api, metadata: dict[str, Any], classes: list[Any]) -> None:
    """`proba` adds one probability per class and row, and the classes in the order of the columns."""
    recipe = {"estimator": "GaussianNB", "classes": classes}
    y = [classes[sign] for sign in SIGNS]
    path, twin = await api.make(metadata, recipe), Twin(recipe)
    await api.learn(path, MATRIX, y)
    twin.learn(MATRIX, y)
    answer = await api.predict(path, MATRIX, proba=True)
    assert answer.keys() == {"hash", "version", "rows_seen", "predictions", "probabilities", "classes"}
    assert answer["classes"] == sorted(classes)
    assert set(map(type, answer["classes"])) == {type(classes[0])}
    assert answer["probabilities"] == twin.predict_proba(MATRIX)
    assert answer["predictions"] == [answer["classes"][int(np.argmax(row))] for row in answer["probabilities"]]


@pytest.mark.parametrize("recipe", [CLASSIFIER, REGRESSOR, {"estimator": "MiniBatchKMeans"}])
async def test_proba_without_probabilities_answers_422(
    api: Api, metadata: dict[str, Any], recipe: dict[str, Any]
) -> None:
    """`proba` for an estimator without probabilities answers 422."""
    path = await api.make(metadata, recipe)
    y = {"SGDClassifier": ["no", "yes"] * 20, "SGDRegressor": NUMBERS}.get(recipe["estimator"])
    await api.learn(path, MATRIX, y)
    reply = await api.post(f"{path}/predict", {"X": MATRIX, "proba": True})
    assert "no probabilities" in reply.problem(422)["detail"]


async def test_an_answer_with_too_many_values_is_refused(api: Api, metadata: dict[str, Any]) -> None:
    """Too many probabilities answer 413 with the number of rows that fit: by the recipe's labels, or those learned."""
    named = await api.make(metadata, {"estimator": "GaussianNB", "classes": list(range(1_000))})
    late = await api.make({**metadata, "late": True}, {"estimator": "GaussianNB", "classes": ["a", "b"]})
    await api.learn(named, [[0.5]], [3])
    await api.learn(late, [[float(i)] for i in range(9)], [*"abcdefghi"])
    for path, rows, fitting in ((named, 2_000, 1_047), (late, 110_000, 104_857)):
        question = {"X": [[1.0]] * rows, "proba": True}
        problem = (await api.post(f"{path}/predict", question)).problem(413)
        assert problem["type"].endswith(":too-large")
        assert f"send at most {fitting:,} rows at once" in problem["detail"]
        assert (await api.post(f"{path}/predict", {"X": [[1.0]]})).status == 200


async def test_a_model_without_rows_cannot_predict(api: Api, metadata: dict[str, Any]) -> None:
    """Before the first learned row a prediction answers 409 with instructions."""
    path = await api.make(metadata, REGRESSOR)
    assert "partial_fit" in (await api.post(f"{path}/predict", {"X": [[1.0]]})).problem(409)["detail"]


async def test_rows_of_another_width_are_rejected(api: Api, metadata: dict[str, Any]) -> None:
    """Rows of another width than the learned ones answer 422, and do not affect concurrent predictions."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, MATRIX, NUMBERS)
    expected = (await api.predict(path, MATRIX))["predictions"]
    documents = [{"X": [[1.0] * width]} for width in (2, 4)] * 5 + [{"X": MATRIX}] * 10
    replies = await asyncio.gather(*(api.post(f"{path}/predict", document) for document in documents))
    for reply in replies[:10]:
        assert "where the model has learned 3" in reply.problem(422)["detail"]
    assert all(reply.of(200)["predictions"] == expected for reply in replies[10:])


async def test_a_client_that_waited_reads_its_own_writes(api: Api, metadata: dict[str, Any]) -> None:
    """A prediction after a partial_fit with wait is made by a bundle that contains those rows."""
    path, twin = await api.make(metadata, REGRESSOR), Twin(REGRESSOR)
    for X, y in zip(MATRIX, NUMBERS, strict=True):
        learned = await api.learn(path, [X], [y])
        twin.learn([X], [y])
        answer = await api.predict(path, [X])
        assert (answer["version"], answer["rows_seen"]) == (learned["version"], learned["rows_seen"])
        assert answer["predictions"] == twin.predict([X])


async def test_unseen_labels_are_predicted_alike(api: Api, metadata: dict[str, Any]) -> None:
    """Labels that were never learned get the same prediction, independent of earlier requests."""
    path = await api.make(metadata, SHOES_RECIPE)
    await api.learn(path, SHOES, NUMBERS)
    answer = await api.predict(path, [["reebok", 2005], ["asics", 2005], ["nike", 2005]])
    reebok, asics, nike = answer["predictions"]
    assert reebok == asics != nike


async def test_predictions_do_not_change_the_model(stack: Stack, api: Api, metadata: dict[str, Any]) -> None:
    """Predict, proba and score do not change a byte of the model in Redis."""
    recipe = {**SHOES_RECIPE, "estimator": "GaussianNB", "params": {}, "classes": [0, 1]}
    path, y = await api.make(metadata, recipe), [int(sign) for sign in SIGNS]
    await api.learn(path, SHOES, y)
    model_hash = path.rpartition("/")[2]

    def stored(client: redis.Redis) -> tuple[Any, Any]:
        return client.get(redis_keys.bundle(model_hash)), client.hgetall(redis_keys.state(model_hash))

    with redis_clients.store_sync(stack.settings()) as client:
        before = stored(client)
        assert before[0] is not None
        await api.predict(path, [["reebok", 1990], *SHOES])
        await api.predict(path, [["asics", 1991]], proba=True)
        (await api.post(f"{path}/score", {"X": [["vans", 1992], *SHOES], "y": [0, *y]})).of(200)
        assert stored(client) == before


async def test_concurrent_predictions_are_all_correct(api: Api, metadata: dict[str, Any]) -> None:
    """Concurrent predictions on several models, with different numbers of rows, each get their own answer."""
    names = ("regressor", "ordinal", "strings", "booleans", "clusterer")
    paths, twins = {}, {}
    for name in names:
        recipe, X, y = CASES[name]
        paths[name], twins[name] = await api.make({**metadata, "name": name}, recipe), Twin(recipe)
        await api.learn(paths[name], X, y)
        twins[name].learn(X, y)
    draw = random.Random(3)
    requests = [(name, draw.choices(CASES[name][1], k=draw.randint(1, 5))) for name in names * 20]
    answers = await asyncio.gather(*(api.predict(paths[name], X) for name, X in requests))
    for (name, X), answer in zip(requests, answers, strict=True):
        expected = twins[name].predict(X)
        # Concurrent requests are predicted in one call, which may add the terms of a sum in another order.
        numbers = isinstance(expected[0], float)
        assert answer["predictions"] == (pytest.approx(expected, rel=1e-12) if numbers else expected)

"""The learning curve of a model over HTTP, with real workers."""

from typing import Any

import pytest

from keepfit.model.learning_curve import METRICS
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, Api, Reply

X = [[1.0, 2.0], [-1.0, 0.5], [0.5, -1.0]]
Y = [1.0, 2.0, 3.0]


async def curve(api: Api, path: str, query: str = "") -> dict[str, Any]:
    """Return the curve of a model."""
    found: dict[str, Any] = (await api.get(f"{path}/curve{query}")).of(200)
    return found


async def test_the_curve_grows_with_the_rows(api: Api, metadata: dict[str, Any]) -> None:
    """A new model has no point; each evaluated row adds one, whose metrics are those of the model, and its time."""
    path = await api.make(metadata, REGRESSOR)
    assert await curve(api, path) == {
        "hash": path.rpartition("/")[2],
        "version": 0,
        "rows_seen": 0,
        "rows_before": 0,
        "spacing": 1,
        "points": [],
        "scored": [],
    }
    await api.learn(path, X, Y)
    assert (await curve(api, path))["points"] == []
    await api.learn(path, X, Y)
    await api.learn(path, X[:1], Y[:1])
    found, model = await curve(api, path), await api.model(path)
    assert (found["version"], found["rows_seen"]) == (3, 7)
    assert [point["rows_seen"] for point in found["points"]] == [4, 5, 6, 7]
    times = [point["time"] for point in found["points"]]
    assert times == sorted(times)
    assert len(set(times[:3])) == 1
    point, metrics = found["points"][-1], model["metrics"]
    for shown, right in ((point, metrics), (point["window"], metrics["window"])):
        for name in METRICS["regressor"]:
            assert shown[name] == pytest.approx(right[name], rel=1e-6)
    snapshot = (await api.call("POST", f"{path}/snapshot")).of(201)
    assert abs(snapshot["timestamp"] - times[-1]) < 60


async def test_the_last_scored_rows_are_those_that_were_predicted_before(api: Api, metadata: dict[str, Any]) -> None:
    """The answer has the targets of the last rows of a regressor, and what the model predicted before each request."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, X, Y)
    before = (await api.predict(path, X))["predictions"]
    await api.learn(path, X, Y)
    (scored,) = (await curve(api, path))["scored"]
    assert (scored["output"], scored["target"], scored["truth"]) == (0, None, Y)
    assert scored["prediction"] == pytest.approx(before, rel=1e-6)
    other = await api.make({**metadata, "kind": "labels"}, CLASSIFIER)
    for _ in range(2):
        await api.learn(other, X[:2], ["yes", "no"])
    assert (await curve(api, other))["scored"] == []


async def test_a_client_that_has_the_newest_curve_gets_304(api: Api, metadata: dict[str, Any]) -> None:
    """The ETag is valid for the same points and metrics, until the model learns."""
    path = await api.make(metadata, CLASSIFIER)
    for _ in range(2):
        await api.learn(path, X[:2], ["yes", "no"])
    first = await api.get(f"{path}/curve")
    headers = {"If-None-Match": first.headers["ETag"]}

    async def again(query: str = "") -> Reply:
        return await api.call("GET", f"{path}/curve{query}", headers=headers)

    same = await again()
    assert (same.status, same.body, same.headers["ETag"]) == (304, b"", first.headers["ETag"])
    other = await again("?metric=f1")
    assert other.of(200)["points"] == [
        {"rows_seen": p["rows_seen"], "time": p["time"], "f1": p["f1"], "window": {"f1": p["window"]["f1"]}}
        for p in first.of(200)["points"]
    ]
    assert (await api.get(f"{path}/curve?metric=f1")).headers["ETag"] == other.headers["ETag"] != first.headers["ETag"]
    await api.learn(path, X[:2], ["yes", "no"])
    assert [point["rows_seen"] for point in (await again("?since_rows=4")).of(200)["points"]] == [5, 6]
    assert (await again()).of(200)["version"] == 3


async def test_a_restored_version_has_its_curve(api: Api, metadata: dict[str, Any]) -> None:
    """A restore puts back the curve of the version; the rows after it have points again."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, X, Y)
    await api.learn(path, X, Y)
    (await api.call("POST", f"{path}/snapshot")).of(201)
    saved = await curve(api, path)
    await api.learn(path, X, [9.0, 9.0, 9.0])
    assert len((await curve(api, path))["points"]) == 6
    (await api.post(f"{path}/restore", {"version": saved["version"]})).of(200)
    restored = await curve(api, path)
    assert (restored["points"], restored["rows_seen"]) == (saved["points"], 6)
    await api.learn(path, X, Y)
    assert [point["rows_seen"] for point in (await curve(api, path))["points"]] == [4, 5, 6, 7, 8, 9]
    assert (await api.call("DELETE", path)).status == 204
    (await api.get(f"{path}/curve")).problem(404)
    assert (await api.make(metadata, REGRESSOR)) == path
    assert (await curve(api, path))["points"] == []


async def test_models_that_are_not_evaluated_have_no_points(api: Api, metadata: dict[str, Any]) -> None:
    """A model without a target has a curve without points, and none of the metrics."""
    path = await api.make(metadata, {"estimator": "MiniBatchKMeans", "params": {"n_clusters": 2}})
    for _ in range(2):
        await api.learn(path, X)
    found = await curve(api, path)
    assert (found["rows_seen"], found["points"]) == (6, [])
    assert "no metrics" in (await api.get(f"{path}/curve?metric=r2")).problem(422)["detail"]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("?since_rows=-1", 400, "from 0 on"),
        ("?since_rows=1e3", 400, "from 0 on"),
        ("?since_rows=", 400, "from 0 on"),
        ("?since_rows=1&since_rows=2", 400, "once"),
        ("?metric=r2&metric=r2", 400, "once"),
        ("?metric=", 400, "separated by commas"),
        ("?metric=r2,", 400, "separated by commas"),
        ("?metric=R2%20", 400, "separated by commas"),
        ("?points=3", 400, "'points'"),
        ("?timeout=0", 400, "timeout"),
        ("?metric=accuracy", 422, "no metric 'accuracy': its metrics are mean_absolute_error, baseline_"),
    ],
)
async def test_invalid_questions_about_a_curve(
    api: Api, metadata: dict[str, Any], query: str, status: int, said: str
) -> None:
    """What is no number of rows, no metric of the model or no parameter is refused, and the message says which."""
    path = await api.make(metadata, REGRESSOR)
    assert said in (await api.get(f"{path}/curve{query}")).problem(status)["detail"]


async def test_without_workers_the_curve_is_unavailable(workerless: Api, metadata: dict[str, Any]) -> None:
    """A gateway reads no bundle: without workers it answers 503, as for a prediction."""
    path = await workerless.make(metadata, REGRESSOR)
    (await workerless.get(f"{path}/curve?timeout=5")).problem(503)

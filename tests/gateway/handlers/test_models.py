"""Changing parameters over HTTP: checked first, applied in order with the rows, and stored."""

import asyncio
from typing import Any

import pytest

from tests.gateway.api_client import CLASSIFIER, REGRESSOR, WAIT, Api, Twin, eventually

ROWS = [[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]
SIZES = [1.0, -2.0, 3.0]
NO_WAIT = {"Prefer": "wait=0"}


async def patch(api: Api, path: str, params: Any, **headers: str) -> Any:
    """Change parameters and wait for the commit."""
    return (await api.call("PATCH", path, {"params": params}, headers={**WAIT, **headers})).of(200)


async def test_a_change_applies_from_its_sequence_on(api: Api, metadata: dict[str, Any]) -> None:
    """The answer has the recipe in force; rows after the change are learned with the new values."""
    path, twin = await api.make(metadata, REGRESSOR), Twin(REGRESSOR)
    await api.learn(path, ROWS, SIZES)
    twin.learn(ROWS, SIZES)
    before = await api.model(path)
    changed = await patch(api, path, {"alpha": 0.5, "penalty": "l1"})
    twin.bundle.change({"alpha": 0.5, "penalty": "l1"})
    assert changed == {
        **before,
        "version": before["version"] + 1,
        "recipe": {**before["recipe"], "params": {"alpha": 0.5, "penalty": "l1"}},
    }
    await patch(api, path, {"alpha": 0.25})
    twin.bundle.change({"alpha": 0.25})
    await api.learn(path, ROWS, SIZES)
    twin.learn(ROWS, SIZES)
    assert (await api.model(path))["recipe"]["params"] == {"alpha": 0.25, "penalty": "l1"}
    assert (await api.predict(path, ROWS))["predictions"] == twin.predict(ROWS)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "params is empty: name the parameters"),
        ({"alfa": 1}, "there is no 'alfa'"),
        ({"alpha": -1}, "'alpha' parameter of SGDClassifier must be a float in the range"),
        ({"alpha": 2**60}, "exceeds safe integer"),
        ({"learning_rate": "pa1", "loss": "log_loss"}, "only works with loss 'hinge'"),
        ({"average": True}, "first rows only"),
        ({"max_iter": 5}, "never reads it"),
        ({"class_weight": "balanced"}, "list the weights"),
        ({"class_weight": {"no": "much"}}, "class_weight of 'no' must be 0 or more"),
        ({"estimator__alpha": 1}, "there is no 'estimator__alpha'"),
    ],
)  # fmt: skip
async def test_an_invalid_change_is_rejected(workerless: Api, params: Any, reason: str) -> None:
    """A change that would make the recipe invalid, or has no effect, answers 422 and changes nothing."""
    path = (await workerless.post("/v1/models", {"metadata": {"type": "wrong"}, "recipe": CLASSIFIER})).json()["hash"]
    path = f"/v1/models/{path}"
    before = await workerless.model(path)
    assert reason in (await workerless.call("PATCH", path, {"params": params})).problem(422)["detail"]
    assert await workerless.model(path) == before


async def test_a_pending_change_is_accepted_once(workerless: Api, metadata: dict[str, Any]) -> None:
    """Without a worker the answer is 202 with the sequence; a repeat by key gets the same, another body a 422."""
    path = await workerless.make(metadata, REGRESSOR)
    headers = {**NO_WAIT, "Idempotency-Key": "once"}
    for _ in range(2):
        accepted = (await workerless.call("PATCH", path, {"params": {"alpha": 1}}, headers=headers)).of(202)
        assert accepted == {"hash": path.rpartition("/")[2], "sequence": 1, "generation": 1, "version": 0}
    other = await workerless.call("PATCH", path, {"params": {"alpha": 2}}, headers=headers)
    assert other.problem(422)["type"].endswith(":idempotency")
    # A change fixes no width, and it is not in force before its commit.
    assert (await workerless.post(f"{path}/partial_fit", {"X": [[1.0, 2.0]], "y": [1.0]})).of(202)["sequence"] == 2
    assert (await workerless.call("PATCH", path, {"params": {"alpha": 3}}, headers=NO_WAIT)).of(202)["sequence"] == 3
    model = await workerless.model(path)
    assert (model["inbox"], model["recipe"]["params"]) == (3, {})
    assert (await workerless.call("PATCH", path, {"alpha": 1})).problem(400)
    assert (await workerless.call("PATCH", "/v1/models/" + "0" * 64, {"params": {"alpha": 1}})).problem(404)


async def test_a_model_without_rows_can_be_changed(api: Api, metadata: dict[str, Any]) -> None:
    """A change before the first row is stored, and the first rows are learned with it."""
    path, twin = await api.make(metadata, REGRESSOR), Twin({**REGRESSOR, "params": {"eta0": 0.5}})
    assert (await patch(api, path, {"eta0": 0.5}))["rows_seen"] == 0
    assert (await api.post(f"{path}/predict", {"X": ROWS})).problem(409)
    await api.learn(path, ROWS, SIZES)
    twin.learn(ROWS, SIZES)
    assert (await api.predict(path, ROWS))["predictions"] == twin.predict(ROWS)


async def test_a_change_that_fails_is_put_aside(api: Api, metadata: dict[str, Any]) -> None:
    """Weights of a label that is not known yet answer 422; the change is put aside and succeeds when retried."""
    recipe = {"estimator": "SGDClassifier", "classes": ["yes"]}
    path, weights = await api.make(metadata, recipe), {"class_weight": {"yes": 2, "maybe": 0}}
    await api.learn(path, ROWS, ["yes", "yes", "yes"])
    reply = await api.call("PATCH", path, {"params": weights}, headers=WAIT)
    assert "names 'maybe', a label that was not learned yet" in reply.problem(422)["detail"]
    ((entry),) = (await api.get(f"{path}/dead")).of(200)["dead"]
    assert (entry["rows"], entry["params"], "X" in entry) == (0, weights, False)
    assert (await api.model(path))["recipe"]["params"] == {}
    await api.learn(path, ROWS, ["yes", "maybe", "maybe"])
    (await api.post(f"{path}/dead/retry", {})).of(202)

    async def changed() -> bool:
        return bool((await api.model(path))["recipe"]["params"] == weights)

    await eventually(changed, "the change")


async def test_a_recipe_can_be_posted_again_as_created_or_as_changed(api: Api, metadata: dict[str, Any]) -> None:
    """A recipe as created or as changed returns the model; another recipe answers 409."""
    path = await api.make(metadata, {**REGRESSOR, "params": {"alpha": 1}})
    await patch(api, path, {"alpha": 2})
    for alpha, status in ((1, 200), (2, 200), (2.0, 200)):
        again = {"metadata": metadata, "recipe": {**REGRESSOR, "params": {"alpha": alpha}}}
        assert (await api.post("/v1/models", again)).of(status)["recipe"]["params"] == {"alpha": 2}
    other = {"metadata": metadata, "recipe": {**REGRESSOR, "params": {"alpha": 3}}}
    assert (await api.post("/v1/models", other)).problem(409)


async def test_predictions_from_before_a_change_are_not_reused(api: Api, metadata: dict[str, Any]) -> None:
    """A change is a new version: predictions of earlier versions are not reused by cache or ETag."""
    path = await api.make(metadata, {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": [4]}})
    await api.learn(path, ROWS, SIZES)
    question = {"X": ROWS}
    first = await api.post(f"{path}/predict", question)
    assert (await api.post(f"{path}/predict", question)).json() == first.json()
    version = (await patch(api, path, {"activation": "tanh"}))["version"]
    after = await api.post(f"{path}/predict", question, {"If-None-Match": first.headers["ETag"]})
    assert after.of(200)["version"] == version
    assert after.json()["predictions"] != first.json()["predictions"]


@pytest.mark.parametrize("updates", ["exact", "merged"])
async def test_changes_and_rows_keep_their_order(api: Api, metadata: dict[str, Any], updates: str) -> None:
    """Rows and changes that are pending together are applied in order of their sequence."""
    recipe = {**REGRESSOR, "updates": updates}
    path, twin = await api.make(metadata, recipe), Twin(recipe)
    sent: list[Any] = []

    async def send(number: int) -> None:
        if number % 5 == 4:
            params = {"alpha": number / 100, "fit_intercept": bool(number % 2)}
            reply = await api.call("PATCH", path, {"params": params}, headers=NO_WAIT)
            sent.append((reply.of(202)["sequence"], params))
        else:
            rows = {"X": ROWS[number % 3 :], "y": SIZES[number % 3 :]}
            sent.append(((await api.post(f"{path}/partial_fit", rows)).of(202)["sequence"], rows))

    await asyncio.gather(*map(send, range(40)))
    last = (await patch(api, path, {"alpha": 0.1}))["recipe"]["params"]
    changes = [each for _, each in sorted(sent, key=lambda pair: pair[0]) if "X" not in each]
    assert sorted(sequence for sequence, _ in sent) == list(range(1, 41))
    assert last == {**changes[-1], "alpha": 0.1}
    if updates == "exact":
        for _, each in sorted(sent, key=lambda pair: pair[0]):
            twin.learn(**each) if "X" in each else twin.bundle.change(each)
        assert (await api.predict(path, ROWS))["predictions"] == twin.predict(ROWS)


async def test_models_are_listed_by_their_metadata(api: Api, metadata: dict[str, Any]) -> None:
    """A filter is a key of metadata, alone or in brackets; brackets also name keys that are parameters."""
    ours = {"brand": metadata["session"], "limit": 5}
    paths = [await api.make({**metadata, **ours, "size": size}, REGRESSOR) for size in (41, 42)]
    by_size = {41: paths[0], 42: paths[1]}

    async def listed(**query: str) -> set[str]:
        return {f"/v1/models/{model['hash']}" for model in (await api.get("/v1/models", **query)).of(200)["models"]}

    brand = {"metadata[brand]": ours["brand"]}
    assert await listed(**brand) == await listed(brand=ours["brand"]) == set(paths)
    assert await listed(**brand, size="42") == await listed(**brand, **{"metadata[size]": "42"}) == {by_size[42]}
    assert await listed(**brand, **{"metadata[limit]": "5", "limit": "1000"}) == set(paths)
    assert await listed(**brand, **{"metadata[limit]": "6"}) == set()
    twice = (await api.get("/v1/models", brand=ours["brand"], **brand)).problem(400)
    assert twice["detail"] == "The query filters twice by 'brand': send 'brand' or 'metadata[brand]', not both."

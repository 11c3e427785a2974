"""Changing parameters by HTTP: checked before, made in order with the rows, kept, and told of."""

import asyncio
from typing import Any

import pytest

from tests.gateway.api_client import CLASSIFIER, REGRESSOR, WAIT, Api, Twin, eventually

ROWS = [[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]
SIZES = [1.0, -2.0, 3.0]
NOT_NOW = {"Prefer": "wait=0"}


async def patch(api: Api, path: str, params: Any, **headers: str) -> Any:
    """Change parameters, and wait until it is done."""
    return (await api.call("PATCH", path, {"params": params}, headers={**WAIT, **headers})).of(200)


async def test_a_change_counts_from_its_place_on(api: Api, metadata: dict[str, Any]) -> None:
    """The answer is the model with the recipe in force; what is learned after it is learned by the new values."""
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
    ("params", "words"),
    [
        ({}, "names no parameter"),
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
async def test_what_is_wrong_is_said_and_changes_nothing(lonely: Api, params: Any, words: str) -> None:
    """A change that the recipe could not have been posted with, or that comes to nothing, is refused with a 422."""
    path = (await lonely.post("/v1/models", {"metadata": {"type": "wrong"}, "recipe": CLASSIFIER})).json()["hash"]
    path = f"/v1/models/{path}"
    before = await lonely.model(path)
    assert words in (await lonely.call("PATCH", path, {"params": params})).problem(422)["detail"]
    assert await lonely.model(path) == before


async def test_a_change_that_waits_is_accepted_once(lonely: Api, metadata: dict[str, Any]) -> None:
    """Without a worker the answer is 202 with its sequence; a repeat by key gets it again, another body a 422."""
    path = await lonely.make(metadata, REGRESSOR)
    headers = {**NOT_NOW, "Idempotency-Key": "once"}
    for _ in range(2):
        accepted = (await lonely.call("PATCH", path, {"params": {"alpha": 1}}, headers=headers)).of(202)
        assert accepted == {"hash": path.rpartition("/")[2], "sequence": 1, "generation": 1, "version": 0}
    other = await lonely.call("PATCH", path, {"params": {"alpha": 2}}, headers=headers)
    assert other.problem(422)["type"].endswith(":idempotency")
    # It is no row, so any width may follow; and it is not in force before it is made.
    assert (await lonely.post(f"{path}/partial_fit", {"X": [[1.0, 2.0]], "y": [1.0]})).of(202)["sequence"] == 2
    assert (await lonely.call("PATCH", path, {"params": {"alpha": 3}}, headers=NOT_NOW)).of(202)["sequence"] == 3
    model = await lonely.model(path)
    assert (model["inbox"], model["recipe"]["params"]) == (3, {})
    assert (await lonely.call("PATCH", path, {"alpha": 1})).problem(400)
    assert (await lonely.call("PATCH", "/v1/models/" + "0" * 64, {"params": {"alpha": 1}})).problem(404)


async def test_a_model_never_taught_can_be_changed(api: Api, metadata: dict[str, Any]) -> None:
    """A change before the first row is kept, and the first rows are learned by it."""
    path, twin = await api.make(metadata, REGRESSOR), Twin({**REGRESSOR, "params": {"eta0": 0.5}})
    assert (await patch(api, path, {"eta0": 0.5}))["rows_seen"] == 0
    assert (await api.post(f"{path}/predict", {"X": ROWS})).problem(409)
    await api.learn(path, ROWS, SIZES)
    twin.learn(ROWS, SIZES)
    assert (await api.predict(path, ROWS))["predictions"] == twin.predict(ROWS)


async def test_a_change_that_cannot_be_made_is_put_aside(api: Api, metadata: dict[str, Any]) -> None:
    """Weights of a label that has not come yet: 422 with the reason, kept aside, and made when it is retried."""
    recipe = {"estimator": "SGDClassifier", "classes": ["yes"]}
    path, weights = await api.make(metadata, recipe), {"class_weight": {"yes": 2, "maybe": 0}}
    await api.learn(path, ROWS, ["yes", "yes", "yes"])
    reply = await api.call("PATCH", path, {"params": weights}, headers=WAIT)
    assert "'maybe', a label that has not come yet" in reply.problem(422)["detail"]
    ((entry),) = (await api.get(f"{path}/dead")).of(200)["dead"]
    assert (entry["rows"], entry["params"], "X" in entry) == (0, weights, False)
    assert (await api.model(path))["recipe"]["params"] == {}
    await api.learn(path, ROWS, ["yes", "maybe", "maybe"])
    (await api.post(f"{path}/dead/retry", {})).of(202)

    async def made() -> bool:
        return bool((await api.model(path))["recipe"]["params"] == weights)

    await eventually(made, "the change")


async def test_a_recipe_may_be_posted_again_as_it_was_and_as_it_is(api: Api, metadata: dict[str, Any]) -> None:
    """A service that posts its recipe at every start gets its model, changed or not; another recipe is a conflict."""
    path = await api.make(metadata, {**REGRESSOR, "params": {"alpha": 1}})
    await patch(api, path, {"alpha": 2})
    for alpha, status in ((1, 200), (2, 200), (2.0, 200)):
        again = {"metadata": metadata, "recipe": {**REGRESSOR, "params": {"alpha": alpha}}}
        assert (await api.post("/v1/models", again)).of(status)["recipe"]["params"] == {"alpha": 2}
    other = {"metadata": metadata, "recipe": {**REGRESSOR, "params": {"alpha": 3}}}
    assert (await api.post("/v1/models", other)).problem(409)


async def test_no_prediction_from_before_is_given_after(api: Api, metadata: dict[str, Any]) -> None:
    """A change is a version: what was kept of an earlier one is not given out, by cache or by ETag."""
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
async def test_changes_and_rows_of_one_client_keep_their_order(
    api: Api, metadata: dict[str, Any], updates: str
) -> None:
    """Rows and changes that wait together are learned and made in the order of their sequence."""
    recipe = {**REGRESSOR, "updates": updates}
    path, twin = await api.make(metadata, recipe), Twin(recipe)
    sent: list[Any] = []

    async def send(number: int) -> None:
        if number % 5 == 4:
            params = {"alpha": number / 100, "fit_intercept": bool(number % 2)}
            reply = await api.call("PATCH", path, {"params": params}, headers=NOT_NOW)
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

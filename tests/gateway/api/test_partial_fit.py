"""Learning by HTTP: what is accepted is counted, learned once, in order, and put aside where it cannot be learned."""

import asyncio
from typing import Any

import numpy as np
import pytest

from keepfit.settings import Settings
from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import REGRESSOR, WAIT, Api, Twin, eventually, serving

NAIVE: dict[str, Any] = {"estimator": "MultinomialNB", "classes": ["no", "yes"]}


async def learned(api: Api, path: str, rows: int) -> None:
    """Wait until the model has learned so many rows."""

    async def seen() -> bool:
        return bool((await api.model(path))["rows_seen"] == rows)

    await eventually(seen, f"learning {rows} rows")


async def test_rows_are_accepted_and_numbered(api: Api, metadata: dict[str, Any]) -> None:
    """Each learning call answers 202 with the next sequence, and all that was accepted is learned."""
    path = await api.make(metadata, REGRESSOR)
    for sequence in range(1, 6):
        document = {"X": [[float(sequence)]] * sequence, "y": [1.0] * sequence}
        reply = await api.post(f"{path}/partial_fit", document)
        accepted = reply.of(202)
        assert accepted.keys() == {"hash", "accepted", "sequence", "generation", "version"}
        assert accepted["hash"] == path.rpartition("/")[2]
        assert (accepted["sequence"], accepted["accepted"]) == (sequence, sequence)
        assert accepted["generation"] == 1
        assert 0 <= accepted["version"] < sequence
        assert "Preference-Applied" not in reply.headers
    await learned(api, path, 15)
    assert (await api.model(path))["inbox"] == 0


@pytest.mark.parametrize(
    "prefer", ["wait=10", 'wait="10"', "Wait = 10", "respond-async, wait=10", "respond-async; wait=10"]
)
async def test_a_client_may_wait_until_its_rows_are_learned(api: Api, metadata: dict[str, Any], prefer: str) -> None:
    """With `Prefer: wait` the answer is 200 with the version that holds the rows, and says that it was applied."""
    path = await api.make(metadata, REGRESSOR)
    reply = await api.post(f"{path}/partial_fit", {"X": [[1.0], [2.0]], "y": [1.0, 2.0]}, {"Prefer": prefer})
    answer = reply.of(200)
    assert answer.keys() == {"hash", "accepted", "sequence", "version", "rows_seen"}
    assert (answer["accepted"], answer["sequence"], answer["version"], answer["rows_seen"]) == (2, 1, 1, 2)
    assert reply.headers["Preference-Applied"] == "wait=10"


@pytest.mark.parametrize("prefer", ["wait=0", "wait", "wait=soon", "wait=-5", "await=10", "return=minimal"])
async def test_another_preference_is_not_waited_for(api: Api, metadata: dict[str, Any], prefer: str) -> None:
    """A preference that names no time is ignored, as RFC 7240 has it: the answer is the plain 202."""
    path = await api.make(metadata, REGRESSOR)
    reply = await api.post(f"{path}/partial_fit", {"X": [[1.0]], "y": [1.0]}, {"Prefer": prefer})
    reply.of(202)
    assert "Preference-Applied" not in reply.headers


async def test_hash_and_metadata_name_the_same_model(api: Api, metadata: dict[str, Any]) -> None:
    """Rows sent by metadata and by hash go to one model, in one sequence."""
    path = await api.make(metadata, REGRESSOR)
    rows = {"X": [[1.0]], "y": [1.0]}
    by_hash = (await api.post(f"{path}/partial_fit", rows, WAIT)).of(200)
    by_metadata = (await api.post("/v1/partial_fit", {"metadata": metadata, **rows}, WAIT)).of(200)
    assert by_metadata["hash"] == by_hash["hash"]
    assert (by_hash["sequence"], by_metadata["sequence"]) == (1, 2)
    assert by_metadata["rows_seen"] == 2


async def test_rows_come_as_lists_or_as_objects(api: Api, metadata: dict[str, Any]) -> None:
    """A list of values in column order and an object in any order are the same row."""
    lists = await api.make({**metadata, "rows": "lists"}, SHOES_RECIPE)
    objects = await api.make({**metadata, "rows": "objects"}, SHOES_RECIPE)
    await api.learn(lists, [["nike", 2001], ["adidas", 2003]], [4, 5])
    await api.learn(objects, [{"year": 2001, "make": "nike"}, {"make": "adidas", "year": 2003}], [4, 5])
    asked = await api.predict(lists, [["nike", 2005], {"make": "puma", "year": 2007}])
    assert asked["predictions"] == (await api.predict(objects, [["nike", 2005], ["puma", 2007]]))["predictions"]


async def test_sample_weights_count(api: Api, metadata: dict[str, Any]) -> None:
    """Weighted rows are learned with their weights, as scikit-learn does."""
    X, y, weights = [[1.0, 0.0], [0.0, 1.0]], [1.0, 5.0], [0.5, 2.0]
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, X, y, sample_weight=weights)
    weighted, plain = Twin(REGRESSOR), Twin(REGRESSOR)
    weighted.learn(X, y, weights)
    plain.learn(X, y)
    predicted = (await api.predict(path, X))["predictions"]
    assert predicted == weighted.predict(X)
    assert predicted != plain.predict(X)


async def test_requests_at_once_are_learned_in_the_order_of_their_sequences(api: Api, metadata: dict[str, Any]) -> None:
    """Of concurrent requests each gets its own number from 1 on, and the model is what that order gives."""
    path = await api.make(metadata, REGRESSOR)
    rng = np.random.default_rng(0)
    requests = [(rng.normal(size=(2, 3)).tolist(), rng.normal(size=2).tolist()) for _ in range(60)]
    replies = await asyncio.gather(
        *(api.post(f"{path}/partial_fit", {"X": X, "y": y}) for X, y in requests),
    )
    sequences = [reply.of(202)["sequence"] for reply in replies]
    assert sorted(sequences) == list(range(1, 61))
    await learned(api, path, 120)
    twin = Twin(REGRESSOR)
    for _, (X, y) in sorted(zip(sequences, requests, strict=True), key=lambda pair: pair[0]):
        twin.learn(X, y)
    X = requests[0][0]
    assert (await api.predict(path, X))["predictions"] == twin.predict(X)


async def test_what_the_estimator_refuses_is_put_aside(api: Api, metadata: dict[str, Any]) -> None:
    """Rows refused only while they are learned answer a waiting client 422 and why; rows after them are learned."""
    path = await api.make(metadata, NAIVE)
    refused = await api.post(f"{path}/partial_fit", {"X": [[-1.0, 1.0]], "y": ["no"]}, WAIT)
    detail = refused.problem(422)["detail"]
    assert "put aside" in detail
    assert "Negative values" in detail
    assert not detail.endswith("..")
    X, y = [[1.0, 0.0], [0.0, 3.0]], ["no", "yes"]
    answer = await api.learn(path, X, y)
    assert (answer["sequence"], answer["rows_seen"]) == (2, 2)
    twin = Twin(NAIVE)
    twin.learn(X, y)
    assert (await api.predict(path, X))["predictions"] == twin.predict(X)


async def test_what_is_put_aside_holds_up_nobody(api: Api, metadata: dict[str, Any]) -> None:
    """Refused rows between good ones, with nobody waiting, leave the model as the good ones alone make it."""
    path = await api.make(metadata, NAIVE)
    good = [([[1.0, 0.0]], ["no"]), ([[0.0, 2.0]], ["yes"]), ([[0.0, 1.0]], ["no"])]
    twin = Twin(NAIVE)
    for X, y in good:
        twin.learn(X, y)
        (await api.post(f"{path}/partial_fit", {"X": X, "y": y})).of(202)
        (await api.post(f"{path}/partial_fit", {"X": [[-1.0, -1.0]], "y": ["yes"]})).of(202)
    await learned(api, path, 3)

    async def emptied() -> bool:
        return bool((await api.model(path))["inbox"] == 0)

    await eventually(emptied, "emptying the inbox")
    X = [[1.0, 1.0], [0.0, 5.0]]
    assert (await api.predict(path, X, proba=True))["probabilities"] == twin.predict_proba(X)


async def test_a_full_inbox_asks_to_come_back_later(settings: Settings, metadata: dict[str, Any]) -> None:
    """More requests than may wait answer 429 with Retry-After and are not accepted."""
    async with serving(settings.model_copy(update={"inbox_entries_max": 2})) as api:
        path = await api.make(metadata, REGRESSOR)
        rows = {"X": [[1.0]], "y": [1.0]}
        for sequence in (1, 2):
            assert (await api.post(f"{path}/partial_fit", rows)).of(202)["sequence"] == sequence
        full = await api.post(f"{path}/partial_fit", rows)
        full.problem(429)
        assert int(full.headers["Retry-After"]) >= 1
        assert (await api.model(path))["inbox"] == 2


async def test_who_waits_for_a_model_that_is_deleted_hears_of_it(lonely: Api, metadata: dict[str, Any]) -> None:
    """A DELETE ends the wait of those whose rows the model had not learned: they get 404, at once."""
    path = await lonely.make(metadata, REGRESSOR)
    document = {"X": [[1.0]], "y": [1.0]}
    async with asyncio.timeout(30):
        waiting = asyncio.create_task(lonely.post(f"{path}/partial_fit", document, {"Prefer": "wait=60"}))

        async def accepted() -> bool:
            return bool((await lonely.model(path))["inbox"] == 1)

        await eventually(accepted, "the rows' acceptance")
        assert (await lonely.call("DELETE", path)).status == 204
        (await waiting).problem(404)

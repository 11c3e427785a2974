"""Learning over HTTP: accepted rows are numbered, learned once and in order, or put aside if they cannot be."""

import asyncio
from typing import Any

import numpy as np
import pytest

from keepfit.settings import Settings
from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import REGRESSOR, WAIT, Api, Twin, eventually, serving

NAIVE: dict[str, Any] = {"estimator": "MultinomialNB", "classes": ["no", "yes"]}


async def learned(api: Api, path: str, rows: int) -> None:
    """Wait until the model has learned `rows` rows."""

    async def seen() -> bool:
        return bool((await api.model(path))["rows_seen"] == rows)

    await eventually(seen, f"learning {rows} rows")


async def test_rows_are_accepted_and_numbered(api: Api, metadata: dict[str, Any]) -> None:
    """Each request answers 202 with the next sequence, and all accepted rows are learned."""
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
    "prefer",
    [
        "wait=10",
        'wait="10"',
        "Wait = 10",
        "respond-async, wait=10",
        "respond-async; wait=10",
        'a="b;c", wait=10, wait=0',
    ],
)
async def test_a_client_can_wait_until_its_rows_are_learned(api: Api, metadata: dict[str, Any], prefer: str) -> None:
    """With `Prefer: wait` the answer is 200 with the version that contains the rows, and Preference-Applied."""
    path = await api.make(metadata, REGRESSOR)
    reply = await api.post(f"{path}/partial_fit", {"X": [[1.0], [2.0]], "y": [1.0, 2.0]}, {"Prefer": prefer})
    answer = reply.of(200)
    assert answer.keys() == {"hash", "accepted", "sequence", "version", "rows_seen"}
    assert (answer["accepted"], answer["sequence"], answer["version"], answer["rows_seen"]) == (2, 1, 1, 2)
    assert reply.headers["Preference-Applied"] == "wait=10"


@pytest.mark.parametrize(
    "prefer",
    ["wait=0", "wait", "wait=soon", "wait=-5", "await=10", "return=minimal", 'a="b, wait=10"', "wait=0, wait=10"],
)
async def test_other_preferences_are_ignored(api: Api, metadata: dict[str, Any], prefer: str) -> None:
    """A preference without a valid time is ignored, as RFC 7240 requires: the answer is 202."""
    path = await api.make(metadata, REGRESSOR)
    reply = await api.post(f"{path}/partial_fit", {"X": [[1.0]], "y": [1.0]}, {"Prefer": prefer})
    reply.of(202)
    assert "Preference-Applied" not in reply.headers


async def test_hash_and_metadata_name_the_same_model(api: Api, metadata: dict[str, Any]) -> None:
    """Rows by metadata and by hash go to the same model, with the same counter of sequences."""
    path = await api.make(metadata, REGRESSOR)
    rows = {"X": [[1.0]], "y": [1.0]}
    by_hash = (await api.post(f"{path}/partial_fit", rows, WAIT)).of(200)
    by_metadata = (await api.post("/v1/partial_fit", {"metadata": metadata, **rows}, WAIT)).of(200)
    assert by_metadata["hash"] == by_hash["hash"]
    assert (by_hash["sequence"], by_metadata["sequence"]) == (1, 2)
    assert by_metadata["rows_seen"] == 2


async def test_rows_are_lists_or_objects(api: Api, metadata: dict[str, Any]) -> None:
    """A list of values in column order and an object in any order are the same row."""
    lists = await api.make({**metadata, "rows": "lists"}, SHOES_RECIPE)
    objects = await api.make({**metadata, "rows": "objects"}, SHOES_RECIPE)
    await api.learn(lists, [["nike", 2001], ["adidas", 2003]], [4, 5])
    await api.learn(objects, [{"year": 2001, "make": "nike"}, {"make": "adidas", "year": 2003}], [4, 5])
    asked = await api.predict(lists, [["nike", 2005], {"make": "puma", "year": 2007}])
    assert asked["predictions"] == (await api.predict(objects, [["nike", 2005], ["puma", 2007]]))["predictions"]


async def test_sample_weights_are_used(api: Api, metadata: dict[str, Any]) -> None:
    """Rows are learned with their weights, as in scikit-learn."""
    X, y, weights = [[1.0, 0.0], [0.0, 1.0]], [1.0, 5.0], [0.5, 2.0]
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, X, y, sample_weight=weights)
    weighted, plain = Twin(REGRESSOR), Twin(REGRESSOR)
    weighted.learn(X, y, weights)
    plain.learn(X, y)
    predicted = (await api.predict(path, X))["predictions"]
    assert predicted == weighted.predict(X)
    assert predicted != plain.predict(X)


async def test_concurrent_requests_are_learned_in_order_of_sequence(api: Api, metadata: dict[str, Any]) -> None:
    """Concurrent requests get unique sequences from 1 on, and are learned in that order."""
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


async def test_rows_that_the_estimator_rejects_are_put_aside(api: Api, metadata: dict[str, Any]) -> None:
    """Rows that the estimator rejects answer 422 with the reason to a waiting client; later rows are learned."""
    path = await api.make(metadata, NAIVE)
    rejected = await api.post(f"{path}/partial_fit", {"X": [[-1.0, 1.0]], "y": ["no"]}, WAIT)
    detail = rejected.problem(422)["detail"]
    assert "put aside" in detail
    assert "Negative values" in detail
    assert not detail.endswith("..")
    X, y = [[1.0, 0.0], [0.0, 3.0]], ["no", "yes"]
    answer = await api.learn(path, X, y)
    assert (answer["sequence"], answer["rows_seen"]) == (2, 2)
    twin = Twin(NAIVE)
    twin.learn(X, y)
    assert (await api.predict(path, X))["predictions"] == twin.predict(X)


async def test_dead_letters_do_not_block_other_requests(api: Api, metadata: dict[str, Any]) -> None:
    """Rejected rows between valid ones, without a waiting client, do not change the model."""
    path = await api.make(metadata, NAIVE)
    good = [([[1.0, 0.0]], ["no"]), ([[0.0, 2.0]], ["yes"]), ([[0.0, 1.0]], ["no"])]
    twin = Twin(NAIVE)
    for X, y in good:
        twin.learn(X, y)
        (await api.post(f"{path}/partial_fit", {"X": X, "y": y})).of(202)
        (await api.post(f"{path}/partial_fit", {"X": [[-1.0, -1.0]], "y": ["yes"]})).of(202)
    await learned(api, path, 3)

    async def is_empty() -> bool:
        return bool((await api.model(path))["inbox"] == 0)

    await eventually(is_empty, "the inbox being empty")
    X = [[1.0, 1.0], [0.0, 5.0]]
    assert (await api.predict(path, X, proba=True))["probabilities"] == twin.predict_proba(X)


async def test_a_full_inbox_answers_retry_after(settings: Settings, metadata: dict[str, Any]) -> None:
    """Requests above the limit of the inbox answer 429 with Retry-After and are not accepted."""
    async with serving(settings.model_copy(update={"inbox_entries_max": 2})) as api:
        path = await api.make(metadata, REGRESSOR)
        rows = {"X": [[1.0]], "y": [1.0]}
        for sequence in (1, 2):
            assert (await api.post(f"{path}/partial_fit", rows)).of(202)["sequence"] == sequence
        full = await api.post(f"{path}/partial_fit", rows)
        full.problem(429)
        assert int(full.headers["Retry-After"]) >= 1
        assert (await api.model(path))["inbox"] == 2


async def test_a_delete_ends_the_wait_for_its_model(workerless: Api, metadata: dict[str, Any]) -> None:
    """A DELETE ends the wait of clients whose rows are not learned: they get a 404 at once."""
    path = await workerless.make(metadata, REGRESSOR)
    document = {"X": [[1.0]], "y": [1.0]}
    async with asyncio.timeout(30):
        waiting = asyncio.create_task(workerless.post(f"{path}/partial_fit", document, {"Prefer": "wait=60"}))

        async def accepted() -> bool:
            return bool((await workerless.model(path))["inbox"] == 1)

        await eventually(accepted, "the acceptance of the rows")
        assert (await workerless.call("DELETE", path)).status == 204
        (await waiting).problem(404)

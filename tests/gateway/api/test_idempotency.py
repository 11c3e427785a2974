"""Idempotency keys: a repeated learning request gets the first answer and learns nothing twice."""

import asyncio
from typing import Any

import pytest

from tests.gateway.api_client import REGRESSOR, WAIT, Api

ROWS = {"X": [[1.0]], "y": [1.0]}
OTHER_ROWS = {"X": [[1.0]], "y": [2.0]}


async def test_a_repeat_gets_the_first_answer(api: Api, metadata: dict[str, Any]) -> None:
    """The same key with the same rows, by hash or by metadata, gets the same sequence; the rows are learned once."""
    path = await api.make(metadata, REGRESSOR)
    key = {"Idempotency-Key": "a" * 128}
    first = (await api.post(f"{path}/partial_fit", ROWS, key)).of(202)
    again = (await api.post(f"{path}/partial_fit", ROWS, key)).of(202)
    by_metadata = (await api.post("/v1/partial_fit", {"metadata": metadata, **ROWS}, key)).of(202)
    for answer in (again, by_metadata):
        assert {**answer, "version": 0} == {**first, "version": 0}
    assert first["sequence"] == 1
    last = await api.learn(path, **OTHER_ROWS)
    assert (last["sequence"], last["rows_seen"]) == (2, 2)


async def test_concurrent_repeats_are_accepted_once(api: Api, metadata: dict[str, Any]) -> None:
    """Concurrent repeats are accepted once."""
    path = await api.make(metadata, REGRESSOR)
    headers = {"Idempotency-Key": "once", **WAIT}
    replies = await asyncio.gather(*(api.post(f"{path}/partial_fit", ROWS, headers) for _ in range(20)))
    assert {reply.of(200)["sequence"] for reply in replies} == {1}
    assert (await api.model(path))["rows_seen"] == 1


async def test_a_repeat_of_learned_rows_does_not_wait(api: Api, metadata: dict[str, Any]) -> None:
    """A waiting repeat of rows that are already learned is answered at once, although no commit announces them."""
    path = await api.make(metadata, REGRESSOR)
    key = {"Idempotency-Key": "lost-answer"}
    first = (await api.post(f"{path}/partial_fit", ROWS, {**key, **WAIT})).of(200)
    await api.learn(path, **OTHER_ROWS)
    async with asyncio.timeout(20):
        reply = await api.post(f"{path}/partial_fit", ROWS, {**key, "Prefer": "wait=60"})
    again = reply.of(200)
    assert again["sequence"] == first["sequence"]
    assert again["version"] >= first["version"]


async def test_a_repeat_of_rows_put_aside_is_never_reported_as_learned(api: Api, metadata: dict[str, Any]) -> None:
    """Rows that were put aside are never reported as learned, however often they are sent again."""
    path = await api.make(metadata, {"estimator": "MultinomialNB", "classes": ["no", "yes"]})
    rows, key = {"X": [[-1.0]], "y": ["no"]}, {"Idempotency-Key": "rejected"}
    (await api.post(f"{path}/partial_fit", rows, {**key, **WAIT})).problem(422)
    again = await api.post(f"{path}/partial_fit", rows, {**key, **WAIT})
    again.problem(422)
    assert (await api.model(path))["rows_seen"] == 0


async def test_the_same_key_with_other_rows_is_rejected(api: Api, metadata: dict[str, Any]) -> None:
    """A key that was used with another body answers 422, and the other rows are not learned."""
    path = await api.make(metadata, REGRESSOR)
    headers = {"Idempotency-Key": "reused", **WAIT}
    (await api.post(f"{path}/partial_fit", ROWS, headers)).of(200)
    assert "Idempotency-Key" in (await api.post(f"{path}/partial_fit", OTHER_ROWS, headers)).problem(422)["detail"]
    model = await api.model(path)
    assert (model["rows_seen"], model["inbox"]) == (1, 0)


async def test_a_key_belongs_to_one_model(api: Api, metadata: dict[str, Any]) -> None:
    """The same key for another model is another request."""
    headers = {"Idempotency-Key": "shared", **WAIT}
    for name in ("one", "two"):
        path = await api.make({**metadata, "name": name}, REGRESSOR)
        assert (await api.post(f"{path}/partial_fit", ROWS, headers)).of(200)["rows_seen"] == 1


async def test_a_rejected_request_does_not_use_its_key(api: Api, metadata: dict[str, Any]) -> None:
    """The key of a rejected request can be used for the corrected request."""
    path = await api.make(metadata, REGRESSOR)
    headers = {"Idempotency-Key": "corrected", **WAIT}
    (await api.post(f"{path}/partial_fit", {"X": [["1"]], "y": [1.0]}, headers)).problem(422)
    assert (await api.post(f"{path}/partial_fit", ROWS, headers)).of(200)["sequence"] == 1


@pytest.mark.parametrize("key", ["", "a" * 129, "two words", "clé", "tab\tbed"])
async def test_a_key_is_1_to_128_visible_ascii_characters(api: Api, metadata: dict[str, Any], key: str) -> None:
    """Any other key answers 400, and the rows are not accepted."""
    path = await api.make(metadata, REGRESSOR)
    reply = await api.post(f"{path}/partial_fit", ROWS, {"Idempotency-Key": key})
    assert "Idempotency-Key" in reply.problem(400)["detail"]
    assert (await api.model(path))["inbox"] == 0


async def test_a_recreated_model_has_no_keys(api: Api, metadata: dict[str, Any]) -> None:
    """A key of a deleted model is unknown to a model created again with the same metadata."""
    path = await api.make(metadata, REGRESSOR)
    headers = {"Idempotency-Key": "before", **WAIT}
    (await api.post(f"{path}/partial_fit", ROWS, headers)).of(200)
    assert (await api.call("DELETE", path)).status == 204
    await api.make(metadata, REGRESSOR)
    assert (await api.post(f"{path}/partial_fit", ROWS, headers)).of(200)["rows_seen"] == 1

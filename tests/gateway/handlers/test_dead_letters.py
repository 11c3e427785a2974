"""What was put aside, by HTTP: listed with its reason and its rows, retried, discarded; and its clients are told."""

from typing import Any

import pytest

from tests.gateway.api_client import REGRESSOR, WAIT, Api, eventually

COUNTS = {"estimator": "MultinomialNB", "classes": ["no", "yes"]}
BAD, GOOD = {"X": [[-1.0, 2.0]], "y": ["no"]}, {"X": [[1.0, 2.0]], "y": ["no"]}


async def refused(api: Api, metadata: dict[str, Any], count: int = 1) -> str:
    """Make a model that put so many requests aside; return its path."""
    path = await api.make(metadata, COUNTS)
    for _ in range(count):
        (await api.post(f"{path}/partial_fit", BAD, WAIT)).problem(422)
    return path


async def test_what_was_put_aside_is_listed(api: Api, metadata: dict[str, Any]) -> None:
    """A refused request is listed with its reason and rows; the model's description is what it always is."""
    path = await refused(api, metadata)
    await api.learn(path, **GOOD)
    answer = (await api.get(f"{path}/dead")).of(200)
    model = await api.model(path)
    assert answer.keys() == {"hash", "version", "dead", "next"}
    assert (answer["hash"], answer["version"], answer["next"]) == (model["hash"], model["version"], None)
    (entry,) = answer["dead"]
    assert {name: entry[name] for name in ("sequence", "rows", "X", "y")} == {"sequence": 1, "rows": 1, **BAD}
    assert "Negative values" in entry["reason"]
    assert entry["id"] == f"{entry['generation']}-1"
    assert entry["timestamp"] > 1e9
    fields = {"hash", "metadata", "recipe", "version", "rows_seen", "metrics", "inbox", "snapshot"}
    assert (model.keys(), model["rows_seen"], model["inbox"]) == (fields, 1, 0)


async def test_the_list_has_pages(api: Api, metadata: dict[str, Any]) -> None:
    """Limit and after give page by page, oldest first."""
    path = await refused(api, metadata, 3)
    first = (await api.get(f"{path}/dead", limit="2")).of(200)
    second = (await api.get(f"{path}/dead", limit="2", after=first["next"])).of(200)
    assert [entry["sequence"] for page in (first, second) for entry in page["dead"]] == [1, 2, 3]
    assert second["next"] is None


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "after=x", "after=-", "after=(1-1", "since=1", "limit=1&limit=1"]
)
async def test_other_queries_are_refused(api: Api, metadata: dict[str, Any], query: str) -> None:
    """What is no page is 400."""
    path = await api.make(metadata, REGRESSOR)
    (await api.call("GET", f"{path}/dead?{query}")).problem(400)


async def test_a_retried_request_is_taken_up_at_once(api: Api, metadata: dict[str, Any]) -> None:
    """A retry is a 202 with the new sequence; workers hear of it, and what fails again is there under a new id."""
    path = await refused(api, metadata, 2)
    (entry, _) = (await api.get(f"{path}/dead")).of(200)["dead"]
    answer = (await api.post(f"{path}/dead/retry", {"ids": [entry["id"]]})).of(202)
    assert answer == {
        "hash": path.rpartition("/")[2],
        "version": answer["version"],
        "generation": entry["generation"],
        "accepted": 1,
        "sequence": 3,
        "refused": [],
        "left": 1,
    }

    async def again() -> bool:
        listed = (await api.get(f"{path}/dead")).of(200)["dead"]
        return [entry["sequence"] for entry in listed] == [2, 3]

    await eventually(again, "the retried request being refused again")
    everything = (await api.post(f"{path}/dead/retry", {})).of(202)
    assert (everything["accepted"], everything["sequence"]) == (2, 5)


async def test_unknown_ids_move_nothing(api: Api, metadata: dict[str, Any]) -> None:
    """An id that is not there is told of; nothing was accepted, and there is no sequence."""
    path = await refused(api, metadata)
    answer = (await api.post(f"{path}/dead/retry", {"ids": ["1-99"]})).of(202)
    assert (answer["accepted"], answer["sequence"], answer["left"]) == (0, None, 1)
    assert [refusal["id"] for refusal in answer["refused"]] == ["1-99"]


async def test_what_is_discarded_is_gone(api: Api, metadata: dict[str, Any]) -> None:
    """Discarding forgets what is named, once."""
    path = await refused(api, metadata, 2)
    first, second = (await api.get(f"{path}/dead")).of(200)["dead"]
    for count in (1, 0):
        answer = (await api.post(f"{path}/dead/discard", {"ids": [first["id"]]})).of(200)
        assert answer["discarded"] == count
    assert (await api.get(f"{path}/dead")).of(200)["dead"] == [second]


@pytest.mark.parametrize("call", ["retry", "discard"])
@pytest.mark.parametrize(
    "body", [{"ids": ["x"]}, {"ids": [1]}, {"ids": ["1-1"] * 129}, {"ids": "1-1"}, {"all": True}, []], ids=str
)
async def test_other_bodies_are_refused(api: Api, metadata: dict[str, Any], call: str, body: Any) -> None:
    """What is no list of ids is 400."""
    path = await api.make(metadata, REGRESSOR)
    (await api.post(f"{path}/dead/{call}", body)).problem(400)


async def test_discarding_everything_takes_naming_it(api: Api, metadata: dict[str, Any]) -> None:
    """Without ids nothing is discarded: 400."""
    path = await api.make(metadata, REGRESSOR)
    for body in ({}, {"ids": []}, {"ids": None}):
        (await api.post(f"{path}/dead/discard", body)).problem(400)


async def test_of_no_model_there_is_nothing(api: Api) -> None:
    """A model that is not there is 404."""
    path = f"/v1/models/{'0' * 64}"
    (await api.get(f"{path}/dead")).problem(404)
    (await api.post(f"{path}/dead/retry", {})).problem(404)
    (await api.post(f"{path}/dead/discard", {"ids": ["1-1"]})).problem(404)


async def test_who_asks_again_hears_that_the_rows_were_put_aside(api: Api, metadata: dict[str, Any]) -> None:
    """A repeat under the same key that waits is told at once, by 422, also after others were learned."""
    path = await api.make(metadata, COUNTS)
    key = {"Idempotency-Key": "refused", "Prefer": "wait=60"}
    first = (await api.post(f"{path}/partial_fit", BAD, key)).problem(422)
    await api.learn(path, **GOOD)
    again = (await api.post(f"{path}/partial_fit", BAD, key)).problem(422)
    assert again["detail"] == first["detail"]
    assert (await api.model(path))["rows_seen"] == 1


async def test_who_asks_again_for_learned_rows_hears_so_beside_refused_ones(api: Api, metadata: dict[str, Any]) -> None:
    """That other rows of the model were put aside does not hold up the answer for those that were learned."""
    path = await refused(api, metadata)
    key = {"Idempotency-Key": "learned", "Prefer": "wait=60"}
    first = (await api.post(f"{path}/partial_fit", GOOD, key)).of(200)
    again = (await api.post(f"{path}/partial_fit", GOOD, key)).of(200)
    assert (again["sequence"], again["rows_seen"]) == (first["sequence"], 1)

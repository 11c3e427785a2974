"""Dead letters over HTTP: list, retry, discard, and what waiting clients are answered."""

from typing import Any

import pytest

from tests.gateway.api_client import REGRESSOR, WAIT, Api, eventually

COUNTS = {"estimator": "MultinomialNB", "classes": ["no", "yes"]}
INVALID, VALID = {"X": [[-1.0, 2.0]], "y": ["no"]}, {"X": [[1.0, 2.0]], "y": ["no"]}


async def model_with_dead_letters(api: Api, metadata: dict[str, Any], count: int = 1) -> str:
    """Create a model with `count` dead letters; return its path."""
    path = await api.make(metadata, COUNTS)
    for _ in range(count):
        (await api.post(f"{path}/partial_fit", INVALID, WAIT)).problem(422)
    return path


async def test_dead_letters_are_listed(api: Api, metadata: dict[str, Any]) -> None:
    """A dead letter is listed with its reason and rows; the description of the model is unchanged."""
    path = await model_with_dead_letters(api, metadata)
    await api.learn(path, **VALID)
    answer = (await api.get(f"{path}/dead")).of(200)
    model = await api.model(path)
    assert answer.keys() == {"hash", "version", "dead", "next"}
    assert (answer["hash"], answer["version"], answer["next"]) == (model["hash"], model["version"], None)
    (entry,) = answer["dead"]
    assert {name: entry[name] for name in ("sequence", "rows", "X", "y")} == {"sequence": 1, "rows": 1, **INVALID}
    assert "Negative values" in entry["reason"]
    assert entry["id"] == f"{entry['generation']}-1"
    assert entry["timestamp"] > 1e9
    fields = {"hash", "metadata", "recipe", "warnings", "version", "rows_seen", "metrics", "inbox", "snapshot"}
    assert (model.keys(), model["rows_seen"], model["inbox"]) == (fields, 1, 0)


async def test_dead_letters_are_listed_in_pages(api: Api, metadata: dict[str, Any]) -> None:
    """`limit` and `after` page through the list, oldest first."""
    path = await model_with_dead_letters(api, metadata, 3)
    first = (await api.get(f"{path}/dead", limit="2")).of(200)
    second = (await api.get(f"{path}/dead", limit="2", after=first["next"])).of(200)
    assert [entry["sequence"] for page in (first, second) for entry in page["dead"]] == [1, 2, 3]
    assert second["next"] is None


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "after=x", "after=-", "after=(1-1", "since=1", "limit=1&limit=1"]
)
async def test_invalid_query_parameters_are_rejected(api: Api, metadata: dict[str, Any], query: str) -> None:
    """Invalid, unknown and repeated query parameters answer 400."""
    path = await api.make(metadata, REGRESSOR)
    (await api.call("GET", f"{path}/dead?{query}")).problem(400)


async def test_a_retried_request_is_learned_at_once(api: Api, metadata: dict[str, Any]) -> None:
    """A retry answers 202 with the new sequence; workers are notified, and a second failure gets a new id."""
    path = await model_with_dead_letters(api, metadata, 2)
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

    async def put_aside_again() -> bool:
        listed = (await api.get(f"{path}/dead")).of(200)["dead"]
        return [entry["sequence"] for entry in listed] == [2, 3]

    await eventually(put_aside_again, "the second failure of the retried request")
    everything = (await api.post(f"{path}/dead/retry", {})).of(202)
    assert (everything["accepted"], everything["sequence"]) == (2, 5)


async def test_unknown_ids_are_reported(api: Api, metadata: dict[str, Any]) -> None:
    """An unknown id is reported; nothing is accepted, and the sequence is null."""
    path = await model_with_dead_letters(api, metadata)
    answer = (await api.post(f"{path}/dead/retry", {"ids": ["1-99"]})).of(202)
    assert (answer["accepted"], answer["sequence"], answer["left"]) == (0, None, 1)
    assert [rejected["id"] for rejected in answer["refused"]] == ["1-99"]


async def test_discarded_dead_letters_are_deleted(api: Api, metadata: dict[str, Any]) -> None:
    """A discard deletes the named dead letters, and counts each once."""
    path = await model_with_dead_letters(api, metadata, 2)
    first, second = (await api.get(f"{path}/dead")).of(200)["dead"]
    for count in (1, 0):
        answer = (await api.post(f"{path}/dead/discard", {"ids": [first["id"]]})).of(200)
        assert answer["discarded"] == count
    assert (await api.get(f"{path}/dead")).of(200)["dead"] == [second]


@pytest.mark.parametrize("call", ["retry", "discard"])
@pytest.mark.parametrize(
    "body", [{"ids": ["x"]}, {"ids": [1]}, {"ids": ["1-1"] * 129}, {"ids": "1-1"}, {"all": True}, []], ids=str
)
async def test_invalid_bodies_are_rejected(api: Api, metadata: dict[str, Any], call: str, body: Any) -> None:
    """A body that is not a list of valid ids answers 400."""
    path = await api.make(metadata, REGRESSOR)
    (await api.post(f"{path}/dead/{call}", body)).problem(400)


async def test_discard_requires_ids(api: Api, metadata: dict[str, Any]) -> None:
    """A discard without ids answers 400."""
    path = await api.make(metadata, REGRESSOR)
    for body in ({}, {"ids": []}, {"ids": None}):
        (await api.post(f"{path}/dead/discard", body)).problem(400)


async def test_a_missing_model_answers_404(api: Api) -> None:
    """A missing model answers 404."""
    path = f"/v1/models/{'0' * 64}"
    (await api.get(f"{path}/dead")).problem(404)
    (await api.post(f"{path}/dead/retry", {})).problem(404)
    (await api.post(f"{path}/dead/discard", {"ids": ["1-1"]})).problem(404)


async def test_dead_letters_are_counted(api: Api, metadata: dict[str, Any]) -> None:
    """Each request that is put aside adds one to the metric, whatever its model; learned ones add nothing."""

    async def counted() -> float:
        text = (await api.get("/metrics")).body.decode()
        return float(
            next(line for line in text.splitlines() if line.startswith("keepfit_requests_put_aside_total")).split()[1]
        )

    before = await counted()
    path, other = await api.make(metadata, COUNTS), await api.make({**metadata, "other": True}, COUNTS)
    for each in (path, other):
        await api.learn(each, **VALID)
        (await api.post(f"{each}/partial_fit", INVALID, {"Prefer": "wait=60"})).problem(422)
    assert await counted() == before + 2


async def test_a_repeat_of_rows_put_aside_answers_422_at_once(api: Api, metadata: dict[str, Any]) -> None:
    """A waiting repeat with the same key answers 422 at once, also after other rows were learned."""
    path = await api.make(metadata, COUNTS)
    key = {"Idempotency-Key": "rejected", "Prefer": "wait=60"}
    first = (await api.post(f"{path}/partial_fit", INVALID, key)).problem(422)
    await api.learn(path, **VALID)
    again = (await api.post(f"{path}/partial_fit", INVALID, key)).problem(422)
    assert again["detail"] == first["detail"]
    assert (await api.model(path))["rows_seen"] == 1


async def test_a_repeat_of_learned_rows_is_answered_although_others_were_put_aside(
    api: Api, metadata: dict[str, Any]
) -> None:
    """Dead letters of the model do not delay the answer for rows that were learned."""
    path = await model_with_dead_letters(api, metadata)
    key = {"Idempotency-Key": "learned", "Prefer": "wait=60"}
    first = (await api.post(f"{path}/partial_fit", VALID, key)).of(200)
    again = (await api.post(f"{path}/partial_fit", VALID, key)).of(200)
    assert (again["sequence"], again["rows_seen"]) == (first["sequence"], 1)

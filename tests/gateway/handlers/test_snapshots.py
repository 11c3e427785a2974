"""Snapshots over HTTP: create, list, restore."""

import asyncio
import time
import uuid
from typing import Any

import pytest

from keepfit.security.api_keys import ADMIN, READ
from keepfit.times import format_time
from keepfit_gateway.routes import ROUTES
from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import Api

SHOES = [{"make": "nike", "year": 2001}, {"make": "adidas", "year": 2003}]
HISTORY = {
    "type", "timestamp", "hash", "metadata", "generation", "version", "sequence", "rows_seen", "metrics", "uri",
    "sha256", "size_bytes", "runtime", "open_rows",
}  # fmt: skip


@pytest.fixture
async def saved(api: Api) -> tuple[str, list[Any]]:
    """Create a model with a snapshot of each of three versions; return its path and the predictions of each."""
    path = await api.make({"type": "shoes", "session": uuid.uuid4().hex}, SHOES_RECIPE)
    predictions = []
    for number in range(1, 4):
        await api.learn(path, SHOES, [float(number), 2.0])
        document = (await api.call("POST", f"{path}/snapshot")).of(201)
        assert document.keys() == HISTORY
        assert (document["version"], document["rows_seen"]) == (number, 2 * number)
        predictions.append((await api.predict(path, SHOES))["predictions"])
    return path, predictions


async def test_a_snapshot_is_created_and_listed(api: Api, saved: tuple[str, list[Any]]) -> None:
    """A snapshot answers with its history document, also if that version is already saved; all are listed."""
    path, _ = saved
    again = (await api.call("POST", f"{path}/snapshot")).of(201)
    listed = (await api.get(f"{path}/snapshots")).of(200)
    assert [one["version"] for one in listed["snapshots"]] == [3, 2, 1]
    assert (listed["snapshots"][0], listed["next"], listed["version"]) == (again, None, 3)
    assert path.endswith(listed["hash"])
    assert (await api.model(path))["snapshot"]["sha256"] == again["sha256"]
    first = (await api.get(f"{path}/snapshots", limit="2")).of(200)
    rest = (await api.get(f"{path}/snapshots", limit="2", after=first["next"])).of(200)
    assert first["snapshots"] + rest["snapshots"] == listed["snapshots"]
    assert rest["next"] is None


async def test_an_older_version_is_restored(api: Api, saved: tuple[str, list[Any]]) -> None:
    """A live model is rewound to the named version, with its state and predictions, and learns on from there."""
    path, predictions = saved
    answer = (await api.post(f"{path}/restore", {"version": 1})).of(200)
    assert (answer["version"], answer["rows_seen"], answer["sequence"], answer["rows_forgotten"]) == (1, 2, 1, 4)
    assert (answer["restored"], answer["damaged"], answer["snapshot"]["version"]) == (True, 0, 1)
    predicted = await api.predict(path, SHOES)
    assert (predicted["predictions"], predicted["version"]) == (predictions[0], 1)
    described = await api.model(path)
    assert (described["version"], described["rows_seen"], described["inbox"]) == (1, 2, 0)
    assert described["snapshot"]["version"] == 1
    again = (await api.post(f"{path}/restore", {"version": 1})).of(200)
    assert (again["restored"], again["generation"]) == (False, answer["generation"])
    learned = await api.learn(path, SHOES, [2.0, 2.0])
    assert (learned["version"], learned["rows_seen"], learned["sequence"]) == (2, 4, 4)
    # With the same rows in the same order the result is the same as before the rewind.
    assert (await api.predict(path, SHOES))["predictions"] == predictions[1]


async def test_a_snapshot_is_restored_by_time(api: Api, saved: tuple[str, list[Any]]) -> None:
    """The newest snapshot not later than a time is restored; a time before all snapshots answers 404."""
    path, predictions = saved
    times = [one["timestamp"] for one in (await api.get(f"{path}/snapshots")).of(200)["snapshots"]]
    answer = (await api.post(f"{path}/restore", {"at": times[1]})).of(200)
    assert answer["version"] == 2
    for number, at in zip((3, 2, 1), times, strict=True):
        assert (await api.post(f"{path}/restore", {"at": format_time(at)})).of(200)["version"] == number
    assert (await api.post(f"{path}/restore", {"at": times[1]})).of(200)["version"] == 2
    assert (await api.predict(path, SHOES))["predictions"] == predictions[1]
    (await api.post(f"{path}/restore", {"at": "2001-01-01T12:00:00Z"})).problem(404)
    (await api.post(f"{path}/restore", {"version": 77})).problem(404)
    for future in ("tomorrow", time.time() + 3600):
        detail = (await api.post(f"{path}/restore", {"at": future})).problem(422)["detail"]
        assert "is in the future: it means 20" in detail
    assert (await api.model(path))["version"] == 2


async def test_a_restore_without_a_version_keeps_newer_rows(api: Api, saved: tuple[str, list[Any]]) -> None:
    """A restore without version or time keeps a live model, and answers 409 if it has learned since its snapshot."""
    path, _ = saved
    same = (await api.call("POST", f"{path}/restore")).of(200)
    assert (same["restored"], same["version"]) == (False, 3)
    await api.learn(path, SHOES, [9.0, 9.0])
    problem = (await api.post(f"{path}/restore", {})).problem(409)
    assert "name the version or time" in problem["detail"]
    assert (await api.model(path))["version"] == 4


async def test_rows_accepted_during_a_rewind_are_learned_once(api: Api, saved: tuple[str, list[Any]]) -> None:
    """Every request accepted around a rewind is learned before or after it; a repeated key learns nothing twice."""
    path, _ = saved
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"X": SHOES, "y": [1.0, 2.0]}
    first = (await api.post(f"{path}/partial_fit", body, key)).of(202)

    async def learn() -> int:
        accepted: dict[str, Any] = (await api.post(f"{path}/partial_fit", body)).of(202)
        return int(accepted["sequence"])

    sequences, *_ = await asyncio.gather(
        asyncio.gather(*(learn() for _ in range(20))),
        *(api.post(f"{path}/restore", {"version": version}) for version in (1, 2)),
    )
    assert (await api.post(f"{path}/partial_fit", body, key)).of(202)["sequence"] == first["sequence"]
    assert sorted(sequences) == list(range(first["sequence"] + 1, first["sequence"] + 21))
    last = await api.learn(path, SHOES, [1.0, 2.0])
    assert last["sequence"] == first["sequence"] + 21
    described = await api.model(path)
    assert described["inbox"] == 0
    assert (await api.get(f"{path}/dead")).of(200)["dead"] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [({"version": 0}, 400), ({"version": "1"}, 400), ({"at": "yesterday, perhaps"}, 400), ({"when": 1}, 400)],
    ids=["zero", "text", "no time", "unknown"],
)
async def test_invalid_restore_forms_are_rejected(api: Api, body: Any, status: int) -> None:
    """An invalid version or time answers 400, before the model is looked up."""
    (await api.post(f"/v1/models/{'0' * 64}/restore", body)).problem(status)


async def test_unknown_models_and_invalid_pages(api: Api) -> None:
    """A missing model answers 404, and a model without rows 409 for a snapshot."""
    for method, call in (("POST", "snapshot"), ("GET", "snapshots"), ("POST", "restore")):
        (await api.call(method, f"/v1/models/{'0' * 64}/{call}")).problem(404)
    path = await api.make({"type": "shoes", "session": uuid.uuid4().hex}, SHOES_RECIPE)
    (await api.call("POST", f"{path}/snapshot")).problem(409)
    assert (await api.get(f"{path}/snapshots")).of(200)["snapshots"] == []
    for wrong in ({"limit": "0"}, {"after": "x"}, {"other": "1"}):
        (await api.get(f"{path}/snapshots", **wrong)).problem(400)


def test_scopes_of_snapshot_routes() -> None:
    """Creating and restoring need the scope `admin`, listing needs `read`."""
    scopes = {
        (r.method, r.path.rpartition("/")[2]): r.needs for r in ROUTES if "snapshot" in r.path or "restore" in r.path
    }
    assert scopes == {("POST", "snapshot"): ADMIN, ("GET", "snapshots"): READ, ("POST", "restore"): ADMIN}

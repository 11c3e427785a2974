"""The registry and the history of snapshots on a real MongoDB server."""

import asyncio
import itertools
import json
import re
import time
import uuid
from typing import Any

import pytest
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from keepfit import conditions
from keepfit.errors import SettingsError, UnavailableError
from keepfit.history import Document, Registry, mongo
from keepfit.identity import canonical, hash_of
from keepfit.local.servers import free_port

RECIPE = '{"estimator":"SGDRegressor"}'
AT_ONCE = 20


async def register(registry: Registry, **metadata: Any) -> str:
    """Register a model of type shoes with this metadata; return its hash."""
    named = {"type": "shoes", **metadata}
    model_hash = hash_of(named)
    await registry.register(model_hash, canonical(named).decode(), RECIPE)
    return model_hash


def document(model_hash: str = "ab" * 32, generation: int = 1, version: int = 1, **changes: Any) -> Document:
    """Return a history document as a snapshotter builds it."""
    return {
        "type": "shoes",
        "timestamp": time.time(),
        "hash": model_hash,
        "metadata": {"type": "shoes", "brand": "nike"},
        "generation": generation,
        "version": version,
        "sequence": version,
        "rows_seen": 10 * version,
        "metrics": {"mean_absolute_error": 0.5, "rows": 9},
        "sha256": uuid.uuid4().hex,
        "size_bytes": 1234,
        "runtime": {"python": "3.11.7"},
        "uri": "file:///snapshots/x",
        **changes,
    }


async def commit(registry: Registry, **fields: Any) -> Document:
    """Write and commit the intent of a document; return the document."""
    made = document(**fields)
    assert await registry.write_intent(made) is None
    assert await registry.commit(made)
    return made


async def versions(registry: Registry, model_hash: str = "ab" * 32, **limits: Any) -> list[tuple[int, int]]:
    """Return (generation, version) of a model's committed snapshots, in the order of the registry."""
    return [(found["generation"], found["version"]) async for found in registry.snapshots(model_hash, **limits)]


async def test_the_first_registration_creates_the_model(registry: Registry) -> None:
    """The first registration creates the entry, with generation 1, metadata and recipe."""
    text = '{"brand":"nike","type":"shoes"}'
    made, created = await registry.register("h1", text, RECIPE)
    assert created
    assert (made.hash, made.metadata_text, made.recipe_text, made.generation, made.born) == ("h1", text, RECIPE, 1, 1)
    assert made.metadata == {"brand": "nike", "type": "shoes"}
    assert await registry.find("h1") == made


async def test_a_second_registration_returns_the_first(registry: Registry) -> None:
    """Registering a model again changes nothing and returns the existing entry with its recipe."""
    first, _ = await registry.register("h1", '{"type":"shoes"}', RECIPE)
    again, created = await registry.register("h1", '{"type":"shoes"}', '{"estimator":"Perceptron"}')
    assert again == first
    assert not created


async def test_an_unknown_model_has_no_entry(registry: Registry) -> None:
    """An unknown hash has no entry and no next generation, and cannot be unregistered."""
    assert await registry.find("h1") is None
    assert await registry.next_generation("h1", 1) is None
    assert not await registry.unregister("h1")


async def test_an_unregistered_model_has_no_entry(registry: Registry) -> None:
    """unregister returns True once; then the model has no entry and no next generation, and no list contains it."""
    await registry.register("h1", '{"type":"shoes"}', RECIPE)
    assert await registry.unregister("h1")
    assert not await registry.unregister("h1")
    assert await registry.find("h1") is None
    assert await registry.next_generation("h1", 1) is None
    assert await registry.models({}, 10) == []


async def test_a_model_created_again_starts_a_new_generation(registry: Registry) -> None:
    """A model created again has the new recipe and a generation above all that were allocated for its hash."""
    await registry.register("h1", '{"type":"shoes"}', RECIPE)
    assert await registry.next_generation("h1", 1) == 2
    await registry.unregister("h1")
    again, created = await registry.register("h1", '{"type":"shoes"}', '{"estimator":"Perceptron"}')
    assert created
    assert (again.generation, again.born, again.recipe_text) == (3, 3, '{"estimator":"Perceptron"}')
    assert await registry.next_generation("h1", 3) == 4
    found = await registry.find("h1")
    assert found is not None
    assert (found.generation, found.born) == (4, 3)


@pytest.mark.parametrize("deleted_before", [False, True])
async def test_one_of_many_concurrent_registrations_creates_the_model(registry: Registry, deleted_before: bool) -> None:
    """Of concurrent registrations of a hash, new or deleted, one creates it, and all return the same entry."""
    if deleted_before:
        await registry.register("h1", '{"type":"shoes"}', RECIPE)
        await registry.unregister("h1")
    answers = await asyncio.gather(*(registry.register("h1", '{"type":"shoes"}', RECIPE) for _ in range(AT_ONCE)))
    assert sum(made for _, made in answers) == 1
    assert {(entry.generation, entry.born) for entry, _ in answers} == ({(2, 2)} if deleted_before else {(1, 1)})


async def test_a_generation_is_allocated_once(registry: Registry) -> None:
    """Concurrently allocated generations are all different and without gaps."""
    await registry.register("h1", '{"type":"shoes"}', RECIPE)
    allocated = await asyncio.gather(*(registry.next_generation("h1", 1) for _ in range(AT_ONCE)))
    assert sorted(filter(None, allocated)) == list(range(2, AT_ONCE + 2))


async def test_a_deleted_predecessor_gets_no_generation(registry: Registry) -> None:
    """next_generation returns None if the model was created again since `born`."""
    await registry.register("h1", '{"type":"shoes"}', RECIPE)
    await registry.unregister("h1")
    await registry.register("h1", '{"type":"shoes"}', RECIPE)
    assert await registry.next_generation("h1", 1) is None


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, {"string", "number", "float", "true", "other"}),
        ({"year": "2001"}, {"string", "number"}),
        ({"year": "2001.0"}, {"number"}),
        ({"year": "2001.5"}, {"float"}),
        ({"year": "2.001e3"}, {"number"}),
        ({"year": "true"}, {"true"}),
        ({"year": "1"}, set()),
        ({"year": "null"}, set()),
        ({"brand": "nike"}, {"string", "number", "float"}),
        ({"brand": "nike", "year": "2001"}, {"string", "number"}),
        ({"brand": "puma", "year": "2001"}, set()),
        ({"brand": "nik"}, set()),
        ({"brand": "NIKE"}, set()),
        ({"name": "other", "type": "shoes"}, {"other"}),
        ({"type": "boots"}, set()),
    ],
)
async def test_filters_compare_possible_values_of_their_text(
    registry: Registry, filters: dict[str, str], found: set[str]
) -> None:
    """A filter matches the whole string, number or boolean that its text may stand for, and all filters must match."""
    for name, year in {"string": "2001", "number": 2001, "float": 2001.5}.items():
        await register(registry, name=name, year=year, brand="nike")
    await register(registry, name="true", year=True, brand="puma")
    await register(registry, name="other", year=None, brand=["nike"], nested={"year": 2001})
    assert {entry.metadata["name"] for entry in await registry.models(filters, 100)} == found


async def test_conditions_of_keys_match_as_filters_do(registry: Registry) -> None:
    """MongoDB and Python find the same models by each condition, and a condition restricts every other filter."""
    years: list[Any] = ["2001", 2001, 2001.5, True, False, "true", 1, 0, -0.0, "", "null", None, [2001], {"a": 1}, 1e16]
    for name, year in enumerate(years):
        await register(registry, name=name, year=year, brand=("nike", "puma")[name % 2])
    everything = await registry.models({}, 100)
    assert len(everything) == len(years)
    for text in ("2001", "2001.5", "true", "false", "1", "0", "", "null", "1e16", "10000000000000000", "[2001]"):
        where = conditions.parse([f"year={text}"])
        expected = [entry for entry in everything if conditions.matches(entry.metadata, where)]
        assert await registry.models({}, 100, where=where) == await registry.models({"year": text}, 100) == expected
        assert await registry.hashes(where=where) == [entry.hash for entry in expected]
    either = conditions.parse(["year=2001", "year=true", "brand=nike"])
    found = await registry.models({"year": "true"}, 100, where=either)
    assert [entry.metadata["year"] for entry in found if entry.metadata["brand"] == "nike"] == [
        entry.metadata["year"] for entry in found
    ]
    assert {str(entry.metadata["year"]) for entry in await registry.models({}, 100, where=either)} <= {"2001", "True"}
    assert await registry.models({"brand": "puma"}, 100, where=either) == []


@pytest.mark.parametrize(
    "filters",
    [
        {"brand": '{"$ne": null}'},
        {"brand": '{"$exists": true}'},
        {"brand": '{"$regex": ".*"}'},
        {"brand": "/.*/"},
        {"brand[$ne]": "x"},
        {"$where": "true"},
        {"$or": '[{"type": "shoes"}]'},
        {"labels.k": "brand"},
        {"labels.v": "nike"},
        {"_id": "x"},
        {"deleted": "false"},
        {"generation": "1"},
        {"": ""},
        {"brand": "NaN"},
        {"brand": "-Infinity"},
        {"brand": "1e999"},
        {"brand": "9" * 5000},
        {"brand": "[" * 100_000},
        {"brand": "\0"},
    ],
)
async def test_filters_are_never_interpreted(registry: Registry, filters: dict[str, str]) -> None:
    """Operators, paths and out-of-range numbers are compared as values, and match no model here."""
    await register(registry, brand="nike")
    assert await registry.models(filters, 100) == []


async def test_pages_contain_every_model_once(registry: Registry) -> None:
    """Continuing after the last hash of each page returns all models that are not deleted, ordered by hash."""
    hashes = sorted([await register(registry, number=number) for number in range(25)])
    await registry.unregister(hashes.pop(12))
    pages: list[list[str]] = []
    after = ""
    while page := await registry.models({"type": "shoes"}, 10, after):
        pages.append([entry.hash for entry in page])
        after = pages[-1][-1]
    assert [len(page) for page in pages] == [10, 10, 4]
    assert list(itertools.chain.from_iterable(pages)) == hashes


async def test_only_committed_documents_are_listed(registry: Registry, database: Database[Document]) -> None:
    """An intent is in no list until it is committed; then it is returned as written, without internal fields."""
    made = document()
    assert await registry.write_intent(made) is None
    assert await registry.documents() == []
    assert await registry.newest("ab" * 32, 0) is None
    assert database.history.count_documents({"status": "pending"}) == 1
    assert await registry.commit(made)
    assert await registry.documents() == [made]
    assert await registry.newest("ab" * 32, 0) == made


async def test_metadata_is_returned_as_it_was(registry: Registry) -> None:
    """Nested metadata, with keys that are special in MongoDB, is returned unchanged."""
    metadata = {"type": "shoes", "sizes": [1, 2.5, None, True], "a$b": {"c": {"d": "é"}}, "_id": 7}
    await commit(registry, metadata=metadata)
    (found,) = await registry.documents()
    assert found["metadata"] == metadata


async def test_a_corrupt_snapshot_is_not_listed(registry: Registry, database: Database[Document]) -> None:
    """A document marked corrupt stays in the database and is in no list; other documents stay listed."""
    await commit(registry, version=1)
    damaged = await commit(registry, version=2)
    await registry.mark_corrupt(damaged)
    assert await versions(registry) == [(1, 1)]
    assert [found["version"] for found in await registry.documents()] == [1]
    assert database.history.count_documents({"status": "corrupt", "version": 2}) == 1


async def test_a_corrupt_snapshot_can_be_saved_again(registry: Registry) -> None:
    """Saving the same version of the same model replaces a document that was marked corrupt."""
    damaged = await commit(registry, version=2)
    await registry.mark_corrupt(damaged)
    again = await commit(registry, version=2)
    assert await registry.newest("ab" * 32, 0) == again


async def test_a_version_is_committed_once(registry: Registry, database: Database[Document]) -> None:
    """A second intent for a committed version returns its document; an index refuses a second document."""
    first = await commit(registry, version=3)
    assert await registry.write_intent(document(version=3)) == first
    assert await registry.documents() == [first]
    key = {"hash": first["hash"], "generation": 1, "version": 3}
    with pytest.raises(DuplicateKeyError):
        database.history.insert_one({**key, "status": "pending"})
    for other in ({"generation": 2}, {"version": 4}, {"hash": "other"}):
        database.history.insert_one({**key, **other})


async def test_a_second_snapshotter_replaces_an_intent(registry: Registry, database: Database[Document]) -> None:
    """Of two intents for the same version the later one is valid: the commit of the earlier one changes nothing."""
    content = uuid.uuid4().hex
    first, second = document(sha256=content), document(sha256=content)
    assert await registry.write_intent(first) is None
    assert await registry.write_intent(second) is None
    assert not await registry.commit(first)
    assert await registry.documents() == []
    assert await registry.commit(second)
    assert await registry.documents() == [second]
    assert database.history.count_documents({}) == 1


async def test_an_intent_inserted_concurrently_is_replaced(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """MongoDB refuses one of two concurrent upserts; no snapshot is committed then, and the intent is replaced."""
    made = document()
    key = {name: made[name] for name in ("hash", "generation", "version")}
    update_one = registry._history.update_one

    async def refused_once(*args: Any, **kwargs: Any) -> None:
        monkeypatch.undo()
        await update_one(key, {"$set": {"status": "pending"}}, upsert=True)
        raise DuplicateKeyError("E11000 duplicate key error")

    monkeypatch.setattr(registry._history, "update_one", refused_once)
    assert await registry.write_intent(made) is None
    assert await registry.commit(made)
    assert await registry.documents() == [made]


async def test_one_of_many_concurrent_snapshotters_commits(registry: Registry) -> None:
    """Of concurrent intents and commits of the same version one commit succeeds, and one document exists."""
    content = uuid.uuid4().hex
    made = [document(sha256=content, timestamp=float(number)) for number in range(AT_ONCE)]
    assert await asyncio.gather(*map(registry.write_intent, made)) == [None] * AT_ONCE
    assert sum(await asyncio.gather(*map(registry.commit, made))) == 1
    assert len(await registry.documents()) == 1


async def test_the_newest_is_the_highest_generation_and_version(registry: Registry) -> None:
    """Snapshots are ordered by generation, then version, regardless of their timestamps."""
    for number, (generation, version) in enumerate([(2, 3), (1, 9), (2, 10), (3, 1), (1, 10)]):
        await commit(registry, generation=generation, version=version, timestamp=1000.0 - number)
    assert await versions(registry) == [(3, 1), (2, 10), (2, 3), (1, 10), (1, 9)]
    newest = await registry.newest("ab" * 32, 0)
    assert newest is not None
    assert (newest["generation"], newest["version"]) == (3, 1)


async def test_a_snapshot_of_exactly_that_time_is_the_newest(registry: Registry) -> None:
    """With the time of a snapshot as `at` that snapshot is returned, also if a newer version has an earlier time."""
    for version, at in ((1, 100.25), (2, 100.75), (3, 100.5)):
        await commit(registry, version=version, timestamp=at)
    for at, expected in ((100.25, 1), (100.75, 2), (100.5, 3), (100.6, 3), (200.0, 3), (100.4, 1)):
        newest = await registry.newest("ab" * 32, 0, at=at)
        assert newest is not None
        assert (at, newest["version"]) == (at, expected)
    assert (await registry.newest("ab" * 32, 0, at=100.75, version=1) or {})["version"] == 1
    assert await registry.newest("ab" * 32, 2, at=100.75) is None


async def test_snapshots_not_later_than_a_time(registry: Registry) -> None:
    """With `at`, only snapshots of that time or earlier are returned, newest first."""
    for version in (1, 2, 3):
        await commit(registry, version=version, timestamp=100.0 * version)
    assert await versions(registry, at=200.0) == [(1, 2), (1, 1)]
    assert await versions(registry, at=199.9) == [(1, 1)]
    assert await versions(registry, at=99.9) == []
    newest = await registry.newest("ab" * 32, 0, at=299.9)
    assert newest is not None
    assert newest["version"] == 2


async def test_snapshots_of_a_deleted_predecessor_are_hidden(registry: Registry) -> None:
    """With `born`, snapshots of earlier generations are left out; without it they are returned."""
    for generation in (1, 2, 3):
        await commit(registry, generation=generation, version=5)
    assert await versions(registry, born=3) == [(3, 5)]
    assert await registry.newest("ab" * 32, 4) is None
    assert await versions(registry) == [(3, 5), (2, 5), (1, 5)]


async def test_a_long_history_is_read_completely(registry: Registry, database: Database[Document]) -> None:
    """More snapshots than one batch of the driver are all returned in order; a limit returns the first ones."""
    database.history.insert_many(
        {**document(version=version), "metadata": "{}", "status": "committed"} for version in range(300)
    )
    assert await versions(registry) == [(1, version) for version in reversed(range(300))]
    assert await versions(registry, limit=2) == [(1, 299), (1, 298)]


async def test_documents_are_listed_newest_first(registry: Registry) -> None:
    """Documents are ordered by time, filtered by type and model, and limited."""
    for number in range(6):
        type_ = "boots" if number % 2 else "shoes"
        await commit(registry, model_hash=f"h{number % 3}", version=number, type=type_, timestamp=float(number))

    async def listed(*args: Any) -> list[int]:
        return [found["version"] for found in await registry.documents(*args)]

    assert await listed() == [5, 4, 3, 2, 1, 0]
    assert await listed("boots") == [5, 3, 1]
    assert await listed(None, "h1") == [4, 1]
    assert await listed("shoes", "h1") == [4]
    assert await listed(None, None, 2) == [5, 4]
    assert await listed("hats") == []


async def test_an_outage_is_an_error_after_keepfits_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MongoDB, reading and writing raise UnavailableError after keepfit's time limit, not the driver's."""
    monkeypatch.setattr(mongo, "CALL_TIMEOUT_MS", 200)
    async with Registry(f"mongodb://127.0.0.1:{free_port()}/keepfit") as offline:
        answers = await asyncio.gather(offline.ping(), offline.write_intent(document()), return_exceptions=True)
    assert [type(answer) for answer in answers] == [UnavailableError] * 2
    # The driver names the time that it waited for a server.
    waited = [re.search(r"Timeout: ([0-9.]+)s", str(answer.__cause__)) for answer in answers]
    assert all(found and float(found[1]) <= 0.2 for found in waited)


async def test_every_call_raises_unavailable_error_in_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call raises an error of the driver; the message names the address that did not answer."""
    monkeypatch.setattr(mongo, "CALL_TIMEOUT_MS", 50)
    port, made = free_port(), document()
    async with Registry(f"mongodb://127.0.0.1:{port}/keepfit") as offline:
        calls = (
            offline.ping(),
            offline.ensure_indexes(),
            offline.register("h1", '{"type":"shoes"}', RECIPE),
            offline.find("h1"),
            offline.unregister("h1"),
            offline.next_generation("h1", 1),
            offline.models({}, 10),
            offline.write_intent(made),
            offline.commit(made),
            offline.mark_corrupt(made),
            offline.newest("h1", 0),
            offline.documents(),
        )
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [UnavailableError] * len(calls)
    assert {f"127.0.0.1:{port}" in str(answer) for answer in answers} == {True}


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x", "mongodb://", "mongodb://u:hunter2@[", "mongodb://u:hunter2@h:x"]
)
def test_an_invalid_url_is_a_settings_error(url: str) -> None:
    """The error of an invalid URL names the variable and does not contain the password."""
    with pytest.raises(SettingsError, match="KEEPFIT_MONGO_URL cannot be used") as caught:
        Registry(url)
    assert "hunter2" not in str(caught.value)


async def test_indexes_are_created_once(registry: Registry, database: Database[Document]) -> None:
    """Concurrent starts create the same indexes, one of which keeps versions unique."""
    await asyncio.gather(*(registry.ensure_indexes() for _ in range(4)))
    of_history = {tuple(index["key"]): index for index in database.history.index_information().values()}
    assert of_history[("hash", 1), ("generation", -1), ("version", -1)]["unique"]
    assert of_history.keys() == {
        (("_id", 1),),
        (("hash", 1), ("generation", -1), ("version", -1)),
        (("hash", 1), ("timestamp", -1)),
        (("type", 1), ("timestamp", -1)),
        (("timestamp", -1),),
    }
    of_models = [index["key"] for index in database.models.index_information().values()]
    assert [("labels.k", 1), ("labels.v", 1), ("_id", 1)] in of_models


async def test_queries_of_the_history_use_indexes(registry: Registry, database: Database[Document]) -> None:
    """The server plans an index scan for the snapshots of a model, for one of them, and for those of a type.

    The condition on the status is left out: the plan of this server names an index only if it has every field.
    """
    database.history.insert_many(
        {**document(version=version), "metadata": "{}", "status": "committed"} for version in range(50)
    )
    of_model = {"hash": "ab" * 32, "generation": {"$gte": 0}}
    for found in (
        database.history.find(of_model).sort([("generation", -1), ("version", -1)]),
        database.history.find({"hash": "ab" * 32, "generation": 1, "version": 7}),
        database.history.find({"type": "shoes"}).sort("timestamp", -1),
    ):
        assert "IXSCAN" in json.dumps(found.explain()["queryPlanner"]["winningPlan"])


async def test_models_can_be_registered_while_indexes_are_built(mongo_url: str) -> None:
    """A gateway can register models immediately after its start, while the indexes are being built."""
    for number in range(10):
        async with Registry(f"{mongo_url}{number}") as registry, asyncio.timeout(30):
            made = await asyncio.gather(
                registry.ensure_indexes(), *(registry.register(digit * 64, '{"type":"shoes"}', "{}") for digit in "ab")
            )
            assert [registered.hash[0] for registered, _ in made[1:]] == ["a", "b"]

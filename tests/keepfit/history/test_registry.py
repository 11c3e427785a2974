"""Register and history on a real MongoDB-wire server."""

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pymongo
import pytest
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from keepfit.errors import SettingsError, UnavailableError
from keepfit.history import Document, Registry, mongo
from keepfit.identity import canonical, hash_of
from keepfit.local.servers import free_port

RECIPE = '{"estimator":"SGDRegressor"}'
AT_ONCE = 20


@pytest.fixture
async def history(mongo_url: str) -> AsyncIterator[Registry]:
    """Open an empty register and history, indexes made."""
    async with Registry(mongo_url) as opened:
        await opened.ensure_indexes()
        yield opened


@pytest.fixture
def database(mongo_url: str) -> Iterator[Database[Document]]:
    """Open the same database past keepfit, to look at what it stores."""
    with pymongo.MongoClient[Document](mongo_url) as client:
        yield client.get_default_database()


async def register(history: Registry, **metadata: Any) -> str:
    """Register a model by its metadata; return its hash."""
    named = {"type": "shoes", **metadata}
    model_hash = hash_of(named)
    await history.register(model_hash, canonical(named).decode(), RECIPE)
    return model_hash


def document(model_hash: str = "ab" * 32, generation: int = 1, version: int = 1, **changes: Any) -> Document:
    """Build a history document as a snapshotter does."""
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


async def commit(history: Registry, **parts: Any) -> Document:
    """Begin and commit a document; return it."""
    made = document(**parts)
    assert await history.write_intent(made) is None
    assert await history.commit(made)
    return made


async def versions(history: Registry, model_hash: str = "ab" * 32, **limits: Any) -> list[tuple[int, int]]:
    """(generation, version) of a model's committed snapshots, in the history's order."""
    return [(found["generation"], found["version"]) async for found in history.snapshots(model_hash, **limits)]


async def test_the_first_registration_makes_the_model(history: Registry) -> None:
    """A model is made once, with generation 1, and found with what it was made of."""
    text = '{"brand":"nike","type":"shoes"}'
    made, was_made = await history.register("h1", text, RECIPE)
    assert was_made
    assert (made.hash, made.metadata_text, made.recipe_text, made.generation, made.born) == ("h1", text, RECIPE, 1, 1)
    assert made.metadata == {"brand": "nike", "type": "shoes"}
    assert await history.find("h1") == made


async def test_a_second_registration_finds_the_first(history: Registry) -> None:
    """Registering again changes nothing and gives the recipe that the model has."""
    first, _ = await history.register("h1", '{"type":"shoes"}', RECIPE)
    again, was_made = await history.register("h1", '{"type":"shoes"}', '{"estimator":"Perceptron"}')
    assert again == first
    assert not was_made


async def test_a_model_nobody_registered_is_none(history: Registry) -> None:
    """An unknown hash has no entry, no generation, and cannot be unregistered."""
    assert await history.find("h1") is None
    assert await history.next_generation("h1", 1) is None
    assert not await history.unregister("h1")


async def test_an_unregistered_model_is_gone(history: Registry) -> None:
    """Unregistering tells once that the model was there; then it has no entry, no generation, no place in lists."""
    await history.register("h1", '{"type":"shoes"}', RECIPE)
    assert await history.unregister("h1")
    assert not await history.unregister("h1")
    assert await history.find("h1") is None
    assert await history.next_generation("h1", 1) is None
    assert await history.models({}, 10) == []


async def test_a_model_made_again_is_born_in_a_new_generation(history: Registry) -> None:
    """Made again, a model has the new recipe and a generation above all that were ever given out for its hash."""
    await history.register("h1", '{"type":"shoes"}', RECIPE)
    assert await history.next_generation("h1", 1) == 2
    await history.unregister("h1")
    again, was_made = await history.register("h1", '{"type":"shoes"}', '{"estimator":"Perceptron"}')
    assert was_made
    assert (again.generation, again.born, again.recipe_text) == (3, 3, '{"estimator":"Perceptron"}')
    assert await history.next_generation("h1", 3) == 4
    found = await history.find("h1")
    assert found is not None
    assert (found.generation, found.born) == (4, 3)


@pytest.mark.parametrize("deleted_before", [False, True])
async def test_of_many_registrations_at_once_one_makes_the_model(history: Registry, deleted_before: bool) -> None:
    """However many register one hash at once, new or deleted before, exactly one made it and all see the same entry."""
    if deleted_before:
        await history.register("h1", '{"type":"shoes"}', RECIPE)
        await history.unregister("h1")
    answers = await asyncio.gather(*(history.register("h1", '{"type":"shoes"}', RECIPE) for _ in range(AT_ONCE)))
    assert sum(made for _, made in answers) == 1
    assert {(entry.generation, entry.born) for entry, _ in answers} == ({(2, 2)} if deleted_before else {(1, 1)})


async def test_a_generation_is_given_out_once(history: Registry) -> None:
    """Generations asked for at once are all different, and come without a gap."""
    await history.register("h1", '{"type":"shoes"}', RECIPE)
    given = await asyncio.gather(*(history.next_generation("h1", 1) for _ in range(AT_ONCE)))
    assert sorted(filter(None, given)) == list(range(2, AT_ONCE + 2))


async def test_a_restore_of_a_deleted_predecessor_gets_no_generation(history: Registry) -> None:
    """Who knows the model from before it was made again cannot take a generation of the new one."""
    await history.register("h1", '{"type":"shoes"}', RECIPE)
    await history.unregister("h1")
    await history.register("h1", '{"type":"shoes"}', RECIPE)
    assert await history.next_generation("h1", 1) is None


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
async def test_filters_compare_what_their_text_means(
    history: Registry, filters: dict[str, str], found: set[str]
) -> None:
    """A filter's text finds the string, number or boolean that it may mean, whole, and all filters must hold."""
    for name, year in {"string": "2001", "number": 2001, "float": 2001.5}.items():
        await register(history, name=name, year=year, brand="nike")
    await register(history, name="true", year=True, brand="puma")
    await register(history, name="other", year=None, brand=["nike"], nested={"year": 2001})
    assert {entry.metadata["name"] for entry in await history.models(filters, 100)} == found


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
async def test_filters_are_never_interpreted(history: Registry, filters: dict[str, str]) -> None:
    """Operators, paths and numbers beyond all bounds are values like any other, and this model does not have them."""
    await register(history, brand="nike")
    assert await history.models(filters, 100) == []


async def test_pages_hold_every_model_once(history: Registry) -> None:
    """Going on after the last hash of each page visits all models that are not deleted, in order of their hashes."""
    hashes = sorted([await register(history, number=number) for number in range(25)])
    await history.unregister(hashes.pop(12))
    pages: list[list[str]] = []
    after = ""
    while page := await history.models({"type": "shoes"}, 10, after):
        pages.append([entry.hash for entry in page])
        after = pages[-1][-1]
    assert [len(page) for page in pages] == [10, 10, 4]
    assert list(itertools.chain.from_iterable(pages)) == hashes


async def test_only_committed_documents_are_shown(history: Registry, database: Database[Document]) -> None:
    """An intent is in no list until it is committed, and then it is shown as it was given, without bookkeeping."""
    made = document()
    assert await history.write_intent(made) is None
    assert await history.documents() == []
    assert await history.newest("ab" * 32, 0) is None
    assert database.history.count_documents({"status": "pending"}) == 1
    assert await history.commit(made)
    assert await history.documents() == [made]
    assert await history.newest("ab" * 32, 0) == made


async def test_metadata_of_any_form_is_given_back(history: Registry) -> None:
    """Nested metadata, with keys that mean something to MongoDB elsewhere, comes back as it was."""
    metadata = {"type": "shoes", "sizes": [1, 2.5, None, True], "a$b": {"c": {"d": "é"}}, "_id": 7}
    await commit(history, metadata=metadata)
    (found,) = await history.documents()
    assert found["metadata"] == metadata


async def test_a_corrupt_snapshot_is_shown_no_more(history: Registry, database: Database[Document]) -> None:
    """A document marked corrupt stays in the database and leaves every list; its neighbours stay."""
    await commit(history, version=1)
    damaged = await commit(history, version=2)
    await history.mark_corrupt(damaged)
    assert await versions(history) == [(1, 1)]
    assert [found["version"] for found in await history.documents()] == [1]
    assert database.history.count_documents({"status": "corrupt", "version": 2}) == 1


async def test_a_corrupt_snapshot_may_be_saved_again(history: Registry) -> None:
    """The same version of the same model replaces a document that was marked corrupt."""
    damaged = await commit(history, version=2)
    await history.mark_corrupt(damaged)
    again = await commit(history, version=2)
    assert await history.newest("ab" * 32, 0) == again


async def test_a_version_is_committed_once(history: Registry, database: Database[Document]) -> None:
    """A second intent for a committed version is told what is there; the database itself refuses a second document."""
    first = await commit(history, version=3)
    assert await history.write_intent(document(version=3)) == first
    assert await history.documents() == [first]
    key = {"hash": first["hash"], "generation": 1, "version": 3}
    with pytest.raises(DuplicateKeyError):
        database.history.insert_one({**key, "status": "pending"})
    for other in ({"generation": 2}, {"version": 4}, {"hash": "other"}):
        database.history.insert_one({**key, **other})


async def test_a_second_snapshotter_takes_an_intent_over(history: Registry, database: Database[Document]) -> None:
    """Of two that began the same version the later one owns it: the earlier one's commit changes nothing."""
    content = uuid.uuid4().hex
    first, second = document(sha256=content), document(sha256=content)
    assert await history.write_intent(first) is None
    assert await history.write_intent(second) is None
    assert not await history.commit(first)
    assert await history.documents() == []
    assert await history.commit(second)
    assert await history.documents() == [second]
    assert database.history.count_documents({}) == 1


async def test_an_intent_born_in_the_same_moment_is_taken_over(
    history: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MongoDB refuses one of two upserts that meet: that is no committed snapshot, and the intent is taken over."""
    made = document()
    key = {name: made[name] for name in ("hash", "generation", "version")}
    update_one = history._history.update_one

    async def meets_another(*args: Any, **kwargs: Any) -> None:
        monkeypatch.undo()
        await update_one(key, {"$set": {"status": "pending"}}, upsert=True)
        raise DuplicateKeyError("E11000 duplicate key error")

    monkeypatch.setattr(history._history, "update_one", meets_another)
    assert await history.write_intent(made) is None
    assert await history.commit(made)
    assert await history.documents() == [made]


async def test_of_many_snapshotters_at_once_one_commits(history: Registry) -> None:
    """However many begin and commit the same version at once, one commit counts and one document is there."""
    content = uuid.uuid4().hex
    made = [document(sha256=content, timestamp=float(number)) for number in range(AT_ONCE)]
    assert await asyncio.gather(*map(history.write_intent, made)) == [None] * AT_ONCE
    assert sum(await asyncio.gather(*map(history.commit, made))) == 1
    assert len(await history.documents()) == 1


async def test_the_newest_is_the_highest_generation_and_version(history: Registry) -> None:
    """Snapshots are ordered by generation, then version, whatever their clocks said."""
    for number, (generation, version) in enumerate([(2, 3), (1, 9), (2, 10), (3, 1), (1, 10)]):
        await commit(history, generation=generation, version=version, timestamp=1000.0 - number)
    assert await versions(history) == [(3, 1), (2, 10), (2, 3), (1, 10), (1, 9)]
    newest = await history.newest("ab" * 32, 0)
    assert newest is not None
    assert (newest["generation"], newest["version"]) == (3, 1)


async def test_snapshots_may_be_asked_for_as_of_a_time(history: Registry) -> None:
    """With `at`, only those taken then or before count, and the newest of them is first."""
    for version in (1, 2, 3):
        await commit(history, version=version, timestamp=100.0 * version)
    assert await versions(history, at=200.0) == [(1, 2), (1, 1)]
    assert await versions(history, at=199.9) == [(1, 1)]
    assert await versions(history, at=99.9) == []
    newest = await history.newest("ab" * 32, 0, at=299.9)
    assert newest is not None
    assert newest["version"] == 2


async def test_snapshots_of_a_deleted_predecessor_are_hidden(history: Registry) -> None:
    """From `born` on, snapshots of earlier generations are not this model's; without it they are still there."""
    for generation in (1, 2, 3):
        await commit(history, generation=generation, version=5)
    assert await versions(history, born=3) == [(3, 5)]
    assert await history.newest("ab" * 32, 4) is None
    assert await versions(history) == [(3, 5), (2, 5), (1, 5)]


async def test_a_long_history_is_read_to_its_end(history: Registry, database: Database[Document]) -> None:
    """More snapshots than the driver fetches at once come all, in order, and a limit gives the first of them."""
    database.history.insert_many(
        {**document(version=version), "metadata": "{}", "status": "committed"} for version in range(300)
    )
    assert await versions(history) == [(1, version) for version in reversed(range(300))]
    assert await versions(history, limit=2) == [(1, 299), (1, 298)]


async def test_documents_are_listed_newest_first(history: Registry) -> None:
    """The list is by time, of one type or one model where asked, and no longer than asked."""
    for number in range(6):
        type_ = "boots" if number % 2 else "shoes"
        await commit(history, model_hash=f"h{number % 3}", version=number, type=type_, timestamp=float(number))

    async def listed(*args: Any) -> list[int]:
        return [found["version"] for found in await history.documents(*args)]

    assert await listed() == [5, 4, 3, 2, 1, 0]
    assert await listed("boots") == [5, 3, 1]
    assert await listed(None, "h1") == [4, 1]
    assert await listed("shoes", "h1") == [4]
    assert await listed(None, None, 2) == [5, 4]
    assert await listed("hats") == []


async def test_mongo_away_is_said_within_seconds() -> None:
    """Where no MongoDB answers, reading and writing are UnavailableError in less than five seconds."""
    started = time.monotonic()
    async with Registry(f"mongodb://127.0.0.1:{free_port()}/keepfit") as away:
        answers = await asyncio.gather(away.ping(), away.write_intent(document()), return_exceptions=True)
    assert [type(answer) for answer in answers] == [UnavailableError] * 2
    assert time.monotonic() - started < 5


async def test_every_call_says_that_mongo_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """No error of the driver's comes through, whichever call it is; the message says where nobody answered."""
    monkeypatch.setattr(mongo, "SERVER_SELECTION_MS", 50)
    port, made = free_port(), document()
    async with Registry(f"mongodb://127.0.0.1:{port}/keepfit") as away:
        calls = (
            away.ping(),
            away.ensure_indexes(),
            away.register("h1", '{"type":"shoes"}', RECIPE),
            away.find("h1"),
            away.unregister("h1"),
            away.next_generation("h1", 1),
            away.models({}, 10),
            away.write_intent(made),
            away.commit(made),
            away.mark_corrupt(made),
            away.newest("h1", 0),
            away.documents(),
        )
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [UnavailableError] * len(calls)
    assert {f"127.0.0.1:{port}" in str(answer) for answer in answers} == {True}


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x", "mongodb://", "mongodb://u:hunter2@[", "mongodb://u:hunter2@h:x"]
)
def test_a_url_that_cannot_be_used_is_a_settings_error(url: str) -> None:
    """A wrong URL names its variable, and never shows the password in it."""
    with pytest.raises(SettingsError, match="KEEPFIT_MONGO_URL cannot be used") as caught:
        Registry(url)
    assert "hunter2" not in str(caught.value)


async def test_indexes_are_made_once_however_often_asked_for(history: Registry, database: Database[Document]) -> None:
    """Gateways and snapshotters that start at once make the same indexes, one of which keeps versions unique."""
    await asyncio.gather(*(history.ensure_indexes() for _ in range(4)))
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


async def test_the_history_is_found_by_its_indexes(history: Registry, database: Database[Document]) -> None:
    """The server plans an index scan for the snapshots of a model, one of them, and those of a type.

    The condition on the status is left out: this server's plan names an index only where it holds every field.
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


async def test_models_are_registered_while_the_indexes_are_made(mongo_url: str) -> None:
    """A gateway that starts takes its first models at once: indexes being made do not stand in the way."""
    for number in range(10):
        async with Registry(f"{mongo_url}{number}") as history, asyncio.timeout(30):
            made = await asyncio.gather(
                history.ensure_indexes(), *(history.register(digit * 64, '{"type":"shoes"}', "{}") for digit in "ab")
            )
            assert [registered.hash[0] for registered, _ in made[1:]] == ["a", "b"]

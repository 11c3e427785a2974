"""Models over HTTP: creation, description, listing, deletion."""

import asyncio
import hashlib
from typing import Any

import pytest
import rfc8785

from tests.conftest import SHOES_RECIPE
from tests.gateway.api_client import REGRESSOR, Api

FIELDS = {"hash", "metadata", "recipe", "warnings", "version", "rows_seen", "metrics", "inbox", "snapshot"}
UNKNOWN = "0" * 64


async def test_a_new_model_is_described_and_found_at_its_location(api: Api, metadata: dict[str, Any]) -> None:
    """Creating a model answers 201 with all fields, the hash of the canonical metadata, and its Location."""
    reply = await api.post("/v1/models", {"metadata": metadata, "recipe": SHOES_RECIPE})
    model = reply.of(201)
    assert model.keys() == FIELDS
    assert model["hash"] == hashlib.sha256(rfc8785.dumps(metadata)).hexdigest()
    assert model["metadata"] == metadata
    assert {name: model["recipe"][name] for name in SHOES_RECIPE} == SHOES_RECIPE
    assert list(model["recipe"]["features"]) == ["make", "year"]
    assert (model["version"], model["rows_seen"], model["inbox"]) == (0, 0, 0)
    assert model["metrics"] == {}
    assert model["snapshot"] is None
    assert reply.headers["Location"] == f"/v1/models/{model['hash']}"
    assert (await api.get(reply.headers["Location"])).of(200) == model


async def test_creating_the_same_model_again_returns_it(api: Api, metadata: dict[str, Any]) -> None:
    """Equal metadata and recipe in another spelling (key order, 1 for 1.0, defaults) answer 200 with the same model."""
    recipe = {"estimator": "SGDRegressor", "params": {"alpha": 0.1, "eta0": 0.5}}
    made = (await api.post("/v1/models", {"metadata": {**metadata, "year": 1}, "recipe": recipe})).of(201)
    respelled = {"updates": "exact", "params": {"eta0": 0.5, "alpha": 0.1}, "estimator": "SGDRegressor"}
    again = await api.post("/v1/models", {"recipe": respelled, "metadata": {"year": 1.0, **metadata}})
    assert again.of(200) == made
    assert again.headers["Location"] == f"/v1/models/{made['hash']}"


async def test_another_recipe_for_the_same_metadata_conflicts(api: Api, metadata: dict[str, Any]) -> None:
    """Another recipe for an existing model answers 409 and does not change the model."""
    path = await api.make(metadata, REGRESSOR)
    before = await api.model(path)
    reply = await api.post("/v1/models", {"metadata": metadata, "recipe": {**REGRESSOR, "params": {"alpha": 0.5}}})
    assert "another recipe" in reply.problem(409)["detail"]
    assert await api.model(path) == before


async def test_a_model_of_an_earlier_release_keeps_its_encoding(api: Api, metadata: dict[str, Any]) -> None:
    """A recipe that leaves encoding out answers 200 for a model that has the default of 0.1, and changes nothing.

    The model has the warning that its encoding deserves, in all its documents; a new model has another encoding.
    """
    recipe = {"estimator": "SGDRegressor", "features": {"make": "category"}}
    stored = {"metadata": metadata, "recipe": {**recipe, "encoding": "ordinal"}}
    made = (await api.post("/v1/models", stored)).of(201)
    assert made["recipe"]["encoding"] == "ordinal"
    assert made["warnings"] == [
        'encoding: SGDRegressor reads the codes of \'make\' as amounts; create the model with "onehot" or "hash".'
    ]
    path = f"/v1/models/{made['hash']}"
    await api.learn(path, [["nike"], ["puma"], ["asics"]], [1.0, 2.0, 3.0])
    (await api.call("PATCH", path, {"params": {"alpha": 0.01}})).of(200)
    kept = (await api.post("/v1/models", {"metadata": metadata, "recipe": recipe})).of(200)
    assert kept["recipe"]["encoding"] == "ordinal"
    changed = {**recipe, "params": {"alpha": 0.01}}
    again = (await api.post("/v1/models", {"metadata": metadata, "recipe": changed})).of(200)
    assert again["warnings"] == made["warnings"]
    (listed,) = (await api.get(f"/v1/models?session={metadata['session']}")).of(200)["models"]
    assert listed == await api.model(path)
    (await api.post("/v1/models", {"metadata": metadata, "recipe": {**recipe, "encoding": "onehot"}})).problem(409)
    fresh = (await api.post("/v1/models", {"metadata": {**metadata, "new": True}, "recipe": recipe})).of(201)
    assert (fresh["recipe"]["encoding"], fresh["warnings"]) == ("onehot", [])


async def test_concurrent_creations_create_one_model(api: Api, metadata: dict[str, Any]) -> None:
    """Of concurrent calls that create the same model exactly one answers 201, and all return the same model."""
    document = {"metadata": metadata, "recipe": REGRESSOR}
    replies = await asyncio.gather(*(api.post("/v1/models", document) for _ in range(10)))
    assert sorted(reply.status for reply in replies) == [200] * 9 + [201]
    assert len({reply.body for reply in replies}) == 1


async def test_a_description_shows_what_the_model_has_learned(api: Api, metadata: dict[str, Any]) -> None:
    """Version, rows and prequential metrics of a description are those of the newest bundle."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[0.0], [1.0]], [1.0, 2.0])
    learned = await api.learn(path, [[2.0]], [3.0])
    model = await api.model(path)
    assert (model["version"], model["rows_seen"]) == (learned["version"], learned["rows_seen"]) == (2, 3)
    assert model["inbox"] == 0
    # The first request has no prediction: nothing was learned before it.
    assert model["metrics"]["rows"] == 1
    assert model["metrics"]["mean_absolute_error"] > 0


async def test_an_unknown_model_is_not_found(api: Api) -> None:
    """A valid hash without a model answers 404 and says how to create a model."""
    assert "POST /v1/models" in (await api.get(f"/v1/models/{UNKNOWN}")).problem(404)["detail"]


@pytest.mark.parametrize("wrong", ["0", "A" * 64, "g" * 64, "0" * 63, "0" * 65, "0" * 63 + "%20", "0" * 63 + "%0a"])
async def test_a_malformed_hash_is_refused(api: Api, wrong: str) -> None:
    """A hash that is not 64 lower-case hexadecimal digits answers 400 on every route."""
    assert "64 hexadecimal digits" in (await api.get(f"/v1/models/{wrong}")).problem(400)["detail"]
    (await api.call("DELETE", f"/v1/models/{wrong}")).problem(400)
    (await api.post(f"/v1/models/{wrong}/predict", {"X": [[1]]})).problem(400)


async def test_the_first_digits_of_a_hash_are_answered_with_the_hash(api: Api, metadata: dict[str, Any]) -> None:
    """A path with a short hash, which listings show, answers 400 with the number of digits and the whole hash."""
    path = await api.make(metadata, REGRESSOR)
    model_hash = path.rpartition("/")[2]
    expected = f"has 10 digits. It begins the hash of one model: {model_hash}."
    short = f"/v1/models/{model_hash[:10]}"
    replies = [
        await api.get(short),
        await api.call("DELETE", short),
        await api.post(f"{short}/predict", {"X": [[1]]}),
        await api.post(f"{short}/partial_fit", {"X": [[1]], "y": [1]}),
        await api.get(f"{short}/snapshots"),
        await api.get(f"/v1/history?hash={model_hash[:10]}"),
    ]
    for reply in replies:
        assert reply.problem(400)["detail"].endswith(expected)
    capitals = (await api.get(f"/v1/models/{model_hash.upper()}")).problem(400)["detail"]
    assert capitals.endswith(f"has capital letters. It begins the hash of one model: {model_hash}.")
    assert (await api.get(f"/v1/models/{model_hash[:3]}")).problem(400)["detail"].endswith("has 3 digits.")
    assert "is something else" in (await api.get("/v1/models/shoes")).problem(400)["detail"]
    assert (await api.get(path)).of(200)["hash"] == model_hash


async def family(api: Api, session: str) -> dict[str, str]:
    """Create models that differ in their metadata. Return their names by hash."""
    members: dict[str, dict[str, Any]] = {
        "text": {"year": "2001", "brand": "nike"},
        "number": {"year": 2001, "brand": "nike"},
        "fraction": {"year": 2001.5, "brand": "adidas"},
        "true": {"year": True, "brand": "adidas"},
        "nested": {"year": {"value": 2001}, "brand": "nike"},
        "none": {"brand": "puma"},
    }
    paths = [await api.make({"type": "shoes", "session": session, **more}, REGRESSOR) for more in members.values()]
    return {path.rpartition("/")[2]: name for path, name in zip(paths, members, strict=True)}


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, {"text", "number", "fraction", "true", "nested", "none"}),
        ({"brand": "nike"}, {"text", "number", "nested"}),
        ({"year": "2001"}, {"text", "number"}),
        ({"year": "2001.0"}, {"number"}),
        ({"year": "2001.5"}, {"fraction"}),
        ({"year": "true"}, {"true"}),
        ({"year": "1"}, set()),
        ({"brand": "nike", "year": "2001"}, {"text", "number"}),
        ({"brand": "adidas", "year": "2001"}, set()),
        ({"brand": "Nike"}, set()),
        ({"year": ""}, set()),
        ({"colour": "red"}, set()),
        ({"type": "hats"}, set()),
    ],
)
async def test_models_are_listed_by_their_metadata(
    api: Api, metadata: dict[str, Any], filters: dict[str, str], found: set[str]
) -> None:
    """A list holds exactly the models whose metadata have every value of the filter, as text, number or boolean."""
    names = await family(api, metadata["session"])
    listed = (await api.get("/v1/models", session=metadata["session"], **filters)).of(200)
    assert {names[model["hash"]] for model in listed["models"]} == found
    assert len(listed["models"]) == len(found)
    assert listed["next"] is None
    for model in listed["models"]:
        assert model == await api.model(f"/v1/models/{model['hash']}")


@pytest.mark.parametrize(
    "filters",
    [
        {"type": '{"$ne":null}'},
        {"type": '{"$gt":""}'},
        {"type[$ne]": "x"},
        {"$where": "1"},
        {"$or": "[{}]"},
        {"year": '{"$ne":2001}'},
        {"year.$ne": "2001"},
        {"labels": "x"},
        {"deleted": "false"},
        {"_id": "x"},
        {"type": ".*"},
        {"type": "\0"},
    ],
)
async def test_a_filter_is_a_value_and_never_a_query(
    api: Api, metadata: dict[str, Any], filters: dict[str, str]
) -> None:
    """A filter that looks like a database operator is compared as text, so it matches nothing."""
    await family(api, metadata["session"])
    assert (await api.get("/v1/models", **filters)).of(200) == {"models": [], "next": None}


@pytest.mark.parametrize(("limit", "sizes"), [("1", [1] * 6), ("4", [4, 2]), ("3", [3, 3]), ("6", [6]), ("7", [6])])
async def test_a_long_list_has_pages(api: Api, metadata: dict[str, Any], limit: str, sizes: list[int]) -> None:
    """Pages of `limit` models, each requested with the `next` of the previous one, hold every model exactly once."""
    names = await family(api, metadata["session"])
    pages: list[list[str]] = []
    after: dict[str, str] = {}
    while True:
        page = (await api.get("/v1/models", session=metadata["session"], limit=limit, **after)).of(200)
        pages.append([model["hash"] for model in page["models"]])
        if page["next"] is None:
            break
        assert page["next"] == pages[-1][-1]
        after = {"after": page["next"]}
    assert [len(page) for page in pages] == sizes
    assert [found for page in pages for found in page] == sorted(names)


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "", "1.5", "1e2", "ten", "٣", "00000000010000", "9" * 5000])
async def test_a_list_has_a_limit_between_1_and_1000(api: Api, limit: str) -> None:
    """Any other limit answers 400."""
    assert "1 to 1000" in (await api.get("/v1/models", limit=limit)).problem(400)["detail"]


@pytest.mark.parametrize("query", ["after=x", "after=" + "A" * 64, "type=a&type=b", "limit=1&limit=2"])
async def test_an_invalid_list_query_is_refused(api: Api, query: str) -> None:
    """A malformed `after`, or a parameter that occurs twice, answers 400."""
    (await api.get(f"/v1/models?{query}")).problem(400)


async def test_a_deleted_model_is_gone_everywhere(api: Api, metadata: dict[str, Any]) -> None:
    """After a DELETE every call for the model answers 404, by hash or by metadata, and no list holds it."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[1.0]], [1.0])
    deleted = await api.call("DELETE", path)
    assert (deleted.status, deleted.body) == (204, b"")
    rows, labelled = {"X": [[1.0]]}, {"X": [[1.0]], "y": [1.0]}
    for call, document in (("predict", rows), ("partial_fit", labelled), ("score", labelled)):
        (await api.post(f"{path}/{call}", document)).problem(404)
        (await api.post(f"/v1/{call}", {**document, "metadata": metadata})).problem(404)
    (await api.get(path)).problem(404)
    (await api.call("DELETE", path)).problem(404)
    assert (await api.get("/v1/models", session=metadata["session"])).of(200)["models"] == []


async def test_a_recreated_model_starts_empty(api: Api, metadata: dict[str, Any]) -> None:
    """A model created again after its deletion, even with another recipe, has learned nothing and starts at 1."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[1.0]], [1.0])
    await api.predict(path, [[1.0]])
    assert (await api.call("DELETE", path)).status == 204
    again = {"estimator": "GaussianNB", "classes": [0, 1]}
    assert await api.make(metadata, again) == path
    model = await api.model(path)
    assert (model["version"], model["rows_seen"], model["inbox"], model["metrics"]) == (0, 0, 0, {})
    assert model["recipe"]["estimator"] == "GaussianNB"
    (await api.post(f"{path}/predict", {"X": [[1.0]]})).problem(409)
    learned = await api.learn(path, [[1.0, 2.0], [2.0, 1.0]], [0, 1])
    assert (learned["sequence"], learned["version"], learned["rows_seen"]) == (1, 1, 2)


@pytest.mark.parametrize(
    ("recipe", "hint"),
    [
        ({}, "estimator"),
        ({"estimator": "SGDRegresor"}, "SGDRegressor"),
        ({"estimator": "sklearn.linear_model.SGDRegressor"}, "SGDRegressor"),
        ({"estimator": "os.system"}, "is a path"),
        ({"estimator": "RandomForestClassifier"}, "cannot learn row by row"),
        ({"estimator": "SGDRegressor", "params": {"alpha": -1}}, "in the range [0.0, inf)"),
        ({"estimator": "SGDRegressor", "params": {"alfa": 1}}, "known: alpha, average"),
        ({"estimator": "SGDRegressor", "colour": "red"}, "unknown field `colour`"),
        ({"estimator": "SGDRegressor", "features": {}}, "between 1 and"),
        ({"estimator": "SGDRegressor", "features": {"make": "words"}}, "$.features"),
        ({"estimator": "SGDRegressor", "scaler": "RobustScaler"}, "StandardScaler, MinMaxScaler, MaxAbsScaler"),
        ({"estimator": "SGDRegressor", "features": {"a": "category"}, "scaler": "StandardScaler"}, "number columns"),
        ({"estimator": "SGDRegressor", "encoding": "binary"}, "$.encoding"),
        ({"estimator": "SGDRegressor", "updates": "never"}, "$.updates"),
        ({"estimator": "SGDRegressor", "classes": ["a", "b"]}, "not a classifier"),
        ({"estimator": "SGDClassifier", "classes": []}, "between 1 and"),
        ({"estimator": "SGDClassifier", "classes": ["a", "a"]}, "twice"),
        ({"estimator": "SGDClassifier", "classes": ["a", 1]}, "all strings, all integers or all booleans"),
    ],
)
async def test_an_invalid_recipe_is_refused(
    api: Api, metadata: dict[str, Any], recipe: dict[str, Any], hint: str
) -> None:
    """An invalid recipe answers 422 and names a valid alternative; no model is created."""
    reply = await api.post("/v1/models", {"metadata": metadata, "recipe": recipe})
    assert hint in reply.problem(422)["detail"]
    assert (await api.get("/v1/models", session=metadata["session"])).of(200)["models"] == []


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"type": ""}, "non-empty string 'type'"),
        ({"type": 1}, "non-empty string 'type'"),
        ({"timestamp": 1}, "'timestamp'"),
        ({"$set": 1}, "'$set'"),
        ({"a.b": 1}, "'a.b'"),
        ({"": 1}, "is empty"),
        ({"year": 2**53}, "2^53"),
        ({"year": {"deep": [2**53]}}, "2^53"),
        ({"make": "a\0b"}, "NUL"),
        ({"make": "e\u0301"}, "normal form C"),
        ({"make": "x" * 16384}, "larger than 16384 bytes"),
        ({"make": [[[[[[[[1]]]]]]]]}, "deeper than 8"),
    ],
)
async def test_metadata_that_cannot_name_a_model_is_refused(
    api: Api, metadata: dict[str, Any], wrong: dict[str, Any], reason: str
) -> None:
    """Metadata that languages read differently, or that cannot be stored, answers 422 with the reason."""
    document = {"metadata": {**metadata, **wrong}, "recipe": REGRESSOR}
    assert reason in (await api.post("/v1/models", document)).problem(422)["detail"]
    rows = {"metadata": document["metadata"], "X": [[1]]}
    assert reason in (await api.post("/v1/predict", rows)).problem(422)["detail"]


async def test_metadata_without_a_type_is_refused(api: Api) -> None:
    """Metadata without a type answers 422."""
    reply = await api.post("/v1/models", {"metadata": {"brand": "nike"}, "recipe": REGRESSOR})
    assert "'type'" in reply.problem(422)["detail"]

"""Every call about a model by its metadata: the answers of the call by hash, and errors of the name."""

import json
from typing import Any
from urllib.parse import quote

import pytest

from keepfit_gateway.handlers.inputs import METADATA_TEXT_BYTES_MAX
from keepfit_gateway.routes import ROUTES, Route
from keepfit_gateway.routes.by_metadata import BY_HASH
from tests.gateway.api_client import CLASSIFIER, REGRESSOR, WAIT, Api

BY_METADATA = [route for route in ROUTES if route.by_metadata]
ROWS, LABELLED = {"X": [[1.0, 2.0]]}, {"X": [[1.0, 2.0]], "y": ["no"]}
TEXT = '{"type": "shoes", "näme": "& = # % + ?  日本"}'
# Bodies that are valid if the model exists.
BODIES: dict[str, Any] = {
    "/v1/partial_fit": LABELLED,
    "/v1/train_score_predict": {**LABELLED, "X_pred": [[1.0, 2.0]]},
    "/v1/predict": ROWS,
    "/v1/labels": {"labels": [{"id": "a", "y": "no"}]},
    "/v1/score": LABELLED,
    "/v1/dead/retry": {},
    "/v1/dead/discard": {"ids": ["1-1"]},
    "PATCH /v1/model": {"params": {"alpha": 0.5}},
    "/v1/restore": {},
    "/v1/pull": {"url": "s3://data/daily/a.csv"},
    "/v1/snapshot": {},
}


def name_of(route: Route) -> str:
    """Return the name of a test of this route."""
    return f"{route.method} {route.path}"


def body_of(route: Route) -> Any:
    """Return a valid body of a call without the name of the model; None if it takes none."""
    return BODIES.get(route.path, BODIES.get(name_of(route)))


def in_query(metadata: Any) -> str:
    """Return a query that names a model."""
    return f"?metadata={quote(metadata if isinstance(metadata, str) else json.dumps(metadata))}"


def test_every_call_by_hash_has_one_by_metadata() -> None:
    """The calls by metadata are those by hash: same handler, scope, answers and headers, and no parameter is lost."""
    by_hash = [route for route in ROUTES if route.path.startswith(BY_HASH)]
    assert len(by_hash) == len(BY_METADATA) >= 12
    for route, named in zip(by_hash, BY_METADATA, strict=True):
        assert named.path == (route.path.replace("/models/{hash}", "") if route.path != BY_HASH else "/v1/model")
        same = ("method", "handler", "needs", "answers", "headers", "tables", "tag")
        assert [getattr(named, name) for name in same] == [getattr(route, name) for name in same]
        parameters = [[parameter["name"] for parameter in each.own_parameters] for each in (named, route)]
        assert parameters[0] == ["metadata", *parameters[1][1:]]


async def send_both(api: Api, metadata: Any, call: str, body: Any = None, headers: Any = None) -> list[Any]:
    """Make a call by metadata in the query, by metadata in the body if it has one, and by hash; return the answers.

    `call` is a method and a path by metadata.
    """
    method, _, path = call.partition(" ")
    model = (await api.call("GET", f"/v1/model{in_query(metadata)}")).of(200)["hash"]
    path, _, query = path.partition("?")
    extra = f"&{query}" if query else ""
    # A snapshot needs a body only to name the model.
    rest = None if path == "/v1/snapshot" else body
    answers = [await api.call(method, f"{path}{in_query(metadata)}{extra}", rest, headers=headers)]
    if body is not None:
        answers.append(await api.call(method, path, {"metadata": metadata, **body}, headers=headers))
    by_hash = f"/v1/models/{model}" + path.removeprefix("/v1").removeprefix("/model")
    answers.append(await api.call(method, f"{by_hash}?{query}", rest, headers=headers))
    return answers


async def test_calls_by_metadata_answer_like_calls_by_hash(api: Api, metadata: dict[str, Any]) -> None:
    """One model is described, changed, saved, listed, restored, and its dead letters kept, by either name."""
    metadata.update(json.loads(TEXT))
    recipe = {"estimator": "MultinomialNB", "classes": ["no", "yes"]}
    path = await api.make(metadata, recipe)
    await api.learn(path, **LABELLED)

    async def equal(status: int, call: str, body: Any = None) -> Any:
        first, *others = await send_both(api, metadata, call, body)
        for other in others:
            assert (other.of(status), other.headers.get("Location")) == (
                first.of(status),
                first.headers.get("Location"),
            )
        return first.of(status)

    assert (await equal(200, "GET /v1/model"))["metadata"] == metadata
    assert (await equal(200, "GET /v1/curve?since_rows=0"))["rows_seen"] == 1
    saved = await equal(201, "POST /v1/snapshot", {})
    assert (await equal(200, "GET /v1/snapshots?limit=1"))["snapshots"] == [saved]
    assert (await equal(200, "POST /v1/restore", {"version": 1}))["restored"] is False
    for _ in range(2):
        (await api.post(f"{path}/partial_fit", {"X": [[-1.0, 2.0]], "y": ["no"]}, WAIT)).problem(422)
    listed = await equal(200, "GET /v1/dead?limit=1")
    assert (len(listed["dead"]), listed["next"]) == (1, listed["dead"][0]["id"])
    assert len((await equal(200, f"GET /v1/dead?after={listed['next']}"))["dead"]) == 1
    discarded = await send_both(api, metadata, "POST /v1/dead/discard", {"ids": [listed["dead"][0]["id"]]})
    assert [reply.of(200)["discarded"] for reply in discarded] == [1, 0, 0]
    retried = await send_both(api, metadata, "POST /v1/dead/retry", {})
    assert retried[0].of(202)["accepted"] == 1
    assert [reply.status for reply in retried] == [202] * 3
    patched = await send_both(api, metadata, "PATCH /v1/model", {"params": {"alpha": 0.5}}, WAIT)
    assert [reply.of(200)["recipe"]["params"] for reply in patched] == [{"alpha": 0.5}] * 3
    assert patched[0].headers["Preference-Applied"] == "wait=10"
    deleted = await send_both(api, metadata, "DELETE /v1/model")
    assert [reply.status for reply in deleted] == [204, 404]


async def test_a_key_is_the_same_by_either_name(workerless: Api, metadata: dict[str, Any]) -> None:
    """A change of parameters that is repeated with its Idempotency-Key by the other name is accepted once."""
    path = await workerless.make(metadata, REGRESSOR)
    headers = {"Idempotency-Key": "once", "Prefer": "wait=0"}
    body = {"params": {"alpha": 0.5}}
    by_hash = (await workerless.call("PATCH", path, body, headers=headers)).of(202)
    by_query = await workerless.call("PATCH", f"/v1/model{in_query(metadata)}", body, headers=headers)
    by_body = await workerless.call("PATCH", "/v1/model", {"metadata": metadata, **body}, headers=headers)
    assert by_hash == by_query.of(202) == by_body.of(202)
    assert (await workerless.model(path))["inbox"] == 1


async def test_a_small_body_may_have_large_metadata(workerless: Api, metadata: dict[str, Any]) -> None:
    """The limit of a body is that of the call by hash and of the largest metadata, however they are written."""
    metadata["note"] = "é" * 8000
    path = await workerless.make(metadata, REGRESSOR)
    body = json.dumps({"metadata": metadata, "ids": ["1-1"]})
    assert len(body) > 48_000
    answer = await workerless.call("POST", "/v1/dead/discard", data=body.encode())
    assert answer.of(200) == {"hash": path.rpartition("/")[2], "version": 0, "discarded": 0}
    restore = json.dumps({"metadata": {"type": "x" * (METADATA_TEXT_BYTES_MAX + 4096)}}).encode()
    (await workerless.call("POST", "/v1/restore", data=restore)).problem(413)


async def test_probabilities_by_metadata(api: Api, metadata: dict[str, Any]) -> None:
    """The query parameter proba counts with metadata in the body too, as with the hash."""
    path = await api.make(metadata, {**CLASSIFIER, "params": {"loss": "log_loss"}})
    await api.learn(path, **LABELLED)
    for query, body in (("?proba=true", {"metadata": metadata}), (f"{in_query(metadata)}&proba=true", {})):
        assert "probabilities" in (await api.post(f"/v1/predict{query}", {**ROWS, **body})).of(200)


# Errors.


@pytest.mark.parametrize("route", BY_METADATA, ids=name_of)
async def test_an_unknown_model_by_metadata(workerless: Api, route: Route) -> None:
    """Metadata of no model answer 404 and say how to make one, in the query and in the body."""
    body = body_of(route)
    queries = [(in_query(TEXT), body)]
    if body is not None:
        queries.append(("", {"metadata": json.loads(TEXT), **body}))
    for query, document in queries:
        problem = (await workerless.call(route.method, route.path + query, document)).problem(404)
        assert problem["detail"].startswith("There is no model ")


@pytest.mark.parametrize(
    ("status", "query", "reason"),
    [
        (400, "", "metadata"),
        (400, "?metadata=", "The query parameter metadata is not JSON"),
        (400, "?metadata=shoes", "The query parameter metadata is not JSON"),
        (400, "?metadata=%7B%22type%22:%22a%22,%22type%22:%22b%22%7D", "'type' occurs twice"),
        (400, "?metadata=%7B%22type%22:%22%5Cud800%22%7D", "The query parameter metadata holds a lone surrogate"),
        (400, f"{in_query(TEXT)}&metadata=1", "once"),
        (422, "?metadata=%5B%5D", "must be a JSON object"),
        (422, "?metadata=%7B%22brand%22:%22nike%22%7D", "'type'"),
        (422, "?metadata=%7B%22type%22:%22%22%7D", "'type'"),
        (422, "?metadata=%7B%22type%22:%22a%22,%22timestamp%22:1%7D", "'timestamp'"),
        (422, "?metadata=%7B%22type%22:%22a%22,%22n%22:NaN%7D", "NaN"),
    ],
)
async def test_invalid_names(workerless: Api, status: int, query: str, reason: str) -> None:
    """Missing, malformed, repeated and invalid metadata in the query are rejected alike by every call."""
    for route in BY_METADATA:
        reply = await workerless.call(route.method, route.path + query, body_of(route))
        assert reason in reply.problem(status)["detail"], name_of(route)


@pytest.mark.parametrize("route", [route for route in BY_METADATA if body_of(route) is not None], ids=name_of)
async def test_two_names(workerless: Api, metadata: dict[str, Any], route: Route) -> None:
    """Metadata in query and body, or beside a hash, answer 400, and nothing is changed."""
    path = await workerless.make(metadata, CLASSIFIER)
    body = {"metadata": metadata, **body_of(route)}
    problem = (await workerless.call(route.method, route.path + in_query(metadata), body)).problem(400)
    assert "`metadata`" in problem["detail"]
    by_hash = path + route.path.removeprefix("/v1").removeprefix("/model")
    both = await workerless.call(route.method, by_hash + in_query(metadata), body_of(route))
    assert "leave out the query parameter metadata" in both.problem(400)["detail"]
    assert (await workerless.model(path))["inbox"] == 0

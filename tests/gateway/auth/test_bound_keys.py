"""API keys that are bound to metadata: on every route there are only the models that they may use."""

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from keepfit import conditions, identity
from keepfit.errors import NotFoundError
from keepfit.history import Timeline
from keepfit.security.api_keys import OPEN, SCOPES, Key, new_key
from keepfit.settings import Settings
from keepfit_gateway import bound_key
from keepfit_gateway.model_lookup import ModelLookup
from keepfit_gateway.openapi.document import operation_id
from keepfit_gateway.openapi.examples import EXAMPLES
from keepfit_gateway.routes import ROUTES, Route
from keepfit_gateway.routes.route import BOUND_FILTERED, BOUND_METADATA, BOUND_PATH
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, WAIT, Api, Reply, serving

ROWS, LABELLED = {"X": [[1.0, 2.0]]}, {"X": [[1.0, 2.0]], "y": [1.0]}
FAST = {"Content-Type": "application/json"}
REGULAR = {"Content-Type": "application/json; charset=utf-8"}
CREATED = {"recipe": REGRESSOR}


@dataclass(frozen=True, slots=True)
class Tenants:
    """A gateway with two tenants, each with a model that has learned, and the keys of both and of the operator."""

    api: Api
    shoes: dict[str, Any]
    hats: dict[str, Any]
    shoes_key: dict[str, str]
    hats_key: dict[str, str]
    operator: dict[str, str]

    def path(self, metadata: dict[str, Any]) -> str:
        """Return the path of a model."""
        return f"/v1/models/{identity.hash_of(metadata)}"

    async def call(self, method: str, path: str, key: Mapping[str, str], document: Any = None, **more: Any) -> Reply:
        """Send a request with a key."""
        return await self.api.call(method, path, document, headers={**more.pop("headers", {}), **key}, **more)


def bearer(token: str) -> dict[str, str]:
    """Return the header that sends a key."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def tenants(stack: Stack) -> AsyncIterator[Tenants]:
    """Run a gateway on the servers and workers of the shared stack."""
    suffix = uuid.uuid4().hex
    metadata = [{"type": f"{kind}-{suffix}", "brand": "nike"} for kind in ("shoes", "hats")]
    keys = [new_key(one["type"].partition("-")[0], SCOPES, where=[f"type={one['type']}"]) for one in metadata]
    operator = new_key("operator", SCOPES)
    stored = ",".join(line for _, line in (*keys, operator))
    settings = Settings(
        **{**stack.settings().model_dump(), "port": 0, "api_keys": stored, "pull_prefixes": "s3://data"}
    )
    async with serving(settings, tuple(token for token, _ in (*keys, operator))) as api:
        of_keys = (bearer(token) for token, _ in (*keys, operator))
        opened = Tenants(api, *metadata, *of_keys)
        for one, key in zip(metadata, (opened.shoes_key, opened.hats_key), strict=True):
            (await opened.call("POST", "/v1/models", key, {"metadata": one, **CREATED})).of(201)
            path = f"{opened.path(one)}/partial_fit"
            (await opened.call("POST", path, key, LABELLED, headers=WAIT)).of(200)
        yield opened


def comparable(reply: Reply, model_hash: str) -> tuple[int, bytes, dict[str, str]]:
    """Return what a client sees of an answer, without the hash that it named and the id of the request."""
    varying = {"X-Request-ID", "Date"}
    headers = {name: value for name, value in reply.headers.items() if name not in varying}
    return reply.status, reply.body.replace(model_hash.encode(), b"HASH"), headers


async def check_caller(tenants: Tenants, route: Route) -> None:
    """The answer is about the key itself."""
    assert (await tenants.call("GET", route.path, tenants.shoes_key)).of(200)["name"] == "shoes"


# What a list shows. Each FILTERED route has a check here: the key of the owner finds its model, and no other key does.


async def check_models(tenants: Tenants, route: Route) -> None:
    """The list of models has the models of the key, whatever its filters are."""
    for key, own in ((tenants.shoes_key, tenants.shoes), (tenants.hats_key, tenants.hats)):
        for order in ({}, {"sort": "rows"}, {"search": "nike"}):
            listed = (await tenants.call("GET", route.path, key, params=order)).of(200)["models"]
            assert [model["metadata"] for model in listed] == [own]
    for name in ("type", "metadata[type]"):
        query = {name: tenants.hats["type"]}
        assert (await tenants.call("GET", route.path, tenants.shoes_key, params=query)).of(200)["models"] == []


async def check_history(tenants: Tenants, route: Route) -> None:
    """Documents and points of the history are those of the key's models."""
    for key, own in ((tenants.shoes_key, tenants.shoes), (tenants.hats_key, tenants.hats)):
        (await tenants.call("POST", f"{tenants.path(own)}/snapshot", key)).of(201)
    model_hash = identity.hash_of(tenants.hats)
    for query in ({}, {"kind": "all"}, {"type": tenants.hats["type"]}, {"hash": model_hash}, {"brand": "nike"}):
        owned = (await tenants.call("GET", route.path, tenants.hats_key, params=query)).of(200)["documents"]
        assert [document["hash"] for document in owned] == [model_hash]
        foreign = (await tenants.call("GET", route.path, tenants.shoes_key, params=query)).of(200)["documents"]
        assert model_hash not in [document["hash"] for document in foreign]
        counted = {**query, "every": "1d", "stat": "sum", "field": "rows_seen", "group": "hash"}
        groups = (await tenants.call("GET", route.path, tenants.shoes_key, params=counted)).of(200)["points"]
        assert model_hash not in [point["group"] for point in groups]
    closest = {"type": tenants.hats["type"], "closest": "now"}
    assert (await tenants.call("GET", route.path, tenants.shoes_key, params=closest)).of(200) == {"documents": []}


async def check_jobs(tenants: Tenants, route: Route) -> None:
    """Jobs of another type do not exist: they are not listed, shown or cancelled."""
    body = {"url": "s3://data/daily/a.csv"}
    made = (await tenants.call("POST", f"{tenants.path(tenants.hats)}/pull", tenants.hats_key, body)).of(202)["job"]
    path = route.path.replace("{job}", made)
    foreign = await tenants.call(route.method, path, tenants.shoes_key)
    own = await tenants.call(route.method, path, tenants.hats_key)
    if "{job}" in route.path:
        unknown = await tenants.call(route.method, path.replace(made, "0" * 32), tenants.shoes_key)
        assert (foreign.status, foreign.body.replace(made.encode(), b"0" * 32)) == (404, unknown.body)
        assert own.of(202 if route.method == "DELETE" else 200)["job"] == made
    else:
        assert foreign.of(200)["jobs"] == []
        assert made in [job["job"] for job in own.of(200)["jobs"]]


async def check_events(tenants: Tenants, route: Route) -> None:
    """A key gets the events of its own models, none of workers, and none of other models by any filter."""
    path, model_hash = f"{route.path}?last_event_id=0-0&timeout=0.3", identity.hash_of(tenants.hats)
    for key, own in ((tenants.shoes_key, tenants.shoes), (tenants.hats_key, tenants.hats)):
        body = (await tenants.call("GET", path, key)).body.decode()
        found = [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line.startswith("data: ")]
        assert {event["kind"] for event in found} >= {"model_created", "commit"}
        assert all(event["kind"] == "gap" or event["metadata"] == own for event in found)
    for query in (f"hash={model_hash}", f"type={tenants.hats['type']}", "kind=worker_joined"):
        body = (await tenants.call("GET", f"{path}&{query}", tenants.shoes_key)).body.decode()
        assert '"metadata"' not in body
        assert "worker" not in body


async def check_stored(tenants: Tenants, route: Route) -> None:
    """Documents that the key could not read are not stored, in JSON or in line protocol; its own are."""
    type_ = tenants.hats["type"]
    for key, refused in ((tenants.shoes_key, True), (tenants.hats_key, False)):
        if route.path == "/v1/history":
            reply = await tenants.call("POST", route.path, key, {"type": type_, "n": 1})
            assert reply.status == (403 if refused else 200)
        else:
            lines = {"data": f"{type_} n=1 1".encode(), "headers": {"Content-Type": "text/plain"}}
            reply = await tenants.call("POST", route.path, key, **lines)
            assert reply.status == (400 if refused else 204)
        query = {"type": type_, "kind": "document"}
        found = (await tenants.call("GET", "/v1/history", tenants.operator, params=query)).of(200)["documents"]
        assert bool(found) is not refused
    (await tenants.call("DELETE", f"/v1/history?type={type_}", tenants.operator)).of(200)


async def check_deletion(tenants: Tenants, route: Route) -> None:
    """A key deletes documents that it can read, and no others."""
    type_ = tenants.hats["type"]
    (await tenants.call("POST", "/v1/history", tenants.hats_key, {"type": type_, "n": 1})).of(200)
    for key, deleted in ((tenants.shoes_key, 0), (tenants.hats_key, 1)):
        answer = (await tenants.call("DELETE", f"{route.path}?type={type_}", key)).of(200)
        assert answer == {"deleted": deleted, "complete": True}


FILTERED: dict[tuple[str, str], Callable[[Tenants, Route], Awaitable[None]]] = {
    ("GET", "/v1/models"): check_models,
    ("GET", "/v1/history"): check_history,
    ("POST", "/v1/history"): check_stored,
    ("POST", "/api/v2/write"): check_stored,
    ("DELETE", "/v1/history"): check_deletion,
    ("GET", "/v1/jobs"): check_jobs,
    ("GET", "/v1/jobs/{job}"): check_jobs,
    ("DELETE", "/v1/jobs/{job}"): check_jobs,
    ("GET", "/v1/events"): check_events,
    ("GET", "/v1/caller"): check_caller,
}


async def check_path(tenants: Tenants, route: Route, document: Any) -> None:
    """A model of another type is answered as one that does not exist: the same status, body and header fields."""
    answers = []
    for model_hash in (identity.hash_of(tenants.hats), "0" * 64):
        path = route.path.replace("{hash}", model_hash).replace("{version}", "1")
        reply = await tenants.call(route.method, path, tenants.shoes_key, document)
        answers.append(comparable(reply, model_hash))
        reply.refusal(404, path)
    assert answers[0] == answers[1], route.path


async def check_metadata(tenants: Tenants, route: Route, document: Any) -> None:
    """Metadata that the key is not bound to answer 403 with its conditions, whether the model exists or not."""
    answers = []
    for metadata in (tenants.hats, {**tenants.hats, "brand": "none"}):
        query = {"metadata": json.dumps(metadata)} if route.form is None else None
        named = {**(document or {}), "metadata": metadata}
        body = None if route.form is None else named
        reply = await tenants.call(route.method, route.path, tenants.shoes_key, body, params=query)
        answers.append(comparable(reply, identity.hash_of(metadata)))
        assert f"type={tenants.shoes['type']}" in reply.refusal(403, route.path), route.path
        if route.by_metadata:
            in_query = {"metadata": json.dumps(metadata)}
            reply = await tenants.call(route.method, route.path, tenants.shoes_key, document, params=in_query)
            assert f"type={tenants.shoes['type']}" in reply.refusal(403, route.path), route.path
    assert answers[0] == answers[1], route.path


async def test_no_route_gives_a_bound_key_anything_of_another_model(tenants: Tenants) -> None:
    """Every route of the table is called with a key that is bound to another type: it shows and changes nothing.

    By hash 404, by metadata 403, calls about the whole service 403, lists without the model.
    """
    before = (await tenants.call("GET", tenants.path(tenants.hats), tenants.operator)).of(200)
    for route in ROUTES:
        examples = list(EXAMPLES[operation_id(route)].requests.values()) if operation_id(route) in EXAMPLES else []
        document = None if route.form is None else examples[0] if examples else {}
        if route.needs == OPEN:
            reply = await tenants.call(route.method, route.path, tenants.shoes_key)
            assert identity.hash_of(tenants.hats).encode() not in reply.body
        elif route.bound == BOUND_PATH:
            assert "{hash}" in route.path
            await check_path(tenants, route, document)
        elif route.bound == BOUND_METADATA:
            await check_metadata(tenants, route, document)
        elif route.bound == BOUND_FILTERED:
            assert (route.method, route.path) in FILTERED, f"add a check of {route.path} to FILTERED"
            await FILTERED[route.method, route.path](tenants, route)
        else:
            refused = await tenants.call(route.method, route.path, tenants.shoes_key, document)
            assert "about the whole service" in refused.refusal(403, route.path)
        if route.method == "GET" and route.bound == BOUND_PATH:
            path = route.path.replace("{hash}", identity.hash_of(tenants.hats)).replace("{version}", "1")
            assert (await tenants.call("HEAD", path, tenants.shoes_key)).status == 404
    after = (await tenants.call("GET", tenants.path(tenants.hats), tenants.operator)).of(200)
    # The check of the history saved it.
    assert {**before, "snapshot": None} == {**after, "snapshot": None}


async def test_a_bound_key_uses_its_models(tenants: Tenants) -> None:
    """Models with the right metadata are created, described, taught, asked and deleted as with any key."""
    metadata = {**tenants.shoes, "brand": "puma", "size": 9}
    key, path = tenants.shoes_key, tenants.path(metadata)
    (await tenants.call("POST", "/v1/models", key, {"metadata": metadata, **CREATED})).of(201)
    (await tenants.call("POST", f"{path}/partial_fit", key, LABELLED, headers=WAIT)).of(200)
    for call, named in ((f"{path}/", {}), ("/v1/", {"metadata": metadata})):
        for content_type in (FAST, REGULAR):
            for name, document, status in (
                ("partial_fit", LABELLED, 202),
                ("predict", ROWS, 200),
                ("score", LABELLED, 200),
            ):
                body = json.dumps({**named, **document}).encode()
                (await tenants.call("POST", f"{call}{name}", key, data=body, headers=content_type)).of(status)
    assert (await tenants.call("GET", path, key)).of(200)["rows_seen"] >= 1
    (await tenants.call("GET", f"/v2/models/{identity.hash_of(metadata)}", key)).of(200)
    (await tenants.call("POST", f"{path}/snapshot", key)).of(201)
    assert len((await tenants.call("GET", f"{path}/snapshots", key)).of(200)["snapshots"]) == 1
    (await tenants.call("PATCH", path, key, {"params": {"alpha": 0.5}})).of(200)
    (await tenants.call("DELETE", path, tenants.hats_key)).problem(404)
    assert (await tenants.call("DELETE", path, key)).status == 204
    (await tenants.call("GET", path, key)).problem(404)


@pytest.mark.parametrize("by_metadata", [False, True])
async def test_a_kept_answer_is_not_for_another_key(tenants: Tenants, by_metadata: bool) -> None:
    """A prediction that the gateway has kept by the bytes of its request is for keys that may use the model."""
    where = "/v1/predict" if by_metadata else f"{tenants.path(tenants.hats)}/predict"
    body = json.dumps({**({"metadata": tenants.hats} if by_metadata else {}), **ROWS}).encode()
    for key in (tenants.operator, tenants.hats_key):
        for _ in range(2):
            kept = await tenants.call("POST", where, key, data=body, headers=FAST)
            kept.of(200)
        assert "Age" in kept.headers
    for content_type in (FAST, REGULAR):
        for more in ({}, {"If-None-Match": kept.headers["ETag"]}, {"Cache-Control": "max-age=60"}):
            headers = {**content_type, **more}
            reply = await tenants.call("POST", where, tenants.shoes_key, data=body, headers=headers)
            reply.problem(403 if by_metadata else 404)
            assert "ETag" not in reply.headers


async def test_a_binding_counts_for_its_request_only(tenants: Tenants) -> None:
    """On one connection requests with other keys, before and after, have their own rights."""
    path = tenants.path(tenants.hats)
    expected = {id(tenants.shoes_key): 404, id(tenants.hats_key): 200, id(tenants.operator): 200}
    for key in (tenants.shoes_key, tenants.operator, tenants.shoes_key, tenants.hats_key, tenants.shoes_key):
        assert (await tenants.call("GET", path, key)).status == expected[id(key)]


async def test_creation_is_refused_outside_of_the_conditions(tenants: Tenants) -> None:
    """A model with other metadata is not created, and one that exists is not revealed by another answer."""
    document = {"metadata": {**tenants.hats, "brand": "puma"}, **CREATED}
    refused = (await tenants.call("POST", "/v1/models", tenants.shoes_key, document)).problem(403)
    assert refused["detail"] == (
        f"The API key 'shoes' is for models with type={tenants.shoes['type']}; these metadata do not have that."
    )
    (await tenants.call("GET", tenants.path(document["metadata"]), tenants.operator)).problem(404)


async def test_short_hashes_of_other_models_are_not_completed(tenants: Tenants) -> None:
    """The hint to a hash that is cut off names models of the key only, also in the history."""
    for own, other in ((tenants.shoes, tenants.hats_key), (tenants.hats, tenants.shoes_key)):
        model_hash = identity.hash_of(own)
        for path in (f"/v1/models/{model_hash[:30]}", f"/v1/history?hash={model_hash[:30]}"):
            detail = (await tenants.call("GET", path, other)).problem(400)["detail"]
            assert detail.endswith("has 30 digits.")
    model_hash = identity.hash_of(tenants.shoes)
    detail = (await tenants.call("GET", f"/v1/models/{model_hash[:30]}", tenants.shoes_key)).problem(400)["detail"]
    assert model_hash in detail


async def test_pages_of_a_bound_key_are_full(tenants: Tenants) -> None:
    """Models of other types take no place on a page."""
    for number in range(5):
        for one, key in ((tenants.shoes, tenants.shoes_key), (tenants.hats, tenants.hats_key)):
            (await tenants.call("POST", "/v1/models", key, {"metadata": {**one, "n": number}, **CREATED})).of(201)
    sizes, after = list[int](), ""
    found: list[dict[str, Any]] = []
    while after is not None:
        query = {"limit": "2", "after": after}
        page = (await tenants.call("GET", "/v1/models", tenants.shoes_key, params=query)).of(200)
        sizes.append(len(page["models"]))
        found += page["models"]
        after = page["next"]
    assert sizes == [2, 2, 2]
    assert {model["metadata"]["type"] for model in found} == {tenants.shoes["type"]}


async def test_a_large_body_by_metadata_is_refused(tenants: Tenants) -> None:
    """Rows that are parsed in a thread, and rows that only the strict parser reads, are refused as small ones are."""
    rows = [[1.0, 2.0]] * 20_000
    large = {"metadata": tenants.hats, "X": rows, "y": [1.0] * len(rows)}
    (await tenants.call("POST", "/v1/partial_fit", tenants.shoes_key, large)).problem(403)
    escaped = {"metadata": {**tenants.hats, "note": 'a "quoted" word'}, **LABELLED}
    (await tenants.call("POST", "/v1/partial_fit", tenants.shoes_key, escaped)).problem(403)


async def test_fields_of_documents_do_not_fulfil_conditions(stack: Stack, metadata: dict[str, Any]) -> None:
    """A condition is compared with metadata: a model whose version or metrics are equal by chance does not match.

    Of documents that users store, those are shown whose fields fulfil it.
    """
    kind = f"vote-{metadata['session']}"
    by_version = new_key("version", SCOPES, where=["version=1"])
    by_brand = new_key("brand", SCOPES, where=["brand=puma", f"type={kind}"])
    operator = new_key("operator", SCOPES)
    stored = ",".join(line for _, line in (by_version, by_brand, operator))
    settings = Settings(
        **{**stack.settings().model_dump(), "port": 0, "api_keys": stored, "pull_prefixes": "s3://data"}
    )
    async with Timeline.open(settings.mongo_url.get_secret_value()) as timeline:
        await timeline.bulk_upsert(
            {"type": kind, "timestamp": 1e9 + n, "n": n, "brand": ("nike", "puma")[n % 2]} for n in range(4)
        )
    async with serving(settings) as api:
        made = await api.post("/v1/models", {"metadata": metadata, **CREATED}, bearer(operator[0]))
        path = made.headers["Location"]
        (await api.post(f"{path}/partial_fit", LABELLED, {**WAIT, **bearer(operator[0])})).of(200)
        saved = (await api.call("POST", f"{path}/snapshot", headers=bearer(operator[0]))).of(201)
        assert saved["version"] == 1
        for token, query, expected in (
            (operator[0], {"hash": saved["hash"]}, 1),
            (by_version[0], {"hash": saved["hash"]}, 0),
            (by_version[0], {"hash": saved["hash"], "version": "1"}, 0),
            (operator[0], {"type": kind}, 4),
            (by_brand[0], {"type": kind}, 2),
            (by_brand[0], {"type": kind, "brand": "nike"}, 0),
            (by_brand[0], {"last": "4"}, 2),
            (by_version[0], {"type": kind}, 0),
        ):
            reply = await api.call("GET", "/v1/history", headers=bearer(token), params=query)
            assert len(reply.of(200)["documents"]) == expected, (token, query)
        summed = {"type": kind, "every": "1d", "stat": "sum", "field": "n"}
        for token, value in ((operator[0], 6), (by_brand[0], 4)):
            points = (await api.call("GET", "/v1/history", headers=bearer(token), params=summed)).of(200)["points"]
            assert [point["value"] for point in points] == [value]


class Recording:
    """A store, registry and worker client that know some models, and note the calls that a lookup makes."""

    def __init__(self, live: Mapping[str, Any], registered: Mapping[str, Any]) -> None:
        self.live, self.registered = live, registered
        self.calls: list[str] = []

    async def describe(self, model_hash: str) -> Any:
        """Return a live model."""
        self.calls.append("describe")
        return self.live.get(model_hash)

    async def find(self, model_hash: str) -> Any:
        """Return an entry of the registry."""
        self.calls.append("find")
        return self.registered.get(model_hash)

    async def ask(self, model_hash: str, operation: str) -> None:
        """Note that a worker is asked."""
        self.calls.append(operation)


async def test_a_lookup_takes_the_same_steps_for_models_of_others() -> None:
    """A live, a lost and a missing model give the same calls of Redis and MongoDB; none is restored for the key."""
    of_others = SimpleNamespace(hash="live", metadata={"type": "hats"})
    live, registered = {"live": of_others}, {"live": of_others, "lost": of_others}
    key = Key("shoes", frozenset(SCOPES), b"", where=conditions.parse(["type=shoes"]))
    steps = []
    for call in ("describe", "check", "find", "delete"):
        for model_hash in ("live", "lost", "missing"):
            backend: Any = Recording(live, registered)
            lookup = ModelLookup(backend, backend, backend, lambda *_: None, backend)

            async def look_up(_: Any, call: str = call, name: str = model_hash, lookup: Any = lookup) -> None:
                with pytest.raises(NotFoundError, match=f"^There is no model {name}; create it with POST /v1/models.$"):
                    await getattr(lookup, call)(name)
                assert lookup.cached(name) is None

            await bound_key.run(key, look_up, None)
            steps.append(backend.calls)
    assert steps == [["describe", "find"]] * 12

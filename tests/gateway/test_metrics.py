"""Metrics: names, counts, and labels that hold no text of clients."""

import math
import uuid
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from keepfit.backends import redis_clients
from keepfit.security.api_keys import OPEN, new_key
from keepfit.settings import Settings
from keepfit.store.models import Store
from keepfit_gateway.routes import ROUTES, Route
from keepfit_gateway.web.request_counts import BUCKETS_S, RequestMetrics
from tests.gateway.api_client import REGRESSOR, Api, address_of, serving

ROWS = {"X": [[1.0, 2.0]]}
LABELLED = {**ROWS, "y": [1.0]}
BY_HASH = "/v1/models/{hash}/"


async def scraped(api: Api) -> dict[tuple[str, ...], float]:
    """Return the values of all samples by name and labels."""
    reply = await api.get("/metrics")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return samples(reply.body.decode())


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return the values of all samples in the text of a scrape."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_requests_are_counted_by_route_on_both_paths(workerless: Api, metadata: dict[str, Any]) -> None:
    """Fast and regular path count by route template, method and status; unrouted requests share one label."""
    path = await workerless.make(metadata, REGRESSOR)
    for _ in range(3):
        (await workerless.post(f"{path}/partial_fit", LABELLED)).of(202)
    (await workerless.post(f"{path}/partial_fit", LABELLED, {"Idempotency-Key": "k"})).of(202)
    (await workerless.post("/v1/partial_fit", {"metadata": metadata, **LABELLED})).of(202)
    (await workerless.post(f"{path}/partial_fit", {"X": [["a"]], "y": [1.0]})).problem(422)
    for _ in range(2):
        (await workerless.get(f"/{uuid.uuid4().hex}")).problem(404)
        (await workerless.call("PUT", path)).problem(405)
    found = await scraped(workerless)
    name = "keepfit_requests_total"
    assert found[name, "POST", f"{BY_HASH}partial_fit", "202"] == 4
    assert found[name, "POST", f"{BY_HASH}partial_fit", "422"] == 1
    assert found[name, "POST", "/v1/partial_fit", "202"] == 1
    assert found[name, "POST", "/v1/models", "201"] == 1
    assert (found[name, "other", "other", "404"], found[name, "other", "other", "405"]) == (2, 2)
    assert found["keepfit_request_seconds_count", "POST", f"{BY_HASH}partial_fit"] == 5
    assert 0 < found["keepfit_request_seconds_sum", "POST", f"{BY_HASH}partial_fit"] < math.inf
    assert not [key for key in found if any(len(label) > 40 for label in key)]


async def test_refused_requests_have_no_labels_of_their_own(settings: Settings) -> None:
    """Requests that are refused before they are routed share one label, whatever their method and path."""
    token, line = new_key("all", ["read"])
    async with serving(Settings(**{**settings.model_dump(), "api_keys": line})) as api:
        for path in ("/v1/predict", "/aaaaaaaaaa"):
            for method in ("PROPFIND", "MKCOL", "GET"):
                (await api.call(method, path)).problem(401)
        (await api.call("POST", "/v1/predict", data=b"{}")).problem(401)
        (await api.call("POST", "/aaaaaaaaaa", data=b"{}")).problem(401)
        metrics = await api.call("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
    text = metrics.body.decode()
    assert 'keepfit_requests_total{method="other",route="other",status="401"} 7.0' in text
    assert 'keepfit_requests_total{method="POST",route="/v1/predict",status="401"} 1.0' in text
    assert not [word for word in ("PROPFIND", "MKCOL", "aaaa") if word in text]


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}?a=b"])
async def test_refusals_before_routing_are_counted_by_route(settings: Settings, spelling: str) -> None:
    """What the guard refuses is counted under the route that it would have reached, on every route."""
    readers, slow = new_key("readers", ["read"]), new_key("slow", ["read"], "0.001/1")
    named = {"api_keys": f"{readers[1]},{slow[1]}", "allowed_hosts": "localhost"}
    async with serving(Settings(**{**settings.model_dump(), **named})) as api:

        async def refused(status: int, route: Route, **headers: str) -> None:
            where = spelling.format(address_of(route.path))
            (await api.call(route.method, where, headers=headers)).refusal(status, where)

        expected: dict[tuple[str, ...], float] = {}
        bearer = f"Bearer {slow[0]}"
        await api.call("GET", "/livez", headers={"Authorization": bearer})
        for route in ROUTES:
            answers = {421: {"Host": "evil.example"}, 429: {"Authorization": bearer}}
            for status, headers in answers.items() if route.needs == OPEN else {**answers, 401: {}}.items():
                await refused(status, route, **headers)
                expected["keepfit_requests_total", route.method, route.path, str(status)] = 1
        metrics = await api.call("GET", "/metrics", headers={"Authorization": f"Bearer {readers[0]}"})
    found = samples(metrics.body.decode())
    assert {name: found.get(name) for name in expected} == expected
    assert not [name for name in found if "other" in name]


async def test_dependencies_and_backlog_are_exposed(workerless: Api, metadata: dict[str, Any]) -> None:
    """The state of each dependency, the backlog and the memory of the process are exposed."""
    path = await workerless.make(metadata, REGRESSOR)
    (await workerless.post(f"{path}/partial_fit", LABELLED)).of(202)
    found = await scraped(workerless)
    names = ("store", "queue", "mongo", "workers", "snapshots")
    up = {name: found["keepfit_dependency_up", name] for name in names}
    assert up == {"store": 1, "queue": 1, "mongo": 1, "workers": 0, "snapshots": 1}
    assert (found["keepfit_workers", "ready"], found["keepfit_workers", "busy"]) == (0, 0)
    assert found[("keepfit_models_changed",)] == found[("keepfit_models_unloadable",)] == 0
    assert ("keepfit_snapshot_pass_age_seconds",) not in found
    assert found[("process_resident_memory_bytes",)] > 0
    assert ("keepfit_backlog", "models_to_learn") in found
    assert [found[("keepfit_cache_hits_total",)], found[("keepfit_questions_waiting",)]] == [0, 0]


async def test_cache_hits_and_misses_are_counted(api: Api, metadata: dict[str, Any]) -> None:
    """A computed answer counts as a miss, the same answer from the cache as a hit."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, **LABELLED)
    before = await scraped(api)
    for _ in range(20):
        await api.predict(path, **ROWS)
    after = await scraped(api)
    assert after[("keepfit_cache_hits_total",)] > before[("keepfit_cache_hits_total",)]
    assert after[("keepfit_cache_misses_total",)] > before[("keepfit_cache_misses_total",)]
    assert after[("keepfit_cache_bytes",)] > 0


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (BUCKETS_S[0], 0), (0.0006, 1), (10.0, len(BUCKETS_S) - 1), (11.0, len(BUCKETS_S))],
)
def test_a_duration_is_counted_in_its_bucket(seconds: float, bucket: int) -> None:
    """Bucket bounds are inclusive, as in Prometheus; a duration above all bounds is in +Inf only."""

    class Request:
        raw_path, method = "/v1/predict", "POST"

    metrics = RequestMetrics()
    metrics.record(Request(), 200, seconds)  # type: ignore[arg-type]
    _, duration, _ = metrics.collect()
    buckets = [sample for sample in duration.samples if sample.name.endswith("_bucket")]
    assert [sample.labels["le"] for sample in buckets] == [*map(str, BUCKETS_S), "+Inf"]
    assert [sample.value for sample in buckets] == [float(i >= bucket) for i in range(len(BUCKETS_S) + 1)]
    (total,) = [sample.value for sample in duration.samples if sample.name.endswith("_sum")]
    assert total == seconds


def test_a_route_has_one_histogram_for_all_statuses() -> None:
    """Requests are counted by route, method and status; their durations by route and method."""

    class Request:
        raw_path, method = "/v1/predict", "POST"

    metrics = RequestMetrics()
    for status, seconds in ((200, 0.25), (200, 0.5), (202, 20.0)):
        metrics.record(Request(), status, seconds)  # type: ignore[arg-type]
    requests, duration, _ = metrics.collect()
    assert {sample.labels["status"]: sample.value for sample in requests.samples} == {"200": 2, "202": 1}
    (count,) = [sample.value for sample in duration.samples if sample.name.endswith("_count")]
    (total,) = [sample.value for sample in duration.samples if sample.name.endswith("_sum")]
    assert (count, total) == (3, 20.75)


async def test_no_family_has_a_creation_time(workerless: Api) -> None:
    """The exposition holds no `_created` series, which prometheus_client adds to counters and histograms by default."""
    await workerless.get("/livez")
    found = await scraped(workerless)
    assert ("keepfit_requests_total", "GET", "/livez", "200") in found
    assert not [key for key in found if key[0].endswith("_created")]


async def test_a_failed_collection_is_exposed(workerless: Api, settings: Settings) -> None:
    """A failed garbage collection sets its own metric and leaves the state of the snapshots at 1."""
    client = redis_clients.store_async(settings)
    try:
        store = Store(client)
        await store.note_pass(0, "")
        await store.note_collection("", "The storage is another's.")
        found = await scraped(workerless)
        assert (found[("keepfit_collection_failed",)], found["keepfit_dependency_up", "snapshots"]) == (1, 1)
        await store.note_collection("", "")
        assert (await scraped(workerless))[("keepfit_collection_failed",)] == 0
    finally:
        await client.aclose()

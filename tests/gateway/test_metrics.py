"""Metrics: names, counts, and labels that hold no text of clients."""

import math
import uuid
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from keepfit.backends import redis_clients
from keepfit.settings import Settings
from keepfit.store.models import Store
from keepfit_gateway.web.request_counts import BUCKETS_S, RequestMetrics
from tests.gateway.api_client import REGRESSOR, Api

ROWS = {"X": [[1.0, 2.0]]}
LABELLED = {**ROWS, "y": [1.0]}
BY_HASH = "/v1/models/{hash}/"


async def scraped(api: Api) -> dict[tuple[str, ...], float]:
    """Return the values of all samples by name and labels."""
    reply = await api.get("/metrics")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(reply.body.decode())
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


async def test_dependencies_and_backlog_are_exposed(workerless: Api, metadata: dict[str, Any]) -> None:
    """The state of each dependency, the backlog and the memory of the process are exposed."""
    path = await workerless.make(metadata, REGRESSOR)
    (await workerless.post(f"{path}/partial_fit", LABELLED)).of(202)
    found = await scraped(workerless)
    names = ("store", "queue", "mongo", "workers", "snapshots")
    up = {name: found["keepfit_dependency_up", name] for name in names}
    assert up == {"store": 1, "queue": 1, "mongo": 1, "workers": 0, "snapshots": 1}
    assert found[("keepfit_workers",)] == 0
    assert found[("keepfit_models_changed",)] == 0
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
    _, duration = metrics.collect()
    buckets = [sample for sample in duration.samples if sample.name.endswith("_bucket")]
    assert [sample.labels["le"] for sample in buckets] == [*map(str, BUCKETS_S), "+Inf"]
    assert [sample.value for sample in buckets] == [float(i >= bucket) for i in range(len(BUCKETS_S) + 1)]
    (total,) = [sample.value for sample in duration.samples if sample.name.endswith("_sum")]
    assert total == seconds


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

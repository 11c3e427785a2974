"""Metrics in the text format of Prometheus.

Owns names, labels and help texts; `docs/operations/runbook.md` lists them. Never counts and never keeps: it shows what
:mod:`keepfit_gateway.web.request_counts`, the cache and the rooms have counted, and what :mod:`keepfit_gateway.health`
found a moment ago. Invariants: no registry of the process is used; no label holds what a client sent; of a part that is
away nothing is shown but that.
"""

from collections import defaultdict
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from keepfit_gateway.health import OK, Dependencies
from keepfit_gateway.service import Service
from keepfit_gateway.web.request_counts import BUCKETS_S, Requests

# Version 0.0.4 of the format, which every scraper reads.
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Reading(Collector):
    """One scrape: what a gateway shows of itself, and of its parts."""

    def __init__(self, service: Service, parts: Dependencies) -> None:
        self._service = service
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        yield from _requests(self._service.requests)
        yield from self._memory()
        yield from self._waiting()
        yield from self._state()

    def _memory(self) -> Iterator[Metric]:
        cache = self._service.cache
        for name, text, value in (
            ("hits", "Predictions given again from memory.", cache.hits),
            ("misses", "Predictions looked up in memory and not found.", cache.misses),
            (
                "dropped",
                "Kept predictions that a commit, or a break of the subscription, made worthless.",
                cache.dropped,
            ),
        ):
            yield CounterMetricFamily(f"keepfit_cache_{name}", text, value)
        yield GaugeMetricFamily("keepfit_cache_bytes", "Memory that kept predictions take.", cache.bytes)
        yield GaugeMetricFamily("keepfit_cache_answers", "Predictions that are kept.", len(cache))

    def _waiting(self) -> Iterator[Metric]:
        asker, acceptor = self._service.worker_client, self._service.acceptor
        yield GaugeMetricFamily("keepfit_questions_waiting", "Questions of this gateway under way.", asker.waiting)
        yield GaugeMetricFamily("keepfit_accepts_waiting", "Requests that wait for the next trip.", acceptor.waiting)
        recorder = self._service.recorder
        if recorder is not None:
            text = "Accepted calls that wait for the next write to the row log."
            yield GaugeMetricFamily("keepfit_row_log_waiting", text, recorder.waiting)
        backlog = GaugeMetricFamily("keepfit_backlog", "What waits in the queue's Redis.", labels=["what"])
        for what, count in self._parts.backlog.items():
            backlog.add_metric([what], count)
        yield backlog

    def _state(self) -> Iterator[Metric]:
        parts, saving = self._parts, self._parts.saving
        up = GaugeMetricFamily("keepfit_part_up", "1 where a part does what it should, else 0.", labels=["part"])
        for part, well in (
            ("store", parts.store == OK),
            ("queue", parts.queue == OK),
            ("mongo", parts.mongo == OK),
            ("workers", parts.workers > 0),
            ("snapshots", parts.snapshots == OK),
        ):
            up.add_metric([part], float(well))
        if parts.row_log is not None:
            up.add_metric(["row_log"], float(parts.row_log == OK))
        yield up
        if parts.queue == OK:
            yield GaugeMetricFamily("keepfit_workers", "Worker processes alive.", parts.workers)
        if saving is not None:
            yield GaugeMetricFamily("keepfit_models_changed", "Models changed since their snapshot.", saving.changed)
            yield GaugeMetricFamily("keepfit_snapshots_failed", "Models the last pass did not save.", saving.failed)
            collection = "1 where the last pass could not clear up old snapshots or the row log, else 0."
            yield GaugeMetricFamily("keepfit_collection_failed", collection, float(bool(saving.uncollected)))
        if saving is not None and saving.age_s is not None:
            yield GaugeMetricFamily("keepfit_snapshot_pass_age_seconds", "Time since the last pass.", saving.age_s)


def _requests(requests: Requests) -> Iterator[Metric]:
    total = CounterMetricFamily("keepfit_requests", "Requests answered.", labels=["route", "method", "status"])
    seconds = HistogramMetricFamily(
        "keepfit_request_seconds", "Time from a request's head to its answer.", labels=["route", "method"]
    )
    sums: dict[tuple[str, str], float] = defaultdict(float)
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(BUCKETS_S) + 1))
    for (route, method, status), series in sorted(requests.series.items()):
        total.add_metric([route, method, str(status)], sum(series.counts))
        sums[route, method] += series.seconds
        counts[route, method] = [a + b for a, b in zip(counts[route, method], series.counts, strict=True)]
    for (route, method), found in counts.items():
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        buckets = [(bound, float(sum(found[: i + 1]))) for i, bound in enumerate(bounds)]
        seconds.add_metric([route, method], buckets, sums[route, method])
    yield total
    yield seconds


def exposition(service: Service, parts: Dependencies) -> bytes:
    """Text of one scrape; reads `/proc`, so call it beside the event loop."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(Reading(service, parts))
    return generate_latest(registry)

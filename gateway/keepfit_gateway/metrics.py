"""Metrics in the text format of Prometheus.

Owns names, labels and help texts; `docs/operations/runbook.md` lists them. Never counts and never stores: it exposes
what :mod:`keepfit_gateway.web.request_counts`, the prediction cache and the run queues have counted, and the result of
the last probe of :mod:`keepfit_gateway.health`. Invariants: the global registry of the process is not used; no label
holds text from a client; an unavailable dependency has no values but that it is down.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import chain

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from keepfit_gateway.health import OK, Dependencies
from keepfit_gateway.merged_metrics import PUBLISH_S
from keepfit_gateway.service import SERVICE, Service

# Version 0.0.4 of the format, which every scraper reads.
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Version 0.0.4 has no creation times: prometheus_client would add a gauge for each counter and histogram.
disable_created_metrics()  # type: ignore[no-untyped-call]


class OwnMetrics:
    """What each process of a gateway has values of its own of, but the metrics of requests."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def of_process(self) -> Iterator[Metric]:
        """Yield the metric families with the values of this process."""
        yield from self._connections()
        yield from self._cache()
        yield from self._predictions()
        yield from self._pending()
        yield from self._late_labels()
        yield GaugeMetricFamily(
            "keepfit_event_streams", "Clients that events are sent to.", len(self._service.event_feed)
        )

    def _connections(self) -> Iterator[Metric]:
        connections = self._service.connections
        yield GaugeMetricFamily("keepfit_connections", "Open connections of clients.", len(connections))
        text = "Connections closed because there were more than the maximum."
        yield CounterMetricFamily("keepfit_connections_dropped", text, connections.dropped)

    def _cache(self) -> Iterator[Metric]:
        cache = self._service.cache
        for name, text, value in (
            ("hits", "Predictions answered from the cache.", cache.hits),
            ("misses", "Predictions looked up in the cache and not found.", cache.misses),
            (
                "dropped",
                "Cached predictions invalidated by a commit or by an interruption of the commit feed.",
                cache.dropped,
            ),
        ):
            yield CounterMetricFamily(f"keepfit_cache_{name}", text, value)
        yield GaugeMetricFamily("keepfit_cache_bytes", "Memory of cached predictions.", cache.bytes)
        yield GaugeMetricFamily("keepfit_cache_answers", "Cached predictions.", len(cache))

    def _predictions(self) -> Iterator[Metric]:
        counts, scorers = self._service.predictions, self._service.scorers
        text = (
            "Predictions by source: the cache, a scorer in the gateway, a worker, or an earlier answer after an error."
        )
        predictions = CounterMetricFamily("keepfit_predictions", text, labels=["source"])
        for source, count in (
            ("kept", self._service.cache.hits),
            ("scored", counts.scored),
            ("worker", counts.worker),
            ("stale", counts.stale),
        ):
            predictions.add_metric([source], count)
        yield predictions
        yield GaugeMetricFamily("keepfit_scorers", "Scorers held.", scorers.count)
        text = "Memory of the scorers, and of what is known about models without one."
        yield GaugeMetricFamily("keepfit_scorers_bytes", text, scorers.bytes)

    def _pending(self) -> Iterator[Metric]:
        client, acceptor = self._service.queues, self._service.acceptor
        yield GaugeMetricFamily(
            "keepfit_questions_waiting", "Worker requests of this gateway without an answer.", client.pending
        )
        yield GaugeMetricFamily(
            "keepfit_accepts_waiting", "Requests that wait for the next round trip to Redis.", acceptor.pending
        )
        text = "Requests of all models that were put aside as dead letters, as the commit feed announced them."
        yield CounterMetricFamily("keepfit_requests_put_aside", text, self._service.commit_feed.put_aside)
        recorder = self._service.recorder
        if recorder is not None:
            text = "Accepted calls that wait for the next write to the row log."
            yield GaugeMetricFamily("keepfit_row_log_waiting", text, recorder.pending)

    def _late_labels(self) -> Iterator[Metric]:
        kept = self._service.open_rows
        text = "Rows of predictions with an id: kept, answered again as the first time, or refused."
        rows = CounterMetricFamily("keepfit_rows_with_id", text, labels=["outcome"])
        for outcome, count in kept.rows.items():
            rows.add_metric([outcome], count)
        yield rows
        text = "Labels of predicted rows: accepted, or why not."
        labels = CounterMetricFamily("keepfit_late_labels", text, labels=["outcome"])
        for outcome, count in kept.labels.items():
            labels.add_metric([outcome], count)
        yield labels


class Scrape(OwnMetrics, Collector):
    """One scrape: the metrics of a gateway, that is of all its processes, and of its dependencies."""

    def __init__(self, service: Service, dependencies: Dependencies) -> None:
        super().__init__(service)
        self._dependencies = dependencies

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        merged = self._service.process_metrics.merged
        yield from merged(ProcessCollector(registry=None).collect())
        yield from self._service.request_metrics.collect()
        yield from merged(self.of_process())
        yield from self._backlog()
        yield from self._state()
        total = self._service.open_rows.total
        text = "Rows of all models that wait for their labels, as of the last minute."
        yield GaugeMetricFamily("keepfit_open_rows", text, total.rows)
        yield GaugeMetricFamily("keepfit_open_rows_bytes", "Memory of these rows.", total.size_bytes)

    def _backlog(self) -> Iterator[Metric]:
        backlog = GaugeMetricFamily("keepfit_backlog", "Entries in the queue's Redis, by kind.", labels=["what"])
        for what, count in self._dependencies.backlog.items():
            backlog.add_metric([what], count)
        yield backlog

    def _state(self) -> Iterator[Metric]:
        found, snapshots = self._dependencies, self._dependencies.snapshot_state
        up = GaugeMetricFamily("keepfit_dependency_up", "1 if the dependency works, else 0.", labels=["dependency"])
        for dependency, works in (
            ("store", found.store == OK),
            ("queue", found.queue == OK),
            ("mongo", found.mongo == OK),
            ("workers", found.workers.alive > 0),
            ("snapshots", found.snapshots == OK),
        ):
            up.add_metric([dependency], float(works))
        if found.row_log is not None:
            up.add_metric(["row_log"], float(found.row_log == OK))
        yield up
        text = "Servers of the queue, of several, that do not answer this gateway."
        yield GaugeMetricFamily("keepfit_queue_servers_away", text, found.queue_servers_away)
        if found.queue == OK:
            text = "Worker processes alive: ready, or busy in a call longer than the time of a prediction."
            workers = GaugeMetricFamily("keepfit_workers", text, labels=["state"])
            workers.add_metric(["ready"], found.workers.alive - found.workers.busy)
            workers.add_metric(["busy"], found.workers.busy)
            yield workers
        if snapshots is not None:
            yield GaugeMetricFamily("keepfit_models_changed", "Models changed since their snapshot.", snapshots.changed)
            yield GaugeMetricFamily("keepfit_pull_jobs", "Pull jobs that have not ended.", found.pull_jobs)
            text = "Models that are not loaded for an hour, because workers died while they loaded them."
            yield GaugeMetricFamily("keepfit_models_unloadable", text, found.unloadable)
            yield GaugeMetricFamily(
                "keepfit_snapshots_failed", "Models that the last pass failed to save.", snapshots.failed
            )
            text = "1 if the last pass failed to delete old snapshots or to compact the row log, else 0."
            yield GaugeMetricFamily("keepfit_collection_failed", text, float(bool(snapshots.uncollected)))
        if snapshots is not None and snapshots.age_s is not None:
            yield GaugeMetricFamily("keepfit_snapshot_pass_age_seconds", "Time since the last pass.", snapshots.age_s)


def exposition(service: Service, dependencies: Dependencies) -> bytes:
    """Return the text of one scrape. Reads `/proc`, so call it outside of the event loop."""
    registry = CollectorRegistry()
    registry.register(Scrape(service, dependencies))
    return generate_latest(registry)


async def publishing(app: web.Application) -> AsyncIterator[None]:
    """Publish the values of this process for the other processes of its gateway while the application runs."""
    service = app[SERVICE]
    if service.process_metrics.is_alone:
        yield
        return

    async def publish_forever() -> None:
        while True:
            await asyncio.sleep(PUBLISH_S)
            await asyncio.to_thread(_publish, service)

    await asyncio.to_thread(_publish, service)
    task = asyncio.create_task(publish_forever())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await asyncio.to_thread(_publish, service)


def _publish(service: Service) -> None:
    service.process_metrics.publish(chain(ProcessCollector(registry=None).collect(), OwnMetrics(service).of_process()))

"""Counts and durations of requests, by route, method and status, and the count of answers that were not read.

Owns the counts, the histogram and the choice of their labels; :mod:`keepfit_gateway.metrics` exposes them. Invariants:
no label holds text that a client made up; recording a request creates no label string; each request that a process of
the gateway has answered is counted once. Until a scrape they are numbers in
:mod:`keepfit.observability.process_counts`: prometheus_client's own histogram takes a lock twice for each observation.
"""

import re
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from http import HTTPStatus
from itertools import accumulate
from typing import Any

from aiohttp.web_request import BaseRequest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

from keepfit.observability.process_counts import Numbers, Parts, ProcessCounts

Handler = Callable[[BaseRequest], Awaitable[Any]]
Note = Callable[[BaseRequest, Any, float], None]
Labels = tuple[str, ...]

# Upper bounds in seconds: from a cached answer to the time limits.
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LABELS_LE = (*map(str, BUCKETS_S), "+Inf")
# Label of requests without a route: their method and path are arbitrary text of the client.
UNROUTED = "other"

_HASHED = "/v1/models/{hash}/"
# The fast path has four routes, which differ in the length of their paths.
_FAST_PATH_ROUTES = {
    len(path.replace("{hash}", "0" * 64)): path
    for path in ("/v1/predict", "/v1/partial_fit", f"{_HASHED}predict", f"{_HASHED}partial_fit")
}

_ERRORS_FROM = 400
# First texts of the keys of rows.
REQUESTS, ABORTED = "requests", "answers aborted"


class RequestMetrics:
    """All requests that this gateway has answered. Belongs to no registry: one process may run several gateways."""

    def __init__(self, parts: Parts | None = None) -> None:
        self._parts = parts or Parts(ProcessCounts())
        self._aborted = self._parts.own.row((ABORTED,))
        # The counts of requests with the same labels, by bucket (the last one is +Inf), and the sum of their seconds.
        self._durations: dict[tuple[str, str, int], Numbers] = {}
        self._immediate: dict[str, Numbers] = {}
        self._routes: list[tuple[re.Pattern[str], str, Collection[str]]] = []

    def set_routes(self, methods_of_paths: Mapping[str, Collection[str]]) -> None:
        """Set the templates of paths with their methods, by which refusals before the router are counted."""
        self._routes = [
            (re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), path, methods)
            for path, methods in methods_of_paths.items()
        ]

    def record(self, request: BaseRequest, status: int, seconds: float) -> None:
        """Count a request that was answered with `status` after `seconds`."""
        match = getattr(request, "_match_info", None)
        if match is None:
            # The request never reached the router: the fast path answered it, or the guard refused it.
            if status < _ERRORS_FROM:
                route: str | None = _FAST_PATH_ROUTES.get(len(request.raw_path))
            else:
                route = self._route_of(request)
        else:
            resource = match.route.resource
            route = None if resource is None else resource.canonical
        self._count((route, request.method, status) if route is not None else (UNROUTED, UNROUTED, status), seconds)

    def record_immediate(self, route: str, seconds: float) -> None:
        """Count a POST that was answered with 200 as soon as it had arrived."""
        # Found by its route alone: the hash of a status takes as long as all else here.
        durations = self._immediate.get(route)
        if durations is None:
            durations = self._immediate[route] = self._row((route, "POST", HTTPStatus.OK))
        durations[bisect_left(BUCKETS_S, seconds)] += 1
        durations[-1] += seconds

    def _count(self, key: tuple[str, str, int], seconds: float) -> None:
        durations = self._durations.get(key)
        if durations is None:
            durations = self._row(key)
        durations[bisect_left(BUCKETS_S, seconds)] += 1
        durations[-1] += seconds

    def _row(self, key: tuple[str, str, int]) -> Numbers:
        """Return the counts of requests with the same labels, by bucket, and the sum of their seconds."""
        route, method, status = key
        row = self._parts.own.row((REQUESTS, route, method, str(int(status))), len(LABELS_LE) + 1)
        self._durations[key] = row
        return row

    def count_aborted_answer(self) -> None:
        """Count a connection that was aborted because its client did not read its answers."""
        self._aborted[0] += 1

    @property
    def answered(self) -> int:
        """Number of requests that this process has answered."""
        return int(sum(sum(durations[:-1]) for durations in self._durations.values()))

    def _route_of(self, request: BaseRequest) -> str | None:
        """Return the route that a refused request would have reached."""
        path = request.raw_path.partition("?")[0]
        return next(
            (p for form, p, methods in self._routes if request.method in methods and form.fullmatch(path)), None
        )

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        requests = CounterMetricFamily("keepfit_requests", "Requests answered.", labels=["route", "method", "status"])
        text = "Time from the head of a request to its response."
        seconds = HistogramMetricFamily("keepfit_request_seconds", text, labels=["route", "method"])
        by_status: dict[Labels, list[float]] = {}
        by_route: dict[Labels, list[float]] = {}
        aborted = 0.0
        for part in (self._parts.own, *self._parts.others):
            for (kind, *labels), numbers in part.rows().items():
                if kind == REQUESTS:
                    _add(by_status, tuple(labels), numbers)
                    _add(by_route, tuple(labels[:2]), numbers)
                elif kind == ABORTED:
                    aborted += numbers[0]
        for labels_of_status, (*counts, _) in by_status.items():
            requests.add_metric(labels_of_status, sum(counts))
        for labels_of_route, (*counts, sum_s) in by_route.items():
            seconds.add_metric(labels_of_route, list(zip(LABELS_LE, accumulate(counts), strict=True)), sum_s)
        yield requests
        yield seconds
        text = "Connections aborted because their client did not read its answers."
        yield CounterMetricFamily("keepfit_answers_aborted", text, aborted)


def _add(sums: dict[Labels, list[float]], labels: Labels, numbers: Numbers) -> None:
    """Add numbers to those with the same labels."""
    before = sums.get(labels)
    sums[labels] = list(numbers) if before is None else [one + more for one, more in zip(before, numbers, strict=True)]


def count_requests(metrics: RequestMetrics, handler: Handler, note: Note | None = None) -> Handler:
    """Return `handler` with its responses counted, and given to `note` with their requests and seconds.

    A request whose client disconnects earlier is not counted.
    """
    clock, record = time.perf_counter, metrics.record

    async def handle(request: BaseRequest) -> Any:
        started = clock()
        answer = await handler(request)
        # Of a stream of events, the time until it begins.
        ended = getattr(answer, "prepared_s", None) or clock()
        record(request, answer.status, ended - started)
        if note is not None:
            note(request, answer, ended - started)
        return answer

    return handle

"""Counts and durations of requests, by route, method and status.

Owns the counts, the histogram and the choice of their labels; :mod:`keepfit_gateway.metrics` exposes them. Invariants:
no label holds text that a client made up; recording a request creates no label string. The histogram's children are
cached, because ``labels()`` takes longer than an observation; counts are plain numbers until a scrape.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp.web_request import BaseRequest
from prometheus_client import Histogram
from prometheus_client.metrics_core import CounterMetricFamily, Metric

Handler = Callable[[BaseRequest], Awaitable[Any]]

# Upper bounds in seconds: from a cached answer to the time limits.
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Label of requests without a route: their method and path are arbitrary text of the client.
UNROUTED = "other"

_HASHED = "/v1/models/{hash}/"
# The fast path has four routes, which differ in the length of their paths.
_FAST_PATH_ROUTES = {
    len(path.replace("{hash}", "0" * 64)): path
    for path in ("/v1/predict", "/v1/partial_fit", f"{_HASHED}predict", f"{_HASHED}partial_fit")
}


class RequestMetrics:
    """All requests that this gateway has answered. Belongs to no registry: one process may run several gateways."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], int] = {}
        self._seconds = Histogram(
            "keepfit_request_seconds",
            "Time from the head of a request to its response.",
            ["route", "method"],
            buckets=BUCKETS_S,
            registry=None,
        )
        self._children: dict[tuple[str, str, int], Histogram] = {}

    def record(self, request: BaseRequest, status: int, seconds: float) -> None:
        """Count a request that was answered with `status` after `seconds`."""
        match = getattr(request, "_match_info", None)
        if match is None:
            # The request never reached the router, so the fast path answered it.
            route: str | None = _FAST_PATH_ROUTES.get(len(request.raw_path))
        else:
            resource = match.route.resource
            route = None if resource is None else resource.canonical
        key = (route, request.method, status) if route is not None else (UNROUTED, UNROUTED, status)
        duration = self._children.get(key)
        if duration is None:
            duration = self._children[key] = self._seconds.labels(*key[:2])
            self._counts[key] = 0
        self._counts[key] += 1
        duration.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield both metric families."""
        requests = CounterMetricFamily("keepfit_requests", "Requests answered.", labels=["route", "method", "status"])
        for (route, method, status), count in list(self._counts.items()):
            requests.add_metric([route, method, str(status)], count)
        yield requests
        yield from self._seconds.collect()


def count_requests(metrics: RequestMetrics, handler: Handler) -> Handler:
    """Return `handler` with its responses counted. A request whose client disconnects earlier is not counted."""
    clock, record = time.perf_counter, metrics.record

    async def handle(request: BaseRequest) -> Any:
        started = clock()
        answer = await handler(request)
        record(request, answer.status, clock() - started)
        return answer

    return handle

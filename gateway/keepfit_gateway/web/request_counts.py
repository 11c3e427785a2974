"""Counts of requests: how many of each route ended how, and how long they took.

Owns the numbers and nothing else; :mod:`keepfit_gateway.metrics` shows them. Invariant: counting costs a request less
than the clock it is timed by: two lookups and three additions, no lock, no string made.
"""

import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.web_request import BaseRequest

Handler = Callable[[BaseRequest], Awaitable[Any]]

# Upper bounds in seconds: from an answer out of memory to the time limits.
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Where nothing is routed to, method and path are whatever somebody made up: no label may hold them.
NOWHERE = "other"

_HASHED = "/v1/models/{hash}/"
# The short way is for four addresses, whose lengths tell them apart.
_SHORT = {
    len(path.replace("{hash}", "0" * 64)): path
    for path in ("/v1/predict", "/v1/partial_fit", f"{_HASHED}predict", f"{_HASHED}partial_fit")
}


class Series:
    """Requests of one route and method that ended with one status; `counts` by bucket, the last for the slower ones."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0


class Requests:
    """All requests that this gateway has answered, by (route, method, status)."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str, int], Series] = {}

    def note(self, request: BaseRequest, status: int, seconds: float) -> None:
        """Count a request that was answered with `status` after `seconds`."""
        match = getattr(request, "_match_info", None)
        if match is None:
            # It never came to the router, so it went the short way.
            route: str | None = _SHORT.get(len(request.raw_path))
        else:
            resource = match.route.resource
            route = None if resource is None else resource.canonical
        key = (route, request.method, status) if route is not None else (NOWHERE, NOWHERE, status)
        series = self.series.get(key)
        if series is None:
            series = self.series[key] = Series()
        series.counts[bisect_left(BUCKETS_S, seconds)] += 1
        series.seconds += seconds


def counted(requests: Requests, handler: Handler) -> Handler:
    """Count what `handler` answers; who goes away before the answer is not counted."""
    clock, note = time.perf_counter, requests.note

    async def handle(request: BaseRequest) -> Any:
        started = clock()
        answer = await handler(request)
        note(request, answer.status, clock() - started)
        return answer

    return handle

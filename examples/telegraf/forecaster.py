"""Forecast the load of each host that Telegraf reports: a small server between Telegraf and keepfit.

`POST /telegraf` learns a batch, `GET /forecast?host=NAME` answers the next minute. Invariant: a value is part of the
series only after keepfit has accepted it. If keepfit is unavailable the answer is 503, and Telegraf sends the batch
again; a value that was accepted and is sent again has the same Idempotency-Key, its time, and is learned once.
"""

import asyncio
import math
import os
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from keepfit import AsyncClient
from keepfit.client.clients import AsyncModel
from keepfit.errors import ConflictError, InvalidError, KeepfitError
from series import RECIPE, STEP_S, Series

METRIC, FIELD = "cpu", "usage_active"
# Hosts beyond these are not learned: a name in a batch makes a model.
HOSTS_MAX = 1000
# Less than the 30 s for which Telegraf waits.
TIMEOUT_S = 25.0


class Host:
    """A host: its series, and the model that forecasts it."""

    def __init__(self, keepfit: AsyncClient, name: str) -> None:
        self.name = name
        self.series = Series()
        self._keepfit = keepfit
        self._model: AsyncModel | None = None
        # Telegraf may send a batch again while the first one is processed.
        self._lock = asyncio.Lock()

    async def learn(self, values: list[tuple[int, float]]) -> None:
        """Learn values that are later than the series, in time order."""
        async with self._lock:
            if self._model is None:
                metadata = {"type": "forecast", "metric": f"{METRIC}.{FIELD}", "host": self.name}
                self._model = await self._keepfit.create(metadata, RECIPE)
            for at, value in sorted(values):
                if at <= self.series.at:
                    continue
                if row := self.series.row_at(at):
                    await self._model.partial_fit([row], [value], idempotency_key=str(at))
                self.series.append(at, value)

    async def forecast(self) -> dict[str, Any] | None:
        """Return the value that is expected next, and how wrong such forecasts were; None if too little is known."""
        at, last = self.series.at + STEP_S, self.series.last
        row = self.series.row_at(at)
        if self._model is None or row is None:
            return None
        try:
            predictions = await self._model.predict([row])
        except ConflictError:  # It has learned no row.
            return None
        # Empty until a row was predicted before it was learned.
        window = (await self._model.describe())["metrics"].get("window", {})
        return {
            "host": self.name,
            "at": at,
            "value": predictions[0],
            "last": last,
            "error": window.get("mean_absolute_error"),
            "error_of_no_change": self.series.error_of_no_change(),
        }


KEEPFIT = web.AppKey("keepfit", AsyncClient)
HOSTS = web.AppKey("hosts", dict[str, Host])


async def learn(request: web.Request) -> web.Response:
    """Learn the values of a batch: of each host in their order, of several hosts at the same time."""
    try:
        batch = values_of(await request.json())
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise web.HTTPBadRequest(text=f"not a batch of Telegraf's JSON format: {error!r}") from None
    hosts = request.app[HOSTS]
    for name in batch:
        if name not in hosts and len(hosts) < HOSTS_MAX:
            hosts[name] = Host(request.app[KEEPFIT], name)
    await asyncio.gather(*(hosts[name].learn(values) for name, values in batch.items() if name in hosts))
    return web.Response(status=204)


async def forecast(request: web.Request) -> web.Response:
    """Answer with the value that is expected in the next minute."""
    name = request.query.get("host", "")
    host = request.app[HOSTS].get(name)
    answer = await host.forecast() if host else None
    if answer is None:
        raise web.HTTPNotFound(text=f"too few values of the host {name!r} are known")
    return web.json_response(answer)


def values_of(body: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Return the values of the metric in a batch, by host: pairs of a full minute and a value.

    Raises
    ------
    KeyError, OverflowError, TypeError, ValueError
        If it has another form, or a value that is no finite number.

    >>> values_of({"metrics": [{"name": "cpu", "tags": {"host": "a"}, "fields": {"usage_active": 7}, "timestamp": 61}]})
    {'a': [(60, 7.0)]}
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for metric in body["metrics"]:
        if metric["name"] == METRIC and FIELD in metric["fields"]:
            minute = STEP_S * round(metric["timestamp"] / STEP_S)
            value = float(metric["fields"][FIELD])
            if not math.isfinite(value):
                raise ValueError(f"{value} is not a finite number")
            found.setdefault(metric["tags"]["host"], []).append((minute, value))
    return found


@web.middleware
async def answer_unavailable(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answer 503 if keepfit gives no answer, or an error: Telegraf sends the batch again. 400 ends that."""
    try:
        response: web.StreamResponse = await handler(request)
    except InvalidError as error:
        raise web.HTTPBadRequest(text=str(error)) from None
    except KeepfitError as error:
        raise web.HTTPServiceUnavailable(text=str(error), headers={"Retry-After": "1"}) from None
    return response


async def connect(app: web.Application) -> AsyncIterator[None]:
    """Keep connections to keepfit while the server runs."""
    url = os.environ.get("KEEPFIT_URL", "http://127.0.0.1:8000")
    async with AsyncClient(url, os.environ.get("KEEPFIT_API_KEY"), TIMEOUT_S) as app[KEEPFIT]:
        yield


def application() -> web.Application:
    """Return the server."""
    app = web.Application(middlewares=[answer_unavailable])
    app[HOSTS] = {}
    app.cleanup_ctx.append(connect)
    app.router.add_post("/telegraf", learn)
    app.router.add_get("/forecast", forecast)
    return app


if __name__ == "__main__":
    web.run_app(application(), host="127.0.0.1", port=int(os.environ.get("PORT", "8090")))

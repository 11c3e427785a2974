"""Handler of the state of the whole service: gateways, workers, models, waiting work, dependencies and snapshots.

Owns the document of `GET /v1/system`. Changes nothing. Invariants: it answers whatever does not; a part that cannot be
read in time is null; its work does not grow with the number of models, which are counted in memory
(:mod:`keepfit_gateway.model_overview`).
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from keepfit.errors import InvalidError, UnavailableError
from keepfit.jobs import traffic
from keepfit.store.snapshot_state import SnapshotState
from keepfit_gateway import health, schemas
from keepfit_gateway.handlers.operations import ready_answer
from keepfit_gateway.model_overview import Reading
from keepfit_gateway.service import SERVICE
from keepfit_gateway.web.responses import json_response

T = TypeVar("T")

PART_TIMEOUT_S = 5.0


async def show_system(request: web.Request) -> web.Response:
    """GET /v1/system: the state of the whole service."""
    service = request.app[SERVICE]
    dependencies, gateways, workers, unclaimed_s, reading, counts = await asyncio.gather(
        health.probe(service),
        _part(service.queues.gateways()),
        _part(service.queues.worker_records()),
        _part(service.queues.unclaimed_s()),
        _part(service.overview.read()),
        _part(service.queues.traffic([traffic.ALL])),
    )
    now = time.time()
    answer = schemas.SystemAnswer(
        timestamp=now,
        ready=ready_answer(request, dependencies),
        gateways=None if gateways is None else [_gateway(record) for record in gateways],
        workers=None if workers is None else [schemas.WorkerAnswer(**dataclasses.asdict(each)) for each in workers],
        models=None if reading is None else schemas.ModelCounts(registered=len(reading.lines), live=reading.live),
        waiting=_waiting(reading, dependencies, unclaimed_s),
        snapshots=_snapshots(dependencies.snapshot_state, now),
        traffic=None if counts is None else schemas.Traffic(**traffic.describe(counts[traffic.ALL])),
        pull_jobs=dependencies.pull_jobs,
        unloadable=dependencies.unloadable,
    )
    return json_response(answer)


def _gateway(record: Any) -> schemas.GatewayAnswer:
    return msgspec.convert(record, schemas.GatewayAnswer, from_attributes=True)


def _snapshots(state: SnapshotState | None, now: float) -> schemas.SnapshotPass | None:
    if state is None:
        return None
    ended = 0.0 if state.age_s is None else now - state.age_s
    return schemas.SnapshotPass(ended=ended, changed=state.changed, failed=state.failed)


def _waiting(
    reading: Reading | None, dependencies: health.Dependencies, unclaimed_s: float | None
) -> schemas.Waiting | None:
    if dependencies.queue != health.OK or unclaimed_s is None:
        return None
    models, requests = (None, None) if reading is None else reading.pending
    to_learn, to_predict = (dependencies.backlog[f"models_to_{work}"] for work in ("learn", "predict"))
    # While leases linger, the time of what they have claimed may still be stored.
    oldest_s = unclaimed_s if to_learn else 0.0
    return schemas.Waiting(models=models, requests=requests, models_to_predict=to_predict, oldest_s=oldest_s)


async def _part(read: Awaitable[T]) -> T | None:
    """Return what a part of the answer is, or None if it cannot be read."""
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            return await read
    except (UnavailableError, InvalidError, TimeoutError):
        return None

"""Health of the dependencies of a gateway, probed on demand.

Owns the list of dependencies and what each is required for: store, queue and a worker to learn and predict; MongoDB and
snapshots to create and restore models; the row log, if one is configured, to learn. Invariant: a probe has a time
limit; a dependency that does not answer within it counts as unavailable. The result goes to the readiness probe and to
metrics.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Literal, TypeVar

from keepfit.errors import UnavailableError
from keepfit.store import unloadable
from keepfit.store.snapshot_state import SnapshotState
from keepfit_gateway.service import Service
from keepfit_gateway.worker_client import Workers

# Less than the default timeout of a Kubernetes probe (1 s), so that the response names the dependency that hangs.
PROBE_TIMEOUT_S = 0.8
OK = "ok"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The state of each dependency: "ok" or the reason for its failure. `backlog` counts entries of the queue by kind.

    Reasons may name addresses, paths and hashes. `row_log` is None if no row log is configured. A worker whose call has
    taken more than `call_s` seconds is busy. No worker loads the bundles of `unloadable` models.
    """

    store: str
    queue: str
    mongo: str
    row_log: str | None
    workers: Workers
    snapshot_state: SnapshotState | None
    backlog: dict[str, int]
    call_s: float
    unloadable: int
    pull_jobs: int = 0
    queue_servers: int = 1
    queue_servers_away: int = 0

    @property
    def detail(self) -> str | None:
        """Why requests wait or fail although workers are alive, or may do soon; None if none do.

        Names no address, path or hash.
        """
        found, alive = [], self.workers.alive
        if self.queue == OK and self.queue_servers_away:
            away = f"{self.queue_servers_away} of {self.queue_servers}"
            found.append(f"Servers of the queue that do not answer: {away}; the others serve their models.")
        if self.workers.busy >= max(alive, 1):
            found.append(f"All workers ({alive}) are in calls that have taken more than {self.call_s:g} s.")
        if self.unloadable:
            found.append(f"Models that no worker loads, because workers died of it: {self.unloadable}.")
        return " ".join(found) or None

    @property
    def snapshots(self) -> str:
        """Whether the last snapshot pass saved every changed model. "ok" also if there was no pass yet."""
        if self.snapshot_state is None:
            return self.store
        return self.snapshot_state.reason or OK

    @property
    def status(self) -> Literal["ok", "degraded", "unavailable"]:
        """`unavailable` without store, queue or workers, `degraded` with a detail or if another dependency fails."""
        if (self.store, self.queue) != (OK, OK) or not self.workers.alive:
            return "unavailable"
        others = (self.mongo, self.snapshots, self.row_log or OK)
        return "degraded" if self.detail or others != (OK, OK, OK) else "ok"


async def probe(service: Service) -> Dependencies:
    """Probe all dependencies concurrently."""

    async def queue() -> tuple[Workers, dict[str, int]]:
        return await service.queues.workers(), await service.queues.backlog()

    async def store() -> tuple[SnapshotState, int, int]:
        unloadables = await unloadable.count_models(service.store.client)
        return await service.store.snapshot_state(), unloadables, await service.pull_jobs.count_open()

    async def row_log() -> str | None:
        return None if service.recorder is None else (await _probe_one(service.recorder.check()))[1]

    (stored, store_state), (found, queue_state), (_, mongo), log_state = await asyncio.gather(
        _probe_one(store()), _probe_one(queue()), _probe_one(service.history.ping()), row_log()
    )
    # Responses without an admin key do not say why, so the log does: here of MongoDB; where they are read all the time,
    # of the others.
    if mongo == OK:
        service.mongo_outage.end()
    else:
        service.mongo_outage.begin(mongo)
    snapshot_state, unloadables, jobs = stored or (None, 0, 0)
    workers, backlog = found or (Workers(0, 0), {})
    call_s = service.settings.predict_timeout_s
    return Dependencies(
        store_state, queue_state, mongo, log_state, workers, snapshot_state, backlog, call_s, unloadables, jobs,
        len(service.queues.servers), service.queues.away,
    )  # fmt: skip


async def _probe_one(operation: Awaitable[T]) -> tuple[T | None, str]:
    """Return the result of `operation` and "ok", or None and the reason for its failure or timeout."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await operation, OK
    except UnavailableError as error:
        return None, str(error)
    except TimeoutError:
        return None, f"No answer came within {PROBE_TIMEOUT_S:g} s."

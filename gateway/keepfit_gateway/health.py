"""Health of the dependencies of a gateway, probed on demand.

Owns the list of dependencies and what each is required for: store, queue and a worker to learn and predict; MongoDB and
snapshots to create and restore models; the row log, if one is configured, to learn. Invariant: a probe has a time
limit; a dependency that does not answer within it counts as unavailable. The result goes to the readiness probe and to
metrics.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from keepfit.errors import UnavailableError
from keepfit.store.models import SnapshotState
from keepfit_gateway.service import Service

# Less than the default timeout of a Kubernetes probe (1 s), so that the response names the dependency that hangs.
PROBE_TIMEOUT_S = 0.8
OK = "ok"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The state of each dependency: "ok" or the reason for its failure. `backlog` counts entries of the queue by kind.

    `row_log` is None if no row log is configured.
    """

    store: str
    queue: str
    mongo: str
    row_log: str | None
    workers: int
    snapshot_state: SnapshotState | None
    backlog: dict[str, int]

    @property
    def snapshots(self) -> str:
        """Whether the last snapshot pass saved every changed model. "ok" also if there was no pass yet."""
        if self.snapshot_state is None:
            return self.store
        return self.snapshot_state.reason or OK

    @property
    def status(self) -> str:
        """`unavailable` if no prediction can be computed, `degraded` if another dependency fails, else `ok`."""
        if (self.store, self.queue) != (OK, OK) or not self.workers:
            return "unavailable"
        return OK if (self.mongo, self.snapshots, self.row_log or OK) == (OK, OK, OK) else "degraded"


async def probe(service: Service) -> Dependencies:
    """Probe all dependencies concurrently."""

    async def queue() -> tuple[int, dict[str, int]]:
        return await service.worker_client.workers_alive(), await service.worker_client.backlog()

    async def row_log() -> str | None:
        return None if service.recorder is None else (await _probe_one(service.recorder.check()))[1]

    (snapshot_state, store), (found, queue_state), (_, mongo), log_state = await asyncio.gather(
        _probe_one(service.store.snapshot_state()), _probe_one(queue()), _probe_one(service.history.ping()), row_log()
    )
    workers, backlog = found or (0, {})
    return Dependencies(store, queue_state, mongo, log_state, workers, snapshot_state, backlog)


async def _probe_one(operation: Awaitable[T]) -> tuple[T | None, str]:
    """Return the result of `operation` and "ok", or None and the reason for its failure or timeout."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await operation, OK
    except UnavailableError as error:
        return None, str(error)
    except TimeoutError:
        return None, f"No answer came within {PROBE_TIMEOUT_S:g} s."

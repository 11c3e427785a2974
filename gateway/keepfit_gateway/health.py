"""How the parts that a gateway works with are doing, asked at this moment.

Owns which parts there are, and what is needed for what: store, queue and a worker to learn and predict; MongoDB and
snapshots to make and to restore; the row log, where there is one, to learn. Never waits long: a part that does not
answer in time is away. Data goes to the readiness probe and to metrics.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from keepfit.errors import UnavailableError
from keepfit.store.models import SnapshotState
from keepfit_gateway.service import Service

# Less than the second that probes are given by default, so that a part that hangs is told of and not guessed.
PROBE_TIMEOUT_S = 0.8
OK = "ok"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What each part answered: "ok", or why it did not; `backlog` counts what waits in the queue, by name.

    `row_log` is None where there is none.
    """

    store: str
    queue: str
    mongo: str
    row_log: str | None
    workers: int
    saving: SnapshotState | None
    backlog: dict[str, int]

    @property
    def snapshots(self) -> str:
        """Whether the last pass saved all that had changed, "ok" too where none was made yet."""
        if self.saving is None:
            return self.store
        return self.saving.reason or OK

    @property
    def status(self) -> str:
        """`unavailable` where no prediction can be computed, `degraded` where something else is amiss."""
        if (self.store, self.queue) != (OK, OK) or not self.workers:
            return "unavailable"
        return OK if (self.mongo, self.snapshots, self.row_log or OK) == (OK, OK, OK) else "degraded"


async def look(service: Service) -> Dependencies:
    """Ask all parts at once."""

    async def queue() -> tuple[int, dict[str, int]]:
        return await service.worker_client.workers_alive(), await service.worker_client.backlog()

    async def row_log() -> str | None:
        return None if service.recorder is None else (await _probed(service.recorder.check()))[1]

    (saving, store), (found, queue_state), (_, mongo), logging = await asyncio.gather(
        _probed(service.store.snapshot_state()), _probed(queue()), _probed(service.history.ping()), row_log()
    )
    workers, backlog = found or (0, {})
    return Dependencies(store, queue_state, mongo, logging, workers, saving, backlog)


async def _probed(question: Awaitable[T]) -> tuple[T | None, str]:
    """Ask a part; return its answer with "ok", or why there is none in time."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await question, OK
    except UnavailableError as error:
        return None, str(error)
    except TimeoutError:
        return None, f"No answer came within {PROBE_TIMEOUT_S:g} s."

"""What this process of a gateway counts of each model: rows in and out, predictions by source, and their latency.

Owns the counts of the present period; :mod:`keepfit.jobs.traffic` owns their form, and has the sums over all processes.
Never waits for Redis while it counts, and never counts a request that failed. Invariants: counting takes the same time
whatever was counted before; memory is bounded: models beyond :data:`MODELS_MAX` in a period are in the sum alone.
"""

import asyncio
import heapq
from contextlib import suppress
from math import frexp
from typing import Any

from keepfit.errors import UnavailableError
from keepfit.jobs import traffic
from keepfit.jobs.traffic import ALL, MORE_ROWS_OUT, ROWS_IN, WIDTH, Counts

# Models that are counted in a period, of some 1,300 bytes each.
MODELS_MAX = 5_000
# Models whose counts are encoded before other work has its turn.
SLICE = 200


class TrafficCounts:
    """The counts of one process, which are written when a period ends; `name` is that of its record."""

    def __init__(self, queue: Any, name: str) -> None:
        self._queue, self._name = queue, name
        self._models: dict[str, Counts] = {}
        # Of models beyond the bound.
        self._others: Counts = [0] * WIDTH
        self._slot = 0

    def predicted(self, model_hash: str, source: int, rows: int, seconds: float) -> None:
        """Count a prediction: where it came from (:data:`~keepfit.jobs.traffic.SOURCES`), its rows and its latency."""
        counts = self._models.get(model_hash)
        if counts is None:
            counts = self._begin(model_hash)
        # As `position_of`, without the call.
        counts[source + frexp(seconds)[1]] += 1
        if rows != 1:
            counts[MORE_ROWS_OUT] += rows - 1

    def accepted(self, model_hash: str, rows: int) -> None:
        """Count rows that were accepted to be learned."""
        (self._models.get(model_hash) or self._begin(model_hash))[ROWS_IN] += rows

    def _begin(self, model_hash: str) -> Counts:
        if len(self._models) >= MODELS_MAX:
            return self._others
        counts = self._models[model_hash] = [0] * WIDTH
        return counts

    async def publish_forever(self) -> None:
        """Write the counts of each period when it has ended, until cancelled."""
        while True:
            await asyncio.sleep(traffic.PERIOD_S)
            # Without Redis, what was counted in the period is lost.
            with suppress(UnavailableError):
                await self.publish()

    async def publish(self) -> None:
        """Write what was counted since the last call, and begin from 0 again.

        Raises
        ------
        UnavailableError
            If the queue's Redis is unavailable.
        """
        models, total = self._models, self._others
        self._models, self._others = {}, [0] * WIDTH
        slot, self._slot = self._slot, (self._slot + 1) % traffic.SLOTS
        everything = list(models.items())
        for begin in range(0, len(everything), SLICE):
            some = [counts for _, counts in everything[begin : begin + SLICE]]
            total = traffic.added_up([total, *some])
            await asyncio.sleep(0)
        if len(everything) > traffic.MODELS_MAX:
            everything = heapq.nlargest(traffic.MODELS_MAX, everything, key=_rows)
        fields = {model_hash: traffic.encode(counts) for model_hash, counts in everything}
        await traffic.write(self._queue, self._name, slot, fields | ({ALL: traffic.encode(total)} if fields else {}))


def _rows(entry: tuple[str, Counts]) -> int:
    return entry[1][ROWS_IN] + traffic.rows_out(entry[1])

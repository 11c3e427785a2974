"""The heartbeat of this process of a gateway: its record in the queue's Redis, for lists of all gateways.

Owns when the record is written and removed; :mod:`keepfit.jobs.gateway_records` owns its form. Never serves a request.
Invariant: without Redis the process serves as before, and its record is written again when Redis is back.
"""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from keepfit.errors import UnavailableError
from keepfit.jobs import gateway_records
from keepfit.jobs.gateway_records import GatewayRecord

HEARTBEAT_S = 5.0


class Heartbeat:
    """Writes the record of one process; `answered`, `connections` and `event_streams` return its present numbers."""

    def __init__(
        self,
        queue: Any,
        answered: Callable[[], int],
        connections: Callable[[], int],
        event_streams: Callable[[], int],
    ) -> None:
        self._queue = queue
        self._answered, self._connections, self._event_streams = answered, connections, event_streams
        self._host, self._pid, self._started = socket.gethostname(), os.getpid(), time.time()
        self.name = f"{self._host}.{self._pid}.{uuid.uuid4().hex[:8]}"
        self._before, self._before_s = 0, time.monotonic()

    async def beat_forever(self) -> None:
        """Write the record every :data:`HEARTBEAT_S` seconds until cancelled."""
        while True:
            with suppress(UnavailableError):
                await gateway_records.write(self._queue, self.record())
            await asyncio.sleep(HEARTBEAT_S)

    async def close(self) -> None:
        """Remove the record; without Redis it is no longer listed after a while."""
        with suppress(UnavailableError):
            await gateway_records.remove(self._queue, self.name)

    def record(self) -> GatewayRecord:
        """Return the record, whose rate is that since the last call."""
        answered, now_s = self._answered(), time.monotonic()
        rate = (answered - self._before) / max(now_s - self._before_s, 0.001)
        self._before, self._before_s = answered, now_s
        return GatewayRecord(
            name=self.name,
            host=self._host,
            pid=self._pid,
            started=self._started,
            requests_per_s=round(rate, 1),
            connections=self._connections(),
            event_streams=self._event_streams(),
        )

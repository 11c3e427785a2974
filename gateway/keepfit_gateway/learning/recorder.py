"""Recording accepted calls in the row log: all calls that arrive during one write go into the next object.

Owns the calls that wait for the log, and whether the log was last known to work. Never accepts:
:mod:`keepfit_gateway.learning.acceptor` does that first, and accepts on during a write. Invariant: success is reported
only after the calls are in the log and their models are, after the write, still what the calls were accepted for: a
restore that read the log earlier cannot have missed them (`docs/concepts/row-log.md`).
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis.asyncio
import structlog

from keepfit.backends.batcher import Batcher
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.observability import failpoints
from keepfit.observability.outage import Outage
from keepfit.rowlog.row_log import Call, RowLog
from keepfit.store import inbox

log = structlog.get_logger(__name__)

# The time that an object store has to answer. Calls that arrive while a write takes longer are refused at once.
WRITE_S_MAX = 20.0
# Size of one object, unless a single call is larger. An object is in memory twice while it is written.
OBJECT_BYTES_MAX = 32 * 2**20
LOG_UNAVAILABLE = "The row log is unavailable, so nothing is accepted; send it again."
NOT_LOGGED = (
    "Redis has accepted this, but the row log did not store it; send it again with the same Idempotency-Key, or it may "
    "be learned twice."
)

OnRecorded = Callable[[KeepfitError | None], None]


@dataclass(frozen=True, slots=True)
class _Entry:
    call: Call
    on_recorded: OnRecorded


class Recorder:
    """Writes the calls of one gateway into the row log."""

    def __init__(self, store: redis.asyncio.Redis, rows: RowLog) -> None:
        self._rows = rows
        self._connection = ScriptConnection(store)
        self._calls = Batcher(self._record)
        self._thread = ThreadPoolExecutor(1, "rowlog")
        self._abandoned: asyncio.Future[None] | None = None
        self._known_good = False
        self._outage = Outage("row log", "nothing is accepted")

    @property
    def pending(self) -> int:
        """Number of calls that arrived during the current write and go with the next one."""
        return len(self._calls)

    async def check(self) -> None:
        """Raise UnavailableError if the last write to the log failed and a probe fails now."""
        if not self._known_good:
            try:
                await self._in_thread(self._rows.probe)
            except UnavailableError as error:
                raise UnavailableError(LOG_UNAVAILABLE) from error

    def put(self, call: Call, on_recorded: OnRecorded) -> None:
        """Record a call with the next write; `on_recorded` is called with the error, or None on success."""
        self._calls.put(_Entry(call, on_recorded))

    async def record(self, calls: Sequence[Call]) -> None:
        """Record calls and wait for the write; raise the error of the first call that was not recorded."""
        outcomes = [asyncio.get_running_loop().create_future() for _ in calls]
        for call, outcome in zip(calls, outcomes, strict=True):
            self.put(call, partial(_resolve, outcome))
        for error in await asyncio.gather(*outcomes):
            if error is not None:
                raise error

    async def _record(self, batch: list[_Entry]) -> None:
        calls = [entry.call for entry in batch]
        failpoints.reach("rowlog.accepted")
        errors: Sequence[KeepfitError | None]
        try:
            for group in _objects(calls):
                await self._write(group)
            failpoints.reach("rowlog.written")
            errors = await inbox.verify_accepted(self._connection, calls)
        except UnavailableError as unavailable:
            errors = [unavailable] * len(batch)
        except Exception:
            log.exception("record_failed")
            errors = [KeepfitError("The request could not be logged; the gateway's log has the details.")] * len(batch)
        for entry, error in zip(batch, errors, strict=True):
            entry.on_recorded(error)

    async def _write(self, calls: Sequence[Call]) -> None:
        try:
            await self._in_thread(partial(self._rows.write, calls))
        except UnavailableError as error:
            raise UnavailableError(NOT_LOGGED) from error

    async def _in_thread(self, function: Callable[[], None]) -> None:
        """Run a blocking call of the log in the thread, and note whether it succeeded."""
        try:
            await self._run_with_timeout(function)
        except UnavailableError as error:
            self._known_good = False
            self._outage.begin(error)
            raise
        self._known_good = True
        self._outage.end()

    async def _run_with_timeout(self, function: Callable[[], None]) -> None:
        """Run a blocking call in the thread; after a timeout it keeps the thread, and later calls are refused."""
        if self._abandoned is not None and not self._abandoned.done():
            raise UnavailableError("The row log has not answered the previous call yet.")
        future = asyncio.get_running_loop().run_in_executor(self._thread, function)
        try:
            done, _ = await asyncio.wait([future], timeout=WRITE_S_MAX)
        finally:
            if not future.done():
                self._abandoned = future
                future.add_done_callback(_retrieve_exception)
        if not done:
            raise UnavailableError(f"The row log did not answer within {WRITE_S_MAX:g} s.")
        future.result()

    async def close(self) -> None:
        """Finish the current write and close the connection."""
        await self._calls.close()
        await self._connection.close()
        self._thread.shutdown(wait=False)


def _objects(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    """Divide calls into groups, one for each object, by size."""
    begin = size = 0
    for end, call in enumerate(calls):
        call_size = sum(map(len, call.payloads))
        if end > begin and size + call_size > OBJECT_BYTES_MAX:
            yield calls[begin:end]
            begin, size = end, 0
        size += call_size
    yield calls[begin:]


def _resolve(outcome: "asyncio.Future[Any]", error: KeepfitError | None) -> None:
    if not outcome.done():
        outcome.set_result(error)


def _retrieve_exception(future: "asyncio.Future[None]") -> None:
    """Retrieve the exception of an abandoned call, so that asyncio does not log it as never retrieved."""
    if not future.cancelled():
        future.exception()

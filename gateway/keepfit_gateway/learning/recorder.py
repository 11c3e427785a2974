"""Recording what was accepted: all calls that come while one object of the row log is written go into the next.

Owns who waits for the log, and what is known of whether it takes anything. Never accepts:
:mod:`keepfit_gateway.learning.acceptor` does that before, and does not wait for a write to go on. Invariant: who waits
is told of success only when the calls are in the log, and their models were still what they were accepted for after
that; a restore that read the log before cannot have missed them (`docs/concepts/row-log.md`).
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

# As long as an object store may be silent. Whoever comes while one write takes longer is refused at once.
WRITE_S_MAX = 20.0
# What one object holds, unless a single call is larger; an object is in memory twice while it is written.
OBJECT_BYTES_MAX = 32 * 2**20
AWAY = "The row log takes nothing just now, so nothing is accepted; send it again."
NOT_LOGGED = (
    "Redis has accepted this, and the row log did not take it; send it again, with the same Idempotency-Key, or it may "
    "be learned twice."
)

Told = Callable[[KeepfitError | None], None]


@dataclass(frozen=True, slots=True)
class _Entry:
    call: Call
    to_problem: Told


class Recorder:
    """One gateway's way into the row log."""

    def __init__(self, store: redis.asyncio.Redis, rows: RowLog) -> None:
        self._rows = rows
        self._line = ScriptConnection(store)
        self._calls = Batcher(self._record)
        self._thread = ThreadPoolExecutor(1, "rowlog")
        self._under_way: asyncio.Future[None] | None = None
        self._known_good = False
        self._outage = Outage("row log", "nothing is accepted")

    @property
    def waiting(self) -> int:
        """Calls that came during the write under way, and go with the next."""
        return len(self._calls)

    async def check(self) -> None:
        """Raise UnavailableError where the log did not take what it was given last, and does not take a probe now."""
        if not self._known_good:
            try:
                await self._in_thread(self._rows.probe)
            except UnavailableError as error:
                raise UnavailableError(AWAY) from error

    def put(self, call: Call, to_problem: Told) -> None:
        """Take a call to be written; `to_problem` is called with what was wrong, or None."""
        self._calls.put(_Entry(call, to_problem))

    async def record(self, calls: Sequence[Call]) -> None:
        """Write calls, and wait for it; raises what is wrong with the first that is not there."""
        outcomes = [asyncio.get_running_loop().create_future() for _ in calls]
        for call, outcome in zip(calls, outcomes, strict=True):
            self.put(call, partial(_settle, outcome))
        for error in await asyncio.gather(*outcomes):
            if error is not None:
                raise error

    async def _record(self, batch: list[_Entry]) -> None:
        calls = [entry.call for entry in batch]
        failpoints.reach("rowlog.accepted")
        errors: Sequence[KeepfitError | None]
        try:
            for some in _objects(calls):
                await self._write(some)
            failpoints.reach("rowlog.written")
            errors = await inbox.changed_since(self._line, calls)
        except UnavailableError as away:
            errors = [away] * len(batch)
        except Exception:
            log.exception("recording_crashed")
            errors = [KeepfitError("The request could not be logged; the gateway's log has the details.")] * len(batch)
        for entry, error in zip(batch, errors, strict=True):
            entry.to_problem(error)

    async def _write(self, calls: Sequence[Call]) -> None:
        try:
            await self._in_thread(partial(self._rows.write, calls))
        except UnavailableError as error:
            raise UnavailableError(NOT_LOGGED) from error

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """Have something done that blocks; note whether the log took it."""
        try:
            await self._bounded(work)
        except UnavailableError as error:
            self._known_good = False
            self._outage.begin(error)
            raise
        self._known_good = True
        self._outage.end()

    async def _bounded(self, work: Callable[[], None]) -> None:
        """Have something done that blocks, and do not wait for it for ever."""
        if self._under_way is not None and not self._under_way.done():
            raise UnavailableError("The row log has not answered yet.")
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            done, _ = await asyncio.wait([future], timeout=WRITE_S_MAX)
        finally:
            if not future.done():
                self._under_way = future
                future.add_done_callback(_forget)
        if not done:
            raise UnavailableError(f"The row log gave no answer within {WRITE_S_MAX:g} s.")
        future.result()

    async def close(self) -> None:
        """Wait for what is under way."""
        await self._calls.close()
        await self._line.close()
        self._thread.shutdown(wait=False)


def _objects(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    """Divide calls into objects of some size."""
    begin = size = 0
    for end, call in enumerate(calls):
        more = sum(map(len, call.payloads))
        if end > begin and size + more > OBJECT_BYTES_MAX:
            yield calls[begin:end]
            begin, size = end, 0
        size += more
    yield calls[begin:]


def _settle(outcome: "asyncio.Future[Any]", error: KeepfitError | None) -> None:
    if not outcome.done():
        outcome.set_result(error)


def _forget(future: "asyncio.Future[None]") -> None:
    """Take note of what came of a write that nobody waits for any more."""
    if not future.cancelled():
        future.exception()

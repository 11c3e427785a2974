"""One pull job, from the chunk where it is to its end: read, check, accept, store how far it is.

Owns the order of these steps, what is tried again and what ends the job. Never learns, and holds nothing that must
survive: it may be killed at any instruction. Invariants: a chunk is accepted by the script ``accept``, with its number,
after the one before it and once; the record of the job says where the next chunk begins only after its chunk is
accepted, and is in the row log if there is one. Jobs come from :mod:`keepfit.store.pull_jobs`.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
import redis.asyncio
import structlog

from keepfit.backends import redis_scripts, source_urls
from keepfit.backends.backoff import Backoff
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import (
    ConflictError,
    DeadlineError,
    IdempotencyError,
    InboxFullError,
    KeepfitError,
    NotFoundError,
    StaleModelError,
    UnavailableError,
    public_message_of,
)
from keepfit.ingest import chunks, readers, sources
from keepfit.ingest.chunks import Batch, Chunk, Reader
from keepfit.ingest.sources import Source
from keepfit.observability import failpoints
from keepfit.observability.outage import Outage
from keepfit.rowlog.row_log import RowLog
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import first_answers, inbox, pull_jobs, staging
from keepfit.store.inbox import Accepted, LearnRequest
from keepfit.store.models import Model, Store
from keepfit.store.pull_jobs import CLAIMS_MAX, PullJob

log = structlog.get_logger(__name__)

REASONS_MAX = 20
ERROR_LENGTH_MAX = 500
# Pause after the first failure in a row of a dependency, doubled by each further one.
RETRY_PAUSE_S, RETRY_PAUSE_S_MAX = 0.25, 10.0
# Pauses while the inbox is full: workers learn a request in milliseconds.
FULL_PAUSE_S, FULL_PAUSE_S_MAX = 0.02, 1.0
# A pull fills this share of an inbox: clients find room in it.
INBOX_SHARE = 4
PENDING_BYTES_MAX = 16 << 20
RENEW_S = pull_jobs.HOLD_S / 6
# A process that waits ends so soon after SIGTERM.
STOP_S = 0.2
NO_MODEL = "The model was deleted, or created again, since the job began; what was learned is gone with it."
OUT_OF_MEMORY = "A chunk needs more memory than the process may use: pull with fewer rows_per_call."
KILLED = f"{CLAIMS_MAX - 1} processes died one after the other while they read or sent the same chunk."


class Models(Protocol):
    """What a pull asks of the rest of the service."""

    async def restore(self, model_hash: str) -> None:
        """Restore a model that is not in Redis; raises NotFoundError if it does not exist."""

    async def notify(self, model_hash: str) -> None:
        """Notify the learn queue that a model has pending requests."""


class _Lost(Exception):  # noqa: N818 - no error: another process holds the job
    """This process does not hold the job any more."""


class _Cancelled(Exception):  # noqa: N818 - as above
    """The job is to be cancelled."""


class _Stopping(Exception):  # noqa: N818 - as above
    """The process is to end before the chunk is accepted."""


@dataclass(slots=True)
class _Open:
    """The open source of a job, its reader, and the chunks from the present one on."""

    source: Source
    reader: Reader
    batches: Iterator[Batch]


class Pull:
    """One job, held as `holder`; `stopping` says that the process is to end after the present chunk."""

    def __init__(
        self,
        store: redis.asyncio.Redis,
        settings: Settings,
        models: Models,
        rows_log: RowLog | None,
        job: PullJob,
        holder: str,
        stopping: Callable[[], bool],
    ) -> None:
        self._store, self._models_of_store = store, Store(store)
        self._connection = ScriptConnection(store)
        self._settings = settings
        self._limits = settings.model_copy(
            update={
                "inbox_entries_max": max(settings.inbox_entries_max // INBOX_SHARE, 1),
                "inbox_bytes_max": min(settings.inbox_bytes_max // INBOX_SHARE, PENDING_BYTES_MAX),
            }
        )
        self._models, self._log = models, rows_log
        self._job, self._holder, self._stopping = job, holder, stopping
        self._open: _Open | None = None
        self._backoff = Backoff(RETRY_PAUSE_S, RETRY_PAUSE_S_MAX)
        self._outage = Outage("source, store or row log", f"the pull job {job.id} waits")
        self._waiting, self._log_is_good = "", False

    async def run(self) -> str:
        """Go on with the job until it has ended, or this process is to end; return its state then.

        Failures of Redis, the storage or the row log do not end the job: it goes on once they are available.
        """
        renewing = asyncio.create_task(self._renew())
        try:
            try:
                return await self._run_until_ended()
            except _Cancelled:
                return await self._end("cancelled")
        except _Lost:
            log.warning("pull_lost", job=self._job.id)
            return "lost"
        finally:
            renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewing
            self._close()
            with contextlib.suppress(UnavailableError):
                await self._connection.close()

    async def _run_until_ended(self) -> str:
        while not self._stopping():
            try:
                return await self._run()
            except UnavailableError as error:
                self._close()
                self._log_is_good = False
                self._outage.begin(error)
                await self._wait_until(public_message_of(error), self._backoff.next_s())
        await self._advance({"claims": 0, "waiting": ""}, hold_s=0)
        return "running"

    async def _run(self) -> str:
        try:
            if self._job.claims >= CLAIMS_MAX:
                return await self._end("failed", error=KILLED)
            with contextlib.suppress(_Stopping):
                await self._pull()
        except (_Cancelled, _Lost, UnavailableError):
            raise
        except MemoryError:
            return await self._end("failed", error=OUT_OF_MEMORY)
        except KeepfitError as error:
            return await self._end("failed", error=str(error))
        except Exception:
            log.exception("pull_failed", job=self._job.id)
            return await self._end("failed", error="The job failed; the log of the workers has the details.")
        if self._stopping():
            await self._advance({"claims": 0}, hold_s=0)
            return "running"
        return await self._end("done")

    async def _pull(self) -> None:
        """Accept chunk after chunk, until the end of the source or of this process."""
        model = await self._model()
        while not self._stopping():
            self._check_time()
            opened = self._open
            if opened is None:
                opened = self._open = await asyncio.to_thread(self._open_source, model)
                await self._note_source(opened)
            read = await asyncio.to_thread(self._read_chunk, model, opened)
            if read is None:
                return
            rows, chunk = read
            sequence = self._job.sequence
            if chunk.rows is not None:
                model, sequence = await self._accept(model, chunk.rows)
            await self._note(rows, chunk, sequence)

    def _check_time(self) -> None:
        started, most = self._job.started or 0.0, self._settings.pull_timeout_s
        if started and time.time() - started > most:
            raise DeadlineError(f"The job has taken more than {most} s (KEEPFIT_PULL_TIMEOUT_S).")

    async def _note_source(self, opened: _Open) -> None:
        """Store which state of the source is read, and how large it is."""
        identity, size = opened.source.identity, _text(opened.source.size)
        await self._advance({"identity": identity, "rows_total": _text(opened.reader.total), "bytes_total": size})
        self._job = replace(self._job, identity=identity)

    async def _model(self) -> Model:
        """Return the model, restored if it left Redis; raises NotFoundError if it is not that of the job."""
        model = await self._models_of_store.describe(self._job.hash)
        if model is None:
            await self._models.restore(self._job.hash)
            model = await self._models_of_store.describe(self._job.hash)
        if model is None or model.origin != self._job.origin:
            raise NotFoundError(NO_MODEL)
        return model

    def _open_source(self, model: Model) -> _Open:
        """Open the source and go to the chunk where the job is."""
        job = self._job
        seekable = source_urls.format_of(job.request.url, job.request.format) in readers.SEEKABLE
        with sources.readable():
            limits = self._settings.pull_prefixes, self._settings.pull_bytes_max
            source = sources.open_source(job.request.url, *limits, seekable=seekable)
            try:
                source.expect(job.identity)
                reader = readers.open_reader(source.file, job.request, model.recipe)
                return _Open(source, reader, reader.batches(job.request.rows_per_call, job.rows_done))
            except BaseException:
                source.close()
                raise

    def _read_chunk(self, model: Model, opened: _Open) -> tuple[int, Chunk] | None:
        """Return the next chunk and the number of its rows in the source; None at the end of the source."""
        job = self._job
        try:
            with sources.readable():
                batch = next(opened.batches, None)
        except KeepfitError:
            # A source that changes while it is read is read as damaged.
            opened.source.check()
            raise
        # After the read: what was read is of the state that the job began with.
        opened.source.check()
        if batch is None:
            # Lines that are no rows may be all that was left.
            return (0, Chunk(None, [])) if opened.reader.malformed[0] > job.malformed else None
        left = job.request.skip_max - job.skipped - opened.reader.malformed[0]
        known = Chunk(None, []) if left < 0 else None
        return batch.n, known or chunks.shape_valid(batch, model.recipe, job.rows_done, left)

    async def _accept(self, model: Model, rows: Rows) -> tuple[Model, int]:
        """Have the rows of the next chunk accepted, however long the inbox is full; return the model and sequence."""
        full = Backoff(FULL_PAUSE_S, FULL_PAUSE_S_MAX)
        while True:
            if self._stopping():
                raise _Stopping
            try:
                accepted = await self._accept_once(model, rows)
            except InboxFullError:
                await self._models.notify(model.hash)
                await self._wait_until("the inbox is full", full.next_s())
            except (StaleModelError, NotFoundError):
                model = await self._model()
            except IdempotencyError:
                # Another process went on with the job, or a chunk has other rows than when it was read before.
                await self._advance()
                raise ConflictError(sources.CHANGED) from None
            else:
                failpoints.reach("pull.accepted")
                return model, accepted.sequence

    async def _accept_once(self, model: Model, rows: Rows) -> Accepted:
        key = first_answers.chunk_key(self._job.id, self._job.calls + 1)
        width, logged = inbox.width_of(model.recipe, rows), self._log is not None
        if not rows.fits(inbox.CALL_BYTES_MAX):
            # Rows that do not fit into the inbox need not be written to Redis.
            digest = await asyncio.to_thread(staging.digest_of, rows)
            target = (self._store, self._limits, model.hash, model.generation)
            earlier = await inbox.ask(*target, rows, key, width=width, digest=digest)
            if earlier is not None and not logged:
                return earlier
        request = await inbox.make_request(
            self._store, model.hash, model.generation, rows, key, width=width, logged=logged,
            bytes_max=self._settings.body_bytes_max,
        )  # fmt: skip
        try:
            return await self._put(request)
        finally:
            if request.large_key:
                await staging.unstage(self._store, request.large_key)

    async def _put(self, request: LearnRequest) -> Accepted:
        """Put one request into the inbox and into the row log."""
        failpoints.reach("pull.read")
        if self._log is None:
            (outcome,), to_notify = await inbox.accept(self._connection, self._limits, [request])
        else:
            if not self._log_is_good:
                await asyncio.to_thread(self._log.probe)
                self._log_is_good = True
            (outcome,), to_notify, logged = await inbox.accept_logged(self._connection, self._limits, [request])
            # The record of the job outlives no loss of Redis: a restore must not give the client such a key.
            calls = [replace(call, name="") for call, _ in logged]
            if calls:
                await asyncio.to_thread(self._log.write, calls)
                for error in await inbox.verify_accepted(self._connection, calls):
                    if error is not None:
                        raise StaleModelError(str(error))
        if isinstance(outcome, KeepfitError):
            raise outcome
        for model_hash in to_notify:
            await self._models.notify(model_hash)
        return outcome

    async def _note(self, rows: int, chunk: Chunk, sequence: int) -> None:
        """Store that a chunk of so many rows of the source is done; raises ConflictError if too many were skipped."""
        job = self._job
        malformed, lines = self._open.reader.malformed if self._open else (0, [])
        earlier = [one for one in job.reasons if one.row is not None]
        reasons = [*(pull_jobs.Skipped(None, line) for line in lines), *earlier, *chunk.skipped]
        accepted = 0 if chunk.rows is None else chunk.rows.n
        counts: dict[str, Any] = {
            "rows_done": job.rows_done + rows, "rows_accepted": job.rows_accepted + accepted,
            "skipped": job.skipped + len(chunk.skipped), "malformed": malformed,
            "calls": job.calls + (chunk.rows is not None), "sequence": sequence, "claims": 0,
        }  # fmt: skip
        fields = {**counts, "reasons": msgspec.json.encode(reasons[:REASONS_MAX]), "waiting": ""}
        if (skipped := counts["skipped"] + malformed) > (most := job.request.skip_max):
            if chunk.rows is None:
                del fields["rows_done"]
            place = f" The first: {reasons[0].place}{reasons[0].detail}." if reasons else ""
            await self._advance(fields)
            raise ConflictError(f"{skipped} rows do not fit, and skip_max is {most}.{place}")
        await self._advance(fields)
        self._backoff.reset()
        self._outage.end()
        self._waiting = ""
        self._job = replace(job, reasons=tuple(reasons[:REASONS_MAX]), **counts)
        failpoints.reach("pull.noted")

    async def _wait_until(self, reason: str, pause_s: float) -> None:
        """Wait, and say in the record why; raises what :meth:`_advance` raises."""
        if reason != self._waiting:
            with contextlib.suppress(UnavailableError):
                await self._advance({"waiting": reason[:ERROR_LENGTH_MAX]})
                self._waiting = reason
        await self._pause(pause_s)
        with contextlib.suppress(UnavailableError):
            await self._advance()

    async def _pause(self, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + pause_s
        # A signal says when to stop.
        while not self._stopping() and (left_s := end_s - loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(left_s, STOP_S))

    async def _advance(
        self, fields: pull_jobs.Fields | None = None, *, hold_s: float = pull_jobs.HOLD_S, kept_s: int = 0
    ) -> None:
        """Store fields of the record, and renew the hold; raises _Lost or _Cancelled."""
        command = pull_jobs.advance(self._job.id, self._holder, fields, hold_s=hold_s, kept_s=kept_s)
        (answer,) = await redis_scripts.run_async(self._store, command)
        if answer == b"lost":
            raise _Lost
        if answer == b"cancel" and not kept_s:
            raise _Cancelled

    async def _end(self, state: str, error: str = "") -> str:
        """Store that the job has ended; tried again until Redis takes it, or this process is to end."""
        fields = {"state": state, "error": error[:ERROR_LENGTH_MAX], "waiting": ""}
        while True:
            try:
                await self._advance(fields, kept_s=self._settings.job_keep_s)
            except UnavailableError:
                if self._stopping():
                    raise
                await self._pause(self._backoff.next_s())
            else:
                log.info("pull_ended", job=self._job.id, hash=self._job.hash, state=state)
                return state

    async def _renew(self) -> None:
        """Keep the job while a read or a request takes long."""
        while True:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(UnavailableError, _Lost, _Cancelled):
                await self._advance()

    def _close(self) -> None:
        if self._open is not None:
            with contextlib.suppress(Exception):
                self._open.source.close()
            self._open = None


def _text(number: int | None) -> str:
    return "" if number is None else str(number)

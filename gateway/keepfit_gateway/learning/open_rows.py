"""Open rows of one gateway: keeping rows that are predicted, and accepting the labels that come for them.

Owns the futures of both, and the counts. All calls that arrive during a round trip to Redis go with the next one.
Invariants: a prediction with an id is answered only after its rows are in Redis; a label is answered as accepted only
after it is in the inbox, and in the row log if there is one. A label whose hint is lost is learned after the next
sweep of the workers. :mod:`keepfit.store.open_rows` has the scripts.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import redis.asyncio
import structlog

from keepfit.backends.batcher import Batcher
from keepfit.backends.redis_scripts import ScriptConnection
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.observability import failpoints
from keepfit.rows.served import Served
from keepfit.settings import Settings
from keepfit.store import late_labels, open_rows
from keepfit.store.late_labels import Labelled, LabelRequest, LabelResult
from keepfit.store.open_rows import Count, KeepRequest, Kept, Total
from keepfit_gateway.learning.acceptor import Acceptor
from keepfit_gateway.learning.recorder import Recorder
from keepfit_gateway.learning.waiters import Waiter, put

log = structlog.get_logger(__name__)

EXPIRE_S = 60.0
BATCH_MAX = 64

RowsWaiter = Waiter[KeepRequest, Kept]
LabelsWaiter = Waiter[LabelRequest, Labelled]


class OpenRows:
    """Keeps rows until their labels come, and accepts these; `total` is what is known of all models."""

    def __init__(
        self, store: redis.asyncio.Redis, settings: Settings, acceptor: Acceptor, recorder: Recorder | None
    ) -> None:
        self._store = store
        self._settings = settings
        self._acceptor = acceptor
        self._recorder = recorder
        self._keeping = ScriptConnection(store)
        self._labelling = ScriptConnection(store)
        self._rows: Batcher[RowsWaiter] = Batcher(self._keep, BATCH_MAX)
        self._labels: Batcher[LabelsWaiter] = Batcher(self._label, BATCH_MAX)
        self.total = Total()
        # Rows of predictions, and labels, by their outcome.
        self.rows: Counter[str] = Counter(kept=0, repeated=0, refused=0)
        self.labels: Counter[str] = Counter(accepted=0, **{name: 0 for name, _ in late_labels.REASONS.values()})

    async def keep(self, request: KeepRequest) -> list[Served]:
        """Keep the rows of a prediction durably; return the predictions to serve, of an earlier call if it is repeated.

        Raises
        ------
        NotFoundError, StaleModelError
            If the model was deleted or has another generation by now.
        ConflictError
            If one of the ids belongs to another row.
        OpenRowsFullError
            If the rows do not fit.
        UnavailableError
            If Redis is unavailable.
        """
        try:
            kept = await put(self._rows, request)
        except KeepfitError:
            self.rows["refused"] += len(request.rows)
            raise
        self.rows["repeated" if kept.repeated else "kept"] += len(request.rows)
        return kept.predictions

    async def label(self, request: LabelRequest) -> Labelled:
        """Accept labels durably.

        Raises
        ------
        NotFoundError, StaleModelError
            If the model was deleted or has another generation by now.
        IdempotencyError
            If the key was used before with other labels.
        InboxFullError
            If none of them fits into the inbox.
        UnavailableError
            If Redis or the row log is unavailable.
        """
        labelled = await put(self._labels, request)
        self.labels["accepted"] += labelled.accepted
        for letter, (name, _) in late_labels.REASONS.items():
            self.labels[name] += labelled.outcomes.count(letter)
        return labelled

    async def _keep(self, batch: list[RowsWaiter]) -> None:
        try:
            batch = await self._fitting(batch)
            results = await open_rows.keep(self._keeping, self._settings, [each.request for each in batch])
        except UnavailableError as unavailable:
            _resolve_all(batch, unavailable)
            return
        except Exception:
            log.exception("keep_failed")
            _resolve_all(batch, KeepfitError("The rows could not be kept; the gateway's log has the details."))
            return
        failpoints.reach("rows.kept")
        for waiter, result in zip(batch, results, strict=True):
            waiter.resolve(result.outcome)
        await self._note(self._keeping, [result.count for result in results])

    async def _fitting(self, batch: list[RowsWaiter]) -> list[RowsWaiter]:
        """Return the requests that the limit of all models has space for, and refuse the others."""
        most, is_new, fitting = self._settings.open_rows_total_bytes_max, False, list[RowsWaiter]()
        taken = 0
        for waiter in batch:
            size = sum(row.size_bytes for row in waiter.request.rows)
            if self.total.size_bytes + taken + size > most and not is_new:
                self.total, is_new = await open_rows.total(self._keeping), True
            if self.total.size_bytes + taken + size > most:
                what = f"{self.total.rows} rows of all models wait for their labels, in {self.total.size_bytes} bytes"
                waiter.resolve(open_rows.full(what))
            else:
                taken += size
                fitting.append(waiter)
        return fitting

    async def _note(self, connection: ScriptConnection, counts: Sequence[Count | None]) -> None:
        """Note in the register how many rows the models have; if that fails, the next pass notes it."""
        with _counting():
            total = await open_rows.note_counts(connection, [count for count in counts if count is not None])
            self.total = total or self.total

    async def _label(self, batch: list[LabelsWaiter]) -> None:
        requests, logged = [waiter.request for waiter in batch], self._recorder is not None
        failpoints.reach("labels.begun")
        try:
            if self._recorder is not None:
                await self._recorder.check()
            results = await late_labels.label(self._labelling, self._settings, requests, logged=logged)
        except UnavailableError as unavailable:
            _resolve_all(batch, unavailable)
            return
        except Exception:
            log.exception("label_failed")
            _resolve_all(batch, KeepfitError("The labels could not be accepted; the gateway's log has the details."))
            return
        failpoints.reach("labels.done")
        for waiter, result in zip(batch, results, strict=True):
            if self._recorder is not None and result.call is not None:
                self._recorder.put(result.call, partial(_resolve_recorded, waiter, result))
            else:
                waiter.resolve(result.outcome)
            if result.is_unlocked:
                self._acceptor.notify(waiter.request.hash)
        await self._note(self._labelling, [result.count for result in results])

    async def expire_forever(self) -> None:
        """Expire rows once a minute, and read how many all models have."""
        while True:
            with _counting():
                await open_rows.expire(self._store, self._settings)
                self.total = await open_rows.total(self._store)
            await asyncio.sleep(EXPIRE_S)

    async def close(self) -> None:
        """Finish the current round trips and close the connections."""
        await self._rows.close()
        await self._labels.close()
        await self._keeping.close()
        await self._labelling.close()


@contextmanager
def _counting() -> Iterator[None]:
    """Go on after an error: what is not counted now is counted by the next pass."""
    try:
        yield
    except UnavailableError:
        pass
    except Exception:
        log.exception("count_failed")


def _resolve_all(batch: Sequence[RowsWaiter | LabelsWaiter], error: KeepfitError) -> None:
    for waiter in batch:
        waiter.resolve(error)


def _resolve_recorded(waiter: LabelsWaiter, result: LabelResult, error: KeepfitError | None) -> None:
    """Report the outcome of labels, after the row log stored them or failed with `error`."""
    waiter.resolve(error or result.outcome)

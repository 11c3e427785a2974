"""Restore many models: the implementation of `keepfit restore`.

Owns which models are selected, the plan for each, and its outcome; :mod:`keepfit.restore.restorer` restores one model.
Invariants: nothing is changed before the caller has seen which live models would be rewound, and has confirmed it; a
live model is rewound only if it has not changed since; a failure of one model does not keep the others from being
restored; a run that was interrupted can be repeated, and continues with the models that are left.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from keepfit.errors import CorruptLogError, KeepfitError, MissingRequestsError, NotConfirmedError, UnavailableError
from keepfit.history import Document, RegistryEntry
from keepfit.observability.progress import Progress, no_progress
from keepfit.restore import replay_source
from keepfit.restore.repair import is_damaged, repair
from keepfit.restore.requests import NEWEST, RestoreRequest, RestoreResult
from keepfit.restore.restorer import Restorer
from keepfit.rowlog.row_log import View
from keepfit.settings import Settings
from keepfit.snapshots.resources import Resources, open_resources
from keepfit.store import idle
from keepfit.store.models import Model

PAGE = 500
# More would not be faster: one MongoDB answers, one Redis syncs, and this process unpickles the bundles.
CONCURRENCY = 16

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """Selects models by `type` and other `metadata` (texts that values are compared with), or one model by `hash`."""

    type_: str | None = None
    hash: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan for one model: its `live` state (None: not in Redis), and the `document` of the snapshot to restore.

    `is_rewind`: a live model would forget rows. `skip_reason`: why nothing is to be done. `error`: why nothing can be
    done. `is_damaged`: the live bundle is damaged or gone. `replayed`: number of logged rows to learn again.
    """

    registered: RegistryEntry
    live: Model | None
    document: Document | None
    is_rewind: bool = False
    skip_reason: str = ""
    error: str = ""
    is_damaged: bool = False
    replayed: int = 0

    @property
    def rows_forgotten(self) -> int:
        """Rows that the live model has learned and the restored one has not."""
        if not self.is_rewind or self.live is None or self.document is None:
            return 0
        return max(self.live.rows_seen - int(self.document["rows_seen"]) - self.replayed, 0)

    def outcome(self) -> "Outcome":
        """Describe what would be done."""
        if self.error or self.skip_reason:
            return self.report(self.error or self.skip_reason, failed=bool(self.error))
        if self.is_damaged and not self.is_rewind:
            return self.report("would be repaired: its live bundle is damaged")
        again = f", {self.replayed} logged rows learned again" if self.replayed else ""
        if self.is_rewind:
            return self.report(f"would be rewound, {self.rows_forgotten} rows forgotten{again}")
        return self.report(("would be restored" if self.document else "would be recreated from its recipe") + again)

    def report(self, outcome: str, *, failed: bool = False) -> "Outcome":
        """Return the outcome with the versions and counts of the plan."""
        return Outcome(
            self.registered,
            self.live.version if self.live else None,
            self.document["version"] if self.document else None,
            outcome,
            failed,
            self.document["timestamp"] if self.document else None,
            self.rows_forgotten,
            self.replayed,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome for one model; `live_version` is the version before (None: not live), `version` the restored one.

    `timestamp` is the time (seconds) of the snapshot, None if there is none.
    """

    registered: RegistryEntry
    live_version: int | None
    version: int | None
    outcome: str
    failed: bool = False
    timestamp: float | None = None
    rows_forgotten: int = 0
    replayed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON."""
        return {
            "hash": self.registered.hash,
            "metadata": self.registered.metadata,
            "live_version": self.live_version,
            "version": self.version,
            "timestamp": self.timestamp,
            "rows_forgotten": self.rows_forgotten,
            "replayed": self.replayed,
            "outcome": self.outcome,
        }


def _refuse(plans: Sequence[Plan]) -> bool:
    """Confirm no rewind."""
    return False


async def restore_many(
    settings: Settings,
    models: ModelFilter,
    request: RestoreRequest = NEWEST,
    *,
    dry_run: bool = False,
    confirm: Callable[[Sequence[Plan]], bool] = _refuse,
    follow: bool = False,
    progress: Progress = no_progress,
) -> list[Outcome]:
    """Restore the selected models from the requested snapshots.

    Idle models stay idle, unless one model, a time or a version is named: their next use restores them. `confirm` is
    called once, with the plans of all live models that would forget rows; if it returns False, the run ends with
    :class:`NotConfirmedError` before anything is changed. With `follow`, models that learn in the meantime are rewound
    too.
    """
    async with open_resources(settings) as resources:
        restorer = Restorer(resources, settings)
        try:
            registered = [found async for found in select_models(resources, models)]
            skips_idle = models.hash is None and not request.is_named
            plans, view = await _plan_all(restorer, registered, request, skips_idle=skips_idle)
            if dry_run:
                return [plan.outcome() for plan in plans]
            rewinds = [plan for plan in plans if plan.is_rewind]
            # `confirm` may block the event loop to ask a person: no other task runs now.
            if rewinds and not confirm(rewinds):
                raise NotConfirmedError(
                    f"{len(rewinds)} live models would be rewound and forget "
                    f"{sum(plan.rows_forgotten for plan in rewinds)} rows; confirm with --force. Nothing was changed."
                )
            return await for_each(plans, _Execution(restorer, request, view, follow=follow).execute, progress)
        finally:
            restorer.close()


async def for_each(items: Sequence[T], act: Callable[[T], Awaitable[R]], progress: Progress = no_progress) -> list[R]:
    """Call `act` for all items, :data:`CONCURRENCY` at a time; return the results in the order of the items."""
    gate, done = asyncio.Semaphore(CONCURRENCY), 0

    async def run(item: T) -> R:
        nonlocal done
        async with gate:
            result = await act(item)
        done += 1
        progress(done, len(items))
        return result

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(item)) for item in items]
    except BaseExceptionGroup as errors:
        # The first error cancelled the other tasks; it is the cause.
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _plan_all(
    restorer: Restorer, registered: Sequence[RegistryEntry], request: RestoreRequest, *, skips_idle: bool
) -> tuple[list[Plan], View | None]:
    """Plan the restore of all models; return the plans, and the row log as listed after lost models were found lost."""
    live: list[Model | None] = []
    for begin in range(0, len(registered), PAGE):
        live += await restorer.resources.store.describe_many([each.hash for each in registered[begin : begin + PAGE]])
    pairs = [
        # A live model of a generation before `born` is left over from a deleted predecessor.
        (each, found if found is None or found.generation >= each.born else None)
        for each, found in zip(registered, live, strict=True)
    ]
    needs_row_log = request.at is not None or any(found is None for _, found in pairs)
    view = await replay_source.list_row_log(restorer.resources) if needs_row_log else None

    async def plan(pair: tuple[RegistryEntry, Model | None]) -> Plan:
        entry, found = pair
        if skips_idle and found is None and await _is_idle(restorer.resources, entry):
            return Plan(entry, None, None, skip_reason="kept: it is idle, and comes back with its next use")
        return await _plan(restorer, entry, found, request, view)

    return await for_each(pairs, plan), view


async def _is_idle(resources: Resources, registered: RegistryEntry) -> bool:
    """Return whether a model left Redis lately because nothing used it; the record of a predecessor does not count."""
    record = await idle.read_record(resources.store.client, registered.hash)
    return record is not None and record.generation >= registered.born


async def _plan(
    restorer: Restorer, registered: RegistryEntry, live: Model | None, request: RestoreRequest, view: View | None
) -> Plan:
    """Plan the restore of one model."""
    resources = restorer.resources
    document = await replay_source.find_document(resources, registered, request)
    if document is None and request.is_named:
        return Plan(registered, live, None, error=request.describe_missing())
    damaged = live is not None and await is_damaged(restorer, live)
    if live is not None and (not request.is_named or document is None):
        return Plan(registered, live, document, skip_reason="" if damaged else "kept: it is live", is_damaged=damaged)
    try:
        replayed, is_at = await replay_source.preview(resources, registered, request, document, live, view)
    except CorruptLogError as error:
        return Plan(registered, live, document, error=str(error))
    if live is None:
        return Plan(registered, None, document, replayed=replayed)
    if is_at and not damaged:
        return Plan(registered, live, document, skip_reason="kept: it is at this snapshot")
    return Plan(registered, live, document, is_rewind=True, replayed=replayed, is_damaged=damaged)


class _Execution:
    """Executes plans, until so many failures in a row show that a dependency is unavailable for all models."""

    def __init__(self, restorer: Restorer, request: RestoreRequest, view: View | None, *, follow: bool) -> None:
        self._restorer = restorer
        self._request = request
        self._view = view
        self._follow = follow
        self._unavailable_in_a_row = 0
        self._reason = ""

    async def execute(self, plan: Plan) -> Outcome:
        """Execute the plan of one model."""
        if plan.skip_reason or plan.error:
            return plan.outcome()
        if self._unavailable_in_a_row >= CONCURRENCY:
            return plan.report(f"not tried: {self._reason}", failed=True)
        try:
            result = await self._restore(plan)
        except UnavailableError as error:
            self._unavailable_in_a_row, self._reason = self._unavailable_in_a_row + 1, str(error)
            return plan.report(str(error), failed=True)
        except KeepfitError as error:
            return plan.report(str(error), failed=True)
        self._unavailable_in_a_row = 0
        return _outcome(plan, result)

    async def _restore(self, plan: Plan) -> RestoreResult:
        if plan.live is None:
            return await self._restorer.restore(plan.registered, self._request, plan.document, self._view)
        if plan.is_damaged and not plan.is_rewind:
            try:
                return await self._repair(plan, plan.live)
            except MissingRequestsError:
                if not self._follow:
                    raise
        return await self._restorer.rewind(
            plan.registered, self._request, plan.live, follow=self._follow, preferred=plan.document, view=self._view
        )

    async def _repair(self, plan: Plan, live: Model) -> RestoreResult:
        repaired = await repair(self._restorer, live.hash)
        if repaired is None:
            return RestoreResult(live.hash, plan.document, live=True, corrupt=0)
        return RestoreResult(
            live.hash, repaired.document, live=False, corrupt=0, saved=repaired.saved, relearned=repaired.requests
        )


def _outcome(plan: Plan, result: RestoreResult) -> Outcome:
    """Describe what was done."""
    if result.live:
        return plan.report("kept: it is live by now")
    words = "restored" if plan.live is None else "rewound"
    if result.document is None:
        words = "recreated from its recipe: it has no snapshot"
    if result.replayed:
        words += f", {result.replayed} logged rows learned again"
    if result.relearned is not None:
        words = f"repaired: {result.relearned} requests learned again, none forgotten"
    if result.corrupt:
        words += f", {result.corrupt} damaged snapshots skipped"
    if not result.saved:
        words += ", to be saved by the next pass"
    return Outcome(
        plan.registered,
        plan.live.version if plan.live else None,
        result.document["version"] if result.document else None,
        words,
        timestamp=result.document["timestamp"] if result.document else None,
        rows_forgotten=plan.rows_forgotten,
        replayed=result.replayed,
    )


async def select_models(resources: Resources, models: ModelFilter) -> AsyncIterator[RegistryEntry]:
    """Read the selected models from the registry, in the order of their hashes."""
    filters = {**models.metadata, **({} if models.type_ is None else {"type": models.type_})}
    if models.hash is not None:
        found = await resources.registry.find(models.hash)
        if found is not None and (not filters or found.hash in await _matching_hashes(resources, filters, found.hash)):
            yield found
        return
    after = ""
    while page := await resources.registry.models(filters, PAGE, after):
        for registered in page:
            yield registered
        after = page[-1].hash


async def _matching_hashes(resources: Resources, filters: Mapping[str, str], model_hash: str) -> list[str]:
    """Return hashes of models that match the filters, from just before `model_hash` on."""
    # Hashes have 64 digits: only hashes that differ in the last digit sort between the first 63 digits and the hash.
    found = await resources.registry.models(filters, 16, model_hash[:-1])
    return [each.hash for each in found]

"""Restoring many models: what `keepfit restore` does.

Owns which models are meant, what would become of each, and what is said of it; how one is restored is
:mod:`keepfit.restore.restorer`. Invariants: nothing is changed before the caller has seen which live models would go
back, and has agreed; a live model goes back only from what it was then; trouble with one does not keep the others from
being restored; done again after it was cut short, it goes on with what is left.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from keepfit.errors import CorruptLogError, KeepfitError, MissingRequestsError, NotConfirmedError, UnavailableError
from keepfit.history import Document, RegistryEntry
from keepfit.restore.repair import is_broken, repair
from keepfit.restore.restorer import NEWEST, Restorer, RestoreRequest, RestoreResult
from keepfit.rowlog.row_log import View
from keepfit.settings import Settings
from keepfit.snapshots.resources import Resources, open_resources
from keepfit.store.models import Model

PAGE = 500
# More do not help: one MongoDB answers, one Redis syncs, and this process opens the bundles.
AT_ONCE = 16

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Meant:
    """Models by `type` and other `metadata` (texts that values are compared with), or the one of `hash`."""

    type_: str | None = None
    hash: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would become of one model: of the `live` one, None where it is in no Redis, and of a snapshot's `document`.

    `goes_back` tells that learning would be forgotten, `kept` why nothing is to be done, `failed` why it cannot be,
    `broken` that the live bundle is damaged or gone; `replayed` is how many logged rows would be learned again.
    """

    registered: RegistryEntry
    live: Model | None
    document: Document | None
    goes_back: bool = False
    kept: str = ""
    failed: str = ""
    broken: bool = False
    replayed: int = 0

    @property
    def rows_forgotten(self) -> int:
        """Rows that the live model has learned more than what it would become."""
        if not self.goes_back or self.live is None or self.document is None:
            return 0
        return max(self.live.rows_seen - int(self.document["rows_seen"]) - self.replayed, 0)

    def outcome(self) -> "Outcome":
        """Say what would be done."""
        if self.failed or self.kept:
            return self.said(self.failed or self.kept, failed=bool(self.failed))
        if self.broken and not self.goes_back:
            return self.said("would be repaired: its live bundle is damaged")
        again = f", {self.replayed} logged rows learned again" if self.replayed else ""
        if self.goes_back:
            return self.said(f"would go back, {self.rows_forgotten} rows forgotten{again}")
        return self.said(("would be restored" if self.document else "would begin anew") + again)

    def said(self, outcome: str, *, failed: bool = False) -> "Outcome":
        """Say what came of it."""
        return Outcome(
            self.registered,
            self.live.version if self.live else None,
            self.document["version"] if self.document else None,
            outcome,
            failed,
            self.rows_forgotten,
            self.replayed,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of restoring one model; versions are None where there is none."""

    registered: RegistryEntry
    live_version: int | None
    version: int | None
    outcome: str
    failed: bool = False
    rows_forgotten: int = 0
    replayed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON."""
        return {
            "hash": self.registered.hash,
            "metadata": self.registered.metadata,
            "live_version": self.live_version,
            "version": self.version,
            "rows_forgotten": self.rows_forgotten,
            "replayed": self.replayed,
            "outcome": self.outcome,
        }


def silent(done: int, total: int) -> None:
    """Show nothing."""


def _never(plans: Sequence[Plan]) -> bool:
    """Let no live model go back."""
    return False


async def restore_many(
    settings: Settings,
    meant: Meant,
    wanted: RestoreRequest = NEWEST,
    *,
    dry_run: bool = False,
    agreed: Callable[[Sequence[Plan]], bool] = _never,
    follow: bool = False,
    progress: Progress = silent,
) -> list[Outcome]:
    """Restore the models that are meant from the snapshots that are wanted.

    `agreed` is asked once, with all live models that would go back behind what they have learned; a no ends it before
    anything is changed, with :class:`NotConfirmedError`. With `follow` they go back also where they learn on meanwhile.
    """
    async with open_resources(settings) as resources:
        restorer = Restorer(resources, settings)
        try:
            registered = [found async for found in registered_of(resources, meant)]
            plans, view = await _plan(restorer, registered, wanted)
            if dry_run:
                return [plan.outcome() for plan in plans]
            back = [plan for plan in plans if plan.goes_back]
            # What needs the loop's thread is asked in it: nothing else runs meanwhile.
            if back and not agreed(back):
                raise NotConfirmedError(
                    f"{len(back)} live models would go back behind what they have learned "
                    f"({sum(plan.rows_forgotten for plan in back)} rows); --force does that. Nothing was changed."
                )
            return await at_once(plans, _Hand(restorer, wanted, view, follow=follow).carry_out, progress)
        finally:
            restorer.close()


async def at_once(items: Sequence[T], act: Callable[[T], Awaitable[R]], progress: Progress = silent) -> list[R]:
    """Act on all items, some at once; return what came of each, in their order."""
    gate, done = asyncio.Semaphore(AT_ONCE), 0

    async def one(item: T) -> R:
        nonlocal done
        async with gate:
            result = await act(item)
        done += 1
        progress(done, len(items))
        return result

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as errors:
        # The first one stopped the others, and says why.
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _plan(
    restorer: Restorer, registered: Sequence[RegistryEntry], wanted: RestoreRequest
) -> tuple[list[Plan], View | None]:
    """Find out what would become of the models, and what was logged when those that are lost were."""
    live: list[Model | None] = []
    for begin in range(0, len(registered), PAGE):
        live += await restorer.resources.store.describe_many([each.hash for each in registered[begin : begin + PAGE]])
    pairs = [
        # One of before it was born is what is left of a deleted predecessor.
        (each, found if found is None or found.generation >= each.born else None)
        for each, found in zip(registered, live, strict=True)
    ]
    is_needed = wanted.at is not None or any(found is None for _, found in pairs)
    view = await restorer.look() if is_needed else None

    async def look(pair: tuple[RegistryEntry, Model | None]) -> Plan:
        return await _look(restorer, *pair, wanted, view)

    return await at_once(pairs, look), view


async def _look(
    restorer: Restorer, registered: RegistryEntry, live: Model | None, wanted: RestoreRequest, view: View | None
) -> Plan:
    """Find out what would become of one model."""
    document = await restorer.find(registered, wanted)
    if document is None and wanted.is_named:
        what = "no snapshot that old" if wanted.version is None else "no snapshot of that version"
        return Plan(registered, live, None, failed=what)
    broken = live is not None and await is_broken(restorer, live)
    if live is not None and (not wanted.is_named or document is None):
        return Plan(registered, live, document, kept="" if broken else "kept: it is live", broken=broken)
    try:
        replayed, is_at = await restorer.ahead(registered, wanted, document, live, view)
    except CorruptLogError as error:
        return Plan(registered, live, document, failed=str(error))
    if live is None:
        return Plan(registered, None, document, replayed=replayed)
    if is_at and not broken:
        return Plan(registered, live, document, kept="kept: it is at this snapshot")
    return Plan(registered, live, document, goes_back=True, replayed=replayed, broken=broken)


class _Hand:
    """Does what was planned, until so many models in a row show that a part is away for all of them."""

    def __init__(self, restorer: Restorer, wanted: RestoreRequest, view: View | None, *, follow: bool) -> None:
        self._restorer = restorer
        self._wanted = wanted
        self._view = view
        self._follow = follow
        self._in_a_row = 0
        self._away = ""

    async def carry_out(self, plan: Plan) -> Outcome:
        """Do what was planned for one model."""
        if plan.kept or plan.failed:
            return plan.outcome()
        if self._in_a_row >= AT_ONCE:
            return plan.said(f"left: {self._away}", failed=True)
        try:
            restored = await self._restore(plan)
        except UnavailableError as error:
            self._in_a_row, self._away = self._in_a_row + 1, str(error)
            return plan.said(str(error), failed=True)
        except KeepfitError as error:
            return plan.said(str(error), failed=True)
        self._in_a_row = 0
        return _said(plan, restored)

    async def _restore(self, plan: Plan) -> RestoreResult:
        if plan.live is None:
            return await self._restorer.bring_back(plan.registered, self._wanted, plan.document, self._view)
        if plan.broken and not plan.goes_back:
            try:
                return await self._repair(plan, plan.live)
            except MissingRequestsError:
                if not self._follow:
                    raise
        return await self._restorer.go_back(
            plan.registered, self._wanted, plan.live, follow=self._follow, first=plan.document, view=self._view
        )

    async def _repair(self, plan: Plan, live: Model) -> RestoreResult:
        repaired = await repair(self._restorer, live.hash)
        if repaired is None:
            return RestoreResult(live.hash, plan.document, live=True, corrupt=0)
        return RestoreResult(
            live.hash, repaired.document, live=False, corrupt=0, saved=repaired.saved, relearned=repaired.requests
        )


def _said(plan: Plan, restored: RestoreResult) -> Outcome:
    if restored.live:
        return plan.said("kept: it came back meanwhile")
    words = "restored" if plan.live is None else "went back"
    if restored.document is None:
        words = "begun anew: it had no snapshot"
    if restored.replayed:
        words += f", {restored.replayed} logged rows learned again"
    if restored.relearned is not None:
        words = f"repaired: {restored.relearned} requests learned again, none forgotten"
    if restored.corrupt:
        words += f", after {restored.corrupt} damaged"
    if not restored.saved:
        words += ", to be saved by the next pass"
    return Outcome(
        plan.registered,
        plan.live.version if plan.live else None,
        restored.document["version"] if restored.document else None,
        words,
        rows_forgotten=plan.rows_forgotten,
        replayed=restored.replayed,
    )


async def registered_of(resources: Resources, meant: Meant) -> AsyncIterator[RegistryEntry]:
    """Read the register for the models that are meant, in order of their hashes."""
    filters = {**meant.metadata, **({} if meant.type_ is None else {"type": meant.type_})}
    if meant.hash is not None:
        found = await resources.registry.find(meant.hash)
        if found is not None and (not filters or found.hash in await _of_these(resources, filters, found.hash)):
            yield found
        return
    after = ""
    while page := await resources.registry.models(filters, PAGE, after):
        for registered in page:
            yield registered
        after = page[-1].hash


async def _of_these(resources: Resources, filters: Mapping[str, str], model_hash: str) -> list[str]:
    """Hashes of models that fit the filters, from just before `model_hash` on."""
    # Hashes are 64 digits: nothing sorts between the first 63 of one and itself but what differs in the last.
    found = await resources.registry.models(filters, 16, model_hash[:-1])
    return [each.hash for each in found]

"""Passes over the changed bundles: once (a CronJob), or every so often (a loop).

Owns which models a pass looks at and how many at once; how they are saved is :mod:`keepfit.snapshots.save`, what is
cleared up after them :mod:`keepfit.snapshots.garbage`, and in the row log :mod:`keepfit.rowlog.compaction`. Never stops
learning: it reads what workers have committed. Invariants: a pass saves only what changed; one model's trouble does not
keep the others from being saved; several snapshotters at once do no harm.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Self

import structlog

from keepfit.backends import redis_clients
from keepfit.backends.blobs import Storage, open_storage
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.history import Document, Registry, snapshot_upkeep
from keepfit.history import timeline_upkeep as tidying
from keepfit.history.timeline_upkeep import Upkeep
from keepfit.observability.outage import Outage
from keepfit.rowlog import compaction
from keepfit.rowlog.compaction import CompactionResult
from keepfit.rowlog.row_log import RowLog, open_log
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.snapshots.garbage import LAST, Collected, collect
from keepfit.snapshots.retention import Rules
from keepfit.snapshots.save import AWAY_COUNT, Outcome, SaveLimits, save_many
from keepfit.store.models import Store

log = structlog.get_logger(__name__)

# Models whose bundles are read, written and committed together; while one group is written, another is read or noted.
GROUP, GROUPS_AT_ONCE = 128, 2


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass did; `away` tells which part was missing, '' if none was.

    Models that were not tried because of that are neither saved nor failed nor unchanged, but `left`. `collected` is
    what was cleared up, `uncollected` why that failed ('' if it did not).
    """

    saved: list[Document]
    failed: dict[str, str]
    unchanged: int
    seconds: float
    left: int = 0
    away: str = ""
    collected: Collected = field(default_factory=Collected)
    uncollected: str = ""
    tended: CompactionResult = field(default_factory=CompactionResult)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a pass does at once, and what it clears up."""

    at_once: int = 16
    bytes_max: int = 64 * 2**20
    cleared_max: int = 200
    rules: Rules = field(default_factory=Rules)
    row_log_keep_s: int = 7 * 86_400

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Take them from the settings."""
        rules = Rules(
            settings.retention_all_s, settings.retention_hourly_s, settings.retention_daily_s, settings.garbage_grace_s
        )
        return cls(
            settings.snapshot_entries_max,
            settings.snapshot_bytes_max,
            settings.garbage_entries_max,
            rules,
            settings.row_log_keep_s,
        )


@dataclass(frozen=True, slots=True)
class Snapshotter:
    """All that a pass needs."""

    store: Store
    history: Registry
    storage: Storage
    keyring: Keyring
    bounds: Bounds = Bounds()
    row_log: RowLog | None = None

    async def run_pass(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
        """Save every model that changed since its last snapshot; call `progress` with (done, total) as it goes.

        Then clear up after some models. A part that is away is away for all: after the first models in a row the others
        are left for the next pass, and one line in the log tells of it.
        """
        started = time.monotonic()
        hashes = await self.store.changed()
        tally = _Tally(len(hashes), progress)
        groups = iter(await self._groups(hashes))
        with ThreadPoolExecutor(self.bounds.at_once, "snapshot") as threads:
            hands = SaveLimits(asyncio.Semaphore(self.bounds.at_once), threads)

            async def save_groups() -> None:
                while tally.in_a_row < AWAY_COUNT and (group := next(groups, None)):
                    outcomes = await save_many(self.store, self.history, self.storage, self.keyring, group, hands)
                    for model_hash in group:
                        if model_hash in outcomes:
                            tally.count(model_hash, outcomes[model_hash])

            async with asyncio.TaskGroup() as saving:
                for _ in range(GROUPS_AT_ONCE):
                    saving.create_task(save_groups())
        left = len(hashes) - tally.done
        unchanged = tally.done - len(tally.saved) - len(tally.failed)
        await self.store.note_pass(len(tally.failed) + left, tally.away or next(iter(tally.failed.values()), ""))
        tended, uncollected = await self.tend_log()
        collected = Collected()
        if not tally.away:
            collected, uncollected = await self.clear_up(uncollected)
        return Report(
            tally.saved,
            tally.failed,
            unchanged,
            time.monotonic() - started,
            left,
            tally.away,
            collected,
            uncollected,
            tended,
        )

    async def _groups(self, hashes: Sequence[str]) -> list[list[str]]:
        """Divide models into groups that may be in memory together."""
        groups: list[list[str]] = []
        for begin in range(0, len(hashes), GROUP):
            some = hashes[begin : begin + GROUP]
            total = self.bounds.bytes_max
            for model_hash, size in zip(some, await self._sizes(some), strict=True):
                if total + size > self.bounds.bytes_max // GROUPS_AT_ONCE:
                    groups.append([])
                    total = 0
                groups[-1].append(model_hash)
                total += size
        return groups

    async def _sizes(self, hashes: Sequence[str]) -> list[int]:
        try:
            return await self.store.bundle_sizes(hashes)
        except UnavailableError:
            # Those who read the bundles will find out, and it is told of them.
            return [0] * len(hashes)

    async def tend_log(self) -> tuple[CompactionResult, str]:
        """Merge what is in the row log, and let go what is old; return what was done, and why it failed or ''."""
        if self.row_log is None:
            return CompactionResult(), ""
        try:
            _, redis_s = await self.store.collection()
            now_s = min(time.time(), redis_s)
            tended = await compaction.compact(self.row_log, self.history, now_s, self.bounds.row_log_keep_s)
        except Exception as error:  # noqa: BLE001 - the same as of a collection
            log.warning("row_log_untended", reason=describe_error(error))
            return CompactionResult(), describe_error(error)
        return tended, f"{tended.damaged} objects of the row log are damaged" if tended.damaged else ""

    async def clear_up(self, reason: str = "") -> tuple[Collected, str]:
        """Clear up after the next models in the order of their hashes; return what went, and why it failed or ''.

        After the last model comes the first again. The place is kept in Redis: if it is lost, that costs a round. A
        `reason` is why something else failed.
        """
        if not self.bounds.cleared_max:
            return Collected(), reason
        after, redis_s = await self.store.collection()
        collected, until = Collected(), after
        try:
            until = await snapshot_upkeep.end_of_slice(self.history, after, self.bounds.cleared_max) or LAST
            # The earlier of two clocks: one that is ahead would make everything look old.
            now_s = min(time.time(), redis_s)
            collected = await collect(self.history, self.storage, after, until, self.bounds.rules, now_s)
        except Exception as error:  # noqa: BLE001 - what was saved is saved, and the next models are not to wait
            reason = describe_error(error)
            log.warning("collection_failed", reason=reason)
        if collected.more:
            until = after
        await self.store.note_collection("" if until == LAST else until, reason)
        return collected, reason


def describe_error(error: Exception) -> str:
    """Say what was wrong."""
    return str(error) if isinstance(error, KeepfitError) else f"{type(error).__name__}: {error}"


class _Tally:
    """What has come of the models of a pass so far."""

    def __init__(self, total: int, progress: Callable[[int, int], None]) -> None:
        self._total = total
        self._progress = progress
        self.saved: list[Document] = []
        self.failed: dict[str, str] = {}
        self.away = ""
        self.done = self.in_a_row = 0

    def count(self, model_hash: str, outcome: Outcome) -> None:
        """Take in what came of a model."""
        if isinstance(outcome, UnavailableError):
            self.failed[model_hash] = self.away = str(outcome)
            self.in_a_row += 1
        elif isinstance(outcome, Exception):
            self.failed[model_hash] = describe_error(outcome)
            log.warning("snapshot_failed", hash=model_hash, reason=describe_error(outcome))
        else:
            self.in_a_row = 0
            if outcome is not None:
                self.saved.append(outcome)
        self.done += 1
        self._progress(self.done, self._total)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Snapshotter]:
    """Open all connections of a snapshotter."""
    keyring = Keyring.from_text(settings.signing_keys.get_secret_value())
    storage, row_log = open_storage(settings.snapshot_url), open_log(settings.row_log_url)
    client = redis_clients.store_async(settings)
    try:
        async with Registry(settings.mongo_url.get_secret_value()) as history:
            yield Snapshotter(Store(client), history, storage, keyring, Bounds.of(settings), row_log)
    finally:
        await client.aclose()


async def run_once(settings: Settings, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Make one pass."""
    async with opened(settings) as snapshotter:
        await snapshotter.history.ensure_indexes()
        wanted = Upkeep.of(settings)
        report = await snapshotter.run_pass(progress)
        await tidying.run(snapshotter.history.timeline, wanted)
        return report


async def run_every(settings: Settings, seconds: float) -> None:
    """Make a pass every `seconds`, until SIGTERM or SIGINT; the pass in hand is finished first.

    A pass that fails as a whole (Redis or MongoDB away) is logged, and the next one makes up for it.
    """
    stop, wanted = asyncio.Event(), Upkeep.of(settings)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with opened(settings) as snapshotter:
        indexed, outage = False, Outage("storage, mongo or store", "changed models are not saved")
        while not stop.is_set():
            try:
                if not indexed:
                    await snapshotter.history.ensure_indexes()
                    indexed = True
                report = await snapshotter.run_pass()
                await tidying.run(snapshotter.history.timeline, wanted)
                if report.saved or report.collected or report.tended or (report.failed and not report.away):
                    log.info(
                        "pass_done",
                        saved=len(report.saved),
                        failed=len(report.failed),
                        left=report.left,
                        seconds=report.seconds,
                        **asdict(report.collected),
                        **{f"row_log_{name}": count for name, count in asdict(report.tended).items()},
                    )
                if report.away:
                    outage.begin(report.away)
                else:
                    outage.end()
            except KeepfitError as error:
                outage.begin(error)
                # Gateways tell of it, where it is not the store itself that is away.
                with contextlib.suppress(UnavailableError):
                    await snapshotter.store.note_pass(0, str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), seconds)

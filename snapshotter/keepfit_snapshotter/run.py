"""Save changed bundles: in one pass (a CronJob), or in a pass every so often (a loop).

Owns which models a pass saves and how many at once. :mod:`keepfit.snapshots.save` saves them,
:mod:`keepfit.snapshots.garbage` deletes expired snapshots, :mod:`keepfit.rowlog.compaction` compacts the row log. Never
stops learning: it reads what workers have committed. Invariants: a pass saves only models that changed; a failure of
one model does not keep the others from being saved; several snapshotters at the same time do no harm.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Self

import structlog

from keepfit.errors import KeepfitError, UnavailableError
from keepfit.history import Document
from keepfit.history.registry import snapshot_upkeep
from keepfit.history.upkeep import timeline_upkeep
from keepfit.history.upkeep.timeline_upkeep import Upkeep
from keepfit.observability.alive_file import AliveFile
from keepfit.observability.outage import Outage
from keepfit.observability.progress import Progress, no_progress
from keepfit.rowlog import compaction
from keepfit.rowlog.compaction import CompactionResult
from keepfit.settings import Settings
from keepfit.snapshots.garbage import HASH_END, Collected, collect
from keepfit.snapshots.idle import IdleRules, unload_idle
from keepfit.snapshots.resources import Resources, open_resources
from keepfit.snapshots.retention import Rules
from keepfit.snapshots.save import UNAVAILABLE_COUNT, Outcome, SaveLimits, save_many
from keepfit.store import idle

log = structlog.get_logger(__name__)

# Models whose bundles are read, written and committed together. While one group is written, another is read or noted.
GROUP, GROUPS_AT_ONCE = 128, 2


@dataclass(frozen=True, slots=True)
class PassReport:
    """Result of a pass; `unavailable` says which dependency was unavailable, '' if none was.

    Models that were not tried for that reason are counted in `left`, not as saved, failed or unchanged. `collected` is
    what garbage collection deleted, `unloaded` how many idle models left Redis, `cleanup_error` why one of these or the
    compaction of the row log failed ('' if none did).
    """

    saved: list[Document]
    failed: dict[str, str]
    unchanged: int
    seconds: float
    left: int = 0
    unavailable: str = ""
    collected: Collected = field(default_factory=Collected)
    cleanup_error: str = ""
    compacted: CompactionResult = field(default_factory=CompactionResult)
    unloaded: int = 0


@dataclass(frozen=True, slots=True)
class PassLimits:
    """How much a pass does at once, and what it deletes.

    `writes_max` blobs are written at once, `bytes_max` bytes of bundles are in memory at once, garbage of
    `garbage_models_max` models is collected per pass (0: none).
    """

    writes_max: int = 16
    bytes_max: int = 64 * 2**20
    garbage_models_max: int = 200
    rules: Rules = field(default_factory=Rules)
    row_log_keep_s: int = 7 * 86_400
    idle: IdleRules = field(default_factory=IdleRules)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read the limits from the settings."""
        rules = Rules(
            settings.retention_all_s, settings.retention_hourly_s, settings.retention_daily_s, settings.garbage_grace_s
        )
        return cls(
            settings.snapshot_entries_max,
            settings.snapshot_bytes_max,
            settings.garbage_entries_max,
            rules,
            settings.row_log_keep_s,
            IdleRules(settings.idle_after_s, settings.idempotency_ttl_s),
        )


@dataclass(frozen=True, slots=True)
class Snapshotter:
    """Runs passes with the given connections and limits."""

    resources: Resources
    limits: PassLimits = PassLimits()

    async def run_pass(self, progress: Progress = no_progress) -> PassReport:
        """Save every model that changed since its last snapshot; call `progress` with (done, total) after each.

        Then collect the garbage of some models. A dependency that is unavailable is unavailable for all models: after
        the first failures in a row the pass leaves the other models to the next pass, and the log has one line about
        it.
        """
        store = self.resources.store
        started = time.monotonic()
        hashes = await store.changed()
        tally = _Tally(len(hashes), progress)
        groups, large = await self._groups(hashes)
        with ThreadPoolExecutor(self.limits.writes_max, "snapshot") as threads:
            limits = SaveLimits(asyncio.Semaphore(self.limits.writes_max), threads)

            async def save_groups(some: Iterator[list[str]]) -> None:
                while tally.unavailable_in_a_row < UNAVAILABLE_COUNT and (group := next(some, None)):
                    outcomes = await save_many(self.resources, group, limits)
                    for model_hash in group:
                        if model_hash in outcomes:
                            tally.count(model_hash, outcomes[model_hash])

            waiting = iter(groups)
            async with asyncio.TaskGroup() as saving:
                for _ in range(GROUPS_AT_ONCE):
                    saving.create_task(save_groups(waiting))
            await save_groups(iter(large))
        left = len(hashes) - tally.done
        unchanged = tally.done - len(tally.saved) - len(tally.failed)
        await store.note_pass(len(tally.failed) + left, tally.unavailable or next(iter(tally.failed.values()), ""))
        compacted, cleanup_error = await self.compact_row_log()
        collected, unloaded = Collected(), 0
        if not tally.unavailable:
            collected, cleanup_error = await self.collect_garbage(cleanup_error)
            unloaded, cleanup_error = await self.unload_idle(cleanup_error)
        return PassReport(
            tally.saved,
            tally.failed,
            unchanged,
            time.monotonic() - started,
            left,
            tally.unavailable,
            collected,
            cleanup_error,
            compacted,
            unloaded,
        )

    async def unload_idle(self, reason: str = "") -> tuple[int, str]:
        """Delete idle models from Redis; return how many, and why it failed or '' (`reason` as for garbage).

        Redis keeps the position at which the next pass begins; losing it costs one round.
        """
        client = self.resources.store.client
        if not self.limits.idle.idle_after_s:
            return 0, reason
        try:
            unloaded = await unload_idle(self.resources, self.limits.idle, await idle.position(client))
            # Also past models that failed: they must not keep those after them from being looked at.
            await idle.note_position(client, unloaded.cursor)
        except Exception as error:  # noqa: BLE001 - for the same reason as in collect_garbage
            log.warning("unloading_failed", reason=_reason(error))
            return 0, _reason(error)
        if unloaded.failed:
            model_hash, failure = next(iter(unloaded.failed.items()))
            reason = _reason(failure)
            log.warning("unloading_failed", failed=len(unloaded.failed), hash=model_hash, reason=reason)
        return unloaded.count, reason

    async def _groups(self, hashes: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
        """Divide models into groups of which two may be in memory together, and large models, which are saved alone."""
        groups: list[list[str]] = []
        large: list[list[str]] = []
        bytes_max = self.limits.bytes_max // GROUPS_AT_ONCE
        for begin in range(0, len(hashes), GROUP):
            some = hashes[begin : begin + GROUP]
            total = bytes_max + 1
            for model_hash, size in zip(some, await self._sizes(some), strict=True):
                if size > bytes_max:
                    large.append([model_hash])
                    continue
                if total + size > bytes_max:
                    groups.append([])
                    total = 0
                groups[-1].append(model_hash)
                total += size
        return groups, large

    async def _sizes(self, hashes: Sequence[str]) -> list[int]:
        try:
            return await self.resources.store.bundle_sizes(hashes)
        except UnavailableError:
            # Reading the bundles fails too, and reports it.
            return [0] * len(hashes)

    async def compact_row_log(self) -> tuple[CompactionResult, str]:
        """Compact the row log; return what was done, and why it failed or ''."""
        resources = self.resources
        if resources.row_log is None:
            return CompactionResult(), ""
        try:
            _, redis_s = await resources.store.collection()
            now_s = min(time.time(), redis_s)
            compacted = await compaction.compact(
                resources.row_log, resources.registry, now_s, self.limits.row_log_keep_s
            )
        except Exception as error:  # noqa: BLE001 - for the same reason as in collect_garbage
            log.warning("row_log_compaction_failed", reason=_reason(error))
            return CompactionResult(), _reason(error)
        return compacted, f"{compacted.damaged} objects of the row log are damaged" if compacted.damaged else ""

    async def collect_garbage(self, reason: str = "") -> tuple[Collected, str]:
        """Collect the garbage of the next models in the order of their hashes; return it, and why it failed or ''.

        The first model follows the last. Redis keeps the position; losing it costs one round. A `reason` says why
        another step failed, and is returned where this one does not fail.
        """
        resources = self.resources
        if not self.limits.garbage_models_max:
            return Collected(), reason
        after, redis_s = await resources.store.collection()
        collected, until = Collected(), after
        try:
            end = await snapshot_upkeep.end_of_slice(resources.registry, after, self.limits.garbage_models_max)
            until = end or HASH_END
            # The earlier of two clocks: a clock that is ahead makes everything look old.
            now_s = min(time.time(), redis_s)
            collected = await collect(resources.registry, resources.storage, after, until, self.limits.rules, now_s)
        except Exception as error:  # noqa: BLE001 - the snapshots are saved, and the next models must not wait
            reason = _reason(error)
            log.warning("collection_failed", reason=reason)
        if collected.more:
            until = after
        await resources.store.note_collection("" if until == HASH_END else until, reason)
        return collected, reason


def _reason(error: Exception) -> str:
    """Return an error's message; of an error that is not keepfit's, its class too."""
    return str(error) if isinstance(error, KeepfitError) else f"{type(error).__name__}: {error}"


class _Tally:
    """Results of a pass so far."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total = total
        self._progress = progress
        self.saved: list[Document] = []
        self.failed: dict[str, str] = {}
        self.unavailable = ""
        self.done = self.unavailable_in_a_row = 0

    def count(self, model_hash: str, outcome: Outcome) -> None:
        """Add the outcome of a model."""
        if isinstance(outcome, UnavailableError):
            self.failed[model_hash] = self.unavailable = str(outcome)
            self.unavailable_in_a_row += 1
        elif isinstance(outcome, Exception):
            self.failed[model_hash] = _reason(outcome)
            log.warning("snapshot_failed", hash=model_hash, reason=_reason(outcome))
        else:
            self.unavailable_in_a_row = 0
            if outcome is not None:
                self.saved.append(outcome)
        self.done += 1
        self._progress(self.done, self._total)


async def run_once(settings: Settings, progress: Progress = no_progress) -> PassReport:
    """Run one pass."""
    async with open_resources(settings) as resources:
        await resources.registry.ensure_indexes()
        upkeep = Upkeep.of(settings)
        report = await Snapshotter(resources, PassLimits.of(settings)).run_pass(progress)
        await timeline_upkeep.run(resources.registry.timeline, upkeep)
        return report


async def run_every(settings: Settings, seconds: float) -> None:
    """Run a pass every `seconds`, until SIGTERM or SIGINT; the current pass is finished first.

    A pass that fails as a whole (Redis or MongoDB is unavailable) is logged, and the next pass saves what it missed.
    """
    stop, upkeep = asyncio.Event(), Upkeep.of(settings)
    alive_file = AliveFile(settings.alive_file)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with open_resources(settings) as resources:
        snapshotter = Snapshotter(resources, PassLimits.of(settings))
        has_indexes, outage = False, Outage("storage, mongo or store", "changed models are not saved")
        log.info("snapshotter_started", every_s=seconds)
        while not stop.is_set():
            alive_file.touch()
            try:
                if not has_indexes:
                    await resources.registry.ensure_indexes()
                    has_indexes = True
                report = await snapshotter.run_pass()
                await timeline_upkeep.run(resources.registry.timeline, upkeep)
                _log_pass(report)
                if report.unavailable:
                    outage.begin(report.unavailable)
                else:
                    outage.end()
            except KeepfitError as error:
                outage.begin(error)
                # Gateways report it as a metric, unless the store itself is unavailable.
                with contextlib.suppress(UnavailableError):
                    await resources.store.note_pass(0, str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), seconds)


def _log_pass(report: PassReport) -> None:
    """Log a pass that did something, or in which models failed for reasons of their own."""
    if (
        report.saved
        or report.unloaded
        or report.collected
        or report.compacted
        or (report.failed and not report.unavailable)
    ):
        log.info(
            "pass_done",
            saved=len(report.saved),
            failed=len(report.failed),
            left=report.left,
            unloaded=report.unloaded,
            seconds=report.seconds,
            **asdict(report.collected),
            **{f"row_log_{name}": count for name, count in asdict(report.compacted).items()},
        )

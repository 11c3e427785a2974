"""Passes over the changed bundles: once (a CronJob), or every so often (a loop).

Owns which models a pass looks at and how many at once; how one is saved is :func:`keepfit.snapshot.save`. Never stops
learning: it reads what workers have committed. Invariants: a pass touches only what changed; one model's trouble does
not keep the others from being saved; several snapshotters at once do no harm.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from keepfit import connections
from keepfit.envelope import Keyring
from keepfit.errors import KeepfitError, UnavailableError
from keepfit.history import Document, History
from keepfit.outage import Outage
from keepfit.settings import Settings
from keepfit.snapshot import save
from keepfit.storage import Storage, open_storage
from keepfit.store import Store

log = structlog.get_logger(__name__)

AT_ONCE = 8
# So many models in a row that could not be saved because a part is away tell that it is away for all of them.
AWAY_COUNT = AT_ONCE


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass did; `away` tells which part was missing, '' if none was.

    Models that were not tried because of that are neither saved nor failed nor unchanged, but `left`.
    """

    saved: list[Document]
    failed: dict[str, str]
    unchanged: int
    seconds: float
    left: int = 0
    away: str = ""


@dataclass(frozen=True, slots=True)
class Snapshotter:
    """All that a pass needs."""

    store: Store
    history: History
    storage: Storage
    keyring: Keyring

    async def run_pass(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
        """Save every model that changed since its last snapshot; call `progress` with (done, total) as it goes.

        A part that is away is away for all: after the first :data:`AWAY_COUNT` models in a row the others are left for
        the next pass, and one line in the log tells of it.
        """
        started = time.monotonic()
        hashes = await self.store.changed()
        gate = asyncio.Semaphore(AT_ONCE)
        saved: list[Document] = []
        failed: dict[str, str] = {}
        done = left = in_a_row = 0
        away = ""

        async def one(model_hash: str) -> None:
            nonlocal done, left, in_a_row, away
            async with gate:
                if in_a_row >= AWAY_COUNT:
                    left += 1
                    return
                try:
                    document = await save(self.store, self.history, self.storage, self.keyring, model_hash)
                except UnavailableError as error:
                    failed[model_hash] = away = str(error)
                    in_a_row += 1
                except Exception as error:  # noqa: BLE001 - whatever is wrong with one model is not with the others
                    reason = str(error) if isinstance(error, KeepfitError) else f"{type(error).__name__}: {error}"
                    failed[model_hash] = reason
                    log.warning("snapshot_failed", hash=model_hash, reason=reason)
                else:
                    in_a_row = 0
                    if document is not None:
                        saved.append(document)
                done += 1
                progress(done, len(hashes))

        async with asyncio.TaskGroup() as group:
            for model_hash in hashes:
                group.create_task(one(model_hash))
        unchanged = len(hashes) - len(saved) - len(failed) - left
        await self.store.note_pass(len(hashes) - len(saved) - unchanged, away or next(iter(failed.values()), ""))
        return Report(saved, failed, unchanged, time.monotonic() - started, left, away)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Snapshotter]:
    """Open all connections of a snapshotter."""
    keyring = Keyring.from_text(settings.signing_keys.get_secret_value())
    storage = open_storage(settings.snapshot_url)
    client = connections.store_async(settings)
    try:
        async with History(settings.mongo_url.get_secret_value()) as history:
            yield Snapshotter(Store(client), history, storage, keyring)
    finally:
        await client.aclose()


async def run_once(settings: Settings, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
    """Make one pass."""
    async with opened(settings) as snapshotter:
        await snapshotter.history.ensure_indexes()
        return await snapshotter.run_pass(progress)


async def run_every(settings: Settings, seconds: float) -> None:
    """Make a pass every `seconds`, until SIGTERM or SIGINT; the pass in hand is finished first.

    A pass that fails as a whole (Redis or MongoDB away) is logged, and the next one makes up for it.
    """
    stop = asyncio.Event()
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
                if report.saved or (report.failed and not report.away):
                    log.info(
                        "pass_done",
                        saved=len(report.saved),
                        failed=len(report.failed),
                        left=report.left,
                        seconds=report.seconds,
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

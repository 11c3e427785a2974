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
from keepfit.errors import KeepfitError
from keepfit.history import Document, History
from keepfit.settings import Settings
from keepfit.snapshot import save
from keepfit.storage import Storage, open_storage
from keepfit.store import Store

log = structlog.get_logger(__name__)

AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass did."""

    saved: list[Document]
    failed: dict[str, str]
    unchanged: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Snapshotter:
    """All that a pass needs."""

    store: Store
    history: History
    storage: Storage
    keyring: Keyring

    async def run_pass(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Report:
        """Save every model that changed since its last snapshot; call `progress` with (done, total) as it goes."""
        started = time.monotonic()
        hashes = await self.store.changed()
        gate = asyncio.Semaphore(AT_ONCE)
        saved: list[Document] = []
        failed: dict[str, str] = {}
        done = 0

        async def one(model_hash: str) -> None:
            nonlocal done
            async with gate:
                try:
                    document = await save(self.store, self.history, self.storage, self.keyring, model_hash)
                except Exception as error:  # noqa: BLE001 - whatever is wrong with one model is not with the others
                    reason = str(error) if isinstance(error, KeepfitError) else f"{type(error).__name__}: {error}"
                    failed[model_hash] = reason
                    log.warning("snapshot_failed", hash=model_hash, reason=reason)
                else:
                    if document is not None:
                        saved.append(document)
                done += 1
                progress(done, len(hashes))

        async with asyncio.TaskGroup() as group:
            for model_hash in hashes:
                group.create_task(one(model_hash))
        return Report(saved, failed, len(hashes) - len(saved) - len(failed), time.monotonic() - started)


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
        indexed = False
        while not stop.is_set():
            try:
                if not indexed:
                    await snapshotter.history.ensure_indexes()
                    indexed = True
                report = await snapshotter.run_pass()
                if report.saved or report.failed:
                    log.info(
                        "pass_done",
                        saved=len(report.saved),
                        failed=len(report.failed),
                        seconds=report.seconds,
                    )
            except KeepfitError as error:
                log.warning("pass_failed", reason=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), seconds)

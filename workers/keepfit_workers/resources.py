"""Connections of a worker beyond Redis: MongoDB and storage, for restores and snapshots that a gateway requests.

Owns the connections. They are opened at the first use and kept open, because opening them takes longer than a restore.
Never decides what they are used for. Invariant: a connection is used only in the event loop that opened it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from redis import Redis

from keepfit.errors import KeepfitError
from keepfit.restore.restorer import Restorer
from keepfit.settings import Settings
from keepfit.snapshots.resources import connect
from keepfit_workers.activity import BATCH, Activity
from keepfit_workers.load_guard import WorkerLoadGuard

T = TypeVar("T")

# A restore may take longer than one call may, as long as its event loop runs and no snapshot is being loaded.
PROGRESS_S = 1.0


class LazyResources:
    """Connections of one worker process, and the event loop that they live in."""

    def __init__(self, settings: Settings, store: Redis, activity: Activity) -> None:
        self._settings = settings
        self._activity = activity
        self._guard = WorkerLoadGuard(store, activity)
        self._runner: asyncio.Runner | None = None
        self._restorer: Restorer | None = None
        self._close: Callable[[], Coroutine[Any, Any, None]] | None = None

    def run(self, act: Callable[[Restorer], Coroutine[Any, Any, T]], repaired: str = "") -> T:
        """Run a coroutine with the connections; an error that is not a KeepfitError closes them for the next call.

        `repaired` is the hash of the model whose live bundle is repaired, if one is.
        """
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            return self._runner.run(self._act(act, repaired))
        except KeepfitError:
            raise
        except BaseException:
            self.close()
            raise

    async def _act(self, act: Callable[[Restorer], Coroutine[Any, Any, T]], repaired: str) -> T:
        if self._restorer is None:
            self._restorer = self._open()
        self._guard.begin(repaired)
        progress = asyncio.create_task(self._record_progress())
        try:
            return await act(self._restorer)
        finally:
            progress.cancel()
            self._activity.begin(BATCH)

    async def _record_progress(self) -> None:
        """Record that the call goes on while the event loop runs: then storage is slow, rather than a call endless."""
        while True:
            await asyncio.sleep(PROGRESS_S)
            self._guard.go_on()

    def _open(self) -> Restorer:
        resources = connect(self._settings)
        restorer = Restorer(resources, self._settings, self._guard)

        async def close() -> None:
            restorer.close()
            await resources.close()

        self._close = close
        return restorer

    def close(self) -> None:
        """Close all connections."""
        runner, close = self._runner, self._close
        self._runner = self._restorer = self._close = None
        if runner is not None:
            with suppress(Exception):
                if close is not None:
                    runner.run(close())
            runner.close()

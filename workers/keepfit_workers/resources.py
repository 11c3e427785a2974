"""Connections of a worker beyond Redis: MongoDB and storage, for restores and snapshots that a gateway requests.

Owns the connections. They are opened at the first use and kept open, because opening them takes longer than a restore.
Never decides what they are used for. Invariant: a connection is used only in the event loop that opened it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from keepfit.errors import KeepfitError
from keepfit.restore.restorer import Restorer
from keepfit.settings import Settings
from keepfit.snapshots.resources import connect

T = TypeVar("T")


class LazyResources:
    """Connections of one worker process, and the event loop that they live in."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runner: asyncio.Runner | None = None
        self._restorer: Restorer | None = None
        self._close: Callable[[], Coroutine[Any, Any, None]] | None = None

    def run(self, act: Callable[[Restorer], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine with the connections; an error that is not a KeepfitError closes them for the next call."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            return self._runner.run(self._act(act))
        except KeepfitError:
            raise
        except BaseException:
            self.close()
            raise

    async def _act(self, act: Callable[[Restorer], Coroutine[Any, Any, T]]) -> T:
        if self._restorer is None:
            self._restorer = self._open()
        return await act(self._restorer)

    def _open(self) -> Restorer:
        resources = connect(self._settings)
        restorer = Restorer(resources, self._settings)

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

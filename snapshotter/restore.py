"""Restoring many models: what `keepfit restore` does.

Owns which models are meant and what is said of each; how one is restored is :func:`keepfit.snapshot.restore`.
Invariant: a live model is never overwritten; trouble with one does not keep the others from being restored.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from keepfit.errors import KeepfitError
from keepfit.history import Document, Registered
from keepfit.settings import Settings
from keepfit.snapshot import restore
from snapshotter.run import Snapshotter, opened

PAGE = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of restoring one model; versions are None where there is none."""

    registered: Registered
    live_version: int | None
    version: int | None
    outcome: str
    failed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome as plain JSON."""
        return {
            "hash": self.registered.hash,
            "metadata": self.registered.metadata,
            "live_version": self.live_version,
            "version": self.version,
            "outcome": self.outcome,
        }


async def restore_many(
    settings: Settings,
    type_: str | None,
    model_hash: str | None,
    at: float | None,
    *,
    dry_run: bool,
    progress: Callable[[int, int], None],
) -> list[Outcome]:
    """Restore all registered models of `type_` or `model_hash` from snapshots not later than `at` (seconds)."""
    async with opened(settings) as parts:
        meant = [registered async for registered in _registered(parts, type_, model_hash)]
        outcomes = []
        for done, registered in enumerate(meant, start=1):
            outcomes.append(await _one(parts, registered, at, dry_run=dry_run))
            progress(done, len(meant))
        return outcomes


async def _one(parts: Snapshotter, registered: Registered, at: float | None, *, dry_run: bool) -> Outcome:
    live = await parts.store.describe(registered.hash)
    newest = await parts.history.newest(registered.hash, registered.born, at)
    version = newest["version"] if newest else None
    if live is not None:
        return Outcome(registered, live.version, version, "kept: it is live")
    if at is not None and newest is None:
        return Outcome(registered, None, None, "no snapshot that old", failed=True)
    if dry_run:
        return Outcome(registered, None, version, "would be restored" if newest else "would begin anew")
    try:
        restored = await restore(parts.store, parts.history, parts.storage, parts.keyring, registered.hash, at)
    except KeepfitError as error:
        return Outcome(registered, None, version, str(error), failed=True)
    if restored.live:
        return Outcome(registered, None, version, "kept: it came back meanwhile")
    return Outcome(registered, None, *_said(restored.document, restored.corrupt))


def _said(document: Document | None, corrupt: int) -> tuple[int | None, str]:
    passed_over = f", after {corrupt} damaged" if corrupt else ""
    if document is None:
        return None, "begun anew: it had no snapshot"
    return document["version"], f"restored{passed_over}"


async def _registered(parts: Snapshotter, type_: str | None, model_hash: str | None) -> AsyncIterator[Registered]:
    if model_hash is not None:
        found = await parts.history.registered(model_hash)
        if found is not None and type_ in (None, found.metadata["type"]):
            yield found
        return
    after = ""
    filters = {} if type_ is None else {"type": type_}
    while page := await parts.history.models(filters, PAGE, after):
        for registered in page:
            yield registered
        after = page[-1].hash

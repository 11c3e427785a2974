"""Restoring and saving for those who ask: models that Redis lost, older snapshots, and snapshots of now.

Owns what is done for such a question; how is :mod:`keepfit.restore.restorer`'s and :mod:`keepfit.snapshots.save`'s.
Never answers anybody. Invariant: trouble with one model is an error of our tree for those who asked about it, and for
nobody else.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import structlog

from keepfit.errors import ConflictError, KeepfitError, MissingRequestsError, NotFoundError, UnavailableError
from keepfit.history import RegistryEntry
from keepfit.jobs.messages import RestoreOptions, WorkerRequest
from keepfit.restore import repair as repairs
from keepfit.restore import replay_source
from keepfit.restore.requests import PreviousState, RestoreRequest
from keepfit.restore.restorer import Restorer
from keepfit.rowlog.row_log import View
from keepfit.snapshots.save import save
from keepfit_workers.context import WorkerContext

log = structlog.get_logger(__name__)

# So many of the models that a lost Redis makes everybody ask for are brought back before the first is answered.
AT_ONCE = 16
SAVE_TRIES, SAVE_PAUSE_S = 20, 0.1

Reason = KeepfitError | None

CRASHED = "A worker failed at this request; its log has the details."


def bring_back(process: WorkerContext, hashes: Sequence[str]) -> dict[str, Reason]:
    """Bring models back from their newest good snapshots; return why that was not possible of each."""

    async def one(restorer: Restorer, model_hash: str, registered: RegistryEntry | None, view: View | None) -> Reason:
        try:
            if registered is None:
                raise NotFoundError(f"There is no model {model_hash}.")
            await restorer.restore(registered, view=view)
        except KeepfitError as error:
            log.warning("restore_failed", hash=model_hash, reason=str(error))
            return error
        return None

    async def act(restorer: Restorer) -> list[Reason]:
        registered = await asyncio.gather(*map(restorer.resources.registry.find, hashes))
        live = await restorer.resources.store.describe_many(list(hashes))
        # All that are lost were found so before it: one look into the row log will do.
        view = await replay_source.list_row_log(restorer.resources) if None in live else None
        pairs = zip(hashes, registered, strict=True)
        return await asyncio.gather(*(one(restorer, model_hash, found, view) for model_hash, found in pairs))

    try:
        return dict(zip(hashes, process.remote.run(act), strict=True))
    except KeepfitError as error:
        # The settings: there is no such storage.
        return dict.fromkeys(hashes, error)


def repair(process: WorkerContext, model_hash: str) -> KeepfitError | None:
    """Put a live bundle right that is broken, from its snapshot and what is kept; return why that was not possible."""
    try:
        process.remote.run(lambda restorer: repairs.repair(restorer, model_hash))
    except KeepfitError as error:
        log.warning("repair_failed", hash=model_hash, reason=str(error))
        if isinstance(error, MissingRequestsError):
            # It stays so until somebody decides; questions are told without another look.
            loaded = process.ledger.load({model_hash: ""}).get(model_hash)
            if loaded is not None:
                process.unreadable.note(loaded, error)
        return error
    except Exception:
        log.exception("repair_crashed", hash=model_hash)
        return KeepfitError(CRASHED)
    return None


def serve(process: WorkerContext, question: WorkerRequest) -> dict[str, Any] | KeepfitError:
    """Do what a question asks for that names what it wants: put an older snapshot back, or save one."""
    try:
        if question.operation == "snapshot":
            return process.remote.run(lambda restorer: _save(restorer, question.hash))
        wish = question.wish or RestoreOptions()
        return process.remote.run(lambda restorer: _put_back(restorer, question.hash, wish))
    except KeepfitError as error:
        log.warning("restore_failed", hash=question.hash, operation=question.operation, reason=str(error))
        return error
    except Exception:
        log.exception("answering_crashed", hash=question.hash, request_ids=[question.request])
        return KeepfitError(CRASHED)


async def _put_back(restorer: Restorer, model_hash: str, wish: RestoreOptions) -> dict[str, Any]:
    wanted = RestoreRequest(wish.at, wish.version)
    try:
        repaired = await repairs.repair(restorer, model_hash)
    except MissingRequestsError:
        if not wanted.is_named:
            raise
        repaired = None
    if repaired is not None and not wanted.is_named:
        return asdict(PreviousState(repaired.document, restored=True, sequence=repaired.sequence))
    return asdict(await restorer.restore_or_rewind(model_hash, wanted))


async def _save(restorer: Restorer, model_hash: str) -> dict[str, Any]:
    """Save a model as it is now; return the history document of that, which somebody else may have written."""
    registered = await restorer.resources.registry.find(model_hash)
    live = await restorer.resources.store.describe(model_hash)
    if registered is None or live is None:
        raise NotFoundError(f"There is no live model {model_hash}.")
    if not live.digest:
        raise ConflictError("The model has not learned any row yet; there is nothing to save.")
    for _ in range(SAVE_TRIES):
        saved = await save(restorer.resources, model_hash)
        newest = saved or await restorer.resources.registry.newest(model_hash, registered.born)
        now = await restorer.resources.store.describe(model_hash)
        if newest is not None and (saved is not None or now is None or now.digest == newest["sha256"]):
            return newest
        # A snapshotter has the same version in hand; or the model learns on, and each save is overtaken.
        await asyncio.sleep(SAVE_PAUSE_S)
    raise UnavailableError(f"Another snapshotter saves {model_hash}, and does not come to an end.")

"""Restoring and saving for those who ask: models that Redis lost, older snapshots, and snapshots of now.

Owns what is done for such a question; how is :mod:`keepfit.restore`'s and :mod:`keepfit.saving`'s. Never answers
anybody. Invariant: trouble with one model is an error of our tree for those who asked about it, and for nobody else.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from keepfit.errors import ConflictError, KeepfitError, NotFoundError, UnavailableError
from keepfit.questions import Question, Wish
from keepfit.restore import Restorer, Wanted
from keepfit.saving import save
from workers.process import Process

log = structlog.get_logger(__name__)

# So many of the models that a lost Redis makes everybody ask for are brought back before the first is answered.
AT_ONCE = 16
SAVE_TRIES, SAVE_PAUSE_S = 20, 0.1

CRASHED = "A worker failed at this request; its log has the details."


def bring_back(process: Process, hashes: Sequence[str]) -> dict[str, KeepfitError | None]:
    """Bring models back from their newest good snapshots; return why that was not possible of each."""

    async def one(restorer: Restorer, model_hash: str) -> KeepfitError | None:
        try:
            registered = await restorer.history.registered(model_hash)
            if registered is None:
                raise NotFoundError(f"There is no model {model_hash}.")
            await restorer.bring_back(registered)
        except KeepfitError as error:
            log.warning("restore_failed", hash=model_hash, reason=str(error))
            return error
        return None

    async def act(restorer: Restorer) -> list[KeepfitError | None]:
        return await asyncio.gather(*(one(restorer, model_hash) for model_hash in hashes))

    try:
        return dict(zip(hashes, process.remote.run(act), strict=True))
    except KeepfitError as error:
        # The settings: there is no such storage.
        return dict.fromkeys(hashes, error)


def serve(process: Process, question: Question) -> dict[str, Any] | KeepfitError:
    """Do what a question asks for that names what it wants: put an older snapshot back, or save one."""
    try:
        if question.operation == "snapshot":
            return process.remote.run(lambda restorer: _save(restorer, question.hash))
        return process.remote.run(lambda restorer: _put_back(restorer, question.hash, question.wish or Wish()))
    except KeepfitError as error:
        log.warning("restore_failed", hash=question.hash, operation=question.operation, reason=str(error))
        return error
    except Exception:
        log.exception("answering_crashed", hash=question.hash, request_ids=[question.request])
        return KeepfitError(CRASHED)


async def _put_back(restorer: Restorer, model_hash: str, wish: Wish) -> dict[str, Any]:
    done = await restorer.put_back(model_hash, Wanted(wish.at, wish.version))
    return {
        "document": done.document,
        "restored": done.restored,
        "corrupt": done.corrupt,
        "rows_forgotten": done.rows_forgotten,
    }


async def _save(restorer: Restorer, model_hash: str) -> dict[str, Any]:
    """Save a model as it is now; return the history document of that, which somebody else may have written."""
    registered = await restorer.history.registered(model_hash)
    live = await restorer.store.describe(model_hash)
    if registered is None or live is None:
        raise NotFoundError(f"There is no live model {model_hash}.")
    if not live.digest:
        raise ConflictError("The model has not learned any row yet; there is nothing to save.")
    for _ in range(SAVE_TRIES):
        saved = await save(restorer.store, restorer.history, restorer.storage, restorer.keyring, model_hash)
        newest = saved or await restorer.history.newest(model_hash, registered.born)
        now = await restorer.store.describe(model_hash)
        if newest is not None and (saved is not None or now is None or now.digest == newest["sha256"]):
            return newest
        # A snapshotter has the same version in hand; or the model learns on, and each save is overtaken.
        await asyncio.sleep(SAVE_PAUSE_S)
    raise UnavailableError(f"Another snapshotter saves {model_hash}, and does not come to an end.")

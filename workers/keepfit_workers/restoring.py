"""Restores and snapshots that gateways request: models that Redis lost, older snapshots, and new snapshots.

Owns the steps of such a request, and the marks that let one worker at a time restore or repair a model; restoring
itself is :mod:`keepfit.restore.restorer`, saving :mod:`keepfit.snapshots.save`. Never sends a reply. Invariant: a
failure with one model is a :class:`~keepfit.errors.KeepfitError` for the requests about that model, and affects no
other request.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import structlog

from keepfit.backends import redis_scripts
from keepfit.errors import (
    ConflictError,
    KeepfitError,
    MissingRequestsError,
    NotFoundError,
    UnavailableError,
    UnloadableError,
)
from keepfit.history import RegistryEntry
from keepfit.jobs import run_queue
from keepfit.jobs.messages import RestoreOptions, WorkerRequest
from keepfit.restore import learning_again, replay_source
from keepfit.restore import repair as repairs
from keepfit.restore.learning_again import LearnedAgain
from keepfit.restore.requests import PreviousState, RestoreRequest
from keepfit.restore.restorer import Restorer
from keepfit.rowlog.row_log import View
from keepfit.snapshots.save import save
from keepfit_workers.computing import CRASHED
from keepfit_workers.context import WorkerContext

log = structlog.get_logger(__name__)

# After a loss of Redis, this many models are restored before the first request about them is answered.
AT_ONCE = 16
SAVE_TRIES, SAVE_PAUSE_S = 20, 0.1

Reason = KeepfitError | None


@contextmanager
def marked(context: WorkerContext, hashes: Sequence[str]) -> Iterator[list[str]]:
    """Mark models inside the `with` block, so that no other worker restores or repairs them, or claims their work.

    Yields the hashes of those that no other worker has marked. The marks end with the lease of this worker.
    """
    lease = context.activity.doing.lease
    mine = run_queue.mark_restores(context.queue, lease, hashes)
    try:
        yield mine
    finally:
        if mine:
            # Without the queue's Redis, the lease ends as well.
            with suppress(UnavailableError):
                redis_scripts.run(context.queue, run_queue.unmark_restores(lease, mine))


def restore_lost(context: WorkerContext, hashes: Sequence[str]) -> dict[str, Reason]:
    """Restore models from their newest good snapshots; return the reason of each failure, None for a success."""

    async def one(restorer: Restorer, model_hash: str, registered: RegistryEntry | None, view: View | None) -> Reason:
        try:
            if registered is None:
                raise NotFoundError(f"There is no model {model_hash}.")  # noqa: TRY301 - logged as the others
            await restorer.restore(registered, view=view)
        except KeepfitError as error:
            log.warning("restore_failed", hash=model_hash, reason=str(error))
            return error
        except Exception:
            log.exception("answer_failed", hash=model_hash)
            return KeepfitError(CRASHED)
        return None

    async def act(restorer: Restorer) -> list[Reason]:
        registered = await asyncio.gather(*map(restorer.resources.registry.find, hashes))
        live = await restorer.resources.store.describe_many(list(hashes))
        # All these models were found lost before this moment: one listing of the row log serves all of them.
        view = await replay_source.list_row_log(restorer.resources) if None in live else None
        pairs = zip(hashes, registered, strict=True)
        return await asyncio.gather(*(one(restorer, model_hash, found, view) for model_hash, found in pairs))

    try:
        return dict(zip(hashes, context.resources.run(act), strict=True))
    except KeepfitError as error:
        # A setting is wrong: the storage does not exist.
        return dict.fromkeys(hashes, error)
    except Exception:
        log.exception("answer_failed", hash=hashes[0])
        return dict.fromkeys(hashes, KeepfitError(CRASHED))


def repair(context: WorkerContext, model_hash: str) -> KeepfitError | None:
    """Repair a corrupt live bundle from its snapshot and the retained requests; return the reason of a failure."""
    try:
        context.resources.run(lambda restorer: repairs.repair(restorer, model_hash), model_hash)
    except KeepfitError as error:
        log.warning("repair_failed", hash=model_hash, reason=str(error))
        if isinstance(error, MissingRequestsError):
            _remember(context, model_hash, error)
        return error
    except Exception:
        log.exception("repair_crashed", hash=model_hash)
        return KeepfitError(CRASHED)
    return None


def _remember(context: WorkerContext, model_hash: str, error: MissingRequestsError) -> None:
    """Let later requests get the same error without another attempt: only an operator can resolve this."""
    try:
        loaded = context.consumer.load({model_hash: ""}).get(model_hash)
    except UnavailableError:
        # The next request about it finds the same, once Redis is available.
        return
    if loaded is not None:
        context.bundles.unreadable.add(loaded, error)


def serve(context: WorkerContext, request: WorkerRequest) -> dict[str, Any] | KeepfitError:
    """Restore an older snapshot, save a new one, or count the rows that can be learned again, as a request asks."""
    try:
        if request.operation == "count_rows":
            count = context.resources.run(lambda restorer: learning_again.check(restorer.resources, request.hash))
            return {"requests": count}
        if request.operation == "snapshot":
            return context.resources.run(lambda restorer: _save(restorer, request.hash))
        options = request.restore_options or RestoreOptions()
        return context.resources.run(lambda restorer: _restore(restorer, request.hash, options))
    except KeepfitError as error:
        log.warning("restore_failed", hash=request.hash, operation=request.operation, reason=str(error))
        return error
    except Exception:
        log.exception("answer_failed", hash=request.hash, request_ids=[request.request_id])
        return KeepfitError(CRASHED)


def learn_again(context: WorkerContext, model_hash: str, sequence: int, payload: bytes) -> LearnedAgain:
    """Learn all rows before a pending change again; raises as :func:`keepfit.restore.learning_again.learn_again`."""
    return context.resources.run(
        lambda restorer: learning_again.learn_again(
            restorer.resources, restorer.replayer, model_hash, sequence, payload
        )
    )


def save_learned_again(context: WorkerContext, model_hash: str) -> None:
    """Save a model that has learned again, so that its next restore need not; the next pass does if this fails."""
    try:
        context.resources.run(lambda restorer: restorer.save_restored(model_hash))
    except KeepfitError as error:
        log.warning("restored_not_saved", hash=model_hash, reason=str(error))


async def _restore(restorer: Restorer, model_hash: str, options: RestoreOptions) -> dict[str, Any]:
    wanted = RestoreRequest(options.at, options.version)
    try:
        repaired = await repairs.repair(restorer, model_hash)
    except (MissingRequestsError, UnloadableError):
        if not wanted.is_named:
            raise
        repaired = None
    if repaired is not None and not wanted.is_named:
        return asdict(PreviousState(repaired.document, restored=True, sequence=repaired.sequence))
    return asdict(await restorer.restore_or_rewind(model_hash, wanted))


async def _save(restorer: Restorer, model_hash: str) -> dict[str, Any]:
    """Save a model as it is now; return its history document, which another snapshotter may have written."""
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
        # A snapshotter is saving the same version; or the model keeps learning, and a newer version exists each time.
        await asyncio.sleep(SAVE_PAUSE_S)
    raise UnavailableError(f"Another snapshotter is saving {model_hash} and has not finished; try again later.")

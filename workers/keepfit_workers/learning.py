"""Learning: take → fit → commit, one model at a time.

Owns what happens to requests that wait in a model's inbox; how they are learned is :mod:`keepfit.model.fit_loop`. Never
answers anybody: gateways hear of the commit from the script itself. Invariants: a bundle that was changed and not
committed is thrown away; a request that its estimator refuses is put aside with the reason and never stands in the way
of the next.
"""

import time

import structlog

from keepfit.errors import CorruptBundleError, EnvelopeError, MissingRequestsError, StaleModelError, UnavailableError
from keepfit.model import fit_loop
from keepfit.model.bundle import Bundle
from keepfit.model.fit_loop import Fitted
from keepfit.observability import failpoints
from keepfit.store.commit import REFUSALS, Claimed
from keepfit.store.inbox import request_of
from keepfit_workers import restoring
from keepfit_workers.context import WorkerContext
from keepfit_workers.lease import SHARED_SLICE_S

log = structlog.get_logger(__name__)

# One turn at a model: long enough to make a commit cheap, short enough that a killed worker loses little and that
# other models are served in between.
TURN_S = 0.25
COMMIT_AFTER_S = 0.1
# How often a request may take its worker along, all by itself, before it is put aside.
ATTEMPTS_MAX = 6


def learn(process: WorkerContext, model_hash: str, lease: str) -> bool:
    """Learn what waits for one model, for one turn; tell whether mail is left."""
    if process.stopping:
        # Out of the room and not begun: put back, or only the sweep for mail would find it.
        return True
    started = time.monotonic()
    process.pulse.model((model_hash, lease))
    try:
        mail, taken = True, None
        while mail and not _turn_is_over(process, time.monotonic() - started):
            # Of a bundle that this process cannot load, what waits need not even be read, at every ring.
            if taken is None and not process.cannot_read(model_hash):
                taken = process.ledger.take(model_hash, lease, process.digest(model_hash))
            if taken is None:
                return False
            failpoints.reach("worker.claimed")
            mail, taken = _step(process, taken, lease)
        failpoints.reach("worker.unlocking")
        return process.ledger.unlock(model_hash, lease, force=True) if mail else False
    except StaleModelError:
        return False
    except EnvelopeError as error:
        # Said in the log when it was found out. Nothing is lost: a worker with the right versions learns what waits, or
        # the next turn where the bundle was broken and is put right.
        is_broken = isinstance(error, CorruptBundleError) and not isinstance(error, MissingRequestsError)
        put_right = is_broken and restoring.repair(process, model_hash) is None
        process.ledger.unlock(model_hash, lease, force=True)
        return put_right
    except UnavailableError:
        process.owe(model_hash, lease)
        raise
    except Exception as error:
        # The bundle at hand may be half changed, however it came to that.
        process.cache.drop(model_hash)
        # One model's trouble is not the others'. Nothing is lost: the requests stay in the inbox, and the sweep rings
        # for them again.
        log.exception("learning_stopped", hash=model_hash)
        process.ledger.unlock(model_hash, lease, force=True, harmed=isinstance(error, MemoryError))
        return False
    finally:
        process.pulse.model(None)


def _turn_is_over(process: WorkerContext, elapsed_s: float) -> bool:
    """Tell whether others should come first now: those who ask, and other models."""
    if process.stopping or elapsed_s > TURN_S:
        return True
    return elapsed_s > SHARED_SLICE_S and process.wanted()


def _step(process: WorkerContext, taken: Claimed, lease: str) -> tuple[bool, Claimed | None]:
    """Learn a batch and commit it; tell whether mail waits, and return what of it was taken already."""
    if not taken.entries:
        return process.ledger.unlock(taken.hash, lease, force=False), None
    entries, bundle = taken.entries, process.bundle(taken)
    if taken.attempts > ATTEMPTS_MAX:
        reason = f"{taken.attempts - 1} workers died, or ran out of memory, while they learned this request alone"
        return _commit(process, taken, bundle, Fitted(0, reason), lease)
    return fit_loop.learn(
        bundle,
        lambda: _stored(process, taken),
        entries,
        lambda learned, fitted: _commit(process, taken, learned, fitted, lease),
        COMMIT_AFTER_S,
    )


def _stored(process: WorkerContext, taken: Claimed) -> Bundle:
    """Read the bundle anew, because the one at hand was changed."""
    process.cache.drop(taken.hash)
    return process.bundle(taken)


def _commit(
    process: WorkerContext, taken: Claimed, bundle: Bundle, fitted: Fitted, lease: str
) -> tuple[bool, Claimed | None]:
    """Commit what was learned, or that the first request was put aside; return what :func:`_step` does."""
    failpoints.reach("worker.fitted")
    # From here on the object at hand is not what is stored, until the commit says that it is.
    process.cache.drop(taken.hash)
    put_aside = "" if fitted.count else fitted.reason
    committed = process.ledger.commit(taken, bundle, fitted.count or 1, lease, put_aside)
    if committed.version < 1:
        log.warning("commit_refused", hash=taken.hash, version=taken.version + 1, reason=REFUSALS[committed.version])
        return True, committed.taken
    process.cache.put(taken.hash, committed.digest, bundle, committed.size_bytes)
    if put_aside:
        first = taken.entries[0]
        sent = request_of(first.payload) or None
        # The words of an estimator may quote the row; they are kept with it, and go to who sent it.
        kind = put_aside.partition(":")[0]
        log.warning("request_put_aside", hash=taken.hash, sequence=first.sequence, request_id=sent, reason=kind)
    return committed.mail, committed.taken

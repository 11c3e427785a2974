"""Learning: take → fit → commit, one model at a time.

Owns what happens to requests that wait in a model's inbox. Never answers anybody: gateways hear of the commit from the
script itself. Invariants: a bundle that was changed and not committed is thrown away; a request that its estimator
refuses is put aside with the reason and never stands in the way of the next.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import structlog

from keepfit import faults
from keepfit.bundle import Bundle
from keepfit.commit import REFUSALS, Entry, Taken
from keepfit.errors import (
    LearningError,
    RuntimeMismatchError,
    StaleModelError,
    UnavailableError,
    UnknownKeyError,
    UnstorableError,
    told,
)
from keepfit.inbox import request_of
from keepfit.rows import Rows, concatenate
from workers.lease import SHARED_SLICE_S
from workers.process import Process

log = structlog.get_logger(__name__)

# One turn at a model: long enough to make a commit cheap, short enough that a killed worker loses little and that
# other models are served in between.
TURN_S = 0.25
COMMIT_AFTER_S = 0.1
# How often a request may take its worker along, all by itself, before it is put aside.
ATTEMPTS_MAX = 6


@dataclass(frozen=True, slots=True)
class Fitted:
    """How far a batch was learned; `reason` tells why the request after that was not."""

    count: int
    reason: str = ""


def learn(process: Process, model_hash: str, lease: str) -> bool:
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
            faults.reach("worker.taken")
            mail, taken = _step(process, taken, lease)
        faults.reach("worker.unlocking")
        return process.ledger.unlock(model_hash, lease, force=True) if mail else False
    except StaleModelError:
        return False
    except (RuntimeMismatchError, UnknownKeyError):
        # Said in the log when it was found out. Nothing is lost: a worker with the right versions learns what waits.
        process.ledger.unlock(model_hash, lease, force=True)
        return False
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


def _turn_is_over(process: Process, elapsed_s: float) -> bool:
    """Tell whether others should come first now: those who ask, and other models."""
    if process.stopping or elapsed_s > TURN_S:
        return True
    return elapsed_s > SHARED_SLICE_S and process.wanted()


def _step(process: Process, taken: Taken, lease: str) -> tuple[bool, Taken | None]:
    """Learn a batch and commit it; tell whether mail waits, and return what of it was taken already."""
    if not taken.entries:
        return process.ledger.unlock(taken.hash, lease, force=False), None
    entries, bundle = taken.entries, process.bundle(taken)
    if taken.attempts > ATTEMPTS_MAX:
        reason = f"{taken.attempts - 1} workers died, or ran out of memory, while they learned this request alone"
        return _commit(process, taken, bundle, Fitted(0, reason), lease)
    if bundle.recipe.updates == "merged" and len(entries) > 1:
        if _fit_merged(bundle, entries):
            return _commit_or_put_aside(process, taken, bundle, Fitted(len(entries)), lease)
        bundle = _stored(process, taken)
    count = _fit_unlooked(bundle, entries, COMMIT_AFTER_S)
    if count:
        return _commit_or_put_aside(process, taken, bundle, Fitted(count), lease)
    bundle = _stored(process, taken)
    fitted = _fit(bundle, entries, COMMIT_AFTER_S)
    if fitted.reason:
        # The request that failed left the estimator half changed: begin again with the good ones only.
        bundle = _stored(process, taken)
        again = _fit(bundle, entries[: fitted.count], None)
        if again.reason:
            raise LearningError(f"{taken.hash} learned the same requests once and then not: {again.reason}")
    return _commit_or_put_aside(process, taken, bundle, fitted, lease)


def _commit_or_put_aside(
    process: Process, taken: Taken, bundle: Bundle, fitted: Fitted, lease: str
) -> tuple[bool, Taken | None]:
    """Commit; where what was learned has no pickle, only the first request, or that this is put aside for it."""
    try:
        return _commit(process, taken, bundle, fitted, lease)
    except UnstorableError as error:
        if not fitted.count:
            raise
        reason = str(error)
    if fitted.count > 1:
        bundle = _stored(process, taken)
        alone = _fit(bundle, taken.entries[:1], None)
        if alone.count:
            return _commit_or_put_aside(process, taken, bundle, alone, lease)
        reason = alone.reason
    return _commit(process, taken, _stored(process, taken), Fitted(0, reason), lease)


def _stored(process: Process, taken: Taken) -> Bundle:
    """Read the bundle anew, because the one at hand was changed."""
    process.cache.drop(taken.hash)
    return process.bundle(taken)


def _commit(process: Process, taken: Taken, bundle: Bundle, fitted: Fitted, lease: str) -> tuple[bool, Taken | None]:
    """Commit what was learned, or that the first request was put aside; return what :func:`_step` does."""
    faults.reach("worker.fitted")
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


def _fit(bundle: Bundle, entries: Sequence[Entry], seconds: float | None) -> Fitted:
    """One ``partial_fit`` per request of rows, until `seconds` have passed or one fails."""
    started = time.monotonic()
    for count, entry in enumerate(entries, start=1):
        try:
            _apply(bundle, entry, bundle.partial_fit)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an estimator raises is about this request
            return Fitted(count - 1, told(error))
        if seconds is not None and time.monotonic() - started > seconds:
            return Fitted(count)
    return Fitted(len(entries))


def _fit_unlooked(bundle: Bundle, entries: Sequence[Entry], seconds: float) -> int:
    """Learn requests as :func:`_fit` does, with one look for NaN at the end: a quarter of the time of a small request.

    Returns how many were learned; 0 where one of them failed, and then they are to be learned one look each.
    """
    started, count = time.monotonic(), 0
    try:
        for count, entry in enumerate(entries, start=1):  # noqa: B007 - it is how far the loop came
            _apply(bundle, entry, bundle.learn)
            if time.monotonic() - started > seconds:
                break
        bundle.check()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - said about the request that it is due to, when they are learned again
        return 0
    return count


def _apply(bundle: Bundle, entry: Entry, learn: Callable[[Rows], None]) -> None:
    """Do what a request asks for: learn its rows, or change parameters."""
    change = entry.change
    if change is None:
        learn(entry.rows())
    else:
        bundle.change(change)


def _fit_merged(bundle: Bundle, entries: Sequence[Entry]) -> bool:
    """One ``partial_fit`` for all requests (of a kind) up to a change of parameters; False where it failed."""
    try:
        for changing, between in groupby(entries, key=lambda entry: entry.change is not None):
            if changing:
                for entry in between:
                    _apply(bundle, entry, bundle.partial_fit)
                continue
            rows = (entry.rows() for entry in between)
            for _, group in groupby(rows, key=lambda each: each.sample_weight is not None):
                bundle.partial_fit(concatenate(list(group)))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the requests are tried one by one next, and say then what is wrong
        log.info("merged_call_failed", reason=type(error).__name__)
        return False
    return True

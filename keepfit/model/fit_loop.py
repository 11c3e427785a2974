"""Learning requests in order, and finding the one that cannot be learned: the part that knows no store.

Owns what becomes of a bundle and the requests that come next. Never keeps a bundle itself: who calls says how.
Invariants: a bundle that is kept has learned just what is said of it; a request that its estimator refuses is named
with the reason and never stands in the way of the next. Workers use it (:mod:`keepfit_workers.learning`), and restores
(:mod:`keepfit.restore.replay`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, TypeVar

import structlog

from keepfit.errors import LearningError, UnstorableError, describe_error
from keepfit.model.bundle import Bundle
from keepfit.rows.rows import Rows, concatenate

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Request(Protocol):
    """What is to be learned: rows, or a change of parameters."""

    @property
    def change(self) -> dict[str, Any] | None:
        """Parameters that it changes; None if it is rows."""

    def rows(self) -> Rows:
        """Its rows."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """How far a batch was learned; `reason` tells why the request after that was not."""

    count: int
    reason: str = ""


Keep = Callable[[Bundle, Fitted], T]


def learn(bundle: Bundle, fresh: Callable[[], Bundle], requests: Sequence[Request], keep: Keep[T], seconds: float) -> T:
    """Learn what comes next, about as much as `seconds` allow, and keep what came of it; at least one request is done.

    `fresh` gives the bundle as it was again, `keep` is given a bundle and how many of the requests it has learned: all
    up to one that cannot be; none, and the reason, where that is the first. It may raise UnstorableError.
    """
    if bundle.recipe.updates == "merged" and len(requests) > 1:
        if _fit_merged(bundle, requests):
            return _keep_or_name(bundle, fresh, requests, Fitted(len(requests)), keep)
        bundle = fresh()
    count = _fit_unlooked(bundle, requests, seconds)
    if count:
        return _keep_or_name(bundle, fresh, requests, Fitted(count), keep)
    bundle = fresh()
    fitted = _fit(bundle, requests, seconds)
    if fitted.reason:
        # The request that failed left the estimator half changed: begin again with the good ones only.
        bundle = fresh()
        again = _fit(bundle, requests[: fitted.count], None)
        if again.reason:
            raise LearningError(f"The same requests were learned once and then not: {again.reason}")
    return _keep_or_name(bundle, fresh, requests, fitted, keep)


def _keep_or_name(
    bundle: Bundle, fresh: Callable[[], Bundle], requests: Sequence[Request], fitted: Fitted, keep: Keep[T]
) -> T:
    """Keep; where what was learned has no pickle, only the first request, or that this is to blame for it."""
    try:
        return keep(bundle, fitted)
    except UnstorableError as error:
        if not fitted.count:
            raise
        reason = str(error)
    if fitted.count > 1:
        bundle = fresh()
        alone = _fit(bundle, requests[:1], None)
        if alone.count:
            return _keep_or_name(bundle, fresh, requests, alone, keep)
        reason = alone.reason
    return keep(fresh(), Fitted(0, reason))


def _fit(bundle: Bundle, requests: Sequence[Request], seconds: float | None) -> Fitted:
    """One ``partial_fit`` per request of rows, until `seconds` have passed or one fails."""
    started = time.monotonic()
    for count, request in enumerate(requests, start=1):
        try:
            _apply(bundle, request, bundle.partial_fit)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an estimator raises is about this request
            return Fitted(count - 1, describe_error(error))
        if seconds is not None and time.monotonic() - started > seconds:
            return Fitted(count)
    return Fitted(len(requests))


def _fit_unlooked(bundle: Bundle, requests: Sequence[Request], seconds: float) -> int:
    """Learn requests as :func:`_fit` does, with one look for NaN at the end: a quarter of the time of a small request.

    Returns how many were learned; 0 where one of them failed, and then they are to be learned one look each.
    """
    started, count = time.monotonic(), 0
    try:
        for count, request in enumerate(requests, start=1):  # noqa: B007 - it is how far the loop came
            _apply(bundle, request, bundle.learn)
            if time.monotonic() - started > seconds:
                break
        bundle.check()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - said about the request that it is due to, when they are learned again
        return 0
    return count


def _apply(bundle: Bundle, request: Request, teach: Callable[[Rows], None]) -> None:
    """Do what a request asks for: learn its rows, or change parameters."""
    change = request.change
    if change is None:
        teach(request.rows())
    else:
        bundle.change(change)


def _fit_merged(bundle: Bundle, requests: Sequence[Request]) -> bool:
    """One ``partial_fit`` for all requests (of a kind) up to a change of parameters; False where it failed."""
    try:
        for changing, between in groupby(requests, key=lambda request: request.change is not None):
            if changing:
                for request in between:
                    _apply(bundle, request, bundle.partial_fit)
                continue
            rows = (request.rows() for request in between)
            for _, group in groupby(rows, key=lambda each: each.sample_weight is not None):
                bundle.partial_fit(concatenate(list(group)))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the requests are tried one by one next, and say then what is wrong
        log.info("merged_call_failed", reason=type(error).__name__)
        return False
    return True

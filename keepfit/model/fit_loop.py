"""Learning requests in their order, and finding the one that cannot be learned.

Owns how a bundle learns a sequence of requests. Never stores a bundle: the caller passes the function that does.
Invariants: a bundle that is stored has learned exactly the requests that are reported; a request that the estimator
rejects is reported with the reason and never blocks the next one. Requests come from workers
(:mod:`keepfit_workers.learning`) and from replay (:mod:`keepfit.restore.replay`).
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
    """A request to learn: rows, or a change of parameters."""

    @property
    def change(self) -> dict[str, Any] | None:
        """The parameters to change; None if it has rows."""

    def rows(self) -> Rows:
        """Return its rows."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The number of requests that were learned; `reason` says why the next one was not."""

    count: int
    reason: str = ""


# Stores a bundle that has learned the requests that Fitted counts.
Commit = Callable[[Bundle, Fitted], T]


def fit_requests(
    bundle: Bundle, reload: Callable[[], Bundle], requests: Sequence[Request], commit: Commit[T], seconds: float
) -> T:
    """Learn requests for about `seconds`, at least one of them, and return the result of `commit`.

    `reload` returns the bundle as it was before. `commit` gets a bundle and the number of requests that it has learned:
    all up to the first one that cannot be learned; or 0 and the reason if that is the first. It may raise
    UnstorableError.
    """
    if bundle.recipe.updates == "merged" and len(requests) > 1:
        if _fit_merged(bundle, requests):
            return _commit_or_isolate(bundle, reload, requests, Fitted(len(requests)), commit)
        bundle = reload()
    count = _fit_with_one_check(bundle, requests, seconds)
    if count:
        return _commit_or_isolate(bundle, reload, requests, Fitted(count), commit)
    bundle = reload()
    fitted = _fit(bundle, requests, seconds)
    if fitted.reason:
        # The failed request left the estimator partly changed: start again with the requests before it.
        bundle = reload()
        again = _fit(bundle, requests[: fitted.count], None)
        if again.reason:
            raise LearningError(f"Requests were learned once and failed the second time: {again.reason}")
    return _commit_or_isolate(bundle, reload, requests, fitted, commit)


def _commit_or_isolate(
    bundle: Bundle, reload: Callable[[], Bundle], requests: Sequence[Request], fitted: Fitted, commit: Commit[T]
) -> T:
    """Commit; if the bundle cannot be pickled, commit the first request alone, or the reason if that is the cause."""
    try:
        return commit(bundle, fitted)
    except UnstorableError as error:
        if not fitted.count:
            raise
        reason = str(error)
    if fitted.count > 1:
        bundle = reload()
        alone = _fit(bundle, requests[:1], None)
        if alone.count:
            return _commit_or_isolate(bundle, reload, requests, alone, commit)
        reason = alone.reason
    return commit(reload(), Fitted(0, reason))


def _fit(bundle: Bundle, requests: Sequence[Request], seconds: float | None) -> Fitted:
    """Call ``partial_fit`` once per request, until `seconds` have passed or one fails."""
    started = time.monotonic()
    for count, request in enumerate(requests, start=1):
        try:
            _apply(bundle, request, bundle.partial_fit)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - any exception of an estimator is a fault of the request
            return Fitted(count - 1, describe_error(error))
        if seconds is not None and time.monotonic() - started > seconds:
            return Fitted(count)
    return Fitted(len(requests))


def _fit_with_one_check(bundle: Bundle, requests: Sequence[Request], seconds: float) -> int:
    """Learn requests like :func:`_fit` with a single check for NaN at the end, which is a quarter of a small request.

    Return how many were learned; 0 if one of them failed. Then learn them again with a check after each.
    """
    started, count = time.monotonic(), 0
    try:
        for count, request in enumerate(requests, start=1):  # noqa: B007 - the number that was learned
            _apply(bundle, request, bundle.partial_fit_unchecked)
            if time.monotonic() - started > seconds:
                break
        bundle.check_finite()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - reported for its request when they are learned again
        return 0
    return count


def _apply(bundle: Bundle, request: Request, fit: Callable[[Rows], None]) -> None:
    """Learn the rows of a request, or change its parameters."""
    change = request.change
    if change is None:
        fit(request.rows())
    else:
        bundle.change(change)


def _fit_merged(bundle: Bundle, requests: Sequence[Request]) -> bool:
    """Call ``partial_fit`` once for consecutive requests of one form, with or without weights; False if it failed."""
    try:
        for is_change, group in groupby(requests, key=lambda request: request.change is not None):
            if is_change:
                for request in group:
                    _apply(bundle, request, bundle.partial_fit)
                continue
            rows = (request.rows() for request in group)
            for _, alike in groupby(rows, key=lambda each: (each.sample_weight is not None, each.form)):
                bundle.partial_fit(concatenate(list(alike)))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the requests are learned one by one next, which finds the faulty one
        log.info("merged_call_failed", reason=type(error).__name__)
        return False
    return True

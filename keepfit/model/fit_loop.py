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
from keepfit.model import train_score_predict
from keepfit.model.bundle import Bundle
from keepfit.rows.rows import Rows
from keepfit.rows.served import concatenate_requests
from keepfit.rows.train_score_predict import TrainScorePredict

log = structlog.get_logger(__name__)

T = TypeVar("T")


class Request(Protocol):
    """A request to learn: rows, or a change of parameters."""

    @property
    def change(self) -> dict[str, Any] | None:
        """The parameters to change; None if it has rows."""

    @property
    def wants_answer(self) -> bool:
        """Whether it is a call of train_score_predict."""

    @property
    def accepted_s(self) -> float:
        """When it was accepted, in seconds since 1970; 0.0 if that is not known."""

    def rows(self) -> Rows:
        """Return its rows."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The number of requests that were learned; `reason` says why the next one was not.

    `answer` is that of the last request that was learned, as JSON, if it wants one.
    """

    count: int
    reason: str = ""
    answer: bytes = b""


# Stores a bundle that has learned the requests that Fitted counts.
Commit = Callable[[Bundle, Fitted], T]


def fit_requests(
    bundle: Bundle, reload: Callable[[], Bundle], requests: Sequence[Request], commit: Commit[T], seconds: float
) -> T:
    """Learn requests for about `seconds`, at least one of them, and return the result of `commit`.

    `reload` returns the bundle as it was before. `commit` gets a bundle and the number of requests that it has learned:
    all up to the first one that cannot be learned; or 0 and the reason if that is the first. It may raise
    UnstorableError. No request is learned together with those after one that wants an answer, because the answer is
    about a version.
    """
    requests = _up_to_answer(requests)
    if bundle.recipe.updates == "merged" and len(requests) > 1:
        merged = _fit_merged(bundle, requests)
        if merged is not None:
            return _commit_or_isolate(bundle, reload, requests, merged, commit)
        bundle = reload()
    checked = _fit_with_one_check(bundle, requests, seconds)
    if checked is not None:
        return _commit_or_isolate(bundle, reload, requests, checked, commit)
    bundle = reload()
    fitted = _fit(bundle, requests, seconds)
    if fitted.reason:
        # The failed request left the estimator partly changed: start again with the requests before it.
        bundle = reload()
        again = _fit(bundle, requests[: fitted.count], None)
        if again.reason:
            raise LearningError(f"Requests were learned once and failed the second time: {again.reason}")
    return _commit_or_isolate(bundle, reload, requests, fitted, commit)


def _up_to_answer(requests: Sequence[Request]) -> Sequence[Request]:
    """Return the requests up to the first one that wants an answer, with that one."""
    end = next((i for i, request in enumerate(requests, start=1) if request.wants_answer), len(requests))
    return requests[:end]


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
    started, answer = time.monotonic(), b""
    for count, request in enumerate(requests, start=1):
        try:
            answer = _apply(bundle, request, bundle.partial_fit)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - any exception of an estimator is a fault of the request
            return Fitted(count - 1, describe_error(error))
        if seconds is not None and time.monotonic() - started > seconds:
            return Fitted(count, answer=answer)
    return Fitted(len(requests), answer=answer)


def _fit_with_one_check(bundle: Bundle, requests: Sequence[Request], seconds: float) -> Fitted | None:
    """Learn requests like :func:`_fit` with a single check for NaN at the end, which is a quarter of a small request.

    Return None if one of them failed. Then learn them again with a check after each.
    """
    started, count, answer = time.monotonic(), 0, b""
    try:
        for count, request in enumerate(requests, start=1):  # noqa: B007 - the number that was learned
            answer = _apply(bundle, request, bundle.partial_fit_unchecked)
            if time.monotonic() - started > seconds:
                break
        bundle.check_finite()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - reported for its request when they are learned again
        return None
    return Fitted(count, answer=answer) if count else None


def _apply(bundle: Bundle, request: Request, fit: Callable[[Rows], None]) -> bytes:
    """Learn the rows of a request, or change its parameters; return the answer to it, empty if it wants none."""
    change = request.change
    if change is not None:
        bundle.change(change)
        return b""
    rows = request.rows()
    bundle.curve.accepted(bundle.rows_seen, [(rows.n, request.accepted_s)])
    if isinstance(rows, TrainScorePredict):
        return train_score_predict.learn(bundle, rows, fit)
    fit(rows)
    return b""


def _kind_of(rows: Rows) -> tuple[Any, ...]:
    """Return what must be equal of rows that are learned in one call."""
    return rows.sample_weight is not None, rows.form, rows.served is not None


def _fit_merged(bundle: Bundle, requests: Sequence[Request]) -> Fitted | None:
    """Call ``partial_fit`` once for consecutive requests of one form, with or without weights; None if it failed."""
    answer = b""
    try:
        for alone, group in groupby(requests, key=lambda request: request.wants_answer or request.change is not None):
            if alone:
                for request in group:
                    answer = _apply(bundle, request, bundle.partial_fit)
                continue
            accepted = ((request.rows(), request.accepted_s) for request in group)
            for _, alike in groupby(accepted, key=lambda each: _kind_of(each[0])):
                rows, times = zip(*alike, strict=True)
                bundle.curve.accepted(bundle.rows_seen, [(one.n, at) for one, at in zip(rows, times, strict=True)])
                bundle.partial_fit(concatenate_requests(rows))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the requests are learned one by one next, which finds the faulty one
        log.info("merged_call_failed", reason=type(error).__name__)
        return None
    return Fitted(len(requests), answer=answer)

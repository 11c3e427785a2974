"""Predicting: one vectorised call per model for all waiting requests.

Owns the replies to the requests of gateways: predict, probabilities, score. Models that Redis lost, and requests about
snapshots, are left to :mod:`keepfit_workers.restoring`. Invariants: nothing here changes a bundle; every request gets a
reply, if need be with a :class:`~keepfit.errors.KeepfitError`; no reply comes from a bundle that was older than the
stored one when the request was made.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from redis import Redis

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.errors import (
    CorruptBundleError,
    InvalidError,
    KeepfitError,
    MissingRequestsError,
    NotFoundError,
    StaleModelError,
    UnavailableError,
)
from keepfit.jobs import messages, run_queue
from keepfit.jobs.messages import WorkerReply, WorkerRequest
from keepfit.model.bundle import Bundle
from keepfit.observability import failpoints
from keepfit.rows.rows import Rows, concatenate
from keepfit.store.commit import Loaded
from keepfit_workers import restoring
from keepfit_workers.context import WorkerContext

log = structlog.get_logger(__name__)

# How long replies may wait for those of slower models in the same batch.
SEND_AFTER_S = 0.002
# Duration of one turn at a model, so that requests of other models are served in between.
TURN_S = 0.02
LIMITS_TTL_S = 3600

TOO_LARGE = UnavailableError(
    "The worker has too little memory for this request; send fewer rows at once, or try again later."
)

Outcome = list[Any] | dict[str, Any] | KeepfitError | None


class Outbox:
    """Replies that are not sent yet."""

    def __init__(self, queue: Redis) -> None:
        self._queue = queue
        self._replies: dict[str, list[WorkerReply]] = defaultdict(list)
        self._commands: list[Command] = []
        self._sent_s = time.monotonic()

    def put(self, request: WorkerRequest, reply: WorkerReply) -> None:
        """Add a reply, and the deletion of the request's rows if they have a key of their own."""
        self._replies[request.gateway].append(reply)
        if request.rows_key:
            self._commands.append(("UNLINK", request.rows_key))

    def add(self, *commands: Command) -> None:
        """Add commands that are sent with the replies."""
        self._commands += commands

    def take_commands(self) -> list[Command]:
        """Remove and return the commands that send all replies."""
        failpoints.reach("answers.computed")
        commands: list[Command] = []
        for gateway, replies in self._replies.items():
            commands += messages.send_replies(gateway, replies)
        commands += self._commands
        self._replies.clear()
        self._commands = []
        return commands

    def send_if_due(self) -> None:
        """Send the replies if the last sending was more than :data:`SEND_AFTER_S` ago."""
        if time.monotonic() - self._sent_s > SEND_AFTER_S:
            self.send()

    def send(self) -> None:
        """Send the replies."""
        commands = self.take_commands()
        if commands:
            redis_scripts.run(self._queue, *commands)
        self._sent_s = time.monotonic()


def answer_all(context: WorkerContext, entries: Sequence[bytes]) -> Sequence[Command]:
    """Answer a batch of requests; return the commands that send the last replies."""
    computations: dict[str, list[WorkerRequest]] = defaultdict(list)
    lost: dict[str, list[WorkerRequest]] = defaultdict(list)
    changes: list[WorkerRequest] = []
    for entry in entries:
        try:
            request = messages.decode_request(entry)
        except msgspec.MsgspecError as error:
            # From a gateway of another version: the request does not say which gateway to reply to.
            log.warning("worker_request_unreadable", reason=str(error))
            continue
        if request.operation in ("put_back", "snapshot"):
            changes.append(request)
        else:
            (lost if request.operation == "restore" else computations)[request.hash].append(request)
    outbox = Outbox(context.queue)
    _answer_models(context, outbox, computations)
    if lost or changes:
        # Storage may be slow: the replies that are ready go first.
        outbox.send()
    hashes = list(lost)
    for begin in range(0, len(hashes), restoring.AT_ONCE):
        some = hashes[begin : begin + restoring.AT_ONCE]
        reasons = restoring.restore_lost(context, some)
        _answer_models(context, outbox, {model_hash: lost[model_hash] for model_hash in some}, reasons)
    for request in changes:
        outbox.put(request, _answer_change(context, request))
        outbox.send_if_due()
    return outbox.take_commands()


def _answer_change(context: WorkerContext, request: WorkerRequest) -> WorkerReply:
    """Restore or save a snapshot; the reply describes the model after it."""
    outcome = restoring.serve(context, request)
    if isinstance(outcome, KeepfitError):
        return messages.failed(request, outcome)
    try:
        model = context.consumer.load({request.hash: ""}).get(request.hash)
    except UnavailableError as unavailable:
        return messages.failed(request, unavailable)
    if model is None:
        return messages.failed(request, NotFoundError(f"The model {request.hash} was deleted meanwhile."))
    return WorkerReply(request.id, model.generation, model.version, model.rows_seen, result=outcome)


def _answer_models(
    context: WorkerContext,
    outbox: Outbox,
    requests: dict[str, list[WorkerRequest]],
    reasons: dict[str, KeepfitError | None] | None = None,
    *,
    repaired: bool = False,
) -> None:
    """Answer the requests about each model; `reasons` says why a model could not be restored.

    Models with corrupt bundles are repaired, and answered after that (`repaired`).
    """
    if not requests:
        return
    corrupt: dict[str, list[WorkerRequest]] = {}
    try:
        loaded = context.consumer.load({model_hash: context.bundles.digest(model_hash) for model_hash in requests})
    except UnavailableError as unavailable:
        loaded, reasons = {}, dict.fromkeys(requests, unavailable)
    for model_hash, group in requests.items():
        model = loaded.get(model_hash)
        if model is None:
            reason = (reasons or {}).get(model_hash) or NotFoundError(f"There is no live model {model_hash}.")
            replies = [messages.failed(request, reason) for request in group]
        else:
            try:
                replies, seconds = _answer_model(context, model, group)
            except CorruptBundleError as error:
                if not repaired:
                    corrupt[model_hash] = group
                    continue
                reason = (reasons or {}).get(model_hash) or error
                replies, seconds = [messages.failed(request, reason) for request in group], 0
            outbox.add(*_limit_requests(context.request_limits.get(model_hash), model_hash, len(group), seconds))
        for request, reply in zip(group, replies, strict=True):
            outbox.put(request, reply)
        outbox.send_if_due()
    if corrupt:
        # A repair is slow: the replies that are ready go first.
        outbox.send()
        tried = {model_hash: restoring.repair(context, model_hash) for model_hash in corrupt}
        _answer_models(context, outbox, corrupt, tried, repaired=True)


def _limit_requests(current: int | None, model_hash: str, count: int, seconds: float) -> list[Command]:
    """Return commands that limit how many requests of a slow model one claim takes, after `count` took `seconds`.

    `current` is the limit that applied to this claim, if any.
    """
    if seconds > TURN_S:
        limit = max(1, int(count * TURN_S / seconds))
    elif current is not None and seconds < TURN_S / 2 and count >= current:
        limit = current * 2
    else:
        return []
    key = redis_keys.request_limits(run_queue.PREDICT.name)
    if limit >= run_queue.PREDICT.requests:
        return [("HDEL", key, model_hash)]
    return [("HSET", key, model_hash, limit), ("EXPIRE", key, LIMITS_TTL_S)]


def _answer_model(
    context: WorkerContext, model: Loaded, group: Sequence[WorkerRequest]
) -> tuple[list[WorkerReply], float]:
    """Answer all requests about one model; return the replies and the seconds they took, without loading the bundle."""
    started = time.monotonic()
    try:
        bundle = context.bundles.get(model)
        started = time.monotonic()
        outcomes = _outcomes(context.queue, bundle, model, group)
    except MissingRequestsError as error:
        outcomes = [error] * len(group)
    except CorruptBundleError:
        raise
    except KeepfitError as error:
        outcomes = [error] * len(group)
    except MemoryError:
        # The bundle itself does not fit beside the cached ones.
        context.bundles.cache.clear()
        log.warning("out_of_memory", hash=model.hash)
        outcomes = [TOO_LARGE] * len(group)
    except Exception:
        # A defect of keepfit: the client gets the error now, not at its deadline.
        log.exception(
            "answer_failed", hash=model.hash, request_ids=[each.request_id for each in group if each.request_id]
        )
        outcomes = [KeepfitError("A worker failed at this request; its log has the details.")] * len(group)
    seconds = time.monotonic() - started
    replies = [
        messages.failed(request, outcome)
        if isinstance(outcome, KeepfitError)
        else WorkerReply(request.id, model.generation, model.version, model.rows_seen, result=outcome)
        for request, outcome in zip(group, outcomes, strict=True)
    ]
    return replies, seconds


def _outcomes(queue: Redis, bundle: Bundle, model: Loaded, group: Sequence[WorkerRequest]) -> list[Outcome]:
    """Return the outcome of each request; all plain predictions are computed in one call."""
    outcomes: list[Outcome] = [None] * len(group)
    joined: list[tuple[int, Rows]] = []
    for i, request in enumerate(group):
        if request.operation == "restore":
            continue
        if request.generation != model.generation:
            outcomes[i] = StaleModelError(f"The model {model.hash} was created again meanwhile.")
            continue
        try:
            rows = _rows(queue, request)
        except KeepfitError as error:
            outcomes[i] = error
            continue
        except MemoryError:
            outcomes[i] = TOO_LARGE
            continue
        if request.operation == "predict":
            joined.append((i, rows))
        else:
            outcomes[i] = _compute(bundle, request, rows)
    for (i, _), outcome in zip(joined, _predict_joined(bundle, [rows for _, rows in joined]), strict=True):
        outcomes[i] = outcome
    return outcomes


def _rows(queue: Redis, request: WorkerRequest) -> Rows:
    if request.rows is not None:
        return request.rows
    (data,) = redis_scripts.run(queue, ("GET", request.rows_key))
    try:
        return Rows.decode(data or b"")
    except msgspec.MsgspecError:
        raise UnavailableError("The rows of this request are no longer in Redis; send it again.") from None


def _predict_joined(bundle: Bundle, waiting: Sequence[Rows]) -> list[Outcome]:
    """Predict all rows in one call; if that fails, each request alone, so that an error affects one request only."""
    if len(waiting) > 1 and bundle.predicts_rows_independently and len({rows.width for rows in waiting}) == 1:
        try:
            whole = _guarded(bundle, concatenate(waiting))
        except MemoryError:
            whole = TOO_LARGE
        if isinstance(whole, list):
            outcomes: list[Outcome] = []
            end = 0
            for rows in waiting:
                start, end = end, end + rows.n
                outcomes.append(whole[start:end])
            return outcomes
    return [_guarded(bundle, rows) for rows in waiting]


def _guarded(bundle: Bundle, rows: Rows) -> Outcome:
    """Return predictions, or the error as a :class:`~keepfit.errors.KeepfitError`."""
    try:
        return bundle.predict(rows)
    except KeepfitError as error:
        return error
    except MemoryError:
        return TOO_LARGE
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        return InvalidError(f"{bundle.recipe.name} cannot predict these rows: {error}")


def _compute(bundle: Bundle, request: WorkerRequest, rows: Rows) -> Outcome:
    """Return the outcome of an operation that is computed one request at a time."""
    try:
        if request.operation == "score":
            return bundle.score(rows)
        return {"predictions": bundle.predict(rows), **bundle.confidences(rows)}
    except KeepfitError as error:
        return error
    except MemoryError:
        return TOO_LARGE
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        return InvalidError(f"{bundle.recipe.name} cannot predict these rows: {error}")

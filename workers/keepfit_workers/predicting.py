"""Predicting: one vectorised call per model for all that wait.

Owns how questions of gateways are answered: predict, probabilities, score. What a model needs that Redis does not have,
and questions about snapshots, are left to :mod:`keepfit_workers.restoring`. Invariants: nothing here changes a bundle;
every question is answered, with an error of our tree if need be; no answer comes from a bundle older than the store's
at the moment it was asked.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

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

# How long answers may wait for those of slower models in the same batch.
SEND_AFTER_S = 0.002
# What one turn at a model may take, so that other models' questions come in between.
TURN_S = 0.02
TURNS_TTL_S = 3600

TOO_LARGE = UnavailableError(
    "The worker has too little memory for this; ask for fewer rows at once, or try again later."
)

Outcome = list[Any] | dict[str, Any] | KeepfitError | None


class Outbox:
    """Answers on their way to the gateways that asked."""

    def __init__(self, process: WorkerContext) -> None:
        self._process = process
        self._answers: dict[str, list[WorkerReply]] = defaultdict(list)
        self._others: list[Command] = []
        self._sent_s = time.monotonic()

    def put(self, question: WorkerRequest, answer: WorkerReply) -> None:
        """Take an answer to be sent."""
        self._answers[question.gateway].append(answer)
        if question.big:
            self._others.append(("UNLINK", question.big))

    def add(self, *commands: Command) -> None:
        """Take commands to be sent along."""
        self._others += commands

    def commands(self) -> list[Command]:
        """Take out all that is to be sent."""
        failpoints.reach("answers.computed")
        commands: list[Command] = []
        for gateway, answers in self._answers.items():
            commands += messages.reply(gateway, answers)
        commands += self._others
        self._answers.clear()
        self._others = []
        return commands

    def send_if_due(self) -> None:
        """Send what there is, if it has waited."""
        if time.monotonic() - self._sent_s > SEND_AFTER_S:
            self.send()

    def send(self) -> None:
        """Send what there is."""
        commands = self.commands()
        if commands:
            redis_scripts.run(self._process.queue, *commands)
        self._sent_s = time.monotonic()


def answer_all(process: WorkerContext, entries: Sequence[bytes]) -> Sequence[Command]:
    """Answer a batch of questions; return the commands that send the last answers to the gateways that asked."""
    asked: dict[str, list[WorkerRequest]] = defaultdict(list)
    restores: dict[str, list[WorkerRequest]] = defaultdict(list)
    named: list[WorkerRequest] = []
    for entry in entries:
        try:
            question = messages.decode_question(entry)
        except msgspec.MsgspecError as error:
            # Of a gateway of another version: nobody here can tell whom to answer.
            log.warning("question_unreadable", reason=str(error))
            continue
        if question.operation in ("put_back", "snapshot"):
            named.append(question)
        else:
            (restores if question.operation == "restore" else asked)[question.hash].append(question)
    outbox = Outbox(process)
    _answer_groups(process, outbox, asked)
    if restores or named:
        # Storage may be slow: all others have their answers first.
        outbox.send()
    lost = list(restores)
    for begin in range(0, len(lost), restoring.AT_ONCE):
        some = lost[begin : begin + restoring.AT_ONCE]
        reasons = restoring.bring_back(process, some)
        _answer_groups(process, outbox, {model_hash: restores[model_hash] for model_hash in some}, reasons)
    for question in named:
        outbox.put(question, _served(process, question))
        outbox.send_if_due()
    return outbox.commands()


def _served(process: WorkerContext, question: WorkerRequest) -> WorkerReply:
    """Answer a question that changes what is live or saved, with the model as it is then."""
    outcome = restoring.serve(process, question)
    if isinstance(outcome, KeepfitError):
        return messages.failed(question, outcome)
    try:
        model = process.ledger.load({question.hash: ""}).get(question.hash)
    except UnavailableError as away:
        return messages.failed(question, away)
    if model is None:
        return messages.failed(question, NotFoundError(f"The model {question.hash} was deleted meanwhile."))
    return WorkerReply(question.id, model.generation, model.version, model.rows_seen, result=outcome)


def _answer_groups(
    process: WorkerContext,
    outbox: Outbox,
    asked: dict[str, list[WorkerRequest]],
    reasons: dict[str, KeepfitError | None] | None = None,
    *,
    again: bool = False,
) -> None:
    """Answer the questions about each model; `reasons` tells why a model could not be restored.

    Broken models are put right, and answered `again`.
    """
    if not asked:
        return
    broken: dict[str, list[WorkerRequest]] = {}
    try:
        loaded = process.ledger.load({model_hash: process.digest(model_hash) for model_hash in asked})
    except UnavailableError as away:
        loaded, reasons = {}, dict.fromkeys(asked, away)
    for model_hash, group in asked.items():
        model = loaded.get(model_hash)
        if model is None:
            reason = (reasons or {}).get(model_hash) or NotFoundError(f"There is no live model {model_hash}.")
            answers = [messages.failed(question, reason) for question in group]
        else:
            try:
                answers, seconds = _answer_group(process, model, group)
            except CorruptBundleError as error:
                if not again:
                    broken[model_hash] = group
                    continue
                reason = (reasons or {}).get(model_hash) or error
                answers, seconds = [messages.failed(question, reason) for question in group], 0
            outbox.add(*_turn(process.turns.get(model_hash), model_hash, len(group), seconds))
        for question, answer in zip(group, answers, strict=True):
            outbox.put(question, answer)
        outbox.send_if_due()
    if broken:
        # What it takes to put them right is slow: all others have their answers first.
        outbox.send()
        tried = {model_hash: restoring.repair(process, model_hash) for model_hash in broken}
        _answer_groups(process, outbox, broken, tried, again=True)


def _turn(known: int | None, model_hash: str, count: int, seconds: float) -> list[Command]:
    """Commands that set how many questions one claim may take of a slow model, after `count` took `seconds`.

    `known` bounded this claim, if anything did.
    """
    if seconds > TURN_S:
        turn = max(1, int(count * TURN_S / seconds))
    elif known is not None and seconds < TURN_S / 2 and count >= known:
        turn = known * 2
    else:
        return []
    key = redis_keys.turns(run_queue.PREDICT.name)
    if turn >= run_queue.PREDICT.questions:
        return [("HDEL", key, model_hash)]
    return [("HSET", key, model_hash, turn), ("EXPIRE", key, TURNS_TTL_S)]


def _answer_group(
    process: WorkerContext, model: Loaded, group: Sequence[WorkerRequest]
) -> tuple[list[WorkerReply], float]:
    """Answer all questions about one model; tell in how many seconds, not counting those to load it."""
    started = time.monotonic()
    try:
        bundle = process.bundle(model)
        started = time.monotonic()
        outcomes = _outcomes(process, bundle, model, group)
    except MissingRequestsError as error:
        outcomes = [error] * len(group)
    except CorruptBundleError:
        raise
    except KeepfitError as error:
        outcomes = [error] * len(group)
    except MemoryError:
        # The bundle itself does not fit beside those that are held.
        process.cache.clear()
        log.warning("memory_short", hash=model.hash)
        outcomes = [TOO_LARGE] * len(group)
    except Exception:
        # A mistake of ours: whoever waits shall hear of it now, not at the deadline.
        log.exception("answering_crashed", hash=model.hash, request_ids=[q.request for q in group if q.request])
        outcomes = [KeepfitError("A worker failed at this request; its log has the details.")] * len(group)
    seconds = time.monotonic() - started
    answers = [
        messages.failed(question, outcome)
        if isinstance(outcome, KeepfitError)
        else WorkerReply(question.id, model.generation, model.version, model.rows_seen, result=outcome)
        for question, outcome in zip(group, outcomes, strict=True)
    ]
    return answers, seconds


def _outcomes(process: WorkerContext, bundle: Bundle, model: Loaded, group: Sequence[WorkerRequest]) -> list[Outcome]:
    """Outcome of each question; those that only want predictions are computed in one call."""
    outcomes: list[Outcome] = [None] * len(group)
    joined: list[tuple[int, Rows]] = []
    for i, question in enumerate(group):
        if question.operation == "restore":
            continue
        if question.generation != model.generation:
            outcomes[i] = StaleModelError(f"The model {model.hash} was made again meanwhile.")
            continue
        try:
            rows = _rows(process, question)
        except KeepfitError as error:
            outcomes[i] = error
            continue
        except MemoryError:
            outcomes[i] = TOO_LARGE
            continue
        if question.operation == "predict":
            joined.append((i, rows))
        else:
            outcomes[i] = _compute(bundle, question, rows)
    for (i, _), outcome in zip(joined, _predict_joined(bundle, [rows for _, rows in joined]), strict=True):
        outcomes[i] = outcome
    return outcomes


def _rows(process: WorkerContext, question: WorkerRequest) -> Rows:
    if question.rows is not None:
        return question.rows
    (data,) = redis_scripts.run(process.queue, ("GET", question.big))
    try:
        return Rows.decode(data or b"")
    except msgspec.MsgspecError:
        raise UnavailableError("The rows of this request are gone from Redis; send it again.") from None


def _predict_joined(bundle: Bundle, waiting: Sequence[Rows]) -> list[Outcome]:
    """Predict all rows in one call; where that fails, each request by itself, so that one cannot spoil the others."""
    if len(waiting) > 1 and bundle.joins and len({rows.width for rows in waiting}) == 1:
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
    """Predictions, or the error they ended in, as one of our tree."""
    try:
        return bundle.predict(rows)
    except KeepfitError as error:
        return error
    except MemoryError:
        return TOO_LARGE
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        return InvalidError(f"{bundle.recipe.name} cannot predict these rows: {error}")


def _compute(bundle: Bundle, question: WorkerRequest, rows: Rows) -> Outcome:
    """Outcome of the operations that are computed one request at a time."""
    try:
        if question.operation == "score":
            return bundle.score(rows)
        return {"predictions": bundle.predict(rows), **bundle.chances(rows)}
    except KeepfitError as error:
        return error
    except MemoryError:
        return TOO_LARGE
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        return InvalidError(f"{bundle.recipe.name} cannot answer for these rows: {error}")

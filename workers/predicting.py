"""Predicting: one vectorised call per model for all that wait.

Owns how questions of gateways are answered: predict, probabilities, score, and restoring a model that Redis does not
have. Invariants: nothing here changes a bundle; every question is answered, with an error of our tree if need be; no
answer comes from a bundle older than the store's at the moment it was asked.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import structlog

from keepfit import connections, keys, questions, scripts
from keepfit.bundle import Bundle
from keepfit.commit import Loaded
from keepfit.errors import InvalidError, KeepfitError, NotFoundError, StaleModelError, UnavailableError
from keepfit.history import History
from keepfit.questions import Answer, Question
from keepfit.rows import Rows, concatenate
from keepfit.snapshot import restore
from keepfit.storage import open_storage
from keepfit.store import Store
from workers.process import Process

log = structlog.get_logger(__name__)

REPLIES_TTL_MS = 60_000

Outcome = list[Any] | dict[str, Any] | KeepfitError | None


def answer_all(process: Process, entries: Sequence[bytes]) -> None:
    """Answer a batch of questions and send the answers to the gateways that asked."""
    now = time.time()
    asked: dict[str, list[Question]] = defaultdict(list)
    for entry in entries:
        question = questions.decode_question(entry)
        if question.deadline > now:
            asked[question.hash].append(question)
    outgoing: dict[str, list[Answer]] = defaultdict(list)
    try:
        for group, answers in _answered(process, asked):
            for question, answer in zip(group, answers, strict=True):
                outgoing[question.gateway].append(answer)
    except Exception:
        # A mistake of ours: whoever waits shall hear of it now, not at the deadline.
        log.exception("answering_crashed")
        crashed = KeepfitError("A worker failed at this request; its log has the details.")
        for question in (question for group in asked.values() for question in group):
            outgoing[question.gateway].append(questions.failed(question, crashed))
    _send(process, outgoing)


def _answered(process: Process, asked: dict[str, list[Question]]) -> Iterator[tuple[list[Question], list[Answer]]]:
    """Yield the questions about each model with their answers."""
    failures = {h: _restored(process, h) for h, group in asked.items() if any(q.operation == "restore" for q in group)}
    try:
        loaded = process.ledger.load({h: process.cache.digest(h) for h in asked}) if asked else {}
    except UnavailableError as away:
        loaded, failures = {}, dict.fromkeys(asked, away)
    for model_hash, group in asked.items():
        model = loaded.get(model_hash)
        if model is None:
            reason = failures.get(model_hash) or NotFoundError(f"There is no live model {model_hash}.")
            yield group, [questions.failed(question, reason) for question in group]
        else:
            yield group, _answer_group(process, model, group)


def _send(process: Process, outgoing: dict[str, list[Answer]]) -> None:
    commands: list[scripts.Command] = []
    for gateway, answers in outgoing.items():
        key = keys.replies(gateway)
        commands.append(("RPUSH", key, questions.encode(answers)))
        # A gateway that died leaves its answers behind; they go by themselves.
        commands.append(("PEXPIRE", key, REPLIES_TTL_MS))
    if commands:
        scripts.run(process.queue, *commands)


def _answer_group(process: Process, model: Loaded, group: Sequence[Question]) -> list[Answer]:
    """Answer all questions about one model."""
    try:
        bundle = process.bundle(model)
    except KeepfitError as error:
        return [questions.failed(question, error) for question in group]
    stale = StaleModelError(f"The model {model.hash} was made again meanwhile.")
    fresh = [q for q in group if q.operation == "restore" or q.generation == model.generation]
    predicted = _predict_joined(bundle, [q for q in fresh if q.operation == "predict"])
    outcomes = {_key(q): predicted[_key(q)] if q.operation == "predict" else _compute(bundle, q) for q in fresh}
    answers = []
    for question in group:
        outcome = outcomes.get(_key(question), stale)
        if isinstance(outcome, KeepfitError):
            answers.append(questions.failed(question, outcome))
        else:
            answers.append(Answer(question.id, model.generation, model.version, model.rows_seen, result=outcome))
    return answers


def _key(question: Question) -> tuple[str, int]:
    return question.gateway, question.id


def _predict_joined(bundle: Bundle, waiting: Sequence[Question]) -> dict[tuple[str, int], Outcome]:
    """Predict all rows in one call; where that fails, each request by itself, so that one cannot spoil the others."""
    rows = {_key(question): question.rows for question in waiting if question.rows is not None}
    if len({part.width for part in rows.values()}) == 1:
        whole = _guarded(bundle, concatenate(list(rows.values())))
        if isinstance(whole, list):
            values = iter(whole)
            return {key: [next(values) for _ in range(part.n)] for key, part in rows.items()}
    return {key: _guarded(bundle, part) for key, part in rows.items()}


def _guarded(bundle: Bundle, rows: Rows) -> Outcome:
    """Predictions, or the error they ended in, as one of our tree."""
    try:
        return bundle.predict(rows)
    except KeepfitError as error:
        return error
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        return InvalidError(f"{bundle.recipe.estimator} cannot predict these rows: {error}")


def _compute(bundle: Bundle, question: Question) -> Outcome:
    """Outcome of the operations that are computed one request at a time."""
    if question.operation == "restore" or question.rows is None:
        return None
    try:
        if question.operation == "score":
            return bundle.score(question.rows)
        return {
            "predictions": bundle.predict(question.rows),
            "probabilities": bundle.predict_proba(question.rows),
            "classes": bundle.classes,
        }
    except KeepfitError as error:
        return error
    except (ValueError, TypeError, ArithmeticError, IndexError) as error:
        return InvalidError(f"{bundle.recipe.estimator} cannot answer for these rows: {error}")


def _restored(process: Process, model_hash: str) -> KeepfitError | None:
    """Bring a model back from its newest good snapshot; return why that was not possible."""
    try:
        asyncio.run(_restore(process, model_hash))
    except KeepfitError as error:
        log.warning("restore_failed", hash=model_hash, reason=str(error))
        return error
    return None


async def _restore(process: Process, model_hash: str) -> None:
    settings = process.settings
    client = connections.store_async(settings)
    try:
        async with History(settings.mongo_url.get_secret_value()) as history:
            storage = open_storage(settings.snapshot_url)
            await restore(Store(client, settings), history, storage, process.keyring, model_hash)
    finally:
        await client.aclose()

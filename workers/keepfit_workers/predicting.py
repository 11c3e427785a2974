"""Predicting: one vectorised call per model for all waiting requests.

Owns the replies to the requests of gateways: predict, probabilities, score, curve. Models that Redis lost, and
requests about snapshots, are left to :mod:`keepfit_workers.restoring`, reading a snapshot to predict with it to
:mod:`keepfit_workers.past_versions`, the calls to :mod:`keepfit_workers.computing`. Invariants:
nothing here changes a bundle; every request gets a reply, if need be with a :class:`~keepfit.errors.KeepfitError`; a
failure with one model is an error of the requests about it only; no reply comes from a bundle that was older than the
stored one when the request was made.
"""

import math
import time
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec
import structlog

from keepfit.backends import redis_keys
from keepfit.backends.redis_scripts import Command
from keepfit.errors import (
    CorruptBundleError,
    KeepfitError,
    MissingRequestsError,
    NotFoundError,
    StaleModelError,
    UnavailableError,
)
from keepfit.jobs import messages, run_queue
from keepfit.jobs.messages import CurveOptions, WorkerReply, WorkerRequest
from keepfit.model.bundle import Bundle
from keepfit.store.commit import Loaded
from keepfit_workers import computing, curves, downloading, metrics, past_versions, restoring, uploading
from keepfit_workers.activity import CALL
from keepfit_workers.computing import CRASHED, TOO_LARGE, Question, Step
from keepfit_workers.context import WorkerContext
from keepfit_workers.outbox import SEND_AFTER_S, Outbox
from keepfit_workers.past_bundles import PastBundle

log = structlog.get_logger(__name__)

# Duration of one turn at a model, so that requests of other models are served in between.
TURN_S = 0.02
# A model whose request takes longer is very slow: claimed alone, and not by the last worker (claim.lua).
VERY_SLOW_S = 0.25
LIMITS_TTL_S = 3600
# Questions that are put back were accepted before: no limit is enforced on them.
PUT_BACK_MAX = 2**31

# Requests about files, which are answered one by one, like changes.
SERVED = {"upload": uploading.serve, "download": downloading.serve}

Reasons = Mapping[str, KeepfitError | None]


class Turns:
    """The questions about one model, or one snapshot with its `bundle`, which are answered step by step.

    `computed` of them were in time, and took `seconds`, without loading the bundle. They waited under the name
    `subject`.
    """

    def __init__(
        self, context: WorkerContext, model: Loaded, questions: Sequence[Question], bundle: Bundle | None = None
    ) -> None:
        self.model = model
        self.subject = model.hash if bundle is None else model.digest
        self.questions = questions
        self._past = bundle
        self.computed = 0
        self.seconds = 0.0
        self._context = context
        self._bundle: Bundle | None = None
        self._steps = self._safe_steps(context)

    @property
    def estimator(self) -> str:
        """What metrics call the model's estimator; empty if its bundle could not be loaded."""
        return metrics.estimator_of(self._bundle.recipe) if self._bundle is not None else ""

    def take(self, outbox: Outbox) -> bool:
        """Answer questions for :data:`TURN_S`, at least for one chunk; return whether all are answered.

        Raises
        ------
        CorruptBundleError
            If the live bundle is damaged; then no question is answered.
        """
        started, model = time.monotonic(), self.model
        self._context.activity.begin(CALL, model.hash)
        too_large = False
        for step in self._steps:
            if step is None:
                if time.monotonic() - started > TURN_S:
                    ended = False
                    break
                continue
            question, outcome = step
            question.answered = True
            self.computed += outcome is not computing.LATE
            too_large = too_large or outcome is TOO_LARGE
            if isinstance(outcome, KeepfitError):
                reply = messages.failed(question.request, outcome)
            else:
                reply = WorkerReply(question.request.id, model.generation, model.version, model.rows_seen, outcome)
                reply = self._with_scorer(question.request, reply)
            outbox.put(question.request, reply)
        else:
            ended = True
        if too_large:
            # The memory that the bundles of other models take is there for the request when it is sent again.
            self._context.bundles.cache.clear()
            self._context.note_out_of_memory(model.hash)
        self.seconds += time.monotonic() - started
        return ended

    def _with_scorer(self, request: WorkerRequest, reply: WorkerReply) -> WorkerReply:
        """Return the reply to a prediction with the scorer that computes it, if the request asked for that."""
        model = self.model
        if not request.scorer_bytes_max or request.operation not in ("predict", "proba") or self._bundle is None:
            return reply
        version = model.generation, model.version
        encoded = self._context.scorers.encoded(model.hash, self._bundle, version, request.scorer_bytes_max)
        return msgspec.structs.replace(reply, scorer=encoded) if encoded else reply

    def _safe_steps(self, context: WorkerContext) -> Iterator[Step]:
        """Yield questions with their outcomes; if something fails, with the error for all that have none yet."""
        error: KeepfitError
        started = time.monotonic()
        try:
            self._bundle = bundle = self._past
            if bundle is None:
                self._bundle = bundle = context.bundles.get(self.model)
            self.seconds -= time.monotonic() - started
            yield from self._compute(context, bundle)
        except MissingRequestsError as missing:
            error = missing
        except CorruptBundleError:
            raise
        except KeepfitError as failure:
            error = failure
        except MemoryError:
            # The bundle itself does not fit beside the cached ones.
            error = TOO_LARGE
        except Exception:
            # A defect of keepfit: the client gets the error now, not at its deadline.
            ids = [each.request.request_id for each in self.questions if each.request.request_id]
            log.exception("answer_failed", hash=self.model.hash, request_ids=ids)
            error = KeepfitError(CRASHED)
        else:
            return
        for question in self.questions:
            if not question.answered:
                yield question, error

    def _compute(self, context: WorkerContext, bundle: Bundle) -> Iterator[Step]:
        asked = []
        for question in self.questions:
            request = question.request
            if request.operation == "restore":
                yield question, None
            elif request.generation != self.model.generation:
                yield question, StaleModelError(f"The model {self.model.hash} was created again meanwhile.")
            elif request.operation == "curve":
                yield question, curves.answer(bundle, request.curve or CurveOptions())
            else:
                asked.append(question)
        yield from computing.compute(context.queue, bundle, context.chunk_sizes, asked)


def answer_all(context: WorkerContext, entries: Sequence[bytes]) -> Sequence[Command]:
    """Answer a batch of requests, as a claim returns them; return the commands that send the last replies."""
    claimed_s = context.asked_s = time.monotonic()
    computations: dict[str, list[Question]] = defaultdict(list)
    lost: dict[str, list[Question]] = defaultdict(list)
    past: dict[str, list[Question]] = defaultdict(list)
    changes: list[WorkerRequest] = []
    for entry in entries:
        left_s, message = run_queue.split_entry(entry)
        try:
            request = messages.decode_request(message)
        except msgspec.MsgspecError as error:
            # From a gateway of another version: the request does not say which gateway to reply to.
            log.warning("worker_request_unreadable", reason=str(error))
            continue
        if request.operation in ("put_back", "snapshot", "count_rows", "upload", "download"):
            changes.append(request)
        else:
            question = Question(request, claimed_s + left_s, len(message))
            waiting = {"restore": lost, "past": past}.get(request.operation, computations)
            waiting[request.subject].append(question)
    outbox = Outbox(context.queue)
    _answer_models(context, outbox, computations)
    unloaded = {name: group for name, group in past.items() if not _answer_loaded(context, outbox, group)}
    if lost or changes or unloaded:
        # Storage may be slow: the replies that are ready go first.
        outbox.send()
    hashes = list(lost)
    for begin in range(0, len(hashes), restoring.AT_ONCE):
        some = hashes[begin : begin + restoring.AT_ONCE]
        with restoring.marked(context, some) as mine:
            reasons = restoring.restore_lost(context, mine) if mine else {}
        _put_back(context, {model_hash: lost[model_hash] for model_hash in some if model_hash not in mine})
        _answer_models(context, outbox, {model_hash: lost[model_hash] for model_hash in mine}, reasons)
    for name, group in unloaded.items():
        _load_and_answer(context, outbox, name, group)
    for request in changes:
        outbox.put(request, SERVED.get(request.operation, _answer_change)(context, request))
        outbox.send_if_due()
    return outbox.take_commands()


def _answer_loaded(context: WorkerContext, outbox: Outbox, questions: Sequence[Question]) -> bool:
    """Answer the questions about one snapshot if its bundle is in memory; return whether it is."""
    found = context.past_bundles.find(questions[0].request)
    if found is not None:
        _answer_past(context, outbox, found, questions)
    return found is not None


def _answer_past(context: WorkerContext, outbox: Outbox, past: PastBundle, questions: Sequence[Question]) -> None:
    """Answer the questions about one snapshot."""
    turns = Turns(context, past.described, [past_versions.as_question(each) for each in questions], past.bundle)
    while not _take_turn(context, outbox, turns):
        outbox.send_if_due()
    outbox.send_if_due()


def _load_and_answer(context: WorkerContext, outbox: Outbox, subject: str, questions: Sequence[Question]) -> None:
    """Answer the questions about one snapshot after its bundle was read, unless another worker is reading it."""
    with restoring.marked(context, [subject]) as mine:
        found = past_versions.load(context, questions) if mine else None
    if found is None:
        _put_back(context, {subject: questions})
    elif isinstance(found, KeepfitError):
        _fail(outbox, questions, found)
    else:
        _answer_past(context, outbox, found, questions)


def _put_back(context: WorkerContext, questions: Mapping[str, Sequence[Question]]) -> None:
    """Put questions back about models that another worker restores or repairs; no worker claims them until it has."""
    now_s = time.monotonic()
    entries = [
        run_queue.make_entry(model_hash, max(question.deadline_s - now_s, 0), messages.encode(question.request))
        for model_hash, group in questions.items()
        for question in group
    ]
    if entries:
        ttl_s = context.settings.lease_ttl_s
        run_queue.enqueue_lease(context.queue, run_queue.PREDICT, ttl_s, entries, PUT_BACK_MAX)


def _answer_change(context: WorkerContext, request: WorkerRequest) -> WorkerReply:
    """Restore or save a snapshot; the reply describes the model after it."""
    outcome = restoring.serve(context, request)
    if isinstance(outcome, KeepfitError):
        return messages.failed(request, outcome)
    loaded, failed = _load(context, [request.hash])
    model = loaded.get(request.hash)
    if model is None:
        deleted = NotFoundError(f"The model {request.hash} was deleted meanwhile.")
        return messages.failed(request, failed.get(request.hash, deleted))
    return WorkerReply(request.id, model.generation, model.version, model.rows_seen, result=outcome)


def _answer_models(
    context: WorkerContext,
    outbox: Outbox,
    questions: Mapping[str, Sequence[Question]],
    reasons: Reasons | None = None,
    *,
    repaired: bool = False,
) -> None:
    """Answer the questions about each model in turn; `reasons` says why a model could not be restored.

    Models with corrupt bundles are repaired, and answered after that (`repaired`); questions about those that another
    worker restores or repairs are put back.
    """
    if not questions:
        return
    reasons = reasons or {}
    loaded, failed = _load(context, questions)
    waiting: deque[Turns] = deque()
    # Those whose calls may be long come last, after the replies of the others.
    for model_hash, group in sorted(questions.items(), key=lambda item: _longest_s(context, *item)):
        model = loaded.get(model_hash)
        if model is None:
            missing = NotFoundError(f"There is no live model {model_hash}.")
            _fail(outbox, group, failed.get(model_hash) or reasons.get(model_hash) or missing)
        else:
            waiting.append(Turns(context, model, group))
    corrupt: dict[str, Sequence[Question]] = {}
    while waiting:
        turns = waiting.popleft()
        model_hash = turns.model.hash
        try:
            if not _take_turn(context, outbox, turns):
                waiting.append(turns)
        except CorruptBundleError as error:
            if repaired:
                _fail(outbox, turns.questions, reasons.get(model_hash) or error)
            else:
                corrupt[model_hash] = turns.questions
        outbox.send_if_due()
    if corrupt:
        # A repair is slow: the replies that are ready go first.
        outbox.send()
        tried = {}
        for model_hash in corrupt:
            with restoring.marked(context, [model_hash]) as mine:
                tried.update({each: restoring.repair(context, each) for each in mine})
        _put_back(context, {model_hash: group for model_hash, group in corrupt.items() if model_hash not in tried})
        _answer_models(context, outbox, {each: corrupt[each] for each in tried}, tried, repaired=True)


def _take_turn(context: WorkerContext, outbox: Outbox, turns: Turns) -> bool:
    """Take a turn at a model, and note how long its questions take; return whether all of them are answered."""
    subject = turns.subject
    if _longest_s(context, subject, turns.questions) > SEND_AFTER_S:
        outbox.send()
    ended = turns.take(outbox)
    if turns.computed:
        context.note_duration(subject, turns.seconds)
        if ended and turns.estimator:
            # Its counts are those of all turns.
            context.metrics.add(metrics.QUESTIONS, turns.estimator, count=turns.computed)
            context.metrics.observe(metrics.ANSWER, turns.seconds, turns.estimator)
        limit = context.request_limits.get(subject)
        outbox.add(*_limit_requests(limit, subject, turns.computed, turns.seconds))
    return ended


def _longest_s(context: WorkerContext, model_hash: str, questions: Sequence[Question]) -> float:
    """Return how long the questions of a claim about this model took at most, infinite if that says nothing."""
    if any(question.request.operation == "score" or question.request.rows_key for question in questions):
        return math.inf
    return context.longest_s.get(model_hash, math.inf)


def _load(context: WorkerContext, hashes: Collection[str]) -> tuple[dict[str, Loaded], dict[str, KeepfitError]]:
    """Return the live models of `hashes`, and the errors of those that could not be read."""
    try:
        return context.consumer.load({model_hash: context.bundles.digest(model_hash) for model_hash in hashes}), {}
    except UnavailableError as unavailable:
        return {}, dict.fromkeys(hashes, unavailable)
    except Exception:
        if len(hashes) == 1:
            log.exception("answer_failed", hash=next(iter(hashes)))
            return {}, dict.fromkeys(hashes, KeepfitError(CRASHED))
    loaded: dict[str, Loaded] = {}
    failed: dict[str, KeepfitError] = {}
    for model_hash in hashes:
        of_model, why = _load(context, [model_hash])
        loaded |= of_model
        failed |= why
    return loaded, failed


def _fail(outbox: Outbox, questions: Sequence[Question], error: KeepfitError) -> None:
    for question in questions:
        outbox.put(question.request, messages.failed(question.request, error))


def _limit_requests(current: int | None, model_hash: str, count: int, seconds: float) -> list[Command]:
    """Return commands that limit how many requests of a slow model one claim takes, after `count` took `seconds`.

    `current` is the limit that applied to this claim, if any; 0 of a very slow model.
    """
    if seconds > VERY_SLOW_S * count:
        limit = 0
    elif seconds > TURN_S:
        limit = max(1, int(count * TURN_S / seconds))
    elif current == 0 or (current is not None and seconds < TURN_S / 2 and count >= current):
        limit = max(current * 2, 1)
    else:
        return []
    key = redis_keys.request_limits(run_queue.PREDICT.name)
    if limit >= run_queue.PREDICT.requests:
        return [("HDEL", key, model_hash)]
    return [("HSET", key, model_hash, limit or run_queue.VERY_SLOW), ("EXPIRE", key, LIMITS_TTL_S)]

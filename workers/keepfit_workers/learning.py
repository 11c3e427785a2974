"""Learning: claim, fit, commit, one model at a time.

Owns what happens to the pending requests of a model; how they are fitted is :mod:`keepfit.model.fit_loop`. Never
replies to a gateway: the commit script publishes the new version itself. Invariants: a bundle that was changed and not
committed is discarded; a request that its estimator rejects becomes a dead letter and never blocks the next one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile

import structlog

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import (
    ConflictError,
    CorruptBundleError,
    EnvelopeError,
    LearningError,
    MissingRequestsError,
    StaleModelError,
    UnavailableError,
    UnstorableError,
    describe_error,
)
from keepfit.jobs import run_queue
from keepfit.model import drift, fit_loop
from keepfit.model.bundle import Bundle
from keepfit.model.fit_loop import Fitted
from keepfit.model.object_bundle import ObjectBundle
from keepfit.model.scorers import encoded_scorer
from keepfit.model.serialization import seal
from keepfit.observability import failpoints
from keepfit.recipe import uploads
from keepfit.restore.learning_again import LearnedAgain
from keepfit.rows.acceptance import request_id_of
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from keepfit.store.changes import is_change, learns_again
from keepfit.store.commit import REFUSALS, Claimed, Harm, InboxConsumer, PendingRequest, SealedBundle
from keepfit_workers import metrics, restoring
from keepfit_workers.activity import CALL
from keepfit_workers.bundle_cache import Bundles
from keepfit_workers.context import WorkerContext
from keepfit_workers.lease import LEARN_S
from keepfit_workers.metrics import WorkerMetrics
from keepfit_workers.predicting import LIMITS_TTL_S, VERY_SLOW_S

log = structlog.get_logger(__name__)

# One turn at a model: long enough to make a commit cheap, short enough that a killed worker loses little work and that
# other models are served in between.
TURN_S = 0.25
COMMIT_AFTER_S = 0.1
# While questions are asked, a commit comes after LEARN_S, and then the turn ends if one waits. It reads not many more
# requests than it can learn in that time.
BRIEF_ENTRIES_MAX = 128
# Questions are asked for so long after the last one.
ASKED_S = 1.0
# A request that has killed this many workers while it was learned alone becomes a dead letter. What would happen again
# in any case counts three times (keepfit.store.commit.Harm).
ATTEMPTS_MAX = 6
# A commit sends a scorer of at most this size to all gateways: that of a linear model with some hundred columns.
SCORER_BYTES_MAX = 8192
# Sequences of left out requests in one log event.
LEFT_OUT_LOGGED_MAX = 20

# Learns all rows of a model before a pending change again: hash, sequence and payload of the change.
LearnAgain = Callable[[str, int, bytes], LearnedAgain]


def _refuse(model_hash: str, _: int, __: bytes) -> LearnedAgain:
    raise LearningError(f"this process has no row log to learn the rows of {model_hash} from")


class Turn:
    """One turn of a worker at one model: claim, fit and commit while requests are pending, then release.

    Each step returns whether requests are still pending, and with it the requests that its round trip claimed already.
    """

    def __init__(
        self,
        consumer: InboxConsumer,
        bundles: Bundles,
        keyring: Keyring,
        model_hash: str,
        lease: str,
        counts: WorkerMetrics,
        *,
        is_brief: bool = False,
        learn_again: LearnAgain = _refuse,
    ) -> None:
        self._consumer = consumer
        self._bundles = bundles
        self._keyring = keyring
        self._hash = model_hash
        self._lease = lease
        self._counts = counts
        self._is_brief = is_brief
        self._learn_again = learn_again
        # Seconds that a request took on average, in the slowest step.
        self.slowest_s = 0.0
        # Rows of the commits.
        self.rows = 0
        self._last_committed = 0
        # Whether a commit learned all rows again.
        self.has_learned_again = False

    def run(self, is_over: Callable[[], bool]) -> bool:
        """Learn until no request is pending or the turn `is_over`; return whether requests are still pending."""
        pending, claimed = True, None
        while pending and not is_over():
            claimed = claimed or self.claim()
            if claimed is None:
                return False
            failpoints.reach("worker.claimed")
            pending, claimed = self.fit(claimed)
        failpoints.reach("worker.unlocking")
        return self.release(force=True) if pending else False

    def claim(self) -> Claimed | None:
        """Lock the model and read its bundle and next requests; None if it is gone, locked, or unreadable here."""
        # The requests of a bundle that this process cannot load need not be read at every attempt.
        if self._bundles.is_unreadable(self._hash):
            return None
        most = BRIEF_ENTRIES_MAX if self._is_brief else None
        return self._consumer.claim(self._hash, self._lease, self._bundles.digest(self._hash), most)

    def fit(self, claimed: Claimed) -> tuple[bool, Claimed | None]:
        """Fit the claimed requests, as many as fit into :data:`COMMIT_AFTER_S`, and commit them."""
        if not claimed.entries:
            return self.release(force=False), None
        bundle = self._bundles.get(claimed)
        if claimed.attempts >= ATTEMPTS_MAX:
            reason = Harm[claimed.harm or Harm.DEATH.name].reason
            return self.commit(claimed, bundle, Fitted(0, f"{reason}, repeatedly and alone"))
        if _learns_again(claimed.entries[0]):
            return self.learn_again(claimed)
        began_s = time.monotonic()

        def commit(fitted_bundle: Bundle, fitted: Fitted) -> tuple[bool, Claimed | None]:
            seconds = time.monotonic() - began_s
            self._counts.observe(metrics.LEARN, seconds, metrics.estimator_of(fitted_bundle.recipe))
            self.slowest_s = max(self.slowest_s, seconds / max(fitted.count, 1))
            return self.commit(claimed, fitted_bundle, fitted)

        seconds = LEARN_S if self._is_brief else COMMIT_AFTER_S
        entries = list(takewhile(lambda entry: not _learns_again(entry), claimed.entries))
        return fit_loop.fit_requests(bundle, lambda: self._bundles.reload(claimed), entries, commit, seconds)

    def learn_again(self, claimed: Claimed) -> tuple[bool, Claimed | None]:
        """Learn all rows before the first claimed request again, with the code that it brings, and commit."""
        change = claimed.entries[0]
        try:
            learned = self._learn_again(claimed.hash, change.sequence, change.payload)
        except (LearningError, ConflictError) as error:
            reason = str(error) if isinstance(error, LearningError) else describe_error(error)
            return self.commit(claimed, self._bundles.reload(claimed), Fitted(0, reason))
        except UnavailableError as error:
            # Other models need neither MongoDB nor the row log to learn. The sweep enqueues this one again.
            log.warning("learning_again_postponed", hash=self._hash, sequence=change.sequence, reason=str(error))
            self.release(force=True)
            return False, None
        try:
            bundle = self._bundles.open(claimed, learned.bundle.data)
            outcome = self.commit(claimed, bundle, Fitted(1), learned.dead_letters)
        except UnstorableError as error:
            return self.commit(claimed, self._bundles.reload(claimed), Fitted(0, str(error)))
        if self._last_committed == change.sequence:
            self.has_learned_again = True
            _log_learned_again(claimed, learned)
        return outcome

    def commit(
        self, claimed: Claimed, bundle: Bundle, fitted: Fitted, dead_letters: Sequence[tuple[str, str]] = ()
    ) -> tuple[bool, Claimed | None]:
        """Commit the fitted requests, or the first one as a dead letter if it could not be learned.

        `dead_letters` are those of :class:`SealedBundle`.
        """
        failpoints.reach("worker.fitted")
        began_s, estimator = time.monotonic(), metrics.estimator_of(bundle.recipe)
        # Until the commit confirms it, the bundle in memory differs from the stored one.
        self._bundles.cache.drop(self._hash)
        dead_reason = "" if fitted.count else fitted.reason
        count = fitted.count or 1
        sealed = replace(seal_bundle(self._keyring, claimed, bundle, count), dead_letters=dead_letters)
        if claimed.followed:
            scorer = encoded_scorer(bundle, claimed.generation, claimed.version + 1, SCORER_BYTES_MAX)
            sealed = replace(sealed, scorer=scorer)
        if fitted.answer and fitted.count:
            sealed = replace(sealed, answer=fitted.answer)
        committed = self._consumer.commit(
            claimed, sealed, count, self._lease, dead_reason, claims_next=not self._is_brief
        )
        if committed.version < 1:
            self._counts.add(metrics.COMMITS, estimator, "refused")
            reason = REFUSALS[committed.version]
            log.warning("commit_refused", hash=self._hash, version=claimed.version + 1, reason=reason)
            return True, committed.claimed
        self._bundles.cache.put(self._hash, committed.digest, bundle, len(sealed.data))
        rows = max(sealed.rows_seen - claimed.rows_seen, 0)
        self.rows += rows
        self._counts.note_commit(
            estimator, rows, len(sealed.data), time.monotonic() - began_s, is_dead=bool(dead_reason)
        )
        self._last_committed = claimed.entries[count - 1].sequence
        if dead_reason:
            _log_dead_letter(claimed, dead_reason)
        elif isinstance(bundle, ObjectBundle):
            _log_new_code(claimed, bundle, count)
        return committed.has_pending, committed.claimed

    def release(self, *, force: bool) -> bool:
        """Unlock the model; return whether requests are pending (then the lock is kept, unless forced)."""
        return self._consumer.unlock(self._hash, self._lease, force=force)


def learn(context: WorkerContext, model_hash: str, lease: str) -> bool:
    """Learn the pending requests of one model for one turn; return whether requests are still pending."""
    if context.stopping:
        # The model was removed from the run queue and not begun. It goes back, or only the sweep would find it.
        return True
    is_brief = time.monotonic() - context.asked_s < ASKED_S
    turn = Turn(
        context.consumer,
        context.bundles,
        context.keyring,
        model_hash,
        lease,
        context.metrics,
        is_brief=is_brief,
        learn_again=partial(restoring.learn_again, context),
    )
    with context.activity.holding_lock(model_hash, lease):
        try:
            pending = _take_turn(context, turn, model_hash, lease)
        except UnavailableError:
            context.defer_unlock(model_hash, lease)
            raise
        finally:
            context.rows_learned += turn.rows
    context.note_turn()
    if turn.has_learned_again:
        restoring.save_learned_again(context, model_hash)
    _note_duration(context, model_hash, turn.slowest_s)
    return pending


def _note_duration(context: WorkerContext, model_hash: str, seconds: float) -> None:
    """Record that a request of a model took so long, if that makes it a very slow one, or an ordinary one again."""
    key, was_very_slow = redis_keys.request_limits(run_queue.LEARN.name), context.request_limits.get(model_hash) == 0
    if seconds > VERY_SLOW_S:
        limit = ("HSET", key, model_hash, run_queue.VERY_SLOW)
        redis_scripts.run(context.queue, limit, ("EXPIRE", key, LIMITS_TTL_S))
    elif seconds and was_very_slow:
        redis_scripts.run(context.queue, ("HDEL", key, model_hash))


def _take_turn(context: WorkerContext, turn: Turn, model_hash: str, lease: str) -> bool:
    """Take a turn, and release the lock whatever fails; return whether requests are pending that can be tried now."""
    try:
        return _run(context, turn, model_hash)
    except StaleModelError:
        return turn.release(force=True)
    except EnvelopeError as error:
        # Logged where it was found. Nothing is lost: a worker with the right versions learns the pending requests,
        # or the next turn does where the bundle was corrupt and is repaired.
        is_repairable = isinstance(error, CorruptBundleError) and not isinstance(error, MissingRequestsError)
        can_go_on = is_repairable and _repair(context, model_hash)
        turn.release(force=True)
        return can_go_on
    except UnavailableError:
        raise
    except Exception as error:
        # The bundle in memory may be half changed.
        context.bundles.cache.drop(model_hash)
        # A failure of one model does not affect the others. Nothing is lost: the requests stay in the inbox, and the
        # sweep enqueues a lease for them again.
        log.exception("learning_stopped", hash=model_hash)
        # A bundle that does not fit into memory says nothing about the requests, which were not tried.
        is_harm = isinstance(error, MemoryError) and context.activity.doing.step == CALL
        context.consumer.unlock(model_hash, lease, force=True, harm=Harm.MEMORY if is_harm else None)
        return False


def _repair(context: WorkerContext, model_hash: str) -> bool:
    """Repair a corrupt bundle, unless another worker does; return whether its requests can be learned after that."""
    with restoring.marked(context, [model_hash]) as mine:
        # The model waits in the run queue until the other worker has repaired it.
        return not mine or restoring.repair(context, model_hash) is None


def _run(context: WorkerContext, turn: Turn, model_hash: str) -> bool:
    """Run a turn; where memory does not suffice, once more without the other models' bundles in it."""
    started = time.monotonic()
    while True:
        try:
            return turn.run(lambda: _turn_is_over(context, time.monotonic() - started))
        except MemoryError:
            if not context.bundles.cache.clear(but=model_hash):
                raise
        context.note_out_of_memory(model_hash)


def _turn_is_over(context: WorkerContext, elapsed_s: float) -> bool:
    """Return whether other work comes first now: predictions, and other models."""
    if context.stopping or elapsed_s > TURN_S:
        return True
    return elapsed_s > LEARN_S and context.has_waiting_work()


def _learns_again(entry: PendingRequest) -> bool:
    return not entry.large_key and learns_again(entry.payload)


def seal_bundle(keyring: Keyring, claimed: Claimed, bundle: Bundle, count: int) -> SealedBundle:
    """Pickle and sign a bundle that has learned the first `count` of the claimed requests."""
    last = claimed.entries[count - 1]
    header = Header(
        purpose=envelope.BUNDLE,
        hash=claimed.hash,
        generation=claimed.generation,
        version=claimed.version + 1,
        sequence=last.sequence,
        rows_seen=bundle.rows_seen,
        chain=last.request_digest,
        runtime=bundle.runtime,
    )
    data = seal(bundle, keyring, header)
    drifts = tuple(drift.take(bundle.prequential))
    return SealedBundle(data, bundle.rows_seen, bundle.metrics(), bundle.changed, bundle.width, drifts=drifts)


def _log_dead_letter(claimed: Claimed, reason: str) -> None:
    """Log that the first claimed request became a dead letter.

    The text of an estimator's error may quote the row. It is stored with the dead letter, for the client that sent the
    row; the log gets the class of the error only.
    """
    first = claimed.entries[0]
    request_id = request_id_of(first.payload) or None
    kind = reason.partition(":")[0]
    log.warning("request_put_aside", hash=claimed.hash, sequence=first.sequence, request_id=request_id, reason=kind)


def _log_learned_again(claimed: Claimed, learned: LearnedAgain) -> None:
    log.info(
        "learned_again",
        hash=claimed.hash,
        version=claimed.version + 1,
        sequence=claimed.entries[0].sequence,
        requests=learned.requests,
        left_out=len(learned.left_out),
        sequences=[each.request.sequence for each in learned.left_out[:LEFT_OUT_LOGGED_MAX]],
    )


def _log_new_code(claimed: Claimed, bundle: ObjectBundle, count: int) -> None:
    """Log that the code of an object was replaced, if that is among the first `count` claimed requests."""
    changes = [entry for entry in claimed.entries[:count] if not entry.large_key and is_change(entry.payload)]
    header = uploads.header_of(bundle.recipe.object or "")
    if changes and header.code is not None:
        log.info(
            "code_replaced",
            hash=claimed.hash,
            version=claimed.version + 1,
            sequence=changes[-1].sequence,
            name=header.name,
            sha256=header.code.sha256,
        )

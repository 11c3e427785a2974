"""A lease: one RQ job's turn at both run queues.

Owns when to claim the next entries, of which run queue, when to linger, and when to hand over. Predictions come first;
between rounds of them rows are learned for a short slice, if any wait. Never reads an entry. Invariant: a lease ends
only when both run queues are empty, another lease is awake, or after it has enqueued a successor. If its worker dies,
the supervisor ends it, or the sweep does once its deadline has passed.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from keepfit.backends import redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.jobs import run_queue
from keepfit.jobs.run_queue import LEARN, PREDICT, Claim, RunQueue, When
from keepfit.observability import failpoints
from keepfit_workers import metrics
from keepfit_workers.activity import BATCH
from keepfit_workers.context import WorkerContext

# A lease hands over after this time if other jobs wait for a worker; each hand-over costs about 3 ms.
SHARED_SLICE_S = 0.02
# One of several leases that was idle for half of this time ends: larger batches are more efficient for the others.
SPARE_S = 0.5
# A slice of learning while questions are asked, and the time that the next ones get after it, if there are so many: a
# quarter of a busy worker learns, and a few rows for one model share a commit, which takes longer than to learn them.
LEARN_S = 0.01
LEARN_PAUSE_S = 0.03
LEARN_PAUSE_QUESTIONS = 8

Work = Callable[[Sequence[bytes]], Sequence[Command]]


class Lease:
    """A lease of a worker; `works` process the claimed entries, by the name of their run queue.

    They may return commands for the queue's Redis. They are sent with the next claim, which marks the batch as done.
    """

    def __init__(self, context: WorkerContext, lease: str, works: Mapping[str, Work]) -> None:
        self._context = context
        self._lease = lease
        self._works = works
        self._queue = PREDICT
        self._unsent: Sequence[Command] = ()
        # The last wake-up before the last claim of predictions: work that came later ends the linger.
        self._woken = b""
        self._started_s = self._watched_s = time.monotonic()
        self._idle_s = 0.0
        # When the current slice of learning began, when the next one may begin, and the questions since the last one.
        self._learning_s = self._learn_at_s = self._started_s
        self._questions = 0

    def drain(self) -> int:
        """Process entries, batch by batch, until the lease ends; return their number."""
        done = 0
        try:
            with self._context.activity.holding_lease(self._lease):
                while (claim := self._claim()) is not None:
                    done += len(claim.entries)
                    if self._serve(claim) or self._is_over(claim):
                        break
                self._context.metrics.observe(metrics.LEASE, time.monotonic() - self._started_s)
        except BaseException:
            # The claimed entries are not put back: one of them may be the reason of the failure. Rows stay in their
            # inbox, where the sweep finds them. Replies that were being sent when the connection broke are sent again;
            # a second copy is harmless.
            redis_scripts.run(self._context.queue, *self._unsent, run_queue.release(self._lease, "now"))
            raise
        return done

    def _claim(self) -> Claim | None:
        """Send the commands of the last batch and claim the next one; None if the lease has ended."""
        ttl_s = self._context.settings.lease_ttl_s
        claim = run_queue.claim(self._queue, self._lease, ttl_s, self._context.name)
        # In this order: if the worker dies between the two, a reply is sent twice rather than never.
        *_, answer = redis_scripts.run(self._context.queue, *self._unsent, claim)
        self._unsent = ()
        return run_queue.read_claim(answer)

    def _serve(self, claim: Claim) -> bool:
        """Process the claimed entries, or linger, and choose the next run queue; return whether the lease has ended."""
        context, queue = self._context, self._queue
        if queue is PREDICT:
            self._woken = claim.woken
        if claim.entries:
            context.set_request_limits(claim.limits)
            if claim.is_late:
                run_queue.enqueue_lease(context.queue, queue, context.settings.lease_ttl_s, late_ms=0)
            failpoints.reach("lease.claimed")
            context.activity.begin(BATCH)
            self._unsent = self._works[queue.name](claim.entries)
            context.activity.end(models_held=context.bundles.cache.count, rows_learned=context.rows_learned)
            context.metrics.note_models_held(context.bundles.cache.count)
        self._queue = self._next_queue(claim)
        return not claim.entries and self._queue is PREDICT and not self._linger() and self._release()

    def _next_queue(self, claim: Claim) -> RunQueue:
        """Return the run queue of the next claim."""
        now_s = time.monotonic()
        if self._queue is PREDICT:
            self._questions += len(claim.entries)
            is_pause = now_s < self._learn_at_s and self._questions >= LEARN_PAUSE_QUESTIONS
            if is_pause or not claim.others:
                return PREDICT
            self._learning_s = now_s
            return LEARN
        if claim.entries and claim.left and now_s - self._learning_s < LEARN_S:
            return LEARN
        self._learn_at_s, self._questions = now_s + LEARN_PAUSE_S, 0
        return PREDICT

    def _linger(self) -> bool:
        """Wait a little for work without claiming it, and choose the run queue into which it came, if any did.

        If work waits that this worker may not claim now (claim.lua), it looks again after that time.
        """
        began_s, wait_s = time.monotonic(), self._context.settings.linger_ms / 1000
        (woken,) = redis_scripts.run(self._context.queue, run_queue.linger(self._woken, wait_s))
        self._idle_s += time.monotonic() - began_s
        if woken and self._questions < LEARN_PAUSE_QUESTIONS:
            self._queue = run_queue.woken_by(woken)
            self._learning_s = time.monotonic()
        return bool(woken)

    def _is_over(self, claim: Claim) -> bool:
        """Hand over if the lease has lasted long enough, or end as a spare one; return whether it has ended."""
        now_s = time.monotonic()
        slice_s = SHARED_SLICE_S if claim.jobs else self._context.settings.lease_slice_s
        if self._context.stopping or now_s - self._started_s > slice_s:
            self._hand_over()
            return True
        if now_s - self._watched_s > SPARE_S and not self._unsent:
            if self._idle_s > (now_s - self._watched_s) / 2 and self._release("spare"):
                return True
            self._watched_s, self._idle_s = now_s, 0.0
        return False

    def _release(self, when: When = "idle") -> bool:
        """Release the lease; return whether it has ended."""
        failpoints.reach("lease.releasing")
        (ended,) = redis_scripts.run(self._context.queue, run_queue.release(self._lease, when))
        return bool(ended)

    def _hand_over(self) -> None:
        """End the lease and enqueue a successor at the end of RQ's queue."""
        redis_scripts.run(self._context.queue, *self._unsent, run_queue.release(self._lease, "now"))
        failpoints.reach("lease.released")
        run_queue.enqueue_leases(self._context.queue, self._context.settings.lease_ttl_s)

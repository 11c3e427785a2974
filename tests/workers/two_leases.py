"""Two workers with leases on the run queues of a test, which claim and answer one after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from keepfit.backends import redis_keys, redis_scripts
from keepfit.jobs import messages, run_queue
from keepfit.jobs.messages import WorkerReply, WorkerRequest
from keepfit.jobs.run_queue import PREDICT
from keepfit_workers.context import WorkerContext
from keepfit_workers.predicting import answer_all

FIRST, SECOND = "first lease", "second lease"
TTL_S = 600.0


@contextmanager
def leased(context: WorkerContext, lease: str) -> Iterator[None]:
    """Give a worker a lease on the predict queue."""
    context.queue.zadd(redis_keys.LEASES, {lease: 9e12})
    with context.activity.holding_lease(lease):
        yield


def push(context: WorkerContext, request: WorkerRequest) -> None:
    """Push a question, as the gateway `g` does."""
    entry = run_queue.make_entry(request.subject, 60, messages.encode(request))
    redis_scripts.run(context.queue, run_queue.push(PREDICT, FIRST, TTL_S, [entry], 100))


def claim(context: WorkerContext, lease: str, queue: run_queue.RunQueue = PREDICT) -> Sequence[bytes]:
    """Claim work."""
    (answer,) = redis_scripts.run(context.queue, run_queue.claim(queue, lease, TTL_S, context.name))
    found = run_queue.read_claim(answer)
    return found.entries if found else ()


def answer(context: WorkerContext, entries: Sequence[bytes]) -> dict[int, WorkerReply]:
    """Answer questions that were claimed; return all replies so far, by number."""
    unsent = answer_all(context, entries)
    if unsent:
        redis_scripts.run(context.queue, *unsent)
    return replies_of(context)


def replies_of(context: WorkerContext) -> dict[int, WorkerReply]:
    """Return the replies that were sent to the gateway, by number."""
    batches = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    return {reply.id: reply for batch in batches for reply in messages.decode_replies(batch)}

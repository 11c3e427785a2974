"""RQ as keepfit uses it: one queue, JSON, and jobs that can only be keepfit's own.

Owns the names of the jobs, so that gateways enqueue without any worker code, and what is believed of a job's record:
the function's name and its lease, both checked by form, and nothing else. Invariant: whoever writes into the queue can
make a worker run nothing but the functions in :data:`FUNCTIONS`: no other callable, callback, webhook or dependent, no
pickle; and what is refused neither stops a worker nor stands in the way of a lease (`docs/operations/rq.md`).
"""

import json
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import ResponseError
from rq import Queue
from rq.exceptions import DequeueTimeout, DeserializationError, NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.job_lifecycle import record_job_failure
from rq.serializers import JSONSerializer
from rq.utils import import_attribute

from keepfit.backends import redis_keys

log = structlog.get_logger(__name__)

PARTIAL_FIT = "workers.jobs.partial_fit"
PREDICT = "workers.jobs.predict"
# Where they are. The names above are written in Redis and stay, so that old and new workers know each other's jobs.
CODE = {PARTIAL_FIT: "keepfit_workers.jobs.partial_fit", PREDICT: "keepfit_workers.jobs.predict"}
FUNCTIONS = frozenset(CODE)
# Id of a lease and of its job.
LEASE = re.compile(r"[0-9a-f]{32}")
# Ids that RQ can give to a job; its worker stops at others.
NAME = re.compile(rb"[A-Za-z0-9_-]{1,100}")

SERIALIZER = JSONSerializer
# A lease drains for seconds; one call of an estimator may take long. After this RQ stops the job.
JOB_TIMEOUT_S = 900
# Long enough to be seen in `rq info` and dashboards, short enough not to pile up.
RESULT_TTL_S = 10
FAILURE_TTL_S = 3600
# A lease's record has a hundred bytes; more are not even read.
RECORD_BYTES_MAX = 1024
SHOWN_MAX = 80


class RefusedJobError(DeserializationError):
    """A job in the queue is not one of keepfit's leases."""


class LeaseJob(Job):
    """A job that runs one of :data:`FUNCTIONS` with its lease and nothing else, whatever its record in Redis says."""

    def refresh(self) -> None:
        """Read the one field of the record that counts, if it is as short as a lease's."""
        try:
            size = self.connection.hstrlen(self.key, "data")
        except ResponseError:
            # Something else stands under the record's key.
            size = 0
        data = self.connection.hget(self.key, "data") if 0 < size <= RECORD_BYTES_MAX else b""
        if not size or data is None:
            raise NoSuchJobError(f"There is no job {_shown(self.id)}.")
        self.restore({b"data": data})

    def restore(self, raw_data: Any) -> None:
        """Take the function and its arguments out of a record; all else is as :func:`enqueue` would have it."""
        data = raw_data.get(b"data", b"")
        super().restore({b"data": _inflated(data)})
        self.origin = redis_keys.QUEUE
        self.timeout, self.result_ttl, self.failure_ttl = JOB_TIMEOUT_S, RESULT_TTL_S, FAILURE_TTL_S

    def check(self) -> None:
        """Raise RefusedJobError unless this is a lease."""
        if self.func_name not in tuple(FUNCTIONS) or self.instance is not None:
            name = _shown(self.func_name)
            raise RefusedJobError(f"Job {_shown(self.id)} names {name}, which keepfit does not run.")
        if not LEASE.fullmatch(self.id):
            raise RefusedJobError(f"Job {_shown(self.id)} is not named like a lease.")
        if self.args not in ([self.id], (self.id,)) or self.kwargs != {}:
            raise RefusedJobError(f"Job {self.id} has other arguments than its lease.")

    def _deserialize_data(self) -> None:
        """Read the record's JSON, which must have RQ's form."""
        try:
            name, instance, args, kwargs = json.loads(self.data)
        except (ValueError, TypeError, RecursionError) as error:
            raise RefusedJobError(f"The record of job {_shown(self.id)} is not a lease's.") from error
        self._func_name, self._instance, self._args, self._kwargs = name, instance, args, kwargs

    @property
    def func(self) -> Callable[..., Any]:
        """The job's function, if it is one of ours."""
        self.check()
        function: Callable[..., Any] = import_attribute(CODE[str(self.func_name)])
        return function

    success_callback = failure_callback = stopped_callback = property(lambda self: None)

    def send_webhooks(self, *args: Any, **kwargs: Any) -> None:
        """Send nothing: addresses in a job's record are nobody's order."""


def _inflated(data: bytes) -> bytes:
    """Inflate a record's data, unless it is more than a lease's; what is not compressed stays as it is."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, RECORD_BYTES_MAX)
    except zlib.error:
        return data
    return inflated if inflater.eof else b""


def _shown(value: Any) -> str:
    """What somebody else wrote, for a log: without line breaks, and not all of it."""
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"


class LeasesBegun(IntermediateQueue):
    """Ids between queue and worker."""

    def get_job_ids(self) -> list[str]:
        """Ids that RQ can give; others are taken off."""
        found: list[Any] = self.connection.lrange(self.key, 0, -1)
        for name in found:
            if not NAME.fullmatch(name):
                self.connection.lrem(self.key, 1, name)
        return [name.decode() for name in found if NAME.fullmatch(name)]


class LeaseQueue(Queue):
    """The queue, from which nothing but leases comes, and in which no job waits for another."""

    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> Any:
        """Take the next id; refuse what is no lease's, and say that nothing came."""
        moved = super().lmove(connection, queue_key, timeout)
        if moved is None or NAME.fullmatch(moved[1]):
            return moved
        log.warning("job_refused", job=_shown(moved[1]), reason="RQ names no job so.")
        connection.expire(Job.redis_job_namespace_prefix.encode() + moved[1], FAILURE_TTL_S)
        raise _nothing(connection, queue_key, moved[1])

    @classmethod
    def _fetch_dequeued_job(  # type: ignore[override]
        cls, connection: Redis, queue_key: str, job_id: str, **kwargs: Any
    ) -> tuple[Job, Queue]:
        """Read the record of an id that was taken; refuse what is no lease, and say that nothing came."""
        found = super()._fetch_dequeued_job(connection, queue_key, job_id, **kwargs)
        if found is not None:
            try:
                found[0].check()  # type: ignore[attr-defined]
            except RefusedJobError as error:
                log.warning("job_refused", job=job_id, reason=str(error))
                _note_failure(found[0], str(error))
            else:
                return found
        raise _nothing(connection, queue_key, job_id)

    @property
    def intermediate_queue(self) -> IntermediateQueue:
        """What was taken from the queue and not begun."""
        return LeasesBegun(self.key, self.connection)

    def move_dependents_to_ready(self, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """Move nothing: no job of ours waits for another."""
        return {}


def _note_failure(job: Job, reason: str) -> None:
    """Let `rq info` and dashboards show a job that was refused, for a while."""
    with suppress(ResponseError), job.connection.pipeline() as pipeline:
        record_job_failure(job, reason, pipeline)
        pipeline.execute()


def _nothing(connection: Redis, queue_key: str, name: str | bytes) -> DequeueTimeout:
    """Take an id off for good; a worker that is told of a timeout looks whether to stop, and goes on to the next."""
    connection.lrem(IntermediateQueue.get_intermediate_queue_key(queue_key), 1, name)  # type: ignore[arg-type]
    return DequeueTimeout(0, queue_key)


def queue_of(connection: Redis) -> Queue:
    """Make the one queue, on `connection`."""
    return LeaseQueue(redis_keys.QUEUE, connection=connection, serializer=SERIALIZER, job_class=LeaseJob)


def enqueue(connection: Redis, function: str, lease: str) -> None:
    """Enqueue the RQ job that works the lease; the job's id is the lease's."""
    queue_of(connection).enqueue_call(
        function,
        args=(lease,),
        job_id=lease,
        timeout=JOB_TIMEOUT_S,
        result_ttl=RESULT_TTL_S,
        failure_ttl=FAILURE_TTL_S,
        description=f"{function.rpartition('.')[2]} lease",
    )

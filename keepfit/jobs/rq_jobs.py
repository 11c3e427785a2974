"""RQ as keepfit uses it: one queue, JSON, and no jobs but keepfit's own.

Owns the names of the jobs, so that gateways enqueue them without any worker code, and the parts of a job's record that
workers use: the name of the function and the lease, both checked. Invariant: a client that writes into the queue can
make a worker run nothing but :data:`FUNCTIONS`: no other callable, callback, webhook or dependent job, no pickle. A
refused job neither stops a worker nor blocks a lease (`docs/operations/rq.md`).
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

PARTIAL_FIT = "keepfit_workers.jobs.partial_fit"
PREDICT = "keepfit_workers.jobs.predict"
# Names that gateways of 0.1 enqueue; workers accept them for one release.
FORMER_NAMES = {"workers.jobs.partial_fit": PARTIAL_FIT, "workers.jobs.predict": PREDICT}
FUNCTIONS = {PARTIAL_FIT: PARTIAL_FIT, PREDICT: PREDICT, **FORMER_NAMES}
# The id of a lease and of its job.
LEASE = re.compile(r"[0-9a-f]{32}")
# Ids that RQ accepts for a job; its worker would stop at any other.
NAME = re.compile(rb"[A-Za-z0-9_-]{1,100}")

SERIALIZER = JSONSerializer
# No limit of RQ's: it would raise an exception inside a call, after which the same request is tried again for ever. The
# supervisor ends a call over its time (KEEPFIT_CALL_TIMEOUT_S).
JOB_TIMEOUT_S = -1
# Long enough to be visible in `rq info` and dashboards, short enough not to accumulate.
RESULT_TTL_S = 10
FAILURE_TTL_S = 3600
# The record of a lease has a hundred bytes; a larger one is not read.
RECORD_BYTES_MAX = 1024
LOGGED_LENGTH_MAX = 80


class RefusedJobError(DeserializationError):
    """A job in the queue is not one of keepfit's leases."""


class LeaseJob(Job):
    """A job that runs one of :data:`FUNCTIONS` with its lease, and ignores everything else in its record."""

    def refresh(self) -> None:
        """Read the only field of the record that is used, if it is short enough for a lease."""
        try:
            size = self.connection.hstrlen(self.key, "data")
        except ResponseError:
            # The key of the record holds another type.
            size = 0
        data = self.connection.hget(self.key, "data") if 0 < size <= RECORD_BYTES_MAX else b""
        if not size or data is None:
            raise NoSuchJobError(f"There is no job {_format(self.id)}.")
        self.restore({b"data": data})

    def restore(self, raw_data: Any) -> None:
        """Read function and arguments from a record; everything else has the values that :func:`enqueue` sets."""
        data = raw_data.get(b"data", b"")
        super().restore({b"data": _inflate(data)})
        self.origin = redis_keys.QUEUE
        self.timeout, self.result_ttl, self.failure_ttl = JOB_TIMEOUT_S, RESULT_TTL_S, FAILURE_TTL_S

    def check(self) -> None:
        """Raise RefusedJobError unless this is a lease."""
        if self.func_name not in tuple(FUNCTIONS) or self.instance is not None:
            name = _format(self.func_name)
            raise RefusedJobError(f"Job {_format(self.id)} names {name}, which keepfit does not run.")
        if not LEASE.fullmatch(self.id):
            raise RefusedJobError(f"Job {_format(self.id)} does not have the id of a lease.")
        if self.args not in ([self.id], (self.id,)) or self.kwargs != {}:
            raise RefusedJobError(f"Job {self.id} has arguments other than its lease.")

    def _deserialize_data(self) -> None:
        """Parse the JSON of the record, which must have the structure that RQ writes."""
        try:
            name, instance, args, kwargs = json.loads(self.data)
        except (ValueError, TypeError, RecursionError) as error:
            raise RefusedJobError(f"The record of job {_format(self.id)} is not that of a lease.") from error
        self._func_name, self._instance, self._args, self._kwargs = name, instance, args, kwargs

    @property
    def func(self) -> Callable[..., Any]:
        """The function of the job, if it is one of :data:`FUNCTIONS`."""
        self.check()
        function: Callable[..., Any] = import_attribute(FUNCTIONS[str(self.func_name)])
        return function

    success_callback = failure_callback = stopped_callback = property(lambda self: None)

    def send_webhooks(self, *args: Any, **kwargs: Any) -> None:
        """Send nothing: any client can write addresses into the record of a job."""


def _inflate(data: bytes) -> bytes:
    """Decompress the data of a record, up to the size of a lease; data that is not compressed is returned unchanged."""
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, RECORD_BYTES_MAX)
    except zlib.error:
        return data
    return inflated if inflater.eof else b""


def _format(value: Any) -> str:
    """Format a foreign value for the log: without line breaks, and shortened."""
    text = repr(value)
    return text if len(text) <= LOGGED_LENGTH_MAX else f"{text[:LOGGED_LENGTH_MAX]}…"


class DequeuedLeases(IntermediateQueue):
    """Ids that were dequeued and whose jobs have not started."""

    def get_job_ids(self) -> list[str]:
        """Return the ids that RQ accepts, and remove all others."""
        found: list[Any] = self.connection.lrange(self.key, 0, -1)
        for name in found:
            if not NAME.fullmatch(name):
                self.connection.lrem(self.key, 1, name)
        return [name.decode() for name in found if NAME.fullmatch(name)]


class LeaseQueue(Queue):
    """The queue. It returns leases only, and no job depends on another."""

    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> Any:
        """Dequeue the next id; refuse one that is not a lease's, and report a timeout instead."""
        moved = super().lmove(connection, queue_key, timeout)
        if moved is None or NAME.fullmatch(moved[1]):
            return moved
        log.warning("job_refused", job=_format(moved[1]), reason="RQ accepts no such id.")
        connection.expire(Job.redis_job_namespace_prefix.encode() + moved[1], FAILURE_TTL_S)
        raise _timeout(connection, queue_key, moved[1])

    @classmethod
    def _fetch_dequeued_job(  # type: ignore[override]
        cls, connection: Redis, queue_key: str, job_id: str, **kwargs: Any
    ) -> tuple[Job, Queue]:
        """Read the record of a dequeued id; refuse one that is not a lease, and report a timeout instead."""
        found = super()._fetch_dequeued_job(connection, queue_key, job_id, **kwargs)
        if found is not None:
            try:
                found[0].check()  # type: ignore[attr-defined]
            except RefusedJobError as error:
                log.warning("job_refused", job=job_id, reason=str(error))
                _record_failure(found[0], str(error))
            else:
                return found
        raise _timeout(connection, queue_key, job_id)

    @property
    def intermediate_queue(self) -> IntermediateQueue:
        """The ids that were dequeued and whose jobs have not started."""
        return DequeuedLeases(self.key, self.connection)

    def move_dependents_to_ready(self, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        """Do nothing: no job of keepfit depends on another."""
        return {}


def _record_failure(job: Job, reason: str) -> None:
    """Record a refused job as failed, so that `rq info` and dashboards show it for a while."""
    with suppress(ResponseError), job.connection.pipeline() as pipeline:
        record_job_failure(job, reason, pipeline)
        pipeline.execute()


def _timeout(connection: Redis, queue_key: str, name: str | bytes) -> DequeueTimeout:
    """Remove an id for good. A timeout makes the worker check whether to stop, and continue with the next id."""
    connection.lrem(IntermediateQueue.get_intermediate_queue_key(queue_key), 1, name)  # type: ignore[arg-type]
    return DequeueTimeout(0, queue_key)


def queue_of(connection: Redis) -> Queue:
    """Return keepfit's RQ queue on `connection`."""
    return LeaseQueue(redis_keys.QUEUE, connection=connection, serializer=SERIALIZER, job_class=LeaseJob)


def enqueue(connection: Redis, function: str, lease: str) -> None:
    """Enqueue the RQ job that executes the lease; its id is the id of the lease."""
    queue_of(connection).enqueue_call(
        function,
        args=(lease,),
        job_id=lease,
        timeout=JOB_TIMEOUT_S,
        result_ttl=RESULT_TTL_S,
        failure_ttl=FAILURE_TTL_S,
        description=f"{function.rpartition('.')[2]} lease",
    )

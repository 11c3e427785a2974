"""RQ as keepfit uses it: one queue, JSON, and jobs that can only be keepfit's own.

Owns the names of the jobs, so that gateways enqueue without any worker code. Invariant: whoever writes into the queue
can make a worker run nothing but the functions in :data:`FUNCTIONS`: no other callable, callback or webhook, no pickle.
"""

from collections.abc import Callable
from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from keepfit import keys

PARTIAL_FIT = "workers.jobs.partial_fit"
PREDICT = "workers.jobs.predict"
FUNCTIONS = frozenset({PARTIAL_FIT, PREDICT})

SERIALIZER = JSONSerializer
# A lease drains for seconds; one call of an estimator may take long. After this RQ stops the job.
JOB_TIMEOUT_S = 900
# Long enough to be seen in `rq info` and dashboards, short enough not to pile up.
RESULT_TTL_S = 10
FAILURE_TTL_S = 3600


class RefusedJobError(Exception):
    """A job in the queue names something that is not keepfit's."""


class LeaseJob(Job):
    """A job that runs one of :data:`FUNCTIONS` and nothing else, whatever its record in Redis says."""

    @property
    def func(self) -> Callable[..., Any]:
        """The job's function, if it is one of ours."""
        # A tuple, because what stands in the record may be a list, which has no hash.
        if self.func_name not in tuple(FUNCTIONS) or self.instance is not None:
            raise RefusedJobError(f"Job {self.id} names {self.func_name!r}, which keepfit does not run.")
        function: Callable[..., Any] = super().func
        return function

    success_callback = failure_callback = stopped_callback = property(lambda self: None)

    def send_webhooks(self, *args: Any, **kwargs: Any) -> None:
        """Send nothing: addresses in a job's record are nobody's order."""


def queue_of(connection: Redis) -> Queue:
    """Make the one queue, on `connection`."""
    return Queue(keys.QUEUE, connection=connection, serializer=SERIALIZER, job_class=LeaseJob)


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

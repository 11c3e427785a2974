"""RQ as keepfit uses it: a worker runs only the two lease jobs, whatever the queue contains."""

import importlib
import inspect
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any, Literal

import pytest
from redis import Redis
from rq.callbacks import Callback, execute_failure_callback, execute_stopped_callback, execute_success_callback
from rq.exceptions import DeserializationError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.timeouts import TimerDeathPenalty
from rq.webhook import Webhook

from keepfit.backends import redis_clients, redis_keys
from keepfit.jobs import rq_jobs, run_queue
from keepfit.jobs.rq_jobs import (
    FORMER_NAMES,
    FUNCTIONS,
    PARTIAL_FIT,
    PREDICT,
    SERIALIZER,
    LeaseJob,
    LeaseQueue,
    RefusedJobError,
)
from keepfit.settings import Settings

# No test connects to this: jobs are created and read here, not enqueued.
UNCONNECTED = Redis("127.0.0.1", 1)

LEASE_ID = "0123456789abcdef" * 2

calls: list[str] = []


def mark(*_: Any, **__: Any) -> None:
    """Record a call that must not happen."""
    calls.append("called")


def read_job(data: Any, **fields: bytes) -> LeaseJob:
    """Return the job that a worker reads from Redis for this record, which any client may have written."""
    job = LeaseJob(LEASE_ID, connection=UNCONNECTED, serializer=SERIALIZER)
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    job.restore({b"data": zlib.compress(raw), **{name.encode(): value for name, value in fields.items()}})
    return job


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_each_job_name_is_a_function_of_the_workers(name: str) -> None:
    """Each name that a gateway may enqueue is a function of keepfit_workers.jobs that takes a lease."""
    module, _, function = FUNCTIONS[name].rpartition(".")
    assert module == "keepfit_workers.jobs"
    assert name.removeprefix("keepfit_") == f"workers.jobs.{function}"
    found = getattr(importlib.import_module(module), function)
    assert inspect.isfunction(found)
    assert found.__module__ == "keepfit_workers.jobs"
    assert list(inspect.signature(found).parameters) == ["lease"]
    assert read_job([name, None, [LEASE_ID], {}]).func is found


def test_each_run_queue_has_its_job() -> None:
    """Each of the two run queues uses one of the two jobs, under the name that `rq info` shows."""
    assert {queue.function for queue in run_queue.RUN_QUEUES} == {PARTIAL_FIT, PREDICT}
    assert {PARTIAL_FIT, PREDICT} == {"keepfit_workers.jobs.partial_fit", "keepfit_workers.jobs.predict"}
    assert set(FUNCTIONS) == {PARTIAL_FIT, PREDICT, "workers.jobs.partial_fit", "workers.jobs.predict"}


@pytest.mark.parametrize("name", sorted(FORMER_NAMES))
def test_a_job_of_a_gateway_of_0_1_is_accepted(settings: Settings, name: str) -> None:
    """A lease under the job's former name is dequeued and runs the same function as one under today's name."""
    connection = redis_clients.queue_sync(settings)
    rq_jobs.enqueue(connection, name, LEASE_ID)
    queue = rq_jobs.queue_of(connection)
    found = rq_jobs.LeaseQueue.dequeue_any(
        [queue], None, connection=connection, job_class=rq_jobs.LeaseJob, serializer=rq_jobs.SERIALIZER
    )
    assert found is not None
    job = found[0]
    assert (job.id, job.func_name, job.args) == (LEASE_ID, name, [LEASE_ID])
    assert job.func is read_job([FORMER_NAMES[name], None, [LEASE_ID], {}]).func


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "workers.jobs.process.start",
        "workers.jobs.queues",
        "keepfit_workers.learning.learn",
        "workers.jobs.partial_fit ",
        "workers.jobs.partial_fit\0",
        "Workers.jobs.partial_fit",
        "",
        None,
        1,
        [PARTIAL_FIT],
        {"name": PARTIAL_FIT},
    ],
    ids=repr,
)
def test_no_other_function_runs(name: Any) -> None:
    """A job with any other function name is refused when its function is looked up, before any import."""
    job = read_job([name, None, ["true"], {}])
    with pytest.raises(RefusedJobError, match="which keepfit does not run"):
        job.func  # noqa: B018 - a worker reads this property first
    with pytest.raises(RefusedJobError):
        job.perform()


def test_a_job_created_by_rq_is_refused() -> None:
    """The same list applies to jobs created with RQ's own methods instead of being read from Redis."""
    created = LeaseJob.create(os.system, args=("true",), id=LEASE_ID, connection=UNCONNECTED, serializer=SERIALIZER)
    renamed = LeaseJob.create(PREDICT, args=(LEASE_ID,), id=LEASE_ID, connection=UNCONNECTED, serializer=SERIALIZER)
    assert callable(renamed.func)
    renamed.func_name = "os.system"
    for job in (created, renamed):
        with pytest.raises(RefusedJobError):
            job.func  # noqa: B018 - a worker reads this property first


@pytest.mark.parametrize("instance", [{}, [], "", 0, False, {"py/object": "os.system"}, "workers.jobs"], ids=repr)
def test_methods_of_instances_do_not_run(instance: Any) -> None:
    """A job on an instance is refused, also if the method has the name of a lease job."""
    with pytest.raises(RefusedJobError):
        read_job([PREDICT, instance, [LEASE_ID], {}]).func  # noqa: B018 - a worker reads this property first


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95",
        b"cos\nsystem\n(S'true'\ntR.",
        b"[]",
        b"null",
        b'["os.system"]',
        b"\xff\xfe",
    ],
)
def test_pickles_and_garbage_are_not_read(data: bytes) -> None:
    """A record that is not the expected JSON, such as a pickle, cannot be read as a job."""
    with pytest.raises(DeserializationError):
        read_job(data).func  # noqa: B018 - a worker reads this property first


BOGUS = {
    "timeout": b"soon",
    "result_ttl": b"-1",
    "ttl": b"x",
    "status": b"bogus",
    "created_at": b"yesterday",
    "enqueued_at": b"\xff",
    "origin": b"other",
    "dependency_ids": b"{",
    "dependency_id": b"\xff",
    "allow_dependency_failures": b"x",
    "enqueue_at_front": b"x",
    "number_of_retries": b"x",
    "retries_left": b"1000000",
    "retry_intervals": b"[",
    "enqueue_at_front_on_retry": b"x",
    "repeats_left": b"1000000",
    "repeat_intervals": b"[1]",
    "rate_limit_key": b"key",
    "rate_limit_concurrency": b"0",
    "group_id": b"group",
    "webhooks": b"[{}]",
    "exc_info": b"\xff",
    "success_callback_timeout": b"x",
    "meta": b"cos\nsystem\n(Vtrue\ntR.",
    "result": b"cos\nsystem\n(Vtrue\ntR.",
}


@pytest.mark.parametrize("name", [*BOGUS, "all"])
def test_other_fields_of_a_record_are_ignored(name: str) -> None:
    """Times, counts, retries, repeats, groups, limits and pickles in a record have no effect."""
    plain = read_job([PREDICT, None, [LEASE_ID], {}])
    job = read_job([PREDICT, None, [LEASE_ID], {}], **(BOGUS if name == "all" else {name: BOGUS[name]}))
    assert (job.timeout, job.result_ttl, job.failure_ttl, job.origin) == (-1, 10, 3600, redis_keys.QUEUE)
    assert job.meta == {}
    assert job._result is None
    assert not job.should_retry
    assert not job.has_rate_limit
    compared = vars(plain).keys() - {"created_at", "connection", "log"}
    assert {key: vars(job)[key] for key in compared} == {key: vars(plain)[key] for key in compared}
    assert callable(job.func)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ([], {}),
        (["f" * 32], {}),
        ([LEASE_ID, LEASE_ID], {}),
        ([LEASE_ID], {"lease": LEASE_ID}),
        ([], {"lease": LEASE_ID}),
        ([[LEASE_ID]], {}),
        ([None], {}),
        (LEASE_ID, {}),
        ({"lease": LEASE_ID}, {}),
        ([LEASE_ID], []),
        ([LEASE_ID], None),
    ],
    ids=str,
)
def test_a_job_has_its_own_lease_as_its_only_argument(args: Any, kwargs: Any) -> None:
    """The only argument is the job's id: other leases, more arguments and other types are refused."""
    with pytest.raises(RefusedJobError):
        read_job([PREDICT, None, args, kwargs]).perform()


@pytest.mark.parametrize("name", ["lease", "A" * 32, "0" * 31, "0" * 33, "g" * 32])
def test_a_job_must_have_the_id_of_a_lease(name: str) -> None:
    """An id in any other form is refused, whatever the record contains."""
    job = LeaseJob(name, connection=UNCONNECTED, serializer=SERIALIZER)
    job.restore({b"data": json.dumps([PREDICT, None, [name], {}]).encode()})
    with pytest.raises(RefusedJobError, match="does not have the id of a lease"):
        job.check()


def test_a_record_that_inflates_too_far_is_refused() -> None:
    """A small record that inflates to 50 MB is refused without inflating it."""
    bomb = zlib.compress(json.dumps([PREDICT, None, [LEASE_ID], {"a": "b" * 50_000_000}]).encode())
    job = LeaseJob(LEASE_ID, connection=UNCONNECTED, serializer=SERIALIZER)
    tracemalloc.start()
    job.restore({b"data": bomb})
    with pytest.raises(RefusedJobError):
        job.check()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_refusal_message_is_short_and_one_line() -> None:
    """The message about a refused job has no line breaks and a bounded length."""
    with pytest.raises(RefusedJobError) as refusal:
        read_job(["x\n" * 200, None, [LEASE_ID], {}]).check()
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 250


CALLBACKS: list[tuple[str, Callable[[Job], Any]]] = [
    ("success_callback", lambda job: execute_success_callback(job, TimerDeathPenalty, None)),
    (
        "failure_callback",
        lambda job: execute_failure_callback(job, TimerDeathPenalty, ValueError, ValueError("x"), None),
    ),
    ("stopped_callback", lambda job: execute_stopped_callback(job, TimerDeathPenalty)),
]


@pytest.mark.parametrize(("name", "execute"), CALLBACKS, ids=[name for name, _ in CALLBACKS])
def test_callbacks_do_not_run(name: str, execute: Callable[[Job], Any]) -> None:
    """A callback named in the record, or passed to RQ's own create, is ignored."""
    calls.clear()
    path = f"{mark.__module__}.mark"
    job = read_job([PREDICT, None, [LEASE_ID], {}], **{f"{name}_name": path.encode()})
    assert not getattr(job, f"_{name}_name")
    setattr(job, f"_{name}_name", path)
    assert getattr(job, name) is None
    execute(job)
    on: dict[str, Any] = {f"on_{name.removesuffix('_callback')}": Callback(mark)}
    created = LeaseJob.create(PREDICT, connection=UNCONNECTED, serializer=SERIALIZER, **on)
    assert getattr(created, name) is None
    execute(created)
    assert calls == []


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_webhooks_are_not_sent(monkeypatch: pytest.MonkeyPatch, status: Literal["finished", "failed"]) -> None:
    """A webhook in the record is not called, whether the job finished or failed."""
    calls.clear()
    monkeypatch.setattr(Webhook, "send", mark)
    webhook = Webhook("http://127.0.0.1:1/", status)
    job = read_job([PREDICT, None, [LEASE_ID], {}], webhooks=json.dumps([webhook.to_dict()]).encode())
    assert not job.webhooks
    job.webhooks = [webhook]
    job.send_webhooks(JobStatus(status), exc_string="x")
    assert calls == []


def test_the_queue_uses_json_and_lease_jobs() -> None:
    """The queue has keepfit's name, the JSON serializer, and LeaseJob as its job class."""
    created = rq_jobs.queue_of(UNCONNECTED)
    assert SERIALIZER is JSONSerializer
    assert created.name == redis_keys.QUEUE
    assert created.key == redis_keys.RQ_QUEUE
    assert created.serializer is JSONSerializer
    assert created.job_class is LeaseJob
    assert type(created) is LeaseQueue


def test_enqueueing_writes_the_leases_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job has the lease's id, a JSON record, and times to live, so that results do not accumulate."""
    enqueued: list[LeaseJob] = []

    def enqueue_job(_: Any, job: LeaseJob, **__: Any) -> LeaseJob:
        enqueued.append(job)
        return job

    monkeypatch.setattr("rq.Queue.enqueue_job", enqueue_job)
    rq_jobs.enqueue(UNCONNECTED, PREDICT, LEASE_ID)
    (job,) = enqueued
    assert type(job) is LeaseJob
    assert job.id == LEASE_ID
    assert json.loads(job.data) == [PREDICT, None, [LEASE_ID], {}]
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (-1, 10, 3600)
    assert job.description == "predict lease"

"""RQ as keepfit uses it: whatever stands in the queue, a worker runs nothing but the two jobs."""

import importlib
import inspect
import json
import os
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

from keepfit import keys, queue, rooms
from keepfit.queue import FUNCTIONS, PARTIAL_FIT, PREDICT, SERIALIZER, LeaseJob, RefusedJobError

# Never connected to: jobs are made and read here, not enqueued.
NOWHERE = Redis("127.0.0.1", 1)

ran: list[str] = []


def mark(*_: Any, **__: Any) -> None:
    """Note that something ran which must not run."""
    ran.append("ran")


def restored(data: Any, **fields: bytes) -> LeaseJob:
    """Job as a worker reads it from Redis, whatever somebody wrote there."""
    job = LeaseJob("lease-id", connection=NOWHERE, serializer=SERIALIZER)
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    job.restore({b"data": zlib.compress(raw), **{name.encode(): value for name, value in fields.items()}})
    return job


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_names_are_real_jobs(name: str) -> None:
    """Each name that a gateway may enqueue is a function of workers.jobs that takes a lease."""
    module, _, function = name.rpartition(".")
    assert module == "workers.jobs"
    found = getattr(importlib.import_module(module), function)
    assert inspect.isfunction(found)
    assert found.__module__ == "workers.jobs"
    assert list(inspect.signature(found).parameters) == ["lease"]
    assert restored([name, None, ["lease"], {}]).func is found


def test_every_room_has_its_job() -> None:
    """The two waiting rooms use one of the two jobs each, under the names that `rq info` shows."""
    assert {room.function for room in rooms.ROOMS} == {PARTIAL_FIT, PREDICT}
    assert {PARTIAL_FIT, PREDICT} == FUNCTIONS == {"workers.jobs.partial_fit", "workers.jobs.predict"}


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "workers.jobs.process.start",
        "workers.jobs.rooms",
        "workers.learning.learn",
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
    """A job that names anything else is refused when its function is looked up, before anything is imported."""
    job = restored([name, None, ["true"], {}])
    with pytest.raises(RefusedJobError, match="which keepfit does not run"):
        job.func  # noqa: B018 - what a worker looks up first
    with pytest.raises(RefusedJobError):
        job.perform()


def test_a_job_is_refused_however_it_is_made() -> None:
    """Jobs made by RQ's own ways, not read from Redis, are held to the same list."""
    created = LeaseJob.create(os.system, args=("true",), connection=NOWHERE, serializer=SERIALIZER)
    renamed = LeaseJob.create(PREDICT, args=("lease",), connection=NOWHERE, serializer=SERIALIZER)
    assert callable(renamed.func)
    renamed.func_name = "os.system"
    for job in (created, renamed):
        with pytest.raises(RefusedJobError):
            job.func  # noqa: B018 - what a worker looks up first


@pytest.mark.parametrize("instance", [{}, [], "", 0, False, {"py/object": "os.system"}, "workers.jobs"], ids=repr)
def test_methods_of_instances_do_not_run(instance: Any) -> None:
    """A job on an instance is refused, also where the method has the name of a job."""
    with pytest.raises(RefusedJobError):
        restored([PREDICT, instance, ["lease"], {}]).func  # noqa: B018 - what a worker looks up first


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
    """A record that is not our JSON, a pickle among them, cannot be read as a job."""
    with pytest.raises(DeserializationError):
        restored(data).func  # noqa: B018 - what a worker looks up first


def test_pickled_meta_and_result_are_not_read() -> None:
    """Meta and result of a record are JSON or nothing: RQ's default would have unpickled them at the first look."""
    pickled = b"cos\nsystem\n(Vtrue\ntR."
    job = restored([PREDICT, None, ["lease"], {}], meta=pickled, result=pickled)
    assert job.meta == {"unserialized": pickled}
    assert job._result == "Unserializable return value"


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
    """A callback named in the record, or given to RQ's own create, is as good as none."""
    ran.clear()
    path = f"{mark.__module__}.mark"
    job = restored([PREDICT, None, ["lease"], {}], **{f"{name}_name": path.encode()})
    assert getattr(job, f"_{name}_name") == path, "the record was not read, so nothing is shown"
    assert getattr(job, name) is None
    execute(job)
    on: dict[str, Any] = {f"on_{name.removesuffix('_callback')}": Callback(mark)}
    made = LeaseJob.create(PREDICT, connection=NOWHERE, serializer=SERIALIZER, **on)
    assert getattr(made, name) is None
    execute(made)
    assert ran == []


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_webhooks_are_not_sent(monkeypatch: pytest.MonkeyPatch, status: Literal["finished", "failed"]) -> None:
    """An address in the record is not called, whatever became of the job."""
    ran.clear()
    monkeypatch.setattr(Webhook, "send", mark)
    webhook = Webhook("http://127.0.0.1:1/", status)
    job = restored([PREDICT, None, ["lease"], {}], webhooks=json.dumps([webhook.to_dict()]).encode())
    assert len(job.webhooks) == 1, "the record was not read, so nothing is shown"
    job.send_webhooks(JobStatus(status), exc_string="x")
    assert ran == []


def test_the_queue_speaks_json_and_lease_jobs_only() -> None:
    """The one queue has our name, JSON as its language, and our class for its jobs."""
    made = queue.queue_of(NOWHERE)
    assert SERIALIZER is JSONSerializer
    assert made.name == keys.QUEUE
    assert made.key == keys.RQ_QUEUE
    assert made.serializer is JSONSerializer
    assert made.job_class is LeaseJob


def test_enqueueing_writes_the_leases_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's id is the lease's, its record is JSON, and it does not pile up."""
    enqueued: list[LeaseJob] = []

    def enqueue_job(_: Any, job: LeaseJob, **__: Any) -> LeaseJob:
        enqueued.append(job)
        return job

    monkeypatch.setattr("rq.Queue.enqueue_job", enqueue_job)
    queue.enqueue(NOWHERE, PREDICT, "lease-id")
    (job,) = enqueued
    assert type(job) is LeaseJob
    assert job.id == "lease-id"
    assert json.loads(job.data) == [PREDICT, None, ["lease-id"], {}]
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (900, 10, 3600)
    assert job.description == "predict lease"

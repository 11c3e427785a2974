"""A process dies at each failpoint and others continue: nothing is lost and nothing is done twice."""

import ast
import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.cli import main
from keepfit.errors import SettingsError
from keepfit.jobs import messages, rq_jobs, run_queue
from keepfit.jobs.messages import WorkerRequest
from keepfit.model.bundle import Bundle
from keepfit.model.serialization import unseal
from keepfit.observability import failpoints
from keepfit.recipe import recipe
from keepfit.restore.bulk import ModelFilter, restore_many
from keepfit.restore.requests import RestoreRequest
from keepfit.rowlog.row_log import Call, open_log
from keepfit.rows import shaping
from keepfit.security import envelope
from keepfit.settings import Settings
from keepfit.snapshots.save import path_of
from keepfit.store import inbox, pull_jobs
from keepfit.store.pull_jobs import PullJobs, PullRequest
from keepfit_snapshotter.run import run_once
from keepfit_workers import context, sweep
from tests import servers
from tests.conftest import SHOES_RECIPE
from tests.factories import SHOES, SIZES, Workshop, workshop
from tests.faults import acts
from tests.faults.check import differences
from tests.faults.conftest import LEASE_TTL_S

LEASE = "first"
KILLED = -signal.SIGKILL
ROOT = Path(__file__).parents[2]

LEARNING = ["lease.claimed", "worker.claimed", "worker.fitted", "commit.sealed", "commit.done", "lease.releasing"]
HANDING_OVER = ["worker.unlocking", "worker.unlocked", "lease.released"]
ANSWERING = ["answers.computed"]
REAPING = ["reap.unlocked"]
ACCEPTING = ["accept.begun", "accept.done", "hint.begun", "hint.pushed"]
WRITING_AHEAD = ["accept.written_ahead"]
LABELLING = ["rows.kept", "labels.begun", "labels.done"]
REGISTERING = ["model.registered", "model.unregistered"]
SAVING = ["snapshot.read", "snapshot.begun", "snapshot.stored", "snapshot.committed", "snapshot.noted"]
COLLECTING = ["garbage.aborted", "garbage.deleted"]
RESTORING = ["restore.fetched", "restore.replayed", "restore.numbered", "restore.installed"]
REPLAYING = ["restore.remembered"]
RETURNING = ["restore.rewound"]
RECORDING = ["rowlog.accepted", "rowlog.written"]
COMPACTING = ["rowlog.merged", "rowlog.cleared"]
PULLING = ["pull.read", "pull.accepted", "pull.noted"]
# tests/keepfit/transfer/test_first_version.py kills a worker at each of these.
UPLOADING = ["upload.begun", "upload.stored", "upload.saved", "upload.registered"]
TESTED = [
    *LEARNING, *HANDING_OVER, *ANSWERING, *REAPING, *ACCEPTING, *WRITING_AHEAD, *LABELLING,
    *REGISTERING, *SAVING, *COLLECTING, *RESTORING, *REPLAYING, *RETURNING, *RECORDING, *COMPACTING, *PULLING,
    *UPLOADING,
]  # fmt: skip


def recover(settings: Settings, done: Callable[[], bool]) -> None:
    """Sweep and execute leases, as supervisor and another worker do, until `done` is true and no lease is left.

    A lease that is left would serve the rows of the next test, whose gateway then registers none.
    """
    worker = context.start(settings, "second")
    store = redis_clients.store_sync(settings)

    def sweep_and_work() -> bool:
        # Sweep now, and not only five seconds after the last sweep.
        store.delete(redis_keys.SWEEP)
        sweep.sweep(store, worker.queue, settings.lease_ttl_s)
        waiting = rq_jobs.queue_of(worker.queue)
        for job_id in waiting.get_job_ids():
            job = rq_jobs.LeaseJob.fetch(job_id, connection=worker.queue, serializer=rq_jobs.SERIALIZER)
            waiting.remove(job_id)
            job.func(job_id)
        return done() and not worker.queue.exists(redis_keys.LEASES)

    try:
        servers.wait_until(sweep_and_work, "the recovery")
    finally:
        store.close()
        worker.close()
        context._current = None


def learned(shop: Workshop, model_hash: str) -> bool:
    """Return whether a model has no pending requests."""
    accepted, done = shop.redis.hmget(redis_keys.state(model_hash), "accepted", "learned")  # type: ignore[misc]
    return bool(accepted == done)


def push(shop: Workshop, queue: run_queue.RunQueue, *entries: str | bytes) -> None:
    """Push entries to a run queue and enqueue a lease for them."""
    redis_scripts.run(shop.redis, run_queue.push(queue, LEASE, LEASE_TTL_S, entries, requests_max=10))


async def check_learned(shop: Workshop, model_hash: str, requests: list[tuple[list[Any], list[float]]]) -> None:
    """Assert that the live bundle equals the result of a plain loop over the requests."""
    shoes_recipe = recipe.parse(SHOES_RECIPE)
    expected = Bundle.new(shoes_recipe)
    for X, y in requests:
        expected.partial_fit(shaping.shape(shoes_recipe, X, y, learning=True))
    _, bundle = unseal(shop.data(model_hash), shop.keyring, shoes_recipe, model_hash)
    assert differences(bundle, expected) == []
    model = await shop.model(model_hash)
    total = sum(len(y) for _, y in requests)
    assert (bundle.rows_seen, model.rows_seen, model.learned, model.inbox) == (total, total, len(requests), 0)
    assert not shop.redis.exists(redis_keys.dead(model_hash))


async def with_pending_requests(shop: Workshop) -> tuple[str, list[tuple[list[Any], list[float]]]]:
    """Make a model with three pending requests of one row each."""
    model_hash = await shop.make()
    requests = [([X], [y]) for X, y in zip(SHOES, SIZES, strict=True)]
    for X, y in requests:
        await shop.accept(model_hash, X, y)
    return model_hash, requests


@pytest.mark.parametrize("point", [*LEARNING, *HANDING_OVER])
async def test_a_worker_can_die_at_any_step_of_learning(deployment: Settings, shop: Workshop, point: str) -> None:
    """After the death of a worker at any step, all rows are learned, once and in order."""
    model_hash, requests = await with_pending_requests(shop)
    push(shop, run_queue.LEARN, model_hash)
    act = acts.stop_learning if point in HANDING_OVER else acts.learn
    assert acts.exit_code_of(f"{point}:1:kill", act, deployment, LEASE) == KILLED
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, requests)


@pytest.mark.parametrize("sent", [1, 2, 3])
async def test_a_commit_can_be_interrupted_anywhere(deployment: Settings, shop: Workshop, sent: int) -> None:
    """A worker can die after it has sent the mark, the staged bundle or the commit, and nothing after it."""
    model_hash, requests = await with_pending_requests(shop)
    push(shop, run_queue.LEARN, model_hash)
    assert acts.exit_code_of("", acts.learn_torn, deployment, LEASE, sent) == KILLED
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, requests)


@pytest.mark.parametrize("point", ["worker.claimed", "worker.fitted", "commit.sealed"])
async def test_a_paused_worker_commits_nothing(deployment: Settings, shop: Workshop, point: str) -> None:
    """A worker that is paused with claimed rows while another one learns them changes nothing when it resumes."""
    model_hash, requests = await with_pending_requests(shop)
    push(shop, run_queue.LEARN, model_hash)
    with acts.child(f"{point}:1:stop", acts.learn, deployment, LEASE) as paused:
        servers.wait_until(lambda: _state(paused.pid) == "T", "the pause of the worker")
        recover(deployment, partial(learned, shop, model_hash))
        before = shop.data(model_hash)
        assert paused.pid is not None
        os.kill(paused.pid, signal.SIGCONT)
        paused.join(60)
        assert paused.exitcode == 0
    assert shop.data(model_hash) == before
    await check_learned(shop, model_hash, requests)


def _state(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("point", ANSWERING)
async def test_a_worker_can_die_before_it_sends_its_replies(deployment: Settings, shop: Workshop, point: str) -> None:
    """If a worker dies with a request, another worker answers it with the predictions of the model."""
    model_hash = await shop.learned()
    rows = shaping.shape(recipe.parse(SHOES_RECIPE), SHOES, learning=False)
    request = WorkerRequest(1, "g", model_hash, "predict", (await shop.model(model_hash)).generation, rows)
    push(shop, run_queue.PREDICT, run_queue.make_entry(model_hash, 60, messages.encode(request)))
    assert acts.exit_code_of(f"{point}:1:kill", acts.answer, deployment, LEASE) == KILLED
    assert not shop.redis.exists(redis_keys.replies("g"))
    recover(deployment, lambda: bool(shop.redis.exists(redis_keys.replies("g"))))
    (batch,) = shop.redis.lrange(redis_keys.replies("g"), 0, -1)  # type: ignore[misc]
    shop.redis.delete(redis_keys.replies("g"))
    (answer,) = messages.decode_replies(batch)
    assert (answer.id, answer.result) == (1, await shop.predict(model_hash))


@pytest.mark.parametrize("point", REAPING)
async def test_a_supervisor_can_die_while_it_reaps(deployment: Settings, shop: Workshop, point: str) -> None:
    """The next sweep completes the reaping of a lease that was interrupted, and its rows are learned."""
    model_hash, requests = await with_pending_requests(shop)
    push(shop, run_queue.LEARN, model_hash)
    assert acts.exit_code_of("worker.claimed:1:kill", acts.learn, deployment, LEASE) == KILLED
    assert acts.exit_code_of(f"{point}:1:kill", acts.reap, deployment) == KILLED
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, requests)


# Gateways.


@contextmanager
def gateway(settings: Settings, point: str = "") -> Iterator[str]:
    """Run a gateway in a child and yield its URL; assert that a failpoint, if armed, has killed it at the end."""
    receiver, sender = acts.pipe()
    with acts.child(point, acts.serve, settings, sender) as serving:
        assert receiver.poll(60), "the gateway does not listen"
        yield receiver.recv()
        if point:
            serving.join(30)
            assert serving.exitcode == KILLED
    receiver.close()
    sender.close()


@pytest.fixture(scope="module")
def second(deployment: Settings) -> Iterator[str]:
    """Run a gateway without a failpoint; yield its URL."""
    with gateway(deployment) as url:
        yield url


async def call(url: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Make a call, always with the same Idempotency-Key; status 0 if the gateway dies before it answers."""
    try:
        async with (
            aiohttp.ClientSession(url) as http,
            http.request(method, path, json=body, headers={"Idempotency-Key": "once"}) as response,
        ):
            return response.status, await response.json(content_type=None)
    except aiohttp.ClientConnectionError:
        return 0, None


@pytest.mark.parametrize("point", [*ACCEPTING, *WRITING_AHEAD])
async def test_a_gateway_can_die_at_any_step_of_accepting(
    deployment: Settings, shop: Workshop, second: str, point: str
) -> None:
    """Rows that a client sends again to another gateway are learned once, wherever the first gateway died."""
    model_hash = await shop.make()
    times = 10_000 if point in WRITING_AHEAD else 1
    requests = [(SHOES * times, SIZES * times)]
    body = {"X": requests[0][0], "y": requests[0][1]}
    path = f"/v1/models/{model_hash}/partial_fit"
    with gateway(deployment, f"{point}:1:kill") as first:
        status, answer = await call(first, "POST", path, body)
    # The hint for the workers is sent after the answer to the client.
    assert status in ((0, 202) if point.startswith("hint.") else (0,))
    if status == 202:
        recover(deployment, partial(learned, shop, model_hash))
    again = await call(second, "POST", path, body)
    assert again[0] == 202
    assert again[1]["sequence"] == 1
    assert answer is None or answer["sequence"] == 1
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, requests)


@pytest.mark.parametrize("point", RECORDING)
async def test_a_gateway_can_die_at_any_step_of_logging(
    deployment: Settings, shop: Workshop, tmp_path: Path, point: str
) -> None:
    """Rows that a client sends again are learned once; they are in the row log before the client has its answer."""
    logged = deployment.model_copy(update={"row_log_url": (tmp_path / "log").as_uri()})
    model_hash = await shop.make()
    path, body = f"/v1/models/{model_hash}/partial_fit", {"X": SHOES, "y": SIZES}
    with gateway(logged, f"{point}:1:kill") as first:
        assert await call(first, "POST", path, body) == (0, None)
    rows_log = open_log(logged.row_log_url)
    assert rows_log is not None
    assert len(rows_log.view().calls(model_hash, None)) == (point == "rowlog.written")
    with gateway(logged) as other:
        status, answer = await call(other, "POST", path, body)
        assert (status, answer["sequence"]) == (202, 1)
        found = rows_log.view().calls(model_hash, None)
    assert {(one.origin, one.sequence, one.name) for one in found} == {(1, 1, "c:once")}
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, [(SHOES, SIZES)])


@pytest.mark.parametrize("point", LABELLING)
async def test_a_gateway_can_die_at_any_step_of_keeping_and_labelling(
    deployment: Settings, shop: Workshop, second: str, point: str
) -> None:
    """A predicted row is learned once with its late label, if the client repeats what was not answered."""
    model_hash = await shop.learned()
    path = f"/v1/models/{model_hash}"
    rows, labels = {"X": SHOES[:1], "id": "one"}, {"labels": [{"id": "one", "y": SIZES[0]}]}

    async def predicted(url: str) -> tuple[int, Any]:
        asking = asyncio.create_task(call(url, "POST", f"{path}/predict", rows))
        await asyncio.to_thread(recover, deployment, asking.done)
        return asking.result()

    with gateway(deployment, f"{point}:1:kill") as first:
        if point == "rows.kept":
            assert await predicted(first) == (0, None)
        assert (await predicted(second))[0] == 200
        if point != "rows.kept":
            assert await call(first, "POST", f"{path}/labels", labels) == (0, None)
    status, answer = await call(second, "POST", f"{path}/labels", labels)
    assert (status, answer["accepted"], answer["sequence"]) == (202, 1, 2)
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, [(SHOES, SIZES), (SHOES[:1], SIZES[:1])])


async def test_a_gateway_can_die_while_it_creates_a_model(deployment: Settings, shop: Workshop, second: str) -> None:
    """A model that is only registered exists when its client sends the request again, and learns."""
    body = {"metadata": {"type": "shoes", "made": "twice"}, "recipe": SHOES_RECIPE}
    with gateway(deployment, "model.registered:1:kill") as first:
        assert await call(first, "POST", "/v1/models", body) == (0, None)
    # It is not in Redis and has no snapshot: the gateway asks a worker to restore it, which creates it.
    asking = asyncio.create_task(call(second, "POST", "/v1/models", body))
    await asyncio.to_thread(recover, deployment, asking.done)
    status, model = asking.result()
    assert status == 200
    assert (await call(second, "POST", f"/v1/models/{model['hash']}/partial_fit", {"X": SHOES, "y": SIZES}))[0] == 202
    recover(deployment, partial(learned, shop, model["hash"]))
    await check_learned(shop, model["hash"], [(SHOES, SIZES)])


async def test_a_gateway_can_die_while_it_deletes_a_model(deployment: Settings, shop: Workshop, second: str) -> None:
    """A partly deleted model is deleted when its client sends the request again."""
    model_hash = await shop.learned()
    path = f"/v1/models/{model_hash}"
    with gateway(deployment, "model.unregistered:1:kill") as first:
        assert await call(first, "DELETE", path) == (0, None)
    assert (await call(second, "DELETE", path))[0] == 204
    assert (await call(second, "GET", path))[0] == 404


# Snapshots.


@pytest.mark.parametrize("point", SAVING)
async def test_a_snapshotter_can_die_at_any_step(deployment: Settings, shop: Workshop, point: str) -> None:
    """After the death of a snapshotter at any step, the next pass leaves one committed document with its blob."""
    await run_once(deployment)
    model_hash = await shop.learned()
    assert acts.exit_code_of(f"{point}:1:kill", acts.save, deployment) == KILLED
    # Documents that are committed by then have their blobs.
    for document in await shop.registry.documents(None, model_hash, 10):
        assert envelope.digest_of(shop.storage.get(path_of(document)) or b"") == document["sha256"]
    report = await run_once(deployment)
    assert report.failed == {}
    (document,) = await shop.registry.documents(None, model_hash, 10)
    assert shop.storage.get(path_of(document)) == shop.data(model_hash)
    model = await shop.model(model_hash)
    assert model.snapshot is not None
    assert model.snapshot["sha256"] == document["sha256"]
    assert model_hash not in await shop.store.changed()


@pytest.mark.parametrize("point", COLLECTING)
async def test_garbage_collection_can_die_at_any_step(deployment: Settings, shop: Workshop, point: str) -> None:
    """After a death at any step, the newest snapshot is complete, and the next pass deletes the others."""
    no_retention = deployment.model_copy(
        update={"retention_all_s": 0, "retention_hourly_s": 0, "retention_daily_s": 0, "garbage_grace_s": 0,
                "garbage_entries_max": 10_000}
    )  # fmt: skip
    model_hash = await shop.learned()
    await run_once(deployment)
    await shop.learn(model_hash)
    assert acts.exit_code_of(f"{point}:1:kill", acts.save, no_retention) == KILLED
    (document,) = await shop.registry.documents(None, model_hash, 10)
    assert shop.storage.get(path_of(document)) == shop.data(model_hash)
    assert (await run_once(no_retention)).cleanup_error == ""
    assert [entry.path for entry in shop.storage.list(model_hash[:-1], model_hash)] == [path_of(document)]
    assert await shop.registry.documents(None, model_hash, 10) == [document]


@pytest.mark.parametrize("point", COMPACTING)
async def test_compaction_of_the_row_log_can_die_at_any_step(
    deployment: Settings, shop: Workshop, tmp_path: Path, point: str
) -> None:
    """After a death at any step, all calls exist, and calls that no snapshot covers are always read."""
    logged = deployment.model_copy(update={"row_log_url": (tmp_path / "log").as_uri()})
    rows_log = open_log(logged.row_log_url)
    assert rows_log is not None
    model_hash = await shop.learned()
    at = time.time() - 300
    calls = [Call(model_hash, 1, sequence, at, f"{sequence}", "", (b"rows",)) for sequence in (1, 2, 3)]
    for one in calls:
        rows_log.write([one])
    assert acts.exit_code_of(f"{point}:1:kill", acts.save, logged) == KILLED
    for _ in range(2):
        view = open_log(logged.row_log_url).view()  # type: ignore[union-attr]
        assert {one.sequence for one in view.calls(model_hash, None)} >= {2, 3}
        assert {one.sequence for one in view.calls(model_hash, at)} == {1, 2, 3}
        assert (await run_once(logged)).cleanup_error == ""
    assert {one.sequence for one in rows_log.view().calls(model_hash, None)} == {2, 3}


@pytest.mark.parametrize("point", RESTORING)
async def test_a_restore_can_die_at_any_step(deployment: Settings, shop: Workshop, point: str) -> None:
    """After a death at any step, the next restore restores the model as it was, and the model continues to learn."""
    model_hash = await shop.learned()
    await run_once(deployment)
    before, data = await shop.model(model_hash), shop.data(model_hash)
    shop.lose(model_hash)
    assert acts.exit_code_of(f"{point}:1:kill", acts.restore, deployment, model_hash) == KILLED
    await restore_many(deployment, ModelFilter(hash=model_hash))
    model = await shop.model(model_hash)
    assert (model.version, model.rows_seen, shop.data(model_hash)) == (before.version, before.rows_seen, data)
    assert model.generation > before.generation
    assert await shop.learn(model_hash) == before.version + 1


@pytest.mark.parametrize("point", [*RESTORING, *REPLAYING])
async def test_a_replay_can_die_at_any_step(deployment: Settings, shop: Workshop, tmp_path: Path, point: str) -> None:
    """After a death at any step, the next restore learns the logged rows once and restores their idempotency keys."""
    settings = deployment.model_copy(update={"row_log_url": (tmp_path / "rows").as_uri()})
    async with workshop(settings) as logging:
        model_hash = await logging.learned()
        await run_once(settings)
        model, line = await logging.model(model_hash), redis_scripts.ScriptConnection(logging.store.client)
        requests = [(SHOES, SIZES)]
        for number, (X, y) in enumerate(zip(SHOES, SIZES, strict=True)):
            shaped = shaping.shape(model.recipe, [X], [y], learning=True)
            learn = await inbox.make_request(logging.store.client, model_hash, 1, shaped, f"key-{number}", logged=True)
            _, _, logged = await inbox.accept_logged(line, settings, [learn])
            assert logging.resources.row_log is not None
            logging.resources.row_log.write([call for call, _ in logged])
            requests.append(([X], [y]))
        await line.close()
        logging.lose(model_hash)
        assert acts.exit_code_of(f"{point}:1:kill", acts.restore, settings, model_hash) == KILLED
        await restore_many(settings, ModelFilter(hash=model_hash))
        await check_learned(logging, model_hash, requests)
        assert logging.redis.hlen(redis_keys.new_answers(model_hash, "")) == 3


@pytest.mark.parametrize("point", ["restore.fetched", "restore.numbered", *RETURNING])
async def test_a_rewind_can_die_at_any_step(deployment: Settings, shop: Workshop, point: str) -> None:
    """After a death at any step, the model is unchanged or rewound; a rewound model is its newest snapshot then."""
    model_hash = await shop.learned()
    await run_once(deployment)
    predictions = await shop.predict(model_hash)
    await shop.learn(model_hash, SHOES, [9.0] * 3)
    await run_once(deployment)
    await shop.accept(model_hash)
    assert acts.exit_code_of(f"{point}:1:kill", acts.go_back, deployment, model_hash) == KILLED
    is_rewound = point in RETURNING
    model = await shop.model(model_hash)
    assert (model.version, model.rows_seen, model.inbox) == ((1, 3, 1) if is_rewound else (2, 6, 1))
    if is_rewound:
        # It was marked as changed before the rewind, so the next pass of any snapshotter saves it.
        assert model_hash in await shop.store.changed()
        await run_once(deployment)
    else:
        await restore_many(
            deployment, ModelFilter(hash=model_hash), RestoreRequest(version=1), confirm=lambda plans: True
        )
    shop.lose(model_hash)
    await restore_many(deployment, ModelFilter(hash=model_hash))
    assert (await shop.model(model_hash)).version == 1
    assert await shop.predict(model_hash) == predictions


@pytest.mark.parametrize("point", PULLING)
async def test_a_pull_can_die_at_any_step(deployment: Settings, shop: Workshop, tmp_path: Path, point: str) -> None:
    """After a death at any step, the next process goes on at the chunk, and each row is accepted once, in order."""
    (tmp_path / "shoes.csv").write_text("make,year,y\n" + "".join(f"nike,{year},4\n" for year in range(2000, 2010)))
    settings = deployment.model_copy(update={"pull_prefixes": tmp_path.as_uri()})
    model_hash = await shop.learned()
    model, jobs = await shop.model(model_hash), PullJobs(shop.store.client, 60)
    request = PullRequest(url=(tmp_path / "shoes.csv").as_uri(), rows_per_call=2)
    job = await jobs.create(model_hash, model.metadata, model.origin, request, None)
    assert acts.exit_code_of(f"{point}:3:kill", acts.pull, settings) == KILLED
    assert pull_jobs.release_of(shop.redis, "first") == 1
    assert acts.exit_code_of("", acts.pull, settings) == 0
    done = await jobs.get(job.id)
    assert (done.state, done.calls, done.rows_accepted) == ("done", 5, 10)
    shop.work(model_hash)
    expected = [([["nike", year], ["nike", year + 1]], [4.0, 4.0]) for year in range(2000, 2010, 2)]
    await check_learned(shop, model_hash, [(SHOES, SIZES), *expected])


# The failpoints themselves.


def test_every_failpoint_is_tested_and_used_once() -> None:
    """The list of failpoints equals those in the code, each used once, and a test kills a process at each."""
    reached = []
    for package in ("keepfit", "gateway", "workers", "snapshotter"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.reach":
                    (name,) = node.args
                    assert isinstance(name, ast.Constant)
                    reached.append(name.value)
    assert sorted(reached) == sorted(failpoints.POINTS)
    assert sorted(TESTED) == sorted(failpoints.POINTS)


def test_every_failpoint_is_documented() -> None:
    """docs/operations/reliability.md lists the failpoints with their descriptions."""
    text = (ROOT / "docs/operations/reliability.md").read_text()
    assert dict(re.findall(r"^\| `([a-z_.]+)` \| (.+) \|$", text, re.MULTILINE)) == failpoints.POINTS


def test_a_failpoint_fires_at_its_number() -> None:
    """A failpoint fires at its n-th use, not before, not at another point, and never if it is not armed."""
    assert acts.exit_code_of("worker.claimed:3:kill", acts.reach, "worker.claimed", 2) == 0
    assert acts.exit_code_of("worker.claimed:3:kill", acts.reach, "worker.claimed", 3) == KILLED
    assert acts.exit_code_of("worker.claimed:3:kill", acts.reach, "worker.fitted", 5) == 0
    assert acts.exit_code_of("", acts.reach, "worker.claimed", 5) == 0


def test_a_failpoint_fires_once_among_forked_processes() -> None:
    """Forked processes share the count: a restarted process is not killed by the failpoint of its predecessor."""
    receiver, sender = acts.pipe()
    assert acts.exit_code_of("worker.claimed:2:kill", acts.reach_in_forks, "worker.claimed", sender) == 0
    assert receiver.recv() == [0, KILLED, 0]
    receiver.close()
    sender.close()


@pytest.mark.parametrize("text", ["worker.claimed", "no.such:1:kill", "worker.claimed:0:kill", "worker.claimed:1:sing"])
def test_the_command_line_arms_failpoints_and_refuses_invalid_ones(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line reads KEEPFIT_FAULT_POINT; the error of an invalid value names the valid format."""
    monkeypatch.setenv("KEEPFIT_FAULT_POINT", text)
    with pytest.raises(SettingsError, match="name:nth:action"):
        main.configure(Path(".keepfit"))
    monkeypatch.setenv("KEEPFIT_FAULT_POINT", "worker.claimed:1:kill")
    main.configure(Path(".keepfit"))
    assert failpoints._armed is not None
    failpoints.disarm()

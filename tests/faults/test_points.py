"""A process ends at each named point, others go on: nothing is lost and nothing is done twice."""

import ast
import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
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
from keepfit.store import inbox
from keepfit_snapshotter.run import run_once
from keepfit_workers import context, jobs, sweep
from tests import servers
from tests.conftest import SHOES_RECIPE, SIGNING_KEYS
from tests.factories import SHOES, SIZES, Workshop, workshop
from tests.faults import acts
from tests.faults.check import differences

LEASE = "first"
LEASE_TTL_S = 0.3
KILLED = -signal.SIGKILL
ROOT = Path(__file__).parents[2]

LEARNING = ["lease.claimed", "worker.claimed", "worker.fitted", "commit.sealed", "commit.done", "lease.releasing"]
HANDING_OVER = ["worker.unlocking", "worker.unlocked", "lease.released"]
ANSWERING = ["answers.computed"]
BURYING = ["reap.unlocked"]
ACCEPTING = ["accept.begun", "accept.done", "hint.begun", "hint.pushed"]
WRITING_AHEAD = ["accept.written_ahead"]
REGISTERING = ["model.registered", "model.unregistered"]
SAVING = ["snapshot.read", "snapshot.begun", "snapshot.stored", "snapshot.committed", "snapshot.noted"]
COLLECTING = ["garbage.aborted", "garbage.deleted"]
RESTORING = ["restore.fetched", "restore.replayed", "restore.numbered", "restore.installed"]
REPLAYING = ["restore.remembered"]
RETURNING = ["restore.rewound"]
RECORDING = ["rowlog.accepted", "rowlog.written"]
TENDING = ["rowlog.merged", "rowlog.cleared"]
TESTED = [
    *LEARNING, *HANDING_OVER, *ANSWERING, *BURYING, *ACCEPTING, *WRITING_AHEAD, *REGISTERING, *SAVING, *COLLECTING,
    *RESTORING, *REPLAYING, *RETURNING, *RECORDING, *TENDING,
]  # fmt: skip


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, mongo_server: str) -> Iterator[Settings]:
    """Settings of one deployment for all points, with leases that soon expire."""
    folder = tmp_path_factory.mktemp("points")
    with servers.valkey(folder / "redis") as url:
        yield Settings(
            store_url=url,
            mongo_url=f"{mongo_server}/points",
            snapshot_url=(folder / "snapshots").as_uri(),
            signing_keys=SIGNING_KEYS,
            lease_ttl_s=LEASE_TTL_S,
            port=0,
        )


@pytest.fixture
async def shop(deployment: Settings) -> AsyncIterator[Workshop]:
    """Make models in the deployment."""
    async with workshop(deployment) as opened:
        yield opened


def recover(settings: Settings, done: Callable[[], bool]) -> None:
    """Do what supervisor and another worker do, until all is `done`."""
    here = context.start(settings, "second")
    store = redis_clients.store_sync(settings)

    def go_on() -> bool:
        # Mail is looked for now, and not when five seconds have passed.
        store.delete(redis_keys.SWEEP)
        sweep.sweep(store, here.queue, settings.lease_ttl_s)
        waiting = rq_jobs.queue_of(here.queue)
        for job_id in waiting.get_job_ids():
            job = rq_jobs.LeaseJob.fetch(job_id, connection=here.queue, serializer=rq_jobs.SERIALIZER)
            waiting.remove(job_id)
            (jobs.partial_fit if job.func_name == rq_jobs.PARTIAL_FIT else jobs.predict)(job_id)
        return done()

    try:
        servers.wait_until(go_on, "the work going on")
    finally:
        store.close()
        here.close()
        context._current = None


def learned(shop: Workshop, model_hash: str) -> bool:
    """Tell whether a model has no mail."""
    accepted, done = shop.redis.hmget(redis_keys.state(model_hash), "accepted", "learned")  # type: ignore[misc]
    return bool(accepted == done)


def push(shop: Workshop, room: run_queue.RunQueue, *entries: str | bytes) -> None:
    """Have work wait in a room, and the lease for it sent for."""
    redis_scripts.run(shop.redis, run_queue.push(room, LEASE, LEASE_TTL_S, entries, most=10))


async def check_learned(shop: Workshop, model_hash: str, requests: list[tuple[list[Any], list[float]]]) -> None:
    """Compare the live bundle with a plain loop over the requests."""
    wanted = recipe.parse(SHOES_RECIPE)
    expected = Bundle.new(wanted)
    for X, y in requests:
        expected.partial_fit(shaping.shape(wanted, X, y, learning=True))
    _, bundle = unseal(shop.data(model_hash), shop.keyring, wanted, model_hash)
    assert differences(bundle, expected) == []
    model = await shop.model(model_hash)
    total = sum(len(y) for _, y in requests)
    assert (bundle.rows_seen, model.rows_seen, model.learned, model.inbox) == (total, total, len(requests), 0)
    assert not shop.redis.exists(redis_keys.dead(model_hash))


async def with_mail(shop: Workshop) -> tuple[str, list[tuple[list[Any], list[float]]]]:
    """Make a model with three requests in its inbox, each of one row."""
    model_hash = await shop.make()
    requests = [([X], [y]) for X, y in zip(SHOES, SIZES, strict=True)]
    for X, y in requests:
        await shop.accept(model_hash, X, y)
    return model_hash, requests


@pytest.mark.parametrize("point", [*LEARNING, *HANDING_OVER])
async def test_a_worker_may_die_at_any_step_of_learning(deployment: Settings, shop: Workshop, point: str) -> None:
    """Whichever step a worker dies at, all rows are learned, once and in order."""
    model_hash, requests = await with_mail(shop)
    push(shop, run_queue.LEARN, model_hash)
    act = acts.stop_learning if point in HANDING_OVER else acts.learn
    assert acts.end_of(f"{point}:1:kill", act, deployment, LEASE) == KILLED
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, requests)


@pytest.mark.parametrize("sent", [1, 2, 3])
async def test_a_commit_may_break_off_anywhere(deployment: Settings, shop: Workshop, sent: int) -> None:
    """A worker dies when the mark, the staged bundle or the commit itself is sent, and nothing after it."""
    model_hash, requests = await with_mail(shop)
    push(shop, run_queue.LEARN, model_hash)
    assert acts.end_of("", acts.learn_torn, deployment, LEASE, sent) == KILLED
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, requests)


@pytest.mark.parametrize("point", ["worker.claimed", "worker.fitted", "commit.sealed"])
async def test_a_sleeper_commits_nothing(deployment: Settings, shop: Workshop, point: str) -> None:
    """A worker that sleeps with rows in hand while another learns them changes nothing when it wakes up."""
    model_hash, requests = await with_mail(shop)
    push(shop, run_queue.LEARN, model_hash)
    with acts.child(f"{point}:1:stop", acts.learn, deployment, LEASE) as sleeper:
        servers.wait_until(lambda: _state(sleeper.pid) == "T", "the worker falling asleep")
        recover(deployment, partial(learned, shop, model_hash))
        before = shop.data(model_hash)
        assert sleeper.pid is not None
        os.kill(sleeper.pid, signal.SIGCONT)
        sleeper.join(60)
        assert sleeper.exitcode == 0
    assert shop.data(model_hash) == before
    await check_learned(shop, model_hash, requests)


def _state(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("point", ANSWERING)
async def test_a_worker_may_die_before_its_answers_are_sent(deployment: Settings, shop: Workshop, point: str) -> None:
    """A question whose worker dies is answered by another, with what the model predicts."""
    model_hash = await shop.learned()
    asked = shaping.shape(recipe.parse(SHOES_RECIPE), SHOES, learning=False)
    question = WorkerRequest(1, "g", model_hash, "predict", (await shop.model(model_hash)).generation, asked)
    push(shop, run_queue.PREDICT, run_queue.entry(model_hash, 60, messages.encode(question)))
    assert acts.end_of(f"{point}:1:kill", acts.answer, deployment, LEASE) == KILLED
    assert not shop.redis.exists(redis_keys.replies("g"))
    recover(deployment, lambda: bool(shop.redis.exists(redis_keys.replies("g"))))
    (batch,) = shop.redis.lrange(redis_keys.replies("g"), 0, -1)  # type: ignore[misc]
    shop.redis.delete(redis_keys.replies("g"))
    (answer,) = messages.decode_replies(batch)
    assert (answer.id, answer.result) == (1, await shop.predict(model_hash))


@pytest.mark.parametrize("point", BURYING)
async def test_a_supervisor_may_die_while_it_buries(deployment: Settings, shop: Workshop, point: str) -> None:
    """A worker's lease that is half ended is ended by the next who sweeps, and its rows are learned."""
    model_hash, requests = await with_mail(shop)
    push(shop, run_queue.LEARN, model_hash)
    assert acts.end_of("worker.claimed:1:kill", acts.learn, deployment, LEASE) == KILLED
    assert acts.end_of(f"{point}:1:kill", acts.reap, deployment) == KILLED
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, requests)


# Gateways.


@contextmanager
def gateway(settings: Settings, point: str = "") -> Iterator[str]:
    """Run a gateway in a child; gives its URL. One with a point armed must have died of it by the end."""
    told, tell = acts.pipe()
    with acts.child(point, acts.serve, settings, tell) as serving:
        assert told.poll(60), "the gateway does not listen"
        yield told.recv()
        if point:
            serving.join(30)
            assert serving.exitcode == KILLED
    told.close()
    tell.close()


@pytest.fixture(scope="module")
def second(deployment: Settings) -> Iterator[str]:
    """URL of a gateway that no point ends."""
    with gateway(deployment) as url:
        yield url


async def call(url: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Make a call under the same Idempotency-Key each time; status 0 where the gateway died before it answered."""
    try:
        async with (
            aiohttp.ClientSession(url) as http,
            http.request(method, path, json=body, headers={"Idempotency-Key": "once"}) as response,
        ):
            return response.status, await response.json(content_type=None)
    except aiohttp.ClientConnectionError:
        return 0, None


@pytest.mark.parametrize("point", [*ACCEPTING, *WRITING_AHEAD])
async def test_a_gateway_may_die_at_any_step_of_accepting(
    deployment: Settings, shop: Workshop, second: str, point: str
) -> None:
    """A client that sends its rows again to another gateway has them learned once, whatever the first one did."""
    model_hash = await shop.make()
    times = 10_000 if point in WRITING_AHEAD else 1
    requests = [(SHOES * times, SIZES * times)]
    body = {"X": requests[0][0], "y": requests[0][1]}
    path = f"/v1/models/{model_hash}/partial_fit"
    with gateway(deployment, f"{point}:1:kill") as first:
        status, told = await call(first, "POST", path, body)
    # Only once a client has its answer is anybody told of the rows.
    assert status in ((0, 202) if point.startswith("hint.") else (0,))
    if status == 202:
        recover(deployment, partial(learned, shop, model_hash))
    again = await call(second, "POST", path, body)
    assert again[0] == 202
    assert again[1]["sequence"] == 1
    assert told is None or told["sequence"] == 1
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, requests)


@pytest.mark.parametrize("point", RECORDING)
async def test_a_gateway_may_die_at_any_step_of_logging(
    deployment: Settings, shop: Workshop, tmp_path: Path, point: str
) -> None:
    """A client that sends its rows again has them learned once; they are in the log before it has an answer."""
    logged = deployment.model_copy(update={"row_log_url": (tmp_path / "log").as_uri()})
    model_hash = await shop.make()
    path, body = f"/v1/models/{model_hash}/partial_fit", {"X": SHOES, "y": SIZES}
    with gateway(logged, f"{point}:1:kill") as first:
        assert await call(first, "POST", path, body) == (0, None)
    rows_log = open_log(logged.row_log_url)
    assert rows_log is not None
    assert len(rows_log.view().calls(model_hash, None)) == (point == "rowlog.written")
    with gateway(logged) as other:
        status, told = await call(other, "POST", path, body)
        assert (status, told["sequence"]) == (202, 1)
        found = rows_log.view().calls(model_hash, None)
    assert {(one.origin, one.sequence, one.name) for one in found} == {(1, 1, "c:once")}
    recover(deployment, partial(learned, shop, model_hash))
    await check_learned(shop, model_hash, [(SHOES, SIZES)])


async def test_a_gateway_may_die_while_it_makes_a_model(deployment: Settings, shop: Workshop, second: str) -> None:
    """A model that is registered and nothing else is there when its client asks again, and learns."""
    body = {"metadata": {"type": "shoes", "made": "twice"}, "recipe": SHOES_RECIPE}
    with gateway(deployment, "model.registered:1:kill") as first:
        assert await call(first, "POST", "/v1/models", body) == (0, None)
    # It is in no Redis and has no snapshot: a worker is asked to restore it, and begins anew.
    asking = asyncio.create_task(call(second, "POST", "/v1/models", body))
    await asyncio.to_thread(recover, deployment, asking.done)
    status, model = asking.result()
    assert status == 200
    assert (await call(second, "POST", f"/v1/models/{model['hash']}/partial_fit", {"X": SHOES, "y": SIZES}))[0] == 202
    recover(deployment, partial(learned, shop, model["hash"]))
    await check_learned(shop, model["hash"], [(SHOES, SIZES)])


async def test_a_gateway_may_die_while_it_deletes_a_model(deployment: Settings, shop: Workshop, second: str) -> None:
    """A model that was half deleted is gone when its client asks again."""
    model_hash = await shop.learned()
    path = f"/v1/models/{model_hash}"
    with gateway(deployment, "model.unregistered:1:kill") as first:
        assert await call(first, "DELETE", path) == (0, None)
    assert (await call(second, "DELETE", path))[0] == 204
    assert (await call(second, "GET", path))[0] == 404


# Snapshots.


@pytest.mark.parametrize("point", SAVING)
async def test_a_snapshotter_may_die_at_any_step(deployment: Settings, shop: Workshop, point: str) -> None:
    """Whichever step of a snapshot is the last, the next pass leaves one committed document with its blob."""
    await run_once(deployment)
    model_hash = await shop.learned()
    assert acts.end_of(f"{point}:1:kill", acts.save, deployment) == KILLED
    # What is committed by then has its blob.
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
async def test_a_collector_may_die_at_any_step(deployment: Settings, shop: Workshop, point: str) -> None:
    """Whichever step of a collection is the last, the newest snapshot is whole, and the next pass takes the others."""
    harsh = deployment.model_copy(
        update={"retention_all_s": 0, "retention_hourly_s": 0, "retention_daily_s": 0, "garbage_grace_s": 0,
                "garbage_entries_max": 10_000}
    )  # fmt: skip
    model_hash = await shop.learned()
    await run_once(deployment)
    await shop.learn(model_hash)
    assert acts.end_of(f"{point}:1:kill", acts.save, harsh) == KILLED
    (document,) = await shop.registry.documents(None, model_hash, 10)
    assert shop.storage.get(path_of(document)) == shop.data(model_hash)
    assert (await run_once(harsh)).cleanup_error == ""
    assert [entry.path for entry in shop.storage.list(model_hash[:-1], model_hash)] == [path_of(document)]
    assert await shop.registry.documents(None, model_hash, 10) == [document]


@pytest.mark.parametrize("point", TENDING)
async def test_who_merges_the_log_may_die_at_any_step(
    deployment: Settings, shop: Workshop, tmp_path: Path, point: str
) -> None:
    """Whichever step of merging is the last, all calls are there, and what no snapshot covers is always read."""
    logged = deployment.model_copy(update={"row_log_url": (tmp_path / "log").as_uri()})
    rows_log = open_log(logged.row_log_url)
    assert rows_log is not None
    model_hash = await shop.learned()
    at = time.time() - 300
    calls = [Call(model_hash, 1, sequence, at, f"{sequence}", "", (b"rows",)) for sequence in (1, 2, 3)]
    for one in calls:
        rows_log.write([one])
    assert acts.end_of(f"{point}:1:kill", acts.save, logged) == KILLED
    for _ in range(2):
        view = open_log(logged.row_log_url).view()  # type: ignore[union-attr]
        assert {one.sequence for one in view.calls(model_hash, None)} >= {2, 3}
        assert {one.sequence for one in view.calls(model_hash, at)} == {1, 2, 3}
        assert (await run_once(logged)).cleanup_error == ""
    assert {one.sequence for one in rows_log.view().calls(model_hash, None)} == {2, 3}


@pytest.mark.parametrize("point", RESTORING)
async def test_a_restore_may_die_at_any_step(deployment: Settings, shop: Workshop, point: str) -> None:
    """Whichever step of a restore is the last, the next one brings the model back as it was, to go on learning."""
    model_hash = await shop.learned()
    await run_once(deployment)
    before, data = await shop.model(model_hash), shop.data(model_hash)
    shop.lose(model_hash)
    assert acts.end_of(f"{point}:1:kill", acts.restore, deployment, model_hash) == KILLED
    await restore_many(deployment, ModelFilter(hash=model_hash))
    model = await shop.model(model_hash)
    assert (model.version, model.rows_seen, shop.data(model_hash)) == (before.version, before.rows_seen, data)
    assert model.generation > before.generation
    assert await shop.learn(model_hash) == before.version + 1


@pytest.mark.parametrize("point", [*RESTORING, *REPLAYING])
async def test_a_replay_may_die_at_any_step(deployment: Settings, shop: Workshop, tmp_path: Path, point: str) -> None:
    """Whichever step is the last, the next restore learns the logged rows once, and their keys are known."""
    settings = deployment.model_copy(update={"row_log_url": (tmp_path / "rows").as_uri()})
    async with workshop(settings) as logging:
        model_hash = await logging.learned()
        await run_once(settings)
        model, line = await logging.model(model_hash), redis_scripts.ScriptConnection(logging.store.client)
        requests = [(SHOES, SIZES)]
        for number, (X, y) in enumerate(zip(SHOES, SIZES, strict=True)):
            shaped = shaping.shape(model.recipe, [X], [y], learning=True)
            learn = await inbox.request(logging.store.client, model_hash, 1, shaped, f"key-{number}", logged=True)
            _, _, logged = await inbox.put_to_log(line, settings, [learn])
            assert logging.resources.row_log is not None
            logging.resources.row_log.write([call for call, _ in logged])
            requests.append(([X], [y]))
        await line.close()
        logging.lose(model_hash)
        assert acts.end_of(f"{point}:1:kill", acts.restore, settings, model_hash) == KILLED
        await restore_many(settings, ModelFilter(hash=model_hash))
        await check_learned(logging, model_hash, requests)
        assert (
            logging.redis.exists(*(redis_keys.idempotency(model_hash, f"c:key-{number}") for number in range(3))) == 3
        )


@pytest.mark.parametrize("point", ["restore.fetched", "restore.numbered", *RETURNING])
async def test_a_return_may_die_at_any_step(deployment: Settings, shop: Workshop, point: str) -> None:
    """Whichever step of going back is the last, the model is what it was or has gone back; then that is the newest."""
    model_hash = await shop.learned()
    await run_once(deployment)
    predictions = await shop.predict(model_hash)
    await shop.learn(model_hash, SHOES, [9.0] * 3)
    await run_once(deployment)
    await shop.accept(model_hash)
    assert acts.end_of(f"{point}:1:kill", acts.go_back, deployment, model_hash) == KILLED
    has_gone = point in RETURNING
    model = await shop.model(model_hash)
    assert (model.version, model.rows_seen, model.inbox) == ((1, 3, 1) if has_gone else (2, 6, 1))
    if has_gone:
        # Marked before it went, so a pass saves it, whoever makes one.
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


# The points themselves.


def test_every_point_is_tested_and_stands_in_one_place() -> None:
    """The register names the points that are in the code, each once, and each ends a process in a test above."""
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


def test_every_point_is_documented() -> None:
    """docs/operations/reliability.md lists the points in the register's words."""
    text = (ROOT / "docs/operations/reliability.md").read_text()
    assert dict(re.findall(r"^\| `([a-z_.]+)` \| (.+) \|$", text, re.MULTILINE)) == failpoints.POINTS


def test_a_point_fires_at_its_number() -> None:
    """The second time is not the third; another point counts for nothing; unarmed, nothing ever happens."""
    assert acts.end_of("worker.claimed:3:kill", acts.pass_by, "worker.claimed", 2) == 0
    assert acts.end_of("worker.claimed:3:kill", acts.pass_by, "worker.claimed", 3) == KILLED
    assert acts.end_of("worker.claimed:3:kill", acts.pass_by, "worker.fitted", 5) == 0
    assert acts.end_of("", acts.pass_by, "worker.claimed", 5) == 0


def test_a_point_fires_once_in_a_family() -> None:
    """Processes forked from one count together: a successor is not ended by its predecessor's fault."""
    told, tell = acts.pipe()
    assert acts.end_of("worker.claimed:2:kill", acts.raise_a_family, "worker.claimed", tell) == 0
    assert told.recv() == [0, KILLED, 0]
    told.close()
    tell.close()


@pytest.mark.parametrize("text", ["worker.claimed", "no.such:1:kill", "worker.claimed:0:kill", "worker.claimed:1:sing"])
def test_the_command_line_arms_points_and_refuses_what_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """KEEPFIT_FAULT_POINT is read by the command line, which says what would be right where it cannot be read."""
    monkeypatch.setenv("KEEPFIT_FAULT_POINT", text)
    with pytest.raises(SettingsError, match="name:nth:action"):
        main.configure(Path(".keepfit"))
    monkeypatch.setenv("KEEPFIT_FAULT_POINT", "worker.claimed:1:kill")
    main.configure(Path(".keepfit"))
    assert failpoints._armed is not None
    failpoints.disarm()

"""One pull job in this process: what it accepts, what ends it, and that nothing is accepted twice."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.errors import NotFoundError, UnavailableError
from keepfit.ingest import pull
from keepfit.ingest.pull import Pull
from keepfit.observability import failpoints
from keepfit.recipe import recipe
from keepfit.rowlog.row_log import RowLog, open_log
from keepfit.rows.rows import Rows
from keepfit.settings import Settings
from keepfit.store import pull_jobs
from keepfit.store.models import Install, Store
from keepfit.store.pull_jobs import PullJob, PullJobs, PullRequest

RECIPE = recipe.parse({"estimator": "SGDRegressor", "features": {"year": "number"}})
HASH = "ab" * 32


class Died(BaseException):
    """The process dies."""


class Service:
    """Workers that do nothing, but to restore the models that are `lost`."""

    def __init__(self) -> None:
        self.notified: list[str] = []
        self.restore_model: Callable[[], Any] | None = None

    async def restore(self, model_hash: str) -> None:
        """Restore the lost model."""
        if self.restore_model is None:
            raise NotFoundError("There is no such model.")
        await self.restore_model()

    async def notify(self, model_hash: str) -> None:
        """Note the call."""
        self.notified.append(model_hash)


class Scene:
    """A model, a register, and a folder with a source."""

    def __init__(self, store: Redis, settings: Settings, folder: Path) -> None:
        self.store, self.settings, self.folder = store, settings, folder
        self.service, self.jobs = Service(), PullJobs(store, settings.job_keep_s)
        self.log: RowLog | None = None

    async def create_model(self, generation: int = 1) -> None:
        """Create the model."""
        new = Install(HASH, '{"type":"shoes"}', RECIPE.text(), generation)
        assert await Store(self.store).install(new)

    def write(self, rows: int, name: str = "a.csv", wrong: tuple[int, ...] = ()) -> Path:
        """Write a source."""
        text = "".join(f"{'x' if i in wrong else i},{i / 2}\n" for i in range(rows))
        path = self.folder / name
        path.write_text(f"year,y\n{text}")
        return path

    async def make(self, path: Path, key: str | None = None, **fields: Any) -> PullJob:
        """Make a job."""
        request = PullRequest(url=path.as_uri(), **{"rows_per_call": 10, **fields})
        model = await Store(self.store).describe(HASH)
        assert model is not None
        return await self.jobs.create(HASH, model.metadata, model.origin, request, key)

    async def claim(self, job: PullJob) -> tuple[PullJob, str]:
        """Hold a job as another process."""
        holder = f"process {uuid.uuid4().hex}"
        (claimed,) = await redis_scripts.run_async(self.store, pull_jobs.claim(job.id, holder))
        assert claimed
        return await self.jobs.get(job.id), holder

    def puller(self, claimed: tuple[PullJob, str], stopping: Callable[[], bool] = lambda: False) -> Pull:
        """Return a pull of a claimed job."""
        return Pull(self.store, self.settings, self.service, self.log, *claimed, stopping)

    async def run(self, job: PullJob, stopping: Callable[[], bool] = lambda: False) -> PullJob:
        """Run a job in a new process; return what became of it."""
        await self.puller(await self.claim(job), stopping).run()
        return await self.jobs.get(job.id)

    async def pending(self) -> list[list[float]]:
        """Return the values of the pending requests, in order."""
        with redis.Redis.from_url(self.settings.store_url.get_secret_value()) as client:
            entries: Any = client.xrange(redis_keys.inbox(HASH))
        requests = [Rows.decode(fields[b"rows"]) for _, fields in entries]
        return [[float(v) for v in memoryview(rows.numbers).cast("d")] for rows in requests]

    async def release(self) -> None:
        """Do what a supervisor does after the death of the process."""
        with redis.Redis.from_url(self.settings.store_url.get_secret_value()) as client:
            pull_jobs.release_of(client, "process")


@pytest.fixture
async def scene(settings: Settings, tmp_path: Path) -> AsyncIterator[Scene]:
    """Return a scene with a model."""
    folder = tmp_path / "sources"
    folder.mkdir()
    settings = settings.model_copy(update={"pull_prefixes": folder.as_uri()})
    store = redis_clients.store_async(settings)
    made = Scene(store, settings, folder)
    await made.create_model()
    yield made
    await store.aclose()


def chunked(numbers: list[int], size: int = 10) -> list[list[float]]:
    """Return numbers in chunks."""
    return [list(map(float, numbers[i : i + size])) for i in range(0, len(numbers), size)]


async def test_each_chunk_is_a_request(scene: Scene) -> None:
    """The rows are accepted in order, so many at a time, and the job says so."""
    done = await scene.run(await scene.make(scene.write(25)))
    assert (done.state, done.rows_done, done.rows_accepted, done.calls, done.sequence) == ("done", 25, 25, 3, 3)
    assert await scene.pending() == chunked(list(range(25)))
    assert done.ended
    assert HASH in scene.service.notified


@pytest.mark.parametrize("point", ["pull.read", "pull.accepted", "pull.noted"])
@pytest.mark.parametrize("logged", [False, True])
async def test_a_death_between_any_two_steps_accepts_nothing_twice(
    scene: Scene, point: str, logged: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever dies when, the next process goes on at the chunk, and each row is accepted once."""
    if logged:
        scene.log = open_log((tmp_path / "log").as_uri())
    job, deaths = await scene.make(scene.write(60)), 0

    def reach(name: str) -> None:
        if name == point:
            raise Died

    monkeypatch.setattr(failpoints, "reach", reach)
    while deaths < 4:
        with pytest.raises(Died):
            await scene.run(job)
        deaths += 1
        await scene.release()
    monkeypatch.undo()
    done = await scene.run(job)
    assert (done.state, done.rows_accepted, done.calls) == ("done", 60, 6)
    assert await scene.pending() == chunked(list(range(60)))
    if scene.log is not None:
        calls = scene.log.view().calls(HASH, None)
        assert {call.sequence for call in calls} == set(range(1, 7))
        assert {call.name for call in calls} == {""}


async def test_a_process_that_slept_accepts_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that wakes up long after another one went on sends a chunk that is refused."""
    job = await scene.make(scene.write(400))
    claimed = await scene.claim(job)
    sleeper, asleep, awake = scene.puller(claimed), asyncio.Event(), asyncio.Event()
    put = sleeper._put

    async def sleep(request: Any) -> Any:
        asleep.set()
        await awake.wait()
        return await put(request)

    monkeypatch.setattr(sleeper, "_put", sleep)
    first = asyncio.create_task(sleeper.run())
    await asleep.wait()
    await scene.release()
    done = await scene.run(job)
    awake.set()
    assert await first == "lost"
    assert (await scene.jobs.get(job.id)).state == done.state == "done"
    assert await scene.pending() == chunked(list(range(400)))


async def test_rows_that_do_not_fit(scene: Scene) -> None:
    """They are skipped up to `skip_max`, counted and named; one more ends the job before its chunk."""
    path = scene.write(40, wrong=(3, 17, 31))
    done = await scene.run(await scene.make(path, skip_max=3))
    assert (done.state, done.rows_accepted, done.skipped) == ("done", 37, 3)
    assert [one.row for one in done.reasons] == [3, 17, 31]
    assert "'x' is not a number" in done.reasons[0].detail
    failed = await scene.run(await scene.make(path, skip_max=1))
    assert failed.state == "failed"
    assert "2 rows do not fit, and skip_max is 1" in failed.error
    assert (failed.rows_done, failed.rows_accepted) == (10, 9)


async def test_lines_that_are_no_rows_end_the_job_before_a_request(scene: Scene) -> None:
    """What is known to be too much is known before the chunk is sent; and a job that may skip them goes on."""
    path = scene.write(30)
    path.write_text(path.read_text().replace("17,8.5\n", "17,8.5,1\n"))
    failed = await scene.run(await scene.make(path))
    assert "1 rows do not fit, and skip_max is 0. The first: " in failed.error
    assert (failed.state, failed.rows_accepted, failed.rows_done) == ("failed", 0, 0)
    done = await scene.run(await scene.make(path, skip_max=1))
    assert (done.state, done.rows_accepted, done.malformed) == ("done", 29, 1)
    path.write_text("year,y\n1\n2,1,1\n")
    failed = await scene.run(await scene.make(path, skip_max=1))
    assert (failed.state, failed.malformed) == ("failed", 2)
    done = await scene.run(await scene.make(path, skip_max=2))
    assert (done.state, done.rows_accepted, done.malformed) == ("done", 0, 2)


async def test_a_cancelled_job_that_another_process_holds_is_left_to_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that sees the cancellation, and loses the job before it has ended it, ends without an error."""
    job = await scene.make(scene.write(30))
    claimed = await scene.claim(job)
    await scene.jobs.cancel(job.id)
    sleeper = scene.puller(claimed)
    end = sleeper._end

    async def lose(state: Any, error: str = "") -> str:
        await scene.release()
        return await end(state, error)

    monkeypatch.setattr(sleeper, "_end", lose)
    assert await sleeper.run() == "lost"
    assert (await scene.jobs.get(job.id)).state == "running"


async def test_a_process_that_is_to_end_does_not_wait_for_redis(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if all that is left is to store the end; the next process stores it."""
    job, stopped = await scene.make(scene.write(30)), False
    puller = scene.puller(await scene.claim(job), lambda: stopped)
    advance = puller._advance

    async def away(fields: Any = None, **times: Any) -> None:
        nonlocal stopped
        stopped = stopped or bool(times.get("kept_s"))
        if stopped:
            raise UnavailableError("Redis is away.", "Redis is away.")
        await advance(fields, **times)

    monkeypatch.setattr(puller, "_advance", away)
    async with asyncio.timeout(30):
        with pytest.raises(UnavailableError):
            await puller.run()
    await scene.release()
    assert (await scene.run(job)).state == "done"
    assert await scene.pending() == chunked(list(range(30)))


async def test_a_changed_source_ends_the_job(scene: Scene) -> None:
    """A source that changes between chunks is not mixed with what it was."""
    path = scene.write(100)
    job, chunks = await scene.make(path), 0

    def stopping() -> bool:
        nonlocal chunks
        chunks += 1
        return chunks > 8

    left = await scene.run(job, stopping)
    assert left.state == "running"
    assert 0 < left.rows_done < 100
    scene.write(100, wrong=(99,))
    os.utime(path, (1, 1))
    failed = await scene.run(job)
    assert failed.state == "failed"
    assert "The source has changed" in failed.error
    assert failed.rows_done == left.rows_done


async def test_a_replaced_model_ends_the_job(scene: Scene) -> None:
    """A job never learns into another life of its model; a model that only left Redis is restored."""
    first, second = await scene.make(scene.write(30)), await scene.make(scene.write(30, "b.csv"))
    await Store(scene.store).delete(HASH)
    scene.service.restore_model = scene.create_model
    assert (await scene.run(first)).state == "done"
    await Store(scene.store).delete(HASH)
    await scene.create_model(generation=9)
    failed = await scene.run(second)
    assert failed.state == "failed"
    assert "deleted, or created again" in failed.error


async def test_a_cancelled_job_ends_after_its_chunk(scene: Scene) -> None:
    """A job that waits is cancelled at once, a running one where it is."""
    job = await scene.make(scene.write(10))
    assert (await scene.jobs.cancel(job.id)).state == "cancelled"
    running = await scene.make(scene.write(100))
    claimed = await scene.claim(running)
    assert (await scene.jobs.cancel(running.id)).state == "running"
    assert await scene.puller(claimed).run() == "cancelled"
    assert (await scene.jobs.get(running.id)).rows_done < 100
    assert (await scene.jobs.cancel(running.id)).state == "cancelled"


async def test_a_full_inbox_is_waited_for(scene: Scene) -> None:
    """A pull fills a part of the inbox, says that it waits, and goes on when rows are learned."""
    scene.settings = scene.settings.model_copy(update={"inbox_entries_max": 8})
    job = await scene.make(scene.write(100))
    claimed = await scene.claim(job)
    running = asyncio.create_task(scene.puller(claimed).run())
    async with asyncio.timeout(30):
        while not (waits := await scene.jobs.get(job.id)).waiting:  # noqa: ASYNC110 - Redis says it
            await asyncio.sleep(0.01)
        assert len(await scene.pending()) == 2
        assert "inbox is full" in waits.waiting
        while not running.done():
            # Every pending request is learned.
            await scene.store.hset(
                redis_keys.state(HASH), "learned", await scene.store.hget(redis_keys.state(HASH), "accepted")
            )
            await asyncio.sleep(0.01)
    assert await running == "done"
    assert await scene.pending() == chunked(list(range(100)))


async def test_what_is_away_is_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source, a store or a row log that is away delays the job, which says why."""
    job, failures = await scene.make(scene.write(30)), 0
    monkeypatch.setattr(pull, "RETRY_PAUSE_S", 0.01)
    open_source = pull.sources.open_source

    def away(*args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures < 4:
            raise UnavailableError("S3 at 10.0.0.1 is away.", "The storage is away.")
        return open_source(*args, **kwargs)

    monkeypatch.setattr(pull.sources, "open_source", away)
    assert (await scene.run(job)).state == "done"
    assert await scene.pending() == chunked(list(range(30)))


async def test_a_chunk_that_kills_its_processes_ends_the_job(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """After several deaths without progress the job fails, and says so."""
    job = await scene.make(scene.write(30))
    monkeypatch.setattr(failpoints, "reach", lambda name: (_ for _ in ()).throw(Died()))
    for _ in range(pull_jobs.CLAIMS_MAX - 1):
        with pytest.raises(Died):
            await scene.run(job)
        await scene.release()
    failed = await scene.run(job)
    assert failed.state == "failed"
    assert "processes died" in failed.error


async def test_large_chunks_are_staged(scene: Scene) -> None:
    """Rows that no script call takes are written ahead, and accepted once."""
    done = await scene.run(await scene.make(scene.write(100_000), rows_per_call=50_000))
    assert (done.state, done.calls, done.rows_accepted) == ("done", 2, 100_000)


@pytest.mark.parametrize(
    ("path", "error"),
    [("missing.csv", "no such file"), ("link.csv", "symbolic link"), ("folder.csv", "not a regular file")],
)
async def test_what_cannot_be_opened_ends_the_job(scene: Scene, path: str, error: str) -> None:
    """A file that does not exist, a link and what is no file end the job with their reason."""
    (scene.folder / "link.csv").symlink_to(scene.write(3))
    (scene.folder / "folder.csv").mkdir()
    failed = await scene.run(await scene.make(scene.folder / path))
    assert failed.state == "failed"
    assert error in failed.error

"""The register of pull jobs: bounds, holds, pages."""

from collections.abc import AsyncIterator, Iterator

import pytest
import redis
from redis.asyncio import Redis

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.errors import IdempotencyError, NotFoundError, OverloadedError
from keepfit.settings import Settings
from keepfit.store import pull_jobs
from keepfit.store.pull_jobs import PullJobs, PullRequest

HASH = "cd" * 32
REQUEST = PullRequest(url="file:///srv/a.csv")


@pytest.fixture
async def jobs(settings: Settings) -> AsyncIterator[PullJobs]:
    """Return an empty register."""
    store: Redis = redis_clients.store_async(settings)
    yield PullJobs(store, 60)
    await store.aclose()


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    """Return a client as workers have it."""
    with redis_clients.store_sync(settings) as opened:
        yield opened


async def test_a_key_makes_one_job(jobs: PullJobs) -> None:
    """The same key gives the same job, and another request with it is refused."""
    first = await jobs.create(HASH, {"type": "a"}, 1, REQUEST, "key")
    assert await jobs.create(HASH, {"type": "a"}, 1, REQUEST, "key") == first
    assert (await jobs.create(HASH, {"type": "a"}, 1, REQUEST, None)).id != first.id
    assert (await jobs.create("ef" * 32, {"type": "b"}, 1, REQUEST, "key")).id != first.id
    with pytest.raises(IdempotencyError):
        await jobs.create(HASH, {"type": "a"}, 1, PullRequest(url="file:///srv/b.csv"), "key")
    with pytest.raises(NotFoundError):
        await jobs.get("0" * 32)


async def test_jobs_are_bounded(jobs: PullJobs, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many may be open; of ended ones the oldest are forgotten, and those whose record has expired."""
    monkeypatch.setattr(pull_jobs, "OPEN_MAX", 3)
    monkeypatch.setattr(pull_jobs, "JOBS_MAX", 5)
    made = [await jobs.create(HASH, {"type": "a"}, 1, REQUEST, str(i)) for i in range(3)]
    with pytest.raises(OverloadedError, match="3 pull jobs are open"):
        await jobs.create(HASH, {"type": "a"}, 1, REQUEST, "more")
    for i in range(6):
        await jobs.cancel(made[-1].id)
        made.append(await jobs.create(HASH, {"type": "a"}, 1, REQUEST, f"more {i}"))
    assert client.zcard(redis_keys.JOBS) == 5
    assert len(list(client.scan_iter("kf:job:*"))) == 5
    assert 0 < int(client.ttl(redis_keys.job(made[-2].id))) <= 60
    assert client.ttl(redis_keys.job(made[-1].id)) == -1


async def test_one_process_holds_a_job(jobs: PullJobs, client: redis.Redis) -> None:
    """A held job cannot be claimed, until it is released or its hold ends; a former holder changes nothing."""
    job = await jobs.create(HASH, {"type": "a"}, 1, REQUEST, None)
    assert pull_jobs.claimable(client) == [job.id]
    assert redis_scripts.run(client, pull_jobs.claim(job.id, "one 1")) == [1]
    assert redis_scripts.run(client, pull_jobs.claim(job.id, "two 1")) == [0]
    assert pull_jobs.claimable(client) == []
    assert pull_jobs.release_of(client, "two") == 0
    assert pull_jobs.release_of(client, "one") == 1
    assert redis_scripts.run(client, pull_jobs.claim(job.id, "two 1")) == [1]
    late = pull_jobs.advance(job.id, "one 1", {"rows_done": 99})
    assert redis_scripts.run(client, late) == [b"lost"]
    assert redis_scripts.run(client, pull_jobs.advance(job.id, "two 1", {"rows_done": 7})) == [b"held"]
    assert (await jobs.cancel(job.id)).state == "running"
    assert redis_scripts.run(client, pull_jobs.advance(job.id, "two 1")) == [b"cancel"]
    client.zadd(redis_keys.OPEN_JOBS, {job.id: 1})
    assert redis_scripts.run(client, pull_jobs.claim(job.id, "one 2")) == [1]
    end = pull_jobs.advance(job.id, "one 2", {"state": "done"}, kept_s=60)
    assert redis_scripts.run(client, end) == [b"cancel"]
    found = await jobs.get(job.id)
    assert (found.state, found.rows_done, found.claims, bool(found.ended)) == ("done", 7, 3, True)
    assert redis_scripts.run(client, pull_jobs.claim(job.id, "one 3")) == [0]
    client.delete(redis_keys.job(job.id))
    client.zadd(redis_keys.OPEN_JOBS, {job.id: 0})
    assert redis_scripts.run(client, pull_jobs.claim(job.id, "one 4")) == [0]
    assert not client.exists(redis_keys.OPEN_JOBS)


async def test_pages_have_all_jobs_newest_first(jobs: PullJobs) -> None:
    """Pages are full, whatever is left out, and end."""
    made = [(await jobs.create(HASH, {"type": "a"}, i % 2, REQUEST, str(i))).id for i in range(11)]
    created = [(await jobs.get(name)).created for name in made]
    found, after = list[str](), ""
    while True:
        page, following = await jobs.page(lambda job: job.origin == 1, 2, after)
        found += [job.id for job in page]
        if following is None:
            break
        assert len(page) == 2
        after = following
    assert sorted(found) == sorted(made[1::2])
    times = [created[made.index(name)] for name in found]
    assert times == sorted(times, reverse=True)

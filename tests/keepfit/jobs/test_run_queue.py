"""Run queues and leases on a real Valkey server."""

import time
from dataclasses import replace

import pytest
import redis

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.jobs import rq_jobs, run_queue
from keepfit.jobs.run_queue import LEARN, PREDICT, Claim, RunQueue
from keepfit.settings import Settings

TTL_S = 15.0
# Hashes whose first eight digits are even and odd: of two workers the first prefers the even ones, the second the odd.
A, B, C, D = (f"{number:08x}".ljust(64, "0") for number in (2, 3, 4, 5))


@pytest.fixture
def client(settings: Settings) -> redis.Redis:
    """Return a client of the queue's Redis, with two workers registered."""
    connection = redis_clients.queue_sync(settings)
    connection.sadd(redis_keys.RQ_WORKERS, "one", "two")
    return connection


@pytest.fixture
def no_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise both time limits: work is late and leases are inactive only if a test says so, also on a busy machine."""
    monkeypatch.setattr(run_queue, "LATE_MS", 60_000)
    monkeypatch.setattr(run_queue, "BUSY_MS", 600_000)
    monkeypatch.setattr(run_queue, "AWAKE_MS", 600_000)


pytestmark = pytest.mark.usefixtures("no_time_limits")


def push(
    client: redis.Redis, queue: RunQueue, lease: str, *entries: str | bytes, limit: int = 100
) -> tuple[bool, list[int]]:
    """Push entries; return whether `lease` is to be enqueued, and the positions of refused entries."""
    ((enqueue, *refused),) = redis_scripts.run(client, run_queue.push(queue, lease, TTL_S, entries, limit))
    return bool(enqueue), refused


def request(
    client: redis.Redis, lease: str, model: str, *bodies: str, timeout_s: float = 60.0, limit: int = 100
) -> bool:
    """Push requests for one model; return whether `lease` is to be enqueued."""
    entries = [run_queue.make_entry(model, timeout_s, body.encode()) for body in bodies]
    return push(client, PREDICT, lease, *entries, limit=limit)[0]


def claimed(client: redis.Redis, queue: RunQueue, lease: str, worker: str = "one") -> Claim:
    """Claim entries with a valid lease."""
    claim = run_queue.read_claim(redis_scripts.run(client, run_queue.claim(queue, lease, TTL_S, worker))[0])
    assert claim is not None
    return claim


def claim(client: redis.Redis, queue: RunQueue, lease: str, worker: str = "one") -> list[str] | None:
    """Claim entries; return None if the lease is not valid."""
    found = run_queue.read_claim(redis_scripts.run(client, run_queue.claim(queue, lease, TTL_S, worker))[0])
    if found is None:
        return None
    return [(run_queue.split_entry(entry)[1] if queue.requests else entry).decode() for entry in found.entries]


def be_busy(client: redis.Redis, lease: str, worker: str) -> None:
    """Make the last claim of a lease look long ago."""
    client.hset(redis_keys.LEASE_HOLDERS, lease, f"{worker} {round((time.time() - 1000) * 1000)}")


def age_entries(client: redis.Redis, queue: RunQueue) -> None:
    """Make the pending entries look ten minutes old."""
    client.decrby(redis_keys.waiting_since(queue.name), 600_000)


def test_the_first_entry_enqueues_a_lease_and_the_next_one_does_not(client: redis.Redis) -> None:
    """One lease drains all pending entries; entries that it will claim enqueue no further job."""
    assert request(client, "l1", A, "a")
    assert claim(client, PREDICT, "l1") == ["a"]
    assert not request(client, "l2", A, "b")
    assert claim(client, PREDICT, "l1") == ["b"]


def test_late_work_enqueues_another_lease(client: redis.Redis) -> None:
    """Work that waits longer than LATE_MS enqueues one more lease; a claim resets that time."""
    request(client, "l1", A, "a")
    age_entries(client, PREDICT)
    assert request(client, "l2", A, "b")
    claim(client, PREDICT, "l1")
    assert not request(client, "l3", A, "c")


def test_a_pause_of_learning_makes_no_work_late(client: redis.Redis) -> None:
    """Rows wait for the pauses of a lease that answers questions as well; only after these they begin to be late."""
    patient = replace(LEARN, pause_ms=600_000)
    push(client, LEARN, "l1", A, B)
    age_entries(client, LEARN)
    assert not push(client, patient, "l2")[0]
    assert not claimed(client, patient, "l1").is_late
    age_entries(client, LEARN)
    assert push(client, LEARN, "l2")[0]


def test_a_repeated_push_returns_the_same_result(client: redis.Redis) -> None:
    """If the reply to a push was lost, the repeated push returns again that its job is to be enqueued."""
    command = run_queue.push(PREDICT, "l1", TTL_S, [run_queue.make_entry(A, 60, b"a")], 100)
    assert [redis_scripts.run(client, command) for _ in range(2)] == [[[1]], [[1]]]


def test_a_claim_returns_the_request_limits_that_it_applied(client: redis.Redis) -> None:
    """A claim returns the limits of slow models with the entries, so that the worker can raise them again."""
    client.hset(redis_keys.request_limits(PREDICT.name), A, 2)
    request(client, "l1", A, "a")
    request(client, "l1", B, "b")
    assert claimed(client, PREDICT, "l1").limits == [A.encode(), b"2"]


def test_a_claim_returns_the_time_that_is_left(client: redis.Redis) -> None:
    """Each claimed request comes with the seconds until its deadline, by the clock of Redis."""
    request(client, "l1", A, "a", timeout_s=60.0)
    request(client, "l1", B, "b", timeout_s=999_999.999)
    (first, a), (second, b) = map(run_queue.split_entry, claimed(client, PREDICT, "l1").entries)
    assert (a, b) == (b"a", b"b")
    assert 0 < first <= 60.0 < second < 1e6


def test_there_are_no_more_leases_than_workers(client: redis.Redis) -> None:
    """However many entries are pending, and for however long, there are at most as many leases as workers."""
    enqueued = []
    for number in range(10):
        enqueued.append(request(client, f"l{number}", A, "a"))
        age_entries(client, PREDICT)
    assert sum(enqueued) == 2


def test_a_model_is_in_the_learn_queue_once(client: redis.Redis) -> None:
    """A pending model is not added again until it is claimed."""
    push(client, LEARN, "l1", A, A)
    push(client, LEARN, "l2", A)
    assert claim(client, LEARN, "l1") == [A]
    assert claim(client, LEARN, "l1") == []
    push(client, LEARN, "l3", A)
    assert claim(client, LEARN, "l1") == [A]


def test_a_lease_is_released_only_if_no_entry_is_pending(client: redis.Redis) -> None:
    """Release is refused while an entry is pending, so that no entry is left without a lease."""
    request(client, "l1", A, "a")
    assert redis_scripts.run(client, run_queue.release("l1")) == [0]
    claim(client, PREDICT, "l1")
    assert redis_scripts.run(client, run_queue.release("l1")) == [1]
    assert claim(client, PREDICT, "l1") is None


def test_a_spare_lease_may_end_and_the_last_one_may_not(client: redis.Redis) -> None:
    """One of two awake leases may end with `spare` while entries are pending; the last one may not."""
    request(client, "l1", A, "a", "b")
    age_entries(client, PREDICT)
    assert request(client, "l2", B, "c")
    for lease in ("l1", "l2"):
        claim(client, LEARN, lease, lease)
    be_busy(client, "l1", "one")
    assert redis_scripts.run(client, run_queue.release("l2", "spare")) == [0]
    claim(client, LEARN, "l1", "one")
    assert redis_scripts.run(client, run_queue.release("l2", "spare")) == [1]
    claim(client, PREDICT, "l1", "one")
    request(client, "l1", A, "a", "b")
    assert redis_scripts.run(client, run_queue.release("l1", "spare")) == [0]
    assert claim(client, PREDICT, "l1") == ["a", "b"]


def test_models_are_served_in_turn(client: redis.Redis) -> None:
    """A claim takes a bounded number of a slow model's requests; the rest waits behind the requests of other models."""
    client.hset(redis_keys.request_limits(PREDICT.name), A, 2)
    request(client, "l1", A, *(f"slow {i}" for i in range(5)))
    request(client, "l1", B, "quick 1", "quick 2")
    assert claim(client, PREDICT, "l1") == ["slow 0", "slow 1", "quick 1", "quick 2"]
    request(client, "l1", B, "quick 3")
    assert claim(client, PREDICT, "l1") == ["slow 2", "slow 3", "quick 3"]
    assert claim(client, PREDICT, "l1") == ["slow 4"]
    assert claim(client, PREDICT, "l1") == []


def test_each_lease_claims_its_preferred_models_first(client: redis.Redis) -> None:
    """Two active leases divide the models by hash; one without pending preferred models claims those of the other."""
    request(client, "l1", A, "a1")
    assert claim(client, PREDICT, "l1", "one") == ["a1"]
    age_entries(client, PREDICT)
    request(client, "l2", A, "a2")
    age_entries(client, PREDICT)
    request(client, "l2", B, "b1")
    assert set(claim(client, PREDICT, "l2", "two") or ()) == {"b1"}
    request(client, "l3", C, "c1")
    request(client, "l3", D, "d1")
    assert claim(client, PREDICT, "l2", "two") == ["d1"]
    assert claim(client, PREDICT, "l2", "two") == ["a2"]
    assert claim(client, PREDICT, "l1", "one") == ["c1"]


def test_active_leases_share_the_requests_of_a_model(client: redis.Redis) -> None:
    """A claim takes only its share of a model's pending requests, so that another worker gets some as well."""
    request(client, "l1", A, "first")
    claim(client, PREDICT, "l1", "one")
    age_entries(client, PREDICT)
    request(client, "l2", A, "second")
    age_entries(client, PREDICT)
    request(client, "l2", A, "third")
    assert claim(client, PREDICT, "l2", "two") == ["second"]
    request(client, "l3", A, *"abcde")
    assert claim(client, PREDICT, "l1", "one") == ["third", "a", "b"]
    assert claim(client, PREDICT, "l2", "two") == ["c", "d"]


def test_other_leases_claim_the_models_of_an_inactive_lease(client: redis.Redis) -> None:
    """A lease without a claim for AWAKE_MS is busy with a slow call: any lease claims its preferred models."""
    request(client, "l1", A, "a")
    claim(client, PREDICT, "l1", "one")
    age_entries(client, PREDICT)
    request(client, "l2", A, "x")
    age_entries(client, PREDICT)
    assert request(client, "l2", A, "y")
    be_busy(client, "l1", "one")
    request(client, "l3", B, "b")
    assert claim(client, PREDICT, "l2", "two") == ["x", "y", "b"]


def test_a_very_slow_model_is_claimed_alone(client: redis.Redis) -> None:
    """One request of it at a time; after other models it stays in the queue, in its place."""
    client.hset(redis_keys.request_limits(PREDICT.name), A, run_queue.VERY_SLOW)
    request(client, "l1", A, "slow 1", "slow 2")
    request(client, "l1", B, "b1")
    assert claim(client, PREDICT, "l1") == ["slow 1"]
    request(client, "l1", C, "c1")
    assert claim(client, PREDICT, "l1") == ["b1", "c1"]
    assert claim(client, PREDICT, "l1") == ["slow 2"]


@pytest.mark.parametrize(("workers", "busy"), [(1, 1), (2, 1), (3, 2)])
def test_the_last_worker_does_not_claim_a_very_slow_model(client: redis.Redis, workers: int, busy: int) -> None:
    """All workers but one may be busy with it; the last one claims the other models only, until one has finished."""
    client.delete(redis_keys.RQ_WORKERS)
    names = ("one", "two", "three")[:workers]
    client.sadd(redis_keys.RQ_WORKERS, *names)
    client.hset(redis_keys.request_limits(PREDICT.name), A, run_queue.VERY_SLOW)
    for name in names:
        age_entries(client, PREDICT)
        assert request(client, name, A, "slow", "slow")
    for name in names[:busy]:
        assert claim(client, PREDICT, name, name) == ["slow"]
    request(client, "one", B, "quick")
    for name in names[busy:]:
        assert claim(client, PREDICT, name, name) == ["quick"]
        assert claim(client, PREDICT, name, name) == []
    assert claim(client, PREDICT, "one", "one") == ["slow"]
    assert claim(client, PREDICT, "one", "one") == (["quick"] if workers == 1 else ["slow"])


def test_very_slow_models_together_leave_a_worker_to_others(client: redis.Redis) -> None:
    """The last worker claims none of them, also one that no worker is busy with; the answer says which ones wait."""
    client.sadd(redis_keys.RQ_WORKERS, "three")
    slow = (A, C, D)
    client.hset(redis_keys.request_limits(PREDICT.name), mapping=dict.fromkeys(slow, run_queue.VERY_SLOW))
    for name, model in zip(("one", "two", "three"), slow, strict=True):
        age_entries(client, PREDICT)
        assert request(client, name, model, "slow")
    assert [claim(client, PREDICT, name, name) for name in ("one", "two")] == [["slow"], ["slow"]]
    waiting = client.lrange(redis_keys.queued_models(PREDICT.name), 0, -1)
    found = claimed(client, PREDICT, "three", "three")
    assert (found.limits, found.entries) == ([*waiting, run_queue.VERY_SLOW], [])
    client.hset(redis_keys.request_limits(PREDICT.name), B, 1)
    request(client, "one", B, "quick")
    assert claim(client, PREDICT, "three", "three") == ["quick"]


def test_learning_a_very_slow_model_leaves_a_worker_to_questions(client: redis.Redis) -> None:
    """A model whose rows take long to learn counts as one whose questions do: W - 1 workers are busy with either."""
    client.hset(redis_keys.request_limits(LEARN.name), A, run_queue.VERY_SLOW)
    client.hset(redis_keys.request_limits(PREDICT.name), B, run_queue.VERY_SLOW)
    push(client, LEARN, "l1", A, C)
    age_entries(client, LEARN)
    request(client, "l2", B, "slow", "slow")
    age_entries(client, PREDICT)
    assert request(client, "l2", D, "quick")
    learning = claimed(client, LEARN, "l1", "one")
    assert (learning.entries, learning.limits) == ([A.encode()], [A.encode(), run_queue.VERY_SLOW])
    assert claim(client, PREDICT, "l2", "two") == ["quick"]
    assert claim(client, PREDICT, "l2", "two") == []
    assert claim(client, LEARN, "l2", "two") == [C]
    assert claim(client, PREDICT, "l1", "one") == ["slow"]
    push(client, LEARN, "l1", A)
    assert claim(client, LEARN, "l2", "two") == []
    assert claimed(client, LEARN, "l2", "two").limits == [A.encode(), run_queue.VERY_SLOW]


def test_a_worker_in_any_long_call_counts_as_busy(client: redis.Redis) -> None:
    """Also if its model was not known as a very slow one: the last worker claims none, until the other claims again."""
    client.hset(redis_keys.request_limits(PREDICT.name), A, run_queue.VERY_SLOW)
    request(client, "l1", B, "surprise")
    claim(client, PREDICT, "l1", "one")
    be_busy(client, "l1", "one")
    age_entries(client, PREDICT)
    request(client, "l2", A, "slow")
    age_entries(client, PREDICT)
    assert request(client, "l2", A, "slow")
    assert claim(client, PREDICT, "l2", "two") == []
    claim(client, LEARN, "l1", "one")
    assert claim(client, PREDICT, "l2", "two") == ["slow"]


def test_one_more_lease_is_enqueued_at_once_if_all_are_busy(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work need not become late if no lease has claimed for a while; a lease whose job has not begun is on its way."""
    monkeypatch.setattr(run_queue, "BUSY_MS", 60_000)
    request(client, "l1", A, "a")
    assert not push(client, LEARN, "l2", B)[0]
    claim(client, PREDICT, "l1", "one")
    assert not push(client, LEARN, "l2", C)[0]
    be_busy(client, "l1", "one")
    assert push(client, LEARN, "l2", D)[0]
    assert not request(client, "l3", A, "b")
    client.sadd(redis_keys.RQ_WORKERS, "three")
    assert not request(client, "l3", B, "b")
    claim(client, LEARN, "l2", "two")
    assert not request(client, "l3", C, "c")
    be_busy(client, "l2", "two")
    # A lease that goes on after this push needs no other.
    assert redis_scripts.run(client, run_queue.push(LEARN, "l3", TTL_S, [A], late_ms=run_queue.NEVER_MS)) == [[0]]
    assert request(client, "l3", D, "d")


def test_a_new_lease_gets_a_while_before_the_next(client: redis.Redis) -> None:
    """After one more lease was enqueued for late work, the next push does not enqueue another."""
    client.sadd(redis_keys.RQ_WORKERS, "three")
    request(client, "l1", A, "a")
    age_entries(client, PREDICT)
    assert request(client, "l2", A, "b")
    assert not request(client, "l3", A, "c")


def test_a_claim_says_that_late_work_is_left(client: redis.Redis) -> None:
    """A claim that leaves work which was late asks for one more lease, unless every worker has one."""
    push(client, LEARN, "l1", A, B, C)
    assert not claimed(client, LEARN, "l1").is_late
    age_entries(client, LEARN)
    assert claimed(client, LEARN, "l1").is_late
    assert run_queue.enqueue_lease(client, LEARN, TTL_S, late_ms=0)
    push(client, LEARN, "l1", A, B)
    age_entries(client, LEARN)
    assert not claimed(client, LEARN, "l1").is_late
    age_entries(client, LEARN)
    client.sadd(redis_keys.RQ_WORKERS, "three")
    assert claimed(client, LEARN, "l1").is_late
    age_entries(client, LEARN)
    last = claimed(client, LEARN, "l1")
    assert (len(last.entries), last.is_late) == (1, False)


def test_a_claim_tells_what_waits_in_the_other_run_queue(client: redis.Redis) -> None:
    """So a lease turns to it without another round trip; it also learns how many jobs wait for a worker."""
    push(client, LEARN, "l1", A, B)
    client.rpush(redis_keys.RQ_QUEUE, "job")
    found = claimed(client, PREDICT, "l1")
    assert (found.jobs, found.others, found.entries) == (1, 2, [])
    request(client, "l1", C, "c")
    assert claimed(client, LEARN, "l1").others == 1


def test_work_of_either_kind_ends_a_linger(client: redis.Redis) -> None:
    """Also work that comes between the claim that found none and the linger; a model that waits already wakes none."""
    request(client, "l1", A, "a")
    claim(client, PREDICT, "l1")
    woken = claimed(client, PREDICT, "l1").woken
    assert redis_scripts.run(client, run_queue.linger(woken, 0.001)) == [None]
    push(client, LEARN, "l1", A)
    assert redis_scripts.run(client, run_queue.linger(woken, 60.0)) != [None]
    woken = claimed(client, PREDICT, "l1").woken
    push(client, LEARN, "l1", A)
    assert redis_scripts.run(client, run_queue.linger(woken, 0.001)) == [None]
    request(client, "l1", A, "b")
    assert redis_scripts.run(client, run_queue.linger(woken, 60.0)) != [None]


def test_a_lease_of_a_gateway_of_0_1_is_adopted(client: redis.Redis) -> None:
    """A lease in a register of 0.1 becomes valid; it stays there until it is forgotten or expires."""
    former = redis_keys.former_leases(LEARN.name)
    assert not run_queue.adopt(client, "l1", TTL_S)
    assert claim(client, LEARN, "l1") is None
    client.zadd(former, {"l1": (time.time() + 1000) * 1000, "l2": 1})
    assert run_queue.adopt(client, "l1", TTL_S)
    assert claim(client, LEARN, "l1") == []
    assert run_queue.expired(client) == []
    assert client.zrange(former, 0, -1) == [b"l1"]
    redis_scripts.run(client, *run_queue.forget("l1"))
    assert not client.exists(former)


def test_pending_requests_of_a_model_are_limited(client: redis.Redis) -> None:
    """Requests beyond the limit of their model are refused by position; a claim frees capacity for further ones."""
    entries = [run_queue.make_entry(model, 60, b"q") for model in (A, A, B, A)]
    assert push(client, PREDICT, "l1", *entries, limit=2) == (True, [4])
    claim(client, PREDICT, "l1")
    assert push(client, PREDICT, "l2", *entries, limit=2) == (False, [4])


def test_a_request_past_its_deadline_is_dropped(client: redis.Redis) -> None:
    """Its client has timed out: the request is not computed and does not count against the limit."""
    request(client, "l1", A, "old", "older", timeout_s=0.001)
    time.sleep(0.01)
    request(client, "l1", A, "new", "newer", limit=2)
    assert claim(client, PREDICT, "l1") == ["new", "newer"]
    request(client, "l1", A, "late", timeout_s=0.001)
    time.sleep(0.01)
    assert claim(client, PREDICT, "l1") == []
    assert not client.exists(redis_keys.worker_requests(PREDICT.name))


def test_abandoned_requests_return_to_the_front_in_order(client: redis.Redis) -> None:
    """The requests that a dead worker had claimed come next, in their order, each alone; then later ones."""
    request(client, "l1", A, "a", "b")
    assert claim(client, PREDICT, "l1") == ["a", "b"]
    age_entries(client, PREDICT)
    request(client, "l2", A, "c")
    age_entries(client, PREDICT)
    assert request(client, "l2", A, "d")
    run_queue.abandon(client, "l1", died=True)
    run_queue.abandon(client, "l1", died=True)
    assert claim(client, PREDICT, "l1") is None
    assert [claim(client, PREDICT, "l2", "two") for _ in range(4)] == [["a"], ["b"], ["c", "d"], []]


def test_a_poison_request_is_claimed_by_three_workers_at_most(client: redis.Redis) -> None:
    """After its third worker a request is not claimed again, the others are; pop_poison_request() returns it once."""
    request(client, "l1", A, "poison", "innocent")
    assert claim(client, PREDICT, "l1") == ["poison", "innocent"]
    run_queue.abandon(client, "l1", died=True)
    for lease in ("l2", "l3"):
        assert run_queue.pop_poison_request(client) is None
        push(client, PREDICT, lease)
        assert claim(client, PREDICT, lease) == ["poison"]
        run_queue.abandon(client, lease, died=True)
    push(client, PREDICT, "l4")
    assert claim(client, PREDICT, "l4") == ["innocent"]
    assert run_queue.pop_poison_request(client) == b"poison"
    assert run_queue.pop_poison_request(client) is None
    assert client.lrange(redis_keys.put_aside_requests(PREDICT.name), 0, -1) == [b"poison"]


def test_finished_entries_are_not_put_back(client: redis.Redis) -> None:
    """A claim marks the batch before it as finished; only claimed entries are put back."""
    push(client, LEARN, "l1", A, B)
    claim(client, LEARN, "l1")
    assert claim(client, LEARN, "l1") == [B]
    run_queue.abandon(client, "l1", died=True)
    assert client.lrange(redis_keys.queued_models(LEARN.name), 0, -1) == [B.encode()]


def test_renewing_a_lease_keeps_its_claimed_entries(client: redis.Redis) -> None:
    """The heartbeat of a worker in a long call keeps its lease and its claimed entries."""
    push(client, LEARN, "l1", A)
    claim(client, LEARN, "l1")
    assert redis_scripts.run(client, run_queue.renew("l1", TTL_S), run_queue.renew("l2", TTL_S)) == [1, 0]
    run_queue.abandon(client, "l1", died=True)
    assert client.lrange(redis_keys.queued_models(LEARN.name), 0, -1) == [A.encode()]


def test_leases_not_renewed_expire(client: redis.Redis) -> None:
    """expired() returns a lease whose deadline has passed, and not a valid one."""
    entry = run_queue.make_entry(A, 60, b"a")
    redis_scripts.run(client, run_queue.push(PREDICT, "old", 0.0, [entry]))
    client.zadd(redis_keys.LEASES, {"young": (time.time() + 1000) * 1000})
    assert run_queue.expired(client) == ["old"]


def test_enqueue_lease_enqueues_one_job_with_the_id_of_its_lease(client: redis.Redis) -> None:
    """enqueue_lease() creates one RQ job for pending models; the lease is its id and its argument."""
    assert run_queue.enqueue_lease(client, LEARN, TTL_S, [A])
    assert not run_queue.enqueue_lease(client, LEARN, TTL_S)
    (job_id,) = rq_jobs.queue_of(client).get_job_ids()
    job = rq_jobs.LeaseJob.fetch(job_id, connection=client, serializer=rq_jobs.SERIALIZER)
    assert (job.func_name, list(job.args)) == (rq_jobs.PARTIAL_FIT, [job_id])
    assert client.zscore(redis_keys.LEASES, job_id) is not None


def test_an_empty_queue_enqueues_no_lease(client: redis.Redis) -> None:
    """Without pending entries no job is created."""
    assert not run_queue.enqueue_lease(client, PREDICT, TTL_S)
    assert len(rq_jobs.queue_of(client)) == 0


def test_a_drained_queue_leaves_one_key(client: redis.Redis) -> None:
    """After the last entry and the release of the lease, only the times of last claim and wake-up remain."""
    request(client, "l1", A, "a", "b")
    request(client, "l1", B, "c")
    claim(client, PREDICT, "l1")
    claim(client, PREDICT, "l1")
    assert redis_scripts.run(client, run_queue.release("l1")) == [1]
    left = {name.decode() for name in client.keys("kf:*")}
    assert left == {redis_keys.waiting_since(PREDICT.name), redis_keys.WAKE_UPS}

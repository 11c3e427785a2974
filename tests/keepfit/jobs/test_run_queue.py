"""Waiting rooms and leases on a real Valkey."""

import time

import pytest
import redis

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.jobs import rq_jobs, run_queue
from keepfit.jobs.run_queue import LEARN, PREDICT, RunQueue
from keepfit.settings import Settings

TTL_S = 15.0
# Hashes whose first eight digits are even and odd: of two workers, the first and the second one's own.
A, B, C, D = (f"{number:08x}".ljust(64, "0") for number in (2, 3, 4, 5))


@pytest.fixture
def client(settings: Settings) -> redis.Redis:
    """Return a connection to the queue, with two workers registered."""
    connection = redis_clients.queue_sync(settings)
    connection.sadd(redis_keys.RQ_WORKERS, "one", "two")
    return connection


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let work be late, and leases fall asleep, only where a test says so: the machine may be busy."""
    monkeypatch.setattr(run_queue, "LATE_MS", 60_000)
    monkeypatch.setattr(run_queue, "AWAKE_MS", 600_000)


pytestmark = pytest.mark.usefixtures("patience")


def push(
    client: redis.Redis, room: RunQueue, lease: str, *entries: str | bytes, most: int = 100
) -> tuple[bool, list[int]]:
    """Push entries; tell whether `lease` is to be enqueued, and the numbers of those refused."""
    ((rang, *refused),) = redis_scripts.run(client, run_queue.push(room, lease, TTL_S, entries, most))
    return bool(rang), refused


def ask(client: redis.Redis, lease: str, model: str, *asked: str, timeout_s: float = 60.0, most: int = 100) -> bool:
    """Push questions about one model; tell whether `lease` is to be enqueued."""
    entries = [run_queue.make_entry(model, timeout_s, question.encode()) for question in asked]
    return push(client, PREDICT, lease, *entries, most=most)[0]


def claim(
    client: redis.Redis, room: RunQueue, lease: str, worker: str = "one", *, renew: bool = False
) -> list[str] | None:
    """Claim entries; None where the lease is not valid."""
    (answer,) = redis_scripts.run(client, run_queue.claim(room, lease, TTL_S, worker, renew=renew))
    return None if answer[0] == -1 else [entry.decode() for entry in answer[2:]]


def be_late(client: redis.Redis, room: RunQueue) -> None:
    """Make what waits seem to have waited for minutes."""
    client.decrby(redis_keys.waiting_since(room.name), 600_000)


def test_the_first_entry_sends_for_a_lease_and_the_next_joins_it(client: redis.Redis) -> None:
    """One lease drains all that waits; no further job is made for what it will take along."""
    assert ask(client, "l1", A, "a")
    assert claim(client, PREDICT, "l1") == ["a"]
    assert not ask(client, "l2", A, "b")
    assert claim(client, PREDICT, "l1") == ["b"]


def test_another_lease_is_sent_for_when_those_out_are_late(client: redis.Redis) -> None:
    """Work that waits for longer than a round of a lease takes calls for one more worker, and a claim ends the wait."""
    ask(client, "l1", A, "a")
    be_late(client, PREDICT)
    assert ask(client, "l2", A, "b")
    claim(client, PREDICT, "l1")
    assert not ask(client, "l3", A, "c")


def test_a_push_made_again_sends_for_its_lease_again(client: redis.Redis) -> None:
    """Where the answer to a push was lost, the same push says once more that its job is to be enqueued."""
    command = run_queue.push(PREDICT, "l1", TTL_S, [run_queue.make_entry(A, 60, b"a")], 100)
    assert [redis_scripts.run(client, command) for _ in range(2)] == [[[1]], [[1]]]


def test_a_claim_names_what_bounded_it(client: redis.Redis) -> None:
    """With the entries come the slow models among them, so that whoever finds one quick again can say so."""
    client.hset(redis_keys.request_limits(PREDICT.name), A, 2)
    ask(client, "l1", A, "a")
    ask(client, "l1", B, "b")
    (answer,) = redis_scripts.run(client, run_queue.claim(PREDICT, "l1", TTL_S, "one"))
    assert answer == [0, [A.encode(), b"2"], b"a", b"b"]


def test_no_more_leases_than_workers(client: redis.Redis) -> None:
    """However much waits, and for however long, there are at most as many leases as workers."""
    rang = []
    for number in range(10):
        rang.append(ask(client, f"l{number}", A, "a"))
        be_late(client, PREDICT)
    assert sum(rang) == 2


def test_an_entry_of_the_learn_room_waits_once(client: redis.Redis) -> None:
    """A model that waits already is not put in again, until it is claimed."""
    push(client, LEARN, "l1", A, A)
    push(client, LEARN, "l2", A)
    assert claim(client, LEARN, "l1") == [A]
    assert claim(client, LEARN, "l1") == []
    push(client, LEARN, "l3", A)
    assert claim(client, LEARN, "l1") == [A]


def test_a_lease_ends_only_when_nothing_waits(client: redis.Redis) -> None:
    """Release is refused while an entry waits, so that no entry is left without a lease."""
    ask(client, "l1", A, "a")
    assert redis_scripts.run(client, run_queue.release(PREDICT, "l1")) == [0]
    claim(client, PREDICT, "l1")
    assert redis_scripts.run(client, run_queue.release(PREDICT, "l1")) == [1]
    assert claim(client, PREDICT, "l1") is None


def test_a_lease_too_many_may_end_and_the_last_may_not(client: redis.Redis) -> None:
    """Where several leases are out one of them may leave the rest to the others, whatever waits."""
    ask(client, "l1", A, "a")
    be_late(client, PREDICT)
    ask(client, "l2", A, "b")
    assert redis_scripts.run(client, run_queue.release(PREDICT, "l2", "spare")) == [1]
    assert redis_scripts.run(client, run_queue.release(PREDICT, "l1", "spare")) == [0]
    assert claim(client, PREDICT, "l1") == ["a", "b"]


def test_models_are_served_in_turn(client: redis.Redis) -> None:
    """What one claim may take of a slow model is bounded; the rest waits behind the other models' questions."""
    client.hset(redis_keys.request_limits(PREDICT.name), A, 2)
    ask(client, "l1", A, *(f"slow {i}" for i in range(5)))
    ask(client, "l1", B, "quick 1", "quick 2")
    assert claim(client, PREDICT, "l1") == ["slow 0", "slow 1", "quick 1", "quick 2"]
    ask(client, "l1", B, "quick 3")
    assert claim(client, PREDICT, "l1") == ["slow 2", "slow 3", "quick 3"]
    assert claim(client, PREDICT, "l1") == ["slow 4"]
    assert claim(client, PREDICT, "l1") == []


def test_each_lease_takes_its_own_models_first(client: redis.Redis) -> None:
    """Two leases that are awake share the models by hash; one with nothing of its own helps the other."""
    ask(client, "l1", A, "a1")
    assert claim(client, PREDICT, "l1", "one") == ["a1"]
    be_late(client, PREDICT)
    ask(client, "l2", A, "a2")
    be_late(client, PREDICT)
    ask(client, "l2", B, "b1")
    assert set(claim(client, PREDICT, "l2", "two") or ()) == {"b1"}
    ask(client, "l3", C, "c1")
    ask(client, "l3", D, "d1")
    assert claim(client, PREDICT, "l2", "two") == ["d1"]
    assert claim(client, PREDICT, "l2", "two") == ["a2"]
    assert claim(client, PREDICT, "l1", "one") == ["c1"]


def test_leases_that_are_awake_share_a_models_questions(client: redis.Redis) -> None:
    """Of what waits for one model a claim takes its share, so that another worker has something to do as well."""
    ask(client, "l1", A, "first")
    claim(client, PREDICT, "l1", "one")
    be_late(client, PREDICT)
    ask(client, "l2", A, "second")
    be_late(client, PREDICT)
    ask(client, "l2", A, "third")
    assert claim(client, PREDICT, "l2", "two") == ["second"]
    ask(client, "l3", A, *"abcde")
    assert claim(client, PREDICT, "l1", "one") == ["third", "a", "b"]
    assert claim(client, PREDICT, "l2", "two") == ["c", "d"]


def test_a_lease_that_is_busy_leaves_its_models_to_the_others(client: redis.Redis) -> None:
    """A lease that has not come round for long is busy with something slow: what would be its own is anybody's."""
    ask(client, "l1", A, "a")
    claim(client, PREDICT, "l1", "one")
    be_late(client, PREDICT)
    ask(client, "l2", A, "x")
    be_late(client, PREDICT)
    assert ask(client, "l2", A, "y")
    long_ago = round((time.time() - 1000) * 1000)
    client.hset(redis_keys.lease_holders(PREDICT.name), "l1", f"one {long_ago}")
    ask(client, "l3", B, "b")
    assert claim(client, PREDICT, "l2", "two") == ["x", "y", "b"]


def test_no_more_questions_wait_for_a_model_than_may(client: redis.Redis) -> None:
    """Those too many are refused by number, whatever waits for other models; room made by a claim is used again."""
    entries = [run_queue.make_entry(model, 60, b"q") for model in (A, A, B, A)]
    assert push(client, PREDICT, "l1", *entries, most=2) == (True, [4])
    claim(client, PREDICT, "l1")
    assert push(client, PREDICT, "l2", *entries, most=2) == (False, [4])


def test_a_question_past_its_deadline_is_dropped(client: redis.Redis) -> None:
    """Nobody waits for it any more: it is not computed, and does not keep out those who do."""
    ask(client, "l1", A, "old", "older", timeout_s=0.001)
    time.sleep(0.01)
    ask(client, "l1", A, "new", "newer", most=2)
    assert claim(client, PREDICT, "l1") == ["new", "newer"]
    ask(client, "l1", A, "late", timeout_s=0.001)
    time.sleep(0.01)
    assert claim(client, PREDICT, "l1") == []
    assert not client.exists(redis_keys.worker_requests(PREDICT.name))


def test_abandoned_questions_return_to_the_front_in_order(client: redis.Redis) -> None:
    """What a dead worker had in hand is done next, in its order, each by itself; then what came later."""
    ask(client, "l1", A, "a", "b")
    assert claim(client, PREDICT, "l1") == ["a", "b"]
    be_late(client, PREDICT)
    ask(client, "l2", A, "c")
    be_late(client, PREDICT)
    assert ask(client, "l2", A, "d")
    run_queue.abandon(client, "l1")
    run_queue.abandon(client, "l1")
    assert claim(client, PREDICT, "l1") is None
    assert [claim(client, PREDICT, "l2", "two") for _ in range(4)] == [["a"], ["b"], ["c", "d"], []]


def test_a_question_that_kills_its_workers_is_put_aside(client: redis.Redis) -> None:
    """After its third worker a question is not tried again, those beside it are, and it can be taken and answered."""
    ask(client, "l1", A, "poison", "innocent")
    assert claim(client, PREDICT, "l1") == ["poison", "innocent"]
    run_queue.abandon(client, "l1")
    for lease in ("l2", "l3"):
        assert run_queue.pop_poison_request(client) is None
        push(client, PREDICT, lease)
        assert claim(client, PREDICT, lease) == ["poison"]
        run_queue.abandon(client, lease)
    push(client, PREDICT, "l4")
    assert claim(client, PREDICT, "l4") == ["innocent"]
    assert run_queue.pop_poison_request(client) == b"poison"
    assert run_queue.pop_poison_request(client) is None
    assert client.lrange(redis_keys.put_aside_requests(PREDICT.name), 0, -1) == [b"poison"]


def test_entries_done_are_not_put_back(client: redis.Redis) -> None:
    """The next claim lays down the batch before it; only what is in hand is put back."""
    push(client, LEARN, "l1", A, B)
    claim(client, LEARN, "l1")
    assert claim(client, LEARN, "l1") == [B]
    run_queue.abandon(client, "l1")
    assert client.lrange(redis_keys.queued_models(LEARN.name), 0, -1) == [B.encode()]


def test_renewing_a_lease_lays_nothing_down(client: redis.Redis) -> None:
    """The pulse of a worker in a long call keeps its lease and what it has in hand."""
    push(client, LEARN, "l1", A)
    claim(client, LEARN, "l1")
    assert claim(client, LEARN, "l1", renew=True) == []
    run_queue.abandon(client, "l1")
    assert client.lrange(redis_keys.queued_models(LEARN.name), 0, -1) == [A.encode()]


def test_leases_not_renewed_expire(client: redis.Redis) -> None:
    """A lease whose deadline has passed is named as expired, a living one is not."""
    asked = run_queue.make_entry(A, 60, b"a")
    redis_scripts.run(client, run_queue.push(PREDICT, "old", 0.0, [asked]), run_queue.push(LEARN, "young", 60.0, [A]))
    assert run_queue.expired(client) == ["old"]


def test_ring_enqueues_one_job_named_like_its_lease(client: redis.Redis) -> None:
    """Ringing for waiting mail makes one RQ job of ours whose id and argument are the lease."""
    assert run_queue.enqueue_lease(client, LEARN, TTL_S, [A])
    assert not run_queue.enqueue_lease(client, LEARN, TTL_S)
    (job_id,) = rq_jobs.queue_of(client).get_job_ids()
    job = rq_jobs.LeaseJob.fetch(job_id, connection=client, serializer=rq_jobs.SERIALIZER)
    assert (job.func_name, list(job.args)) == (rq_jobs.PARTIAL_FIT, [job_id])
    assert client.zscore(redis_keys.leases(LEARN.name), job_id) is not None


def test_an_empty_room_is_not_rung_for(client: redis.Redis) -> None:
    """Nothing waits, so no job is made."""
    assert not run_queue.enqueue_lease(client, PREDICT, TTL_S)
    assert len(rq_jobs.queue_of(client)) == 0


def test_nothing_is_left_of_a_room_that_is_done(client: redis.Redis) -> None:
    """When all is answered and the lease is over, the room holds nothing but the time of its last claim."""
    ask(client, "l1", A, "a", "b")
    ask(client, "l1", B, "c")
    claim(client, PREDICT, "l1")
    claim(client, PREDICT, "l1")
    assert redis_scripts.run(client, run_queue.release(PREDICT, "l1")) == [1]
    assert [name.decode() for name in client.keys("kf:*")] == [redis_keys.waiting_since(PREDICT.name)]

"""Waiting rooms and leases on a real Valkey."""

import pytest
import redis

from keepfit import connections, keys, queue, rooms, scripts
from keepfit.rooms import LEARN, PREDICT, Room
from keepfit.settings import Settings

TTL_S = 15.0


@pytest.fixture
def client(settings: Settings) -> redis.Redis:
    """Return a connection to the queue, with two workers registered."""
    connection = connections.queue_sync(settings)
    connection.sadd(keys.RQ_WORKERS, "one", "two")
    return connection


def push(client: redis.Redis, room: Room, lease: str, *entries: str) -> bool:
    """Push entries; tell whether `lease` is to be enqueued."""
    (rang,) = scripts.run(client, rooms.push(room, lease, TTL_S, entries))
    return bool(rang)


def claim(client: redis.Redis, room: Room, lease: str, most: int = 100) -> list[bytes] | None:
    """Claim entries; None where the lease is not valid."""
    (answer,) = scripts.run(client, rooms.claim(room, lease, TTL_S, most))
    return None if answer[0] == -1 else answer[1:]


def test_the_first_entry_sends_for_a_lease_and_the_next_joins_it(client: redis.Redis) -> None:
    """One lease drains all that waits; no further job is made for what it will take along."""
    assert push(client, PREDICT, "l1", "a")
    assert claim(client, PREDICT, "l1") == [b"a"]
    assert not push(client, PREDICT, "l2", "b")
    assert claim(client, PREDICT, "l1") == [b"b"]


def test_no_more_leases_than_workers(client: redis.Redis) -> None:
    """However much waits, there are at most as many leases as workers."""
    leases = [f"l{i}" for i in range(10)]
    rang = [push(client, PREDICT, lease, lease) for lease in leases]
    assert sum(rang) == 2


def test_an_entry_of_the_learn_room_waits_once(client: redis.Redis) -> None:
    """A model that waits already is not put in again, until it is claimed."""
    push(client, LEARN, "l1", "m", "m")
    push(client, LEARN, "l2", "m")
    assert claim(client, LEARN, "l1") == [b"m"]
    push(client, LEARN, "l3", "m")
    assert claim(client, LEARN, "l1") == [b"m"]


def test_a_lease_ends_only_when_nothing_waits(client: redis.Redis) -> None:
    """Release is refused while an entry waits, so that no entry is left without a lease."""
    push(client, PREDICT, "l1", "a")
    assert scripts.run(client, rooms.release(PREDICT, "l1")) == [0]
    claim(client, PREDICT, "l1")
    assert scripts.run(client, rooms.release(PREDICT, "l1")) == [1]
    assert claim(client, PREDICT, "l1") is None


def test_abandoned_entries_return_to_the_front_in_order(client: redis.Redis) -> None:
    """What a dead worker had in hand is done next, in its order, before what came later."""
    push(client, PREDICT, "l1", "a", "b")
    assert claim(client, PREDICT, "l1") == [b"a", b"b"]
    push(client, PREDICT, "l2", "c", "d")
    rooms.abandon(client, "l1")
    rooms.abandon(client, "l1")
    assert claim(client, PREDICT, "l1") is None
    push(client, PREDICT, "l3")
    assert claim(client, PREDICT, "l2") == [b"a", b"b", b"c", b"d"]


def test_entries_done_are_not_put_back(client: redis.Redis) -> None:
    """The next claim lays down the batch before it; only what is in hand is put back."""
    push(client, PREDICT, "l1", "a", "b")
    claim(client, PREDICT, "l1", most=1)
    assert claim(client, PREDICT, "l1", most=1) == [b"b"]
    rooms.abandon(client, "l1")
    assert client.lrange(keys.waiting(PREDICT.name), 0, -1) == [b"b"]


def test_renewing_a_lease_lays_nothing_down(client: redis.Redis) -> None:
    """The pulse of a worker in a long call keeps its lease and what it has in hand."""
    push(client, PREDICT, "l1", "a")
    claim(client, PREDICT, "l1")
    assert claim(client, PREDICT, "l1", most=0) == []
    rooms.abandon(client, "l1")
    assert client.lrange(keys.waiting(PREDICT.name), 0, -1) == [b"a"]


def test_leases_not_renewed_expire(client: redis.Redis) -> None:
    """A lease whose deadline has passed is named as expired, a living one is not."""
    scripts.run(client, rooms.push(PREDICT, "old", 0.0, ["a"]), rooms.push(LEARN, "young", 60.0, ["m"]))
    assert rooms.expired(client) == ["old"]


def test_ring_enqueues_one_job_named_like_its_lease(client: redis.Redis) -> None:
    """Ringing for waiting mail makes one RQ job of ours whose id and argument are the lease."""
    assert rooms.ring(client, LEARN, TTL_S, ["m"])
    assert not rooms.ring(client, LEARN, TTL_S)
    (job_id,) = queue.queue_of(client).get_job_ids()
    job = queue.LeaseJob.fetch(job_id, connection=client, serializer=queue.SERIALIZER)
    assert (job.func_name, list(job.args)) == (queue.PARTIAL_FIT, [job_id])
    assert client.zscore(keys.leases(LEARN.name), job_id) is not None


def test_an_empty_room_is_not_rung_for(client: redis.Redis) -> None:
    """Nothing waits, so no job is made."""
    assert not rooms.ring(client, PREDICT, TTL_S)
    assert len(queue.queue_of(client)) == 0

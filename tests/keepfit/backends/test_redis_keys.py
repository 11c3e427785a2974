"""Names of keys: one Cluster slot per model, no two meanings for one name, and a table that tells all."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from redis.crc import key_slot

from keepfit.backends import redis_keys

HASH = "ab12" * 16
OF_A_MODEL: list[Callable[[str], str]] = [
    redis_keys.state,
    redis_keys.bundle,
    redis_keys.inbox,
    redis_keys.lock,
    redis_keys.dead,
    redis_keys.idle,
    redis_keys.followed,
    redis_keys.new_stored_answers,
    redis_keys.old_stored_answers,
    redis_keys.open_rows,
    redis_keys.open_row_ends,
    redis_keys.closed_rows,
    redis_keys.model_events,
    redis_keys.model_due,
]
OF_A_QUEUE: list[Callable[[str], str]] = [
    redis_keys.queued_models,
    redis_keys.queued_models_set,
    redis_keys.worker_requests,
    redis_keys.waiting_since,
    redis_keys.former_leases,
    redis_keys.request_limits,
    redis_keys.poison_requests,
    redis_keys.put_aside_requests,
]
ALL = [
    *(key(HASH) for key in OF_A_MODEL),
    redis_keys.staged_bundle(HASH, "token"),
    redis_keys.large_rows(HASH, "token"),
    redis_keys.idempotency(HASH, "c:key"),
    redis_keys.new_answers(HASH, "caller"),
    redis_keys.old_answers(HASH, "caller"),
    redis_keys.chunk_answers(HASH, "job"),
    redis_keys.job("job"),
    redis_keys.JOBS,
    redis_keys.OPEN_JOBS,
    redis_keys.CHANGED,
    redis_keys.COMMITS,
    redis_keys.SCORERS,
    redis_keys.EVENTS,
    redis_keys.DUE_EVENTS,
    *(key(queue) for key in OF_A_QUEUE for queue in ("learn", "predict")),
    redis_keys.claimed("lease"),
    redis_keys.LEASES,
    redis_keys.LEASE_HOLDERS,
    redis_keys.WAKE_UPS,
    redis_keys.request_rows("token"),
    redis_keys.replies("gateway"),
    redis_keys.tokens("web"),
    redis_keys.traffic("gateway", 0),
    redis_keys.SWEEP,
    redis_keys.GATEWAYS,
    redis_keys.SESSIONS,
    redis_keys.SNAPSHOTS,
    redis_keys.REPLICATED,
    redis_keys.OPEN_ROWS,
    redis_keys.EXPIRING,
]


def test_every_key_is_unique() -> None:
    """All keys differ and begin with kf:, and none is a key of RQ."""
    assert len(set(ALL)) == len(ALL)
    assert all(key.startswith("kf:") for key in ALL)
    assert {redis_keys.RQ_QUEUE, redis_keys.RQ_WORKERS} == {"rq:queue:keepfit", "rq:workers:keepfit"}


def test_keys_of_a_model_share_a_cluster_slot() -> None:
    """All keys of a model are in one slot of a Redis Cluster, for every idempotency key."""
    of_model = [key(HASH) for key in OF_A_MODEL]
    of_model += [
        redis_keys.staged_bundle(HASH, "x"),
        redis_keys.large_rows(HASH, "x"),
        redis_keys.idempotency(HASH, "c:{other}"),
        redis_keys.idempotency(HASH, "}{"),
        redis_keys.new_answers(HASH, "}{"),
        redis_keys.old_answers(HASH, "}{"),
    ]
    assert {key_slot(key.encode()) for key in of_model} == {key_slot(HASH.encode())}
    assert key_slot(redis_keys.state("cd" * 32).encode()) != key_slot(HASH.encode())


def test_keys_of_no_model_share_a_cluster_slot() -> None:
    """Scripts take several of them: in a cluster they have one tag, and the keys of a model stay as they are."""
    of_none = [redis_keys.JOBS, redis_keys.OPEN_JOBS, redis_keys.job("j"), redis_keys.EVENTS, redis_keys.CHANGED]
    assert len({key_slot(str(redis_keys.in_cluster(key)).encode()) for key in of_none}) == 1
    assert len({redis_keys.in_cluster(key) for key in of_none}) == len(of_none)
    assert [redis_keys.in_cluster(key(HASH)) for key in OF_A_MODEL] == [key(HASH) for key in OF_A_MODEL]


@pytest.mark.parametrize("model_hash", [HASH, "0" * 64, "a"])
def test_a_state_key_names_its_model(model_hash: str) -> None:
    """hash_of_state inverts state, and the scan pattern matches state keys only."""
    assert redis_keys.hash_of_state(redis_keys.state(model_hash)) == model_hash
    pattern = re.compile(re.escape(redis_keys.STATE_PATTERN).replace(r"\*", ".*"))
    assert pattern.fullmatch(redis_keys.state(model_hash))
    assert not [key for key in ALL if pattern.fullmatch(key) and key != redis_keys.state(HASH)]


def test_an_idempotency_key_cannot_name_another_key() -> None:
    """The part that a client chooses is at the end of the key, so it never forms another key."""
    for chosen in ("c:x", "c:}:st", "c::b", "c:" + "y" * 128):
        key = redis_keys.idempotency(HASH, chosen)
        assert key.startswith(f"kf:{{{HASH}}}:idem:c:")
        assert key not in [other(HASH) for other in OF_A_MODEL]


def names(value: Any) -> set[str]:
    """Return the keys in the first column of the tables in a docstring."""
    return set(re.findall(r"^(kf:\S+)", value or "", re.MULTILINE))


def test_the_table_lists_every_key() -> None:
    """The tables in the module docstring list exactly the keys that the functions build."""
    built = {redis_keys.UNLOADABLE, redis_keys.CHANGED, redis_keys.COMMITS, redis_keys.SNAPSHOTS, redis_keys.SWEEP}
    built |= {redis_keys.EVENTS, redis_keys.DUE_EVENTS, redis_keys.FORWARDING}
    built |= {redis_keys.replicated(redis_keys.state("h"))}
    built |= {redis_keys.RESTORES, redis_keys.SCORERS, redis_keys.LEASES, redis_keys.LEASE_HOLDERS, redis_keys.WAKE_UPS}
    built |= {redis_keys.OPEN_ROWS, redis_keys.EXPIRING, redis_keys.GATEWAYS, redis_keys.SESSIONS}
    built |= {key("h") for key in OF_A_MODEL} | {key("<queue>") for key in OF_A_QUEUE}
    built |= {
        redis_keys.staged_bundle("h", "<random>"),
        redis_keys.large_rows("h", "<random>"),
        redis_keys.staged_file("<random>"),
        redis_keys.load_deaths("h", 1, "digest").replace("1:digest", "<...>"),
        redis_keys.idempotency("h", "<key>"),
        redis_keys.new_answers("h", "<c>"),
        redis_keys.old_answers("h", "<c>"),
        redis_keys.chunk_answers("h", "<job>"),
        redis_keys.job("<job>"),
        redis_keys.JOBS,
        redis_keys.OPEN_JOBS,
        redis_keys.REPLICATED,
    }
    built |= {
        redis_keys.claimed("<lease>"),
        redis_keys.request_rows("<random>"),
        redis_keys.replies("<gateway>"),
        redis_keys.tokens("<name>"),
        redis_keys.traffic("<gateway>", "<slot>"),  # type: ignore[arg-type]
    }
    assert names(redis_keys.__doc__) == built
    functions = {
        name
        for name, value in vars(redis_keys).items()
        if callable(value)
        and getattr(value, "__module__", "") == redis_keys.__name__
        # The names that start with rq_ are keys of RQ.
        and name not in ("hash_of_state", "change_score", "in_cluster", "rq_worker", "rq_executions")
    }
    assert len(functions) + 20 == len(built)

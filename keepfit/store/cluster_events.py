"""Events of commits in a Redis Cluster, where a commit cannot write to the stream of all events.

Owns the way of such an event: `commit` writes it to a stream of the model, in one script with the commit as elsewhere,
and one supervisor at a time forwards it. The model is marked before the commit, so none is overlooked. Invariant: each
event is forwarded at least once; twice only if the supervisor or a server ended in between. On one server there is
nothing to forward.
"""

from collections.abc import Callable, Sequence
from typing import Any

from redis import Redis

from keepfit.backends import redis_cluster, redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command

MODELS_PER_TRIP, EVENTS_PER_MODEL = 200, 500
# Longer than a pass takes.
LOCK_MS = 10_000
KEPT_S = 86_400


def stream(store: Redis, model_hash: str) -> str:
    """Return the key to which a commit writes its events."""
    return redis_keys.model_events(model_hash) if isinstance(store, redis_cluster.Cluster) else redis_keys.EVENTS


def due_models(store: Redis, model_hash: str) -> str:
    """Return the key to which a commit writes its model if its event is due later."""
    return redis_keys.model_due(model_hash) if isinstance(store, redis_cluster.Cluster) else redis_keys.DUE_EVENTS


def mark(store: Redis, model_hash: str, score: int) -> Sequence[Command]:
    """Return the commands that mark a model before its commit, which `score` is the score of."""
    if isinstance(store, redis_cluster.Cluster):
        return [("ZADD", redis_keys.DUE_EVENTS, "GT", score, model_hash)]
    return []


def forward(store: Any, events_max: int, due: Callable[[str], Command]) -> int:
    """Forward the events of models; return their number. `due` returns the command of a commit that is still due.

    Raises
    ------
    UnavailableError
        If Redis is unavailable.
    """
    (begun,) = redis_scripts.run(store, ("SET", redis_keys.FORWARDING, 1, "NX", "PX", LOCK_MS))
    if not begun:
        return 0
    (marked,) = redis_scripts.run(store, ("ZRANGE", redis_keys.DUE_EVENTS, 0, -1))
    names = [name.decode() for name in marked]
    count = 0
    for begin in range(0, len(names), MODELS_PER_TRIP):
        count += _forward(store, names[begin : begin + MODELS_PER_TRIP], events_max, due)
    redis_scripts.run(store, ("DEL", redis_keys.FORWARDING))
    return count


def _forward(store: Any, names: Sequence[str], events_max: int, due: Callable[[str], Command]) -> int:
    commands = [
        command
        for name in names
        for command in (
            # Read first: a commit that comes later has a later mark.
            ("HMGET", redis_keys.state(name), "generation", "version"),
            due(name),
            ("ZCARD", redis_keys.model_due(name)),
            ("XRANGE", redis_keys.model_events(name), "-", "+", "COUNT", EVENTS_PER_MODEL),
        )
    ]
    answers = redis_scripts.run(store, *commands)
    added: list[Command] = []
    removed: list[Command] = []
    settled: list[Command] = []
    for name, (generation, version), _, waiting, entries in zip(
        names, *(answers[first::4] for first in range(4)), strict=True
    ):
        added += [("XADD", redis_keys.EVENTS, "MAXLEN", "~", events_max, "*", *fields) for _, fields in entries]
        if entries:
            key = redis_keys.model_events(name)
            removed += [("XDEL", key, *(number for number, _ in entries)), ("EXPIRE", key, KEPT_S)]
        if generation is None:
            settled.append(("ZREM", redis_keys.DUE_EVENTS, name))
        elif not waiting and len(entries) < EVENTS_PER_MODEL:
            score = redis_keys.change_score(int(generation), int(version))
            settled.append(redis_scripts.call("unmark_changed", [redis_keys.DUE_EVENTS], [name, score]))
    # In this order: what is removed is in the stream of all events.
    redis_scripts.run(store, *added, *removed, *settled)
    return len(added)

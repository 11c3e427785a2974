"""The state machine over the scripts of the run queues: push, claim, renewals, release and abandon.

Drives them through :mod:`keepfit.jobs.run_queue`, on a real Valkey, beside the plain run queues of
:mod:`tests.scripts.run_queue_model`. Invariants, checked after every step: Redis holds what the plain run queues hold,
and each accepted request is in one place: pending, claimed by one lease, put aside, or done. Time passes only in rules.
"""

import time
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keepfit.backends import redis_keys, redis_scripts
from keepfit.jobs import run_queue
from keepfit.jobs.run_queue import LEARN, PREDICT, RunQueue
from tests.scripts.bench import HOUR_MS, Bench
from tests.scripts.run_queue_model import Entry, LeasesModel, RunQueueModel, WorkerRequest
from tests.scripts.store_machine import rarely

# Hashes whose first eight digits are even and odd: with two workers, shares of the first and of the second one.
MODELS = tuple(f"{number:08x}".ljust(64, "0") for number in (2, 3, 4))
LEASES = ("l1", "l2", "l3")
WORKERS = ("one", "two", "three")
TTL_S = 3600.0
# Small limits, so that examples reach them.
SMALL = replace(PREDICT, models=2, requests=4)
# Nothing becomes late or inactive without a rule.
NEVER_MS = HOUR_MS
LONG_AGO_MS = 1_000_000_000_000

queues = st.sampled_from((SMALL, SMALL, SMALL, LEARN))
leases = st.sampled_from(LEASES)
models = st.sampled_from(MODELS)


class RunQueueMachine(RuleBasedStateMachine):
    """Both run queues, three leases, workers that die."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        names = ("LATE_MS", "AWAKE_MS", "BUSY_MS")
        self.patches: list[Any] = [mock.patch.object(run_queue, name, NEVER_MS) for name in names]
        for patch in self.patches:
            patch.start()
        self.bench.empty()
        self.client = self.bench.client
        self.plain = LeasesModel({queue.name: RunQueueModel(queue) for queue in (SMALL, LEARN)})
        self.asked, self.to_learn = (self.plain.queues[queue.name] for queue in (SMALL, LEARN))
        self.numbers = count(1)
        self.accepted: set[str] = set()
        self.put_aside: list[str] = []
        self.restores: dict[str, str] = {}
        self.workers = 0
        self.jobs = 0

    def teardown(self) -> None:
        """Restore the durations of keepfit."""
        for patch in self.patches:
            patch.stop()

    @initialize()
    def first(self) -> None:
        """Register two workers."""
        self._set_workers(2)

    @rule(number=st.sampled_from((1, 2, 3, 3)))
    def set_workers(self, number: int) -> None:
        """Change the number of workers that RQ knows."""
        self._set_workers(number)

    def _set_workers(self, number: int) -> None:
        self.client.delete(redis_keys.RQ_WORKERS)
        self.client.sadd(redis_keys.RQ_WORKERS, *WORKERS[:number])
        self.workers = number

    @rule()
    def enqueue_job(self) -> None:
        """Add a job that waits in RQ's list."""
        self.jobs = int(self.client.rpush(redis_keys.RQ_QUEUE, "job"))

    @rule(lease=leases, hashes=st.lists(models, max_size=5), most=st.sampled_from((1, 3, 3, 100)))
    def push_requests(self, lease: str, hashes: list[str], most: int) -> None:
        """Push requests, with at most `most` pending per model. Without entries, only check for a lease."""
        self._push(SMALL, lease, [self._entry_for(SMALL, model) for model in hashes], most)

    @rule(lease=leases, pushed=st.lists(models, max_size=3))
    def push_models(self, lease: str, pushed: list[str]) -> None:
        """Push models with pending requests to the learn queue, with duplicates."""
        self._push(LEARN, lease, list(pushed), 1)

    @rule(queue=queues, lease=leases)
    def look_for_late_work(self, queue: RunQueue, lease: str) -> None:
        """Enqueue a lease for any work that waits."""
        self._push(queue, lease, [], 1, late_ms=-NEVER_MS)

    def _push(
        self, queue: RunQueue, lease: str, entries: list[Entry], most: int, *, late_ms: int | None = None
    ) -> None:
        sent = [e if isinstance(e, str) else run_queue.make_entry(e.model, TTL_S, e.text.encode()) for e in entries]
        late = late_ms is not None
        expected = self.plain.push(queue.name, lease, entries, most, self.workers, late=late)
        (answer,) = redis_scripts.run(self.client, run_queue.push(queue, lease, TTL_S, sent, most, late_ms=late_ms))
        assert answer == expected
        refused = expected[1:]
        self.accepted |= {
            e.text for number, e in enumerate(entries, 1) if isinstance(e, WorkerRequest) and number not in refused
        }

    @rule(queue=queues, lease=leases, worker=st.sampled_from(WORKERS), only_renew=rarely(True, False))
    def claim(self, queue: RunQueue, lease: str, worker: str, only_renew: bool) -> None:
        """Claim work, or only renew, with a lease that may be invalid."""
        self._claim(queue, lease, worker, renew=only_renew)

    def _claim(self, queue: RunQueue, lease: str, worker: str, *, renew: bool = False) -> None:
        if renew:
            assert redis_scripts.run(self.client, run_queue.renew(lease, TTL_S)) == [self.plain.renew(lease)]
            return
        (answer,) = redis_scripts.run(self.client, run_queue.claim(queue, lease, TTL_S, worker))
        if answer:
            *counts, woken = answer[0]
            (last,) = redis_scripts.run(self.client, ("XREVRANGE", redis_keys.WAKE_UPS, "+", "-"))
            assert woken == (last[0][0] if last else b"0-0")
            answer[0] = counts
        if queue.requests and len(answer) > 2:
            claimed = [run_queue.split_entry(entry) for entry in answer[2:]]
            assert all(0 < left_s <= TTL_S for left_s, _ in claimed)
            answer = [*answer[:2], *(message for _, message in claimed)]
        others = {model for model, by in self.restores.items() if by != lease and by in self.plain.leases}
        assert answer == self.plain.claim(queue.name, lease, worker, self.jobs, self.workers, others)

    @rule(lease=leases, marked=st.lists(models, min_size=1, max_size=2, unique=True))
    def mark_restores(self, lease: str, marked: list[str]) -> None:
        """Mark models that a lease restores; a model that another registered lease has marked stays with it."""
        valid = self.plain.leases
        free = [m for m in marked if self.restores.get(m, lease) == lease or self.restores[m] not in valid]
        assert run_queue.mark_restores(self.client, lease, marked) == free
        self.restores.update(dict.fromkeys(free, lease))

    @rule(lease=leases, marked=st.lists(models, min_size=1, max_size=2, unique=True))
    def unmark_restores(self, lease: str, marked: list[str]) -> None:
        """Remove the marks of a lease; those of another one stay."""
        own = [model for model in marked if self.restores.get(model) == lease]
        assert redis_scripts.run(self.client, run_queue.unmark_restores(lease, marked)) == [len(own)]
        for model in own:
            del self.restores[model]

    @precondition(lambda self: self.plain.leases)
    @rule(data=st.data(), queue=queues, worker=st.sampled_from(WORKERS), only_renew=rarely(True, False))
    def use_valid_lease(self, data: st.DataObject, queue: RunQueue, worker: str, only_renew: bool) -> None:
        """Claim work with a valid lease, or only renew it."""
        self._claim(queue, data.draw(st.sampled_from(sorted(self.plain.leases))), worker, renew=only_renew)

    @rule(queue=queues, model=models, entries=st.lists(models, max_size=8), number=st.sampled_from((3, 3, 2)),
          most=st.sampled_from((100, 100, 2)), passed=st.booleans())  # fmt: skip
    def overload(self, queue: RunQueue, model: str, entries: list[str], number: int, most: int, passed: bool) -> None:
        """Work is late until every worker has a lease; then more is pushed than the limit allows."""
        self._set_workers(number)
        for lease, worker in zip(LEASES, WORKERS, strict=True):
            self._delay_work(queue)
            self._push(queue, lease, [self._entry_for(queue, model)], 100)
            self._claim(queue, lease, worker)
        if passed and queue.requests and most < 100:
            self._push(queue, LEASES[0], [self._entry_for(queue, model)], 100)
            self._expire_request(model, 0)
        self._push(queue, LEASES[0], [self._entry_for(queue, model) for model in entries], most)

    @rule(queue=queues, model=models)
    def leave_a_worker_free(self, queue: RunQueue, model: str) -> None:
        """One of two workers is busy with a very slow model, and another claims while more work for it waits."""
        self._set_workers(2)
        self._slow_down(queue, model, 0)
        for lease, worker in zip(LEASES[:2], WORKERS[:2], strict=True):
            self._delay_work(queue)
            self._push(queue, lease, [self._entry_for(queue, model), self._entry_for(queue, model)], 100)
            self._claim(queue, lease, worker)

    @rule(lease=leases, queue=queues, model=models)
    def leave_one_kind_of_work(self, lease: str, queue: RunQueue, model: str) -> None:
        """All work of one kind is claimed, then a lease would end if there were no other work."""
        self._push(queue, lease, [self._entry_for(queue, model)], 100)
        other = LEARN if queue is SMALL else SMALL
        for _ in range(8):
            self._claim(other, lease, "one")
        self.release(lease, "idle")

    def _entry_for(self, queue: RunQueue, model: str) -> Entry:
        return WorkerRequest(model, f"request {next(self.numbers)}") if queue.requests else model

    @rule(lease=leases, when=st.sampled_from(("idle", "spare", "now")))
    def release(self, lease: str, when: run_queue.When) -> None:
        """End a lease if its condition holds."""
        (answer,) = redis_scripts.run(self.client, run_queue.release(lease, when))
        assert answer == self.plain.release(lease, when)

    @rule(lease=leases, died=st.sampled_from((True, True, False)))
    def die(self, lease: str, died: bool) -> None:
        """A worker dies, or only its lease has expired."""
        run_queue.abandon(self.client, lease, died=died)
        self.plain.abandon(lease, died=died)

    @rule(lease=leases, model=models)
    def create_poison_request(self, lease: str, model: str) -> None:
        """Each worker that claims a certain request dies, until the request is put aside."""
        self._push(SMALL, lease, [self._entry_for(SMALL, model)], 100)
        for _ in range(3):
            self._push(SMALL, lease, [], 100)
            self._claim(SMALL, lease, "one")
            run_queue.abandon(self.client, lease, died=True)
            self.plain.abandon(lease, died=True)

    @rule()
    def pop_poison_request(self) -> None:
        """Take a poison request."""
        found = run_queue.pop_poison_request(self.client)
        poison = self.asked.poison
        assert found == (poison[0].encode() if poison else None)
        self.put_aside += poison[:1]
        del poison[:1]

    @rule(queue=queues, model=models, turn=st.sampled_from((0, 0, 1, 2, None)))
    def slow_down(self, queue: RunQueue, model: str, turn: int | None) -> None:
        """Mark a model as slow, or remove the mark."""
        self._slow_down(queue, model, turn)

    def _slow_down(self, queue: RunQueue, model: str, turn: int | None) -> None:
        slow = self.plain.queues[queue.name].slow
        slow.pop(model, None)
        if turn is not None:
            slow[model] = turn
            self.client.hset(redis_keys.request_limits(queue.name), model, turn or run_queue.VERY_SLOW)
        else:
            self.client.hdel(redis_keys.request_limits(queue.name), model)

    # Time passes.

    @rule(queue=queues)
    def delay_work(self, queue: RunQueue) -> None:
        """Make waiting work late."""
        self._delay_work(queue)

    def _delay_work(self, queue: RunQueue) -> None:
        plain = self.plain.queues[queue.name]
        if plain.late is not None:
            self.client.set(redis_keys.waiting_since(queue.name), LONG_AGO_MS)
            plain.late = True

    @rule(lease=leases)
    def deactivate_lease(self, lease: str) -> None:
        """Make a lease inactive."""
        if lease in self.plain.holders:
            worker, _, model = self.plain.holders[lease]
            self.plain.holders[lease] = (worker, False, model)
            holder = f"{worker} {model} {LONG_AGO_MS}".replace("  ", " ")
            self.client.hset(redis_keys.LEASE_HOLDERS, lease, holder)

    @rule(queue=queues, lease=leases, model=models)
    def push_to_busy_leases(self, queue: RunQueue, lease: str, model: str) -> None:
        """Work comes while no lease has claimed for a while."""
        for held in list(self.plain.holders):
            self.deactivate_lease(held)
        self._push(queue, lease, [self._entry_for(queue, model)], 100)

    @rule(lease=leases)
    def expire_lease(self, lease: str) -> None:
        """Let a lease expire."""
        if lease in self.plain.leases:
            self.plain.leases[lease] = False
            self.client.zadd(redis_keys.LEASES, {lease: LONG_AGO_MS})
        old = [lease for lease, young in self.plain.leases.items() if not young]
        assert sorted(run_queue.expired(self.client)) == sorted(old)

    @precondition(lambda self: any(self.asked.requests_pending.values()))
    @rule(data=st.data())
    def expire_request(self, data: st.DataObject) -> None:
        """Let the deadline of the first or last request of a model pass."""
        requests_pending = self.asked.requests_pending
        pending = requests_pending[
            data.draw(st.sampled_from([model for model, pending in requests_pending.items() if pending]))
        ]
        self._expire_request(pending[0].model, data.draw(st.sampled_from((0, 0, len(pending) - 1))))

    def _expire_request(self, model: str, place: int) -> None:
        pending = self.asked.requests_pending[model]
        pending[place] = replace(pending[place], alive=False)
        name = redis_keys.worker_requests(PREDICT.name)
        number = int(self.client.hget(name, f"{model}:first") or 0) + place
        text = f"{pending[place].deaths}{LONG_AGO_MS:013}{pending[place].text}"
        self.client.hset(name, f"{model}:{number}", text)

    # What must hold after every step.

    @invariant()
    def redis_equals_plain_model(self) -> None:
        """Redis holds what the plain run queues hold."""
        self.bench.steps += 1
        for plain in self.plain.queues.values():
            assert self._contents(plain.queue.name) == plain.contents()
        assert self._leases() == self.plain.contents()
        marks = self.client.hgetall(redis_keys.RESTORES)
        assert {model.decode(): lease.decode() for model, lease in marks.items()} == self.restores
        assert not marks or 0 < int(self.client.pttl(redis_keys.RESTORES)) <= run_queue.RESTORES_TTL_MS

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        """Each request is in exactly one place."""
        held = self._contents(PREDICT.name)
        waiting = [request.text for pending in held["requests"].values() for request in pending]
        entries = [entry for entries in self._leases()["claimed"].values() for entry in entries]
        claimed = [entry.text for entry in entries if isinstance(entry, WorkerRequest)]
        put_aside = [
            text.decode()
            for text in redis_scripts.run(self.client, ("LRANGE", redis_keys.put_aside_requests("predict"), 0, -1))[0]
        ]
        places = [*waiting, *claimed, *held["poison"], *put_aside, *self.asked.done]
        assert sorted(places) == sorted(self.accepted)
        assert put_aside == self.put_aside
        assert set(held["requests"]) <= set(held["waiting"]), "requests of a model that is not queued"

    def _contents(self, queue: str) -> dict[str, Any]:
        now_ms = time.time() * 1000
        waiting, known, pending, slow, poison, since = redis_scripts.run(
            self.client,
            ("LRANGE", redis_keys.queued_models(queue), 0, -1),
            ("SMEMBERS", redis_keys.queued_models_set(queue)),
            ("HGETALL", redis_keys.worker_requests(queue)),
            ("HGETALL", redis_keys.request_limits(queue)),
            ("LRANGE", redis_keys.poison_requests(queue), 0, -1),
            ("GET", redis_keys.waiting_since(queue)),
        )
        return {
            "waiting": [model.decode() for model in waiting],
            "known": {model.decode() for model in known},
            "requests": _requests({name.decode(): value for name, value in pending.items()}),
            "slow": {model.decode(): 0 if turn == run_queue.VERY_SLOW else int(turn) for model, turn in slow.items()},
            "poison": [text.decode() for text in poison],
            "late": None if since is None else now_ms - int(since) > NEVER_MS,
        }

    def _leases(self) -> dict[str, Any]:
        scores, holders, woken, *claimed = redis_scripts.run(
            self.client,
            ("ZRANGE", redis_keys.LEASES, 0, -1, "WITHSCORES"),
            ("HGETALL", redis_keys.LEASE_HOLDERS),
            ("XRANGE", redis_keys.WAKE_UPS, "-", "+"),
            *(("LRANGE", redis_keys.claimed(lease), 0, -1) for lease in LEASES),
            *(("PTTL", redis_keys.claimed(lease)) for lease in LEASES),
        )
        ttls = claimed[len(LEASES) :]
        assert all(0 < ttl <= run_queue.CLAIMED_TTL_MS for entries, ttl in zip(claimed, ttls, strict=False) if entries)
        held = {name.decode(): value.decode() for name, value in holders.items()}
        return {
            "leases": {lease.decode(): score > LONG_AGO_MS for lease, score in scores},
            "holders": {
                lease: (worker, int(at) > LONG_AGO_MS, "".join(model))
                for lease, (worker, *model, at) in ((lease, text.split(" ")) for lease, text in held.items())
            },
            "claimed": {
                lease: [_entry(entry) for entry in entries]
                for lease, entries in zip(LEASES, claimed, strict=False)
                if entries
            },
            "woken by": [run_queue.woken_by([(b"", [entry])]).name for entry in woken],
        }


def _requests(fields: dict[str, bytes]) -> dict[str, list[WorkerRequest]]:
    """Read the hash of requests: those of each model from its first to its last number, and no others."""
    found = {}
    for model in [name.removesuffix(":first") for name in fields if name.endswith(":first")]:
        numbers = range(int(fields.pop(f"{model}:first")), int(fields.pop(f"{model}:next")))
        found[model] = [_request(model, fields.pop(f"{model}:{number}")) for number in numbers]
    assert not fields, "requests out of their range"
    return found


def _request(model: str, stored: bytes) -> WorkerRequest:
    deaths, deadline, text = stored[:1], stored[1:14], stored[14:]
    return WorkerRequest(model, text.decode(), int(deaths), alive=int(deadline) > LONG_AGO_MS)


def _entry(stored: bytes) -> Entry:
    model, request = stored[:64].decode(), stored[64:]
    return _request(model, request) if request else model

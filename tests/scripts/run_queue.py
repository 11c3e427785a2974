"""The state machine over the scripts that keep waiting rooms: push, claim, release and abandon.

Drives them through :mod:`keepfit.jobs.run_queue`, on a real Valkey, beside the plain rooms of
:mod:`tests.scripts.plain_rooms`. Invariants, looked at after every step: Redis holds what the plain rooms hold, and
each question that was let in is in one place: it waits, or is in one lease's hand, or was put aside, or is done. Time
passes where a rule says so only.
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
from tests.scripts.models import rarely
from tests.scripts.plain_rooms import Entry, PlainRoom, WorkerRequest

# Hashes whose first eight digits are even and odd: of two workers, the first and the second one's own.
MODELS = tuple(f"{number:08x}".ljust(64, "0") for number in (2, 3, 4))
LEASES = ("l1", "l2", "l3")
WORKERS = ("one", "two", "three")
TTL_S = 3600.0
# So few that the bounds are met.
SMALL = replace(PREDICT, models=2, requests=4)
# Nothing is late or asleep by itself.
NEVER_MS = HOUR_MS
LONG_AGO_MS = 1_000_000_000_000

both_rooms = st.sampled_from((SMALL, SMALL, SMALL, LEARN))
leases = st.sampled_from(LEASES)
models = st.sampled_from(MODELS)


class Rooms(RuleBasedStateMachine):
    """Both rooms, three leases, workers that die."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.patches: list[Any] = [mock.patch.object(run_queue, name, NEVER_MS) for name in ("LATE_MS", "AWAKE_MS")]
        for patch in self.patches:
            patch.start()
        self.bench.empty()
        self.client = self.bench.client
        self.plain = {room.name: PlainRoom(room) for room in (SMALL, LEARN)}
        self.numbers = count(1)
        self.let_in: set[str] = set()
        self.aside: list[str] = []
        self.workers = 0
        self.jobs = 0

    def teardown(self) -> None:
        """Give keepfit its times back."""
        for patch in self.patches:
            patch.stop()

    @initialize()
    def first(self) -> None:
        """Two workers live."""
        self._live(2)

    @rule(number=st.sampled_from((1, 2, 3, 3)))
    def workers_live(self, number: int) -> None:
        """Workers come and go, as RQ knows them."""
        self._live(number)

    def _live(self, number: int) -> None:
        self.client.delete(redis_keys.RQ_WORKERS)
        self.client.sadd(redis_keys.RQ_WORKERS, *WORKERS[:number])
        self.workers = number

    @rule()
    def job_waits(self) -> None:
        """A job of RQ's waits for a worker."""
        self.jobs = int(self.client.rpush(redis_keys.RQ_QUEUE, "job"))

    @rule(lease=leases, asked=st.lists(models, max_size=5), most=st.sampled_from((1, 3, 3, 100)))
    def ask(self, lease: str, asked: list[str], most: int) -> None:
        """Ask questions; no more than `most` may wait for one model. None at all just looks."""
        self._push(SMALL, lease, [self._entry_for(SMALL, model) for model in asked], most)

    @rule(lease=leases, told=st.lists(models, max_size=3))
    def tell(self, lease: str, told: list[str]) -> None:
        """Tell the learn room of models with mail, some perhaps twice."""
        self._push(LEARN, lease, list(told), 1)

    def _push(self, room: RunQueue, lease: str, entries: list[Entry], most: int) -> None:
        sent = [e if isinstance(e, str) else run_queue.entry(e.model, TTL_S, e.text.encode()) for e in entries]
        (answer,) = redis_scripts.run(self.client, run_queue.push(room, lease, TTL_S, sent, most))
        expected = self.plain[room.name].push(lease, entries, most, self.workers)
        assert answer == expected
        refused = expected[1:]
        self.let_in |= {
            e.text for number, e in enumerate(entries, 1) if isinstance(e, WorkerRequest) and number not in refused
        }

    @rule(room=both_rooms, lease=leases, worker=st.sampled_from(WORKERS), renew=rarely(True, False))
    def claim(self, room: RunQueue, lease: str, worker: str, renew: bool) -> None:
        """Claim what comes next, or only renew, with a lease that may not be valid."""
        self._claim(room, lease, worker, renew=renew)

    def _claim(self, room: RunQueue, lease: str, worker: str, *, renew: bool = False) -> None:
        (answer,) = redis_scripts.run(self.client, run_queue.claim(room, lease, TTL_S, worker, renew=renew))
        assert answer == self.plain[room.name].claim(lease, worker, self.jobs, renew=renew)

    @precondition(lambda self: any(plain.leases for plain in self.plain.values()))
    @rule(data=st.data(), worker=st.sampled_from(WORKERS), renew=rarely(True, False))
    def work(self, data: st.DataObject, worker: str, renew: bool) -> None:
        """Claim with a lease that is valid, or only renew it."""
        room = data.draw(st.sampled_from([plain.room for plain in self.plain.values() if plain.leases]))
        self._claim(room, data.draw(st.sampled_from(sorted(self.plain[room.name].leases))), worker, renew=renew)

    @rule(room=both_rooms, model=models, asked=st.lists(models, max_size=8), number=st.sampled_from((3, 3, 2)),
          most=st.sampled_from((100, 100, 2)), passed=st.booleans())  # fmt: skip
    def crowd(self, room: RunQueue, model: str, asked: list[str], number: int, most: int, passed: bool) -> None:
        """Work is late again and again, until all workers have a lease on the room; then more comes than may."""
        self._live(number)
        for lease, worker in zip(LEASES, WORKERS, strict=True):
            self._be_late(room)
            self._push(room, lease, [self._entry_for(room, model)], 100)
            self._claim(room, lease, worker)
        if passed and room.requests and most < 100:
            self._push(room, LEASES[0], [self._entry_for(room, model)], 100)
            self._give_up(model, 0)
        self._push(room, LEASES[0], [self._entry_for(room, model) for model in asked], most)

    def _entry_for(self, room: RunQueue, model: str) -> Entry:
        return WorkerRequest(model, f"question {next(self.numbers)}") if room.requests else model

    @rule(room=both_rooms, lease=leases, when=st.sampled_from(("idle", "spare", "now")))
    def release(self, room: RunQueue, lease: str, when: run_queue.When) -> None:
        """End a lease, if it may end."""
        (answer,) = redis_scripts.run(self.client, run_queue.release(room, lease, when))
        assert answer == self.plain[room.name].release(lease, when)

    @rule(lease=leases)
    def die(self, lease: str) -> None:
        """A worker dies, and its lease is abandoned on whichever room it is."""
        run_queue.abandon(self.client, lease)
        for plain in self.plain.values():
            plain.abandon(lease)

    @rule(lease=leases, model=models)
    def die_again(self, lease: str, model: str) -> None:
        """Every worker dies that has a certain question in hand, until it is put aside."""
        self._push(SMALL, lease, [self._entry_for(SMALL, model)], 100)
        for _ in range(3):
            self._push(SMALL, lease, [], 100)
            self._claim(SMALL, lease, "one")
            self.die(lease)

    @rule()
    def take_poison(self) -> None:
        """Answer a question that was put aside."""
        found = run_queue.take_poison(self.client)
        poison = self.plain[PREDICT.name].poison
        assert found == (poison[0].encode() if poison else None)
        self.aside += poison[:1]
        del poison[:1]

    @rule(model=models, turn=st.sampled_from((0, 1, 2)))
    def slow_down(self, model: str, turn: int) -> None:
        """A model is found slow, or quick again."""
        turns = self.plain[PREDICT.name].turns
        turns.pop(model, None)
        if turn:
            turns[model] = turn
            self.client.hset(redis_keys.request_limits(PREDICT.name), model, turn)
        else:
            self.client.hdel(redis_keys.request_limits(PREDICT.name), model)

    # Time passes.

    @rule(room=both_rooms)
    def be_late(self, room: RunQueue) -> None:
        """What waits has waited for long."""
        self._be_late(room)

    def _be_late(self, room: RunQueue) -> None:
        plain = self.plain[room.name]
        if plain.late is not None:
            self.client.set(redis_keys.since(room.name), LONG_AGO_MS)
            plain.late = True

    @rule(room=both_rooms, lease=leases)
    def fall_asleep(self, room: RunQueue, lease: str) -> None:
        """A lease is busy with something slow."""
        plain = self.plain[room.name]
        if lease in plain.holders:
            worker, _ = plain.holders[lease]
            plain.holders[lease] = (worker, False)
            self.client.hset(redis_keys.holders(room.name), lease, f"{worker} {LONG_AGO_MS}")

    @rule(room=both_rooms, lease=leases)
    def grow_old(self, room: RunQueue, lease: str) -> None:
        """A lease is not renewed in time."""
        plain = self.plain[room.name]
        if lease in plain.leases:
            plain.leases[lease] = False
            self.client.zadd(redis_keys.leases(room.name), {lease: LONG_AGO_MS})
        old = [lease for plain in self.plain.values() for lease, young in plain.leases.items() if not young]
        assert sorted(run_queue.expired(self.client)) == sorted(old)

    @precondition(lambda self: any(self.plain[PREDICT.name].questions.values()))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """The deadline of the first question of a model passes, and sometimes that of another."""
        questions = self.plain[PREDICT.name].questions
        asked = questions[data.draw(st.sampled_from([model for model, asked in questions.items() if asked]))]
        self._give_up(asked[0].model, data.draw(st.sampled_from((0, 0, len(asked) - 1))))

    def _give_up(self, model: str, place: int) -> None:
        asked = self.plain[PREDICT.name].questions[model]
        asked[place] = replace(asked[place], alive=False)
        name = redis_keys.worker_requests(PREDICT.name)
        number = int(self.client.hget(name, f"{model}:first") or 0) + place
        text = f"{asked[place].deaths}{LONG_AGO_MS:013}{asked[place].text}"
        self.client.hset(name, f"{model}:{number}", text)

    # What must hold after every step.

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        """Redis holds what the plain rooms hold."""
        self.bench.steps += 1
        for plain in self.plain.values():
            assert self._contents(plain.room.name) == plain.contents()

    @invariant()
    def every_question_is_in_one_place(self) -> None:
        """No question is lost, and none is anywhere twice."""
        held = self._contents(PREDICT.name)
        waiting = [question.text for asked in held["questions"].values() for question in asked]
        in_hand = [entry.text for entries in held["claimed"].values() for entry in entries]
        aside = [
            text.decode()
            for text in redis_scripts.run(self.client, ("LRANGE", redis_keys.put_aside("predict"), 0, -1))[0]
        ]
        places = [*waiting, *in_hand, *held["poison"], *aside, *self.plain[PREDICT.name].done]
        assert sorted(places) == sorted(self.let_in)
        assert aside == self.aside
        assert set(held["questions"]) <= set(held["waiting"]), "nobody would come for it"

    def _contents(self, room: str) -> dict[str, Any]:
        now_ms = time.time() * 1000
        waiting, known, asked, scores, holders, turns, poison, since, *claimed = redis_scripts.run(
            self.client,
            ("LRANGE", redis_keys.waiting(room), 0, -1),
            ("SMEMBERS", redis_keys.known(room)),
            ("HGETALL", redis_keys.worker_requests(room)),
            ("ZRANGE", redis_keys.leases(room), 0, -1, "WITHSCORES"),
            ("HGETALL", redis_keys.holders(room)),
            ("HGETALL", redis_keys.request_limits(room)),
            ("LRANGE", redis_keys.poison(room), 0, -1),
            ("GET", redis_keys.since(room)),
            *(("LRANGE", redis_keys.claimed(room, lease), 0, -1) for lease in LEASES),
            *(("PTTL", redis_keys.claimed(room, lease)) for lease in LEASES),
        )
        ttls = claimed[len(LEASES) :]
        assert all(0 < ttl <= run_queue.CLAIMED_TTL_MS for entries, ttl in zip(claimed, ttls, strict=False) if entries)
        held = {name.decode(): value.decode() for name, value in holders.items()}
        return {
            "waiting": [model.decode() for model in waiting],
            "known": {model.decode() for model in known},
            "questions": _questions({name.decode(): value for name, value in asked.items()}),
            "leases": {lease.decode(): score > LONG_AGO_MS for lease, score in scores},
            "holders": {
                lease: (text.split(" ")[0], int(text.split(" ")[1]) > LONG_AGO_MS) for lease, text in held.items()
            },
            "claimed": {
                lease: [_entry(entry) for entry in entries]
                for lease, entries in zip(LEASES, claimed, strict=False)
                if entries
            },
            "turns": {model.decode(): int(turn) for model, turn in turns.items()},
            "poison": [text.decode() for text in poison],
            "late": None if since is None else now_ms - int(since) > NEVER_MS,
        }


def _questions(fields: dict[str, bytes]) -> dict[str, list[WorkerRequest]]:
    """Read the hash of questions: those of each model from its first number to its last, and no others."""
    found = {}
    for model in [name.removesuffix(":first") for name in fields if name.endswith(":first")]:
        numbers = range(int(fields.pop(f"{model}:first")), int(fields.pop(f"{model}:next")))
        found[model] = [_question(model, fields.pop(f"{model}:{number}")) for number in numbers]
    assert not fields, "questions out of their range"
    return found


def _question(model: str, stored: bytes) -> WorkerRequest:
    deaths, deadline, text = stored[:1], stored[1:14], stored[14:]
    return WorkerRequest(model, text.decode(), int(deaths), alive=int(deadline) > LONG_AGO_MS)


def _entry(stored: bytes) -> Entry:
    model, question = stored[:64].decode(), stored[64:]
    return _question(model, question) if question else model

"""What a waiting room should hold and answer: the scripts over rooms, in plain Python, one method each.

Owns no Redis and no clock: what is late, past its deadline or asleep is told to it.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from keepfit.jobs.run_queue import DEATHS_MAX, RunQueue


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """A question about a model; `alive` until its deadline."""

    model: str
    text: str
    deaths: int = 0
    alive: bool = True


# What is in hand of a lease: questions, or the models themselves.
Entry = WorkerRequest | str


@dataclass(slots=True)
class PlainRoom:
    """One room as it should be; `done` are the questions that were laid down or dropped."""

    room: RunQueue
    waiting: list[str] = field(default_factory=list)
    questions: dict[str, list[WorkerRequest]] = field(default_factory=dict)
    leases: dict[str, bool] = field(default_factory=dict)
    holders: dict[str, tuple[str, bool]] = field(default_factory=dict)
    claimed: dict[str, list[Entry]] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    poison: list[str] = field(default_factory=list)
    late: bool | None = None
    done: set[str] = field(default_factory=set)

    def push(self, lease: str, entries: list[Entry], most: int, workers: int) -> list[int]:
        """Put entries in; answer whether a lease must be sent for, and the numbers of those refused."""
        idle, refused = not self.waiting, []
        for number, entry in enumerate(entries, start=1):
            model = entry if isinstance(entry, str) else entry.model
            if isinstance(entry, WorkerRequest):
                asked = self.questions.setdefault(model, [])
                while len(asked) >= most and not asked[0].alive:
                    self.done.add(asked.pop(0).text)
                if len(asked) >= most:
                    refused.append(number)
                    continue
                asked.append(entry)
            if model not in self.waiting:
                self.waiting.append(model)
        if not self.waiting:
            return [0, *refused]
        if idle:
            self.late = False
        if lease in self.leases:
            return [1, *refused]
        if not self.leases:
            self.late = False
        elif not self.late or len(self.leases) >= workers:
            return [0, *refused]
        self.leases[lease] = True
        return [1, *refused]

    def claim(self, lease: str, worker: str, jobs: int, *, renew: bool) -> list[Any]:
        """Lay down what is in hand and take what comes next."""
        if lease not in self.leases:
            return [-1]
        if not renew:
            self._lay_down(lease)
            if not self.waiting:
                return [jobs, []]
        self.leases[lease] = True
        if renew:
            return [jobs, []]
        self.holders[lease] = (worker, True)
        self.late = False
        awake = sorted(name for name, is_awake in self.holders.values() if is_awake)
        if len(self.holders) == 1:
            awake = [worker]
        look = self.waiting[: max(self.room.models, 32)]
        mine = [model for model in look if awake[int(model[:8], 16) % len(awake)] == worker]
        if not mine:
            mine = look[: math.ceil(len(look) / len(awake))]
        taken: list[Entry] = []
        bounds: list[Any] = []
        if not self.room.requests:
            taken = list(mine[: self.room.models])
            self.waiting = [model for model in self.waiting if model not in taken]
        else:
            self._ask(mine[: self.room.models], taken, bounds, len(awake))
        self.claimed[lease] = taken
        return [jobs, bounds, *((e if isinstance(e, str) else e.text).encode() for e in taken)]

    def _ask(self, models: list[str], taken: list[Entry], bounds: list[Any], awake: int) -> None:
        """Take questions of `models` in turn; one that was in hand of the dead is taken by itself."""
        budget = self.room.requests
        for model in models:
            if len(taken) >= budget:
                break
            self.waiting.remove(model)
            asked = self.questions.get(model, [])
            turn = min(budget, math.ceil(len(asked) / awake))
            if model in self.turns:
                bounds += [model.encode(), str(self.turns[model]).encode()]
                turn = min(turn, self.turns[model])
            given = 0
            while asked and len(taken) < budget and given < turn:
                suspect = asked[0].alive and asked[0].deaths > 0
                if suspect and taken:
                    break
                question = asked.pop(0)
                if not question.alive:
                    self.done.add(question.text)
                    continue
                taken.append(question)
                given += 1
                if suspect:
                    budget = 0
            if asked:
                self.waiting.append(model)

    def _lay_down(self, lease: str) -> None:
        self.done |= {entry.text for entry in self.claimed.pop(lease, []) if isinstance(entry, WorkerRequest)}

    def release(self, lease: str, when: str) -> int:
        """End a lease, if nothing waits, if another is out, or in any case."""
        if (when == "idle" and self.waiting) or (when == "spare" and len(self.leases) < 2):
            return 0
        self.leases.pop(lease, None)
        self.holders.pop(lease, None)
        self._lay_down(lease)
        return 1

    def abandon(self, lease: str) -> None:
        """Put back what a dead worker had in hand, in order, each counting the death."""
        self.holders.pop(lease, None)
        if self.leases.pop(lease, None) is None:
            return
        for entry in reversed(self.claimed.pop(lease, [])):
            if isinstance(entry, WorkerRequest):
                if entry.deaths + 1 >= DEATHS_MAX:
                    self.poison.append(entry.text)
                    continue
                self.questions.setdefault(entry.model, []).insert(0, replace(entry, deaths=entry.deaths + 1))
            model = entry if isinstance(entry, str) else entry.model
            if model not in self.waiting:
                self.waiting.insert(0, model)

    def contents(self) -> dict[str, Any]:
        """Everything that Redis should hold of the room."""
        return {
            "waiting": self.waiting,
            "known": set(self.waiting),
            "questions": {model: asked for model, asked in self.questions.items() if asked},
            "leases": self.leases,
            "holders": self.holders,
            "claimed": {lease: entries for lease, entries in self.claimed.items() if entries},
            "turns": self.turns,
            "poison": self.poison,
            "late": self.late,
        }

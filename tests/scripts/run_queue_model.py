"""The intended behaviour of the scripts over run queues, in plain Python, one method each.

Owns no Redis and no clock: callers set what is late, past its deadline or inactive.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from keepfit.jobs.run_queue import DEATHS_MAX, LEARN, PREDICT, VERY_SLOW, RunQueue


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """A request about a model; `alive` until its deadline."""

    model: str
    text: str
    deaths: int = 0
    alive: bool = True


# Entries claimed by a lease: requests, or models.
Entry = WorkerRequest | str


@dataclass(slots=True)
class RunQueueModel:
    """One run queue; `done` are the requests that were completed or dropped."""

    queue: RunQueue
    waiting: list[str] = field(default_factory=list)
    requests_pending: dict[str, list[WorkerRequest]] = field(default_factory=dict)
    slow: dict[str, int] = field(default_factory=dict)
    poison: list[str] = field(default_factory=list)
    late: bool | None = None
    done: set[str] = field(default_factory=set)

    def add(self, entries: list[Entry], most: int) -> tuple[list[int], bool]:
        """Add entries; return the numbers of refused ones, and whether a model was added."""
        idle, refused, added = not self.waiting, [], False
        for number, entry in enumerate(entries, start=1):
            model = entry if isinstance(entry, str) else entry.model
            if isinstance(entry, WorkerRequest):
                pending = self.requests_pending.setdefault(model, [])
                while len(pending) >= most and not pending[0].alive:
                    self.done.add(pending.pop(0).text)
                if len(pending) >= most:
                    refused.append(number)
                    continue
                pending.append(entry)
            if model not in self.waiting:
                self.waiting.append(model)
                added = True
        if idle and self.waiting:
            self.late = False
        return refused, added

    def take(self, own: list[str], taken: list[Entry], bounds: list[Any], awake: int) -> str:
        """Claim work of `own` models; return the very slow model that was claimed, '' if none was."""
        own = own[: self.queue.models]
        if self.queue.requests:
            return self._claim_requests(own, taken, bounds, awake)
        for model in own:
            taken.append(model)
            self.waiting.remove(model)
            if model in self.slow:
                bounds += [model.encode(), self._bound(model)]
        return own[0] if own and self.slow.get(own[0]) == 0 else ""

    def _bound(self, model: str) -> bytes:
        return str(self.slow[model]).encode() if self.slow[model] else VERY_SLOW

    def _claim_requests(self, models: list[str], taken: list[Entry], bounds: list[Any], awake: int) -> str:
        """Claim requests of `models` in turn; a request of a dead worker, or of a very slow model, is claimed alone.

        Return the very slow model that was claimed, '' if none was.
        """
        budget = self.queue.requests
        for model in models:
            if len(taken) >= budget:
                break
            alone = self.slow.get(model) == 0
            if alone and taken:
                continue
            self.waiting.remove(model)
            pending = self.requests_pending.get(model, [])
            turn = min(budget, math.ceil(len(pending) / awake))
            if model in self.slow:
                turn = min(turn, max(self.slow[model], 1))
            count_taken = 0
            while pending and len(taken) < budget and count_taken < turn:
                suspect = pending[0].alive and pending[0].deaths > 0
                if suspect and taken:
                    break
                request = pending.pop(0)
                if not request.alive:
                    self.done.add(request.text)
                    continue
                taken.append(request)
                count_taken += 1
                if suspect:
                    budget = 0
            if count_taken and model in self.slow:
                bounds += [model.encode(), self._bound(model)]
            if pending:
                self.waiting.append(model)
            if alone and taken:
                return model
        return ""

    def put_back(self, entry: Entry, *, died: bool) -> None:
        """Put a claimed entry back to the front, with one more death if its worker died."""
        if isinstance(entry, WorkerRequest):
            deaths = entry.deaths + died
            if deaths >= DEATHS_MAX:
                self.poison.append(entry.text)
                return
            self.requests_pending.setdefault(entry.model, []).insert(0, replace(entry, deaths=deaths))
        model = entry if isinstance(entry, str) else entry.model
        if model not in self.waiting:
            self.waiting.insert(0, model)

    def contents(self) -> dict[str, Any]:
        """Return all that Redis should hold of the run queue."""
        return {
            "waiting": self.waiting,
            "known": set(self.waiting),
            "requests": {model: pending for model, pending in self.requests_pending.items() if pending},
            "slow": self.slow,
            "poison": self.poison,
            "late": self.late,
        }


@dataclass(slots=True)
class LeasesModel:
    """Both run queues and the leases that serve them; `wake_ups` names the run queue of each wake-up."""

    queues: dict[str, RunQueueModel]
    leases: dict[str, bool] = field(default_factory=dict)
    holders: dict[str, tuple[str, bool, str]] = field(default_factory=dict)
    claimed: dict[str, list[Entry]] = field(default_factory=dict)
    wake_ups: list[str] = field(default_factory=list)

    def push(self, name: str, lease: str, entries: list[Entry], most: int, workers: int, *, late: bool) -> list[int]:
        """Add entries; return whether a lease is missing, and the numbers of refused entries."""
        queue = self.queues[name]
        refused, added = queue.add(entries, most)
        if added:
            self.wake_ups.append(name)
        if not queue.waiting:
            return [0, *refused]
        if lease in self.leases:
            return [1, *refused]
        if self.leases:
            all_busy = len(self.holders) >= len(self.leases) and not any(awake for _, awake, _ in self.holders.values())
            if not (queue.late or late or all_busy) or len(self.leases) >= workers:
                return [0, *refused]
        queue.late = False
        self.leases[lease] = True
        return [1, *refused]

    def claim(
        self, name: str, lease: str, worker: str, jobs: int, workers: int, restored_by_others: Collection[str] = ()
    ) -> list[Any]:
        """Complete the last batch and claim the next one; return the answer of the script without the wake-up."""
        if lease not in self.leases:
            return []
        queue = self.queues[name]
        others = sum(len(other.waiting) for other in self.queues.values() if other is not queue)
        self._complete(lease)
        self.holders[lease] = (worker, True, "")
        if not queue.waiting:
            return [[jobs, 0, others, 0], []]
        self.leases[lease] = True
        awake = sorted(name for name, is_awake, _ in self.holders.values() if is_awake)
        if len(self.holders) == 1:
            awake = [worker]
        considered = queue.waiting[: max(queue.queue.models, 32)]
        busy = sum(bool(model) or not is_awake for _, is_awake, model in self.holders.values())
        is_last = busy >= max(1, workers - 1)
        kept = [m for m in considered if m in restored_by_others or (is_last and queue.slow.get(m) == 0)]
        considered = [model for model in considered if model not in kept]
        own = [model for model in considered if awake[int(model[:8], 16) % len(awake)] == worker]
        if not own:
            own = considered[: math.ceil(len(considered) / len(awake))]
        taken: list[Entry] = []
        bounds: list[Any] = []
        alone = queue.take(own, taken, bounds, len(awake))
        self.holders[lease] = (worker, True, alone)
        self.claimed[lease] = taken
        if not taken:
            bounds = [text for model in kept for text in (model.encode(), VERY_SLOW)]
        left = len(queue.waiting)
        needs_lease = bool(taken and left and queue.late and len(self.leases) < workers)
        queue.late = False
        return [
            [jobs, left, others, int(needs_lease)],
            bounds,
            *((e if isinstance(e, str) else e.text).encode() for e in taken),
        ]

    def renew(self, lease: str) -> int:
        """Extend a lease, if it is valid."""
        if lease not in self.leases:
            return 0
        self.leases[lease] = True
        return 1

    def _complete(self, lease: str) -> None:
        done = {entry.text for entry in self.claimed.pop(lease, []) if isinstance(entry, WorkerRequest)}
        self.queues[PREDICT.name].done |= done

    def release(self, lease: str, when: str) -> int:
        """End a lease: if no model has work, if another lease is awake, or always."""
        if when == "idle" and any(queue.waiting for queue in self.queues.values()):
            return 0
        if when == "spare" and not any(awake for other, (_, awake, _) in self.holders.items() if other != lease):
            return 0
        self.leases.pop(lease, None)
        self.holders.pop(lease, None)
        self._complete(lease)
        return 1

    def abandon(self, lease: str, *, died: bool) -> None:
        """Put the claimed entries of a lease back, in order."""
        self.holders.pop(lease, None)
        if self.leases.pop(lease, None) is None:
            return
        for entry in reversed(self.claimed.pop(lease, [])):
            self.queues[LEARN.name if isinstance(entry, str) else PREDICT.name].put_back(entry, died=died)

    def contents(self) -> dict[str, Any]:
        """Return all that Redis should hold of the leases."""
        return {
            "leases": self.leases,
            "holders": self.holders,
            "claimed": {lease: entries for lease, entries in self.claimed.items() if entries},
            "woken by": self.wake_ups[-1:],
        }

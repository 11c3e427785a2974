"""The schedule of faults: a list of events, drawn from a seed before the run begins.

Owns the kinds of faults and their counts. Never inspects the stack: the process that an event's `target` stands for is
chosen when the event is applied, because workers change. Invariant: the same seed, length and plan give the same list.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

KILL_WORKER, PAUSE_WORKER, KILL_GATEWAY = "kill worker", "pause worker", "kill gateway"
KILL_STORE, KILL_QUEUE = "kill store", "kill queue"
CUT, SLOW, HANG, DROP, TEAR = "cut", "slow", "hang", "drop replies", "tear requests"
ACTIONS = (KILL_WORKER, PAUSE_WORKER, KILL_GATEWAY, KILL_STORE, KILL_QUEUE, CUT, SLOW, HANG, DROP, TEAR)

# Range of the duration of each fault, in seconds. For a pause, the TTL of lock and lease is added.
DURATIONS_S: Mapping[str, tuple[float, float]] = {
    # A sweep, once per second, finds the expired lease; only then another worker learns the rows of the paused one.
    PAUSE_WORKER: (1.2, 2.0),
    KILL_STORE: (0.1, 2.0),
    KILL_QUEUE: (0.1, 1.0),
    SLOW: (1.0, 3.0),
    HANG: (0.5, 1.5),
}
# No fault starts in this last share of the run, so that its effects still appear under load.
QUIET_SHARE = 0.04
# Pauses are long and frequent. They start in the first share of each cycle, so that other faults also occur alone.
CYCLES, PAUSING_SHARE = 20, 0.6


@dataclass(frozen=True, slots=True)
class Event:
    """One fault: `at_s` seconds after the start of the load; `target` selects one of several; `duration_s` or 0."""

    at_s: float
    action: str
    target: int
    duration_s: float

    def __str__(self) -> str:
        duration = f" for {self.duration_s:.2f} s" if self.duration_s else ""
        return f"{self.at_s:8.2f} s  {self.action} {self.target}{duration}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Number of faults of each kind; `long_outage_s` is the length of one outage of the store, in mid-run."""

    counts: Mapping[str, int]
    long_outage_s: float = 0.0


def long_plan(seconds: float) -> Plan:
    """Return the plan of the long run, scaled to `seconds`.

    It has more kills than required, because a process that is down already is not killed again.
    """
    full = {
        KILL_WORKER: 560, PAUSE_WORKER: 340, KILL_GATEWAY: 64, KILL_STORE: 25, KILL_QUEUE: 8,
        CUT: 40, SLOW: 16, HANG: 12, DROP: 60, TEAR: 60,
    }  # fmt: skip
    return Plan({action: round(count * seconds / 1200) for action, count in full.items()}, long_outage_s=30.0)


def draw(seed: int, seconds: float, plan: Plan) -> list[Event]:
    """Draw the events of a run of `seconds`, ordered by time."""
    drawn = random.Random(seed)
    events = []
    for action in ACTIONS:
        count = plan.counts.get(action, 0)
        for number in range(count):
            # Spread over the run but irregular: each event has a slot of equal length, and a random time in it.
            at = (number + drawn.random()) / count
            if action == PAUSE_WORKER:
                cycle, offset = divmod(at * CYCLES, 1)
                at = (cycle + offset * PAUSING_SHARE) / CYCLES
            at_s = at * seconds * (1 - QUIET_SHARE)
            low, high = DURATIONS_S.get(action, (0.0, 0.0))
            events.append(Event(at_s, action, drawn.randrange(1000), drawn.uniform(low, high)))
    if plan.long_outage_s:
        events.append(Event(seconds / 2, KILL_STORE, 0, plan.long_outage_s))
    return sorted(events, key=lambda event: event.at_s)

"""What is harmed, and when: one list of events, drawn from a seed before the run begins.

Owns the kinds of harm and how often each is done. Never looks at the stack: which process an event's `target` means in
the end is decided where it is done, because workers come and go. Invariant: the same seed, length and plan give the
same list.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

KILL_WORKER, PAUSE_WORKER, KILL_GATEWAY = "kill worker", "pause worker", "kill gateway"
KILL_STORE, KILL_QUEUE = "kill store", "kill queue"
CUT, SLOW, HANG, DROP, TEAR = "cut", "slow", "hang", "drop replies", "tear requests"
ACTIONS = (KILL_WORKER, PAUSE_WORKER, KILL_GATEWAY, KILL_STORE, KILL_QUEUE, CUT, SLOW, HANG, DROP, TEAR)

# How long each harm lasts, in seconds; for a pause beyond the life of lock and lease, which is the life plus this.
LASTS_S: Mapping[str, tuple[float, float]] = {
    # A sweep, once a second, finds the expired lease; only then does somebody else learn the sleeper's rows.
    PAUSE_WORKER: (1.2, 2.0),
    KILL_STORE: (0.1, 2.0),
    KILL_QUEUE: (0.1, 1.0),
    SLOW: (1.0, 3.0),
    HANG: (0.5, 1.5),
}
# No harm is begun in the last part, so that what it leads to is still seen under load.
QUIET_PART = 0.04
# Pauses are long and many. They come in the first part of each cycle, so that other harm is seen by itself, too.
CYCLES, PAUSING_PART = 20, 0.6


@dataclass(frozen=True, slots=True)
class Event:
    """One harm: `at_s` after the load began; `target` picks one of several; `lasts_s` where it lasts."""

    at_s: float
    action: str
    target: int
    lasts_s: float

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:.2f} s" if self.lasts_s else ""
        return f"{self.at_s:8.2f} s  {self.action} {self.target}{lasts}"


@dataclass(frozen=True, slots=True)
class Plan:
    """How many of each harm a run does; `long_away_s` is how long the store is away once, in the middle."""

    counts: Mapping[str, int]
    long_away_s: float = 0.0


def long_plan(seconds: float) -> Plan:
    """Plan of the long run, scaled to `seconds`; a part that is down already is not killed again, so a few more."""
    full = {
        KILL_WORKER: 560, PAUSE_WORKER: 340, KILL_GATEWAY: 64, KILL_STORE: 25, KILL_QUEUE: 8,
        CUT: 40, SLOW: 16, HANG: 12, DROP: 60, TEAR: 60,
    }  # fmt: skip
    return Plan({action: round(count * seconds / 1200) for action, count in full.items()}, long_away_s=30.0)


def draw(seed: int, seconds: float, plan: Plan) -> list[Event]:
    """Draw the events of a run of `seconds`, in the order of their times."""
    drawn = random.Random(seed)
    events = []
    for action in ACTIONS:
        count = plan.counts.get(action, 0)
        for number in range(count):
            # Spread over the run and not regular: each has a part of it, and any moment of its part.
            at = (number + drawn.random()) / count
            if action == PAUSE_WORKER:
                cycle, part = divmod(at * CYCLES, 1)
                at = (cycle + part * PAUSING_PART) / CYCLES
            at_s = at * seconds * (1 - QUIET_PART)
            low, high = LASTS_S.get(action, (0.0, 0.0))
            events.append(Event(at_s, action, drawn.randrange(1000), drawn.uniform(low, high)))
    if plan.long_away_s:
        events.append(Event(seconds / 2, KILL_STORE, 0, plan.long_away_s))
    return sorted(events, key=lambda event: event.at_s)

"""The schedule depends only on seed, length and plan."""

from collections import Counter

from tests.faults.schedule import ACTIONS, KILL_STORE, PAUSE_WORKER, Plan, draw, long_plan


def test_a_seed_determines_the_schedule() -> None:
    """The same seed gives the same events, another seed others; all are ordered by time and within the run."""
    plan = long_plan(1200)
    events = draw(7, 1200, plan)
    assert events == draw(7, 1200, plan)
    assert events != draw(8, 1200, plan)
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    assert all(0 <= event.at_s < 1200 for event in events)


def test_the_long_run_has_enough_faults_of_each_kind() -> None:
    """20 minutes have 500 kills and 300 pauses of workers, 50 kills of gateways, 20 of the store, and a long outage."""
    events = draw(7, 1200, long_plan(1200))
    done = Counter(event.action for event in events)
    least = {"kill worker": 500, "pause worker": 300, "kill gateway": 50, "kill store": 20}
    assert {action: done[action] >= count for action, count in least.items()} == dict.fromkeys(least, True)
    assert set(done) == set(ACTIONS)
    assert max(event.duration_s for event in events if event.action == KILL_STORE) == 30


def test_pauses_start_early_in_each_cycle() -> None:
    """Pauses start in the first 60 % of each cycle, so that other faults also occur alone."""
    events = draw(1, 200, Plan({PAUSE_WORKER: 100}))
    cycle_s = 200 * 0.96 / 20
    assert max(event.at_s % cycle_s for event in events) < 0.6 * cycle_s

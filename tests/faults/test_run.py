"""A short run: every kind of fault is injected, and exactly the accepted rows are learned."""

import sys
from pathlib import Path

import pytest
import uvloop

from keepfit.backends import redis_scripts
from tests.faults import schedule
from tests.faults.naive import without_checks
from tests.faults.run import Settings, run_faults
from tests.faults.schedule import Plan, draw

SECONDS, SEED, ROWS = 22.0, 4, 1800
PLAN = Plan(
    {
        schedule.KILL_WORKER: 12, schedule.PAUSE_WORKER: 12, schedule.KILL_GATEWAY: 2, schedule.KILL_STORE: 2,
        schedule.KILL_QUEUE: 1, schedule.CUT: 2, schedule.SLOW: 1, schedule.HANG: 1, schedule.DROP: 3, schedule.TEAR: 3,
    }
)  # fmt: skip

# With a lock alone, a worker stopped at its commit and resumed after the commits of others is enough to lose rows.
PULLED = 1000
CONTROL = Settings(SEED, seconds=8.0, rows=800, models=2, workers=3, gateways=1, lease_ttl_s=0.8, one_stops_itself=True)
CONTROL_STOPS = "commit.sealed:20:stop"
CONTROL_TRIALS = 4


@pytest.mark.timeout(240)
def test_accepted_rows_are_learned_once_and_in_order_under_faults(tmp_path: Path) -> None:
    """With faults in processes, both Redis and connections under load, sent = accepted = learned rows, in order."""
    settings = Settings(SEED, SECONDS, ROWS, lease_ttl_s=1.0, pulled_rows=PULLED)
    outcome = uvloop.run(run_faults(tmp_path, settings, draw(SEED, SECONDS, PLAN)))
    assert outcome.errors == []
    *sent, pulled = outcome.verdicts
    assert sum(verdict.learned for verdict in sent) == ROWS
    assert pulled.learned == pulled.sent > PULLED * 0.9
    # Each kind of fault was injected, and paused workers tried to commit.
    assert {action for action, count in outcome.done.items() if count} == set(PLAN.counts)
    assert outcome.workers_died >= 8
    assert outcome.refused >= 1
    assert outcome.replies_dropped >= 1
    assert outcome.requests_torn >= 1


@pytest.mark.timeout(400)
def test_a_lock_alone_loses_rows_and_the_verification_detects_it(tmp_path: Path) -> None:
    """With a commit that does not compare, resumed workers overwrite newer bundles; the verification reports it.

    In one of a few trials: what one of them has overwritten, the next commit of another may overwrite again.
    """
    assert any(_loses_rows(tmp_path / str(trial)) for trial in range(CONTROL_TRIALS))


def _loses_rows(folder: Path) -> bool:
    """Run the control once; return whether the verification reports rows that are not in a bundle."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.faults.naive", "--data", str(folder), "worker"]
    environment = {"KEEPFIT_FAULT_POINT": CONTROL_STOPS}
    outcome = uvloop.run(run_faults(folder, CONTROL, [], worker_command=command, environment=environment))
    assert outcome.done[schedule.PAUSE_WORKER] == 1
    assert outcome.refused == 0
    errors = [error for verdict in outcome.verdicts for error in verdict.errors]
    return all(any(error.startswith(what) for error in errors) for what in ("rows seen, in the bundle: ", "estimator."))


def test_the_control_is_the_commit_script_without_its_checks() -> None:
    """The script of the control has every write of commit.lua and no refusal."""
    naive = without_checks(redis_scripts.TEXTS["commit"])
    assert "return -" not in naive
    assert "return 0" not in naive
    for write in ("RENAME", "HINCRBY", "XTRIM", "PUBLISH"):
        assert write in naive

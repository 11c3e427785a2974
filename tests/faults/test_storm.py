"""The storm in small: everything is harmed for a while, and what was accepted is what was learned."""

import sys
from pathlib import Path

import pytest
import uvloop

from keepfit.backends import redis_scripts
from tests.faults import schedule
from tests.faults.naive import without_checks
from tests.faults.schedule import Plan, draw
from tests.faults.storm import Settings, storm

SECONDS, SEED, ROWS = 22.0, 4, 1800
PLAN = Plan(
    {
        schedule.KILL_WORKER: 12, schedule.PAUSE_WORKER: 12, schedule.KILL_GATEWAY: 2, schedule.KILL_STORE: 2,
        schedule.KILL_QUEUE: 1, schedule.CUT: 2, schedule.SLOW: 1, schedule.HANG: 1, schedule.DROP: 3, schedule.TEAR: 3,
    }
)  # fmt: skip

# A sleeper that wakes up with rows in hand is all that the naive lock needs to lose rows.
CONTROL_SECONDS = 8.0
CONTROL_PLAN = Plan({schedule.PAUSE_WORKER: 8})


@pytest.mark.timeout(240)
def test_what_was_accepted_is_learned_once_and_in_order_whatever_is_harmed(tmp_path: Path) -> None:
    """Processes, both Redis and their connections are harmed under load: sent = accepted = learned, in order."""
    settings = Settings(SEED, SECONDS, ROWS, lease_ttl_s=1.0)
    outcome = uvloop.run(storm(tmp_path, settings, draw(SEED, SECONDS, PLAN)))
    assert outcome.faults == []
    assert sum(verdict.learned for verdict in outcome.verdicts) == ROWS
    # It was a storm: each kind of harm was done, and sleepers did try to commit.
    assert {action for action, count in outcome.done.items() if count} == set(PLAN.counts)
    assert outcome.workers_died >= 8
    assert outcome.refused >= 1
    assert outcome.replies_dropped >= 1
    assert outcome.requests_torn >= 1


@pytest.mark.timeout(240)
def test_a_lock_alone_would_lose_rows_and_the_check_sees_it(tmp_path: Path) -> None:
    """The control: with a commit that does not compare, sleepers overwrite what others learned; the check says so."""
    settings = Settings(SEED, CONTROL_SECONDS, rows=800, models=2, workers=3, gateways=1, lease_ttl_s=0.8)
    command = [sys.executable, "-m", "tests.faults.naive", "--data", str(tmp_path), "worker"]
    events = draw(SEED, CONTROL_SECONDS, CONTROL_PLAN)
    outcome = uvloop.run(storm(tmp_path, settings, events, worker_command=command))
    # Rows that were overwritten and are in no inbox any more are waited for in vain.
    assert all("nothing was learned" in wrong for wrong in outcome.wrong)
    assert any(verdict.learned < verdict.accepted for verdict in outcome.verdicts)
    assert any(verdict.order_hash and "estimator" in " ".join(verdict.faults) for verdict in outcome.verdicts)
    assert outcome.refused == 0


def test_the_control_is_the_script_without_its_checks() -> None:
    """What the control runs has every write of commit.lua and no refusal."""
    naive = without_checks(redis_scripts.TEXTS["commit"])
    assert "return -" not in naive
    assert "return 0" not in naive
    for write in ("RENAME", "HINCRBY", "XTRIM", "PUBLISH"):
        assert write in naive

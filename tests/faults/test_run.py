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

# With a lock alone, a paused worker that resumes with claimed rows is enough to lose rows.
CONTROL_SECONDS = 8.0
CONTROL_PLAN = Plan({schedule.PAUSE_WORKER: 8})


@pytest.mark.timeout(240)
def test_accepted_rows_are_learned_once_and_in_order_under_faults(tmp_path: Path) -> None:
    """With faults in processes, both Redis and connections under load, sent = accepted = learned rows, in order."""
    settings = Settings(SEED, SECONDS, ROWS, lease_ttl_s=1.0)
    outcome = uvloop.run(run_faults(tmp_path, settings, draw(SEED, SECONDS, PLAN)))
    assert outcome.errors == []
    assert sum(verdict.learned for verdict in outcome.verdicts) == ROWS
    # Each kind of fault was injected, and paused workers tried to commit.
    assert {action for action, count in outcome.done.items() if count} == set(PLAN.counts)
    assert outcome.workers_died >= 8
    assert outcome.refused >= 1
    assert outcome.replies_dropped >= 1
    assert outcome.requests_torn >= 1


@pytest.mark.timeout(240)
def test_a_lock_alone_loses_rows_and_the_verification_detects_it(tmp_path: Path) -> None:
    """With a commit that does not compare, resumed workers overwrite newer bundles; the verification reports it."""
    settings = Settings(SEED, CONTROL_SECONDS, rows=800, models=2, workers=3, gateways=1, lease_ttl_s=0.8)
    command = [sys.executable, "-m", "tests.faults.naive", "--data", str(tmp_path), "worker"]
    events = draw(SEED, CONTROL_SECONDS, CONTROL_PLAN)
    outcome = uvloop.run(run_faults(tmp_path, settings, events, worker_command=command))
    # Overwritten rows are in no inbox any more: waiting for them times out.
    assert all("nothing was learned" in error for error in outcome.load_errors)
    assert any(verdict.learned < verdict.accepted for verdict in outcome.verdicts)
    assert any(verdict.order_hash and "estimator" in " ".join(verdict.errors) for verdict in outcome.verdicts)
    assert outcome.refused == 0


def test_the_control_is_the_commit_script_without_its_checks() -> None:
    """The script of the control has every write of commit.lua and no refusal."""
    naive = without_checks(redis_scripts.TEXTS["commit"])
    assert "return -" not in naive
    assert "return 0" not in naive
    for write in ("RENAME", "HINCRBY", "XTRIM", "PUBLISH"):
        assert write in naive

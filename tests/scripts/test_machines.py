"""The scripts equal their plain models, in the same examples of up to fifty steps in every run."""

from typing import Any

import pytest

from keepfit.backends import redis_keys
from tests.scripts.bench import Bench
from tests.scripts.runner import MACHINES, drive
from tests.scripts.store_machine import A, StoreMachine

EXAMPLES = 30


@pytest.mark.parametrize("name", MACHINES)
def test_scripts_equal_the_plain_model(scripts_bench: Bench, name: str) -> None:
    """After any sequence of calls, deaths and expirations, Redis holds what the plain model holds."""
    drive(MACHINES[name], scripts_bench, EXAMPLES)
    assert scripts_bench.examples >= EXAMPLES


def test_large_rows_accepted_during_a_deletion_are_deleted(scripts_bench: Bench) -> None:
    """Rows accepted after the look-up of a model's keys, before its deletion or replacement, are deleted."""
    bound: Any = type("Bound", (StoreMachine,), {"bench": scripts_bench})
    machine = bound()
    machine._install(A, again=True)
    machine._install(A, again=True, late=True)
    machine._delete(A, recreated=False, late=True)
    machine.teardown()
    assert [name for name in scripts_bench.keys() if name.startswith(redis_keys.large_rows(A, ""))] == []  # noqa: SIM118

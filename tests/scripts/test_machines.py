"""The scripts beside plain models of them, in the same examples in every run, of up to fifty steps each."""

from typing import Any

import pytest

from keepfit.backends import redis_keys
from tests.scripts.bench import Bench
from tests.scripts.driving import MACHINES, drive
from tests.scripts.models import A, Models

EXAMPLES = 30


@pytest.mark.parametrize("name", MACHINES)
def test_scripts_do_what_the_plain_model_does(scripts_bench: Bench, name: str) -> None:
    """Whatever clients, workers and time do in whatever order, Redis holds what the plain model holds."""
    drive(MACHINES[name], scripts_bench, EXAMPLES)
    assert scripts_bench.examples >= EXAMPLES


def test_large_rows_go_with_a_model_that_is_deleted_while_they_come_in(scripts_bench: Bench) -> None:
    """Rows accepted after the look for what a model has, and before it is deleted or replaced, do not stay behind."""
    bound: Any = type("Bound", (Models,), {"bench": scripts_bench})
    machine = bound()
    machine._make(A, again=True)
    machine._make(A, again=True, late=True)
    machine._delete(A, made_again=False, late=True)
    machine.teardown()
    assert [name for name in scripts_bench.keys() if name.startswith(redis_keys.big(A, ""))] == []  # noqa: SIM118

"""Run a machine, always on the same examples, so that every failure repeats."""

import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from redis.exceptions import NoScriptError, ResponseError

from tests.scripts.bench import Bench
from tests.scripts.dead_letter_machine import DeadLetterMachine
from tests.scripts.job_machine import JobMachine
from tests.scripts.mutants import Mutant, in_place
from tests.scripts.open_rows_machine import OpenRowsMachine
from tests.scripts.run_queue_machine import RunQueueMachine
from tests.scripts.token_machine import TokenMachine

MACHINES: dict[str, type[RuleBasedStateMachine]] = {
    "models": DeadLetterMachine,
    "open rows": OpenRowsMachine,
    "run queue": RunQueueMachine,
    "pull jobs": JobMachine,
    "tokens": TokenMachine,
}
STEPS = 50
# The mutants that are hardest to detect take some hundred examples. The first tenth of a run is small examples, which
# detect little: so many short runs take fewer examples for them than a long one.
MUTANT_RUNS, MUTANT_EXAMPLES = 10, 40


@dataclass(frozen=True, slots=True)
class Detection:
    """The rule or invariant that detected a mutant, and the number of the example."""

    by: str
    example: int


def drive(
    machine: type[RuleBasedStateMachine], bench: Bench, examples: int, *, shrink: bool = True, seed: int | None = None
) -> None:
    """Run examples of up to :data:`STEPS` steps on `bench`; with `shrink`, shrink a failing one.

    Each `seed` stands for other examples.
    """
    bound: Any = type(machine.__name__, (machine,), {"bench": bench, "_hypothesis_internal_use_seed": seed})
    run_state_machine_as_test(
        bound,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
            derandomize=True,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def find_failure(mutant: Mutant, bench: Bench) -> Detection | None:
    """Run the machine on a mutant; return None if it detects nothing.

    A script that fails at a command, as RENAME of a key that is gone, is noticed as well.
    """
    machine = MACHINES[mutant.machine]
    bench.examples = 0
    # Load it first: a trip that misses only this script would be made twice. A real server loses all scripts at once.
    bench.client.script_load(mutant.text())
    try:
        with in_place(mutant):
            for seed in range(MUTANT_RUNS):
                # Where the clock of Redis counts, an example may fail once and not again: then the next run decides.
                with suppress(Flaky):
                    drive(machine, bench, MUTANT_EXAMPLES, shrink=False, seed=seed)
    except NoScriptError:
        raise
    except (AssertionError, LookupError, ResponseError) as error:
        # Only rules and invariants are public methods of a machine.
        own = [kind for kind in machine.__mro__ if kind.__module__.startswith(__package__)]
        names = {name for kind in own for name in vars(kind) if not name.startswith("_")}
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        return Detection(next(name for name in frames if name in names), bench.examples)
    return None

"""Running a machine: always the same examples, so that what fails once fails again."""

import traceback
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from redis.exceptions import NoScriptError, ResponseError

from tests.scripts.bench import Bench
from tests.scripts.dead_letters import Aside
from tests.scripts.mutants import Mutant, in_place
from tests.scripts.run_queue import Rooms

MACHINES: dict[str, type[RuleBasedStateMachine]] = {"models": Aside, "rooms": Rooms}
STEPS = 50
# The slowest to be noticed take some hundred.
MUTANT_EXAMPLES = 400


@dataclass(frozen=True, slots=True)
class Caught:
    """What noticed a mutant: the rule, or what must hold after every step; in which example."""

    by: str
    example: int


def drive(machine: type[RuleBasedStateMachine], bench: Bench, examples: int, *, shrink: bool = True) -> None:
    """Run examples of up to :data:`STEPS` steps on `bench`; what fails is shrunk, where that is asked for."""
    bound: Any = type(machine.__name__, (machine,), {"bench": bench})
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


def hunt(mutant: Mutant, bench: Bench) -> Caught | None:
    """Run the machine on a mutant; None where it notices nothing.

    A script that fails at a command, as RENAME of a key that is gone, is noticed as well.
    """
    machine = MACHINES[mutant.machine]
    bench.examples = 0
    # A trip that misses one script alone is made twice, which no server that forgets brings about: it forgets them all.
    bench.client.script_load(mutant.text())
    try:
        with in_place(mutant):
            drive(machine, bench, MUTANT_EXAMPLES, shrink=False)
    except NoScriptError:
        raise
    except (AssertionError, LookupError, ResponseError) as error:
        # Rules, and what must hold, are a machine's only public methods.
        own = [kind for kind in machine.__mro__ if kind.__module__.startswith(__package__)]
        names = {name for kind in own for name in vars(kind) if not name.startswith("_")}
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        return Caught(next(name for name in frames if name in names), bench.examples)
    return None

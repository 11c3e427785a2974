"""One execution of the benchmarks: its rounds, durations and results so far.

Owns how a load is run and recorded. Never knows a scenario (:mod:`benchmarks.scenarios`). Invariant: every run of a
load gets a seed of its own, so that no run repeats the rows of another.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import Call, Load, LoadError, Sample, run
from benchmarks.results import Results

ROUNDS_FULL, ROUNDS_QUICK = 5, 1
SECONDS_FULL, SECONDS_QUICK = 4.0, 2.0
MODELS_FULL, MODELS_QUICK = 10_000, 1_000
WARM_UP_S = 1.0


@dataclass(slots=True)
class Bench:
    """One execution: number of rounds, seconds per run, number of models, and the results so far."""

    results: Results
    rounds: int = ROUNDS_FULL
    seconds: float = SECONDS_FULL
    models: int = MODELS_FULL
    log: Callable[[str], None] = lambda line: None
    seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def measure(self, scenario: str, system: str, url: str, call: Call, load: Load) -> Sample | None:
        """Run a load and store its sample; return None if there is no result."""
        try:
            sample = run(url, call, load, next(self.seeds))
        except LoadError as error:
            self.results.fail(scenario, system, str(error))
            return None
        self.results.add(scenario, system, sample)
        self.log(f"{scenario} {system}: {sample.errors or f'{sample.rate:,.0f}/s, p99 {sample.p99_ms:.2f} ms'}")
        return sample


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder for one start of one system, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="keepfit-bench-") as name:
        yield Path(name) / "run"

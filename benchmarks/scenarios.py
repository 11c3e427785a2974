"""What is measured: for every system the same scenarios, then those that concern keepfit alone.

Owns connections, rows, models and order of all runs. Never starts a peer itself (:mod:`benchmarks.systems`) and never
reports. Invariants: one system runs at a time; each round goes through all systems before the next begins, so that what
the machine does meanwhile hits all of them alike.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import restore, stack
from benchmarks.load import Call, Load, LoadError, Sample, run
from benchmarks.processes import StartError
from benchmarks.results import Results
from benchmarks.systems import SYSTEMS, Running

ROUNDS_FULL, ROUNDS_QUICK = 5, 1
SECONDS_FULL, SECONDS_QUICK = 4.0, 2.0
MODELS_FULL, MODELS_QUICK = 10_000, 1_000
WARM_UP_S = 1.0
DRAIN_S_MAX = 120.0

# How unevenly models are asked for: the k-th most popular one with a share like 1 / k^1.1.
ZIPF_EXPONENT = 1.1
SOME_MODELS = 100
RESTORED_MODELS = 1_000
MANY_CONNECTIONS = 64

# A row through so many logistic functions takes over a millisecond, in a batch as well as alone: four rows take 5 ms.
SLOW_UNITS = 120_000
SLOW_TEMPLATE = '{"X":[[%.6f,%.6f,%.6f,%.6f],[1,2,3,4],[2,3,4,1],[3,4,1,2]]}'
SLOW_CONNECTIONS = 16
SLOW_RECIPE = {
    "estimator": "MLPRegressor",
    "params": {"hidden_layer_sizes": [SLOW_UNITS], "activation": "logistic", "solver": "sgd"},
    "updates": "merged",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# The snapshotter's pass over thousands of new models would fall into some runs and not into others.
NO_SNAPSHOTS = {"KEEPFIT_SNAPSHOT_EVERY_S": "86400"}


@dataclass(slots=True)
class Bench:
    """One execution: how long, how often, how many, and what came of it so far."""

    results: Results
    rounds: int = ROUNDS_FULL
    seconds: float = SECONDS_FULL
    models: int = MODELS_FULL
    tell: Callable[[str], None] = lambda what: None
    seeds: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def measure(self, scenario: str, system: str, url: str, call: Call, load: Load) -> Sample | None:
        """Run a load and keep what came of it; None where there was no result."""
        try:
            sample = run(url, call, load, next(self.seeds))
        except LoadError as error:
            self.results.fail(scenario, system, str(error))
            return None
        self.results.add(scenario, system, sample)
        self.tell(f"{scenario} {system}: {sample.errors or f'{sample.rate:,.0f}/s, p99 {sample.p99_ms:.2f} ms'}")
        return sample


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder for one start of one system; it goes with it."""
    with tempfile.TemporaryDirectory(prefix="keepfit-bench-") as name:
        yield Path(name) / "run"


def steps(bench: Bench, only: frozenset[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """All that is to be done, in order: a title and what to call. `only` names systems or groups; empty is all."""
    for number, system in itertools.product(range(1, bench.rounds + 1), SYSTEMS):
        if not only or system.name in only:
            yield f"round {number}: {system.title}", lambda name=system.name: compare(bench, name)  # type: ignore[misc]
    for group, function in (("models", many_models), ("workers", more_workers), ("restore", lost_redis)):
        if not only or group in only:
            yield group, lambda function=function: alone(bench, function)  # type: ignore[misc]
    if not only or "snapshots" in only:
        # It imports this module.
        from benchmarks.snapshots import snapshots  # noqa: PLC0415

        yield "snapshots", lambda: snapshots(bench)


# For every system.


def compare(bench: Bench, name: str) -> None:
    """Start one system, put it through all scenarios that concern it, and stop it."""
    system = next(system for system in SYSTEMS if system.name == name)
    if bench.results.of("start", name).failure and not bench.results.of("predict_1", name).samples:
        return
    try:
        with folder() as place, system.start(place) as running:
            predict_fresh(bench, name, running)
            if name in ("keepfit", "echo"):
                predict_repeated(bench, name, running)
            if name != "echo":
                predict_at_half(bench, name, running)
            if running.learn is not None:
                learn(bench, name, running, running.learn)
    except (StartError, LoadError) as error:
        bench.results.fail("start", name, str(error))
        bench.tell(f"{name} is left out: {error}")


def predict_fresh(bench: Bench, name: str, running: Running) -> None:
    """A row in each request that was never asked for before, at 1, 32 and 128 connections."""
    run(running.url, running.predict, Load(MANY_CONNECTIONS, WARM_UP_S), next(bench.seeds))
    for connections in (1, 32, 128):
        load = Load(connections, bench.seconds)
        bench.measure(f"predict_{connections}", name, running.url, running.predict, load)


def predict_repeated(bench: Bench, name: str, running: Running) -> None:
    """The same row in each request, at 1 and 32 connections."""
    for connections in (1, 32):
        load = Load(connections, bench.seconds, fresh=False)
        bench.measure(f"repeated_{connections}", name, running.url, running.predict, load)


def predict_at_half(bench: Bench, name: str, running: Running) -> None:
    """Rows at half of the rate that this round found at 32 connections."""
    peak = bench.results.of("predict_32", name).samples
    if peak and not peak[-1].failed:
        load = Load(32, bench.seconds, rate=peak[-1].rate / 2)
        bench.measure("half", name, running.url, running.predict, load)


def learn(bench: Bench, name: str, running: Running, call: Call) -> None:
    """A row to learn in each request, at 32 connections; for keepfit also how soon all of them were learned."""
    before = running.stack.describe(running.model_hash)["rows_seen"] if running.stack else 0
    begin = time.monotonic()
    sample = bench.measure("learn", name, running.url, call, Load(32, bench.seconds))
    if sample is None or running.stack is None:
        return
    described = running.stack.drained(running.model_hash, DRAIN_S_MAX)
    # wrk's own start and end are in this time too, a few hundredths of a second.
    rate = (described["rows_seen"] - before) / (time.monotonic() - begin)
    bench.results.add("learned", name, sample.with_rate(rate))


# For keepfit alone.


def alone(bench: Bench, scenario: Callable[[Bench], None]) -> None:
    """Go through a scenario of keepfit's own; where it breaks off, what is missing says why."""
    try:
        scenario(bench)
    except (StartError, LoadError) as error:
        bench.tell(f"{scenario.__name__} broke off: {error}")
        names = {"many_models": "models_zipf", "more_workers": "workers_2"}
        missing = names.get(getattr(scenario, "__name__", ""), "restore")
        bench.results.fail(missing, "keepfit", str(error))


def many_models(bench: Bench) -> None:
    """Many models: one, a hundred, and thousands with Zipf-distributed traffic; memory."""
    with folder() as place, stack.started(place, environment=NO_SNAPSHOTS) as up:
        bench.results.figures["memory_before_mb"] = up.memory_mb()
        hashes = stack.make_models(
            up, bench.models, progress=lambda done: bench.tell(f"{done:,} models") if done % 1000 == 0 else None
        )
        traffic = {
            "models_1": (_paths(place, up, hashes[:1]), 0.0),
            f"models_{SOME_MODELS}": (_paths(place, up, hashes[:SOME_MODELS]), 0.0),
            "models_zipf": (_paths(place, up, hashes), ZIPF_EXPONENT),
        }
        call = up.predict(hashes[0])
        for paths, exponent in traffic.values():
            run(up.url, call, Load(MANY_CONNECTIONS, WARM_UP_S, paths=paths, exponent=exponent), next(bench.seeds))
        for _, (scenario, (paths, exponent)) in itertools.product(range(bench.rounds), traffic.items()):
            load = Load(MANY_CONNECTIONS, bench.seconds, paths=paths, exponent=exponent)
            peak = bench.measure(scenario, "keepfit", up.url, call, load)
            if peak is not None and not peak.failed:
                half = Load(MANY_CONNECTIONS, bench.seconds, rate=peak.rate / 2, paths=paths, exponent=exponent)
                bench.measure(f"{scenario}_half", "keepfit", up.url, call, half)
        bench.results.figures["memory_mb"] = up.memory_mb()


def lost_redis(bench: Bench) -> None:
    """Redis' data are lost: all models at their first use, and all by one command."""
    with folder() as place:
        bench.results.figures["restore"] = restore.measure(place, RESTORED_MODELS)


def _paths(place: Path, up: stack.Stack, hashes: list[str]) -> Path:
    """Write the models' paths where the load generators read them."""
    path = place / f"paths-{len(hashes)}"
    path.write_text("".join(f"{up.predict(model_hash).path}\n" for model_hash in hashes))
    return path


def more_workers(bench: Bench) -> None:
    """A model that takes 5 ms to answer a request, with one worker and with two."""
    for _, workers in itertools.product(range(bench.rounds), (1, 2)):
        with folder() as place, stack.started(place, workers, ONE_THREAD) as up:
            (made,) = stack.make_models(up, 1, SLOW_RECIPE)
            call = Call(up.predict(made).path, SLOW_TEMPLATE)
            # Until each worker holds the bundle.
            run(up.url, call, Load(SLOW_CONNECTIONS, 2 * WARM_UP_S), next(bench.seeds))
            bench.measure(f"workers_{workers}", "keepfit", up.url, call, Load(SLOW_CONNECTIONS, bench.seconds))

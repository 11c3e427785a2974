"""Scenarios: the same ones for every system, then those of keepfit alone.

Owns connections, rows, models and order of all runs. Never starts a peer itself (:mod:`benchmarks.systems`) and never
reports. Invariants: one system runs at a time; each round goes through all systems before the next round begins, so
that other load on the machine affects all systems alike.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import restore, stack
from benchmarks.bench import WARM_UP_S, Bench, temporary_folder
from benchmarks.load import Call, Load, LoadError, run
from benchmarks.processes import StartError
from benchmarks.snapshots import snapshots
from benchmarks.systems import SYSTEMS, RunningSystem

DRAIN_S_MAX = 120.0

# Distribution of requests over models: the k-th most popular one has a share proportional to 1 / k^1.1.
ZIPF_EXPONENT = 1.1
SOME_MODELS = 100
RESTORED_MODELS = 1_000
MANY_CONNECTIONS = 64

# A row takes over a millisecond for this many logistic functions, in a batch and alone: four rows take 5 ms.
SLOW_UNITS = 120_000
SLOW_TEMPLATE = '{"X":[[%.6f,%.6f,%.6f,%.6f],[1,2,3,4],[2,3,4,1],[3,4,1,2]]}'
SLOW_CONNECTIONS = 16
SLOW_RECIPE = {
    "estimator": "MLPRegressor",
    "params": {"hidden_layer_sizes": [SLOW_UNITS], "activation": "logistic", "solver": "sgd"},
    "updates": "merged",
}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# A snapshot pass over thousands of new models would affect some runs and not others.
NO_SNAPSHOTS = {"KEEPFIT_SNAPSHOT_EVERY_S": "86400"}


def steps(bench: Bench, only: frozenset[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield all steps in order, each with a title. `only` selects systems or groups; empty selects all."""
    for number, system in itertools.product(range(1, bench.rounds + 1), SYSTEMS):
        if not only or system.name in only:
            yield f"round {number}: {system.title}", lambda name=system.name: run_system(bench, name)  # type: ignore[misc]
    for group, function in (("models", many_models), ("workers", scale_workers), ("restore", lost_redis)):
        if not only or group in only:
            yield group, lambda function=function: run_group(bench, function)  # type: ignore[misc]
    if not only or "snapshots" in only:
        yield "snapshots", lambda: snapshots(bench)


# For every system.


def run_system(bench: Bench, name: str) -> None:
    """Start one system, run all scenarios that apply to it, and stop it."""
    system = next(system for system in SYSTEMS if system.name == name)
    if bench.results.of("start", name).failure and not bench.results.of("predict_1", name).samples:
        return
    try:
        with temporary_folder() as folder, system.start(folder) as running:
            predict_fresh(bench, name, running)
            if name in ("keepfit", "echo"):
                predict_repeated(bench, name, running)
            if name != "echo":
                predict_at_half(bench, name, running)
            if running.learn is not None:
                learn(bench, name, running, running.learn)
    except (StartError, LoadError) as error:
        bench.results.fail("start", name, str(error))
        bench.log(f"{name} is left out: {error}")


def predict_fresh(bench: Bench, name: str, running: RunningSystem) -> None:
    """Send a new row in each request, at 1, 32 and 128 connections."""
    run(running.url, running.predict, Load(MANY_CONNECTIONS, WARM_UP_S), next(bench.seeds))
    for connections in (1, 32, 128):
        load = Load(connections, bench.seconds)
        bench.measure(f"predict_{connections}", name, running.url, running.predict, load)


def predict_repeated(bench: Bench, name: str, running: RunningSystem) -> None:
    """Send the same row in each request, at 1 and 32 connections."""
    for connections in (1, 32):
        load = Load(connections, bench.seconds, fresh=False)
        bench.measure(f"repeated_{connections}", name, running.url, running.predict, load)


def predict_at_half(bench: Bench, name: str, running: RunningSystem) -> None:
    """Send rows at half of the rate that this round measured at 32 connections."""
    peak = bench.results.of("predict_32", name).samples
    if peak and not peak[-1].failed:
        load = Load(32, bench.seconds, rate=peak[-1].rate / 2)
        bench.measure("half", name, running.url, running.predict, load)


def learn(bench: Bench, name: str, running: RunningSystem, call: Call) -> None:
    """Send a row to learn in each request, at 32 connections; for keepfit, measure also when all are learned."""
    before = running.stack.describe(running.model_hash)["rows_seen"] if running.stack else 0
    begin = time.monotonic()
    sample = bench.measure("learn", name, running.url, call, Load(32, bench.seconds))
    if sample is None or running.stack is None:
        return
    described = running.stack.wait_until_learned(running.model_hash, DRAIN_S_MAX)
    # This time includes the start and end of wrk, a few hundredths of a second.
    rate = (described["rows_seen"] - before) / (time.monotonic() - begin)
    bench.results.add("learned", name, sample.with_rate(rate))


# For keepfit alone.


def run_group(bench: Bench, scenario: Callable[[Bench], None]) -> None:
    """Run a scenario of keepfit alone; if it fails, store the reason for the missing results."""
    try:
        scenario(bench)
    except (StartError, LoadError) as error:
        bench.log(f"{scenario.__name__} failed: {error}")
        names = {"many_models": "models_zipf", "scale_workers": "workers_2"}
        missing = names.get(getattr(scenario, "__name__", ""), "restore")
        bench.results.fail(missing, "keepfit", str(error))


def many_models(bench: Bench) -> None:
    """Measure one model, a hundred, and thousands with Zipf-distributed traffic, and memory."""
    with temporary_folder() as folder, stack.started(folder, environment=NO_SNAPSHOTS) as up:
        bench.results.figures["memory_before_mb"] = up.memory_mb()
        hashes = stack.make_models(
            up, bench.models, progress=lambda done: bench.log(f"{done:,} models") if done % 1000 == 0 else None
        )
        traffic = {
            "models_1": (_paths_file(folder, up, hashes[:1]), 0.0),
            f"models_{SOME_MODELS}": (_paths_file(folder, up, hashes[:SOME_MODELS]), 0.0),
            "models_zipf": (_paths_file(folder, up, hashes), ZIPF_EXPONENT),
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
    """Lose the data of Redis; measure the restore of all models, at first use and by one command."""
    with temporary_folder() as folder:
        bench.results.figures["restore"] = restore.measure(folder, RESTORED_MODELS)


def _paths_file(folder: Path, up: stack.Stack, hashes: list[str]) -> Path:
    """Write the file with the models' paths, which the load generators read."""
    path = folder / f"paths-{len(hashes)}"
    path.write_text("".join(f"{up.predict(model_hash).path}\n" for model_hash in hashes))
    return path


def scale_workers(bench: Bench) -> None:
    """Measure a model that takes 5 ms per request, with one worker and with two."""
    for _, workers in itertools.product(range(bench.rounds), (1, 2)):
        with temporary_folder() as folder, stack.started(folder, workers, ONE_THREAD) as up:
            (made,) = stack.make_models(up, 1, SLOW_RECIPE)
            call = Call(up.predict(made).path, SLOW_TEMPLATE)
            # Warm up until each worker has the bundle in its cache.
            run(up.url, call, Load(SLOW_CONNECTIONS, 2 * WARM_UP_S), next(bench.seeds))
            bench.measure(f"workers_{workers}", "keepfit", up.url, call, Load(SLOW_CONNECTIONS, bench.seconds))

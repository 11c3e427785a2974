"""`python -m benchmarks`: measure keepfit and its peers, write docs/operations/performance.md.

`make bench` installs them.
"""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import bench, history, machine, rowlog, scenarios
from benchmarks.load import LoadError, require_wrk
from benchmarks.profile import take_profile
from benchmarks.report import summary, write
from benchmarks.results import Results
from benchmarks.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
RESULTS_PATH = Path(__file__).with_name(".results") / "latest.json"
GROUPS = (*(system.name for system in SYSTEMS), "models", "workers", "snapshots", "restore", "profile")
# Not part of docs/operations/performance.md: their figures are in docs/guides/history.md and docs/concepts/row-log.md.
HISTORY, ROW_LOG = "history", "rowlog"

err = Console(stderr=True)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One short round and fewer models: indicative only.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Measure one group and print it, without writing docs: {', '.join((*GROUPS, HISTORY, ROW_LOG))}."
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="With --only: write docs with the new figures of this group.")
    ] = False,
    render: Annotated[
        bool, typer.Option("--render", help="Write docs from the last results, without measuring.")
    ] = False,
) -> None:
    """Measure keepfit and its peers under the same load, and write docs/operations/performance.md."""
    selected = frozenset(only or ())
    if selected == {HISTORY}:
        history.main(documents=history.COUNT_QUICK if quick else history.COUNT_FULL)
        return
    if selected == {ROW_LOG}:
        rowlog.main(rowlog.ROUNDS_QUICK if quick else rowlog.ROUNDS_FULL)
        return
    if selected - set(GROUPS):
        raise typer.BadParameter(f"{', '.join(sorted(selected - set(GROUPS)))}: choose from {', '.join(GROUPS)}")
    if render:
        write(Results.load(RESULTS_PATH), ROOT)
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        # Only the restore group runs without a load generator.
        if selected != {"restore"}:
            require_wrk()
    except LoadError as error:
        err.print(f"[red]{error}[/]")
        raise SystemExit(1) from None
    results = Results(conditions=machine.conditions(quick))
    measure(results, quick, selected)
    if selected:
        Console().print(summary(results), markup=False, highlight=False)
        if not update:
            return
        newer, results = results, Results.load(RESULTS_PATH)
        results.replace(newer)
    results.save(RESULTS_PATH)
    write(results, ROOT)
    err.print(f"docs/operations/performance.md is written; the samples are in {RESULTS_PATH.relative_to(ROOT)}")


def measure(results: Results, quick: bool, selected: frozenset[str]) -> None:
    """Run every step, with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        execution = bench.Bench(results, log=lambda line: bar.console.print(f"  {line}", highlight=False))
        if quick:
            execution.rounds, execution.seconds = bench.ROUNDS_QUICK, bench.SECONDS_QUICK
            execution.models = bench.MODELS_QUICK
        results.conditions |= {
            "rounds": execution.rounds,
            "seconds": execution.seconds,
            "models": execution.models,
        }
        steps = list(scenarios.steps(execution, selected))
        if not selected or "profile" in selected:
            steps.append(("profile", lambda: take_profile(execution)))
        task = bar.add_task("", total=len(steps))
        for title, step in steps:
            bar.update(task, description=title)
            step()
            bar.advance(task)


def _exit(signum: int, frame: FrameType | None) -> None:
    """Exit as after Ctrl-C, so that every started process is stopped."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    typer.run(main)

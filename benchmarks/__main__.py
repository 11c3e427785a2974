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

from benchmarks import history, machine, rowlog, scenarios
from benchmarks.load import LoadError, require_wrk
from benchmarks.profile import take_profile
from benchmarks.report import summary, write
from benchmarks.results import Results
from benchmarks.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_name(".results") / "latest.json"
GROUPS = (*(system.name for system in SYSTEMS), "models", "workers", "snapshots", "restore", "profile")
# Not for docs/operations/performance.md: their figures are in docs/guides/history.md and docs/concepts/row-log.md.
HISTORY, ROW_LOG = "history", "rowlog"
PARTS = (*GROUPS, HISTORY, ROW_LOG)

err = Console(stderr=True)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One short round and fewer models: indicative only.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Measure a part and print it, without writing docs: {', '.join((*GROUPS, HISTORY, ROW_LOG))}."
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="With --only: write docs with this part's new figures.")
    ] = False,
    render: Annotated[bool, typer.Option("--render", help="Write docs again from the last results.")] = False,
) -> None:
    """Measure keepfit and its peers under the same load, and write docs/operations/performance.md."""
    wanted = frozenset(only or ())
    if wanted == {HISTORY}:
        history.main(documents=history.COUNT_QUICK if quick else history.COUNT_FULL)
        return
    if wanted == {ROW_LOG}:
        rowlog.main(rowlog.ROUNDS_QUICK if quick else rowlog.ROUNDS_FULL)
        return
    if wanted - set(GROUPS):
        raise typer.BadParameter(f"{', '.join(sorted(wanted - set(GROUPS)))}: there are {', '.join(GROUPS)}")
    if render:
        write(Results.load(KEPT), ROOT)
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        # Only who loads something needs what makes load.
        if wanted != {"restore"}:
            require_wrk()
    except LoadError as error:
        err.print(f"[red]{error}[/]")
        raise SystemExit(1) from None
    results = Results(conditions=machine.conditions(quick))
    measure(results, quick, wanted)
    if wanted:
        Console().print(summary(results), markup=False, highlight=False)
        if not update:
            return
        part, results = results, Results.load(KEPT)
        results.replace(part)
    results.save(KEPT)
    write(results, ROOT)
    err.print(f"docs/operations/performance.md is written; the samples are in {KEPT.relative_to(ROOT)}")


def measure(results: Results, quick: bool, wanted: frozenset[str]) -> None:
    """Do every step, under a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bar:
        bench = scenarios.Bench(results, tell=lambda what: bar.console.print(f"  {what}", highlight=False))
        if quick:
            bench.rounds, bench.seconds = scenarios.ROUNDS_QUICK, scenarios.SECONDS_QUICK
            bench.models = scenarios.MODELS_QUICK
        results.conditions |= {"rounds": bench.rounds, "seconds": bench.seconds, "models": bench.models}
        todo = list(scenarios.steps(bench, wanted))
        if not wanted or "profile" in wanted:
            todo.append(("profile", lambda: take_profile(bench)))
        task = bar.add_task("", total=len(todo))
        for title, step in todo:
            bar.update(task, description=title)
            step()
            bar.advance(task)


def _end(signum: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C, so that everything that was started is stopped."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    typer.run(main)

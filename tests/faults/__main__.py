"""The command line of the fault harness: ``make faults``, or ``python -m tests.faults --seconds 1200 --seed 7``.

Prints the seed of the schedule first, so that a run can be repeated.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.faults import report
from tests.faults.run import Outcome, Settings, run_faults
from tests.faults.schedule import Event, draw, long_plan

ROWS_PER_SECOND = 100


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description="Inject faults into keepfit under load, verify what was learned."
    )
    parser.add_argument(
        "--seconds", type=float, default=1200.0, help="length of the load in seconds (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=7, help="seed of the schedule (default: %(default)s)")
    parser.add_argument("--rows", type=int, help=f"number of rows to send (default: {ROWS_PER_SECOND} per second)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="folder for data and logs (default: a new temporary folder)")
    parser.add_argument("--schedule", action="store_true", help="print the schedule and exit")
    parser.add_argument("--dry", action="store_true", help="do not write docs/operations/reliability.md")
    return parser.parse_args()


def main() -> int:
    """Run the harness; return 1 if it found an error."""
    options, console = arguments(), Console()
    rows = options.rows or round(options.seconds * ROWS_PER_SECOND)
    settings = Settings(options.seed, options.seconds, rows, workers=options.workers, pulled_rows=rows // 8)
    events = draw(options.seed, options.seconds, long_plan(options.seconds))
    if options.schedule:
        for event in events:
            console.print(str(event), highlight=False)
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="keepfit-faults-"))
    console.print(
        f"seed {options.seed}: {len(events)} events in {options.seconds:g} s, {rows:,} rows; logs in {folder}"
    )
    outcome = _run(settings, events, folder, console)
    console.print(report.table(outcome))
    for error in outcome.errors:
        console.print(f"[bold red]error[/] {error}", highlight=False)
    console.print(f"all results are in {report.save(outcome)}")
    if not options.dry:
        report.write(outcome)
        console.print(f"the figures are in {report.DOCUMENT}")
    return 1 if outcome.errors else 0


def _run(settings: Settings, events: list[Event], folder: Path, console: Console) -> Outcome:
    columns = (
        TextColumn("faults"), BarColumn(), TextColumn("{task.fields[rows]:,} rows, {task.fields[events]} events"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("faults", total=settings.seconds, rows=0, events=0)

        def show(elapsed_s: float, accepted: int, done: int) -> None:
            bar.update(task, completed=min(elapsed_s, settings.seconds), rows=accepted, events=done)

        return uvloop.run(run_faults(folder, settings, events, show))


if __name__ == "__main__":
    sys.exit(main())

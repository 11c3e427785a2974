"""The long run: ``make faults``, or ``python -m tests.faults --seconds 1200 --seed 7``.

Owns the command line of the harness. Prints the schedule's seed first, so that whatever is found can be played again.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.faults import report
from tests.faults.schedule import Event, draw, long_plan
from tests.faults.storm import Outcome, Settings, storm

ROWS_A_SECOND = 100


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Harm keepfit for a while, and check.")
    parser.add_argument("--seconds", type=float, default=1200.0, help="how long rows are sent (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="what the schedule is drawn from (default: %(default)s)")
    parser.add_argument("--rows", type=int, help=f"rows to send (default: {ROWS_A_SECOND} a second)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where data and logs go (default: a new temporary folder)")
    parser.add_argument("--schedule", action="store_true", help="print the schedule and end")
    parser.add_argument("--dry", action="store_true", help="leave docs/operations/reliability.md as it is")
    return parser.parse_args()


def main() -> int:
    """Make the run; return 1 where something was wrong."""
    given, console = arguments(), Console()
    rows = given.rows or round(given.seconds * ROWS_A_SECOND)
    settings = Settings(given.seed, given.seconds, rows, workers=given.workers)
    events = draw(given.seed, given.seconds, long_plan(given.seconds))
    if given.schedule:
        for event in events:
            console.print(str(event), highlight=False)
        return 0
    folder = given.folder or Path(tempfile.mkdtemp(prefix="keepfit-faults-"))
    console.print(f"seed {given.seed}: {len(events)} events in {given.seconds:g} s, {rows:,} rows; logs in {folder}")
    outcome = _run(settings, events, folder, console)
    console.print(report.table(outcome))
    for fault in outcome.faults:
        console.print(f"[bold red]wrong[/] {fault}", highlight=False)
    console.print(f"all of it is in {report.keep(outcome)}")
    if not given.dry:
        report.write(outcome)
        console.print(f"figures are in {report.DOCUMENT}")
    return 1 if outcome.faults else 0


def _run(settings: Settings, events: list[Event], folder: Path, console: Console) -> Outcome:
    columns = (
        TextColumn("faults"), BarColumn(), TextColumn("{task.fields[rows]:,} rows, {task.fields[events]} events"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("faults", total=settings.seconds, rows=0, events=0)

        def tell(elapsed_s: float, accepted: int, done: int) -> None:
            bar.update(task, completed=min(elapsed_s, settings.seconds), rows=accepted, events=done)

        return uvloop.run(storm(folder, settings, events, tell))


if __name__ == "__main__":
    sys.exit(main())

"""The command line: ``make abuse``, or ``python -m tests.abuse --seconds 600 --seed 7``."""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tests.abuse import report
from tests.abuse.run import Window, draw, run_abuse

LENGTH_S = 10.0


def main() -> int:
    """Run the attacks; return 1 if a bound was passed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.abuse", description="Attack a stack; measure what a well-behaved client notices."
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="length of all attacks (default: %(default)s)")
    parser.add_argument("--window", type=float, default=LENGTH_S, help="seconds with the same attacks")
    parser.add_argument("--seed", type=int, default=7, help="seed of their order (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="folder for data and logs (default: a new temporary folder)")
    parser.add_argument("--dry", action="store_true", help="do not write docs/operations/abuse.md")
    options, console = parser.parse_args(), Console()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="keepfit-abuse-"))
    windows = draw(options.seed, options.seconds, options.window)
    console.print(f"seed {options.seed}: {len(windows)} windows of {options.window:g} s; logs in {folder}")
    done = iter(track(windows, "attacks", console=console))

    def show(window: Window) -> None:
        next(done)
        console.print(f"{', '.join(window.attacks)}: {window.counts}", highlight=False)

    outcome = run_abuse(folder, options.seed, options.seconds, options.window, show)
    console.print(report.table(outcome))
    passed = report.bounds_passed(outcome) + report.times_passed(outcome)
    for each in passed[:50]:
        console.print(f"[bold red]worse than allowed[/] {each}", highlight=False)
    if not options.dry:
        report.write(outcome, options.seconds)
        console.print(f"the figures are in {report.DOCUMENT}")
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())

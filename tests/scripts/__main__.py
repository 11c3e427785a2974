"""The long version of these tests: ``python -m tests.scripts``.

It writes its figures into docs/contributing/scripts.md.

Runs both machines for a thousand examples each and every mutant, truncates the file at every byte of its tail,
and exits with 1 if a machine fails or a mutant is not detected. With names of mutants, it runs only those and writes
nothing.
"""

import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.scripts import truncated_log
from tests.scripts.bench import Bench, bench
from tests.scripts.mutants import MUTANTS, Mutant
from tests.scripts.runner import MACHINES, STEPS, Detection, drive, find_failure

PAGE = Path(__file__).parents[2] / "docs/contributing/scripts.md"
EXAMPLES = 1000


def print_line(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def try_mutants(opened: Bench, selected: Sequence[Mutant]) -> dict[Mutant, Detection]:
    """Run the machine on each mutant; return the detected ones."""
    detected = {}
    for mutant in selected:
        found = find_failure(mutant, opened)
        print_line(f"{mutant.id}: " + (f"{found.by}, example {found.example}" if found else "NOT DETECTED"))
        if found:
            detected[mutant] = found
    return detected


def cut_everywhere(folder: Path) -> list[str]:
    """Truncate a recorded file at each byte of its tail; return lines of the page."""
    recording = truncated_log.record(folder / "recorded")
    points = recording.points(every=1)
    for point, loaded in truncated_log.reloaded(folder / "reloaded", recording.log, points):
        truncated_log.check(loaded, recording, point)
    starts = recording.points(every=100)
    for point, loaded in truncated_log.started(folder / "started", recording.log, starts):
        truncated_log.check(loaded, recording, point)
    size = len(recording.log) - recording.tail
    return [
        f"- **{len(points)} cut points**: every byte of a tail of {size} bytes, **0 violations**.",
        f"- {len(starts)} starts of a server on a cut file, **0 violations**.",
    ]


def write_page(figures: Sequence[str], detected: dict[Mutant, Detection]) -> None:
    """Put the figures and the table of mutants into the page, between its markers."""
    table = ["| script | what is wrong | detected by | in example |", "|---|---|---|---|"]
    table += [f"| {m.script} | {m.name} | `{found.by}` | {found.example} |" for m, found in detected.items()]
    text = "\n".join([*figures, "", *table])
    page = re.sub(r"(?<=<!-- figures -->\n).*(?=\n<!-- end -->)", lambda _: text, PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(page)


def main(names: Sequence[str]) -> int:
    """Run everything or the named mutants; return the exit code."""
    selected = [mutant for mutant in MUTANTS if not names or mutant.id in names]
    if not selected:
        print_line("No such mutant. Example of a name: 'commit: the version rises by 2'.")
        return 2
    figures = []
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder) / "bench") as opened:
        if not names:
            for name, machine in MACHINES.items():
                began, opened.examples, opened.steps = time.monotonic(), 0, 0
                drive(machine, opened, EXAMPLES)
                done = f"{opened.examples} examples of up to {STEPS} steps, {opened.steps} steps in all"
                figures.append(f"- Machine `{name}`: {done}, **no difference**.")
                print_line(f"{figures[-1]} {time.monotonic() - began:.0f} s")
        detected = try_mutants(opened, selected)
        if not names:
            figures += [f"- **{len(detected)} of {len(selected)} mutants** detected.", *cut_everywhere(Path(folder))]
            print_line("\n".join(figures))
            write_page(figures, detected)
    return 0 if len(detected) == len(selected) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The long version of these tests: ``python -m tests.scripts``.

It writes its figures into docs/contributing/scripts.md.

Runs both machines for a thousand examples each, tries every mutant, cuts the file at every byte of its tail, and ends
with an error where a machine fails or a mutant is not noticed. With names of mutants it tries those and writes nothing.
"""

import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.scripts import cuts
from tests.scripts.bench import Bench, bench
from tests.scripts.driving import MACHINES, STEPS, Caught, drive, hunt
from tests.scripts.mutants import MUTANTS, Mutant

PAGE = Path(__file__).parents[2] / "docs/contributing/scripts.md"
EXAMPLES = 1000


def say(text: str) -> None:
    """Tell how it goes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def try_mutants(opened: Bench, wanted: Sequence[Mutant]) -> dict[Mutant, Caught]:
    """Hunt for each of `wanted`; return those that were caught."""
    caught = {}
    for mutant in wanted:
        found = hunt(mutant, opened)
        say(f"{mutant.id}: " + (f"{found.by}, example {found.example}" if found else "NOT NOTICED"))
        if found:
            caught[mutant] = found
    return caught


def cut_everywhere(folder: Path) -> list[str]:
    """Cut a recorded file at each byte of its tail; return lines of the page."""
    recording = cuts.record(folder / "recorded")
    points = recording.points(every=1)
    for point, loaded in cuts.reloaded(folder / "reloaded", recording.log, points):
        cuts.check(loaded, recording, point)
    starts = recording.points(every=100)
    for point, loaded in cuts.started(folder / "started", recording.log, starts):
        cuts.check(loaded, recording, point)
    size = len(recording.log) - recording.tail
    return [
        f"- **{len(points)} cut points**: every byte of a tail of {size} bytes, **0 violations**.",
        f"- {len(starts)} starts of a server on a cut file, **0 violations**.",
    ]


def write_page(figures: Sequence[str], caught: dict[Mutant, Caught]) -> None:
    """Put the figures and the table of mutants into the page, between its marks."""
    table = ["| script | what is wrong | noticed by | in example |", "|---|---|---|---|"]
    table += [f"| {m.script} | {m.name} | `{found.by}` | {found.example} |" for m, found in caught.items()]
    text = "\n".join([*figures, "", *table])
    page = re.sub(r"(?<=<!-- figures -->\n).*(?=\n<!-- end -->)", lambda _: text, PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(page)


def main(names: Sequence[str]) -> int:
    """Run what is asked for; return the exit code."""
    wanted = [mutant for mutant in MUTANTS if not names or mutant.id in names]
    if not wanted:
        say("There is no such mutant; they are named as in 'commit: two versions'.")
        return 2
    figures = []
    with tempfile.TemporaryDirectory() as folder, bench(Path(folder) / "bench") as opened:
        if not names:
            for name, machine in MACHINES.items():
                began, opened.examples, opened.steps = time.monotonic(), 0, 0
                drive(machine, opened, EXAMPLES)
                done = f"{opened.examples} examples of up to {STEPS} steps, {opened.steps} steps in all"
                figures.append(f"- Machine `{name}`: {done}, **no difference**.")
                say(f"{figures[-1]} {time.monotonic() - began:.0f} s")
        caught = try_mutants(opened, wanted)
        if not names:
            figures += [f"- **{len(caught)} of {len(wanted)} mutants** noticed.", *cut_everywhere(Path(folder))]
            say("\n".join(figures))
            write_page(figures, caught)
    return 0 if len(caught) == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

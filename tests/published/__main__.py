"""Write the tables of docs/reference/published-figures.md: ``python -m tests.published``.

Starts `keepfit up` in a temporary folder, computes every figure three ways, and exits with 1 if two of them differ.
"""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.conftest import Stack, start_stack, stop_stack
from tests.published import hosted, page, river_figures, sklearn_figures
from tests.published.page import Line


def print_line(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def river_lines(stack: Stack) -> list[Line]:
    """Return a line of the table for each figure of River."""
    lines = []
    upload_keys = stack.environment()["KEEPFIT_UPLOAD_KEYS"]
    with hosted.Service(stack.url) as service:
        for figure in river_figures.figures():
            found = hosted.host(service, figure, upload_keys)
            shown = (f"{figure.published.shown(value)}{figure.published.suffix}" for value in (figure.plain, found))
            lines.append(
                Line(figure.published.source, figure.published.metric, len(figure.rows), figure.published.text, *shown)
            )
            print_line(" ".join(lines[-1].cells()))
    return lines


def sklearn_lines(stack: Stack) -> list[Line]:
    """Return a line of the table for each answer of scikit-learn."""
    lines = []
    with hosted.Service(stack.url) as service:
        for figure in sklearn_figures.figures():
            answers = (figure.published, figure.plain, hosted.answer(service, figure))
            texts = [" ".join(f"{value:g}" for value in values) for values in answers]
            rows = sum(len(X) for X, _ in figure.batches)
            lines.append(Line(figure.source, f"`{figure.statement}`", rows, *texts))
            print_line(" ".join(lines[-1].cells()))
    return lines


def main() -> int:
    """Compute all figures, write the page, and return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        stack = start_stack(Path(folder) / "data")
        try:
            tables = {"river": river_lines(stack), "scikit-learn": sklearn_lines(stack)}
        finally:
            stop_stack(stack)
    page.write(tables, {"river": version("river"), "scikit-learn": version("scikit-learn")})
    lines = [line for table in tables.values() for line in table]
    differing = sum(line.differs for line in lines)
    print_line(f"{len(lines)} figures, {differing} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())

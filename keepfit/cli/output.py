"""What commands print: tables, JSON lines, progress bars and errors.

Owns the two forms of a table: aligned to the width of a terminal, or, in a pipe or file, one line per row with tabs
between the cells. Results go to standard output, everything else to standard error. Never reads anything, and imports
rich only to draw on a terminal. Invariant: text of a user is printed with its control characters escaped, never as
markup of the terminal.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import typer

from keepfit.observability.printable import printable, printable_json
from keepfit.times import format_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. What a terminal is too narrow for is shortened (`cut`) or continued below (`wrap`).

    A terminal with fewer characters than `width_min` does not show the column.
    """

    title: str
    fit: Literal["keep", "cut", "wrap"] = "keep"
    width_min: int = 0
    right: bool = False


HASH = Column("hash")
METADATA = Column("metadata", "cut")
SNAPSHOT_COLUMNS = (
    Column("type", "cut"),
    HASH,
    Column("version", right=True),
    Column("rows seen", right=True, width_min=90),
    Column("bytes", right=True, width_min=100),
    Column("metric"),
    Column("value", right=True),
    Column("uri", "cut", width_min=140),
)
# The metric that a listing shows: the first of these that the model has, with its short name.
MAIN_METRICS = {"mean_absolute_error": "MAE", "accuracy": "accuracy"}


@cache
def console(*, stderr: bool = False) -> "Console":
    """Return the console for what is drawn; in a file or a pod's log nothing is wrapped or cut off."""
    from rich.console import Console  # noqa: PLC0415 - most commands draw nothing

    return Console(stderr=stderr, width=None if stderr or is_terminal() else 1000)


def is_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


def print_json(documents: Iterable[Mapping[str, Any]]) -> None:
    """Print one JSON document per line; what JSON has no form for is printed as text."""
    for document in documents:
        # DEL is the only character below 128 that JSON does not escape and that a terminal does not show.
        typer.echo(json.dumps(document, default=str).replace("\x7f", "\\u007f"))


def time_column(zone: tzinfo | None) -> Column:
    """Return the column of times that :func:`show_time` returns."""
    return Column(f"time ({'UTC' if zone is None else zone})")


def show_time(timestamp: float, zone: tzinfo | None) -> str:
    """Return a time (seconds) in UTC with all digits, or on the clock of a zone with its offset from UTC."""
    return format_time(timestamp) if zone is None else datetime.fromtimestamp(timestamp, zone).isoformat()


def print_snapshots(
    documents: Sequence[Mapping[str, Any]], hashes: Mapping[str, str], zone: tzinfo | None = None
) -> None:
    """Print history documents of snapshots as a table, with what :func:`keepfit.cli.hashes.shown` returned."""
    print_table(
        (time_column(zone), *SNAPSHOT_COLUMNS),
        [
            (
                show_time(document["timestamp"], zone),
                document["type"],
                hashes[document["hash"]],
                *(document[name] for name in ("version", "rows_seen", "size_bytes")),
                *main_metric(document.get("metrics")),
                document["uri"],
            )
            for document in documents
        ],
        "no snapshots",
    )


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Return metadata as JSON with the type first, because a narrow terminal cuts off what follows.

    >>> metadata_text({"brand": "nike", "type": "shoes"})
    '{"type": "shoes", "brand": "nike"}'
    """
    return printable_json({"type": metadata.get("type"), **metadata})


def main_metric(metrics: Any) -> tuple[str, str]:
    """Return name and value of the main metric of a model, both empty if it has none; a terminal shows them short.

    >>> main_metric({"rows": 9, "accuracy": 0.91234567}), main_metric({}), main_metric(None)
    (('accuracy', '0.91234567'), ('', ''), ('', ''))
    """
    for name, short in MAIN_METRICS.items():
        value = metrics.get(name) if isinstance(metrics, Mapping) else None
        if isinstance(value, int | float):
            return (short, f"{value:.4g}") if is_terminal() else (name, str(value))
    return "", ""


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table: aligned on a terminal, elsewhere lines of cells with tabs between them and the titles first.

    A terminal shows `empty` instead of a table without rows.
    """
    cells = [[printable("" if value is None else str(value)) for value in row] for row in rows]
    if not is_terminal():
        for line in ([column.title for column in columns], *cells):
            typer.echo("\t".join(line))
    elif not cells:
        typer.echo(empty)
    else:
        console().print(aligned(columns, cells))


def aligned(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> "Table":
    """Return a table to draw on a terminal, with the control characters in its cells escaped."""
    from rich.table import Table  # noqa: PLC0415 - as for the console
    from rich.text import Text  # noqa: PLC0415

    shown = [column.width_min <= console().width for column in columns]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, show in zip(columns, shown, strict=True):
        if show:
            fixed, justify = column.fit == "keep", "right" if column.right else "left"
            table.add_column(column.title, no_wrap=fixed, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        # As Text: metadata of a user may contain brackets and colons, which are markup in a string. A Text that is not
        # wrapped in a column that may shrink is cut off with an ellipsis.
        cells = [printable("" if value is None else str(value)) for value in row]
        table.add_row(
            *(
                Text(cell, no_wrap=True, overflow="ellipsis") if column.fit == "cut" else Text(cell)
                for cell, column, show in zip(cells, columns, shown, strict=True)
                if show
            )
        )
    return table


def print_stream_line(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Print one line of a table whose rows are not known yet: on a terminal in columns of these widths, else with tabs.

    A width of 0 is what is left of the line. The line is flushed.
    """
    shown = [printable(cell) for cell in cells]
    if is_terminal():
        from rich.cells import set_cell_size  # noqa: PLC0415 - as for the console

        room = console().width - sum(widths) - len(widths) + 1
        sized = [set_cell_size(cell, width or max(room, 0)) for cell, width in zip(shown, widths, strict=True)]
        line = set_cell_size(" ".join(sized), console().width).rstrip()
    else:
        line = "\t".join(shown)
    typer.echo(line)


def print_error(message: str) -> int:
    """Print an error as one line on standard error; return the exit code, 1."""
    _print_line(message.strip(), "keepfit:", "red")
    return 1


def discard_unwritten() -> None:
    """Discard results that standard output does not take, which Python would report again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def until_reader_ends() -> Iterator[None]:
    """End a command that prints without end quietly when its reader does, as `head` does after some lines."""
    try:
        yield
    except BrokenPipeError:
        discard_unwritten()
        raise typer.Exit from None


def print_note(message: str) -> None:
    """Print a line that is not a result on standard error."""
    _print_line(message)


def print_warning(message: str) -> None:
    """Print a warning as one line on standard error."""
    _print_line(message, "keepfit: warning:", "yellow")


def _print_line(message: str, title: str = "", colour: str = "") -> None:
    """Print a line on standard error, with the control characters in `message` escaped; on a terminal in colour."""
    line = printable(message)
    if title and sys.stderr.isatty():
        from rich.text import Text  # noqa: PLC0415 - as for the console

        styled = Text.assemble((title, f"bold {colour}"), " ", line)
        console(stderr=True).print(styled, highlight=False, soft_wrap=True)
    else:
        typer.echo(f"{title} {line}" if title else line, err=True)


def print_log(lines: str) -> None:
    """Print lines of a process' log on standard error, with the control characters in them escaped."""
    for line in lines.splitlines():
        _print_line(line)


@contextmanager
def progress_bar(title: str, unit: str = "", *, shown: bool = True) -> Iterator[ProgressCallback]:
    """Yield a function of (done, total) that shows a progress bar on standard error; a `total` of 0 is unknown.

    The bar appears with the first call, because a command may ask a question before. `unit` "bytes" shows sizes.
    """
    # In a log a bar would be an empty line.
    if not (shown and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from rich.progress import (  # noqa: PLC0415 - as for the console
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), count, TimeRemainingColumn())
    bar = Progress(*columns, console=console(stderr=True), transient=True)
    with ExitStack() as stack:

        def show(done: int, total: int) -> None:
            if not bar.task_ids:
                stack.enter_context(bar)
                bar.add_task(printable(title), total=None)
            bar.update(bar.task_ids[0], completed=done, total=total or None)

        yield show

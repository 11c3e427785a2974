"""What commands print: tables, JSON lines, progress bars and errors.

Owns the two consoles. Results go to standard output, everything else to standard error. Never reads anything.
Invariant: text of a user is printed as it is, never as markup of the terminal.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# A file or a pod's log has no width: nothing is wrapped or cut off there.
out = Console(width=None if sys.stdout.isatty() else 1000)
err = Console(stderr=True)

HASH_DIGITS = 12
SNAPSHOT_COLUMNS = ("time (UTC)", "type", "hash", "version", "rows seen", "bytes", "uri")

ProgressCallback = Callable[[int, int], None]


def print_json(documents: Iterable[Mapping[str, Any]]) -> None:
    """Print one JSON document per line; what JSON has no form for is printed as text."""
    for document in documents:
        typer.echo(json.dumps(document, default=str))


def print_snapshots(title: str, documents: Iterable[Mapping[str, Any]]) -> None:
    """Print history documents of snapshots as a table."""
    from keepfit.history.times import format_time  # noqa: PLC0415 - other commands must not wait for it

    print_table(
        SNAPSHOT_COLUMNS,
        [
            (
                format_time(document["timestamp"]),
                document["type"],
                document["hash"][:HASH_DIGITS],
                *(document[name] for name in ("version", "rows_seen", "size_bytes", "uri")),
            )
            for document in documents
        ],
        title,
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Print a table; cells are printed as they are."""
    table = Table(*columns, title=title)
    for row in rows:
        # As Text: metadata of a user may contain brackets and colons, which are markup in a string.
        table.add_row(*(Text(str(value)) for value in row))
    out.print(table)


def print_error(message: str) -> int:
    """Print an error as one line on standard error; return the exit code, 1."""
    line = Text.assemble(("keepfit:", "bold red"), " ", " ".join(message.split()))
    err.print(line, highlight=False, soft_wrap=True)
    return 1


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """Yield a function of (done, total) that shows a progress bar on standard error.

    The bar appears with the first call, because a command may ask a question before.
    """
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # In a log a bar would be an empty line.
    bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    with ExitStack() as stack:

        def show(done: int, total: int) -> None:
            if not bar.task_ids:
                stack.enter_context(bar)
                bar.add_task(title, total=None)
            bar.update(bar.task_ids[0], completed=done, total=total)

        yield show

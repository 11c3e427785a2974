"""The progress of long calls: a bar of rich in a terminal, or a function of the user.

Owns when a bar is shown. Never fails a call: without rich there is no bar. Invariant: nothing is written where standard
error is no terminal, unless the user asks for it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from keepfit.client.transport.exchange import Report
from keepfit.errors import InvalidError

# True: a bar. None: a bar for a long call in a terminal. A function gets the rows that are sent, and all rows.
Progress: TypeAlias = bool | Callable[[int, int], None] | None
LONG_BYTES_MIN = 64 << 20


@contextmanager
def reporting(asked: Progress, what: str, rows: int, size_bytes: float) -> Iterator[Report | None]:
    """Give what a call reports its progress to; None for a call that is not watched."""
    if callable(asked):
        yield asked
        return
    if asked is False or (asked is None and (size_bytes < LONG_BYTES_MIN or not sys.stderr.isatty())):
        yield None
        return
    try:
        from rich.console import Console  # noqa: PLC0415 - optional, and slow to import
        from rich.progress import Progress as Bars  # noqa: PLC0415
    except ImportError:
        if asked is True:
            raise InvalidError("A progress bar needs rich: pip install rich, or give a function as progress.") from None
        yield None
        return
    with Bars(console=Console(stderr=True)) as bars:
        task = bars.add_task(f"{what} {rows} rows", total=rows)
        yield lambda done, total: bars.update(task, completed=done, total=total)

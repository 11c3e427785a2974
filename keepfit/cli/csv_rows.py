"""Documents as CSV on standard output.

Owns where CSV goes; :mod:`keepfit.csv_lines` owns its form. Invariant: in a pipe or a file the values are exact; on a
terminal control characters are escaped.
"""

import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from keepfit.cli.output import is_terminal
from keepfit.csv_lines import HEAD_DOCUMENTS, CsvLines
from keepfit.observability.printable import printable


def write_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with a header line of all their fields."""
    sys.stdout.write(_lines().of(rows, are_all=True))


async def stream_csv(rows: AsyncIterator[Mapping[str, Any]]) -> None:
    """Write rows while they come; the fields of the first ones are the columns."""
    lines, some, is_first = _lines(), list[Mapping[str, Any]](), True
    async for row in rows:
        if len(some) == HEAD_DOCUMENTS:
            sys.stdout.write(lines.of(some, are_all=False))
            some, is_first = [], False
        some.append(row)
    sys.stdout.write(lines.of(some, are_all=is_first))


def _lines() -> CsvLines:
    return CsvLines(printable if is_terminal() else None)

"""Documents as CSV on standard output.

Owns how nested fields become columns. Invariant: in a pipe or a file the values are exact; on a terminal control
characters are escaped.
"""

import csv
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from keepfit.cli.output import is_terminal
from keepfit.observability.printable import printable


def write_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with a header line of all their fields."""
    flat = [flatten(row) for row in rows]
    if is_terminal():
        flat = [{printable(name): printable(str(value)) for name, value in row.items()} for row in flat]
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(sys.stdout, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names.

    >>> flatten({"a": 1, "b": {"c": [2], "d": None}})
    {'a': 1, 'b.c': '[2]', 'b.d': None}
    """
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, default=str) if isinstance(value, list) else value
    return flat

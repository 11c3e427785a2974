"""Documents as lines of CSV, while they are read.

Pure. Owns how nested fields become columns, and what becomes of fields that appear late. Invariants: no value is left
out; the lines of one document do not depend on later ones.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# Documents whose fields are the columns; the next ones may have others.
HEAD_DOCUMENTS = 1_000
# The column of fields that none of the first documents has, as JSON.
OTHERS = "others"


class CsvLines:
    """Makes CSV of documents: a header with the fields of the first ones, then a line for each document."""

    def __init__(self, show: Callable[[str], str] | None = None) -> None:
        """`show` converts names and values that people see; without it they are exact."""
        self._show = show
        self._names: list[str] | None = None
        self._has_others = False

    def of(self, documents: Iterable[Mapping[str, Any]], *, are_all: bool) -> str:
        """Return the lines of the next documents, before the first ones with the header.

        If the first ones are not all (`are_all`), there is a column for fields that come later.
        """
        rows = [flatten(document) for document in documents]
        if self._show is not None:
            rows = [{self._show(name): self._show(str(_cell(value))) for name, value in row.items()} for row in rows]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if self._names is None:
            self._names = list(dict.fromkeys(name for row in rows for name in row))
            self._has_others = not are_all
            writer.writerow([*self._names, *([OTHERS] if self._has_others else [])])
        known = frozenset(self._names)
        writer.writerows(self._line(row, self._names, known) for row in rows)
        return text.getvalue()

    def _line(self, row: Mapping[str, Any], names: Sequence[str], known: frozenset[str]) -> list[Any]:
        line = [_cell(row.get(name)) for name in names]
        if self._has_others:
            others = {name: value for name, value in row.items() if name not in known}
            line.append(json.dumps(others, default=str) if others else "")
        return line


def _cell(value: Any) -> Any:
    """Return a value as CSV has it: nothing for null, true and false as in JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, default=str) if isinstance(value, list) else value


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names.

    >>> flatten({"a": 1, "b": {"c": [2], "d": None}})
    {'a': 1, 'b.c': [2], 'b.d': None}
    """
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

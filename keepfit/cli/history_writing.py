"""The commands `keepfit history add` and `delete`: documents of users, from files to the history, and out of it.

Owns their texts, and how a row of a table becomes a document; :mod:`keepfit.client` makes the calls. Invariant: nothing
is deleted without a filter and a confirmation.
"""

import json
import math
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepfit.cli.gateway_calls import AsJson, Url, with_client
from keepfit.cli.options import parse_where
from keepfit.cli.output import print_error, print_json, progress_bar
from keepfit.cli.rows import Delimiter, FileFormat
from keepfit.errors import InvalidError, MalformedError, SettingsError

if TYPE_CHECKING:
    from keepfit.client.clients import Client
    from keepfit.client.files.row_files import FileRow, RowFile

# Rows whose places are remembered: an error names one of the last request.
PLACES_MAX = 2_000
# One span that contains everything, for the number of documents that a deletion means.
ALL_TIME = "500000w"


def add(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="File of documents: .jsonl, .json, .csv, .tsv, each also with .gz or .zst, or .parquet; - is standard "
            "input, lines of JSON without --format.",
        ),
    ],
    type_: Annotated[str | None, typer.Option("--type", help="Type of the documents that have none.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Field that identifies a document: it replaces the one with the same values of all of them; "
            "repeatable.",
        ),
    ] = None,
    format_: FileFormat = None,
    delimiter: Delimiter = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Store the documents of a file in the history; those with a timestamp once, however often the file is sent."""
    from keepfit.client.files.row_files import STANDARD_STREAM, RowFile  # noqa: PLC0415 - other commands must not wait

    if format_ is None and file == STANDARD_STREAM:
        format_ = "jsonl"
    places, count = deque[str](maxlen=PLACES_MAX), 0

    def work(client: "Client") -> int:
        nonlocal count
        with RowFile(file, format_, delimiter) as source, progress_bar(f"storing {source.name}", "bytes") as show:

            def documents() -> Iterator[dict[str, Any]]:
                nonlocal count
                for row in source:
                    places.append(row.place)
                    count += 1
                    show(source.position, source.size)
                    yield document_of(source, row, type_)

            try:
                return client.add_history(documents(), key or ())
            except InvalidError as error:
                place = _place(error, places, count)
                if place is None:
                    raise
                raise InvalidError(
                    f"{source.name}, {place}: {error.faults[0].detail} Documents before it may be stored: correct it "
                    "and send the file again."
                ) from None

    stored = with_client(url, work, lambda: "interrupted: documents with a timestamp, or keys, can be sent again")
    if as_json:
        return print_json([{"stored": stored}])
    return typer.echo(f"{stored} documents stored")


def delete(
    type_: Annotated[str | None, typer.Option("--type", help="Only documents of this type.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only documents whose metadata or field has this value; repeatable."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(help="From this time on: a time as `keepfit history` prints it, yesterday, '2 hours ago'."),
    ] = None,
    before: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Delete documents that users stored in the history, never those of snapshots."""
    filters = {"type": type_, "after": after, "before": before}
    query = {name: text for name, text in filters.items() if text is not None}
    metadata = parse_where(where, reserved=(*filters, "hash", "kind"))
    if type_ is None and not metadata:
        raise SettingsError("Name the documents to delete with --type or --where.")
    query |= {f"metadata[{name}]": value for name, value in metadata.items()}
    if not yes and not on_terminal():
        raise SettingsError("Nothing is deleted without a confirmation: use --yes where there is no terminal.")

    def work(client: "Client") -> int | None:
        if not yes and not typer.confirm(f"Delete {_count(client, query)} documents?", default=False, err=True):
            return None
        return client.delete_history(**query)

    deleted = with_client(url, work)
    if deleted is None:
        raise SystemExit(print_error("nothing was deleted"))
    if as_json:
        return print_json([{"deleted": deleted}])
    return typer.echo(f"{deleted} documents deleted")


def on_terminal() -> bool:
    """Return whether a question can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def document_of(source: "RowFile", row: "FileRow", type_: str | None = None) -> dict[str, Any]:
    """Return the document of a row. In a table, names with dots are objects in objects, and empty values are left out.

    Raises
    ------
    MalformedError
        If the row could not be read.
    """
    if row.fault:
        raise MalformedError(f"{source.name}, {row.place}: {row.fault}.")
    document = dict(row.values)
    if source.format not in ("json", "jsonl"):
        document = nested({name: value if source.is_typed else value_of(value) for name, value in document.items()})
    return document if type_ is None else {"type": type_, **document}


def value_of(text: str) -> Any:
    """Return what a cell of CSV stands for: a number, true, false, a list, or its text; None if it is empty.

    >>> value_of("4.5"), value_of("True"), value_of("[1, 2]"), value_of("007"), value_of("NaN"), value_of("")
    (4.5, True, [1, 2], '007', 'NaN', None)
    """
    if text in ("True", "False"):
        return text == "True"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text or None
    finite = isinstance(value, int | list) or (isinstance(value, float) and math.isfinite(value))
    return value if finite else text


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values under dotted names as objects in objects, without those that are None.

    >>> nested({"a": 1, "b.c": 2, "b.d": None})
    {'a': 1, 'b': {'c': 2}}
    """
    document: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        *path, last = name.split(".")
        inner = document
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise MalformedError(f"The column {name!r} is in {part!r}, which is a column of values.")
        inner[last] = value
    return document


def _place(error: InvalidError, places: "deque[str]", count: int) -> str | None:
    """Return the place of the first document that is wrong; `places` are those of the last of `count` documents."""
    row = error.faults[0].row if error.faults else None
    if row is None or not 0 < count - row <= len(places):
        return None
    return places[row - count]


def _count(client: "Client", query: Mapping[str, str]) -> str:
    """Return how many documents a deletion means, as text."""
    try:
        points = client.history(**query, kind="document", every=ALL_TIME, stat="count")
    except InvalidError:
        # More than a query may read.
        return "all these"
    return f"{sum(int(point['value']) for point in points):,}"

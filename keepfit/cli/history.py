"""The command `keepfit history`: print documents and points of the history as a table, CSV, JSON or a plot.

Owns the texts of this command; :mod:`keepfit.history.query` parses and answers the same parameters over HTTP.
Invariant: it changes nothing.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from keepfit.cli import hashes
from keepfit.cli import plot as plots
from keepfit.cli.csv_rows import write_csv
from keepfit.cli.options import Hash, load_settings, parse_where
from keepfit.cli.output import Column, print_json, print_snapshots, print_table
from keepfit.errors import SettingsError
from keepfit.observability.printable import printable, printable_json
from keepfit.times import format_time

LIMIT, LIMIT_MAX = 20, 100_000
DOCUMENT_COLUMNS = (Column("time (UTC)"), Column("type", "cut"), Column("document", "wrap"))
Text = str | None


def history(
    type_: Annotated[Text, typer.Option("--type", help="Only documents of this type.")] = None,
    model_hash: Hash = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only documents whose metadata or field has this value; repeatable."),
    ] = None,
    kind: Annotated[
        Text,
        typer.Option(
            help="Which documents: snapshot, document (those that users store), or all. Default: snapshots if --hash "
            "is given or the type is one of models, all without --type and --hash, otherwise those of users."
        ),
    ] = None,
    after: Annotated[
        Text,
        typer.Option(
            help="From this time on: 2026-11-20T12:00Z, '2026-11-20 12:00' (local time), yesterday, '2 hours ago', "
            "seconds since 1970."
        ),
    ] = None,
    before: Annotated[Text, typer.Option(help="Before this time.")] = None,
    closest: Annotated[Text, typer.Option(help="Only the document nearest to this time.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the newest documents, this many.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help=f"Documents per page; default: {LIMIT}.")] = None,
    page: Annotated[int | None, typer.Option(min=1, help="Number of the page; the first is 1.")] = None,
    every: Annotated[Text, typer.Option(help="Group by time, one point per interval: 30s, 5m, 1h, 1d, 90.")] = None,
    field: Annotated[Text, typer.Option(help="Number field to aggregate: metrics.mean_absolute_error.")] = None,
    stat: Annotated[
        Text,
        typer.Option(help="Statistic: mean, min, max, sum, count, first, last, median, p99; default: mean."),
    ] = None,
    group: Annotated[Text, typer.Option(help="Key of metadata or field; each of its values is a series.")] = None,
    fill: Annotated[
        Text,
        typer.Option(help="Value of intervals without documents: none, null, previous, linear, a number."),
    ] = None,
    rate: Annotated[Text, typer.Option(help="Print the rate of change per this duration: 1s, 1h.")] = None,
    moving: Annotated[int | None, typer.Option(min=1, help="Moving average over this many points.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one document or point per line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header line.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Plot the points; requires --every.")] = False,
) -> None:
    """List snapshots and stored documents, newest first, or aggregate their numbers by time."""
    if as_json + as_csv + plot > 1 or (plot and every is None):
        raise SettingsError("Use one of --json, --csv and --plot; --plot requires --every.")
    options = {
        "type": type_, "hash": model_hash, "kind": kind, "after": after, "before": before, "closest": closest,
        "last": last, "limit": limit, "page": page, "every": every, "field": field, "stat": stat, "group": group,
        "fill": fill, "rate": rate, "moving": moving,
    }  # fmt: skip
    parameters = {name: str(value) for name, value in options.items() if value is not None}
    if not parameters.keys() & {"every", "closest", "last", "limit"}:
        parameters["limit"] = str(LIMIT)
    found = asyncio.run(_query(parameters, where))
    if as_json:
        print_json(found)
    elif as_csv:
        write_csv(found)
    elif plot:
        typer.echo(_plot(found, printable(f"{stat or 'mean'} of {field or 'documents'} every {every}")))
    elif every is not None:
        _print_points(found)
    else:
        _print_documents(found)


async def _query(parameters: dict[str, str], where: Iterable[str] | None) -> list[Any]:
    from keepfit.history import Timeline, query  # noqa: PLC0415 - other commands must not wait for it

    metadata, settings = parse_where(where, reserved=query.PARAMETERS - {"timestamp"}), load_settings()
    if "hash" in parameters and parameters.get("kind") != "document":
        parameters["hash"] = await hashes.resolve(settings, parameters["hash"], deleted=True)
    parsed = query.parse({**parameters, **metadata}, limit_max=LIMIT_MAX)
    async with Timeline.open(settings.mongo_url.get_secret_value()) as timeline:
        return await query.execute(timeline, parsed)


def _print_points(points: Sequence[Mapping[str, Any]]) -> None:
    names = [name for name in ("group", "value") if name == "value" or any("group" in point for point in points)]
    rows = [(format_time(point["timestamp"]), *(point.get(name, "") for name in names)) for point in points]
    columns = [Column(name, "wrap" if name == "group" else "keep", right=name == "value") for name in names]
    print_table((Column("time (UTC)"), *columns), rows, "no points")


def _print_documents(documents: Sequence[Mapping[str, Any]]) -> None:
    if all("uri" in document and "hash" in document for document in documents):
        return print_snapshots(documents, hashes.shown(document["hash"] for document in documents))
    rows = []
    for document in documents:
        rest = {name: value for name, value in document.items() if name not in ("type", "timestamp")}
        rows.append((format_time(document["timestamp"]), document["type"], printable_json(rest)))
    return print_table(DOCUMENT_COLUMNS, rows, "no documents")


def _plot(points: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return a plot of the points as text, with one line per group."""
    known = [point for point in points if point["value"] is not None]
    if not known:
        return "no points"
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in known:
        lines.setdefault(str(point.get("group")), []).append((point["timestamp"], point["value"]))
    first, last = plots.limits(lines)
    return f"{title}\n{plots.draw(lines, 'UTC', plots.time_tick(last - first), needed_by='--plot')}"

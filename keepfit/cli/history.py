"""The command `keepfit history`: print documents and points of the history as a table, CSV, JSON or a plot.

Owns the texts of this command; :mod:`keepfit.history.query` parses and answers the same parameters over HTTP.
Invariant: it changes nothing.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import tzinfo
from typing import TYPE_CHECKING, Any

import typer

from keepfit.cli import hashes
from keepfit.cli import history_options as opt
from keepfit.cli import plot as plots
from keepfit.cli.csv_rows import stream_csv
from keepfit.cli.options import Hash, load_settings
from keepfit.cli.output import (
    MAIN_METRICS,
    Column,
    print_json,
    print_snapshots,
    print_table,
    show_time,
    time_column,
    until_reader_ends,
)
from keepfit.csv_lines import flatten
from keepfit.errors import MalformedError, SettingsError
from keepfit.observability.printable import printable, printable_json

if TYPE_CHECKING:
    from keepfit.history.query import HistoryQuery

LIMIT_MAX, PLOT_LIMIT = 100_000, 1_000


def history(
    type_: opt.Type = None,
    model_hash: Hash = None,
    where: opt.Where = None,
    kind: opt.Kind = None,
    after: opt.After = None,
    before: opt.Before = None,
    tz: opt.Tz = None,
    closest: opt.Closest = None,
    last: opt.Last = None,
    per: opt.Per = None,
    limit: opt.Limit = None,
    page: opt.Page = None,
    every: opt.Every = None,
    field: opt.Field = None,
    stat: opt.Stat = None,
    group: opt.Group = None,
    fill: opt.Fill = None,
    rate: opt.Rate = None,
    nonnegative_rate: opt.NonnegativeRate = None,
    increase: opt.Increase = False,
    cumulative: opt.Cumulative = False,
    moving: opt.Moving = None,
    exponential: opt.Exponential = None,
    top: opt.Top = None,
    bottom: opt.Bottom = None,
    series: opt.Series = None,
    as_json: opt.AsJson = False,
    as_csv: opt.AsCsv = False,
    plot: opt.Plot = False,
) -> None:
    """List snapshots and stored documents, newest first, or aggregate their numbers by time."""
    if as_json + as_csv + plot > 1:
        raise SettingsError("Use one of --json, --csv and --plot.")
    options = {
        "type": type_, "hash": model_hash, "kind": kind, "after": after, "before": before, "tz": tz, "closest": closest,
        "last": last, "per": per, "limit": limit, "page": page, "every": every, "field": field, "stat": stat,
        "group": group, "fill": fill, "rate": rate, "nonnegative_rate": nonnegative_rate, "moving": moving,
        "increase": "true" if increase else None, "cumulative": "true" if cumulative else None,
        "exponential": exponential, "top": top, "bottom": bottom, "series": series, "where": where,
    }  # fmt: skip
    parameters = {
        name: value if isinstance(value, list) else str(value) for name, value in options.items() if value is not None
    }
    if as_json or as_csv:
        asked = asyncio.run(_parse(parameters, is_streamed=True))
        with until_reader_ends():
            asyncio.run(_print_stream(asked, as_csv=as_csv))
    elif plot and every is None:
        _plot_numbers(parameters)
    else:
        asked = asyncio.run(_parse(parameters))
        found = asyncio.run(_execute(asked))
        if plot:
            typer.echo(_plot(found, printable(f"{stat or 'mean'} of {field or 'documents'} every {every}")))
        elif every is not None:
            _print_points(found, asked.zone)
        else:
            _print_documents(found, asked.zone)


def _plot_numbers(parameters: dict[str, str | list[str]]) -> None:
    """Plot a number of the documents that a query without points means."""
    field = parameters.get("field")
    if not parameters.keys() & {"top", "bottom"}:
        # Only these choose documents by a field; here it says what is plotted.
        parameters.pop("field", None)
    if not parameters.keys() & {"last", "limit", "per", "top", "bottom", "closest"}:
        parameters["limit"] = str(PLOT_LIMIT)
    found = asyncio.run(_execute(asyncio.run(_parse(parameters))))
    typer.echo(_plot_documents(found, None if field is None else str(field)))


async def _parse(parameters: dict[str, str | list[str]], *, is_streamed: bool = False) -> "HistoryQuery":
    from keepfit.history import query  # noqa: PLC0415 - other commands must not wait for it
    from keepfit.history.queries import comparisons  # noqa: PLC0415 - other commands must not wait for it

    where = list(parameters.pop("where", ()))
    equal: dict[str, str] = {}
    for text in list(where):
        compared = comparisons.parse(text)
        if compared.operator != "=":
            continue
        if compared.key == "timestamp":
            parameters["timestamp"] = text.partition("=")[2].strip()
            where.remove(text)
        elif compared.key in query.PARAMETERS - {"where"}:
            raise MalformedError(f"--where {text!r}: {compared.key} is an option of this command: --{compared.key}.")
        if equal.setdefault(compared.key, text) != text:
            raise SettingsError(f"--where has two values for {compared.key!r}: use '{compared.key} in FIRST,SECOND'.")
    if where:
        parameters["where"] = where
    if "hash" in parameters and parameters.get("kind") != "document":
        parameters["hash"] = await hashes.resolve(load_settings(), str(parameters["hash"]), deleted=True)
    most = query.STREAM_LIMIT_MAX if is_streamed else LIMIT_MAX
    return query.parse(parameters, limit=opt.LIMIT, limit_max=most)


async def _execute(asked: "HistoryQuery") -> list[Any]:
    from keepfit.history import Timeline, query  # noqa: PLC0415 - as above

    async with Timeline.open(load_settings().mongo_url.get_secret_value()) as timeline:
        return await query.execute(timeline, asked)


async def _print_stream(asked: "HistoryQuery", *, as_csv: bool) -> None:
    from keepfit.history import Timeline, query  # noqa: PLC0415 - as above

    async with (
        Timeline.open(load_settings().mongo_url.get_secret_value()) as timeline,
        aclosing(query.stream(timeline, asked)) as items,
    ):
        if as_csv:
            await stream_csv(items)
            return
        async for item in items:
            print_json([item])


def _print_points(points: Sequence[Mapping[str, Any]], zone: tzinfo | None) -> None:
    names = [name for name in ("group", "value") if name == "value" or any("group" in point for point in points)]
    rows = [(show_time(point["timestamp"], zone), *(_cell(point.get(name, "")) for name in names)) for point in points]
    columns = [Column(name, "wrap" if name == "group" else "keep", right=name == "value") for name in names]
    print_table((time_column(zone), *columns), rows, "no points")


def _cell(value: Any) -> Any:
    """Return the values of several keys in one cell."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={'' if inner is None else inner}" for key, inner in value.items())
    return value


def _print_documents(documents: Sequence[Mapping[str, Any]], zone: tzinfo | None) -> None:
    if all("uri" in document and "hash" in document for document in documents):
        return print_snapshots(documents, hashes.shown(document["hash"] for document in documents), zone)
    rows = []
    for document in documents:
        rest = {name: value for name, value in document.items() if name not in ("type", "timestamp")}
        rows.append((show_time(document["timestamp"], zone), document["type"], printable_json(rest)))
    return print_table((time_column(zone), Column("type", "cut"), Column("document", "wrap")), rows, "no documents")


def _plot_documents(documents: Sequence[Mapping[str, Any]], field: str | None) -> str:
    """Return a plot of a number of the documents, by model; without `field` the first main metric that they have."""
    flat = [(document, flatten(document)) for document in reversed(documents)]
    names = [f"metrics.{name}" for name in MAIN_METRICS] if field is None else [field]
    chosen = next((name for name in names if any(_is_number(values.get(name)) for _, values in flat)), None)
    if chosen is None:
        wanted = "the metrics that are shown" if field is None else field
        return f"no documents with {printable(wanted)}; --field names a number"
    several = len({document.get("hash") for document, _ in flat}) > 1
    points = [
        {"timestamp": document["timestamp"], "value": values[chosen], "group": str(document.get("hash"))[:12]}
        for document, values in flat
        if _is_number(values.get(chosen))
    ]
    if not several:
        points = [{**point, "group": None} for point in points]
    return _plot(points, printable(f"{chosen} of {len(points)} documents"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plot(points: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return a plot of the points as text, with one line per group."""
    known = [point for point in points if point["value"] is not None]
    if not known:
        return "no points"
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in known:
        lines.setdefault(str(_cell(point.get("group"))), []).append((point["timestamp"], point["value"]))
    first, last = plots.limits(lines)
    return f"{title}\n{plots.draw(lines, 'UTC', plots.time_tick(last - first), needed_by='--plot')}"

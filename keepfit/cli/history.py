"""The command `keepfit history`: documents and points of the history as a table, CSV, JSON, or drawn in the terminal.

Owns the words of this one command; :mod:`keepfit.history.query` knows what can be asked, over HTTP as well, and
:mod:`keepfit.cli.main` prints. Invariant: it changes nothing.
"""

import asyncio
import csv
import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from keepfit.errors import MalformedError, SettingsError

LIMIT, LIMIT_MAX = 20, 100_000
PLOT_LINES, MARGIN, DAY_S = 20, 20, 86_400.0
# Groups are told apart without colours, too.
MARKERS = "abcdefghijklmnopqrstuvwxyz"
Text = str | None


def history(
    type_: Annotated[Text, typer.Option("--type", help="Only documents of this type.")] = None,
    model_hash: Annotated[Text, typer.Option("--hash", help="Only snapshots of the model with this hash.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only where metadata has this: brand=nike.")] = None,
    after: Annotated[Text, typer.Option(help="From this time on: yesterday, '2 hours ago', '2026-11-20 12:00'")] = None,
    before: Annotated[Text, typer.Option(help="Before this time.")] = None,
    closest: Annotated[Text, typer.Option(help="Only the document nearest to this time.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the newest so many.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help=f"At most so many; {LIMIT} where nothing is said.")] = None,
    page: Annotated[int | None, typer.Option(min=1, help="Which page of so many.")] = None,
    every: Annotated[Text, typer.Option(help="Group by time, a point for each span: 30s, 5m, 1h, 1d, 1w.")] = None,
    field: Annotated[Text, typer.Option(help="Number to group: metrics.mean_absolute_error.")] = None,
    stat: Annotated[Text, typer.Option(help="mean, min, max, sum, count, first, last, median, p99.")] = None,
    group: Annotated[Text, typer.Option(help="Key of metadata whose values have points of their own.")] = None,
    fill: Annotated[Text, typer.Option(help="Spans without documents: none, null, previous, linear, a number.")] = None,
    rate: Annotated[Text, typer.Option(help="Show the change in this span.")] = None,
    moving: Annotated[int | None, typer.Option(min=1, help="Mean over so many points.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one document or point a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a line of names.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the points; with --every.")] = False,
) -> None:
    """List snapshots and stored documents, newest first, or group their numbers by time."""
    if as_json + as_csv + plot > 1 or (plot and every is None):
        raise SettingsError("Choose one of --json, --csv and --plot; --plot goes with --every.")
    given = {
        "type": type_, "hash": model_hash, "after": after, "before": before, "closest": closest, "last": last,
        "limit": limit, "page": page, "every": every, "field": field, "stat": stat, "group": group, "fill": fill,
        "rate": rate, "moving": moving,
    }  # fmt: skip
    asked = {name: str(value) for name, value in given.items() if value is not None}
    if not asked.keys() & {"every", "closest", "last", "limit"}:
        asked["limit"] = str(LIMIT)
    found = asyncio.run(_ask(asked, where or ()))
    if as_json:
        for row in found:
            typer.echo(json.dumps(row, default=str))
    elif as_csv:
        _write_csv(found)
    elif plot:
        typer.echo(_drawn(found, f"{stat or 'mean'} of {field or 'documents'} every {every}"))
    else:
        _print(found, points=every is not None)


async def _ask(asked: dict[str, str], where: Iterable[str]) -> list[Any]:
    from keepfit.cli import main  # noqa: PLC0415 - which imports this module
    from keepfit.history import Timeline, query  # noqa: PLC0415 - other commands shall not wait for it

    for text in where:
        key, equals, value = text.partition("=")
        if not key or not equals or key in query.PARAMETERS:
            raise MalformedError(f"--where {text!r}: write a key of metadata and its value, brand=nike.")
        asked[key] = value
    parsed = query.parse(asked, limit_max=LIMIT_MAX)
    async with Timeline.open(main._settings().mongo_url.get_secret_value()) as timeline:
        return await query.answer(timeline, parsed)


def _print(found: Sequence[dict[str, Any]], *, points: bool) -> None:
    from keepfit.cli import main  # noqa: PLC0415 - which imports this module
    from keepfit.history.times import shown  # noqa: PLC0415

    if points:
        names = [name for name in ("group", "value") if name == "value" or any("group" in point for point in found)]
        rows = [(shown(point["timestamp"]), *(point.get(name, "") for name in names)) for point in found]
        return main._print_table(("time (UTC)", *names), rows)
    if all("uri" in document and "hash" in document for document in found):
        return main._print_documents("History", list(found))
    rows = []
    for document in found:
        rest = {name: value for name, value in document.items() if name not in ("type", "timestamp")}
        rows.append((shown(document["timestamp"]), document["type"], json.dumps(rest, default=str)))
    return main._print_table(("time (UTC)", "type", "document"), rows, "History")


def _write_csv(found: Sequence[Mapping[str, Any]]) -> None:
    rows = [_flat(row) for row in found]
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(sys.stdout, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names.

    >>> _flat({"a": 1, "b": {"c": [2], "d": None}})
    {'a': 1, 'b.c': '[2]', 'b.d': None}
    """
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, default=str) if isinstance(value, list) else value
    return flat


def _drawn(points: Sequence[Mapping[str, Any]], title: str) -> str:
    """Draw points, a line for each group."""
    try:
        import plotille  # noqa: PLC0415 - only this draws
    except ModuleNotFoundError:
        raise SettingsError("Drawing needs plotille: pip install 'keepfit[history]'.") from None
    from keepfit.history.times import shown  # noqa: PLC0415

    known = [point for point in points if point["value"] is not None]
    if not known:
        return "no points"
    figure = plotille.Figure()
    figure.width, figure.height = max(20, shutil.get_terminal_size().columns - MARGIN), PLOT_LINES
    figure.color_mode, figure.with_colors = "names", sys.stdout.isatty()
    times = [point["timestamp"] for point in known]
    first, last = min(times), max(times)
    # A single point has a width, too, or there is no scale.
    figure.set_x_limits(first, max(last, first + 1))
    figure.x_label, figure.y_label = "UTC", "value"
    part = slice(11, 19) if last - first < DAY_S else slice(5, 10) if last - first > 4 * DAY_S else slice(8, 16)
    figure.x_ticks_fkt = lambda moment, _: shown(float(moment))[part]
    figure.y_ticks_fkt = lambda value, _: f"{value:.4g}"
    groups = list(dict.fromkeys(point.get("group") for point in known))
    for group, marker in zip(groups, itertools.cycle(MARKERS), strict=False):
        line = [(point["timestamp"], point["value"]) for point in known if point.get("group") == group]
        figure.plot(*zip(*line, strict=True), label=str(group), marker=marker if len(groups) > 1 else None)
    drawing: str = figure.show(legend=len(groups) > 1)
    return f"{title}\n{drawing}"

"""The options of `keepfit history`, one for each parameter of a query.

Owns their texts; docs/reference/cli.md has the same. Never reads anything.
"""

from typing import Annotated

import typer

LIMIT = 20
Text = str | None

Type = Annotated[Text, typer.Option("--type", help="Only documents of this type.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COMPARISON",
        help="Only documents whose metadata or field has this value: brand=nike; also !=, <, <=, >, >=, "
        "'brand in nike,puma', 'brand exists', and 'not in', 'not exists'; repeatable.",
    ),
]
Kind = Annotated[
    Text,
    typer.Option(
        help="Which documents: snapshot, document (those that users store), or all. Default: snapshots if --hash "
        "is given or the type is one of models, all without --type and --hash, otherwise those of users."
    ),
]
After = Annotated[
    Text,
    typer.Option(
        help="From this time on: 2026-11-20T12:00Z, '2026-11-20 12:00' (local time, or that of --tz), yesterday, "
        "'2 hours ago', seconds since 1970, or milliseconds: 1795176000250ms."
    ),
]
Before = Annotated[Text, typer.Option(help="Before this time.")]
Tz = Annotated[
    Text,
    typer.Option(
        help="Time zone of times without one, of the times that are shown, and of days, weeks, months and years of "
        "--every: Europe/Berlin."
    ),
]
Closest = Annotated[Text, typer.Option(help="Only the document nearest to this time.")]
Last = Annotated[int | None, typer.Option(min=1, help="Only the newest documents, this many.")]
Per = Annotated[
    list[str] | None,
    typer.Option(help="Only the newest document for each value of this key of metadata or field; repeatable."),
]
Limit = Annotated[int | None, typer.Option(min=1, help=f"Documents per page; default: {LIMIT}.")]
Page = Annotated[int | None, typer.Option(min=1, help="Number of the page; the first is 1.")]
Every = Annotated[
    Text,
    typer.Option(help="Group by time, one point per interval: 250ms, 30s, 5m, 1h, 1d, 1w, 1mo, 1y, 90."),
]
Field = Annotated[Text, typer.Option(help="Number field to aggregate or plot: metrics.mean_absolute_error.")]
Stat = Annotated[
    Text,
    typer.Option(
        help="Statistic: mean, min, max, sum, count, first, last, median, p99, stddev, variance, spread, distinct, "
        "mode, integral; default: mean."
    ),
]
Group = Annotated[
    list[str] | None, typer.Option(help="Key of metadata or field; each of its values is a series; repeatable.")
]
Fill = Annotated[
    Text,
    typer.Option(help="Value of intervals without documents: none, null, previous, linear, a number."),
]
Rate = Annotated[Text, typer.Option(help="Print the rate of change per this duration: 1s, 1h.")]
NonnegativeRate = Annotated[
    Text, typer.Option(help="Print the growth per this duration, of a counter that may be reset.")
]
Increase = Annotated[bool, typer.Option("--increase", help="Print the growth of a counter that may be reset.")]
Cumulative = Annotated[bool, typer.Option("--cumulative", help="Print the sum of each point and all before it.")]
Moving = Annotated[int | None, typer.Option(min=1, help="Moving average over this many points.")]
Exponential = Annotated[int | None, typer.Option(min=1, help="Exponential average, weighted as over this many points.")]
Top = Annotated[
    int | None,
    typer.Option(min=1, help="Only this many groups, those of the largest mean; without --every, documents."),
]
Bottom = Annotated[int | None, typer.Option(min=1, help="As --top, with the smallest.")]
Series = Annotated[int | None, typer.Option(min=1, help="Only this many groups, the first in order.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one document or point per line.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV with a header line.")]
Plot = Annotated[
    bool, typer.Option("--plot", help="Plot the points; without --every, --field or the metric of the documents.")
]

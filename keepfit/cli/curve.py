"""The command `keepfit curve`: draw the learning curve of a model, or print it as JSON or CSV.

Owns its texts; a gateway answers the curve. Invariant: it changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepfit.cli import plot
from keepfit.cli.csv_rows import write_csv
from keepfit.cli.gateway_calls import AsJson, Metadata, ModelHash, Url, find_model, with_client
from keepfit.cli.output import MAIN_METRICS, metadata_text, print_json
from keepfit.errors import InvalidError, SettingsError
from keepfit.observability.printable import printable

if TYPE_CHECKING:
    from keepfit.client.clients import Client

NO_POINTS = "no points: no row has been evaluated"
BASELINE = "baseline_"


def curve(
    metadata: Metadata = None,
    model_hash: ModelHash = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Metric to draw: root_mean_squared_error; default: the mean absolute error or the accuracy."),
    ] = None,
    since_rows: Annotated[int, typer.Option(min=0, help="Only points after more than this number of rows.")] = 0,
    by_time: Annotated[bool, typer.Option("--time", help="Draw over time instead of over rows.")] = False,
    url: Url = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all metrics as CSV with a header line.")] = False,
) -> None:
    """Draw how the error of a model fell, over all rows and over the last ones, beside that of its baseline."""
    if as_json and as_csv:
        raise SettingsError("Use one of --json and --csv.")

    def ask(client: "Client") -> tuple[dict[str, Any], dict[str, Any]]:
        found, model = find_model(client, model_hash, metadata)
        return model, found.curve(since_rows=since_rows)

    model, answer = with_client(url, ask)
    if as_json:
        print_json([answer])
    elif as_csv:
        write_csv(answer["points"])
    else:
        typer.echo(_drawing(model, answer["points"], metric, by_time=by_time))


def _drawing(
    model: Mapping[str, Any], points: Sequence[Mapping[str, Any]], metric: str | None, *, by_time: bool
) -> str:
    """Return the plot of a metric; InvalidError if the curve does not have it."""
    if not points:
        return NO_POINTS
    names = list(points[-1]["window"])
    name = metric or next(each for each in MAIN_METRICS if each in names)
    if name not in names:
        raise InvalidError(f"The curve has no metric {name!r}: its metrics are {', '.join(names)}.")
    x_name = "time" if by_time else "rows_seen"
    lines: dict[str, list[tuple[float, float]]] = {}
    for label, of_window, shown in (
        ("all rows", False, name),
        ("last rows", True, name),
        ("baseline of the last rows", True, BASELINE + name),
    ):
        values = [(point[x_name], (point["window"] if of_window else point).get(shown)) for point in points]
        line = [(x, value) for x, value in values if x is not None and value is not None]
        if line:
            lines[label] = line
    if not lines:
        return "no points: the metric is undefined, or the times are not known"
    first, last = plot.limits(lines)
    tick = plot.time_tick(last - first) if by_time else plot.count_tick
    drawing = plot.draw(lines, "UTC" if by_time else "rows", tick, needed_by="The plot, but neither --json nor --csv,")
    return f"{name} of {printable(metadata_text(model['metadata']))}\n{drawing}"

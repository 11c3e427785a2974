"""The command `keepfit top`: models by traffic, error or inbox, workers and dependencies, as they change.

Owns the screen and its order; :mod:`keepfit.client.overview` reads a gateway. Changes nothing. Invariant: a gateway
that does not answer is shown as such, and asked again; what was read before stays on the screen.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from keepfit.cli import workers
from keepfit.cli.gateway_calls import Url, short_hash, with_client
from keepfit.cli.options import Type, Where, filters_of, named
from keepfit.cli.output import (
    MAIN_METRICS,
    Column,
    aligned,
    console,
    is_terminal,
    metadata_text,
    print_json,
    print_note,
    print_table,
    until_reader_ends,
)
from keepfit.errors import UnavailableError
from keepfit.times import format_time, parse_duration

if TYPE_CHECKING:
    from rich.console import Group

    from keepfit.client.clients import Client
    from keepfit.client.overview import Reading

Sort = Literal["rate", "inbox", "error", "rows", "version", "hash"]
# How models are ordered: the largest first, those without a value last.
KEYS: dict[Sort, Callable[[Mapping[str, Any]], Any]] = {
    "rate": lambda model: (-model["rows_per_s"], -model["inbox"], -model["rows_seen"], model["hash"]),
    "inbox": lambda model: (-model["inbox"], -model["rows_per_s"], model["hash"]),
    "error": lambda model: (-(-1.0 if model["error_share"] is None else model["error_share"]), model["hash"]),
    "rows": lambda model: (-model["rows_seen"], model["hash"]),
    "version": lambda model: (-model["version"], model["hash"]),
    "hash": lambda model: model["hash"],
}
INTERVAL_S_MIN = 0.2
MODELS = (
    Column("model"),
    Column("metadata", "cut"),
    Column("rows/s", right=True),
    Column("inbox", right=True),
    Column("rows seen", right=True),
    Column("version", right=True, width_min=100),
    Column("metric"),
    Column("value", right=True),
    Column("of baseline", right=True, width_min=90),
)
# Under the tables of other things a title says what the names are of.
WORKERS = (Column("worker", "cut"), *workers.COLUMNS[1:])
DEPENDENCIES = (Column("part"), Column("state", "wrap"))
# Workers on the screen; the busiest ones.
WORKERS_SHOWN_MAX = 6
# Lines of the screen beside those of models and workers.
LINES_OTHER = 5


def top(
    type_: Type = None,
    where: Where = None,
    sort: Annotated[
        Sort,
        typer.Option(
            help="Order of the models: rate (rows learned each second), inbox, error (in relation to the baseline's), "
            "rows, version or hash."
        ),
    ] = "rate",
    interval: Annotated[str, typer.Option(help="Time between two readings: 2s, 1m; a number is seconds.")] = "2s",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of models; default: as many as the screen shows, or 20.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print the state once and end; two readings give the rates.")
    ] = False,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each state as a JSON document, one per line.")] = False,
) -> None:
    """Show dependencies, workers and the busiest models, and keep the screen up to date until Ctrl-C."""
    filters = filters_of(type_, where)
    with named("--interval"):
        interval_s = max(parse_duration(interval, unit_optional=True), INTERVAL_S_MIN)
    is_live = is_terminal() and not once and not as_json

    def work(client: "Client") -> None:
        states = _states(client, filters, interval_s, sort)
        if is_live:
            _live(states, limit)
            return
        for reading, models in states:
            if reading.error and (once or not as_json):
                raise UnavailableError(reading.error)
            _print(reading, models[: limit or 20], len(models), as_json=as_json)
            if once or not as_json:
                return

    with until_reader_ends():
        with_client(url, work, lambda: "")


def _states(
    client: "Client", filters: Mapping[str, str], interval_s: float, sort: Sort
) -> Iterator[tuple["Reading", list[dict[str, Any]]]]:
    """Yield readings with their models in order, the first one when there are two of them, which give rates."""
    from keepfit.client.overview import describe, read  # noqa: PLC0415 - other commands must not wait for it

    before = read(client, filters.items())
    if before.error:
        raise UnavailableError(before.error)
    models: list[dict[str, Any]] = []
    while True:
        time.sleep(interval_s)
        reading = read(client, filters.items())
        if not reading.error:
            models = sorted(describe(reading, before), key=KEYS[sort])
            before = reading
        yield reading, models


def _print(reading: "Reading", models: Sequence[Mapping[str, Any]], count: int, *, as_json: bool) -> None:
    if as_json:
        state = {
            "timestamp": reading.timestamp,
            "dependencies": dict(reading.ready),
            "workers": reading.workers,
            "models": models,
            "models_count": count,
            "models_cut": reading.is_cut,
        }
        print_json([state | ({"error": reading.error} if reading.error else {})])
        return
    print_table(DEPENDENCIES, reading.ready.items(), "nothing")
    typer.echo()
    print_table(WORKERS, map(workers.row, _busiest(reading)), "no workers")
    typer.echo()
    print_table(MODELS, map(_model, models), "no models")
    if count > len(models):
        print_note(f"There are {'more than ' if reading.is_cut else ''}{count} models; --limit shows more of them.")


def _live(states: Any, limit: int | None) -> None:
    from rich.live import Live  # noqa: PLC0415 - other commands draw nothing

    with Live(console=console(), screen=True, auto_refresh=False) as live:
        for reading, models in states:
            live.update(_screen(reading, models, limit), refresh=True)


def _screen(reading: "Reading", models: Sequence[Mapping[str, Any]], limit: int | None) -> "Group":
    """Return what the screen shows: the state, the busiest workers, and as many models as there is room for."""
    from rich.console import Group  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415

    busiest = _busiest(reading)[:WORKERS_SHOWN_MAX]
    room = max(1, console().height - LINES_OTHER - len(busiest) - 2)
    shown = models[: min(limit or room, room)]
    more = f", {len(models) - len(shown)} more below" if len(models) > len(shown) else ""
    count = f"{len(models)}{'+' if reading.is_cut else ''}"
    pending = sum(model["inbox"] for model in models)
    rate = sum(model["rows_per_s"] for model in models)
    head = f"{format_time(int(reading.timestamp))}  {_health(reading)}"
    totals = f"{count} models{more}, {rate:.1f} rows/s, {pending} pending requests, {len(reading.workers)} workers"
    return Group(
        Text(head, no_wrap=True, overflow="ellipsis", style="bold red" if _is_wrong(reading) else "bold"),
        Text(totals, no_wrap=True, overflow="ellipsis"),
        Text(),
        aligned(WORKERS, map(workers.row, busiest)),
        Text(),
        aligned(MODELS, map(_model, shown)),
    )


def _is_wrong(reading: "Reading") -> bool:
    return bool(reading.error) or reading.ready.get("status") != "ok"


def _health(reading: "Reading") -> str:
    """Return the state of the deployment, and the dependencies that fail."""
    if reading.error:
        return reading.error
    failing = [f"{name}: {state}" for name, state in _parts(reading.ready) if state != "ok"]
    return ", ".join([str(reading.ready.get("status", "unknown")), *failing])


def _parts(ready: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((name, state) for name, state in ready.items() if name != "status" and isinstance(state, str))


def _busiest(reading: "Reading") -> list[dict[str, Any]]:
    return sorted(reading.workers, key=lambda worker: (-worker["rows_per_s"], worker["name"]))


def _model(model: Mapping[str, Any]) -> tuple[object, ...]:
    metric, value, share = model["metric"], model["value"], model["error_share"]
    return (
        short_hash(model["hash"]),
        metadata_text(model["metadata"]),
        f"{model['rows_per_s']:.1f}",
        model["inbox"],
        model["rows_seen"],
        model["version"],
        MAIN_METRICS[metric] if metric and is_terminal() else metric,
        "" if value is None else f"{value:.4g}" if is_terminal() else value,
        "" if share is None else f"{100 * share:.0f} %" if is_terminal() else f"{share:.4f}",
    )

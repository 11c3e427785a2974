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

# How the gateway orders models: the largest first, those without a value last.
Sort = Literal["rate", "inbox", "error", "rows", "hash"]
INTERVAL_S_MIN = 0.2
MODELS = (
    Column("model"),
    Column("metadata", "cut"),
    Column("rows/s", right=True),
    Column("predicted/s", right=True, width_min=100),
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
# Workers on the screen, the busiest ones, and models elsewhere.
WORKERS_SHOWN_MAX, MODELS_SHOWN = 6, 20
# Lines of the screen beside those of models and workers.
LINES_OTHER = 6


def top(
    type_: Type = None,
    where: Where = None,
    sort: Annotated[
        Sort,
        typer.Option(
            help="Order of the models: rate (rows learned each second), inbox, error (in relation to the baseline's), "
            "rows or hash."
        ),
    ] = "rate",
    interval: Annotated[str, typer.Option(help="Time between two readings: 2s, 1m; a number is seconds.")] = "2s",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of models; default: as many as the screen shows, or 20.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the state once, after an interval, and end.")] = False,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each state as a JSON document, one per line.")] = False,
) -> None:
    """Show dependencies, workers and the busiest models, and keep the screen up to date until Ctrl-C."""
    filters = filters_of(type_, where)
    with named("--interval"):
        interval_s = max(parse_duration(interval, unit_optional=True), INTERVAL_S_MIN)
    is_live = is_terminal() and not once and not as_json

    def work(client: "Client") -> None:
        states = _states(client, filters, interval_s, sort, lambda: limit or (_room() if is_live else MODELS_SHOWN))
        if is_live:
            _live(states)
            return
        for reading, models in states:
            if reading.error and (once or not as_json):
                raise UnavailableError(reading.error)
            _print(reading, models, as_json=as_json)
            if once or not as_json:
                return

    with until_reader_ends():
        with_client(url, work, lambda: "")


def _states(
    client: "Client", filters: Mapping[str, str], interval_s: float, sort: Sort, limit: Callable[[], int]
) -> Iterator[tuple["Reading", list[dict[str, Any]]]]:
    """Yield readings with their models, from the second one on: the first reading of a gateway has no rates."""
    from keepfit.client.overview import describe, read  # noqa: PLC0415 - other commands must not wait for it

    first = read(client, filters.items(), sort, limit())
    if first.error:
        raise UnavailableError(first.error)
    models: list[dict[str, Any]] = []
    while True:
        time.sleep(interval_s)
        reading = read(client, filters.items(), sort, limit())
        if not reading.error:
            models = describe(reading)
        yield reading, models


def _print(reading: "Reading", models: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        state = {
            "timestamp": reading.timestamp,
            "dependencies": dict(reading.ready),
            "workers": reading.workers,
            "traffic": reading.system.get("traffic"),
            "waiting": reading.system.get("waiting"),
            "models": models,
            "models_count": _count(reading),
            "models_cut": reading.is_cut,
        }
        print_json([state | ({"error": reading.error} if reading.error else {})])
        return
    print_table(DEPENDENCIES, reading.ready.items(), "nothing")
    typer.echo()
    print_table(WORKERS, map(workers.row, _busiest(reading)), "no workers")
    typer.echo()
    print_table(MODELS, map(_model, models), "no models")
    if reading.is_cut:
        print_note("There are more models; --limit shows more of them.")


def _count(reading: "Reading") -> int | None:
    """Return the number of all models; None if it is not known."""
    models = reading.system.get("models")
    return None if models is None else int(models["registered"])


def _live(states: Any) -> None:
    from rich.live import Live  # noqa: PLC0415 - other commands draw nothing

    with Live(console=console(), screen=True, auto_refresh=False) as live:
        for reading, models in states:
            live.update(_screen(reading, models), refresh=True)


def _room() -> int:
    """Return the number of models for which the screen has room beside the most workers that are shown."""
    return max(1, console().height - LINES_OTHER - WORKERS_SHOWN_MAX - 2)


def _screen(reading: "Reading", models: Sequence[Mapping[str, Any]]) -> "Group":
    """Return what the screen shows: the state, the traffic, the busiest workers, and the first models."""
    from rich.console import Group  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415

    head = f"{format_time(int(reading.timestamp))}  {_health(reading)}"
    return Group(
        Text(head, no_wrap=True, overflow="ellipsis", style="bold red" if _is_wrong(reading) else "bold"),
        Text(_totals(reading), no_wrap=True, overflow="ellipsis"),
        Text(_traffic(reading.system.get("traffic")), no_wrap=True, overflow="ellipsis"),
        Text(),
        aligned(WORKERS, map(workers.row, _busiest(reading)[:WORKERS_SHOWN_MAX])),
        Text(),
        aligned(MODELS, map(_model, models)),
    )


def _totals(reading: "Reading") -> str:
    """Return how many models, workers and requests there are, as far as that is known."""
    count, waiting = _count(reading), reading.system.get("waiting") or {}
    found = [("models", count), ("pending requests", waiting.get("requests")), ("workers", len(reading.workers))]
    return ", ".join(f"{number} {noun}" for noun, number in found if number is not None)


def _traffic(found: Mapping[str, Any] | None) -> str:
    """Return the traffic of the last minute in a line.

    >>> _traffic({"rows_in_per_s": 5.0, "rows_out_per_s": 40.0, "predictions": {"kept": 30, "worker": 10, "stale": 0},
    ...           "latency_p50_s": 0.00021, "latency_p99_s": 0.009})
    'rows/s: 5.0 in, 40.0 out; predictions: 75 % kept, 25 % worker; latency: 0.21 ms, 99 % within 9 ms'
    """
    if found is None:
        return "traffic unknown"
    text = f"rows/s: {found['rows_in_per_s']:.1f} in, {found['rows_out_per_s']:.1f} out"
    total = sum(found["predictions"].values())
    if not total:
        return text
    shares = ", ".join(f"{100 * n / total:.0f} % {source}" for source, n in found["predictions"].items() if n)
    median_ms, most_ms = 1000 * found["latency_p50_s"], 1000 * found["latency_p99_s"]
    return f"{text}; predictions: {shares}; latency: {median_ms:.2g} ms, 99 % within {most_ms:.2g} ms"


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
        *("" if rate is None else f"{rate:.1f}" for rate in (model["rows_per_s"], model["rows_out_per_s"])),
        model["inbox"],
        model["rows_seen"],
        model["version"],
        MAIN_METRICS[metric] if metric and is_terminal() else metric,
        "" if value is None else f"{value:.4g}" if is_terminal() else value,
        "" if share is None else f"{100 * share:.0f} %" if is_terminal() else f"{share:.4f}",
    )

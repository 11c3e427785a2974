"""The `keepfit` command.

Owns words and exit codes on the terminal, and reads the environment; each command calls one function elsewhere.
Services are imported only by the command that runs them. Invariant: an error is one clear line and an exit code other
than 0.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from keepfit import settings as settings_module
from keepfit.cli import dead_letters, history, keys, restore
from keepfit.errors import KeepfitError, SettingsError
from keepfit.observability import failpoints, logs
from keepfit.security.envelope import SIGNING_KEYS, UPLOAD_KEYS
from keepfit.settings import Settings

app = typer.Typer(
    help="Host machine-learning models that never stop learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(dead_letters.dead)
app.command()(restore.restore)
app.command()(restore.export)
app.command("import")(restore.import_)
app.command()(history.history)
app.add_typer(keys.app, name="key")
# The name it had before there were two kinds of keys.
app.command("keygen", hidden=True)(keys.signing)
# What is no terminal (a file, a pod's log) has no width: nothing is wrapped or cut off there.
out = Console(width=None if sys.stdout.isatty() else 1000)
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")]
Type = Annotated[str | None, typer.Option("--type", help="Only models whose metadata has this type.")]
Hash = Annotated[str | None, typer.Option("--hash", help="Only the model with this hash.")]

_data = Path(".keepfit")


@app.callback()
def _options(
    data: Annotated[
        Path, typer.Option(help="Folder of `keepfit up`; its settings are used where none are set.")
    ] = _data,
) -> None:
    """Host machine-learning models that never stop learning."""
    global _data  # noqa: PLW0603 - an option of the whole command line
    _data = data
    if point := os.environ.get("KEEPFIT_FAULT_POINT"):
        failpoints.arm(point)


def _settings() -> Settings:
    return settings_module.load(_data / "env")


@contextmanager
def _without_pandas() -> Iterator[None]:
    """Hide pandas from scikit-learn, which imports it for its own sake wherever it is installed: 70 MB a process."""
    if "pandas" in sys.modules:
        yield
        return
    sys.modules["pandas"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["pandas"]


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar; yields a function of (done, total)."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # In a log a bar is nothing but an empty line.
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Port of the gateway.")] = 8000,
    workers: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    data: Annotated[Path | None, typer.Option(help="Folder for data and logs.")] = None,
) -> None:
    """Start everything on this machine, in the foreground; Ctrl-C stops it, the next `up` goes on from its data."""
    from keepfit.local.stack import Stack  # noqa: PLC0415

    def started(stack: Stack) -> None:
        out.print(f"[bold]keepfit[/] is up: [link]{stack.url}[/]  (Ctrl-C stops it)")
        for name, value in stack.environment.items():
            own = name.removeprefix("KEEPFIT_").lower().replace("_", "-")
            shown = f"(in the folder's {own})" if name in (SIGNING_KEYS, UPLOAD_KEYS) else value
            out.print(f"  {name}={shown}", highlight=False, markup=False)
        out.print(f"  data, settings and logs: {stack.data}", highlight=False, markup=False)

    Stack(data or _data, port, workers).run(started)


@app.command()
def gateway() -> None:
    """Run the HTTP gateway."""
    with _without_pandas():
        from keepfit_gateway.app import run  # noqa: PLC0415

    logs.configure_json()
    run(_settings())


@app.command()
def worker() -> None:
    """Run worker processes under a supervisor; start more of these, anywhere, to carry more."""
    # More workers are how keepfit uses more cores; threads of the linear algebra would only fight over them.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with _without_pandas():
        from keepfit_workers.supervisor import run  # noqa: PLC0415 - after the environment is set

    logs.configure_json()
    run(_settings())


@app.command()
def snapshot(
    every: Annotated[str | None, typer.Option(help="Go on, with a pass every so often: 60s, 5m.")] = None,
    as_json: Json = False,
) -> None:
    """Save every model that changed since its last snapshot."""
    seconds = None if every is None else _seconds(every)
    from keepfit_snapshotter.run import run_every, run_once  # noqa: PLC0415

    if seconds is not None:
        logs.configure_json()
        asyncio.run(run_every(_settings(), seconds))
        return
    logs.configure_plain()
    with _progress("saving") as progress:
        report = asyncio.run(run_once(_settings(), progress))
    if as_json:
        _print_json(report.saved)
    else:
        _print_documents("Saved", report.saved)
        out.print(f"{len(report.saved)} saved, {report.unchanged} unchanged, {len(report.failed)} failed", end="")
        if report.left:
            out.print(f", {report.left} left for the next pass", end="")
        out.print(f" in {report.seconds:.2f} s", highlight=False)
        if gone := report.collected:
            out.print(
                f"cleared up: {gone.expired} snapshots past their time, {gone.aborted} that were never finished, "
                f"{gone.unknown} blobs without a document, {gone.unfinished} parts of blobs",
                highlight=False,
            )
        if compacted := report.compacted:
            out.print(
                f"row log: {compacted.merged} objects merged, {compacted.expired} past their time", highlight=False
            )
    if report.failed:
        first = next(iter(report.failed.items()))
        raise SystemExit(_complain(f"{len(report.failed)} models were not saved; {first[0][:12]}: {first[1]}"))
    if report.cleanup_error:
        raise SystemExit(_complain(f"not cleared up: {report.cleanup_error}"))


@app.command()
def models(
    type_: Type = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """List the models."""
    from keepfit.backends import redis_clients  # noqa: PLC0415
    from keepfit.history import Registry  # noqa: PLC0415
    from keepfit.store import listing  # noqa: PLC0415
    from keepfit.store.models import Store  # noqa: PLC0415

    async def find() -> list[dict[str, Any]]:
        settings = _settings()
        client = redis_clients.store_async(settings)
        try:
            async with Registry(settings.mongo_url.get_secret_value()) as opened:
                filters = {} if type_ is None else {"type": type_}
                found, _ = await listing.page(Store(client), opened, filters, limit)
                return found
        finally:
            await client.aclose()

    found = asyncio.run(find())
    if as_json:
        return _print_json(found)
    columns = ("hash", "metadata", "estimator", "version", "rows seen", "inbox")
    return _print_table(
        columns,
        [
            (
                model["hash"][:12],
                json.dumps(model["metadata"]),
                model["recipe"]["estimator"] or ("an object" if model["recipe"]["object"] else "steps"),
                *(model[name] for name in ("version", "rows_seen", "inbox")),
            )
            for model in found
        ],
    )


@app.command()
def demo(
    once: Annotated[bool, typer.Option(help="End after the demo instead of leaving the service up.")] = False,
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Flights in a request.")] = 500,
    flights: Annotated[int | None, typer.Option(min=1000, help="Only the first so many flights.")] = None,
) -> None:
    """Learn 336,776 real flights in time order, lose Redis, and go on from the snapshot."""
    from keepfit.local.demo import run  # noqa: PLC0415

    run(_data, port, batch, flights, once=once, console=out)


def _seconds(text: str) -> float:
    """Seconds in text like 60s, 5m, 1h.

    >>> _seconds("60s"), _seconds("5m"), _seconds("1.5")
    (60.0, 300.0, 1.5)
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text and text[-1] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"{text!r} is no span of time: write 60s, 5m or 1h.")
    return seconds


def _print_json(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        typer.echo(json.dumps(document))


def _print_documents(title: str, documents: list[dict[str, Any]]) -> None:
    columns = ("time (UTC)", "type", "hash", "version", "rows seen", "bytes", "uri")
    _print_table(
        columns,
        [
            (
                datetime.fromtimestamp(document["timestamp"], UTC).isoformat(" ", "seconds").removesuffix("+00:00"),
                document["type"],
                document["hash"][:12],
                *(document[name] for name in ("version", "rows_seen", "size_bytes", "uri")),
            )
            for document in documents
        ],
        title,
    )


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        # As text: what users put into metadata is no markup of ours.
        table.add_row(*(Text(str(value)) for value in row))
    out.print(table)


def _complain(message: str) -> int:
    line = Text.assemble(("keepfit:", "bold red"), " ", " ".join(message.split()))
    err.print(line, highlight=False, soft_wrap=True)
    return 1


def main() -> None:
    """Run the command; errors of ours become one line and exit code 1."""
    try:
        app()
    except KeepfitError as error:
        sys.exit(_complain(str(error)))

"""The commands that run services: `keepfit up`, `gateway`, `worker`, `snapshot` and `demo`.

Owns their texts, and what a process needs before a service is imported. Each command imports only the service that it
runs. Invariant: services log JSON lines; `snapshot` without --every is a command and logs warnings as plain text.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from keepfit.cli import options
from keepfit.cli.options import Json, load_settings
from keepfit.cli.output import HASH_DIGITS, out, print_error, print_json, print_snapshots, progress_bar
from keepfit.observability import logs
from keepfit.security.envelope import SIGNING_KEYS, UPLOAD_KEYS


@contextmanager
def without_pandas() -> Iterator[None]:
    """Hide pandas from scikit-learn, which imports it where it is installed and does not need it: 70 MB per process."""
    if "pandas" in sys.modules:
        yield
        return
    sys.modules["pandas"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["pandas"]


def up(
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(help="Number of worker processes.")] = 2,
    data: Annotated[
        Path | None, typer.Option(help="Folder for data, settings and logs; by default that of `keepfit --data`.")
    ] = None,
) -> None:
    """Start everything on this machine, in the foreground, until Ctrl-C. The next `up` continues with the same data."""
    from keepfit.local.stack import Stack  # noqa: PLC0415

    def print_started(stack: Stack) -> None:
        out.print(f"[bold]keepfit[/] is up: [link]{stack.url}[/]  (Ctrl-C stops it)")
        for name, value in stack.environment.items():
            file = name.removeprefix("KEEPFIT_").lower().replace("_", "-")
            shown = f"(in the folder's file {file})" if name in (SIGNING_KEYS, UPLOAD_KEYS) else value
            out.print(f"  {name}={shown}", highlight=False, markup=False)
        out.print(f"  data, settings and logs: {stack.data}", highlight=False, markup=False)

    Stack(data or options.data_folder(), port, workers).run(print_started)


def gateway() -> None:
    """Run the HTTP gateway."""
    with without_pandas():
        from keepfit_gateway.app import run  # noqa: PLC0415

    logs.configure_json()
    run(load_settings())


def worker() -> None:
    """Run worker processes under a supervisor. Start it on more machines for more throughput."""
    # keepfit uses more cores by more workers; threads of the linear algebra would only compete with them.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with without_pandas():
        from keepfit_workers.supervisor import run  # noqa: PLC0415 - after the environment is set

    logs.configure_json()
    run(load_settings())


def snapshot(
    every: Annotated[
        str | None, typer.Option(help="Keep running, with one pass per interval: 60s, 5m, 1h; a number is seconds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Save every model that changed since its last snapshot."""
    from keepfit.history.times import parse_duration  # noqa: PLC0415 - other commands must not wait for these imports

    every_s = None if every is None else parse_duration(every, unit_optional=True)
    from keepfit_snapshotter.run import run_every, run_once  # noqa: PLC0415

    if every_s is not None:
        logs.configure_json()
        asyncio.run(run_every(load_settings(), every_s))
        return
    logs.configure_plain()
    with progress_bar("saving") as progress:
        report = asyncio.run(run_once(load_settings(), progress))
    if as_json:
        print_json(report.saved)
    else:
        _print_report(report)
    if report.failed:
        model_hash, reason = next(iter(report.failed.items()))
        message = f"{len(report.failed)} models were not saved; {model_hash[:HASH_DIGITS]}: {reason}"
        raise SystemExit(print_error(message))
    if report.cleanup_error:
        raise SystemExit(print_error(f"cleanup failed: {report.cleanup_error}"))


def _print_report(report: Any) -> None:
    """Print the ``PassReport`` of a pass."""
    print_snapshots("Saved", report.saved)
    out.print(f"{len(report.saved)} saved, {report.unchanged} unchanged, {len(report.failed)} failed", end="")
    if report.left:
        out.print(f", {report.left} left for the next pass", end="")
    out.print(f" in {report.seconds:.2f} s", highlight=False)
    if collected := report.collected:
        out.print(
            f"deleted: {collected.expired} expired snapshots, {collected.aborted} aborted snapshots, "
            f"{collected.unknown} blobs without a history document, {collected.unfinished} unfinished uploads",
            highlight=False,
        )
    if compacted := report.compacted:
        out.print(f"row log: {compacted.merged} objects merged, {compacted.expired} expired", highlight=False)


def demo(
    once: Annotated[bool, typer.Option(help="Stop after the demo; otherwise the service stays up.")] = False,
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Flights per request.")] = 500,
    flights: Annotated[int | None, typer.Option(min=1000, help="Use only the first flights, this many.")] = None,
) -> None:
    """Learn 336,776 real flights in order of time, lose Redis, and continue from the snapshot."""
    from keepfit.local.demo import run  # noqa: PLC0415

    run(options.data_folder(), port, batch, flights, once=once, console=out)

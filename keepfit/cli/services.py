"""The commands that run services: `keepfit up`, `gateway`, `worker`, `snapshot` and `demo`.

Owns their texts, and what a process needs before a service is imported. Each command imports only the service that it
runs. Invariant: services log JSON lines; `snapshot` without --every is a command and logs warnings as plain text.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepfit import control_groups, times
from keepfit.cli import hashes, options
from keepfit.cli.options import Json, load_settings
from keepfit.cli.output import console, print_error, print_json, print_log, print_snapshots, progress_bar
from keepfit.observability.printable import printable

if TYPE_CHECKING:
    from keepfit.settings import Settings

WORKERS_MAX = 256


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
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes a free one.")] = 8000,
    workers: Annotated[
        str,
        typer.Option(help="Number of worker processes, at most 256; auto: one for each core.", metavar="INTEGER|auto"),
    ] = "2",
    gateways: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Number of processes of the gateway; default: KEEPFIT_GATEWAY_PROCESSES, or 1."
        ),
    ] = None,
) -> None:
    """Start everything on this machine, in the foreground, until Ctrl-C. The next `up` continues with the same data."""
    from keepfit import settings_check  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.local.stack import Stack, run_stack  # noqa: PLC0415
    from keepfit.security.envelope import SIGNING_KEYS, UPLOAD_KEYS  # noqa: PLC0415

    def print_started(stack: Stack) -> None:
        console().print(f"[bold]keepfit[/] is up: [link]{stack.url}[/]  (Ctrl-C stops it)")
        for name, value in stack.environment.items():
            file = name.removeprefix("KEEPFIT_").lower().replace("_", "-")
            shown = f"(in the folder's file {file})" if name in (SIGNING_KEYS, UPLOAD_KEYS) else value
            typer.echo(printable(f"  {name}={shown}"))
        typer.echo(printable(f"  data, settings and logs: {stack.data}"))

    # The folder's settings are those of its last stack, whose servers are gone.
    if workers != "auto" and not (workers.isdecimal() and 1 <= int(workers) <= WORKERS_MAX):
        reason = f"{workers!r} is neither a number from 1 to {WORKERS_MAX} nor auto"
        raise typer.BadParameter(reason, param_hint="'--workers'")
    count = control_groups.cores() if workers == "auto" else int(workers)
    settings = options.load_settings(of_folder=False).model_copy(update={"port": port, "workers": count})
    if gateways is not None:
        settings = settings.model_copy(update={"gateway_processes": gateways})
    settings_check.check(settings)
    settings_check.check_gateway(settings)
    run_stack(options.data_folder(), settings, print_started, print_log)


def gateway(
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Number of its processes; default: KEEPFIT_GATEWAY_PROCESSES, or 1."),
    ] = None,
) -> None:
    """Run the HTTP gateway, with as many processes as it may use cores."""
    from keepfit import child_environment  # noqa: PLC0415 - other commands must not wait for it

    settings = child_environment.without_other_keys(_service_settings(), child_environment.GATEWAY)
    if processes is not None:
        settings = settings.model_copy(update={"gateway_processes": processes})
    with without_pandas():
        from keepfit_gateway.supervisor import run  # noqa: PLC0415

    run(settings)


def worker() -> None:
    """Run worker processes under a supervisor. Start it on more machines for more throughput."""
    from keepfit import child_environment, hash_seed  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.local.data_folder import settings_file  # noqa: PLC0415

    folder = options.data_folder()
    hash_seed.restart_unless_fixed(["--data", str(folder), "worker"], env_file=settings_file(folder))
    # keepfit uses more cores by more workers; threads of the linear algebra would only compete with them.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    settings = _service_settings()
    with without_pandas():
        from keepfit_workers.supervisor import run  # noqa: PLC0415 - after the environment is set

    run(child_environment.without_other_keys(settings, child_environment.WORKERS))


def _service_settings() -> "Settings":
    """Configure the log of a service; return its settings, all of them checked."""
    import structlog  # noqa: PLC0415 - other commands must not wait for these imports

    from keepfit import settings as settings_module  # noqa: PLC0415
    from keepfit import settings_check  # noqa: PLC0415
    from keepfit.local.data_folder import settings_file  # noqa: PLC0415
    from keepfit.observability import logs  # noqa: PLC0415
    from keepfit.unknown_settings import unknown_variables  # noqa: PLC0415

    logs.configure_json()
    log = structlog.get_logger(__name__)
    for name, similar in unknown_variables().items():
        log.warning("unknown_setting", name=name, similar=similar)
    settings = settings_module.load(settings_file(options.data_folder()))
    settings_check.check(settings)
    logs.configure_json(settings.log_level)
    return settings


def snapshot(
    every: Annotated[
        str | None, typer.Option(help="Keep running, with one pass per interval: 60s, 5m, 1h; a number is seconds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Save every model that changed since its last snapshot."""
    with options.named("--every"):
        every_s = None if every is None else times.parse_duration(every, unit_optional=True)
    from keepfit import child_environment  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.observability import logs  # noqa: PLC0415
    from keepfit_snapshotter.run import run_every, run_once  # noqa: PLC0415

    if every_s is not None:
        settings = child_environment.without_other_keys(_service_settings(), child_environment.SNAPSHOTTER)
        asyncio.run(run_every(settings, every_s))
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
        message = f"{len(report.failed)} models were not saved; {model_hash}: {reason}"
        raise SystemExit(print_error(message))
    if report.cleanup_error:
        raise SystemExit(print_error(f"cleanup failed: {report.cleanup_error}"))


def _print_report(report: Any) -> None:
    """Print the ``PassReport`` of a pass."""
    print_snapshots(report.saved, hashes.shown(document["hash"] for document in report.saved))
    left = f", {report.left} left for the next pass" if report.left else ""
    typer.echo(
        f"{len(report.saved)} saved, {report.unchanged} unchanged, {len(report.failed)} failed{left} "
        f"in {report.seconds:.2f} s"
    )
    if collected := report.collected:
        typer.echo(
            f"deleted: {collected.expired} expired snapshots, {collected.aborted} aborted snapshots, "
            f"{collected.unknown} blobs without a history document, {collected.unfinished} unfinished uploads"
        )
    if report.unloaded:
        typer.echo(f"{report.unloaded} idle models deleted from Redis")
    if compacted := report.compacted:
        typer.echo(f"row log: {compacted.merged} objects merged, {compacted.expired} expired")


def demo(
    once: Annotated[bool, typer.Option(help="Stop after the demo; otherwise the service stays up.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Flights per request.")] = 500,
    flights: Annotated[int | None, typer.Option(min=1000, help="Use only the first flights, this many.")] = None,
) -> None:
    """Learn 336,776 real flights in order of time, lose Redis, and continue from the snapshot."""
    from keepfit.local.demo import run  # noqa: PLC0415

    run(options.data_folder(), port, batch, flights, once=once, console=console())

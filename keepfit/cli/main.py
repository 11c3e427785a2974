"""The `keepfit` command: assemble the commands, and turn errors into exit codes.

Owns the order of the commands, their names and their examples; each command is a function in the module of its group.
Invariant: an error is one clear line on standard error and an exit code other than 0.
"""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from keepfit import __version__
from keepfit.cli import (
    create,
    curve,
    dead_letters,
    estimators,
    history,
    history_writing,
    jobs,
    keys,
    missing_services,
    models,
    options,
    output,
    restore,
    rollups,
    rows,
    services,
    status,
    top,
    transfer,
    watch,
    words,
    workers,
)
from keepfit.errors import KeepfitError

app = typer.Typer(
    help="Host machine-learning models that never stop learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(show: bool) -> None:
    if show:
        typer.echo(f"keepfit {__version__}")
        raise typer.Exit


@app.callback()
def configure(
    data: Annotated[
        Path,
        typer.Option(help="Folder of `keepfit up`. Commands read their settings from it unless variables set them."),
    ] = options.DATA_FOLDER,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Host machine-learning models that never stop learning."""
    options.set_data_folder(data)
    if point := os.environ.get("KEEPFIT_FAULT_POINT"):
        from keepfit.observability import failpoints  # noqa: PLC0415 - for tests of failures

        failpoints.arm(point)


# The panels of `keepfit --help`, in their order.
TRY, USE, OPERATE, SERVICES = "Try it", "Use models", "Operate a deployment", "Run its services"


def _add(
    command: Callable[..., Any],
    panel: str,
    *examples: str,
    name: str | None = None,
    cls: type[TyperCommand] = TyperCommand,
    install: tuple[str, ...] = ("server",),
) -> None:
    """Add a command to a panel of the help, with the options that all have, and `examples` below its own help.

    `install` are the extras that it names where it lacks packages of the services.
    """
    command = missing_services.explained(command, name or command.__name__, install)
    app.command(name, epilog=_epilog(examples), cls=cls, rich_help_panel=panel)(options.with_data(command))


def _epilog(examples: tuple[str, ...]) -> str | None:
    title = "Examples:" if len(examples) > 1 else "Example:"
    return "\n".join((title, *(f"  {line}" for line in examples))) if examples else None


def _add_history() -> None:
    """Add `keepfit history`, which queries, and its commands, which change it."""
    group = typer.Typer(invoke_without_command=True, no_args_is_help=False)
    query = missing_services.explained(history.history, "history", ("server",))
    group.callback(
        epilog=_epilog(
            (
                "keepfit history --type shoes --after yesterday",
                "keepfit history --hash HASH --last 5 --json",
                "keepfit history --type shoes --every 1h --field metrics.mean_absolute_error --plot",
            )
        )
    )(options.unless_command(options.with_data(query)))
    for command, examples in (
        (
            history_writing.add,
            ("keepfit history add votes.jsonl", "keepfit history add states.csv --type state --key device"),
        ),
        (history_writing.delete, ("keepfit history delete --type vote --where brand=nike --before yesterday",)),
        (rollups.rebuild, ("keepfit history rebuild", "keepfit history rebuild --type shoes --force")),
    ):
        explained = missing_services.explained(command, f"history {command.__name__}", ("server",))
        group.command(command.__name__, epilog=_epilog(examples))(options.with_data(explained))
    app.add_typer(group, name="history", rich_help_panel=USE)


_add(services.up, TRY, install=("local",))
_add(services.demo, TRY, install=("demo", "local"))
_add(
    create.create,
    USE,
    "keepfit create --metadata type=shoes brand=nike --estimator SGDRegressor --features make:category year:number",
    "keepfit create model.yaml",
    "keepfit create --metadata type=boots --recipe recipe.yaml",
    cls=words.SeveralWords,
)
_add(
    rows.learn,
    USE,
    "keepfit learn shoes.csv --target fit --metadata type=shoes brand=nike",
    "zcat votes.jsonl.gz | keepfit learn - --format jsonl --target size --hash 3fa9",
    cls=words.SeveralWords,
)
_add(
    rows.predict,
    USE,
    "keepfit predict shoes.csv --hash 3fa9 --output predicted.csv",
    "keepfit predict shoes.csv --metadata type=shoes brand=nike --proba --only",
    cls=words.SeveralWords,
)
_add(
    rows.score,
    USE,
    "keepfit score shoes.csv --target fit --metadata type=shoes brand=nike",
    "keepfit score test.parquet --target fit --hash 3fa9 --json",
    cls=words.SeveralWords,
)
_add(models.models, USE, "keepfit models --type shoes --json", "keepfit models --hash 3fa9")
_add(
    jobs.pull,
    USE,
    "keepfit pull s3://bucket/daily/shoes.parquet --target size --metadata type=shoes brand=nike --follow",
    "keepfit pull file:///srv/data/votes.csv.gz --hash 3fa9 --column make=brand_name --column year",
    cls=words.SeveralWords,
)
_add(jobs.jobs, USE, "keepfit jobs --state running", "keepfit jobs 5f0c --follow", "keepfit jobs 5f0c --cancel")
_add(
    estimators.upload,
    USE,
    "keepfit upload trained.skops --metadata type=digits",
    "keepfit upload mlruns/1/models/m-5f0c/artifacts --trust --metadata type=digits",
    "keepfit upload http://localhost:5000/api/model/linear --trust --metadata type=deliveries",
    cls=words.SeveralWords,
)
_add(
    estimators.download,
    USE,
    "keepfit download --hash 3fa9 --output digits.skops",
    "keepfit download --metadata type=digits --format pickle",
    cls=words.SeveralWords,
)
_add(
    watch.watch,
    USE,
    "keepfit watch --type shoes",
    "keepfit watch --kind drift,dead_letter --json",
)
_add(
    curve.curve,
    USE,
    "keepfit curve --metadata type=shoes brand=nike",
    "keepfit curve --hash 3fa9 --time --metric root_mean_squared_error",
    "keepfit curve --hash 3fa9 --csv",
    cls=words.SeveralWords,
)
_add_history()
_add(status.status, OPERATE, "keepfit status", "keepfit status --json")
_add(top.top, OPERATE, "keepfit top --sort error", "keepfit top --once --json --type shoes")
_add(workers.workers, OPERATE, "keepfit workers", "keepfit workers --json")
_add(dead_letters.dead, OPERATE, "keepfit dead --hash HASH", "keepfit dead --hash HASH --retry")
_add(
    restore.restore,
    OPERATE,
    "keepfit restore --dry-run",
    "keepfit restore --type shoes",
    "keepfit restore --hash HASH --at '2 hours ago'",
    "keepfit restore --where brand=nike --version 12 --force",
)
_add(transfer.export, OPERATE, "keepfit export models.zip", "keepfit export shoes.zip --type shoes --newest")
_add(transfer.import_, OPERATE, "keepfit import models.zip --keys their-signing-keys --dry-run", name="import")
_add(rollups.rollups, OPERATE, "keepfit rollups", "keepfit rollups --rebuild --type shoes")
app.add_typer(keys.app, name="key", rich_help_panel=OPERATE)
_add(services.gateway, SERVICES)
_add(services.worker, SERVICES)
_add(services.snapshot, SERVICES, "keepfit snapshot", "keepfit snapshot --every 60s")
# The name of `keepfit key signing` in version 0.1, when there was one kind of key.
app.command("keygen", hidden=True)(keys.signing)


def main() -> None:
    """Run the command; an error becomes one line on standard error, and exit code 1, or 2 for wrong usage."""
    # For Python processes that this one starts, those of multiprocessing too: they import nothing from the working
    # directory, where a user's module may have the name of an installed one.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        code = app(prog_name="keepfit", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except KeepfitError as error:
        code = output.print_error(str(error))
        output.discard_unwritten()
        sys.exit(code)
    except typer.TyperException as error:
        # Without a message it has printed the help.
        if message := error.format_message().strip():
            context = getattr(error, "ctx", None)
            command = "keepfit" if context is None else context.command_path
            output.print_error(f"{message.rstrip('.')}; `{command} --help` lists what is valid.")
        sys.exit(error.exit_code)
    except OSError as error:
        # A full disk, or a pipe whose reader has ended.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
            raise
        code = output.print_error(f"{error.filename or 'standard output'} cannot be written: {error.strerror}.")
        output.discard_unwritten()
        sys.exit(code)
    except typer.Abort:
        output.print_error("aborted")
        sys.exit(1)

"""The `keepfit` command: assemble the commands, and turn errors into exit codes.

Owns the order of the commands, their names and their examples; each command is a function in the module of its group.
Invariant: an error is one clear line on standard error and an exit code other than 0.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from keepfit.cli import dead_letters, history, keys, models, options, output, restore, services, transfer
from keepfit.errors import KeepfitError
from keepfit.observability import failpoints

app = typer.Typer(
    help="Host machine-learning models that never stop learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def configure(
    data: Annotated[
        Path,
        typer.Option(help="Folder of `keepfit up`. Commands read their settings from it unless variables set them."),
    ] = options.DATA_FOLDER,
) -> None:
    """Host machine-learning models that never stop learning."""
    options.set_data_folder(data)
    if point := os.environ.get("KEEPFIT_FAULT_POINT"):
        failpoints.arm(point)


def _examples(*lines: str) -> str:
    """Return the text below a command's help."""
    return "\n".join(("Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)))


app.command()(services.up)
app.command()(services.demo)
app.command()(services.gateway)
app.command()(services.worker)
app.command(epilog=_examples("keepfit snapshot", "keepfit snapshot --every 60s"))(services.snapshot)
app.command(epilog=_examples("keepfit models --type shoes --json"))(models.models)
app.command(
    epilog=_examples(
        "keepfit history --type shoes --after yesterday",
        "keepfit history --hash HASH --last 5 --json",
        "keepfit history --type shoes --every 1h --field metrics.mean_absolute_error --plot",
    )
)(history.history)
app.command(epilog=_examples("keepfit dead --hash HASH", "keepfit dead --hash HASH --retry"))(dead_letters.dead)
app.command(
    epilog=_examples(
        "keepfit restore --dry-run",
        "keepfit restore --type shoes",
        "keepfit restore --hash HASH --at '2 hours ago'",
        "keepfit restore --where brand=nike --version 12 --force",
    )
)(restore.restore)
app.command(epilog=_examples("keepfit export models.zip", "keepfit export shoes.zip --type shoes --newest"))(
    transfer.export
)
app.command("import", epilog=_examples("keepfit import models.zip --keys their-signing-keys --dry-run"))(
    transfer.import_
)
app.add_typer(keys.app, name="key")
# The name of `keepfit key signing` in version 0.1, when there was one kind of key.
app.command("keygen", hidden=True)(keys.signing)


def main() -> None:
    """Run the command; an error of keepfit becomes one line on standard error and exit code 1."""
    try:
        app()
    except KeepfitError as error:
        sys.exit(output.print_error(str(error)))

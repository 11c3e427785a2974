"""The `keepfit key` commands: they make keys of all three kinds.

Owns what is printed, and where: what is to be kept goes to standard output, what is said about it to standard error.
Never stores anything.
"""

import secrets
from typing import Annotated

import typer

from keepfit.security.api_keys import LEARN, PREDICT, new_key

app = typer.Typer(
    help="Make keys: to call the gateway with, to sign bundles with, to send objects with.", no_args_is_help=True
)

SIGNING_KEY_BYTES = 32


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Who will call with it; letters, digits, - and _.")],
    scopes: Annotated[
        str, typer.Option(help="What it may do besides reading: predict, learn, admin, separated by commas.")
    ] = f"{PREDICT},{LEARN}",
    rate: Annotated[str, typer.Option(help="Requests a second, and how many at once: 50 or 50/200.")] = "",
) -> None:
    """Print a new API key, once, and the line to store for it."""
    token, line = new_key(name, [scope.strip() for scope in scopes.split(",")], rate)
    typer.echo("The key; give it to who calls, it is stored nowhere:", err=True)
    typer.echo(token)
    typer.echo("The line for KEEPFIT_API_KEYS or a line of KEEPFIT_API_KEYS_FILE:", err=True)
    typer.echo(line)


@app.command()
def signing(key_id: Annotated[str, typer.Option("--id", help="Name of the key.")] = "k1") -> None:
    """Print a new key for KEEPFIT_SIGNING_KEYS."""
    typer.echo(f"{key_id}:{secrets.token_hex(SIGNING_KEY_BYTES)}")


@app.command()
def upload(key_id: Annotated[str, typer.Option("--id", help="Name of the key.")] = "u1") -> None:
    """Print a new key for KEEPFIT_UPLOAD_KEYS: whoever has it can run code in workers."""
    typer.echo(f"{key_id}:{secrets.token_hex(SIGNING_KEY_BYTES)}")

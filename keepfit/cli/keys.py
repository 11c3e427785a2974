"""The commands `keepfit key`: make API keys, signing keys and upload keys.

Owns what is printed where: keys and the lines to store go to standard output, explanations to standard error. Never
stores anything.
"""

from typing import Annotated

import typer

from keepfit.cli.options import named, with_data
from keepfit.errors import SettingsError
from keepfit.security.api_keys import LEARN, PREDICT, new_key
from keepfit.security.envelope import new_signing_key

app = typer.Typer(
    help="Make keys: API keys for clients, signing keys for bundles, upload keys for objects.", no_args_is_help=True
)


@app.command(
    epilog="Examples:\n  keepfit key new --name web --scopes predict,learn --rate 50/200\n  "
    "keepfit key new --name nike --where type=shoes --where brand=nike"
)
@with_data
def new(
    name: Annotated[str, typer.Option(help="Name of the client: letters, digits, - and _.")],
    scopes: Annotated[
        str, typer.Option(help="Scopes besides read, separated by commas: predict, learn, admin.")
    ] = f"{PREDICT},{LEARN}",
    rate: Annotated[
        str, typer.Option(help="Rate limit, requests per second, with an optional burst: 50, 50/200.")
    ] = "",
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only models with this value in their metadata: type=shoes. Of several, all hold; of "
            "several values of one key, one."
        ),
    ] = None,
) -> None:
    """Print a new API key, and the line to store for it. The key is shown once."""
    try:
        token, line = new_key(name, [scope.strip() for scope in scopes.split(",")], rate, where or ())
    except SettingsError as error:
        raise SettingsError(f"--{error}") from None
    typer.echo("The API key. Give it to the client; it is stored nowhere:", err=True)
    typer.echo(token)
    typer.echo("The line for KEEPFIT_API_KEYS, or for the file KEEPFIT_API_KEYS_FILE:", err=True)
    typer.echo(line)


KeyId = Annotated[str, typer.Option("--id", help="Id of the key; by default one that is made from the key.")]


@app.command()
@with_data
def signing(key_id: KeyId = "") -> None:
    """Print a new signing key for KEEPFIT_SIGNING_KEYS."""
    typer.echo(_new_signing_key("k", key_id))


@app.command()
@with_data
def upload(key_id: KeyId = "") -> None:
    """Print a new upload key for KEEPFIT_UPLOAD_KEYS. Its holder can run code in workers."""
    typer.echo(_new_signing_key("u", key_id))


def _new_signing_key(prefix: str, key_id: str) -> str:
    with named("--id"):
        return new_signing_key(prefix, key_id)

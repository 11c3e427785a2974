"""What the commands that call a gateway share: how they name a model, the gateway and the end by Ctrl-C.

Owns these options and the connection; :mod:`keepfit.client` makes the calls. Invariant: an API key comes from a
setting, never from the command line, which other users of a machine can see.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from keepfit.cli import options
from keepfit.cli.options import load_client_settings
from keepfit.cli.output import is_terminal, print_note
from keepfit.cli.words import parse_metadata
from keepfit.errors import NotFoundError, SettingsError

if TYPE_CHECKING:
    from keepfit.client.clients import Client, Model

T = TypeVar("T")

# Exit code of a command that Ctrl-C ends, as of every Unix command.
INTERRUPTED = 130
# With 10 digits, two of 10,000 models begin alike with a probability of 1 in 22,000.
SHOWN_DIGITS = 10

Metadata = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE...",
        help="Metadata of the model: type=shoes brand=nike; KEY:=JSON for a value that is not text: size:=40. Or one "
        "JSON object.",
    ),
]
ModelHash = Annotated[
    str | None, typer.Option("--hash", help="Hash of the model, or the first digits of it, instead of --metadata.")
]
Url = Annotated[
    str | None, typer.Option(help="URL of the gateway; default: KEEPFIT_URL, or that of host and port in the settings.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as a JSON document.")]


def with_client(
    url: str | None,
    work: Callable[["Client"], T],
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> T:
    """Run `work` with a client of the gateway that `--url` or the settings name; return its result.

    Ctrl-C prints what `interrupted` returns, if anything.
    """
    from keepfit.client.clients import Client  # noqa: PLC0415 - other commands must not wait for it

    settings = load_client_settings()
    if threading.current_thread() is threading.main_thread():
        # A shell without job control has the commands that it starts in the background ignore the signal.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Client(url or options.gateway_url(settings), settings.api_key) as client:
            return work(client)
    except KeyboardInterrupt:
        if note := interrupted():
            print_note(note)
        raise typer.Exit(INTERRUPTED) from None


def find_model(
    client: "Client", model_hash: str | None, metadata: Iterable[str] | None
) -> tuple["Model", dict[str, Any]]:
    """Return a model and its description: the one that `--hash` or `--metadata` names."""
    if (model_hash is None) == (not metadata):
        raise SettingsError("Name the model with either --hash or --metadata.")
    if model_hash is not None:
        found = client.find(model_hash)
        return found, found.describe()
    document = parse_metadata(metadata)
    found = client.model(document)
    try:
        return found, found.describe()
    except NotFoundError:
        raise NotFoundError(
            f"There is no model with the metadata {json.dumps(document, ensure_ascii=False)}; `keepfit models` lists "
            "the models, and `keepfit create` makes one."
        ) from None


def short_hash(model_hash: str) -> str:
    """Return the digits of a hash that a terminal shows; elsewhere all.

    The others need the registry to know how many digits are enough; a gateway's client has only what it listed.
    """
    return model_hash[:SHOWN_DIGITS] if is_terminal() else model_hash

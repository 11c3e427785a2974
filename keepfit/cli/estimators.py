"""The commands `keepfit upload` and `download`: trained estimators as files.

Owns their texts; :mod:`keepfit.client.files.estimator_files` transfers the bytes, and
:mod:`keepfit.cli.trained_sources` opens what is uploaded. Never loads what is in a file by itself. Invariant: a file is
never written to a terminal.
"""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from keepfit.cli import options
from keepfit.cli.gateway_calls import AsJson, Metadata, ModelHash, Url, find_model, with_client
from keepfit.cli.output import is_terminal, print_json, print_note, progress_bar
from keepfit.cli.words import parse_metadata
from keepfit.errors import SettingsError

if TYPE_CHECKING:
    from keepfit.client.clients import Client
    from keepfit.client.files.estimator_files import Downloaded


def upload(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="File with a trained estimator: of skops, a signed pickle, or any pickle with --trust. Or a folder of "
            "MLflow, or the URL of such a file.",
        ),
    ],
    metadata: Metadata = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Load a pickle without a signature, which runs the code in it on this machine, and sign it.",
        ),
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Create a model from an estimator that was trained elsewhere, or find the one that this file has made."""
    from keepfit.cli.trained_sources import open_source  # noqa: PLC0415 - other commands must not wait for them
    from keepfit.client.files.estimator_files import upload as send  # noqa: PLC0415

    document = parse_metadata(metadata)
    upload_keys = options.upload_keys()

    def work(client: "Client") -> tuple[dict[str, Any], bool]:
        opened = open_source(source, trust=trust, upload_keys=upload_keys)
        for warning in opened.warnings:
            print_note(f"warning: {warning}")
        with progress_bar(f"uploading {source}", "bytes") as show:
            return send(client, document, opened.file, show)

    model, is_new = with_client(url, work)
    for warning in model.get("warnings") or ():
        print_note(f"warning: {warning}")
    if as_json:
        return print_json([model])
    if not is_new:
        print_note(f"The model exists; it has seen {model['rows_seen']} rows.")
    return typer.echo(model["hash"])


def download(
    metadata: Metadata = None,
    model_hash: ModelHash = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write; - is standard output. Default: the first digits of the hash and the version.",
        ),
    ] = None,
    format_: Annotated[Literal["skops", "pickle"], typer.Option("--format", help="Format of the file.")] = "skops",
    part: Annotated[
        Literal["model", "estimator"],
        typer.Option(help="The whole model, or its estimator alone, which takes rows as the model encodes them."),
    ] = "model",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Write a model to a file, as a fitted object that scikit-learn or River loads without keepfit."""
    from keepfit.client.files.estimator_files import download as fetch  # noqa: PLC0415 - other commands must not wait

    if output == "-" and is_terminal():
        raise SettingsError("The file is not text: name one with --output, or redirect standard output.")
    if output == "-" and as_json:
        raise SettingsError("--json prints to standard output, and so does --output -: use one of them.")

    def work(client: "Client") -> "Downloaded":
        found, _ = find_model(client, model_hash, metadata)
        with progress_bar("downloading", "bytes") as show:
            return fetch(client, found.hash, output, format_, part, show)

    done = with_client(url, work)
    if as_json:
        print_json([dataclasses.asdict(done)])
    elif output != "-":
        typer.echo(f"{done.file}: version {done.version}, {done.rows_seen} rows seen, {done.size_bytes:,} bytes")

"""The command `keepfit create`: models from a file, or from words on the command line.

Owns its text; :mod:`keepfit.cli.documents` reads files, :mod:`keepfit.cli.words` knows the syntax of metadata and
features. Invariant: the file is read and checked whole before the first model is created.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepfit.cli.documents import read_models, read_recipe
from keepfit.cli.gateway_calls import AsJson, Metadata, Url, with_client
from keepfit.cli.output import print_json, print_note
from keepfit.cli.words import json_or_text, parse_features, parse_metadata, parse_pairs
from keepfit.errors import KeepfitError, SettingsError, from_name

if TYPE_CHECKING:
    from keepfit.client.clients import Client


def create(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="File with metadata and recipe of the model, as YAML or JSON, or of several in documents of YAML; - "
            "is standard input.",
            show_default=False,
        ),
    ] = None,
    metadata: Metadata = None,
    estimator: Annotated[str | None, typer.Option(help="Name of the estimator: SGDRegressor.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:KIND...",
            help="Columns, in order: make:category year:number; other kinds: text, timestamp, boolean.",
        ),
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE...", help="Parameters of the estimator: alpha=0.001 penalty=l1."),
    ] = None,
    scaler: Annotated[str | None, typer.Option(help="Scaler of the number columns: StandardScaler.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of the categories: onehot, ordinal, hash.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option(metavar="LABEL...", help="Labels of a classifier: yes no; numbers are integers.")
    ] = None,
    updates: Annotated[str | None, typer.Option(help="exact or merged.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="File with the whole recipe, as YAML or JSON; - is standard input."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Create a model, or find the one with this metadata and recipe, and print its hash."""
    fields: dict[str, Any] = {
        "estimator": estimator,
        "features": parse_features(features),
        "params": {name: json_or_text(value) for name, value in parse_pairs(params, "--params", "alpha=0.001")} or None,
        "scaler": scaler,
        "encoding": encoding,
        "classes": [json_or_text(label) for label in classes] if classes else None,
        "updates": updates,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    models = _described(file, recipe, metadata, given)
    for model, is_new in with_client(url, lambda client: _create_all(client, models)):
        name = f"{model['hash'][:8]}: " if len(models) > 1 else ""
        for warning in model.get("warnings") or ():
            print_note(f"{name}warning: {warning}")
        if as_json:
            print_json([model])
            continue
        if not is_new:
            print_note(f"{name}The model exists; it has seen {model['rows_seen']} rows.")
        typer.echo(model["hash"])


def _described(
    file: str | None, recipe: str | None, metadata: list[str] | None, given: dict[str, Any]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return metadata and recipe of each model that the file, `--recipe` or the options `given` describe."""
    if file is not None and recipe is not None:
        raise SettingsError("The file holds the recipe; leave out --recipe.")
    if given and (file is not None or recipe is not None):
        holder = "--recipe" if file is None else "the file"
        raise SettingsError(f"{holder} holds the whole recipe; leave out --{next(iter(given))}.")
    if file is not None:
        return read_models(file, parse_metadata(metadata) if metadata else None)
    named = parse_metadata(metadata)
    return [(named, given if recipe is None else read_recipe(recipe))]


def _create_all(
    client: "Client", models: list[tuple[dict[str, Any], dict[str, Any]]]
) -> list[tuple[dict[str, Any], bool]]:
    """Create models in their order; an error names which of several it is about."""
    created = []
    for number, (metadata, recipe) in enumerate(models, 1):
        try:
            body = {"metadata": metadata, "recipe": recipe}
            status, model = client.request("POST", "/v1/models", body, is_repeatable=True)
            created.append((model, status == HTTPStatus.CREATED))
        except KeepfitError as error:
            if len(models) == 1:
                raise
            before = " Those before it are created." if created else ""
            message = f"Model {number} of {len(models)}: {str(error).rstrip('.')}.{before}"
            raise from_name(type(error).__name__, message) from None
    return created

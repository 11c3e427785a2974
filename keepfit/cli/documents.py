"""Files that describe models and recipes, in YAML or JSON.

Owns the form of such a file; :mod:`keepfit.cli.yaml_values` reads YAML, and the gateway checks recipes. Invariant: the
same document in YAML and in JSON describes the same model.
"""

import sys
from pathlib import Path
from typing import Any

from keepfit.errors import InvalidError, KeepfitError, MalformedError, NotFoundError
from keepfit.identity import check_metadata, parse_json

STANDARD_STREAM = "-"
MODEL_KEYS = {"metadata", "recipe"}


def read_documents(path: str) -> list[Any]:
    """Return the documents of a file, "-" for standard input: of JSON one, of YAML those between lines of ``---``.

    Raises
    ------
    NotFoundError, MalformedError, InvalidError
        If there is no such file, or it holds neither YAML nor JSON, or nothing.
    """
    try:
        data = sys.stdin.buffer.read() if path == STANDARD_STREAM else Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path}.") from None
    except UnicodeDecodeError:
        raise MalformedError(f"{path} is not UTF-8 text.") from None
    except OSError as error:
        raise KeepfitError(f"{path} cannot be read: {error.strerror}.") from None
    source = "standard input" if path == STANDARD_STREAM else path
    if not path.endswith((".yaml", ".yml")) and text.lstrip().startswith(("{", "[")):
        return [parse_json(text.encode(), source)]
    from keepfit.cli.yaml_values import parse_yaml  # noqa: PLC0415 - other commands must not wait for it

    return parse_yaml(text, source)


def read_recipe(path: str) -> dict[str, Any]:
    """Return the recipe in a file, "-" for standard input; its content is not checked.

    Raises
    ------
    KeepfitError
        As :func:`read_documents`; MalformedError also if the file does not hold one object.
    """
    recipes = read_documents(path)
    if len(recipes) > 1 or not isinstance(recipes[0], dict):
        raise MalformedError(f'{path}: a recipe is one object: {{"estimator": "SGDRegressor"}}.')
    recipe: dict[str, Any] = recipes[0]
    return recipe


def read_models(path: str, metadata: dict[str, Any] | None = None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return metadata and recipe of each model in a file; `metadata` are used instead of those of its only model.

    Raises
    ------
    KeepfitError
        As :func:`read_documents`; MalformedError or InvalidError also for a document that describes no model.
    """
    models = []
    documents = read_documents(path)
    if metadata is not None and len(documents) > 1:
        raise MalformedError(
            f"{path} has {len(documents)} models, which need different metadata: leave out --metadata."
        )
    for number, document in enumerate(documents, 1):
        place = path if len(documents) == 1 else f"{path}, document {number}"
        needed = MODEL_KEYS if metadata is None else {"recipe"}
        if not isinstance(document, dict) or not needed <= document.keys() <= MODEL_KEYS:
            raise MalformedError(
                f"{place}: a model is an object with {' and '.join(sorted(needed))}, and nothing else."
            )
        if not isinstance(document["recipe"], dict):
            raise MalformedError(f"{place}: recipe is not an object.")
        try:
            named = metadata if metadata is not None else check_metadata(document["metadata"])
        except InvalidError as error:
            raise InvalidError(f"{place}: {error}") from None
        models.append((named, document["recipe"]))
    return models

"""The command `keepfit models`: list the models, live ones and those that only a snapshot holds.

Owns the text of this command; :mod:`keepfit.store.listing` reads the models. Invariant: it changes nothing.
"""

import asyncio
from typing import Annotated, Any

import typer

from keepfit.cli import hashes
from keepfit.cli.options import Hash, Json, Type, Where, filters_of, load_settings
from keepfit.cli.output import (
    HASH,
    METADATA,
    Column,
    is_terminal,
    main_metric,
    metadata_text,
    print_json,
    print_note,
    print_table,
)
from keepfit.client import hash_prefix
from keepfit.errors import NotFoundError, SettingsError

# Pages of this many models are read at a time.
PAGE = 500
COLUMNS = (
    HASH,
    METADATA,
    Column("estimator", "cut", width_min=100),
    Column("version", right=True),
    Column("rows seen", right=True),
    Column("inbox", right=True),
    Column("metric"),
    Column("value", right=True),
)


def models(
    type_: Type = None,
    where: Where = None,
    model_hash: Hash = None,
    after: Annotated[
        str | None, typer.Option(help="Only models whose hash comes after this one or these first digits of one.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of models.")] = 100,
    as_json: Json = False,
) -> None:
    """List the models, ordered by hash."""
    if model_hash is not None and after is not None:
        raise SettingsError("Use either --hash, which names one model, or --after.")
    found, following = asyncio.run(_list(filters_of(type_, where), model_hash, after, limit))
    if as_json:
        print_json(found)
    else:
        short = hashes.shown([model["hash"] for model in found] + ([following] if following else []))
        print_table(COLUMNS, [_row(model, short[model["hash"]]) for model in found], "no models")
        if is_terminal():
            _print_warnings(found, one=model_hash is not None)
        following = following and short[following]
    if following:
        print_note(f"There are more models than these {limit}; the next ones: --after {following}")


async def _list(
    filters: dict[str, str], model_hash: str | None, after: str | None, limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    from keepfit.backends import redis_clients  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.history import Registry  # noqa: PLC0415
    from keepfit.store import listing  # noqa: PLC0415
    from keepfit.store.models import Store  # noqa: PLC0415

    settings = load_settings()
    following: str | None = ""
    if model_hash is not None:
        model_hash = await hashes.resolve(settings, model_hash)
        # The model is the first one after the hash that differs in the last digits only.
        limit, following = 1, hash_prefix.before(model_hash)
    elif after is not None:
        following = hashes.last_with(hash_prefix.check(after))
    client = redis_clients.store_async(settings)
    found: list[dict[str, Any]] = []
    try:
        async with Registry(settings.mongo_url.get_secret_value()) as history:
            while following is not None and len(found) < limit:
                count = min(limit - len(found), PAGE)
                page, following = await listing.page(Store(client), history, filters, count, following)
                found += page
    finally:
        await client.aclose()
    if model_hash is not None:
        if [model["hash"] for model in found] != [model_hash]:
            raise NotFoundError(f"There is no model {model_hash} that matches.")
        return found, None
    return found, following


def _print_warnings(found: list[dict[str, Any]], *, one: bool) -> None:
    """Print the warnings of a single model, or how many models have some: there may be thousands."""
    if one:
        for warning in found[0]["warnings"]:
            print_note(f"warning: {warning}")
        return
    count = sum(bool(model["warnings"]) for model in found)
    if count:
        print_note(f"Models with warnings: {count}. --hash and --json show them.")


def _row(model: dict[str, Any], shown: str) -> tuple[object, ...]:
    recipe = model["recipe"]
    return (
        shown,
        metadata_text(model["metadata"]),
        recipe["estimator"] or ("an object" if recipe["object"] else "steps"),
        *(model[name] for name in ("version", "rows_seen", "inbox")),
        *main_metric(model["metrics"]),
    )

"""The command `keepfit models`: list the models, live ones and those that only a snapshot holds.

Owns the text of this command; :mod:`keepfit.store.listing` reads the models. Invariant: it changes nothing.
"""

import asyncio
import json
from typing import Annotated, Any

import typer

from keepfit.cli.options import Json, Type, load_settings
from keepfit.cli.output import HASH_DIGITS, print_json, print_table

COLUMNS = ("hash", "metadata", "estimator", "version", "rows seen", "inbox")


def models(
    type_: Type = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of models.")] = 100,
    as_json: Json = False,
) -> None:
    """List the models, ordered by hash."""
    found = asyncio.run(_list(type_, limit))
    if as_json:
        return print_json(found)
    return print_table(COLUMNS, map(_row, found))


async def _list(type_: str | None, limit: int) -> list[dict[str, Any]]:
    from keepfit.backends import redis_clients  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.history import Registry  # noqa: PLC0415
    from keepfit.store import listing  # noqa: PLC0415
    from keepfit.store.models import Store  # noqa: PLC0415

    settings = load_settings()
    client = redis_clients.store_async(settings)
    try:
        async with Registry(settings.mongo_url.get_secret_value()) as history:
            filters = {} if type_ is None else {"type": type_}
            found, _ = await listing.page(Store(client), history, filters, limit)
            return found
    finally:
        await client.aclose()


def _row(model: dict[str, Any]) -> tuple[object, ...]:
    recipe = model["recipe"]
    return (
        model["hash"][:HASH_DIGITS],
        json.dumps(model["metadata"]),
        recipe["estimator"] or ("an object" if recipe["object"] else "steps"),
        *(model[name] for name in ("version", "rows_seen", "inbox")),
    )

"""The command `keepfit dead`: list or retry the dead letters of a model.

Owns the texts of this command; :mod:`keepfit.store.dead_letters` reads and moves them. Invariant: it changes nothing
without --retry.
"""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepfit.cli import hashes
from keepfit.cli.options import Json, load_settings
from keepfit.cli.output import Column, print_json, print_table
from keepfit.errors import NotFoundError
from keepfit.times import format_time

if TYPE_CHECKING:
    from keepfit.settings import Settings

COLUMNS = (
    Column("id"),
    Column("time (UTC)"),
    Column("rows", right=True),
    Column("bytes", right=True, width_min=100),
    Column("reason", "wrap"),
)


def dead(
    model_hash: Annotated[str, typer.Option("--hash", help="Hash of the model, or the first digits of it.")],
    retry: Annotated[bool, typer.Option("--retry", help="Move all of them back to the model's inbox.")] = False,
    as_json: Json = False,
) -> None:
    """List the dead letters of a model, the requests that could not be learned, or retry them."""
    settings = load_settings()
    model_hash = asyncio.run(hashes.resolve(settings, model_hash))
    if retry:
        moved, left = asyncio.run(_retry(settings, model_hash))
        if as_json:
            return print_json([{"hash": model_hash, "accepted": moved, "left": left}])
        return typer.echo(f"{moved} requests moved back to the inbox, {left} dead letters left")
    found = asyncio.run(_list(settings, model_hash))
    if as_json:
        return print_json(found)
    return print_table(
        COLUMNS,
        [
            (entry["id"], format_time(entry["timestamp"]), *(entry[name] for name in ("rows", "bytes", "reason")))
            for entry in found
        ],
        "no dead letters",
    )


async def _list(settings: "Settings", model_hash: str) -> list[dict[str, Any]]:
    from keepfit.backends import redis_clients  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.store.dead_letters import CALL_ENTRIES_MAX, DeadLetters  # noqa: PLC0415
    from keepfit.store.models import Store  # noqa: PLC0415

    client = redis_clients.store_async(settings)
    found: list[dict[str, Any]] = []
    try:
        if await Store(client).describe(model_hash) is None:
            raise NotFoundError(f"There is no model {model_hash} in Redis.")
        after: str | None = ""
        while after is not None:
            entries, after = await DeadLetters(client).page(model_hash, CALL_ENTRIES_MAX, after)
            found += [
                {
                    "id": entry.id,
                    "timestamp": entry.timestamp,
                    "generation": entry.generation,
                    "sequence": entry.sequence,
                    "rows": entry.rows,
                    "bytes": entry.size_bytes,
                    "reason": entry.reason,
                }
                for entry in entries
            ]
    finally:
        await client.aclose()
    return found


async def _retry(settings: "Settings", model_hash: str) -> tuple[int, int]:
    """Move dead letters back to the inbox while it has room; return how many were moved, and how many are left."""
    from keepfit.backends import redis_clients  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.jobs import run_queue  # noqa: PLC0415
    from keepfit.rowlog.row_log import open_log  # noqa: PLC0415
    from keepfit.store.dead_letters import CALL_ENTRIES_MAX, DeadLetters  # noqa: PLC0415
    from keepfit.store.models import Store  # noqa: PLC0415

    client, row_log = redis_clients.store_async(settings), open_log(settings.row_log_url)
    try:
        if row_log is not None:
            await asyncio.to_thread(row_log.probe)
        model = await Store(client).describe(model_hash)
        if model is None:
            raise NotFoundError(f"There is no model {model_hash} in Redis.")
        moved = 0
        # As many as there were at the start: a worker may put one aside again before the last one is moved.
        for _ in range(0, await DeadLetters(client).count(model_hash), CALL_ENTRIES_MAX):
            retried = await DeadLetters(client).retry(model, settings, None, logged=row_log is not None)
            moved += len(retried.sequences)
            if row_log is not None and retried.calls:
                await asyncio.to_thread(row_log.write, retried.calls)
        left = await DeadLetters(client).count(model_hash)
    finally:
        await client.aclose()
    if moved:
        run_queue.enqueue_model(settings, model_hash)
    return moved, left

"""The command `keepfit dead`: what was put aside of a model, for an operator's eyes and hands.

Owns the words of this one command; :mod:`keepfit.cli.main` adds it to the others and prints. Invariant: it changes
nothing unless it is told to retry.
"""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from keepfit.errors import NotFoundError
from keepfit.settings import Settings


def dead(
    model_hash: Annotated[str, typer.Option("--hash", help="The model.")],
    retry: Annotated[bool, typer.Option("--retry", help="Move all of them back to the model's inbox.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")] = False,
) -> None:
    """List the requests of a model that were put aside unlearned, or retry them."""
    from keepfit.cli import main  # noqa: PLC0415 - which imports this module

    settings = main._settings()
    if retry:
        moved, left = asyncio.run(_retry(settings, model_hash))
        if as_json:
            return main._print_json([{"hash": model_hash, "accepted": moved, "left": left}])
        return main.out.print(f"{moved} wait to be learned again, {left} are still put aside", highlight=False)
    found = asyncio.run(_list(settings, model_hash))
    if as_json:
        return main._print_json(found)
    columns = ("id", "time (UTC)", "rows", "bytes", "reason")
    return main._print_table(columns, [[_shown(entry, name) for name in columns] for entry in found])


def _shown(entry: dict[str, Any], column: str) -> object:
    if column == "time (UTC)":
        return datetime.fromtimestamp(entry["timestamp"], UTC).isoformat(" ", "seconds").removesuffix("+00:00")
    return entry[column]


async def _list(settings: Settings, model_hash: str) -> list[dict[str, Any]]:
    from keepfit.backends import redis_clients  # noqa: PLC0415 - other commands shall not wait for it
    from keepfit.store.dead_letters import CALL_MAX, DeadLetters  # noqa: PLC0415
    from keepfit.store.models import Store  # noqa: PLC0415

    client = redis_clients.store_async(settings)
    found: list[dict[str, Any]] = []
    try:
        if await Store(client).describe(model_hash) is None:
            raise NotFoundError(f"There is no model {model_hash} in Redis.")
        after: str | None = ""
        while after is not None:
            entries, after = await DeadLetters(client).page(model_hash, CALL_MAX, after)
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


async def _retry(settings: Settings, model_hash: str) -> tuple[int, int]:
    """Move what can be moved; return how many were, and how many are left."""
    from keepfit.backends import redis_clients  # noqa: PLC0415
    from keepfit.jobs import run_queue  # noqa: PLC0415
    from keepfit.rowlog.row_log import open_log  # noqa: PLC0415
    from keepfit.store.dead_letters import CALL_MAX, DeadLetters  # noqa: PLC0415
    from keepfit.store.models import Store  # noqa: PLC0415

    client, rows = redis_clients.store_async(settings), open_log(settings.row_log_url)
    try:
        if rows is not None:
            await asyncio.to_thread(rows.probe)
        model = await Store(client).describe(model_hash)
        if model is None:
            raise NotFoundError(f"There is no model {model_hash} in Redis.")
        moved = 0
        # No more than were there at first: a worker may put one aside again before the last is moved.
        for _ in range(0, await DeadLetters(client).count(model_hash), CALL_MAX):
            retried = await DeadLetters(client).retry(model, settings, None, logged=rows is not None)
            moved += len(retried.sequences)
            if rows is not None and retried.calls:
                await asyncio.to_thread(rows.write, retried.calls)
        left = await DeadLetters(client).count(model_hash)
    finally:
        await client.aclose()
    if moved:
        queue = redis_clients.queue_sync(settings)
        run_queue.ring(queue, run_queue.LEARN, settings.lease_ttl_s, [model_hash])
        queue.close()
    return moved, left

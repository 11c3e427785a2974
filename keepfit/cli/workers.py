"""The command `keepfit workers`: list the workers that are alive.

Owns the text of this command; :mod:`keepfit.jobs.worker_records` reads the workers. Invariant: it changes nothing.
"""

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from keepfit.cli.options import Json, load_settings
from keepfit.cli.output import Column, print_json, print_table

if TYPE_CHECKING:
    from keepfit.jobs.worker_records import WorkerRecord

COLUMNS = (
    Column("name", "cut"),
    Column("host", "cut", width_min=100),
    Column("pid", right=True),
    Column("state"),
    Column("models held", right=True),
    Column("rows/s", right=True),
)


def workers(as_json: Json = False) -> None:
    """List the workers that are alive, on all machines."""
    found = [dataclasses.asdict(worker) for worker in asyncio.run(_read())]
    if as_json:
        print_json(found)
    else:
        print_table(COLUMNS, map(row, found), "no workers")


def row(worker: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the cells of a worker, as `GET /v1/workers` describes it, for :data:`COLUMNS`."""
    state = f"in a call for {worker['call_s']} s" if worker["state"] == "long_call" else worker["state"]
    return worker["name"], worker["host"], worker["pid"], state, worker["models_held"], f"{worker['rows_per_s']:.1f}"


async def _read() -> list["WorkerRecord"]:
    from keepfit.backends import queue_servers  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.jobs import worker_records  # noqa: PLC0415

    settings = load_settings()

    async def read(client: Any) -> list["WorkerRecord"]:
        return await worker_records.read_all(client, settings.predict_timeout_s)

    each = await queue_servers.read_each(settings, read)
    return sorted((record for found in each for record in found), key=lambda record: record.name)

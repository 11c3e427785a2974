"""The command `keepfit restore`: put models back into Redis from their snapshots.

Owns the texts of this command and the question that it asks before live models lose learned rows;
:mod:`keepfit.restore.bulk` restores. Invariant: without a terminal it asks nothing, and no live model goes back unless
--force is given.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from keepfit.cli.options import DryRun, Hash, Json, Type, Where, load_settings, model_filter
from keepfit.cli.output import HASH_DIGITS, out, print_error, print_json, print_table, progress_bar
from keepfit.observability import logs

if TYPE_CHECKING:
    from keepfit.restore.bulk import Outcome, Plan

SHOWN_MAX = 20
COLUMNS = ("hash", "metadata", "live version", "snapshot version", "rows forgotten", "replayed", "outcome")


def restore(
    type_: Type = None,
    where: Where = None,
    model_hash: Hash = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="Restore the state of this time: exact to the row with a row log, otherwise the newest snapshot that "
            "is not later. '2026-11-20 12:00', yesterday, '2 hours ago', or seconds since 1970."
        ),
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Restore the newest snapshot of this version.")] = None,
    dry_run: DryRun = False,
    force: Annotated[
        bool, typer.Option("--force", help="Let live models forget what they learned since, without asking.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put models back into Redis from their snapshots: lost models; with --at or --version live models as well."""
    from keepfit.history import times  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.restore.bulk import restore_many  # noqa: PLC0415
    from keepfit.restore.requests import RestoreRequest  # noqa: PLC0415

    models = model_filter(type_, where, model_hash)
    request = RestoreRequest(None if at is None else times.parse_time(at), version)
    logs.configure_plain()
    with progress_bar("restoring") as progress:
        outcomes = asyncio.run(
            restore_many(
                load_settings(),
                models,
                request,
                dry_run=dry_run,
                confirm=lambda plans: force or _confirm(plans),
                follow=force,
                progress=progress,
            )
        )
    if as_json:
        print_json([outcome.as_dict() for outcome in outcomes])
    else:
        print_table(COLUMNS, map(_row, outcomes))
    if any(outcome.failed for outcome in outcomes):
        raise SystemExit(print_error("some models could not be restored"))
    if not outcomes:
        raise SystemExit(print_error("no model matches"))


def _confirm(plans: Sequence["Plan"]) -> bool:
    """Show the live models that would go back and ask for confirmation; return False without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print_table(COLUMNS, [_row(plan.outcome()) for plan in plans[:SHOWN_MAX]])
    if len(plans) > SHOWN_MAX:
        out.print(f"... and {len(plans) - SHOWN_MAX} more")
    rows = sum(plan.rows_forgotten for plan in plans)
    effect = f"{len(plans)} live models go back and forget {rows} rows; their pending requests are learned afterwards."
    return typer.confirm(f"{effect} Continue?", default=False, err=True)


def _row(outcome: "Outcome") -> list[object]:
    row = outcome.as_dict()
    names = ("live_version", "version", "rows_forgotten", "replayed", "outcome")
    return [row["hash"][:HASH_DIGITS], json.dumps(row["metadata"]), *(row[name] for name in names)]

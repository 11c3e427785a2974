"""The command `keepfit restore`: put models back into Redis from their snapshots.

Owns the texts of this command and the question that it asks before live models lose learned rows;
:mod:`keepfit.restore.bulk` restores. Invariant: without a terminal it asks nothing, and no live model goes back unless
--force is given.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from keepfit import times
from keepfit.cli import hashes
from keepfit.cli.options import DryRun, Hash, Json, Type, Where, load_settings, model_filter, named
from keepfit.cli.output import (
    HASH,
    METADATA,
    Column,
    metadata_text,
    print_error,
    print_json,
    print_note,
    print_table,
    progress_bar,
)

if TYPE_CHECKING:
    from keepfit.restore.bulk import Outcome, Plan

SHOWN_MAX = 20
COLUMNS = (
    HASH,
    METADATA,
    Column("live", right=True),
    Column("snapshot", right=True),
    # The outcome says both in words.
    Column("rows forgotten", right=True, width_min=120),
    Column("replayed", right=True, width_min=120),
    Column("outcome", "wrap"),
)


def restore(
    type_: Type = None,
    where: Where = None,
    model_hash: Hash = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="Restore the state of this time: exact to the row with a row log, otherwise the newest snapshot that "
            "is not later. A time as `keepfit history` prints it, 2026-11-20T12:00:00.25Z; '2026-11-20 12:00' (local "
            "time), now, yesterday, '2 hours ago', or seconds since 1970."
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
    from keepfit.observability import logs  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.restore.bulk import restore_many  # noqa: PLC0415
    from keepfit.restore.requests import RestoreRequest  # noqa: PLC0415

    settings = load_settings()
    if model_hash is not None:
        model_hash = asyncio.run(hashes.resolve(settings, model_hash))
    models = model_filter(type_, where, model_hash)
    with named("--at"):
        request = RestoreRequest(None if at is None else times.parse_past_time(at), version)
    logs.configure_plain()
    with progress_bar("restoring") as progress:
        outcomes = asyncio.run(
            restore_many(
                settings,
                models,
                request,
                dry_run=dry_run,
                confirm=lambda plans: force or _confirm(plans),
                follow=force,
                progress=progress,
            )
        )
    if not outcomes:
        raise SystemExit(print_error("no model matches"))
    if as_json:
        print_json([outcome.as_dict() for outcome in outcomes])
    else:
        if request.at is not None:
            # Say how the time was understood, before an operator relies on it.
            print_note(f"State of {times.format_time(request.at)}")
        _print_outcomes(outcomes)
    if any(outcome.failed for outcome in outcomes):
        raise SystemExit(print_error("some models could not be restored"))


def _confirm(plans: Sequence["Plan"]) -> bool:
    """Show the live models that would go back and ask for confirmation; return False without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    _print_outcomes([plan.outcome() for plan in plans[:SHOWN_MAX]])
    if len(plans) > SHOWN_MAX:
        typer.echo(f"... and {len(plans) - SHOWN_MAX} more")
    rows = sum(plan.rows_forgotten for plan in plans)
    effect = f"{len(plans)} live models go back and forget {rows} rows; their pending requests are learned afterwards."
    return typer.confirm(f"{effect} Continue?", default=False, err=True)


def _print_outcomes(outcomes: Sequence["Outcome"]) -> None:
    names = ("live_version", "version", "rows_forgotten", "replayed", "outcome")
    rows = [outcome.as_dict() for outcome in outcomes]
    shown = hashes.shown(row["hash"] for row in rows)
    print_table(
        COLUMNS,
        [(shown[row["hash"]], metadata_text(row["metadata"]), *(row[name] for name in names)) for row in rows],
        "no models",
    )

"""The commands `keepfit rollups` and `keepfit history rebuild`: list the roll-ups of the history, or roll up again.

Owns the texts of these commands; :mod:`keepfit.history.upkeep.rollups` rolls up. Invariant: `keepfit rollups` changes
nothing without --rebuild.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepfit.cli.options import Json, load_settings
from keepfit.cli.output import Column, ProgressCallback, print_json, print_table, progress_bar
from keepfit.errors import NotFoundError, SettingsError
from keepfit.times import format_time

if TYPE_CHECKING:
    from keepfit.history.rollups.documents import Rollup
    from keepfit.settings import Settings

COLUMNS = (
    Column("type", "wrap"),
    Column("every"),
    Column("field", "wrap"),
    Column("group", "wrap"),
    Column("until (UTC)"),
    Column("state"),
)


def rollups(
    type_: Annotated[str | None, typer.Option("--type", help="Only roll-ups of documents of this type.")] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Roll up all documents again, whenever they were stored.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="With --rebuild: also replace roll-ups of documents that may have expired since."),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the roll-ups of the history and how far they are, or rebuild them."""

    if force and not rebuild:
        raise SettingsError("--force requires --rebuild.")
    if rebuild:
        return _rebuild_and_print(type_, force=force, as_json=as_json)
    settings, chosen = _chosen(type_)
    found = asyncio.run(_list(settings, chosen))
    return print_json(found) if as_json else _print(found)


def rebuild(
    type_: Annotated[str | None, typer.Option("--type", help="Only roll-ups of documents of this type.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also take out what has expired: roll up what there is, and nothing else.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Roll up all documents of the history again, and delete roll-ups of what is no longer there."""
    _rebuild_and_print(type_, force=force, as_json=as_json)


def _chosen(type_: str | None) -> "tuple[Settings, list[Rollup]]":
    from keepfit.history.upkeep.rollups import parse  # noqa: PLC0415 - other commands must not wait for these imports

    settings = load_settings()
    chosen = [rollup for rollup in parse(settings.history_rollups) if type_ in (None, rollup.type)]
    if not chosen:
        which = "" if type_ is None else " of this type"
        raise NotFoundError(f"There is no roll-up{which}; KEEPFIT_HISTORY_ROLLUPS declares it.")
    return settings, chosen


def _rebuild_and_print(type_: str | None, *, force: bool, as_json: bool) -> None:
    from keepfit.observability import logs  # noqa: PLC0415 - other commands must not wait for it

    settings, chosen = _chosen(type_)
    logs.configure_plain()
    with progress_bar("rolling up") as progress:
        written = asyncio.run(_rebuild(settings, chosen, force=force, progress=progress))
    if as_json:
        return print_json(asyncio.run(_list(settings, chosen)))
    return typer.echo(f"{written} roll-up documents changed")


def _print(found: Sequence[dict[str, Any]]) -> None:
    print_table(
        COLUMNS,
        [
            (
                *(each[name] or "" for name in ("type", "every", "field", "group")),
                "" if each["until"] is None else format_time(each["until"]),
                each["state"],
            )
            for each in found
        ],
        "no roll-ups",
    )


async def _rebuild(settings: "Settings", chosen: Sequence["Rollup"], *, force: bool, progress: ProgressCallback) -> int:
    from keepfit.history import Timeline  # noqa: PLC0415 - other commands must not wait for it
    from keepfit.history.upkeep import rollups as history_rollups  # noqa: PLC0415

    written = 0
    async with Timeline.open(settings.mongo_url.get_secret_value()) as timeline:
        for done, rollup in enumerate(chosen, 1):
            written += await history_rollups.rebuild(timeline, rollup, force=force)
            progress(done, len(chosen))
    return written


async def _list(settings: "Settings", chosen: Sequence["Rollup"]) -> list[dict[str, Any]]:
    from keepfit.history import Timeline  # noqa: PLC0415 - other commands must not wait for it

    async with Timeline.open(settings.mongo_url.get_secret_value()) as timeline:
        return [
            {
                "type": rollup.type,
                "every": rollup.every,
                "field": rollup.field,
                "group": rollup.group,
                **await timeline.rollup_progress.describe(rollup.id),
            }
            for rollup in chosen
        ]

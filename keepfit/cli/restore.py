"""The commands `keepfit restore`, `export` and `import`: models brought back, put back, and moved to another house.

Owns the words of these commands and what they ask before they go back behind newer learning; :mod:`keepfit.cli.main`
adds them to the others and prints. Invariant: without a terminal nothing is asked, and nothing goes back unless --force
says so.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from keepfit.errors import SettingsError
from keepfit.observability import logs
from keepfit.security.envelope import IMPORT_KEYS, Keyring

SHOWN_MAX = 20

Progress = Callable[[int, int], None]

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")]
Type = Annotated[str | None, typer.Option("--type", help="Only models whose metadata has this type.")]
Hash = Annotated[str | None, typer.Option("--hash", help="Only the model with this hash.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Only models whose metadata has this value; may be repeated."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
File = Annotated[Path, typer.Argument(help="The file, a zip.", dir_okay=False)]

RESTORED = ("hash", "metadata", "live version", "snapshot version", "rows forgotten", "replayed", "outcome")
MOVED = ("hash", "metadata", "version", "snapshots", "outcome")


def restore(
    type_: Type = None,
    where: Where = None,
    model_hash: Hash = None,
    at: Annotated[
        str | None,
        typer.Option(
            help="As of this time, to the row where there is a row log, else the newest snapshot not later: "
            "'2026-11-20 12:00', yesterday, 2 hours ago, seconds since 1970."
        ),
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Newest snapshot of this version.")] = None,
    dry_run: DryRun = False,
    force: Annotated[
        bool, typer.Option("--force", help="Let live models go back behind what they have learned, without asking.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put models back into Redis from their snapshots: those that are lost; with --at or --version live ones too."""
    from keepfit.cli import main  # noqa: PLC0415 - which imports this module
    from keepfit.history import times  # noqa: PLC0415 - other commands shall not wait for it
    from keepfit.restore.bulk import restore_many  # noqa: PLC0415
    from keepfit.restore.restorer import RestoreRequest  # noqa: PLC0415

    meant, wanted = _meant(type_, where, model_hash), RestoreRequest(None if at is None else times.seconds(at), version)
    logs.configure_plain()
    with _bar("restoring") as progress:
        outcomes = asyncio.run(
            restore_many(
                main._settings(),
                meant,
                wanted,
                dry_run=dry_run,
                agreed=lambda plans: force or _asked(plans),
                follow=force,
                progress=progress,
            )
        )
    if as_json:
        main._print_json([outcome.as_dict() for outcome in outcomes])
    else:
        main._print_table(RESTORED, map(_restored_row, outcomes))
    if any(outcome.failed for outcome in outcomes):
        raise SystemExit(main._complain("some models could not be restored"))
    if not outcomes:
        raise SystemExit(main._complain("no model matches"))


def export(
    file: File,
    type_: Type = None,
    where: Where = None,
    model_hash: Hash = None,
    newest: Annotated[bool, typer.Option("--newest", help="Only each model's newest snapshot.")] = False,
    as_json: Json = False,
) -> None:
    """Write models, with their recipes and snapshots, into one file that another deployment can import."""
    from keepfit.cli import main  # noqa: PLC0415
    from keepfit.transfer.imports import export_many  # noqa: PLC0415

    meant = _meant(type_, where, model_hash)
    logs.configure_plain()
    with _bar("exporting") as progress:
        moved = asyncio.run(export_many(main._settings(), file, meant, newest_only=newest, progress=progress))
    _print_moved(moved, as_json=as_json)
    if not moved:
        raise SystemExit(main._complain(f"no model matches; {file} is empty"))


def import_(
    file: File,
    keys: Annotated[
        Path | None,
        typer.Option(help="File with the signing keys of who wrote it, id:hex each; or set KEEPFIT_IMPORT_KEYS."),
    ] = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite models that are here already.")] = False,
    as_json: Json = False,
) -> None:
    """Take in the models of a file that `keepfit export` wrote, and sign them with the key of this deployment."""
    from keepfit.cli import main  # noqa: PLC0415
    from keepfit.transfer.imports import import_many, keyring_of  # noqa: PLC0415

    settings = main._settings()
    given = settings.import_keys.get_secret_value()
    theirs = keyring_of(keys) if keys is not None else Keyring.from_text(given, IMPORT_KEYS) if given.strip() else None
    logs.configure_plain()
    with _bar("importing") as progress:
        moved = asyncio.run(import_many(settings, file, theirs, force=force, dry_run=dry_run, progress=progress))
    _print_moved(moved, as_json=as_json)
    failed = [one for one in moved if one.failed]
    if failed:
        raise SystemExit(main._complain(f"{len(failed)} of {len(moved)} models were not imported"))


def _meant(type_: str | None, where: list[str] | None, model_hash: str | None) -> Any:
    from keepfit.restore.bulk import Meant  # noqa: PLC0415

    metadata: dict[str, str] = {}
    for pair in where or ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise SettingsError(f"--where {pair!r} is no KEY=VALUE.")
        if metadata.setdefault(key, value) != value:
            raise SettingsError(f"--where asks for two values of {key!r}, and a model has one.")
    if type_ is not None and metadata.get("type", type_) != type_:
        raise SettingsError("--type and --where ask for two types.")
    return Meant(type_, model_hash, metadata)


def _asked(plans: Sequence[Any]) -> bool:
    """Show which models would go back, and ask; a no where nobody is there to be asked."""
    from keepfit.cli import main  # noqa: PLC0415

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    main._print_table(RESTORED, [_restored_row(plan.outcome()) for plan in plans[:SHOWN_MAX]])
    if len(plans) > SHOWN_MAX:
        main.out.print(f"... and {len(plans) - SHOWN_MAX} more")
    rows = sum(plan.rows_forgotten for plan in plans)
    question = f"{len(plans)} live models go back and forget {rows} rows; what waits for them is learned after that."
    return typer.confirm(f"{question} Go on?", default=False, err=True)


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """Show a progress bar from the first step on: a question may come before."""
    from keepfit.cli import main  # noqa: PLC0415

    with ExitStack() as stack:
        bars: list[Progress] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(main._progress(what)))
            bars[0](done, total)

        yield progress


def _restored_row(outcome: Any) -> list[object]:
    row = outcome.as_dict()
    names = ("live_version", "version", "rows_forgotten", "replayed", "outcome")
    return [row["hash"][:12], json.dumps(row["metadata"]), *(row[name] for name in names)]


def _print_moved(moved: Sequence[Any], *, as_json: bool) -> None:
    from keepfit.cli import main  # noqa: PLC0415

    rows = [one.as_dict() for one in moved]
    if as_json:
        return main._print_json(rows)
    names = ("version", "snapshots", "outcome")
    return main._print_table(
        MOVED, [[row["hash"][:12], json.dumps(row["metadata"]), *(row[name] for name in names)] for row in rows]
    )

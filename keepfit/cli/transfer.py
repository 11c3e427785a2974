"""The commands `keepfit export` and `keepfit import`: move models to another deployment in one file.

Owns the texts of these commands; :mod:`keepfit.transfer` reads and writes the file. Invariant: without --force no model
is overwritten.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepfit.cli import hashes
from keepfit.cli.options import DryRun, ExportFile, Hash, Json, Type, Where, load_settings, model_filter, named
from keepfit.cli.output import HASH, METADATA, Column, metadata_text, print_error, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from keepfit.transfer.exports import TransferResult

COLUMNS = (HASH, METADATA, Column("version", right=True), Column("snapshots", right=True), Column("outcome", "wrap"))


def export(
    file: ExportFile,
    type_: Type = None,
    where: Where = None,
    model_hash: Hash = None,
    newest: Annotated[bool, typer.Option("--newest", help="Only the newest snapshot of each model.")] = False,
    as_json: Json = False,
) -> None:
    """Write models, with their recipes and snapshots, into one file that another deployment can import."""
    from keepfit.observability import logs  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.transfer.exports import export_many  # noqa: PLC0415

    settings = load_settings()
    if model_hash is not None:
        model_hash = asyncio.run(hashes.resolve(settings, model_hash))
    models = model_filter(type_, where, model_hash)
    logs.configure_plain()
    with progress_bar("exporting") as progress:
        results = asyncio.run(export_many(settings, file, models, newest_only=newest, progress=progress))
    if not results:
        raise SystemExit(print_error(f"no model matches; {file} is not written"))
    _print_results(results, as_json=as_json)
    if not any(result.snapshots for result in results):
        raise SystemExit(print_error(f"no model has learned anything; {file} is not written"))


def import_(
    file: ExportFile,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="File with the signing keys of the deployment that wrote the export file, id:hex each; or set "
            "KEEPFIT_IMPORT_KEYS."
        ),
    ] = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite models that exist here.")] = False,
    as_json: Json = False,
) -> None:
    """Import the models of a file that `keepfit export` wrote, signed with the key of this deployment."""
    from keepfit.observability import logs  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.security.envelope import IMPORT_KEYS, Keyring  # noqa: PLC0415
    from keepfit.transfer.imports import import_many, read_keyring  # noqa: PLC0415

    settings = load_settings()
    setting = settings.import_keys.get_secret_value()
    import_keys = None
    if keys is not None:
        with named("--keys"):
            import_keys = read_keyring(keys)
    elif setting.strip():
        import_keys = Keyring.from_text(setting, IMPORT_KEYS)
    logs.configure_plain()
    with progress_bar("importing") as progress:
        results = asyncio.run(import_many(settings, file, import_keys, force=force, dry_run=dry_run, progress=progress))
    _print_results(results, as_json=as_json)
    failed = [result for result in results if result.failed]
    if failed:
        raise SystemExit(print_error(f"{len(failed)} of {len(results)} models were not imported"))


def _print_results(results: Sequence["TransferResult"], *, as_json: bool) -> None:
    rows = [result.as_dict() for result in results]
    if as_json:
        return print_json(rows)
    names = ("version", "snapshots", "outcome")
    shown = hashes.shown(row["hash"] for row in rows)
    return print_table(
        COLUMNS,
        [(shown[row["hash"]], metadata_text(row["metadata"]), *(row[name] for name in names)) for row in rows],
        "no models",
    )

"""Options that several commands share, and what they mean.

Owns their names, help texts and checks, and the folder whose settings the commands use. Never prints. Invariant: an
option has the same name, help and meaning in every command.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keepfit import settings as settings_module
from keepfit.errors import MalformedError, SettingsError
from keepfit.settings import Settings

if TYPE_CHECKING:
    from keepfit.restore.bulk import ModelFilter

DATA_FOLDER = Path(".keepfit")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one document per line.")]
Type = Annotated[str | None, typer.Option("--type", help="Only models whose metadata has this type.")]
Hash = Annotated[str | None, typer.Option("--hash", help="Only the model with this hash.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Only models whose metadata has this value; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]
ExportFile = Annotated[Path, typer.Argument(help="The export file, a zip archive.", dir_okay=False)]

_data_folder = DATA_FOLDER


def set_data_folder(folder: Path) -> None:
    """Set the folder of `keepfit up` for all commands of this process."""
    global _data_folder  # noqa: PLW0603 - an option of the whole command line
    _data_folder = folder


def data_folder() -> Path:
    """Return the folder of `keepfit up`."""
    return _data_folder


def load_settings() -> Settings:
    """Read the settings from the environment, and from the data folder for variables that are not set.

    Raises
    ------
    SettingsError
        If a variable has a value that its setting does not accept.
    """
    return settings_module.load(_data_folder / "env")


def parse_where(where: Iterable[str] | None, *, reserved: Iterable[str] = ()) -> dict[str, str]:
    """Return the values of `--where` by key.

    >>> parse_where(["brand=nike", "size=40"])
    {'brand': 'nike', 'size': '40'}

    Raises
    ------
    MalformedError
        If one is not KEY=VALUE, or its key is `reserved` for an option of its own.
    SettingsError
        If one key has two values.
    """
    values: dict[str, str] = {}
    for pair in where or ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise MalformedError(f"--where {pair!r} is not KEY=VALUE: use a key of metadata and its value, brand=nike.")
        if key in reserved:
            raise MalformedError(f"--where {pair!r}: {key} is an option of this command; use --{key}.")
        if values.setdefault(key, value) != value:
            raise SettingsError(f"--where has two values for {key!r}; a model has one.")
    return values


def model_filter(type_: str | None, where: Iterable[str] | None, model_hash: str | None) -> "ModelFilter":
    """Return the filter that `--type`, `--where` and `--hash` describe.

    Raises
    ------
    MalformedError, SettingsError
        As :func:`parse_where`; SettingsError also if `--type` and `--where` name two types.
    """
    from keepfit.restore.bulk import ModelFilter  # noqa: PLC0415 - other commands must not wait for it

    metadata = parse_where(where)
    if type_ is not None and metadata.get("type", type_) != type_:
        raise SettingsError("--type and --where name two different types; a model has one.")
    return ModelFilter(type_, model_hash, metadata)

"""Options that several commands share, and what they mean.

Owns their names, help texts and checks, and the folder whose settings the commands use. Invariant: an option has the
same name, help and meaning in every command.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepfit.backends.addresses import url_to_connect
from keepfit.cli.output import print_warning
from keepfit.errors import MalformedError, SettingsError

if TYPE_CHECKING:
    from keepfit.client_settings import ClientSettings
    from keepfit.restore.bulk import ModelFilter
    from keepfit.settings import Settings

DATA_FOLDER = Path(".keepfit")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, one document per line.")]
Type = Annotated[str | None, typer.Option("--type", help="Only models whose metadata has this type.")]
Hash = Annotated[str | None, typer.Option("--hash", help="Only the model with this hash, or the first digits of it.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Only models whose metadata has this value; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]
ExportFile = Annotated[Path, typer.Argument(help="The export file, a zip archive.", dir_okay=False)]

_data_folder = DATA_FOLDER


def set_data_folder(folder: Path | None) -> None:
    """Set the folder of `keepfit up` for all commands of this process; None leaves it as it is."""
    global _data_folder  # noqa: PLW0603 - an option of the whole command line
    if folder is not None:
        _data_folder = folder


Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder of `keepfit up`, as before the command.",
        callback=set_data_folder,
        expose_value=False,
    ),
]


def with_data(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return `command` with the option `--data`, which so can stand before and after the name of every command."""

    @functools.wraps(command)
    def run(*words: Any, data: Any = None, **options: Any) -> Any:
        return command(*words, **options)

    signature = inspect.signature(command)
    parameter = inspect.Parameter("data", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Data)
    # typer reads the options of a command from its signature.
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), parameter]
    )
    run.__annotations__ = {**command.__annotations__, "data": Data}
    return run


def unless_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return `command` as what a group does without one of its commands; its options do not stand before these."""

    def run(context: typer.Context, **options: Any) -> Any:
        if context.invoked_subcommand is None:
            return command(**options)
        sources = map(context.get_parameter_source, options)
        given = [source for source in sources if source is not None and source.name != "DEFAULT"]
        if given:
            raise SettingsError(f"Write options behind `{context.info_name} {context.invoked_subcommand}`.")
        return None

    signature = inspect.signature(command)
    parameter = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[parameter, *signature.parameters.values()]
    )
    run.__annotations__ = {"context": typer.Context, **command.__annotations__}
    return run


def data_folder() -> Path:
    """Return the folder of `keepfit up`."""
    return _data_folder


def load_settings(*, of_folder: bool = True) -> "Settings":
    """Read the settings from the environment, and with `of_folder` from the data folder those that it does not set.

    Warn on standard error about each variable KEEPFIT_… that is not a setting.

    The processes that this one starts get the hash seed of the data folder's workers, since they may learn.

    Raises
    ------
    SettingsError
        If a variable has a value that its setting does not accept, or the file of the folder cannot be read.
    """
    from keepfit import hash_seed  # noqa: PLC0415 - commands without settings must not wait for these imports
    from keepfit import settings as settings_module  # noqa: PLC0415
    from keepfit.local.data_folder import settings_file  # noqa: PLC0415
    from keepfit.unknown_settings import unknown_variables  # noqa: PLC0415

    env_file = settings_file(_data_folder)
    hash_seed.set_for_children(env_file)
    _warn_of(unknown_variables())
    return settings_module.load(env_file if of_folder else None)


def load_client_settings() -> "ClientSettings":
    """Read the settings of a client from the environment, and those that it does not set from the data folder.

    Warn on standard error about each variable KEEPFIT_… that is not a setting; where the services are not installed,
    about those that are nearly a setting of clients.

    Raises
    ------
    SettingsError
        If a variable has a value that its setting does not accept, or the file of the folder cannot be read.
    """
    from keepfit import client_settings, extras  # noqa: PLC0415 - commands without settings must not wait for these
    from keepfit.local.data_folder import settings_file  # noqa: PLC0415

    if client_settings.other_variables() and extras.has_services():
        from keepfit.unknown_settings import unknown_variables  # noqa: PLC0415 - it takes a quarter of a second

        _warn_of(unknown_variables())
    else:
        _warn_of(client_settings.misspelled_variables(), "a setting of clients")
    return client_settings.load(settings_file(_data_folder))


def upload_keys() -> str:
    """Return the upload keys in the settings of a client; "" without any. The call of a gateway warns about the rest.

    Raises
    ------
    SettingsError
        As :func:`load_client_settings`.
    """
    from keepfit import client_settings  # noqa: PLC0415 - commands without settings must not wait for these
    from keepfit.local.data_folder import settings_file  # noqa: PLC0415

    return client_settings.load(settings_file(_data_folder)).upload_keys


def _warn_of(unknown: Mapping[str, str], setting: str = "a setting") -> None:
    for name, similar in unknown.items():
        print_warning(f"{name} is not {setting} and is ignored" + (f"; did you mean {similar}?" if similar else "."))


def gateway_url(settings: "Settings | ClientSettings") -> str:
    """Return the URL of the gateway: the setting `url`, or the address that the gateway itself binds to.

    Raises
    ------
    SettingsError
        If neither names a port.
    """
    if settings.url:
        return settings.url
    if not settings.port:
        raise SettingsError("KEEPFIT_PORT is 0, a port that is not known: name the gateway with --url or KEEPFIT_URL.")
    return url_to_connect(settings.host, settings.port)


@contextmanager
def named(option: str) -> Iterator[None]:
    """Name the option in an error about its value."""
    try:
        yield
    except (MalformedError, SettingsError) as error:
        raise type(error)(f"{option}: {error}") from None


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


def filters_of(type_: str | None, where: Iterable[str] | None) -> dict[str, str]:
    """Return the values that `--type` and `--where` ask for, by key of metadata.

    Raises
    ------
    MalformedError, SettingsError
        As :func:`parse_where`; SettingsError also if `--type` and `--where` name two types.
    """
    metadata = parse_where(where)
    if type_ is None:
        return metadata
    if metadata.setdefault("type", type_) != type_:
        raise SettingsError("--type and --where name two different types; a model has one.")
    return metadata


def model_filter(type_: str | None, where: Iterable[str] | None, model_hash: str | None) -> "ModelFilter":
    """Return the filter that `--type`, `--where` and the whole hash describe; raises as :func:`filters_of`."""
    from keepfit.restore.bulk import ModelFilter  # noqa: PLC0415 - other commands must not wait for it

    return ModelFilter(None, model_hash, filters_of(type_, where))

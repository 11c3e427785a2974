"""The commands `keepfit create`, `learn` and `predict`: clients of a gateway, for recipes and files of rows.

Owns their texts; :mod:`keepfit.client` calls the gateway and reads the files, :mod:`keepfit.cli.words` knows the syntax
of metadata and features. Invariant: an API key comes from a setting, never from the command line, which other users of
a machine can see.
"""

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Coroutine, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from keepfit.cli import options
from keepfit.cli.options import load_settings
from keepfit.cli.output import is_terminal, print_json, print_note, progress_bar
from keepfit.cli.words import json_or_text, parse_features, parse_metadata, parse_pairs, read_recipe
from keepfit.errors import NotFoundError, SettingsError
from keepfit.identity import hash_of

if TYPE_CHECKING:
    from keepfit.client.gateway import Gateway

T = TypeVar("T")
Format = Literal["csv", "tsv", "json", "jsonl"]

SKIPPED_SHOWN_MAX = 5
# Exit code of a command that Ctrl-C ends, as of every Unix command.
INTERRUPTED = 130

Metadata = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE...",
        help="Metadata of the model: type=shoes brand=nike; KEY:=JSON for a value that is not text: size:=40. Or one "
        "JSON object.",
    ),
]
ModelHash = Annotated[
    str | None, typer.Option("--hash", help="Hash of the model, or the first digits of it, instead of --metadata.")
]
RowsFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="File of rows: .csv, .tsv, .json, .jsonl, each also with .gz; - is standard input."
    ),
]
FileFormat = Annotated[
    Format | None, typer.Option("--format", help="Format of the file, if its name does not end in it.")
]
Delimiter = Annotated[
    str | None, typer.Option(help="Character between the values of CSV; default: a comma, in .tsv a tab.")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Column that is not read, for models without features; repeatable."),
]
Batch = Annotated[int, typer.Option(min=1, max=100_000, help="Rows per request.")]
Url = Annotated[
    str | None, typer.Option(help="URL of the gateway; default: KEEPFIT_URL, or that of host and port in the settings.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as a JSON document.")]


def create(
    metadata: Metadata = None,
    estimator: Annotated[str | None, typer.Option(help="Name of the estimator: SGDRegressor.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:KIND...",
            help="Columns, in order: make:category year:number; other kinds: text, timestamp, boolean.",
        ),
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE...", help="Parameters of the estimator: alpha=0.001 penalty=l1."),
    ] = None,
    scaler: Annotated[str | None, typer.Option(help="Scaler of the number columns: StandardScaler.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of the categories: onehot, ordinal, hash.")] = None,
    classes: Annotated[
        list[str] | None, typer.Option(metavar="LABEL...", help="Labels of a classifier: yes no; numbers are integers.")
    ] = None,
    updates: Annotated[str | None, typer.Option(help="exact or merged.")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the whole recipe as JSON; - is standard input.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Create a model, or find the one with this metadata and recipe, and print its hash."""
    fields: dict[str, Any] = {
        "estimator": estimator,
        "features": parse_features(features),
        "params": {name: json_or_text(value) for name, value in parse_pairs(params, "--params", "alpha=0.001")} or None,
        "scaler": scaler,
        "encoding": encoding,
        "classes": [json_or_text(label) for label in classes] if classes else None,
        "updates": updates,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    document = parse_metadata(metadata)
    if recipe is not None and given:
        raise SettingsError(f"--recipe holds the whole recipe; leave out --{next(iter(given))}.")
    whole = given if recipe is None else read_recipe(recipe)

    async def run(gateway: "Gateway") -> tuple[dict[str, Any], bool]:
        return await gateway.create(document, whole)

    model, is_new = with_gateway(url, run)
    for warning in model.get("warnings") or ():
        print_note(f"warning: {warning}")
    if as_json:
        return print_json([model])
    if not is_new:
        print_note(f"The model exists; it has seen {model['rows_seen']} rows.")
    return typer.echo(model["hash"])


def learn(
    file: RowsFile,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column of the target; repeat it for several outputs."),
    ] = None,
    metadata: Metadata = None,
    model_hash: ModelHash = None,
    weight: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the sample weights.")] = None,
    ignore: Ignore = None,
    label_type: Annotated[
        Literal["string", "integer", "boolean"] | None,
        typer.Option(help="Type of the labels in CSV, if the recipe names no classes; default: string."),
    ] = None,
    batch: Batch = 1000,
    run: Annotated[
        str,
        typer.Option(
            help="Name of this run. The same file is learned once in each run: name another one to repeat it."
        ),
    ] = "",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bad rows instead of stopping.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Wait until rows are accepted only, not learned.")] = False,
    format_: FileFormat = None,
    delimiter: Delimiter = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Learn the rows of a file, in order. A run that was interrupted can be repeated: nothing is learned twice."""
    from keepfit.client import streaming  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.client.row_files import RowFile  # noqa: PLC0415
    from keepfit.client.row_values import check_targets, columns_of  # noqa: PLC0415

    learned = streaming.Learned()

    async def work(gateway: "Gateway") -> str:
        found, model = await _find(gateway, model_hash, metadata)
        columns = columns_of(model, target or (), weight, ignore or (), label_type)
        check_targets(columns)
        with RowFile(file, format_, delimiter) as source, progress_bar(f"learning {source.name}", "bytes") as show:
            await streaming.learn_file(
                gateway, found, source, columns, rows_seen=model["rows_seen"], run=run, rows_max=batch,
                wait=not no_wait, skip_bad=skip_bad, report=lambda position, rows: show(position, source.size),
                learned=learned,
            )  # fmt: skip
        _note_unread(columns.unread)
        return found

    done = "accepted" if no_wait else "learned"
    found = with_gateway(
        url, work, lambda: f"interrupted: {learned.rows} rows are {done}; send the file again to continue"
    )
    _note_skipped(learned.skipped)
    if as_json:
        return print_json(
            [{"hash": found, "rows": learned.rows, "repeated": learned.repeated, "skipped": len(learned.skipped),
              "version": learned.version, "rows_seen": learned.rows_seen}]
        )  # fmt: skip
    again = f", {learned.repeated} of them by an earlier run" if learned.repeated else ""
    result = f"{learned.rows} rows {done}{again}"
    if learned.version is not None:
        result += f"; the model has version {learned.version} and has seen {learned.rows_seen} rows"
    return typer.echo(result)


def predict(
    file: RowsFile,
    metadata: Metadata = None,
    model_hash: ModelHash = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File for the result, in the format of its name; - is standard output.",
        ),
    ] = "-",
    proba: Annotated[
        bool, typer.Option("--proba", help="Also write probabilities, or the scores of an outlier detector.")
    ] = False,
    only: Annotated[
        bool, typer.Option("--only", help="Write the predictions without the columns of the file.")
    ] = False,
    column: Annotated[str, typer.Option(help="Column of the predictions.")] = "prediction",
    ignore: Ignore = None,
    batch: Batch = 1000,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Write bad rows without a prediction instead of stopping.")
    ] = False,
    format_: FileFormat = None,
    delimiter: Delimiter = None,
    url: Url = None,
) -> None:
    """Predict the rows of a file, and write them with their predictions."""
    from keepfit.client import streaming  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.client.row_files import RowFile, format_of  # noqa: PLC0415
    from keepfit.client.row_values import columns_of  # noqa: PLC0415
    from keepfit.client.row_writer import RowWriter  # noqa: PLC0415

    async def work(gateway: "Gateway") -> list[str]:
        found, model = await _find(gateway, model_hash, metadata)
        columns = columns_of(model, ignored=ignore or ())
        # A bar between rows on the same terminal would be unreadable.
        shown = not (output == "-" and is_terminal())
        with (
            RowFile(file, format_, delimiter) as source,
            progress_bar(f"predicting {source.name}", "bytes", shown=shown) as show,
        ):
            written = format_of(output)[0] or source.format
            # --delimiter is that of CSV: .tsv has tabs, whatever the other file has.
            between = delimiter if written == source.format or written != "tsv" else None
            with RowWriter(output, written, between) as writer:
                skipped = await streaming.predict_file(
                    gateway, found, source, columns, writer, name=column, proba=proba, only=only, rows_max=batch,
                    skip_bad=skip_bad, report=lambda position, rows: show(position, source.size),
                )  # fmt: skip
        return skipped

    _note_skipped(with_gateway(url, work))


def with_gateway(
    url: str | None,
    work: Callable[["Gateway"], Coroutine[Any, Any, T]],
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> T:
    """Run `work` with the gateway that `--url` or the settings name; return its result.

    Ctrl-C prints what `interrupted` returns.
    """
    from keepfit.client.gateway import Gateway  # noqa: PLC0415 - other commands must not wait for it

    settings = load_settings()

    async def run() -> T:
        async with Gateway(url or options.gateway_url(settings), settings.api_key.get_secret_value()) as gateway:
            return await work(gateway)

    if threading.current_thread() is threading.main_thread():
        # asyncio's own handler waits for the next pause of the program: a read of standard input would go on, and its
        # last rows would be sent as a request that the whole file does not have.
        signal.signal(signal.SIGINT, _interrupt)
    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        print_note(interrupted())
        raise typer.Exit(INTERRUPTED) from None


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


async def _find(
    gateway: "Gateway", model_hash: str | None, metadata: Iterable[str] | None
) -> tuple[str, dict[str, Any]]:
    """Return hash and description of the model that `--hash` or `--metadata` names."""
    if (model_hash is None) == (not metadata):
        raise SettingsError("Name the model with either --hash or --metadata.")
    if model_hash is not None:
        found = await gateway.find_hash(model_hash)
        return found, await gateway.describe(found)
    document = parse_metadata(metadata)
    found = hash_of(document)
    try:
        return found, await gateway.describe(found)
    except NotFoundError:
        raise NotFoundError(
            f"There is no model with the metadata {json.dumps(document, ensure_ascii=False)}; `keepfit models` lists "
            "the models, and `keepfit create` makes one."
        ) from None


def _note_unread(columns: Iterable[str]) -> None:
    names = ", ".join(columns)
    if names:
        print_note(f"The recipe has no such column, so these are not learned: {names}")


def _note_skipped(skipped: list[str]) -> None:
    for place in skipped[:SKIPPED_SHOWN_MAX]:
        print_note(f"skipped: {place}")
    if len(skipped) > SKIPPED_SHOWN_MAX:
        print_note(f"skipped: {len(skipped) - SKIPPED_SHOWN_MAX} more bad rows")

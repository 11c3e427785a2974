"""The commands `keepfit learn`, `predict` and `score`: files of rows through a gateway.

Owns their texts; :mod:`keepfit.client` reads the files and calls the gateway.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from keepfit.cli.gateway_calls import AsJson, Metadata, ModelHash, Url, find_model, with_client
from keepfit.cli.output import Column, is_terminal, print_json, print_note, print_table, progress_bar

if TYPE_CHECKING:
    from keepfit.client.clients import Client

Format = Literal["csv", "tsv", "json", "jsonl", "parquet"]

SKIPPED_SHOWN_MAX = 5
SCORE_COLUMNS = (Column("score"), Column("value", right=True))

RowsFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="File of rows: .csv, .tsv, .json, .jsonl, each also with .gz or .zst, or .parquet; - is standard input.",
    ),
]
Target = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN", help="Column of the target; repeat it for several outputs.")
]
LabelType = Annotated[
    Literal["string", "integer", "boolean"] | None,
    typer.Option(help="Type of the labels in CSV, if the recipe names no classes; default: string."),
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


def learn(
    file: RowsFile,
    target: Target = None,
    metadata: Metadata = None,
    model_hash: ModelHash = None,
    weight: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the sample weights.")] = None,
    ignore: Ignore = None,
    label_type: LabelType = None,
    batch: Batch = 1000,
    run: Annotated[
        str,
        typer.Option(
            help="Name of this run. The same file, with the same --batch, is learned once in each run: name another "
            "one to repeat it."
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
    from keepfit.client.files.learn_file import Learned, learn_file  # noqa: PLC0415 - other commands must not wait
    from keepfit.client.files.row_files import RowFile  # noqa: PLC0415
    from keepfit.client.files.row_values import check_targets, columns_of  # noqa: PLC0415

    learned = Learned()

    def work(client: "Client") -> str:
        found, model = find_model(client, model_hash, metadata)
        columns = columns_of(model, target or (), weight, ignore or (), label_type)
        check_targets(columns)
        with RowFile(file, format_, delimiter) as source, progress_bar(f"learning {source.name}", "bytes") as show:
            learn_file(
                found, source, columns, rows_seen=model["rows_seen"], run=run, rows_max=batch,
                wait=not no_wait, skip_bad=skip_bad, report=lambda position, rows: show(position, source.size),
                learned=learned,
            )  # fmt: skip
        _note_unread(columns.unread)
        return found.hash

    done = "accepted" if no_wait else "learned"
    found = with_client(
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
    from keepfit.client.files.predict_file import predict_file  # noqa: PLC0415 - other commands must not wait
    from keepfit.client.files.row_files import RowFile, format_of  # noqa: PLC0415
    from keepfit.client.files.row_values import columns_of  # noqa: PLC0415
    from keepfit.client.files.row_writer import RowWriter  # noqa: PLC0415

    def work(client: "Client") -> list[str]:
        found, model = find_model(client, model_hash, metadata)
        columns = columns_of(model, ignored=ignore or ())
        # A bar between rows on the same terminal would be unreadable.
        shown = not (output == "-" and is_terminal())
        with (
            RowFile(file, format_, delimiter) as source,
            progress_bar(f"predicting {source.name}", "bytes", shown=shown) as show,
        ):
            written = format_of(output)[0] or ("csv" if source.format == "parquet" else source.format)
            # --delimiter is that of CSV: .tsv has tabs, whatever the other file has.
            between = delimiter if written == source.format or written != "tsv" else None
            with RowWriter(output, written, between) as writer:
                skipped = predict_file(
                    found, source, columns, writer, name=column, proba=proba, only=only, rows_max=batch,
                    skip_bad=skip_bad, report=lambda position, rows: show(position, source.size),
                )  # fmt: skip
        return skipped

    _note_skipped(with_client(url, work))


def score(
    file: RowsFile,
    target: Target = None,
    metadata: Metadata = None,
    model_hash: ModelHash = None,
    ignore: Ignore = None,
    label_type: LabelType = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bad rows instead of stopping.")] = False,
    format_: FileFormat = None,
    delimiter: Delimiter = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Predict the rows of a file, and print how far the predictions are from its target. Nothing is learned."""
    from keepfit.client.files.row_files import RowFile  # noqa: PLC0415 - other commands must not wait for these imports
    from keepfit.client.files.row_values import check_targets, columns_of  # noqa: PLC0415
    from keepfit.client.files.score_file import score_file  # noqa: PLC0415

    def work(client: "Client") -> tuple[dict[str, Any], int, list[str]]:
        found, model = find_model(client, model_hash, metadata)
        columns = columns_of(model, target or (), None, ignore or (), label_type)
        check_targets(columns)
        with RowFile(file, format_, delimiter) as source, progress_bar(f"reading {source.name}", "bytes") as show:
            return score_file(
                client, found.hash, source, columns, skip_bad=skip_bad, report=lambda at, rows: show(at, source.size)
            )

    answer, rows, skipped = with_client(url, work)
    _note_skipped(skipped)
    if as_json:
        return print_json([{**answer, "rows": rows, "skipped": len(skipped)}])
    named = {name: value for name, value in answer.items() if name != "hash"}
    return print_table(SCORE_COLUMNS, [("rows", rows), *named.items()], "nothing")


def _note_unread(columns: Iterable[str]) -> None:
    names = ", ".join(columns)
    if names:
        print_note(f"The recipe has no such column, so these are not learned: {names}")


def _note_skipped(skipped: list[str]) -> None:
    for place in skipped[:SKIPPED_SHOWN_MAX]:
        print_note(f"skipped: {place}")
    if len(skipped) > SKIPPED_SHOWN_MAX:
        print_note(f"skipped: {len(skipped) - SKIPPED_SHOWN_MAX} more bad rows")

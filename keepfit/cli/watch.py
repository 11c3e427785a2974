"""The command `keepfit watch`: print events of models and workers as they happen.

Owns how an event is printed; :mod:`keepfit.client.calling.event_stream` reads the stream, and continues it after an
interruption. Invariant: an event is printed at once, also into a pipe, and none twice.
"""

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepfit.cli.gateway_calls import Url, short_hash, with_client
from keepfit.cli.options import Type, Where, filters_of
from keepfit.cli.output import (
    is_terminal,
    main_metric,
    metadata_text,
    print_json,
    print_note,
    print_stream_line,
    until_reader_ends,
)
from keepfit.times import format_time

if TYPE_CHECKING:
    from keepfit.client.clients import Client

TITLES = ("time (UTC)", "event", "model or worker", "details", "metadata")
# On a terminal; the last column takes what is left.
WIDTHS = (10, 13, 15, 36, 0)


def watch(
    type_: Type = None,
    where: Where = None,
    model_hash: Annotated[
        list[str] | None,
        typer.Option("--hash", help="Only the model with this hash, or the first digits of it; repeatable."),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only events of this kind: commit, drift, dead_letter, worker_died, …; repeatable."),
    ] = None,
    after: Annotated[
        str, typer.Option(metavar="ID", help="Begin after the event with this id; 0-0 begins with the oldest.")
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="End after this many events.")] = None,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one event per line.")] = False,
) -> None:
    """Print events as they happen, until Ctrl-C: commits, drift, dead letters, snapshots, and those of workers."""
    filters = filters_of(type_, where)

    def work(client: "Client") -> None:
        hashes = [client.find(digits).hash for digits in model_hash or ()]
        kinds = [name for words in kind or () for name in words.split(",")]
        events = client.events(*kinds, hash=hashes, after=after, where=filters, interrupted=_note_interruption)
        for number, event in enumerate(islice(events, limit)):
            if as_json:
                print_json([event])
            else:
                if not number:
                    print_stream_line(TITLES, WIDTHS)
                print_stream_line(_cells(event), WIDTHS)

    with until_reader_ends():
        with_client(url, work, lambda: "")


def _note_interruption(reason: str) -> None:
    print_note(f"interrupted, connecting again: {reason}" if reason else "connected again")


def _cells(event: Mapping[str, Any]) -> tuple[str, ...]:
    when = format_time(event["timestamp"])
    subject = event.get("worker") or short_hash(event.get("hash", ""))
    metadata = metadata_text(event["metadata"]) if "metadata" in event else event.get("host", "")
    # A terminal that is watched knows the day.
    return when[11:19] if is_terminal() else when, event["kind"], subject, details(event), metadata


def details(event: Mapping[str, Any]) -> str:
    """Return what happened, in a few words.

    >>> details({"kind": "commit", "version": 3, "rows_seen": 12})
    'version 3, 12 rows'
    >>> details({"kind": "worker_died", "exitcode": -9})
    'signal 9'
    """
    kind = event["kind"]
    if kind == "gap":
        return f"events are missing after {event['after']}"
    if kind == "drift":
        drift = event["drift"]
        output = f" of output {drift['output']}" if "output" in drift else ""
        return f"{drift['metric']}{output} {drift['before']:.4g} to {drift['recent']:.4g}"
    if kind == "dead_letter":
        return f"request {event['sequence']}: {event['reason']}"
    if kind == "worker_died":
        code = event["exitcode"]
        return f"signal {-code}" if code < 0 else f"exit code {code}"
    words = [f"version {event['version']}"] if "version" in event else []
    if kind == "snapshot":
        words.append(f"{event['size_bytes']:,} bytes")
    elif "rows_seen" in event:
        words.append(f"{event['rows_seen']} rows")
    metric, value = main_metric(event.get("metrics"))
    return ", ".join([*words, f"{metric} {value}"] if metric else words)

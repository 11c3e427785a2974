"""The command `keepfit watch`: print events of models and workers as they happen.

Owns how an event is printed; :mod:`keepfit.client.event_stream` reads the stream, and continues it after an
interruption. Invariant: an event is printed at once, also into a pipe, and none twice.
"""

from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keepfit.cli.gateway_calls import Url, short_hash, with_gateway
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
    from keepfit.client.gateway import Gateway

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
    # Other commands must not wait for them.
    from keepfit.client.address import Address  # noqa: PLC0415
    from keepfit.client.async_connections import AsyncConnections  # noqa: PLC0415
    from keepfit.client.async_performer import AsyncPerformer  # noqa: PLC0415
    from keepfit.client.calls import Calls  # noqa: PLC0415
    from keepfit.client.event_stream import EventStream  # noqa: PLC0415

    filters = filters_of(type_, where)

    async def work(gateway: "Gateway") -> None:
        hashes = [await gateway.find_hash(digits) for digits in model_hash or ()]
        kinds = [name for words in kind or () for name in words.split(",")]
        address = Address(gateway.url, gateway.api_key)
        shared = Calls(address)
        performer = AsyncPerformer(AsyncConnections(address), shared)
        stream = EventStream(shared, kinds, hashes, after, filters, _note_interruption)
        printed = 0
        async with aclosing(performer.listen(stream)) as events:
            async for event in events:
                if as_json:
                    print_json([event])
                else:
                    if not printed:
                        print_stream_line(TITLES, WIDTHS)
                    print_stream_line(_cells(event), WIDTHS)
                printed += 1
                if printed == limit:
                    return

    with until_reader_ends():
        with_gateway(url, work, lambda: "")


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

"""The commands `keepfit pull` and `jobs`: sources that keepfit reads itself, and the jobs that do so.

Owns their texts; the gateway makes and describes the jobs, the workers' pull processes run them. Invariant: a job does
not depend on a command that follows it.
"""

import hashlib
import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode

import typer

from keepfit.cli.gateway_calls import AsJson, Metadata, ModelHash, Url, find_model, short_hash, with_client
from keepfit.cli.options import Hash, Json
from keepfit.cli.output import Column, metadata_text, print_error, print_json, print_note, print_table, progress_bar
from keepfit.errors import MalformedError, NotFoundError, SettingsError
from keepfit.times import format_time

if TYPE_CHECKING:
    from keepfit.client.clients import Client

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
DIGITS = 32
PAGE = 100
# A job that is followed is asked for this often.
POLL_S = 0.5
LISTED = (
    Column("job"),
    Column("model"),
    Column("state"),
    Column("rows done", right=True),
    Column("total", right=True, width_min=100),
    Column("skipped", right=True),
    Column("created (UTC)", width_min=110),
    Column("source", "cut"),
)
DESCRIBED = (Column("job"), Column("", "wrap"))
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the progress until the job ends.")]


def pull(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Address of the source: s3://…, https://… or file:///….")
    ],
    target: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the target; default: y.")] = None,
    metadata: Metadata = None,
    model_hash: ModelHash = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Column to learn, or NAME=SOURCE for one that has another name in the source; repeatable. Default: "
            "those of the recipe.",
        ),
    ] = None,
    weight: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the sample weights.")] = None,
    label_type: Annotated[
        Literal["string", "integer", "boolean"] | None,
        typer.Option(help="Type of the labels in CSV, if the recipe names no classes; default: string."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows per request.")] = 1000,
    skip_max: Annotated[
        int, typer.Option(min=0, max=100_000, help="Bad rows that may be left out before the job fails.")
    ] = 0,
    run: Annotated[
        str, typer.Option(help="Name of this run: the same source is pulled once in each run. Default: a new run.")
    ] = "",
    follow: Follow = False,
    format_: Annotated[
        Literal["csv", "parquet", "npy", "jsonl"] | None,
        typer.Option("--format", help="Format of the source, if its name does not end in it."),
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Have the workers learn a large source in a job of its own, and print the id of the job."""
    wanted = {
        "url": source, "format": format_, "columns": _columns(column), "target": target, "sample_weight": weight,
        "label_type": label_type, "rows_per_call": batch, "skip_max": skip_max,
    }  # fmt: skip

    def work(client: "Client") -> str:
        found, _ = find_model(client, model_hash, metadata)
        key = hashlib.sha256(f"{run}\n{source}\n{found.hash}".encode()).hexdigest()[:48] if run else uuid.uuid4().hex
        headers = {"Idempotency-Key": f"pull-{key}"}
        body = {name: value for name, value in wanted.items() if value is not None}
        _, made = client.request("POST", f"/v1/models/{found.hash}/pull", body, headers)
        return str(made["job"])

    job = with_client(url, work)
    if follow:
        return _follow(url, job, as_json=as_json)
    if as_json:
        return print_json([with_client(url, lambda client: client.job(job))])
    return typer.echo(job)


def _columns(words: list[str] | None) -> list[str] | dict[str, str] | None:
    """Return what `--column` selects: names, or for each column its name in the source.

    >>> _columns(["make", "year"]), _columns(["make=brand", "year"]), _columns(None)
    (['make', 'year'], {'make': 'brand', 'year': 'year'}, None)
    """
    pairs = [word.partition("=") for word in words or ()]
    if any(not name or (equals and not source) for name, equals, source in pairs):
        raise MalformedError("--column is NAME, or NAME=SOURCE for a column that has another name in the source.")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise MalformedError("--column names a column twice.")
    if any(equals for _, equals, _ in pairs):
        return {name: source or name for name, _, source in pairs}
    return names or None


def jobs(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Id of one job, or its first digits.", show_default=False)
    ] = None,
    model_hash: Hash = None,
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs.")] = 100,
    follow: Follow = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel the job after its current request; what it has learned stays.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List the jobs of `keepfit pull`, newest first; or describe, follow or cancel one."""
    if job is None:
        if follow or cancel:
            raise SettingsError("Name the job to follow or to cancel.")
        found, more = with_client(url, lambda client: _list(client, model_hash, state, limit))
        if as_json:
            print_json(found)
        else:
            print_table(LISTED, map(_row, found), "no jobs")
        if more:
            print_note(f"There are more jobs than these {limit}: use --limit, --hash or --state.")
        return None
    named = job

    def one(client: "Client") -> dict[str, Any]:
        whole = _find(client, named)
        if cancel:
            client.cancel(whole)
        return client.job(whole)

    described = with_client(url, one)
    if follow:
        return _follow(url, described["job"], as_json=as_json)
    return _print_one(described, as_json=as_json)


def _list(client: "Client", digits: str | None, state: str | None, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """Return the newest jobs, and whether there are more."""
    query = {} if digits is None else {"hash": client.find(digits).hash}
    query |= {} if state is None else {"state": state}
    found: list[dict[str, Any]] = []
    after = ""
    while after is not None and len(found) < limit:
        page = urlencode({**query, "limit": min(PAGE, limit - len(found)), "after": after})
        _, answer = client.request("GET", f"/v1/jobs?{page}")
        found += answer["jobs"]
        after = answer["next"]
    return found, after is not None


def _find(client: "Client", digits: str) -> str:
    """Return the id of the only job that begins with `digits`."""
    digits = digits.strip().lower()
    if len(digits) == DIGITS:
        return digits
    listed, _ = _list(client, None, None, 10_000)
    found = [each["job"] for each in listed if each["job"].startswith(digits)]
    if not found:
        raise NotFoundError(f"There is no job whose id begins with {digits}; `keepfit jobs` lists the jobs.")
    if len(found) > 1:
        raise MalformedError(
            f"{digits} begins the ids of {len(found)} jobs; give more digits: {', '.join(found[:10])}."
        )
    return str(found[0])


def _follow(url: str | None, job: str, *, as_json: bool) -> None:
    """Show the progress of a job until it ends, and then the job; exit code 1 if it has failed or was cancelled."""

    def work(client: "Client") -> dict[str, Any]:
        waiting = None
        with progress_bar(f"pulling {job[:8]}") as show:
            while True:
                found = client.job(job)
                rows = found["rows"]
                show(rows["done"], rows["total"] or 0)
                if found["state"] in ENDED:
                    return found
                if found["waiting"] != waiting:
                    waiting = found["waiting"]
                    print_note(f"waiting: {waiting}" if waiting else "no longer waiting")
                time.sleep(POLL_S)

    ended = with_client(
        url, work, lambda: f"interrupted: the job goes on; `keepfit jobs {job[:8]} --follow` follows it"
    )
    _print_one(ended, as_json=as_json)
    if ended["state"] != "done":
        reason = f": {ended['error'].rstrip('.')}" if ended["error"] else ""
        raise SystemExit(print_error(f"the job has {'failed' if reason else 'been cancelled'}{reason}"))


def _row(job: dict[str, Any]) -> tuple[object, ...]:
    rows = job["rows"]
    counts = (rows["done"], rows["total"], rows["skipped"])
    created = format_time(job["created"])
    return short_hash(job["job"]), short_hash(job["hash"]), job["state"], *counts, created, job["url"]


def _print_one(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        return print_json([job])
    rows = job["rows"]
    total = "an unknown number" if rows["total"] is None else rows["total"]
    lines = [
        ("id", job["job"]),
        ("model", job["hash"]),
        ("metadata", metadata_text(job["metadata"])),
        ("source", job["url"]),
        ("state", job["state"]),
        ("rows", f"{rows['done']} of {total} done, {rows['accepted']} accepted, {rows['skipped']} skipped"),
        *((name, format_time(job[name])) for name in ("created", "started", "ended") if job[name] is not None),
        *((name, job[name]) for name in ("waiting", "error") if job[name]),
        *(("skipped", _place(one)) for one in job["skipped"]),
    ]
    return print_table(DESCRIBED, lines, "nothing")


def _place(skipped: dict[str, Any]) -> str:
    return f"row {skipped['row']}: {skipped['detail']}" if "row" in skipped else str(skipped["detail"])

"""Benchmark of the history: a million documents in a MongoDB-wire server, and the duration of each query.

Owns the documents (snapshots of 1,000 models over the last 30 days), the queries, and the alternative queries that were
compared before the ones in use were chosen. Starts the server that keepfit includes, unless `url` names another one.
The figures are for docs/guides/history.md.
"""

import asyncio
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pymongo
import typer
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import PyMongoError
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent
from rich.console import Console
from rich.table import Table

from benchmarks.processes import running
from keepfit.errors import UnavailableError
from keepfit.history import Timeline
from keepfit.history.rollups.answers import Answers
from keepfit.history.rollups.documents import Rollup
from keepfit.history.upkeep import rollups
from keepfit.local.servers import accepts, free_port, mongo_command

COUNT_FULL, COUNT_QUICK = 1_000_000, 20_000
MODELS, DAYS, DAY_S = 1_000, 30, 86_400.0
RECENT_MINUTES = 10
BATCH = 5_000
BRANDS = ("nike", "puma", "asics", "hoka")
ERROR = "metrics.mean_absolute_error"
RUNS, SECONDS_MAX = 15, 15.0
INDEXES: dict[str, list[tuple[str, int]]] = {
    "type": [("type", 1), ("timestamp", -1)],
    "hash": [("hash", 1), ("timestamp", -1)],
    "time": [("timestamp", -1)],
}

Query = Callable[[], Awaitable[Any]]


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """Run the MongoDB-wire server that keepfit includes; yield its URL and process id."""
    with tempfile.TemporaryDirectory(prefix="keepfit-bench-") as folder:
        port = free_port()
        command = mongo_command(port, Path(folder) / "mongo")
        with running(command, Path(folder) / "mongo.log", lambda: accepts(port)) as pid:
            yield f"mongodb://127.0.0.1:{port}/bench", pid


def document(number: int, count: int, now: float) -> dict[str, Any]:
    """Return the document of one snapshot, as the history stores it."""
    model = number % MODELS
    metadata = {"type": "shoes", "brand": BRANDS[model % len(BRANDS)], "number": float(model)}
    return {
        "type": "shoes",
        "timestamp": now - (count - number) * DAYS * DAY_S / max(count, 1),
        "hash": f"{model:064x}",
        "metadata": json.dumps(metadata),
        "labels": [{"k": key, "v": value} for key, value in metadata.items()],
        "generation": 1,
        "version": number // MODELS,
        "sequence": number,
        "rows_seen": number,
        "metrics": {"mean_absolute_error": random.random(), "rows": float(number)},  # noqa: S311
        "sha256": f"{number:064x}",
        "size_bytes": 2048,
        "runtime": {"python": "3.11.7", "sklearn": "1.8.0", "numpy": "2.4.0"},
        "uri": f"file:///snapshots/{model:064x}/1/{number}",
        "status": "committed",
    }


def insert_documents(url: str, count: int, log: Callable[[str], None]) -> None:
    """Insert the documents, then create the indexes."""
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        history = client.get_default_database().get_collection("history", write_concern=pymongo.WriteConcern(w=1))
        started, now = time.monotonic(), time.time()
        for first in range(0, count, BATCH):
            batch = range(first, min(first + BATCH, count))
            history.insert_many([document(number, count, now) for number in batch], ordered=False)
        log(f"{count:,} documents inserted in {time.monotonic() - started:.0f} s")
        for keys in INDEXES.values():
            started = time.monotonic()
            history.create_index(keys)
            log(f"index {keys} created in {time.monotonic() - started:.0f} s")


def insert_recent(url: str, now: float) -> None:
    """Insert the snapshots of the last minutes, which a running keepfit would have written since the others."""
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        per_minute = int(COUNT_FULL / (DAYS * 24 * 60))
        documents = [document(number, 0, now) for number in range(RECENT_MINUTES * per_minute)]
        for number, recent in enumerate(documents):
            recent["timestamp"] = now - number * 60.0 / per_minute
        client.get_default_database().history.insert_many(documents)


def queries(timeline: Timeline, now: float) -> dict[str, Query]:
    """Return the queries that users make, by name."""
    shoes, model = {"type": "shoes"}, {"hash": f"{7:064x}"}
    day = (now - 3 * DAY_S, now - 2 * DAY_S)
    return {
        "last, by type": lambda: timeline.query_last(shoes),
        "last, by model": lambda: timeline.query_last(model),
        "last, by type and brand": lambda: timeline.query_last({**shoes, "brand": "hoka"}),
        "last of each model, of an hour": lambda: timeline.query_last_per("number", shoes, now - 3600.0, now),
        "last of each model, of a day": lambda: timeline.query_last_per("number", shoes, *day),
        "the newest 100": lambda: timeline.query(shoes, limit=100),
        "the documents of ten minutes": lambda: timeline.query(shoes, day[0], day[0] + 600.0),
        "closest to a time": lambda: timeline.closest(shoes, now - 10 * DAY_S),
        "the ten largest of a day": lambda: timeline.query_top(ERROR, 10, shoes, *day),
        "a day, every=5m, mean, one model": lambda: timeline.points(ERROR, "5m", "mean", model, *day),
        "an hour, every=5m, mean": lambda: timeline.points(ERROR, "5m", "mean", shoes, now - 3600.0, now),
        "a day, every=5m, mean": lambda: timeline.points(ERROR, "5m", "mean", shoes, *day),
        "a day, every=5m, mean, without roll-ups": lambda: without_rollups(
            timeline, lambda: timeline.points(ERROR, "5m", "mean", shoes, *day)
        ),
        "30 days, every=1h, max": lambda: timeline.points(ERROR, "1h", "max", shoes, now - DAYS * DAY_S, now),
        "a day, every=5m, p99": lambda: timeline.points(ERROR, "5m", "p99", shoes, *day),
        "a day, every=5m, mean, by brand": lambda: timeline.points(ERROR, "5m", "mean", shoes, *day, group="brand"),
        "a day, every=5m, p99, of shoes/5m": lambda: timeline.points(ERROR, "5m", "p99", {"type": "shoes/5m"}, *day),
    }


async def without_rollups(timeline: Timeline, query: Query) -> Any:
    """Run a query as if there were no roll-ups."""
    answers = timeline.answers
    timeline.answers = _NoRollups(answers.database, answers.stored, answers.progress, answers.thinned)
    try:
        return await query()
    finally:
        timeline.answers = answers


class _NoRollups(Answers):
    async def instead(self, *_: Any) -> None:
        """Answer nothing."""


def alternatives(url: str, now: float) -> dict[str, Callable[[], Any]]:
    """Return alternative queries with the same result that use the driver only, by name."""
    history = pymongo.MongoClient[dict[str, Any]](url).get_default_database().history
    day = {"type": "shoes", "timestamp": {"$gte": now - 3 * DAY_S, "$lt": now - 2 * DAY_S}}
    newest: list[tuple[str, int]] = [("timestamp", -1)]
    bucket = {"$subtract": ["$timestamp", {"$mod": ["$timestamp", 300]}]}
    grouped: list[dict[str, Any]] = [{"$match": day}, {"$group": {"_id": bucket, "value": {"$avg": f"${ERROR}"}}}]
    columns = {"t": {"$push": "$timestamp"}, "v": {"$push": f"${ERROR}"}}
    return {
        "the day's columns, one document, without grouping them": lambda: list(
            history.aggregate([{"$match": day}, {"$group": {"_id": None, **columns}}])
        ),
        "a day, every=5m, mean, grouped by the server": lambda: list(history.aggregate(grouped)),
        "a day's times and values, a document each": lambda: list(
            history.find(day, {"_id": 0, "timestamp": 1, ERROR: 1})
        ),
        "the day's documents counted, by the server": lambda: list(
            history.aggregate([{"$match": day}, {"$count": "n"}])
        ),
        "last, by type, without windows": lambda: list(history.find({"type": "shoes"}).sort(newest).limit(1)),
    }


def roll_up(url: str, log: Callable[[str], None]) -> None:
    """Bring the roll-up up to date, as the snapshotter does."""

    async def run() -> int:
        async with Timeline.open(url) as timeline:
            await timeline.ensure_indexes()
            return await rollups.roll_up(timeline, Rollup("shoes", "5m", ERROR))

    started = time.monotonic()
    written = asyncio.run(run())
    log(f"{written:,} roll-up documents written in {time.monotonic() - started:.0f} s")


def time_query(query: Callable[[], Any], pid: int | None) -> dict[str, float]:
    """Run a query once to warm up, then up to 15 times within 15 s; return milliseconds of wall and CPU time."""
    durations_ms: list[float] = []
    began, cpu_s = time.monotonic(), (0.0, 0.0)
    while len(durations_ms) <= RUNS and (len(durations_ms) < 2 or time.monotonic() - began < SECONDS_MAX):
        if len(durations_ms) == 1:
            cpu_s = (_cpu_s(pid), time.process_time())
        started = time.perf_counter()
        query()
        durations_ms.append((time.perf_counter() - started) * 1000)
    runs = len(durations_ms) - 1
    return {
        "median": statistics.median(durations_ms[1:]),
        "longest": max(durations_ms[1:]),
        "server CPU": (_cpu_s(pid) - cpu_s[0]) / runs * 1000,
        "client CPU": (time.process_time() - cpu_s[1]) / runs * 1000,
        "runs": float(runs),
    }


class _Calls(CommandListener):
    """Notes the collections and pipelines of the calls that a query makes."""

    def __init__(self) -> None:
        self.pipelines: list[tuple[str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        """Note a call."""
        if event.command_name == "aggregate":
            self.pipelines.append((event.command["aggregate"], event.command["pipeline"]))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Do nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Do nothing."""


def plan(url: str, calls: _Calls) -> str:
    """Return how the server answers the calls that were noted: their number by collection and index."""
    found: Counter[str] = Counter()
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        for collection, pipeline in calls.pipelines:
            command = {"aggregate": collection, "pipeline": pipeline, "cursor": {}}
            text = str(client.get_default_database().command("explain", command, verbosity="queryPlanner"))
            index = re.search("'indexName': '([^']+)'", text)
            found[f"{collection} {index[1] if index else 'COLLSCAN'}"] += 1
    return ", ".join(f"{count} x {name}" for name, count in found.items())


def _cpu_s(pid: int | None) -> float:
    """Return the CPU seconds of a process so far, in steps of 10 ms; 0 without a process."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(url: str, count: int, log: Callable[[str], None], pid: int | None) -> Table:
    """Insert `count` documents (0 if they exist already) and measure every query."""
    if count:
        insert_documents(url, count, log)
    now = time.time()
    insert_recent(url, now)
    roll_up(url, log)
    names = ("median", "longest", "server CPU", "client CPU", "runs")
    table = Table("query, milliseconds", *names, "plan", title="History")

    def add_row(name: str, query: Callable[[], Any], calls: _Calls | None = None) -> None:
        try:
            if calls is not None:
                query()
                calls.pipelines.clear()
                query()
            shown = "" if calls is None else plan(url, calls)
            figures = time_query(query, pid)
        except (UnavailableError, PyMongoError) as error:
            table.add_row(name, type(error).__name__)
            return log(f"{name}: {error}"[:200])
        table.add_row(name, *(f"{figures[column]:.0f}" for column in names), shown)
        return log(f"{name}: " + ", ".join(f"{column} {figures[column]:.0f}" for column in names) + f"; {shown}")

    loop, calls = asyncio.new_event_loop(), _Calls()
    client: Any = AsyncIOMotorClient(url, event_listeners=[calls], tz_aware=True, io_loop=loop)
    for name, query in queries(Timeline(client.get_default_database()), now).items():
        add_row(name, lambda query=query: loop.run_until_complete(query()), calls)  # type: ignore[misc]
    client.close()
    loop.close()
    for name, alternative in alternatives(url, now).items():
        add_row(f"({name})", alternative)
    return table


def main(
    url: Annotated[
        str, typer.Option(help="URL of an unused database on another server: documents are inserted into it.")
    ] = "",
    documents: Annotated[
        int, typer.Option(help="Number of documents to insert; 0 if they exist already.")
    ] = COUNT_FULL,
    pid: Annotated[int, typer.Option(help="Process id of that server, to measure its CPU time.")] = 0,
) -> None:
    """Measure the history queries."""
    console = Console(stderr=True)
    if url:
        Console().print(measure(url, documents, console.print, pid or None))
        return
    with server() as (server_url, server_pid):
        Console().print(measure(server_url, documents, console.print, server_pid))


if __name__ == "__main__":
    typer.run(main)

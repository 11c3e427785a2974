"""The history under measurement: a million documents in a MongoDB-wire server, and how long each question takes.

Owns the documents (snapshots of 1,000 models over 30 days, up to now), the questions, and the other ways of asking that
the ones in use were chosen from. Starts the server that comes with keepfit, unless `url` names another. The figures are
for docs/guides/history.md.
"""

import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pymongo
import typer
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.table import Table

from benchmarks.processes import running
from keepfit.errors import UnavailableError
from keepfit.history import Timeline
from keepfit.local.servers import accepts, free_port, mongo_command

COUNT_FULL, COUNT_QUICK = 1_000_000, 20_000
MODELS, DAYS, DAY_S = 1_000, 30, 86_400.0
FRESH_MINUTES = 10
BATCH = 5_000
BRANDS = ("nike", "puma", "asics", "hoka")
ERROR = "metrics.mean_absolute_error"
RUNS, SECONDS_MAX = 15, 15.0
INDEXES: dict[str, list[tuple[str, int]]] = {
    "type": [("type", 1), ("timestamp", -1)],
    "hash": [("hash", 1), ("timestamp", -1)],
    "time": [("timestamp", -1)],
}

Ask = Callable[[], Awaitable[Any]]


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """Run the MongoDB-wire server that comes with keepfit; yields its URL and process id."""
    with tempfile.TemporaryDirectory(prefix="keepfit-bench-") as folder:
        port = free_port()
        command = mongo_command(port, Path(folder) / "mongo")
        with running(command, Path(folder) / "mongo.log", lambda: accepts(port)) as pid:
            yield f"mongodb://127.0.0.1:{port}/bench", pid


def document(number: int, count: int, now: float) -> dict[str, Any]:
    """One snapshot's document, as it lies in the history."""
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


def seed(url: str, count: int, tell: Callable[[str], None]) -> None:
    """Write the documents, then their indexes."""
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        history = client.get_default_database().get_collection("history", write_concern=pymongo.WriteConcern(w=1))
        started, now = time.monotonic(), time.time()
        for first in range(0, count, BATCH):
            batch = range(first, min(first + BATCH, count))
            history.insert_many([document(number, count, now) for number in batch], ordered=False)
        tell(f"{count:,} documents written in {time.monotonic() - started:.0f} s")
        for keys in INDEXES.values():
            started = time.monotonic()
            history.create_index(keys)
            tell(f"index {keys} made in {time.monotonic() - started:.0f} s")


def freshen(url: str, now: float) -> None:
    """Write what has come since the others were written: the snapshots of the last minutes, as where keepfit runs."""
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        per_minute = int(COUNT_FULL / (DAYS * 24 * 60))
        fresh = [document(number, 0, now) for number in range(FRESH_MINUTES * per_minute)]
        for number, made in enumerate(fresh):
            made["timestamp"] = now - number * 60.0 / per_minute
        client.get_default_database().history.insert_many(fresh)


def questions(timeline: Timeline, now: float) -> dict[str, Ask]:
    """What is asked, as users ask it."""
    shoes, model = {"type": "shoes"}, {"hash": f"{7:064x}"}
    day = (now - 3 * DAY_S, now - 2 * DAY_S)
    return {
        "last, by type": lambda: timeline.query_last(shoes),
        "last, by model": lambda: timeline.query_last(model),
        "last, by type and brand": lambda: timeline.query_last({**shoes, "brand": "hoka"}),
        "the newest 100": lambda: timeline.query(shoes, limit=100),
        "closest to a time": lambda: timeline.closest(shoes, now - 10 * DAY_S),
        "a day, every=5m, mean, one model": lambda: timeline.points(ERROR, "5m", "mean", model, *day),
        "an hour, every=5m, mean": lambda: timeline.points(ERROR, "5m", "mean", shoes, now - 3600.0, now),
        "a day, every=5m, mean": lambda: timeline.points(ERROR, "5m", "mean", shoes, *day),
        "a day, every=5m, p99": lambda: timeline.points(ERROR, "5m", "p99", shoes, *day),
        "a day, every=5m, mean, by brand": lambda: timeline.points(ERROR, "5m", "mean", shoes, *day, group="brand"),
        "a day, every=5m, of the roll-up": lambda: timeline.points("mean", "5m", "mean", {"type": "shoes/5m"}, *day),
    }


def others(url: str, now: float) -> dict[str, Callable[[], Any]]:
    """Other ways of asking the same, by the driver alone."""
    history = pymongo.MongoClient[dict[str, Any]](url).get_default_database().history
    first = {"type": "shoes", "timestamp": {"$gte": now - 3 * DAY_S, "$lt": now - 2 * DAY_S}}
    newest: list[tuple[str, int]] = [("timestamp", -1)]
    bucket = {"$subtract": ["$timestamp", {"$mod": ["$timestamp", 300]}]}
    grouped: list[dict[str, Any]] = [{"$match": first}, {"$group": {"_id": bucket, "value": {"$avg": f"${ERROR}"}}}]
    columns = {"t": {"$push": "$timestamp"}, "v": {"$push": f"${ERROR}"}}
    return {
        "the day's columns, one document, without grouping them": lambda: list(
            history.aggregate([{"$match": first}, {"$group": {"_id": None, **columns}}])
        ),
        "a day, every=5m, mean, grouped by the server": lambda: list(history.aggregate(grouped)),
        "a day's times and values, a document each": lambda: list(
            history.find(first, {"_id": 0, "timestamp": 1, ERROR: 1})
        ),
        "the day's documents counted, by the server": lambda: list(
            history.aggregate([{"$match": first}, {"$count": "n"}])
        ),
        "last, by type, without windows": lambda: list(history.find({"type": "shoes"}).sort(newest).limit(1)),
    }


def roll_up(url: str, now: float) -> None:
    """Write the roll-up's documents of all days, as the upkeep makes them."""
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        timeline = client.get_default_database().timeline
        timeline.create_index(INDEXES["type"])
        timeline.create_index(INDEXES["time"])
        if not timeline.estimated_document_count():
            begin = (now - DAYS * DAY_S) // 300 * 300
            spans = (begin + 300.0 * number for number in range(int(DAYS * DAY_S / 300)))
            timeline.insert_many(
                {
                    "type": "shoes/5m",
                    "timestamp": span,
                    "labels": [],
                    "document": {"of": ERROR, "mean": 0.5, "count": 120.0},
                }
                for span in spans
            )


def repeat(ask: Callable[[], Any], pid: int | None) -> dict[str, float]:
    """Ask as often as fits into the time there is, once to warm up; milliseconds of the clock and of the CPU."""
    taken: list[float] = []
    began, cpu_s = time.monotonic(), (0.0, 0.0)
    while len(taken) <= RUNS and (len(taken) < 2 or time.monotonic() - began < SECONDS_MAX):
        if len(taken) == 1:
            cpu_s = (_cpu_s(pid), time.process_time())
        started = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - started) * 1000)
    runs = len(taken) - 1
    return {
        "median": statistics.median(taken[1:]),
        "longest": max(taken[1:]),
        "server CPU": (_cpu_s(pid) - cpu_s[0]) / runs * 1000,
        "client CPU": (time.process_time() - cpu_s[1]) / runs * 1000,
        "runs": float(runs),
    }


def _cpu_s(pid: int | None) -> float:
    """Seconds of CPU time of a process so far, in steps of 10 ms; 0 where none is named."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(url: str, count: int, tell: Callable[[str], None], pid: int | None) -> Table:
    """Write `count` documents (none where they are there already) and measure every question."""
    if count:
        seed(url, count, tell)
    now = time.time()
    freshen(url, now)
    roll_up(url, now)
    names = ("median", "longest", "server CPU", "client CPU", "runs")
    table = Table("question, milliseconds", *names, title="History")

    def row(name: str, ask: Callable[[], Any]) -> None:
        try:
            taken = repeat(ask, pid)
        except (UnavailableError, PyMongoError) as error:
            table.add_row(name, type(error).__name__)
            return tell(f"{name}: {error}"[:200])
        table.add_row(name, *(f"{taken[column]:.0f}" for column in names))
        return tell(f"{name}: " + ", ".join(f"{column} {taken[column]:.0f}" for column in names))

    loop = asyncio.new_event_loop()
    timeline = Timeline.open(url)
    for name, question in questions(timeline, now).items():
        row(name, lambda question=question: loop.run_until_complete(question()))  # type: ignore[misc]
    timeline.close()
    loop.close()
    for name, other in others(url, now).items():
        row(f"({name})", other)
    return table


def main(
    url: Annotated[
        str, typer.Option(help="URL of a database of another server, for nothing else: documents are written into it.")
    ] = "",
    documents: Annotated[int, typer.Option(help="How many to write; 0: they are there.")] = COUNT_FULL,
    pid: Annotated[int, typer.Option(help="Its process id, where its CPU time is wanted.")] = 0,
) -> None:
    """Measure the history."""
    console = Console(stderr=True)
    if url:
        Console().print(measure(url, documents, console.print, pid or None))
        return
    with server() as (own, own_pid):
        Console().print(measure(own, documents, console.print, own_pid))


if __name__ == "__main__":
    typer.run(main)

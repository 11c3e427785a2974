"""Every query of the history walks an index: what the server says of each command that it gets."""

import time
from collections.abc import Iterator
from typing import Any

import pymongo
import pytest
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.monitoring import CommandListener, CommandStartedEvent

from keepfit.history import Document, Timeline
from keepfit.history.rollups.documents import Rollup
from keepfit.history.upkeep import rollups, timeline_upkeep
from keepfit.history.upkeep.timeline_upkeep import Upkeep

NOW = time.time()
# Collections of a few documents, which are read whole or by their identifier.
SMALL = {"rollups", "rollup_expiries", "thinned"}


class _Listener(CommandListener):
    """Notes collection and condition, or pipeline, of each command."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, str, Any]] = []

    def started(self, event: CommandStartedEvent) -> None:
        command = event.command
        if event.command_name == "find":
            self.reads.append((command["find"], "find", dict(command["filter"])))
        elif event.command_name == "aggregate":
            self.reads.append((command["aggregate"], "aggregate", command["pipeline"]))
        for name, entries in (("update", "updates"), ("delete", "deletes")):
            if event.command_name == name:
                self.reads += [(command[name], name, dict(each["q"])) for each in command[entries]]

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


@pytest.fixture
def seen() -> _Listener:
    """Return what notes the commands of the timeline."""
    return _Listener()


@pytest.fixture
def timeline(mongo_url: str, seen: _Listener) -> Iterator[Timeline]:
    """Return a timeline whose commands are noted."""
    client: Any = AsyncIOMotorClient(mongo_url, event_listeners=[seen], tz_aware=True)
    yield Timeline(client.get_default_database())
    client.close()


def plan_of(database: Any, collection: str, kind: str, condition: Any) -> set[str]:
    """Return the stages of the server's plan."""
    if kind == "aggregate":
        command: Document = {"aggregate": collection, "pipeline": condition, "cursor": {}}
    else:
        command = {"find": collection, "filter": condition}
    return set(stages(database.command("explain", command, verbosity="queryPlanner")))


def stages(plan: Any) -> Iterator[str]:
    """Yield the names of stages anywhere in an answer, but not of plans that were rejected."""
    if isinstance(plan, dict):
        if isinstance(plan.get("stage"), str):
            yield plan["stage"]
        for name, value in plan.items():
            if name != "rejectedPlans":
                yield from stages(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from stages(value)


async def test_every_query_uses_an_index(timeline: Timeline, seen: _Listener, mongo_url: str) -> None:
    """Documents, points, groups, choices, roll-ups, upkeep and deletion: no command scans a collection."""
    made = [
        {"type": "vote", "timestamp": NOW - 60 * number, "brand": ("nike", "puma")[number % 2], "size": float(number)}
        for number in range(50)
    ]
    await timeline.bulk_upsert(made, ["timestamp", "brand"])
    chosen = Rollup("vote", "5m", "size", "brand")
    vote: dict[str, Any] = {"type": "vote"}
    for where in (vote, {"hash": "0" * 64}, {}, {**vote, "brand": "nike"}):
        await timeline.query(where, limit=3)
        await timeline.query_last(where)
        await timeline.closest(where, NOW - 600)
        await timeline.points("size", "5m", "p90", where, NOW - 3600, NOW, group="brand")
    await timeline.query_last_per("brand", vote)
    await timeline.query_top("size", 3, vote)
    await rollups.roll_up(timeline, chosen)
    await timeline_upkeep.run(timeline, Upkeep((chosen,), (("vote", 1800.0),)))
    await timeline.points("size", "1h", "mean", vote, NOW - 3600, NOW)
    await timeline.points("size", "1h", "p99", {"type": "vote/5m"}, NOW - 3600, NOW)
    await timeline.delete(vote)
    await timeline.delete_many({**vote, "brand": "puma"}, NOW - 600)
    with pymongo.MongoClient[Document](mongo_url) as client:
        database = client.get_default_database()
        kinds = set()
        for collection, kind, condition in seen.reads:
            kinds.add((collection, kind))
            # A condition with an identifier is looked up by it, whatever else it has.
            if collection not in SMALL and not (isinstance(condition, dict) and "_id" in condition):
                plan = plan_of(database, collection, kind, condition)
                assert "COLLSCAN" not in plan, (collection, kind, condition)
                assert plan & {"IXSCAN", "IDHACK", "EXPRESS_IXSCAN"}, (collection, kind, condition, plan)
    assert {
        ("timeline", "aggregate"), ("history", "aggregate"), ("timeline", "update"), ("timeline", "delete"),
        ("rollup_changes", "find"), ("rollup_changes", "update"), ("rollups", "find"),
    } <= kinds  # fmt: skip

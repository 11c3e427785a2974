"""Write, read, roll up and expire documents of the history while MongoDB's server is killed; none is lost or doubled.

Run it alone: ``python -m tests.recovery.history --seconds 1800 --kills 10``. It prints what was written, read, rolled
up and deleted, how often the server was killed, and each difference between what is stored at the end and what was
sent.
"""

import argparse
import asyncio
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import aiohttp

from keepfit.errors import UnavailableError
from keepfit.history import Timeline
from keepfit.history.upkeep import timeline_upkeep
from keepfit.history.upkeep.timeline_upkeep import Upkeep
from keepfit.local.servers import accepts, free_port, mongo_command
from keepfit.settings import Settings
from keepfit_gateway import app
from tests import servers

BATCH = 40
# A repeat of a request whose documents have expired meanwhile would store them again: they live much longer than that.
KEEP_S, EVERY_S = 180, 10
ROLLUPS = f"fast {EVERY_S}s value, late 1m value sensor"
DEVICES = 20
SECONDS_BETWEEN_WRITES = 0.4


@dataclass
class Sent:
    """What was acknowledged, by type: each document once, in the form in which queries return it."""

    documents: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, type_: str, key: str, document: dict[str, Any]) -> None:
        """Note a document that is to be stored."""
        self.documents.setdefault(type_, {})[key] = document


class Run:
    """Writers, readers and upkeep of one gateway."""

    def __init__(self, url: str, settings: Settings, http: aiohttp.ClientSession, seed: int) -> None:
        self.url, self.settings, self.http = url, settings, http
        self.random = random.Random(seed)
        self.sent = Sent()
        self.faults: list[str] = []
        self.stopping = False
        self.started_s = time.time()

    async def send(self, method: str, path: str, data: bytes, headers: Mapping[str, str]) -> Any:
        """Send a request until it is answered, as a client does that gets no answer."""
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self.http.request(method, path, data=data, headers=headers) as response:
                    body = await response.read()
                    if response.status < 300:
                        self.sent.counts[f"{method} {path.partition('?')[0]}"] += 1
                        return json.loads(body) if body else None
                    if response.status < 500:
                        self.faults.append(f"{method} {path} answers {response.status}: {body[:300]!r}")
                        return None
                    self.sent.counts["requests answered 503 or without answer"] += 1
            await asyncio.sleep(0.3)

    def number(self) -> float:
        """Return a value that a float sums without a rounding error."""
        return self.random.randrange(1_000) / 4

    async def lists(self) -> None:
        """Write lists of documents of any time in the last two hours: their times come in random order."""
        made = []
        for _ in range(BATCH):
            at = self.started_s - self.random.randrange(7_200)
            one = {"type": "late", "timestamp": at, "id": uuid.uuid4().hex, "sensor": f"s{self.random.randrange(3)}"}
            made.append({**one, "value": self.number()})
            self.sent.note("late", made[-1]["id"], made[-1])
        await self.send("POST", "/v1/history", json.dumps(made).encode(), {"Content-Type": "application/json"})

    async def streams(self) -> None:
        """Write streams of documents that soon expire."""
        made = []
        for _ in range(BATCH):
            at = round(time.time() - self.random.random() * 30, 3)
            made.append({"type": "fast", "timestamp": at, "id": uuid.uuid4().hex, "value": self.number()})
            self.sent.note("fast", made[-1]["id"], made[-1])
        body = "\n".join(map(json.dumps, made)).encode()
        await self.send("POST", "/v1/history", body, {"Content-Type": "application/x-ndjson"})

    async def points(self) -> None:
        """Write points, the fields of each in two lines of two requests."""
        at = time.time_ns()
        ids = [uuid.uuid4().hex for _ in range(BATCH)]
        for name in ("a", "b"):
            text = "\n".join(f"point,id={one} {name}={n}i {at + n}" for n, one in enumerate(ids))
            await self.send("POST", "/api/v2/write?org=o&bucket=b", text.encode(), {"Content-Type": "text/plain"})
        for n, one in enumerate(ids):
            self.sent.note("point", one, {"type": "point", "timestamp": (at + n) / 10**9, "id": one, "a": n, "b": n})

    async def states(self) -> None:
        """Replace the state of devices, each by one writer after the other."""
        for device in range(DEVICES):
            one = {"type": "state", "timestamp": time.time(), "id": f"d{device}", "value": self.number()}
            path, headers = "/v1/history?keys=id", {"Content-Type": "application/json"}
            await self.send("POST", path, json.dumps(one).encode(), headers)
            self.sent.note("state", one["id"], one)

    async def events(self) -> None:
        """Write documents without a time, under an Idempotency-Key; the first of two of them is deleted again."""
        key = uuid.uuid4().hex
        made = [{"type": "event", "id": key, "n": n} for n in range(3)]
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        await self.send("POST", "/v1/history", json.dumps(made).encode(), headers)
        if self.random.random() < 0.5:
            await self.send("DELETE", f"/v1/history?type=event&id={key}", b"", {})
            return
        for one in made:
            self.sent.note("event", f"{key} {one['n']}", one)

    async def reads(self) -> None:
        """Query newest documents and points; no document may occur twice or be one that was not sent."""
        queries = (
            "type=late&limit=200",
            "type=fast&last=50",
            "type=late&every=1h&field=value&group=sensor",
            "type=point&last",
        )
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self.http.get(f"/v1/history?{self.random.choice(queries)}") as response:
                answer = await response.json()
                if response.status != 200:
                    self.sent.counts["queries answered 503"] += 1
                    return
                self.sent.counts["queries answered"] += 1
                ids = [one["id"] for one in answer.get("documents", ())]
                known = set().union(*self.sent.documents.values()) if self.sent.documents else set()
                if len(set(ids)) != len(ids):
                    self.faults.append(f"a query returns a document twice: {response.url}")
                if "point" not in str(response.url) and (unknown := set(ids) - known):
                    self.faults.append(f"a query returns documents that were not sent: {unknown}")

    async def upkeep(self, timeline: Timeline, upkeep: Upkeep) -> None:
        """Roll up and expire, as the snapshotter does after each pass."""
        try:
            written, deleted = await timeline_upkeep.run(timeline, upkeep)
            self.sent.counts["roll-up documents written"] += written
            self.sent.counts["documents expired"] += deleted
        except UnavailableError:
            self.sent.counts["upkeep that failed"] += 1

    async def repeat(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        """Do something again and again until the run stops."""
        while not self.stopping:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - a fault of the run
                self.faults.append(f"{work}: {error!r}")
            await asyncio.sleep(pause_s)

    async def check(self, timeline: Timeline) -> None:
        """Compare what is stored with what was sent."""
        now = time.time()
        for type_, sent in self.sent.documents.items():
            found = await timeline.query({"type": type_}, kind="document")
            by_id = Counter(key_of(one) for one in found)
            self.faults += [f"{type_}: {key} is stored {count} times" for key, count in by_id.items() if count > 1]
            if type_ != "fast":
                self.faults += [f"{type_}: {key} is lost" for key in sent.keys() - by_id.keys()][:10]
            self.faults += [f"{type_}: {key} was not sent, or was deleted" for key in by_id.keys() - sent.keys()][:10]
            for one in found:
                expected = sent.get(key_of(one), {})
                if expected and {**expected, "timestamp": one["timestamp"]} != one:
                    self.faults.append(f"{type_}: {one} differs from {expected}")
                if "timestamp" in expected and not math.isclose(expected["timestamp"], one["timestamp"], abs_tol=1e-6):
                    self.faults.append(f"{type_}: {one} has another time than {expected}")
            self.sent.counts[f"documents of {type_} sent"] = len(sent)
            self.sent.counts[f"documents of {type_} stored"] = len(found)
        await self.check_rollup(timeline, "fast", f"{EVERY_S}s", EVERY_S, now)
        await self.check_rollup(timeline, "late", "1m", 60, now, "sensor")

    async def check_rollup(
        self, timeline: Timeline, type_: str, every: str, seconds: int, now: float, group: str | None = None
    ) -> None:
        """Compare a roll-up, also of documents that have expired, with all documents that were sent."""
        expected: dict[tuple[float, Any], tuple[int, float]] = {}
        for one in self.sent.documents[type_].values():
            at = one["timestamp"] // seconds * seconds
            if at + seconds <= now - 30:
                place = at, one.get(group) if group else None
                count, total = expected.get(place, (0, 0.0))
                expected[place] = count + 1, total + one["value"]
        found = {
            (one["timestamp"], one.get(group) if group else None): (one["count"], one["sum"])
            for one in await timeline.query({"type": f"{type_}/{every}"}, kind="document")
        }
        wrong = [place for place, sums in expected.items() if found.get(place) != sums]
        self.faults += [
            f"{type_}/{every} at {place}: {found.get(place)}, not {expected[place]}" for place in wrong[:10]
        ]
        self.sent.counts[f"intervals of {type_}/{every} checked"] = len(expected)


def key_of(document: Mapping[str, Any]) -> str:
    """Return what names a document of this run."""
    return f"{document['id']} {document['n']}" if document["type"] == "event" else str(document["id"])


class Server:
    """MongoDB's server, which is killed and started again on the same folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.kills = folder, port, 0
        self.process: Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.folder.with_suffix(".log").open("ab") as log:
            command = mongo_command(self.port, self.folder)
            self.process = Popen(command, stdout=log, stderr=log, preexec_fn=servers.end_with_parent)  # noqa: PLW1509, ASYNC220
        await asyncio.to_thread(servers.wait_until, lambda: accepts(self.port), "start of MongoDB")

    async def kill_often(self, kills: int, seconds: float, chance: random.Random) -> None:
        """Kill it so many times in these seconds, each time for a few seconds."""
        for _ in range(kills):
            await asyncio.sleep(seconds / kills * (0.7 + 0.4 * chance.random()))
            assert self.process is not None
            self.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(self.process.wait)
            self.kills += 1
            await asyncio.sleep(chance.random() * 4)
            await self.start()

    def stop(self) -> None:
        """Stop it by its process id."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


@asynccontextmanager
async def running(seed: int) -> AsyncIterator[tuple[Run, Server, Timeline]]:
    """Run the servers and a gateway."""
    folder = Path(tempfile.mkdtemp(prefix="keepfit-history-"))
    server = Server(folder / "mongo", free_port())
    try:
        with servers.valkey(folder / "valkey") as redis_url:
            await server.start()
            settings = Settings(
                store_url=redis_url, mongo_url=f"mongodb://127.0.0.1:{server.port}/keepfit", port=0,
                snapshot_url=(folder / "snapshots").as_uri(), history_rollups=ROLLUPS, history_keep=f"fast {KEEP_S}s",
            )  # fmt: skip
            timeout = aiohttp.ClientTimeout(total=60)
            async with (
                app.serving(settings) as url,
                aiohttp.ClientSession(url, timeout=timeout) as http,
                Timeline.open(settings.mongo_url.get_secret_value()) as timeline,
            ):
                yield Run(url, settings, http, seed), server, timeline
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def prove(seconds: float, kills: int, seed: int) -> int:
    """Run for so many seconds and print what it has shown; return the number of faults."""
    async with running(seed) as (run, server, timeline):
        upkeep = Upkeep.of(run.settings)
        works = (run.lists, run.streams, run.points, run.states, run.events)
        tasks = [asyncio.create_task(run.repeat(work, SECONDS_BETWEEN_WRITES)) for work in works]
        tasks += [asyncio.create_task(run.repeat(run.reads, 0.5)) for _ in range(2)]
        tasks.append(asyncio.create_task(run.repeat(lambda: run.upkeep(timeline, upkeep), 5)))
        began = time.monotonic()
        await server.kill_often(kills, seconds * 0.9, random.Random(seed))
        await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))
        run.stopping = True
        await asyncio.gather(*tasks)
        print(f"{time.monotonic() - began:.0f} s with {server.kills} kills; rolling up the rest", flush=True)  # noqa: T201
        for _ in range(3):
            await asyncio.sleep(12)
            await run.upkeep(timeline, upkeep)
        await run.check(timeline)
    for name, count in sorted(run.sent.counts.items()):
        print(f"{count:>9,}  {name}")  # noqa: T201
    print(f"faults: {len(run.faults)}", *run.faults[:30], sep="\n")  # noqa: T201
    return len(run.faults)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1_800)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    sys.exit(1 if asyncio.run(prove(arguments.seconds, arguments.kills, arguments.seed)) else 0)


if __name__ == "__main__":
    main()

"""A Valkey for the script tests, with its clients and functions that read its whole content.

Owns the clients. The server stores nothing on disk.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import redis
import redis.asyncio

from keepfit.backends import redis_clients, redis_keys
from keepfit.backends.redis_scripts import LOAD_ALL, Command, ScriptConnection
from keepfit.backends.redis_scripts import run as trip
from keepfit.local.servers import accepts, free_port, redis_command
from keepfit.settings import Settings
from tests.servers import running

HOUR_MS = 3_600_000

T = TypeVar("T")


class Bench:
    """Clients of one server: sync (workers), async (gateways), and a subscription to published messages."""

    def __init__(self, url: str) -> None:
        self.settings = Settings(store_url=url)
        self.client = redis_clients.store_sync(self.settings)
        self._runner = asyncio.Runner()
        self.store = redis_clients.store_async(self.settings)
        self.recorder = Recorder(self)
        self.after_next_trip: Callable[[], None] | None = None
        self.examples = self.steps = 0
        self._subscriber = redis.Redis.from_url(url, protocol=2)
        self._subscription: Any = self._subscriber.connection_pool.get_connection()
        for channel in (redis_keys.COMMITS, redis_keys.SCORERS):
            self._subscription.send_command("SUBSCRIBE", channel)
            self._subscription.read_response()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run one coroutine to its end; it makes its trips with :meth:`run_async` and never waits."""
        try:
            coroutine.send(None)
        except StopIteration as done:
            value: T = done.value
            return value
        raise AssertionError("the coroutine waits for something other than a trip")

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run one coroutine to its end, waits included."""
        return self._runner.run(coroutine)

    async def run_async(self, _client: object, *commands: Command) -> list[Any]:
        """Make gateways' trips with the sync client, in half the time; then call the callback."""
        answers, callback = trip(self.client, *commands), self.after_next_trip
        self.after_next_trip = None
        if callback is not None:
            callback()
        return answers

    def empty(self) -> None:
        """Start a new example with an empty server."""
        self.examples += 1
        self.client.flushall()
        self.published()

    def published(self) -> list[str]:
        """Return the messages published since the last call. They are complete: the reply to PING follows them."""
        self._subscription.send_command("PING")
        messages = []
        while (message := self._subscription.read_response())[0] != b"pong":
            _, channel, text = (each.decode() for each in message)
            messages.append(text if channel == redis_keys.COMMITS else f"{channel} {text}")
        return messages

    def keys(self) -> dict[str, tuple[Any, int]]:
        """Return all keys: value, and hours to live (0: no expiry)."""
        names: list[Any] = self.client.keys("kf:*")
        commands = [command for name in names for command in (_reading(name.decode()), ("PTTL", name))]
        answers = trip(self.client, *commands)
        return {
            name.decode(): (_plain(value), math.ceil(max(ttl, 0) / HOUR_MS))
            for name, value, ttl in zip(names, answers[::2], answers[1::2], strict=True)
        }

    def dump(self) -> list[tuple[bytes, bytes, int]]:
        """Return all keys in the form of DUMP: name, value, milliseconds to live (0: no expiry)."""
        names: list[Any] = self.client.keys("kf:*")
        answers = trip(self.client, *(c for name in names for c in (("DUMP", name), ("PTTL", name))))
        return [(n, v, max(t, 0)) for n, v, t in zip(names, answers[::2], answers[1::2], strict=True)]

    def put_back(self, dumped: list[tuple[bytes, bytes, int]]) -> None:
        """Replace the content of the server by a dump."""
        self.client.flushall()
        trip(self.client, *(("RESTORE", name, ttl, value) for name, value, ttl in dumped))

    def close(self) -> None:
        """Close all connections."""
        self._subscriber.connection_pool.release(self._subscription)
        self._subscriber.close()
        self.client.close()
        self.wait(self.store.aclose())
        self._runner.close()


class Recorder(ScriptConnection):
    """The gateway's connection for accepting; it records replies and can lose the first one."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.store)
        self._bench = bench
        self.trips: list[tuple[tuple[Command, ...], list[Any]]] = []
        self.loses_answer = False

    async def run(self, *commands: Command) -> list[Any]:
        """Make the trip, twice if the first reply is lost."""
        for _ in range(1 + self.loses_answer):
            answers = await self._bench.run_async(self, *commands)
            self.trips.append((commands, answers))
        return answers


def is_answers(name: str) -> bool:
    """Return whether a key is a hash of first answers to the calls of a client."""
    return ":idem:new:" in name or ":idem:old:" in name or ":pull:" in name


def _reading(name: str) -> Command:
    kind = name.rpartition(":")[2]
    is_hash = kind in ("st", "rows") or is_answers(name) or ":answers:" in name
    if is_hash or name == redis_keys.OPEN_ROWS:
        return ("HGETALL", name)
    if kind in ("in", "dead"):
        return ("XRANGE", name, "-", "+")
    if name == redis_keys.EVENTS:
        return ("XRANGE", name, "-", "+")
    if name in (redis_keys.CHANGED, redis_keys.DUE_EVENTS) or kind in ("ends", "closed"):
        return ("ZRANGE", name, 0, -1, "WITHSCORES")
    return ("GET", name)


def _plain(value: Any) -> Any:
    """Convert streams to lists of (id, fields), sorted sets to scores by member; leave the rest."""
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0][1], float):
        return {member.decode(): round(score) for member, score in value}
    return [(name, dict(zip(fields[::2], fields[1::2], strict=True))) for name, fields in value]


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Run a server and its clients until the block ends."""
    port = free_port()
    # Through a Unix socket, trips take two thirds of the time. Its path must be short.
    with TemporaryDirectory(prefix="valkey-") as sockets:
        socket = f"{sockets}/s"
        command = [*redis_command(port, folder, durable=False), "--unixsocket", socket]
        with running(command, folder.with_suffix(".log"), lambda: accepts(port)):
            opened = Bench(f"unix://{socket}?db=0")
            trip(opened.client, *LOAD_ALL)
            try:
                yield opened
            finally:
                opened.close()


def without_staging(run: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Make trips whose SET is lost, as if its key had expired before the script."""

    def trip(client: Any, *commands: Command) -> list[Any]:
        answers = iter(run(client, *(command for command in commands if command[0] != "SET")))
        return [None if command[0] == "SET" else next(answers) for command in commands]

    return trip


def without_staging_async(run: Callable[..., Any]) -> Callable[..., Any]:
    """Do the same as :func:`without_staging` for gateways."""

    async def trip(client: Any, *commands: Command) -> list[Any]:
        kept = [command for command in commands if command[0] != "SET"]
        answers: list[Any] = [None] * (len(commands) - len(kept))
        return answers + list(await run(client, *kept))

    return trip

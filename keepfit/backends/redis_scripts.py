"""The Lua scripts, and how clients run them.

Owns loading ``*/lua/*.lua`` and sending commands in one round trip. Never knows what a script means; its header says
it. Invariant: synchronous workers and the asynchronous gateway run the same text, named by its SHA-1. A server that has
lost its scripts (a restart) gets them again, and the round trip is repeated, which every script here allows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import hiredis
import redis.asyncio
from redis import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004
    NoScriptError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from keepfit.backends import redis_cluster, redis_keys, redis_slots
from keepfit.errors import TooLargeError, UnavailableError

Command = tuple[Any, ...]

TEXTS = {
    path.name.removesuffix(".lua"): path.read_text()
    for package in ("store", "jobs", "rates")
    for path in resources.files("keepfit").joinpath(package, "lua").iterdir()
    if path.name.endswith(".lua")
}
SHA1 = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in TEXTS.items()}

LOAD_ALL: tuple[Command, ...] = tuple(("SCRIPT", "LOAD", text) for text in TEXTS.values())

# Size of the largest value that Redis takes (`proto-max-bulk-len`).
VALUE_BYTES_MAX = 2**29

# Errors of a server that is reachable and cannot execute the command: out of memory, disk full or broken, a replica,
# busy with a script, an incomplete cluster, or missing permission.
REFUSALS = frozenset(
    {"OOM", "MISCONF", "READONLY", "NOREPLICAS", "MASTERDOWN", "BUSY", "NOPERM", "NOAUTH"}
    | {"CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK"}
)

# Scripts after which a caller gets an answer that the store must keep.
PROMISES = frozenset(
    SHA1[name]
    for name in (
        "accept",
        "cancel_job",
        "create_job",
        "delete",
        "discard",
        "install",
        "keep_rows",
        "label_rows",
        "retry",
        "rewind",
    )
)
# Less than the time in which a gateway's Redis must answer, and more than a second between two syncs (`everysec`).
REPLICAS_TIMEOUT_MS = 3000

# Text of the RuntimeError with which uvloop refuses to use a closed connection.
CLOSED = "the handler is closed"


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas must have what is promised, on disk or in memory (the field ``replicas`` of a pool)."""

    count: int
    on_disk: bool

    def commands(self, mark: str = redis_keys.REPLICATED) -> tuple[Command, ...]:
        """Return the commands that wait for replicas; the last one returns how many have it.

        Redis waits for the last write of the connection. A call that finds its request accepted already writes
        nothing, so there is a write before the wait: of the key `mark`.
        """
        written = ("SET", mark, 1, "EX", 60)
        in_memory = ("WAIT", self.count, REPLICAS_TIMEOUT_MS // 2)
        # Asked while it has not synced what it has just got, a replica tells of the sync only a second later.
        on_disk = ("WAITAOF", 0, self.count, REPLICAS_TIMEOUT_MS // 2)
        return (written, in_memory, on_disk) if self.on_disk else (written, in_memory)

    def check(self, answer: Any) -> None:
        """Raise UnavailableError if fewer replicas have it."""
        found = answer[1] if self.on_disk else answer
        if found < self.count:
            public = f"Only {found} of {self.count} replicas of Redis have stored it in time; repeat the request."
            raise UnavailableError(f"Redis: {public}", public)


def _promise_of(pool: Any, commands: Sequence[Command]) -> Replicas | None:
    """Return the replicas to wait for after these commands, if there are any."""
    replicas: Replicas | None = getattr(pool, "replicas", None)
    return replicas if replicas is not None and any(map(_is_promise, commands)) else None


def _is_promise(command: Command) -> bool:
    return command[0] == "EVALSHA" and command[1] in PROMISES


def _plan(client: Any, commands: Sequence[Command]) -> redis_slots.Plan:
    return redis_slots.plan(commands, client.slots, _is_promise, LOAD_ALL, client.replicas)


def call(name: str, keys: Sequence[str], args: Sequence[str | int | bytes] = ()) -> Command:
    """Return the command that runs the script `name`."""
    return ("EVALSHA", SHA1[name], len(keys), *keys, *args)


@contextmanager
def unavailable() -> Iterator[None]:
    """Convert the errors of a Redis that is unreachable, or refuses commands, to UnavailableError."""
    try:
        yield
    except AuthenticationError as error:
        raise UnavailableError(f"Redis rejects the credentials of keepfit: {error}", "Redis is unavailable.") from error
    except (ConnectionError, TimeoutError, BusyLoadingError) as error:
        raise UnavailableError(f"Redis is unavailable: {error}", "Redis is unavailable.") from error
    except RuntimeError as error:
        # uvloop's error for a connection that was closed while redis-py opened it.
        if CLOSED not in str(error):
            raise
        raise UnavailableError(f"Redis is unavailable: {error}", "Redis is unavailable.") from error
    except ResponseError as error:
        # redis-py removes the code from the text of the errors that it has a class for.
        code = error.status_code or str(error).partition(" ")[0]
        if code in REFUSALS:
            message = f"Redis refuses ({code}): {str(error).removeprefix(code).strip()}"
            raise UnavailableError(message, f"Redis refuses ({code}).") from error
        raise


def run(client: Redis, *commands: Command) -> list[Any]:
    """Send `commands` in one round trip, in order, and return their answers.

    Raises
    ------
    UnavailableError
        If Redis is unavailable; any of the commands may or may not have been executed.
    """
    if isinstance(client, redis_cluster.Cluster):
        with unavailable():
            return _checked(client.run(_plan(client, commands), _round_trip), None)
    replicas = _promise_of(client.connection_pool, commands)
    if replicas is not None:
        commands += replicas.commands()
    with unavailable():
        answers = _round_trip(client, commands)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            _round_trip(client, LOAD_ALL)
            answers = _round_trip(client, commands)
        return _checked(answers, replicas)


def _round_trip(client: Redis, commands: Sequence[Command]) -> list[Any]:
    """Send and read on a connection of the pool; redis-py's pipeline does the same in twice the time."""
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        connection.send_packed_command([_packed(commands)])
        return [_answer(connection) for _ in commands]
    except BaseException:
        # The next user of the connection would read the answers that are still being sent as its own.
        connection.disconnect()
        raise
    finally:
        pool.release(connection)


def _packed(commands: Sequence[Command]) -> bytes:
    """Return the bytes to send.

    Raises
    ------
    TooLargeError
        If Redis would not take one of the values. It would close the connection, as if it were unavailable.
    """
    packed = b"".join(map(hiredis.pack_command, commands))
    if len(packed) > VALUE_BYTES_MAX:
        sizes = [len(value) for command in commands for value in command if isinstance(value, bytes | str)]
        if max(sizes) > VALUE_BYTES_MAX:
            raise TooLargeError(f"A value has {max(sizes)} bytes; Redis takes up to {VALUE_BYTES_MAX}.")
    return packed


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


async def run_async(client: redis.asyncio.Redis, *commands: Command) -> list[Any]:
    """Do what :func:`run` does without blocking the event loop; repeat it once if the connection broke."""
    if isinstance(client, redis_cluster.AsyncCluster):
        with unavailable():
            return _checked(await client.run(_plan(client, commands), _round_trip_on), None)
    pool: Any = client.connection_pool
    with unavailable():
        connection = await pool.get_connection()
        try:
            return await _run_on(pool, connection, commands)
        finally:
            await pool.release(connection)


async def run_each(client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
    """Send commands other than scripts in one round trip; the error of a command takes the place of its answer.

    Raises
    ------
    UnavailableError
        If Redis is unavailable.
    """
    if isinstance(client, redis_cluster.AsyncCluster):
        with unavailable():
            return await client.run(_plan(client, commands), _round_trip_on)
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        with unavailable():
            return await pipe.execute(raise_on_error=False)


class ScriptConnection:
    """A connection for consecutive round trips: taking one from the pool takes as long as a round trip."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._connection: Any = None

    async def run(self, *commands: Command) -> list[Any]:
        """Do what :func:`run_async` does; must not be called again before it has returned."""
        if isinstance(self._client, redis_cluster.AsyncCluster):
            return await run_async(self._client, *commands)
        pool: Any = self._client.connection_pool
        with unavailable():
            if self._connection is None:
                self._connection = await pool.get_connection()
            return await _run_on(pool, self._connection, commands)

    async def close(self) -> None:
        """Return the connection to the pool."""
        if self._connection is not None:
            await self._client.connection_pool.release(self._connection)
            self._connection = None


async def _run_on(pool: Any, connection: Any, commands: Sequence[Command]) -> list[Any]:
    replicas = _promise_of(pool, commands)
    if replicas is not None:
        commands = (*commands, *replicas.commands())
    answers = await _retry_round_round_trip(connection, commands)
    if any(isinstance(answer, NoScriptError) for answer in answers):
        await _retry_round_round_trip(connection, LOAD_ALL)
        answers = await _retry_round_round_trip(connection, commands)
    return _checked(answers, replicas)


async def _round_trip_on(client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
    pool: Any = client.connection_pool
    connection = await pool.get_connection()
    try:
        return await _retry_round_round_trip(connection, commands)
    finally:
        await pool.release(connection)


def scan(client: Redis, match: str, count: int) -> Iterator[bytes]:
    """Yield the names of the keys that match, of all nodes."""
    cursor = b"0"
    while True:
        ((cursor, names),) = run(client, ("SCAN", cursor, "MATCH", match, "COUNT", count))
        yield from names
        if cursor == b"0":
            return


async def _retry_round_round_trip(connection: Any, commands: Sequence[Command]) -> list[Any]:
    try:
        return await _round_trip_async(connection, commands)
    except ConnectionError:
        # A restarted server has closed the connections of the pool; they reopen by themselves.
        return await _round_trip_async(connection, commands)


async def _round_trip_async(connection: Any, commands: Sequence[Command]) -> list[Any]:
    try:
        # To send opens it again, too, but at the address at which it was before: sentinels may know another one.
        if not connection.is_connected:
            await connection.connect()
        await connection.send_packed_command(_packed(commands))
        return [await _answer_async(connection) for _ in commands]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


async def _answer_async(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _checked(answers: list[Any], replicas: Replicas | None) -> list[Any]:
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    if not failed:
        if replicas is not None:
            replicas.check(answers[-1])
            del answers[-len(replicas.commands()) :]
        return answers
    # A list that holds the error would keep it alive, and with it every frame that it passes.
    answers.clear()
    raise failed.pop(0)

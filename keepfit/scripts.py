"""The Lua scripts, and how clients run them.

Owns loading ``lua/*.lua`` and sending commands in one trip. Never knows what a script means; its header does.
Invariant: sync workers and the async gateway run the very same text, named by its SHA-1; a server that has lost its
scripts (a restart) is given them again and the trip is made once more, which every script here allows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any

import redis.asyncio
from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError, NoScriptError, ResponseError, TimeoutError  # noqa: A004

from keepfit.errors import UnavailableError

Command = tuple[Any, ...]

TEXTS = {
    path.name.removesuffix(".lua"): path.read_text()
    for path in resources.files("keepfit").joinpath("lua").iterdir()
    if path.name.endswith(".lua")
}
SHA1 = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in TEXTS.items()}

# Answers of a server that is there and cannot write: out of memory, disk full or broken, a replica, still loading.
REFUSALS = ("OOM", "MISCONF", "READONLY", "NOREPLICAS", "MASTERDOWN")


def call(name: str, keys: Sequence[str], args: Sequence[str | int | bytes] = ()) -> Command:
    """Command that runs the script `name`."""
    return ("EVALSHA", SHA1[name], len(keys), *keys, *args)


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn the errors of a Redis that is away or cannot write into UnavailableError."""
    try:
        yield
    except (ConnectionError, TimeoutError, BusyLoadingError) as error:
        raise UnavailableError(f"Redis is away: {error}") from error
    except ResponseError as error:
        if str(error).startswith(REFUSALS):
            raise UnavailableError(f"Redis cannot write: {error}") from error
        raise


def run(client: Redis, *commands: Command) -> list[Any]:
    """Send `commands` in one trip, in order, and return their answers.

    Raises
    ------
    UnavailableError
        If Redis is away; then any of the commands may or may not have been carried out.
    """
    with unavailable():
        answers = _trip(client, commands)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            for text in TEXTS.values():
                client.script_load(text)
            answers = _trip(client, commands)
        return _checked(answers)


def _trip(client: Redis, commands: Sequence[Command]) -> list[Any]:
    with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        return list(pipe.execute(raise_on_error=False))


async def run_async(client: redis.asyncio.Redis, *commands: Command) -> list[Any]:
    """Do what :func:`run` does, without blocking the event loop."""
    with unavailable():
        answers = await _trip_async(client, commands)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            for text in TEXTS.values():
                await client.script_load(text)
            answers = await _trip_async(client, commands)
        return _checked(answers)


async def _trip_async(client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))


def _checked(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers

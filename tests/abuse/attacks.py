"""Clients that misbehave, each kind in a process of its own: ``python -m tests.abuse.attacks NAME TARGET``.

TARGET is a JSON document with the gateway's address and the models. An attack prints a line when it is ready and begins
when it reads one. It runs until SIGTERM, and then prints what it did and how it was answered, as a JSON object of
counts.
"""

import asyncio
import io
import itertools
import json
import os
import random
import resource
import signal
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec
import numpy as np

from tests.gateway.raw_requests import JSON, NPY, get, post, unread

MIB = 2**20
CROWD = 1200
READERS = 30
WRITERS = 100
# Attacks come from other machines: here they leave the processors to the stack.
NICE = 15
# Of a row that the attacked model has learned.
USED_KEY = "used"
# Time between two bytes of a slow writer, and between two looks at a connection that is only held.
BYTE_S, LOOK_S = 0.1, 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """The gateway's address, and the paths of the attacked models by their use."""

    url: str
    models: dict[str, str]


class Request(NamedTuple):
    """One request to send."""

    path: str
    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = {}


def npy(rows: "np.ndarray[Any, Any]") -> bytes:
    """Return an array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


def rows(*values: Any) -> bytes:
    """Return rows as the JSON of a question."""
    return json.dumps({"X": list(values)}, separators=(",", ":")).encode()


@dataclass(slots=True)
class Crowd:
    """Clients of one attack, and the counts of what happened to them."""

    target: Target
    counts: Counter[str] = field(default_factory=Counter)

    async def together(self, count: int, client: Callable[[], Awaitable[None]]) -> None:
        """Run `count` clients, each again and again, until this task is cancelled."""

        async def forever() -> None:
            while True:
                try:
                    await client()
                except (OSError, aiohttp.ClientError):
                    self.counts["closed"] += 1
                    await asyncio.sleep(BYTE_S)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(forever())

    async def send(self, count: int, make: Callable[[int], Request]) -> None:
        """Let `count` clients send requests as fast as they are answered, and read the answers."""
        numbers = itertools.count()
        limits = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            self.target.url, connector=limits, timeout=aiohttp.ClientTimeout(total=None)
        ) as http:

            async def client() -> None:
                path, body, media_type, headers = make(next(numbers))
                fields = {"Content-Type": media_type, **headers}
                async with http.post(path, data=io.BytesIO(body), headers=fields) as response:
                    async for _ in response.content.iter_any():
                        pass
                    self.counts[str(response.status)] += 1

            await self.together(count, client)

    async def hold(self, connection: socket.socket) -> None:
        """Keep a connection open, and read nothing, until the gateway closes it."""
        while True:
            with suppress(BlockingIOError):
                if not connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionResetError
            await asyncio.sleep(LOOK_S)


Attack = Callable[[Crowd], Awaitable[None]]


async def slow_readers(crowd: Crowd) -> None:
    """Thirty connections ask for answers of 3 MB and read none of them."""
    request = post(f"{crowd.target.models['linear']}/predict", b'{"X":[%s[1,2]]}' % (b"[0.1,2]," * 600_000))

    async def client() -> None:
        with unread(crowd.target.url) as connection:
            await asyncio.get_running_loop().sock_sendall(connection, request)
            crowd.counts["asked"] += 1
            await crowd.hold(connection)

    await crowd.together(READERS, client)


async def slow_writers(crowd: Crowd) -> None:
    """A hundred connections send a byte every tenth of a second: half of them of the head, half of the body."""
    parts = urlsplit(crowd.target.url)
    path = f"{crowd.target.models['linear']}/partial_fit"
    head, body = post(path, b" " * 1000).split(b"\r\n\r\n")
    halves = itertools.cycle([(b"", head), (head + b"\r\n\r\n", body)])

    async def client() -> None:
        at_once, slowly = next(halves)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        with closing(writer):
            writer.write(at_once)
            for byte in slowly:
                writer.write(bytes([byte]))
                await writer.drain()
                crowd.counts["bytes"] += 1
                if reader.at_eof():
                    raise ConnectionResetError
                await asyncio.sleep(BYTE_S)
            await reader.read(MIB)

    await crowd.together(WRITERS, client)


async def pipelining(crowd: Crowd) -> None:
    """Eight connections pipeline requests, half of them answered from the cache, and never read."""
    model = crowd.target.models["linear"]
    requests = itertools.cycle([post(f"{model}/predict", rows([1.0, 2.0])), get(model)])

    async def client() -> None:
        request = next(requests)
        many = request * (MIB // len(request))
        with unread(crowd.target.url) as connection:
            while True:
                await asyncio.get_running_loop().sock_sendall(connection, many)
                crowd.counts["MiB"] += 1

    await crowd.together(8, client)


async def idle_crowd(crowd: Crowd) -> None:
    """Twelve hundred connections are opened, and opened again when they are closed; they send nothing."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    parts = urlsplit(crowd.target.url)

    async def client() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        with closing(writer):
            crowd.counts["opened"] += 1
            await reader.read()
        raise ConnectionResetError

    await crowd.together(CROWD, client)


async def malformed(crowd: Crowd) -> None:
    """Four connections send random bytes, nested JSON, endless headers and lengths that do not fit."""
    parts = urlsplit(crowd.target.url)
    path = f"{crowd.target.models['linear']}/predict"
    drawn = random.Random(7)
    requests = itertools.cycle(
        [
            drawn.randbytes(4096),
            post(path, b"[" * 100_000),
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000,
            post(path, b'{"X": [[1e999, "\xff"]]}'),
            post(path, b"\x00" * 1000, NPY),
            post(path, b"{}", JSON, "Content-Length: 7", "Transfer-Encoding: chunked"),
        ]
    )

    async def client() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        with closing(writer):
            writer.write(next(requests))
            writer.write_eof()
            await reader.read()
            crowd.counts["sent"] += 1

    await crowd.together(4, client)


# Rows and answers.


async def large_answers(crowd: Crowd) -> None:
    """Four clients ask for 70 million probabilities in 42 KB, and four for answers of 1.5 MB."""
    many = Request(f"{crowd.target.models['classes']}/predict?proba=true", rows(*[[1, 2]] * 7000))
    long = Request(f"{crowd.target.models['linear']}/predict", rows(*[[0.1, 2.0]] * 300_000))
    await crowd.send(8, lambda number: (many, long)[number % 2])


async def refused_rows(crowd: Crowd) -> None:
    """Eight clients send 8 MB and more that are refused: a wrong width, a used key, integers too large as floats."""
    path = f"{crowd.target.models['linear']}/partial_fit"
    again = Request(path, npy(np.ones((350_000, 3))), NPY, {"Idempotency-Key": USED_KEY})
    wide = Request(path, npy(np.ones((1000, 1000))), NPY)
    long = Request(path, npy(np.ones((23_000_000, 3), np.uint8)), NPY)

    def make(number: int) -> Request:
        return long if number % 20 == 5 else (again, wide)[number % 2]

    await crowd.send(8, make)


async def large_rows(crowd: Crowd) -> None:
    """Eight clients send 4 MB of rows each as fast as they are accepted, so that the inbox fills."""
    body = npy(np.random.default_rng(7).normal(size=(170_000, 3)))
    await crowd.send(8, lambda _: Request(f"{crowd.target.models['learner']}/partial_fit", body, NPY))


async def many_keys(crowd: Crowd) -> None:
    """Sixteen clients send single rows, each under an Idempotency-Key of its own."""
    path, body = f"{crowd.target.models['learner']}/partial_fit", b'{"X":[[1.0,2.0]],"y":[1.0]}'
    await crowd.send(16, lambda number: Request(path, body, headers={"Idempotency-Key": f"{number:0100}"}))


# Models.


async def gil_holders(crowd: Crowd) -> None:
    """Four clients ask a model whose native code keeps the interpreter's lock for a second and a half."""
    await crowd.send(4, lambda number: Request(f"{crowd.target.models['gil']}/predict", rows([float(number)])))


async def dying_loaders(crowd: Crowd) -> None:
    """Four clients ask a model whose bundle ends the process that loads it."""
    await crowd.send(4, lambda number: Request(f"{crowd.target.models['deadly']}/predict", rows([float(number)])))


async def late_questions(crowd: Crowd) -> None:
    """Eight clients give a model that takes a second 200 ms for an answer."""
    path = f"{crowd.target.models['slow']}/predict?timeout=0.2"
    await crowd.send(8, lambda number: Request(path, rows([float(number)])))


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        slow_readers, slow_writers, pipelining, idle_crowd, malformed, large_answers, refused_rows, large_rows,
        many_keys, gil_holders, dying_loaders, late_questions,
    )
}  # fmt: skip
# Of these only one runs at a time: two models whose calls are long may occupy both workers.
SLOW_MODELS = ("large_rows", "gil_holders", "dying_loaders", "late_questions")


async def run(name: str, target: Target) -> Counter[str]:
    """Attack until SIGTERM; return the counts."""
    stop, crowd = asyncio.Event(), Crowd(target)
    # Before it is ready: a signal may come soon after it begins.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)  # noqa: T201
    assert sys.stdin.readline() == "begin\n"
    os.nice(NICE)
    task = asyncio.ensure_future(ATTACKS[name](crowd))
    await stop.wait()
    while not crowd.counts and not task.done():  # noqa: ASYNC110 - the attack sets no event
        # On a busy machine an attack may have done nothing yet.
        await asyncio.sleep(BYTE_S)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return crowd.counts


def main() -> None:
    """Run the attack that the command line names."""
    name, target = sys.argv[1:]
    print(json.dumps(asyncio.run(run(name, msgspec.json.decode(target, type=Target)))))  # noqa: T201


if __name__ == "__main__":
    main()

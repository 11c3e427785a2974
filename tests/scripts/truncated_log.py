"""The append-only file truncated at each byte of its tail, as after a power failure.

Records accepts and commits with every write synced, then lets servers load the file truncated at each of many bytes.
Invariant: the result is the state after a whole script, never half of one; nothing acknowledged before the cut is
missing; and after clients and workers have repeated what was not acknowledged, each row was learned once.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

from redis.exceptions import ResponseError

from keepfit.backends import redis_keys, redis_scripts
from keepfit.backends.redis_scripts import Command
from keepfit.local.servers import accepts, free_port, redis_command
from keepfit.model.bundle import Bundle
from keepfit.model.columns import Columns
from keepfit.model.serialization import unseal
from keepfit.store import commit as commits
from keepfit.store import inbox
from keepfit.store.commit import Claimed, InboxConsumer
from keepfit.store.inbox import LearnRequest
from keepfit.store.models import Install, Store
from keepfit.store.retained import ENTRY_BYTES
from tests.factories import commit_bundle
from tests.scripts.bench import HOUR_MS, Bench
from tests.scripts.store_machine import KEYRING, METADATA, RECIPE, A
from tests.servers import running, valkey

LOG = "appendonlydir/appendonly.aof.1.incr.aof"
# Key and rows of each call. The tail consists of the last two calls and the commit between them.
CALLS = (("k1", b"one"), ("k2", b"two"), ("k3", b"three"), ("k4", b"four"), ("k5", b"five"))
ROWS = [rows for _, rows in CALLS]
# The second commit removes the older half of the first three rows.
RETAINED_BYTES_MAX = 230


@dataclass(frozen=True, slots=True)
class Recording:
    """An append-only file, the content of Redis after each command, and the last claim of a worker."""

    log: bytes
    contents: Sequence[tuple[int, dict[str, Any]]]
    tail: int
    claimed: Claimed

    @property
    def ends(self) -> list[int]:
        """Offsets in the tail at which a command ends."""
        return [offset for offset, _ in self.contents if offset >= self.tail]

    def expected(self, cut: int) -> dict[str, Any]:
        """Return the content of Redis for a file that ends at `cut`."""
        return next(contents for offset, contents in reversed(self.contents) if offset <= cut)

    def points(self, every: int) -> list[int]:
        """Return offsets to cut at: each `every`-th of the tail, and those around the end of each command."""
        near = {end + step for end in self.ends for step in (-1, 0, 1)}
        chosen = near | set(range(self.tail, len(self.log) + 1, every))
        return sorted(point for point in chosen if self.tail <= point <= len(self.log))


class ClientAndWorker:
    """A client and a worker of one model, with single calls."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.consumer = InboxConsumer(bench.client, lock_ttl_s=7200, replay_bytes_max=RETAINED_BYTES_MAX)

    def accept(self, key: str, rows: bytes) -> Any:
        """Accept a request with a client's key."""
        return self.bench.run(
            inbox.accept(self.bench.recorder, self.bench.settings, [LearnRequest(A, 1, 2, rows, key)])
        )[0][0]

    def claim(self, token: str) -> Claimed:
        """Claim the model, even if it is locked."""
        self.bench.client.delete(redis_keys.lock(A))
        claimed = self.consumer.claim(A, token, "")
        assert claimed is not None
        return claimed

    def learn(self, claimed: Claimed, token: str) -> int:
        """Commit the whole claim; the bundle lists its learned rows."""
        learned = unseal(claimed.data, KEYRING, RECIPE, A)[1].estimator if claimed.data else []
        taught = [*learned, *(entry.payload for entry in claimed.entries)]
        bundle = Bundle(RECIPE, Columns.new(RECIPE), None, taught, [], len(taught))
        return commit_bundle(self.consumer, KEYRING, claimed, bundle, len(claimed.entries), token).version


def record(folder: Path) -> Recording:
    """Run the calls on a server that syncs every write; record its content after each command."""
    contents: list[tuple[int, dict[str, Any]]] = []
    with valkey(folder) as url, _opened(url) as bench:
        run, log = redis_scripts.run, folder / LOG

        def one_by_one(client: Any, *commands: Command) -> list[Any]:
            answers = []
            for command in commands:
                answers += run(client, command)
                contents.append((os.stat(log).st_size, bench.keys()))
            return answers

        client = ClientAndWorker(bench)
        run(bench.client, *redis_scripts.LOAD_ALL)
        bench.wait(Store(bench.store).install(Install(A, METADATA[A], RECIPE.text(), 1)))
        bench.run_async = lambda _, *commands: _done(one_by_one(bench.client, *commands))  # type: ignore[method-assign]
        with mock.patch.object(commits, "STAGED_TTL_MS", HOUR_MS):
            for key, rows in CALLS[:3]:
                client.accept(key, rows)
            client.learn(client.claim("first"), "first")
            tail = os.stat(log).st_size
            contents.append((tail, bench.keys()))
            client.accept(*CALLS[3])
            claimed = client.claim("second")
            contents.append((os.stat(log).st_size, bench.keys()))
            with mock.patch.object(redis_scripts, "run", one_by_one):
                assert client.learn(claimed, "second") == 2
            client.accept(*CALLS[4])
        return Recording(log.read_bytes(), contents, tail, claimed)


async def _done(answers: list[Any]) -> list[Any]:
    return answers


@contextmanager
def _opened(url: str) -> Iterator[Bench]:
    bench = Bench(url)
    try:
        yield bench
    finally:
        bench.close()


def reloaded(folder: Path, log: bytes, points: Sequence[int]) -> Iterator[tuple[int, Bench]]:
    """Let one server load `log` cut at each of `points`, one after another.

    ``DEBUG LOADAOF`` empties the server and loads as a start does.
    """
    port = free_port()
    command = [*redis_command(port, folder), "--enable-debug-command", "local"]
    with running(command, folder.with_suffix(".log"), lambda: accepts(port)), _opened(_url(port)) as bench:
        for point in points:
            _write(folder / LOG, log[:point])
            # It reports the truncated end as an error after it has loaded the rest.
            with suppress(ResponseError):
                bench.client.execute_command("DEBUG", "LOADAOF")
            yield point, bench


def started(folder: Path, log: bytes, points: Sequence[int]) -> Iterator[tuple[int, Bench]]:
    """Start a server of its own on `log` cut at each of `points`, one after another."""
    with valkey(folder):
        pass
    for point in points:
        _write(folder / LOG, log[:point])
        with valkey(folder) as url, _opened(url) as bench:
            yield point, bench


def _url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


def unframed(recording: Recording) -> tuple[bytes, list[int]]:
    """Return the file with a script's effects outside of a transaction, and the offsets where commands end."""
    tail = recording.log[recording.tail :]
    for word in (b"MULTI", b"EXEC"):
        tail = tail.replace(b"*1\r\n$%d\r\n%s\r\n" % (len(word), word), b"")
    # Every command begins with the number of its words.
    ends = [recording.tail + found.start() for found in re.finditer(rb"(?<=\r\n)\*\d+\r\n\$\d+\r\n[A-Z]", tail)]
    return recording.log[: recording.tail] + tail, ends


def _write(log: Path, data: bytes) -> None:
    with log.open("r+b") as opened:
        opened.truncate(0)
        opened.write(data)


def check(bench: Bench, recording: Recording, cut: int) -> None:
    """Check the loaded content, then let clients and workers continue until each row is learned once."""
    contents = bench.keys()
    assert contents == recording.expected(cut), f"cut at byte {cut}"
    check_whole(contents)
    client = ClientAndWorker(bench)
    # First the worker from before the cut commits its claim; then the clients repeat their calls.
    committed = client.learn(recording.claimed, "second")
    assert committed in (2, commits.SUPERSEDED, commits.REQUESTS_CHANGED)
    for key, rows in CALLS:
        client.accept(key, rows)
    claimed = client.claim("third")
    if claimed.entries:
        assert client.learn(claimed, "third") == claimed.version + 1
    after = bench.keys()
    check_whole(after)
    learned = unseal(after[redis_keys.bundle(A)][0], KEYRING, RECIPE, A)[1].estimator
    assert learned == ROWS, f"cut at byte {cut}"


def check_whole(contents: dict[str, Any]) -> None:
    """Check that state, bundle and inbox are of the same moment."""
    state, bundle = contents[redis_keys.state(A)][0], contents[redis_keys.bundle(A)][0]
    header, _ = unseal(bundle, KEYRING, RECIPE, A)
    version, learned, accepted = (int(state[name]) for name in (b"version", b"learned", b"accepted"))
    assert state[b"digest"] == sha256(bundle).hexdigest().encode()
    assert (header.version, header.sequence, header.rows_seen) == (version, learned, int(state[b"rows_seen"]))
    cut, cut_bytes, half, _, total = map(int, state[b"kept"].split())
    there = contents.get(redis_keys.inbox(A), ([], 0))[0]
    assert [name for name, _ in there] == [b"%d-0" % number for number in range(cut + 1, accepted + 1)]
    kept, waiting = there[: learned - cut], there[learned - cut :]
    assert cut <= half <= learned
    assert sum(len(fields[b"rows"]) + ENTRY_BYTES for _, fields in kept) == total - cut_bytes <= RETAINED_BYTES_MAX
    assert int(state[b"bytes"]) == sum(len(fields[b"rows"]) for _, fields in waiting)
    assert state[b"chain"] == (waiting[-1][1][b"chain"] if waiting else header.chain.encode())

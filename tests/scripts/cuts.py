"""The append-only file cut at its tail: what a power cut leaves, byte by byte.

Records a run of accepts and commits with every write synced, then lets servers load the file cut at each of many
bytes. Invariant: what is there then is what was there after some whole script, never half of one; nothing that was
answered before the cut is missing; and once clients and workers have done again what nobody answered, each row is
learned once.
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
from tests.scripts.models import KEYRING, METADATA, RECIPE, A
from tests.servers import running, valkey

LOG = "appendonlydir/appendonly.aof.1.incr.aof"
# The key and the rows of each call; the tail are the last two and the commit between them.
CALLS = (("k1", b"one"), ("k2", b"two"), ("k3", b"three"), ("k4", b"four"), ("k5", b"five"))
ROWS = [rows for _, rows in CALLS]
# Of the first three rows the older half goes with the second commit.
KEPT_MAX = 230


@dataclass(frozen=True, slots=True)
class Recording:
    """An append-only file, what Redis held at each offset where a command had ended, and a worker's last take."""

    log: bytes
    held: Sequence[tuple[int, dict[str, Any]]]
    tail: int
    taken: Claimed

    @property
    def ends(self) -> list[int]:
        """Offsets in the tail where a whole command had ended."""
        return [offset for offset, _ in self.held if offset >= self.tail]

    def expected(self, cut: int) -> dict[str, Any]:
        """What Redis must hold where the file ends at `cut`."""
        return next(held for offset, held in reversed(self.held) if offset <= cut)

    def points(self, every: int) -> list[int]:
        """Bytes to cut at: each `every`-th of the tail, and those around the end of each command."""
        near = {end + step for end in self.ends for step in (-1, 0, 1)}
        chosen = near | set(range(self.tail, len(self.log) + 1, every))
        return sorted(point for point in chosen if self.tail <= point <= len(self.log))


class Clerk:
    """A client and a worker of one model, whose calls may be looked at one by one."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.consumer = InboxConsumer(bench.client, lock_ttl_s=7200, replay_bytes_max=KEPT_MAX)

    def accept(self, key: str, rows: bytes) -> Any:
        """Accept a request with a client's key."""
        return self.bench.run(inbox.accept(self.bench.line, self.bench.settings, [LearnRequest(A, 1, 2, rows, key)]))[
            0
        ][0]

    def take(self, token: str) -> Claimed:
        """Take the model, whoever had it."""
        self.bench.client.delete(redis_keys.lock(A))
        taken = self.consumer.claim(A, token, "")
        assert taken is not None
        return taken

    def learn(self, taken: Claimed, token: str) -> int:
        """Commit all that was taken; the bundle says which rows it has learned."""
        learned = unseal(taken.data, KEYRING, RECIPE, A)[1].estimator if taken.data else []
        taught = [*learned, *(entry.payload for entry in taken.entries)]
        bundle = Bundle(RECIPE, Columns.new(RECIPE), None, taught, [], len(taught))
        return commit_bundle(self.consumer, KEYRING, taken, bundle, len(taken.entries), token).version


def record(folder: Path) -> Recording:
    """Run the calls on a server that syncs every write, and note what it holds after each command."""
    held: list[tuple[int, dict[str, Any]]] = []
    with valkey(folder) as url, _opened(url) as bench:
        run, log = redis_scripts.run, folder / LOG

        def one_by_one(client: Any, *commands: Command) -> list[Any]:
            answers = []
            for command in commands:
                answers += run(client, command)
                held.append((os.stat(log).st_size, bench.keys()))
            return answers

        clerk = Clerk(bench)
        run(bench.client, *redis_scripts.LOAD_ALL)
        bench.wait(Store(bench.store).install(Install(A, METADATA[A], RECIPE.text(), 1)))
        bench.run_async = lambda _, *commands: _done(one_by_one(bench.client, *commands))  # type: ignore[method-assign]
        with mock.patch.object(commits, "STAGED_TTL_MS", HOUR_MS):
            for key, rows in CALLS[:3]:
                clerk.accept(key, rows)
            clerk.learn(clerk.take("first"), "first")
            tail = os.stat(log).st_size
            held.append((tail, bench.keys()))
            clerk.accept(*CALLS[3])
            taken = clerk.take("second")
            held.append((os.stat(log).st_size, bench.keys()))
            with mock.patch.object(redis_scripts, "run", one_by_one):
                assert clerk.learn(taken, "second") == 2
            clerk.accept(*CALLS[4])
        return Recording(log.read_bytes(), held, tail, taken)


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
            # It says that the file's end was missing, once it has loaded what is whole.
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
    """Return the file as it would be if a script's effects were no transaction, and where its commands end."""
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
    """Look at what a server has loaded, then let clients and workers go on until each row is learned once."""
    held = bench.keys()
    assert held == recording.expected(cut), f"cut at byte {cut}"
    check_whole(held)
    clerk = Clerk(bench)
    # The worker of before the cut comes first, with what it read then; then clients who were not answered come again.
    committed = clerk.learn(recording.taken, "second")
    assert committed in (2, commits.BEATEN, commits.OTHER_ROWS)
    for key, rows in CALLS:
        clerk.accept(key, rows)
    taken = clerk.take("third")
    if taken.entries:
        assert clerk.learn(taken, "third") == taken.version + 1
    after = bench.keys()
    check_whole(after)
    learned = unseal(after[redis_keys.bundle(A)][0], KEYRING, RECIPE, A)[1].estimator
    assert learned == ROWS, f"cut at byte {cut}"


def check_whole(held: dict[str, Any]) -> None:
    """State, bundle and inbox speak of the same moment."""
    state, bundle = held[redis_keys.state(A)][0], held[redis_keys.bundle(A)][0]
    header, _ = unseal(bundle, KEYRING, RECIPE, A)
    version, learned, accepted = (int(state[name]) for name in (b"version", b"learned", b"accepted"))
    assert state[b"digest"] == sha256(bundle).hexdigest().encode()
    assert (header.version, header.sequence, header.rows_seen) == (version, learned, int(state[b"rows_seen"]))
    cut, cut_bytes, half, _, total = map(int, state[b"kept"].split())
    there = held.get(redis_keys.inbox(A), ([], 0))[0]
    assert [name for name, _ in there] == [b"%d-0" % number for number in range(cut + 1, accepted + 1)]
    kept, waiting = there[: learned - cut], there[learned - cut :]
    assert cut <= half <= learned
    assert sum(len(fields[b"rows"]) + ENTRY_BYTES for _, fields in kept) == total - cut_bytes <= KEPT_MAX
    assert int(state[b"bytes"]) == sum(len(fields[b"rows"]) for _, fields in waiting)
    assert state[b"chain"] == (waiting[-1][1][b"chain"] if waiting else header.chain.encode())

"""Hearing of commits: the script that makes a bundle live tells every gateway.

Owns the subscription and the requests that wait for their rows to be learned (``Prefer: wait``); what is heard of
versions goes to the cache of predictions first. Never polls while the subscription lives; after a break it looks once.
Invariants: a waiter is told the first version heard of that holds its rows, or nothing; the cache hears of a version
before any waiter does, and of a break of the subscription before anything else is done about it.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import redis.asyncio
import structlog

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import LearningError, NotFoundError, UnavailableError
from keepfit.observability.outage import Outage
from keepfit.store.dead_letters import DeadLetters
from keepfit.store.models import Store

log = structlog.get_logger(__name__)

RECONNECT_PAUSE_S = 0.2
# A subscription whose ping was not answered for so long is given up; a Redis at its limits may be slow.
DEAF_S = 10.0
# Pings within the bound of staleness: one may come late, and the next is still in time.
PINGS = 4
# Version of a deleted model: the last of its generation.
DELETED = math.inf


class VersionObserver(Protocol):
    """Receiver of what the feed knows of versions: the prediction cache."""

    def observe_version(self, model_hash: str, generation: int, version: float) -> None:
        """Note that a model has this version."""

    def valid_until(self, until_s: float) -> None:
        """Note that all commits were received that precede a moment; cached data is valid until `until_s`."""

    def invalidate_all(self) -> None:
        """Note that commits may have been missed."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a model: all requests up to `learned` are in `version`, but for one put aside for `reason`.

    A negative `version` tells that the model was deleted.
    """

    generation: int
    version: int
    learned: int
    rows_seen: int
    reason: str = ""

    @property
    def order(self) -> tuple[int, float]:
        """What tells an earlier commit of a model from a later one; its deletion is the last of a generation."""
        return self.generation, self.version if self.version >= 0 else DELETED


@dataclass(slots=True)
class Watch:
    """What is heard of one model while somebody waits for it."""

    watchers: int = 0
    latest: Commit | None = None
    put_aside: dict[tuple[int, int], str] = field(default_factory=dict)
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, commit: Commit) -> None:
        """Take in a commit and wake those who wait."""
        # What was read of the model may reach us after the commit that came after it.
        if self.latest is None or commit.order >= self.latest.order:
            self.latest = commit
        if commit.reason:
            self.put_aside[commit.generation, commit.learned] = commit.reason
        self._wake()

    def end(self) -> None:
        """Tell those who wait that nothing more will be heard."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class CommitFeed:
    """One gateway's ear; `forget` is called with the hash of a model that was deleted.

    `staleness_s` is how long after its last sign of life the subscription vouches for what is in `cache`.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        store: Store,
        forget: Callable[[str], None],
        cache: VersionObserver,
        staleness_s: float,
    ) -> None:
        self._client = client
        self._store = store
        self._dead = DeadLetters(client)
        self._forget = forget
        self._cache = cache
        self._staleness_s = staleness_s
        self._watched: dict[str, Watch] = defaultdict(Watch)
        self._ended = False
        self._outage = Outage("store", "commits are not heard, and predictions not kept")

    @contextmanager
    def watch(self, model_hash: str) -> Iterator[Watch]:
        """Listen for commits of a model; begin before the rows are accepted, or their commit may be missed."""
        watch = self._watched[model_hash]
        watch.watchers += 1
        watch.ended = self._ended
        try:
            yield watch
        finally:
            watch.watchers -= 1
            if not watch.watchers:
                self._watched.pop(model_hash, None)

    async def read_forever(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                with redis_scripts.unavailable():
                    await self._listen()
            except UnavailableError as error:
                self._outage.begin(error)
            except Exception:
                # A gateway that lives and hears of no commit is worse than a dead one, so it listens on in any case.
                log.exception("commits_unreadable")
            await asyncio.sleep(RECONNECT_PAUSE_S)

    def end(self) -> None:
        """Send home all who wait, because the gateway stops; their rows are accepted and will be learned."""
        self._ended = True
        for watch in self._watched.values():
            watch.end()

    async def _listen(self) -> None:
        pool = self._client.connection_pool
        # Not redis-py's PubSub: that one connects again by itself, and says nothing of what it has missed.
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_command("SUBSCRIBE", redis_keys.COMMITS)
            await self._attend(connection)
        finally:
            self._cache.invalidate_all()
            await connection.disconnect(nowait=True)
            await pool.release(connection)

    async def _attend(self, connection: Any) -> None:
        """Take in what comes, with a ping now and then, until the connection breaks.

        An answered ping proves that all that was published before it was *sent* has been heard, so the bound of
        staleness counts from there, and nothing is vouched for before the first.
        """
        pinged_s, answered, heard_before = -math.inf, True, False
        while True:
            if answered and time.monotonic() >= pinged_s + self._staleness_s / PINGS:
                pinged_s, answered = time.monotonic(), False
                await connection.send_command("PING")
            due_s = pinged_s + (self._staleness_s / PINGS if answered else DEAF_S)
            message = await connection.read_response(timeout=max(due_s - time.monotonic(), 0), push_request=True)
            match message:
                case [b"message", _, data]:
                    self._hear(data)
                case b"PONG" | [b"pong", _]:
                    answered = True
                    self._outage.end()
                    self._cache.valid_until(pinged_s + self._staleness_s)
                    if not heard_before:
                        heard_before = True
                        await self.catch_up(list(self._watched))
                case None if not answered and time.monotonic() >= due_s:
                    raise UnavailableError(f"The subscription gave no sign of life for {DEAF_S:g} s.")

    async def catch_up(self, hashes: list[str]) -> None:
        """Learn what was committed while nobody listened, where it is sure.

        Of a model that ever put requests aside, the counters alone do not tell whether one request was learned.
        """
        models = await self._store.describe_many(hashes)
        # A stream that once held an entry is still there, empty.
        put_aside = (
            await redis_scripts.run_async(self._client, *(("EXISTS", redis_keys.dead(h)) for h in hashes))
            if hashes
            else []
        )
        for model, ever in zip(models, put_aside, strict=True):
            if model is not None and not ever and model.hash in self._watched:
                commit = Commit(model.generation, model.version, model.learned, model.rows_seen)
                self._cache.observe_version(model.hash, *commit.order)
                self._watched[model.hash].hear(commit)

    async def known(self, model_hash: str, generation: int, sequence: int) -> Commit | None:
        """Tell what became of a request that was accepted some time ago; None where it waits or nothing is sure.

        Raises
        ------
        LearningError
            If it was put aside.
        """
        model = await self._store.describe(model_hash)
        if model is None or model.generation != generation or model.learned < sequence:
            return None
        reason, unsure = await self._dead.fate(model_hash, generation, sequence)
        if reason is not None:
            raise refused(reason)
        self._cache.observe_version(model_hash, generation, model.version)
        return None if unsure else Commit(generation, model.version, model.learned, model.rows_seen)

    def _hear(self, data: bytes) -> None:
        model_hash, generation, version, learned, rows_seen, put_aside, reason = data.decode().split(" ", 6)
        why = reason if put_aside == "1" else ""
        commit = Commit(int(generation), int(version), int(learned), int(rows_seen), why)
        self._cache.observe_version(model_hash, *commit.order)
        if commit.version < 0:
            self._forget(model_hash)
        watch = self._watched.get(model_hash)
        if watch is not None:
            watch.hear(commit)


def refused(reason: str) -> LearningError:
    """Make the error for a request that was put aside."""
    return LearningError(f"The request was put aside, because it could not be learned: {reason.rstrip('.')}.")


async def learned(watch: Watch, generation: int, sequence: int, timeout_s: float) -> Commit | None:
    """Wait until the request `sequence` is learned; None if that takes longer than `timeout_s` seconds.

    Raises
    ------
    LearningError
        If it was put aside instead.
    NotFoundError
        If the model was deleted instead.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        reason = watch.put_aside.get((generation, sequence))
        if reason is not None:
            raise refused(reason)
        commit = watch.latest
        if commit is not None and commit.generation == generation:
            if commit.version < 0:
                raise NotFoundError("The model was deleted before it had learned these rows.")
            if commit.learned >= sequence:
                return commit
        if watch.ended:
            return None
        changed = watch.changed
        try:
            async with asyncio.timeout_at(deadline):
                await changed.wait()
        except TimeoutError:
            return None

"""The commit feed: a Redis subscription on which the commit script announces every commit to every gateway.

Owns the subscription and the requests that wait for their rows to be learned (``Prefer: wait``). Never polls while the
subscription lives; after an interruption it reads the state of the watched models once. Invariants: a waiter receives
the first announced version that contains its rows, or nothing; the prediction cache observes a version before any
waiter does, and an interruption of the subscription before anything else happens.
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

from keepfit.backends import redis_cluster, redis_keys, redis_scripts
from keepfit.backends.backoff import Backoff
from keepfit.backends.redis_cluster import Source
from keepfit.errors import LearningError, NotFoundError, UnavailableError
from keepfit.observability.outage import Outage
from keepfit.store.dead_letters import DeadLetters
from keepfit.store.models import Store

log = structlog.get_logger(__name__)

RECONNECT_PAUSE_S, RECONNECT_PAUSE_S_MAX = 0.2, 0.5
# A subscription is closed if a ping has no reply for this long; a Redis under full load may be slow.
PING_TIMEOUT_S = 10.0
# Pings within the staleness bound: if one is late, the next is still in time.
PINGS = 4
SCORERS = redis_keys.SCORERS.encode()
# Version of a deleted model: the last of its generation.
DELETED = math.inf


class ScorerObserver(Protocol):
    """Receiver of the scorers of new versions."""

    def publish(self, model_hash: str, version: tuple[int, int], data: bytes) -> None:
        """Note that a model has this generation and version, and the encoded scorer of it."""


class VersionObserver(Protocol):
    """Receiver of versions and of interruptions: the prediction cache."""

    def observe_version(self, model_hash: str, generation: int, version: float) -> None:
        """Note that a model has this version."""

    def valid_until(self, until_s: float) -> None:
        """Note that the subscription is alive: what is cached is valid until `until_s` (`time.monotonic()`)."""

    def invalidate_all(self) -> None:
        """Note that the subscription was interrupted: commits may have been missed."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a model: `version` contains all requests up to the sequence `learned`.

    If `reason` is not empty, request `learned` was put aside for it. A negative `version` announces that the model was
    deleted.
    """

    generation: int
    version: int
    learned: int
    rows_seen: int
    reason: str = ""

    @property
    def order(self) -> tuple[int, float]:
        """Sort key of the commits of a model; its deletion is the last of a generation."""
        return self.generation, self.version if self.version >= 0 else DELETED


@dataclass(slots=True)
class Watch:
    """The commits of one model that were observed while requests wait for it."""

    watchers: int = 0
    latest: Commit | None = None
    put_aside: dict[tuple[int, int], str] = field(default_factory=dict)
    closed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def observe(self, commit: Commit) -> None:
        """Record a commit and wake the waiters."""
        # A state that was read from Redis may arrive after the commit that followed it.
        if self.latest is None or commit.order >= self.latest.order:
            self.latest = commit
        if commit.reason:
            self.put_aside[commit.generation, commit.learned] = commit.reason
        self._wake()

    def close(self) -> None:
        """Release the waiters: no more commits will be observed."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class CommitFeed:
    """The subscription of one gateway.

    `on_deleted` is called with the hash of a deleted model. `staleness_s` is for how long after its last reply to a
    ping the subscription guarantees that `observer` has all versions. `scorers` gets the scorers that are published.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        store: Store,
        on_deleted: Callable[[str], None],
        observer: VersionObserver,
        staleness_s: float,
        scorers: ScorerObserver | None = None,
    ) -> None:
        self._client = client
        self._store = store
        self._dead_letters = DeadLetters(client)
        self._on_deleted = on_deleted
        self._observer = observer
        self._scorers = scorers
        self._staleness_s = staleness_s
        self._watches: dict[str, Watch] = defaultdict(Watch)
        self._closed = False
        # Until when each source guarantees that its versions are known.
        self._valid_s: dict[Source, float] = {}
        # Requests put aside as dead letters, of all models, that were announced.
        self.put_aside = 0
        self._backoff = Backoff(RECONNECT_PAUSE_S, RECONNECT_PAUSE_S_MAX)
        self._outage = Outage("store", "commits are not received, and predictions not cached")

    @contextmanager
    def watch(self, model_hash: str) -> Iterator[Watch]:
        """Observe the commits of a model; begin before its rows are accepted, or their commit may be missed."""
        watch = self._watches[model_hash]
        watch.watchers += 1
        watch.closed = self._closed
        try:
            yield watch
        finally:
            watch.watchers -= 1
            if not watch.watchers:
                self._watches.pop(model_hash, None)

    async def wait(
        self, watch: Watch, model_hash: str, generation: int, sequence: int, timeout_s: float, *, repeated: bool
    ) -> Commit | None:
        """Wait until the request `sequence` is learned; return None if that takes longer than `timeout_s` seconds.

        `repeated` says that the request may repeat an earlier one with the same Idempotency-Key: that one may have
        been learned long ago, and no commit will announce it again. Raises as :func:`wait_until_learned`.
        """
        commit = await self._find(model_hash, generation, sequence) if repeated else None
        return commit or await wait_until_learned(watch, generation, sequence, timeout_s)

    def close_watches(self) -> None:
        """Release all waiters on shutdown; their rows are accepted and will be learned."""
        self._closed = True
        for watch in self._watches.values():
            watch.close()

    async def read_forever(self) -> None:
        """Subscribe, and subscribe again after each interruption, until cancelled."""
        while True:
            try:
                with redis_scripts.unavailable():
                    await self._subscribe()
            except UnavailableError as error:
                self._outage.begin(error)
            except Exception:
                # A gateway that runs and receives no commits is worse than a dead one, so it subscribes again.
                log.exception("commits_unreadable")
            await asyncio.sleep(self._backoff.next_s())

    async def _subscribe(self) -> None:
        """Read from all sources until one of them breaks."""
        self._valid_s = {}
        with redis_scripts.unavailable():
            sources = await redis_cluster.sources(self._client)
        tasks = [asyncio.create_task(self._listen(source, sources)) for source in sources]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            self._observer.invalidate_all()
        raise next(end for end in ended if isinstance(end, Exception))

    async def _listen(self, source: Source, sources: list[Source]) -> None:
        pool: Any = source.client.connection_pool
        # Not redis-py's PubSub: it reconnects silently, and does not report what it missed.
        connection = await pool.get_connection()
        try:
            # On one connection: a scorer comes before the version that it is of.
            scorers = [] if self._scorers is None else [redis_keys.SCORERS]
            await connection.send_command("SUBSCRIBE", redis_keys.COMMITS, *scorers)
            await self._read(connection, source, sources)
        finally:
            await connection.disconnect(nowait=True)
            await pool.release(connection)

    async def _read(self, connection: Any, source: Source, sources: list[Source]) -> None:
        """Read messages, with a ping at intervals, until the connection breaks.

        The reply to a ping proves that every message published before the ping was *sent* has been received. So the
        staleness bound counts from the moment of sending, and nothing is valid before the first reply. A cluster passes
        messages between its nodes at any time later, so each node is a source, of the models that it has.
        """
        pinged_s, answered = -math.inf, True
        while True:
            if answered and time.monotonic() >= pinged_s + self._staleness_s / PINGS:
                pinged_s, answered = time.monotonic(), False
                await connection.send_command("PING")
            due_s = pinged_s + (self._staleness_s / PINGS if answered else PING_TIMEOUT_S)
            message = await connection.read_response(timeout=max(due_s - time.monotonic(), 0), push_request=True)
            match message:
                case [b"message", channel, data]:
                    if not source.has(data.partition(b" ")[0]):
                        pass
                    elif channel == SCORERS and self._scorers is not None:
                        _receive_scorer(self._scorers, data)
                    else:
                        self._receive(data)
                case b"PONG" | [b"pong", _]:
                    answered = True
                    await self._note_pong(source, sources, pinged_s)
                case None if not answered and time.monotonic() >= due_s:
                    raise UnavailableError(f"The subscription did not reply to a ping within {PING_TIMEOUT_S:g} s.")

    async def _note_pong(self, source: Source, sources: list[Source], pinged_s: float) -> None:
        """Extend what is valid to the oldest of the pings that all sources have answered."""
        is_new = source not in self._valid_s
        self._valid_s[source] = pinged_s + self._staleness_s
        if len(self._valid_s) < len(sources):
            return
        if not source.is_current():
            raise UnavailableError("The nodes of the cluster are others than before.")
        self._backoff.reset()
        self._outage.end()
        self._observer.valid_until(min(self._valid_s.values()))
        if is_new:
            await self.catch_up(list(self._watches))

    async def catch_up(self, hashes: list[str]) -> None:
        """Observe the current state of models, for commits that were missed during an interruption.

        Models that ever put a request aside are left out: for them the counters alone do not prove that one particular
        request was learned.
        """
        if not hashes:
            return
        models = await self._store.describe_many(hashes)
        # A stream that ever had an entry still exists, if only empty; after the model was idle its state counts those.
        streams = (("EXISTS", redis_keys.dead(h)) for h in hashes)
        counts = (("HEXISTS", redis_keys.state(h), "removed") for h in hashes)
        found = await redis_scripts.run_async(self._client, *streams, *counts)
        for model, *ever in zip(models, found[: len(hashes)], found[len(hashes) :], strict=True):
            if model is not None and not any(ever) and model.hash in self._watches:
                commit = Commit(model.generation, model.version, model.learned, model.rows_seen)
                self._observer.observe_version(model.hash, *commit.order)
                self._watches[model.hash].observe(commit)

    async def _find(self, model_hash: str, generation: int, sequence: int) -> Commit | None:
        """Return the state of the model if it proves that a request was learned; None if the request may be pending.

        Raises
        ------
        LearningError
            If the request was put aside.
        """
        model = await self._store.describe(model_hash)
        if model is None or model.generation != generation or model.learned < sequence:
            return None
        reason, unsure = await self._dead_letters.find_reason(model_hash, generation, sequence)
        if reason is not None:
            raise _put_aside_error(reason)
        self._observer.observe_version(model_hash, generation, model.version)
        return None if unsure else Commit(generation, model.version, model.learned, model.rows_seen)

    def _receive(self, data: bytes) -> None:
        model_hash, generation, version, learned, rows_seen, put_aside, reason = data.decode().split(" ", 6)
        commit = Commit(int(generation), int(version), int(learned), int(rows_seen), reason if put_aside == "1" else "")
        self._observer.observe_version(model_hash, *commit.order)
        self.put_aside += put_aside == "1"
        if commit.version < 0:
            self._on_deleted(model_hash)
        watch = self._watches.get(model_hash)
        if watch is not None:
            watch.observe(commit)


def _receive_scorer(scorers: ScorerObserver, data: bytes) -> None:
    model_hash, generation, version, encoded = data.split(b" ", 3)
    scorers.publish(model_hash.decode(), (int(generation), int(version)), encoded)


def _put_aside_error(reason: str) -> LearningError:
    return LearningError(f"The request could not be learned and was put aside: {reason.rstrip('.')}.")


async def wait_until_learned(watch: Watch, generation: int, sequence: int, timeout_s: float) -> Commit | None:
    """Wait until the request `sequence` is learned; return None if that takes longer than `timeout_s` seconds.

    Raises
    ------
    LearningError
        If the request was put aside.
    NotFoundError
        If the model was deleted.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        reason = watch.put_aside.get((generation, sequence))
        if reason is not None:
            raise _put_aside_error(reason)
        commit = watch.latest
        if commit is not None and commit.generation == generation:
            if commit.version < 0:
                raise NotFoundError("The model was deleted before it had learned these rows.")
            if commit.learned >= sequence:
                return commit
        if watch.closed:
            return None
        changed = watch.changed
        try:
            async with asyncio.timeout_at(deadline):
                await changed.wait()
        except TimeoutError:
            return None

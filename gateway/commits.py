"""Hearing of commits: the script that makes a bundle live tells every gateway.

Owns the subscription and the requests that wait for their rows to be learned (``Prefer: wait``). Never polls while the
subscription lives; after it broke, it looks once. Invariant: a waiter is told the first version heard of that holds its
rows, or nothing.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import redis.asyncio
import structlog

from keepfit import keys, scripts
from keepfit.errors import LearningError, NotFoundError, UnavailableError
from keepfit.store import Store

log = structlog.get_logger(__name__)

RECONNECT_PAUSE_S = 0.2


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
        return self.generation, self.version if self.version >= 0 else math.inf


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


class Commits:
    """One gateway's ear; `forget` is called with the hash of a model that was deleted."""

    def __init__(self, client: redis.asyncio.Redis, store: Store, forget: Callable[[str], None]) -> None:
        self._client = client
        self._store = store
        self._forget = forget
        self._watched: dict[str, Watch] = defaultdict(Watch)
        self._ended = False

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
                with scripts.unavailable():
                    await self._listen()
            except UnavailableError as error:
                log.warning("commits_unheard", reason=str(error))
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
        async with self._client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(keys.COMMITS)
            await self.catch_up(list(self._watched))
            while True:
                message = await pubsub.get_message(timeout=None)
                if message is not None:
                    self._hear(message["data"])

    async def catch_up(self, hashes: list[str]) -> None:
        """Learn what was committed while nobody listened, where it is sure.

        Of a model that ever put requests aside, the counters alone do not tell whether one request was learned.
        """
        models = await self._store.describe_many(hashes)
        put_aside = await scripts.run_async(self._client, *(("XLEN", keys.dead(h)) for h in hashes)) if hashes else []
        for model, count in zip(models, put_aside, strict=True):
            if model is not None and not count and model.hash in self._watched:
                commit = Commit(model.generation, model.version, model.learned, model.rows_seen)
                self._watched[model.hash].hear(commit)

    def _hear(self, data: bytes) -> None:
        model_hash, generation, version, learned, rows_seen, put_aside, reason = data.decode().split(" ", 6)
        if version == "-1":
            self._forget(model_hash)
        watch = self._watched.get(model_hash)
        if watch is not None:
            why = reason if put_aside == "1" else ""
            watch.hear(Commit(int(generation), int(version), int(learned), int(rows_seen), why))


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
            raise LearningError(f"The rows were put aside, because the estimator refused them: {reason.rstrip('.')}.")
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

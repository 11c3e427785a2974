"""Garbage collection: what is deleted, what stays, and that no paused or killed process makes it delete a good blob."""

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database
from structlog.testing import capture_logs

from keepfit.backends.blobs import Entry, LocalStorage, S3Storage
from keepfit.errors import ConflictError, UnavailableError
from keepfit.history import Document, Registry
from keepfit.history.registry import snapshot_upkeep
from keepfit.restore import restorer as restores
from keepfit.security import envelope
from keepfit.settings import Settings
from keepfit.snapshots import garbage
from keepfit.snapshots import save as saving
from keepfit.snapshots.garbage import HASH_END, Collected
from keepfit.snapshots.retention import DAY_S, Rules
from keepfit.snapshots.save import path_of
from tests.factories import Workshop, workshop
from tests.faults import acts

# Everything unfinished counts as abandoned at once.
HARSH = Rules(grace_s=-1)

SAVING = ["snapshot.read", "snapshot.begun", "snapshot.stored", "snapshot.committed", "snapshot.noted"]


class Killed(BaseException):
    """The process is killed here."""


@pytest.fixture(params=["local", "s3"])
async def shop(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop with each kind of storage."""
    if request.param == "s3":
        settings = settings.model_copy(update={"snapshot_url": request.getfixturevalue("s3_url")})
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
async def local(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop with a local folder, for tests that do not depend on the kind of storage."""
    async with workshop(settings) as opened:
        yield opened


async def collect(shop: Workshop, rules: Rules = HARSH, now_s: float | None = None) -> Collected:
    """Collect the garbage of all models."""
    return await garbage.collect(shop.registry, shop.storage, "", HASH_END, rules, now_s or time.time())


async def save(shop: Workshop, model_hash: str) -> Document | None:
    """Save a model."""
    return await saving.save(shop.resources, model_hash)


async def aged(shop: Workshop, database: Database[Document], model_hash: str, *ages_days: float) -> list[Document]:
    """Let a model learn and save it once per age (days); set the age of each snapshot."""
    documents = []
    for age_days in ages_days:
        await shop.learn(model_hash)
        document = await save(shop, model_hash)
        assert document is not None
        timestamp = time.time() - age_days * DAY_S
        database.history.update_one({"attempt": document["attempt"]}, {"$set": {"timestamp": timestamp}})
        documents.append({**document, "timestamp": timestamp})
    return documents


def die(*args: Any) -> None:
    """Kill the process at this step."""
    raise Killed


def blobs(shop: Workshop) -> set[str]:
    """Return the paths of all blobs in the storage."""
    return {entry.path for entry in shop.storage.list("", HASH_END)}


async def check_blobs(shop: Workshop, model_hash: str | None = None) -> None:
    """Check that each committed document (of a model) has its blob."""
    for document in await shop.registry.documents(None, model_hash, 10_000):
        assert envelope.digest_of(shop.storage.get(path_of(document)) or b"") == document["sha256"]


async def test_an_abandoned_intent_is_deleted_with_its_blob(
    shop: Workshop, database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent and blob of a killed snapshotter stay until the grace period is over, then both are deleted."""
    model_hash = await shop.learned()
    with monkeypatch.context() as patch:
        patch.setattr(shop.registry, "commit_many", die)
        with pytest.raises(Killed):
            await save(shop, model_hash)
    assert len(blobs(shop)) == 1
    assert await collect(shop, Rules(grace_s=600)) == Collected()
    assert [found["status"] for found in database.history.find()] == ["pending"]
    assert await collect(shop) == Collected(aborted=1)
    assert (blobs(shop), database.history.count_documents({})) == (set(), 0)
    document = await save(shop, model_hash)
    assert document is not None
    assert blobs(shop) == {path_of(document)}
    assert await collect(shop) == Collected()


async def test_a_blob_without_a_document_is_deleted(shop: Workshop, database: Database[Document]) -> None:
    """A blob whose intent another snapshotter took over is deleted after the grace period; others stay."""
    model_hash = await shop.learned()
    document = await save(shop, model_hash)
    assert document is not None
    lost = f"{model_hash}/1/1-{document['sha256']}-0123456789abcdef"
    foreign = f"{'0' * 64}/1/1-{document['sha256']}"
    shop.storage.put(lost, b"lost")
    shop.storage.put(foreign, b"foreign")
    assert await collect(shop, Rules(grace_s=600)) == Collected()
    assert await collect(shop) == Collected(unknown=1)
    assert blobs(shop) == {path_of(document), foreign}


async def test_blobs_of_another_history_are_not_deleted(shop: Workshop, mongo_url: str) -> None:
    """With a wrong or empty MongoDB no blob counts as unknown, and the error says what to do."""
    model_hash = await shop.learned()
    document = await save(shop, model_hash)
    assert document is not None
    assert await collect(shop) == Collected()
    async with Registry(f"{mongo_url}other") as other:
        await other.register(model_hash, '{"type":"shoes"}', "{}")
        with pytest.raises(ConflictError, match=f"{shop.storage.url} holds the snapshots of another history"):
            await garbage.collect(other, shop.storage, "", HASH_END, HARSH, time.time())
    assert blobs(shop) == {path_of(document)}


async def test_unfinished_files_are_deleted(shop: Workshop) -> None:
    """Temporary files of killed writers and unfinished uploads are deleted after the grace period."""
    model_hash = await shop.learned()
    document = await save(shop, model_hash)
    assert document is not None
    path = f"{model_hash}/1/tmpabc"
    if isinstance(shop.storage, LocalStorage):
        (Path(shop.settings.snapshot_url.removeprefix("file://")) / path).write_bytes(b"half")
    else:
        assert isinstance(shop.storage, S3Storage)
        bucket, _, prefix = shop.storage.url.removeprefix("s3://").partition("/")
        shop.storage._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{prefix}/{path}")
    assert [entry.path for entry in shop.storage.list("", HASH_END) if entry.unfinished] == [path]
    assert await collect(shop, Rules(grace_s=600)) == Collected()
    assert await collect(shop) == Collected(unfinished=1)
    assert blobs(shop) == {path_of(document)}


async def test_expired_snapshots_are_deleted(shop: Workshop, database: Database[Document]) -> None:
    """Expired snapshots are deleted from history and storage; the newest stays and can be restored."""
    model_hash = await shop.make()
    documents = await aged(shop, database, model_hash, 90, 80, 3.02, 3.01, 0)
    rules = Rules(grace_s=-1, all_s=60)
    collected = await collect(shop, rules)
    # The third and the fourth are of the same day, unless midnight is between them.
    kept = [*documents[2:3], *documents[3:]] if collected.expired == 2 else documents[3:]
    assert collected == Collected(expired=5 - len(kept))
    assert await shop.registry.documents() == kept[::-1]
    assert blobs(shop) == set(map(path_of, kept))
    assert await collect(shop, rules) == Collected()
    shop.lose(model_hash)
    restored = await restores.restore(shop.resources, model_hash)
    assert restored.document == documents[-1]


async def test_the_only_remaining_snapshot_is_verified_first(shop: Workshop, database: Database[Document]) -> None:
    """If the newest snapshot is damaged it is marked and logged, and the one before it stays."""
    model_hash = await shop.make()
    first, second, third = await aged(shop, database, model_hash, 90, 80, 70)
    data = bytearray(shop.storage.get(path_of(third)) or b"")
    data[len(data) // 2] ^= 1
    shop.storage.put(path_of(third), bytes(data))
    with capture_logs() as logs:
        assert await collect(shop) == Collected()
    assert [(one["event"], one["version"]) for one in logs] == [("snapshot_corrupt", 3)]
    # Now the second is the newest good one, and the damaged one is expired.
    assert await collect(shop) == Collected(expired=2)
    assert await shop.registry.documents() == [second]
    assert first != second


async def test_snapshots_of_a_deleted_model_expire_by_the_rules(local: Workshop, database: Database[Document]) -> None:
    """A deletion deletes no snapshot; the last one expires a month later."""
    model_hash = await local.make()
    documents = await aged(local, database, model_hash, 90, 80)
    await local.registry.unregister(model_hash)
    await local.store.delete(model_hash)
    assert await collect(local) == Collected(expired=1)
    assert await local.registry.documents() == documents[1:]
    assert await collect(local, now_s=time.time() + 31 * DAY_S) == Collected(expired=1)
    assert (await local.registry.documents(), blobs(local)) == ([], set())


async def test_a_pass_deletes_a_bounded_number_of_documents(
    local: Workshop, database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there is more garbage than one pass deletes, the next passes continue with the same models."""
    monkeypatch.setattr(garbage, "GARBAGE_MAX", 2)
    model_hash = await local.make()
    documents = await aged(local, database, model_hash, 90, 89, 88, 87, 86, 85)
    left = []
    for _ in range(3):
        collected, reason = await local.snapshotter.collect_garbage()
        left.append((collected.more, reason, database.history.count_documents({})))
    assert left == [(True, "", 4), (True, "", 2), (False, "", 1)]
    assert blobs(local) == {path_of(documents[-1])}


async def test_without_storage_no_document_is_deleted(
    local: Workshop, database: Database[Document], tmp_path: Path
) -> None:
    """If blobs cannot be deleted their documents stay, hidden, and both are deleted when the storage is back."""
    model_hash = await local.make()
    documents = await aged(local, database, model_hash, 90, 80, 2, 0)
    (tmp_path / "snapshots").rename(tmp_path / "away")
    with pytest.raises(UnavailableError, match="snapshots does not exist"):
        await collect(local)
    assert await local.registry.documents() == documents[:1:-1]
    assert database.history.count_documents({"status": "aborted"}) == 2
    (tmp_path / "away").rename(tmp_path / "snapshots")
    assert await collect(local) == Collected(aborted=2)
    assert database.history.count_documents({}) == 2
    assert blobs(local) == set(map(path_of, documents[2:]))


async def test_a_snapshot_that_expires_while_it_is_read_is_not_marked_corrupt(
    local: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore whose snapshot expires at that moment asks to be tried again."""
    model_hash = await local.learned()
    await save(local, model_hash)
    local.lose(model_hash)
    loop, get = asyncio.get_running_loop(), local.storage.get

    async def expire() -> None:
        await snapshot_upkeep.abort(local.registry, await snapshot_upkeep.list_documents(local.registry, "", HASH_END))

    def get_late(path: str) -> bytes | None:
        asyncio.run_coroutine_threadsafe(expire(), loop).result()
        local.storage.delete([Entry(path)])
        return get(path)

    monkeypatch.setattr(local.storage, "get", get_late)
    with capture_logs() as logs, pytest.raises(UnavailableError, match="changed meanwhile; try again"):
        await restores.restore(local.resources, model_hash)
    assert logs == []


# Real processes.


@pytest.mark.parametrize("action", ["kill", "stop"])
@pytest.mark.parametrize("point", SAVING)
async def test_a_snapshotter_may_be_killed_or_paused_at_any_step(local: Workshop, point: str, action: str) -> None:
    """With concurrent collection that treats intents as abandoned at once, no document is ever without its blob."""
    model_hash = await local.learned()
    first = await save(local, model_hash)
    assert first is not None
    await local.learn(model_hash)
    with acts.child(f"{point}:1:{action}", acts.save, local.settings) as saving_one:
        while saving_one.is_alive() and state(saving_one.pid) != "T":
            await collect(local)
            await check_blobs(local)
        await collect(local)
        if action == "stop":
            assert saving_one.pid is not None
            os.kill(saving_one.pid, signal.SIGCONT)
            await asyncio.to_thread(saving_one.join, 60)
        assert saving_one.exitcode == (0 if action == "stop" else -signal.SIGKILL)
    # Earlier snapshots are there, and the next pass saves the rest.
    await check_blobs(local)
    assert first in await local.registry.documents()
    await save(local, model_hash)
    newest, before = await local.registry.documents()
    assert (local.storage.get(path_of(newest)), before) == (local.data(model_hash), first)
    await collect(local)
    assert blobs(local) == {path_of(newest), path_of(first)}


def state(pid: int | None) -> str:
    """Return the state of a process from the kernel: T if it is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


async def test_many_snapshotters_at_once_do_no_harm(local: Workshop) -> None:
    """Real processes, each of which treats the intents of the others as abandoned, save every model."""
    hashes = [await local.learned() for _ in range(40)]
    harsh = local.settings.model_copy(update={"garbage_grace_s": 0, "retention_all_s": 0})
    with ExitStack() as running:
        children = [running.enter_context(acts.child("", acts.save, harsh)) for _ in range(3)]
        while any(one.is_alive() for one in children):
            await check_blobs(local)
        assert [one.exitcode for one in children] == [0, 0, 0]
    await local.snapshotter.run_pass()
    await check_blobs(local)
    documents = {document["hash"]: document for document in await local.registry.documents(limit=1000)}
    assert documents.keys() == set(hashes)
    assert all(documents[one]["sha256"] == envelope.digest_of(local.data(one)) for one in hashes)
    assert await local.store.changed() == []


# Interleavings: steps of a saver, of one that takes over, and of the collector, in every order.


class Turns:
    """Lets named actors take their steps in a given order; actors without steps in the order are not held."""

    def __init__(self, order: tuple[str, ...]) -> None:
        self._order = list(order)
        self._changed = asyncio.Condition()
        self._finished: set[str] = set()

    async def step(self, actor: str) -> None:
        """Wait until it is `actor`'s turn."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._order or self._order[0] == actor)
            if self._order:
                self._order.pop(0)
                self._skip()
                self._changed.notify_all()

    async def finish(self, actor: str) -> None:
        """Remove a finished actor from the order."""
        async with self._changed:
            self._finished.add(actor)
            self._skip()
            self._changed.notify_all()

    def _skip(self) -> None:
        while self._order and self._order[0] in self._finished:
            self._order.pop(0)


class Stepping:
    """A registry or storage, each call of which is a step of an actor."""

    def __init__(self, inner: object, turns: Turns, actor: str, loop: asyncio.AbstractEventLoop) -> None:
        self._inner, self._turns, self._actor, self._loop = inner, turns, actor, loop

    def __getattr__(self, name: str) -> Any:
        """Return a call that waits for its turn, in a coroutine or a thread; return plain values unchanged."""
        found = getattr(self._inner, name)
        if name in ("uri", "url", "collection", "timeline"):
            return found
        if asyncio.iscoroutinefunction(found):

            async def later(*args: Any) -> Any:
                await self._turns.step(self._actor)
                return await found(*args)

            return later

        def in_thread(*args: Any) -> Any:
            asyncio.run_coroutine_threadsafe(self._turns.step(self._actor), self._loop).result()
            return found(*args)

        return in_thread


async def run_actor(turns: Turns, actor: str, act: Awaitable[object]) -> None:
    """Run an actor."""
    try:
        await act
    except UnavailableError:
        # Its blob was deleted before it was verified.
        pass
    finally:
        await turns.finish(actor)


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the collector's calls with a stepping registry steps of their own."""

    def stepped(real: Callable[..., Any]) -> Callable[..., Any]:
        async def later(history: Any, *args: Any) -> Any:
            if isinstance(history, Stepping):
                await history._turns.step(history._actor)
            return await real(history, *args)

        return later

    for name in ("list_documents", "abort", "list_aborted", "delete_aborted"):
        monkeypatch.setattr(snapshot_upkeep, name, stepped(getattr(snapshot_upkeep, name)))


async def play(shop: Workshop, model_hash: str, order: tuple[str, ...]) -> None:
    """Run savers and collectors of one model with their steps in an order."""
    turns, loop = Turns(order), asyncio.get_running_loop()

    def act(actor: str) -> Awaitable[object]:
        registry: Any = Stepping(shop.registry, turns, actor, loop)
        storage: Any = Stepping(shop.storage, turns, actor, loop)
        if actor.startswith("collect"):
            return garbage.collect(registry, storage, model_hash[:-1], model_hash, HARSH, time.time())
        return saving.save(replace(shop.resources, registry=registry, storage=storage), model_hash)

    async with asyncio.timeout(60):
        await asyncio.gather(*(run_actor(turns, actor, act(actor)) for actor in sorted(set(order))))


def orders() -> list[tuple[str, ...]]:
    """Return all orders of one saver and one collector, and a sample of two savers and of two collectors."""
    save_steps, collect_steps = ["save"] * 3, ["collect"] * 6
    places = itertools.combinations(range(9), 3)
    both = [tuple("save" if at in chosen else "collect" for at in range(9)) for chosen in places]
    chance = random.Random(11)
    more = []
    for third in (["save again"] * 3, ["collect again"] * 6):
        for _ in range(15):
            steps = save_steps + collect_steps + third
            chance.shuffle(steps)
            more.append(tuple(steps))
    return both + more


async def test_no_order_of_steps_loses_a_blob(local: Workshop, stepping: None) -> None:
    """In every order of steps each committed document has its blob, and the next save succeeds."""
    for order in orders():
        model_hash = await local.learned()
        await play(local, model_hash, order)
        await check_blobs(local, model_hash)
        if model_hash in await local.store.changed():
            await save(local, model_hash)
        document = await local.registry.newest(model_hash, 1)
        assert document is not None, order
        assert local.storage.get(path_of(document)) == local.data(model_hash), order
        await garbage.collect(local.registry, local.storage, model_hash[:-1], model_hash, HARSH, time.time())
        left = {entry.path for entry in local.storage.list(model_hash[:-1], model_hash)}
        assert left == {path_of(document)}, order

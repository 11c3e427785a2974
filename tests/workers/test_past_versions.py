"""Questions about snapshots: one read and one computation for all of a claim, beside everything else."""

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from keepfit.backends import redis_keys
from keepfit.errors import EnvelopeError
from keepfit.history import Document
from keepfit.jobs import messages
from keepfit.jobs.messages import PastVersion, WorkerReply, WorkerRequest
from keepfit.model.bundle import Bundle
from keepfit.restore import reader
from keepfit.rows.shaping import shape
from keepfit.snapshots.save import path_of
from keepfit.store.commit import Harm, Loaded
from keepfit.store.unloadable import DEATHS_MAX
from keepfit_workers import sweep
from keepfit_workers.activity import LOAD, Doing
from keepfit_workers.bundle_cache import BundleCache
from keepfit_workers.context import WorkerContext
from keepfit_workers.past_bundles import KEPT_MAX, PastBundle, PastBundles
from tests.factories import SHOES, Workshop, claimed_entry
from tests.workers.two_leases import FIRST, SECOND, TTL_S, answer, claim, leased, push, replies_of


class Killed(BaseException):
    """The death of a worker, which no handler of errors sees."""


class Saved:
    """A model with snapshots of the versions 1 and 2, live at version 3."""

    def __init__(self, shop: Workshop, model_hash: str) -> None:
        self.shop, self.hash = shop, model_hash
        self.documents: dict[int, Document] = {}
        self.predictions: dict[int, list[Any]] = {}

    async def build(self) -> "Saved":
        """Let the model learn, and save it twice."""
        for version in (1, 2, 3):
            await self.shop.learn(self.hash, SHOES, [float(version), 2.0, 3.0])
            self.predictions[version] = await self.shop.predict(self.hash)
            if version < 3:
                await self.shop.snapshotter.run_pass()
                document = await self.shop.registry.newest(self.hash, 1)
                assert document is not None
                self.documents[version] = document
        self.model = await self.shop.model(self.hash)
        self.rows = shape(self.model.recipe, SHOES, learning=False)
        return self

    def question(self, number: int, version: int, /, **changes: Any) -> WorkerRequest:
        """Return a question about a version."""
        if version == self.model.version:
            return WorkerRequest(number, "g", self.hash, "predict", self.model.generation, self.rows)
        document = self.documents[version]
        past = PastVersion(document["generation"], version, document["sha256"])
        past = msgspec.structs.replace(past, **changes)
        return WorkerRequest(number, "g", self.hash, "past", past.generation, self.rows, past=past)


@pytest.fixture
async def saved(shop: Workshop) -> Saved:
    """Return a model with two snapshots."""
    return await Saved(shop, await shop.make()).build()


async def ask(context: WorkerContext, *requests: WorkerRequest) -> dict[int, WorkerReply]:
    """Answer the questions of one claim."""
    entries = [claimed_entry(messages.encode(each)) for each in requests]
    return await asyncio.to_thread(answer, context, entries)


class Reads:
    """Counts the reads of snapshots, and holds them up until the gate is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.began, self.opened = 0, threading.Event(), threading.Event()
        self.opened.set()
        self._read = reader.read_bundle
        monkeypatch.setattr(reader, "read_bundle", self)

    def __call__(self, *given: Any) -> bytes:
        """Read a bundle."""
        self.count += 1
        self.began.set()
        assert self.opened.wait(60)
        return self._read(*given)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Count the reads of snapshots."""
    return Reads(monkeypatch)


async def test_questions_about_one_version_are_one_computation(
    saved: Saved, context: WorkerContext, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot is read once for all questions of a claim, computed at once, and kept for the next ones."""
    calls: list[int] = []
    predict = Bundle.predict

    def counted(bundle: Bundle, rows: Any) -> list[Any]:
        calls.append(rows.n)
        return predict(bundle, rows)

    monkeypatch.setattr(Bundle, "predict", counted)
    asked = [saved.question(number, 1 + number % 3) for number in range(9)]
    before = saved.shop.data(saved.hash)
    for _ in range(2):
        replies = await ask(context, *asked)
        for number in range(9):
            version, reply = 1 + number % 3, replies[number]
            assert reply.error is None
            assert (reply.version, reply.rows_seen) == (version, 3 * version)
            assert reply.result == saved.predictions[version]
    assert reads.count == 2
    # Three questions of three rows each, once for every version in each claim.
    assert [count for count in calls if count > 1] == [9] * 6
    assert (await saved.shop.model(saved.hash), saved.shop.data(saved.hash)) == (saved.model, before)


async def test_a_slow_storage_holds_up_nothing_else(
    saved: Saved, context: WorkerContext, other_worker: WorkerContext, reads: Reads
) -> None:
    """While one worker reads a snapshot, replies that are ready are sent, and another answers for the live model."""
    reads.opened.clear()
    with leased(context, FIRST), leased(other_worker, SECOND):
        first = [claimed_entry(messages.encode(saved.question(*each))) for each in ((1, 1), (2, 3))]
        reading = asyncio.create_task(asyncio.to_thread(answer, context, first))
        assert await asyncio.to_thread(reads.began.wait, 60)
        assert replies_of(context).keys() == {2}
        # Claimed before the first worker marked the snapshot: it is put back, and not claimed while that reads.
        late = [claimed_entry(messages.encode(saved.question(3, 1)))]
        await asyncio.to_thread(answer, other_worker, late)
        push(context, saved.question(4, 1))
        assert claim(other_worker, SECOND) == []
        push(context, saved.question(5, 3))
        replies = await asyncio.to_thread(answer, other_worker, claim(other_worker, SECOND))
        assert replies.keys() == {2, 5}
        assert not reading.done()
        reads.opened.set()
        await reading
        while left := claim(other_worker, SECOND):
            await asyncio.to_thread(answer, other_worker, left)
    replies = replies_of(context)
    assert {number: (each.error, each.version) for number, each in replies.items()} == {
        1: (None, 1), 2: (None, 3), 3: (None, 1), 4: (None, 1), 5: (None, 3),
    }  # fmt: skip
    assert context.queue.hlen(redis_keys.RESTORES) == 0


async def test_what_is_not_exactly_the_snapshot_is_an_error(saved: Saved, context: WorkerContext, reads: Reads) -> None:
    """Another digest, generation or version, a damaged blob, or a model that was created again: errors, no answer."""
    for number, changes in enumerate(({"sha256": "0" * 64}, {"generation": 2}, {"version": 9})):
        reply = (await ask(context, saved.question(number, 1, **changes)))[number]
        assert reply.error is not None
        assert reply.error[0] == "NotFoundError"
    assert reads.count == 0
    saved.shop.storage.put(path_of(saved.documents[1]), b"damaged")
    reply = (await ask(context, saved.question(3, 1)))[3]
    assert reply.error is not None
    assert reply.error[0] == EnvelopeError.__name__
    assert "is damaged" in reply.error[1]
    assert (await ask(context, saved.question(4, 2)))[4].result == saved.predictions[2]
    # As in another worker than the one that has it in memory.
    context.bundles.cache.clear()
    entry = await saved.shop.registry.find(saved.hash)
    assert entry is not None
    await saved.shop.registry.unregister(saved.hash)
    again, _ = await saved.shop.registry.register(saved.hash, entry.metadata_text, entry.recipe_text)
    assert again.born == 2
    reply = (await ask(context, saved.question(5, 2)))[5]
    assert reply.error is not None
    assert reply.error[0] == "NotFoundError"


async def test_a_question_that_is_late_reads_nothing(saved: Saved, context: WorkerContext, reads: Reads) -> None:
    """After its deadline, no snapshot is read for a question."""
    entry = claimed_entry(messages.encode(saved.question(1, 1)), 0.0)
    reply = (await asyncio.to_thread(answer, context, [entry]))[1]
    assert reply.error is not None
    assert (reply.error[0], reads.count) == ("DeadlineError", 0)


async def test_a_bundle_that_does_not_fit_into_the_cache(saved: Saved, context: WorkerContext, reads: Reads) -> None:
    """Without space in the cache a question is answered, and the live bundles stay in memory."""
    await ask(context, saved.question(1, 3))
    assert context.bundles.cache.count == 1
    context.bundles.cache.bytes_max = int(saved.documents[1]["size_bytes"]) - 1
    for number in (2, 3):
        assert (await ask(context, saved.question(number, 1)))[number].result == saved.predictions[1]
    assert (reads.count, context.bundles.cache.count) == (2, 1)


async def test_a_snapshot_that_kills_its_workers_is_not_loaded_again(
    saved: Saved, context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deaths count for the snapshot and not for the questions; after three, questions about it get an error."""
    died: list[Doing] = []

    def kill(*given: Any) -> Any:
        died.append(context.activity.read())
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(reader, "load", kill)
        for number in range(DEATHS_MAX):
            with pytest.raises(Killed):
                await ask(context, saved.question(number, 1))
            death = sweep.Death(f"worker {number}", Harm.DEATH, died[-1])
            assert (death.doing.step, death.doing.model) == (LOAD, saved.hash)
            assert death.harm_of_requests is None
            sweep.reap(saved.shop.redis, context.queue, death, TTL_S)
    replies = await ask(context, *(saved.question(number, number) for number in (1, 2, 3)))
    assert replies[1].error is not None
    assert replies[1].error[0] == "UnloadableError"
    assert [replies[number].result for number in (2, 3)] == [saved.predictions[number] for number in (2, 3)]


def test_few_bundles_of_snapshots_are_kept(saved: Saved) -> None:
    """Questions about many versions drop the bundles of the oldest of them, and no live one."""
    cache = BundleCache(1000)
    kept, bundle = PastBundles(cache), Bundle.new(saved.model.recipe)
    cache.put("live", "digest", bundle, 10)
    asked = [saved.question(1, 1, version=version) for version in range(KEPT_MAX + 2)]
    for request in asked:
        described = Loaded(saved.hash, 1, request.past.version, 2, request.past.sha256, b"", b"")  # type: ignore[union-attr]
        kept.put(request, PastBundle(described, bundle), 10)
    assert [kept.find(request) is not None for request in asked] == [False] * 2 + [True] * KEPT_MAX
    assert cache.get("live", "digest") is bundle
    # What the cache dropped is not found.
    cache.clear()
    assert not any(map(kept.find, asked))

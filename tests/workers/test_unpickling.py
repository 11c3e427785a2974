"""Only bundles signed with a signing key are unpickled: forged bundles in every place that a process reads."""

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import EnvelopeError, KeepfitError, UnknownKeyError
from keepfit.jobs.messages import WorkerRequest, decode_replies, encode
from keepfit.model import pickling
from keepfit.restore import restorer as restores
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring, digest_of
from keepfit.snapshots import save
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from keepfit_workers.predicting import answer_all
from tests.factories import SHOES, Workshop, claimed_entry, resigned


class Bomb:
    """Touches the file `mark` when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


Forge = Callable[[bytes, bytes, Keyring], bytes]
OTHER = Keyring.from_text("foreign:" + "ab" * 32)


def _same_name(keyring: Keyring) -> Keyring:
    ((name, _),) = keyring.keys
    return Keyring(((name, b"x" * 32),))


# Each function makes a forgery from a valid bundle, a foreign pickle and the signing keys.
FORGERIES: dict[str, Forge] = {
    "pickle": lambda good, foreign, keyring: foreign,
    "pickle for payload": lambda good, foreign, keyring: good[: -len(foreign)] + foreign,
    "pickle behind": lambda good, foreign, keyring: good + foreign,
    "bit": lambda good, foreign, keyring: good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
    "cut": lambda good, foreign, keyring: good[:-1],
    "other key": lambda good, foreign, keyring: resigned(good, keyring, OTHER),
    "other key, same name": lambda good, foreign, keyring: resigned(good, keyring, _same_name(keyring)),
    "other model": lambda good, foreign, keyring: resigned(good, keyring, keyring, hash="0" * 64),
    "other purpose": lambda good, foreign, keyring: resigned(good, keyring, keyring, purpose="upload"),
    "other runtime": lambda good, foreign, keyring: resigned(good, keyring, keyring, runtime={"python": "2.7.18"}),
    "nothing": lambda good, foreign, keyring: b"\0",
}


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record every call of pickle from now on."""
    seen: list[Any] = []
    loads = pickle.loads

    def watched(data: Any, **options: Any) -> Any:
        seen.append(data)
        return loads(data, **options)

    class Watched(pickle.Unpickler):
        def load(self) -> Any:
            seen.append(self)
            return super().load()

    # Its class was defined when the module was imported: patching its parent does not affect it.
    class WatchedFormat2(pickling._Format2Unpickler):
        def load(self) -> Any:
            seen.append(self)
            return super().load()

    monkeypatch.setattr(pickling, "_Format2Unpickler", WatchedFormat2)
    monkeypatch.setattr(pickle, "loads", watched)
    monkeypatch.setattr(pickle, "Unpickler", Watched)
    return seen


def execute(context: WorkerContext, entry: bytes) -> Any:
    """Execute one request; return its reply."""
    unsent = answer_all(context, [claimed_entry(entry)])
    if unsent:
        redis_scripts.run(context.queue, *unsent)
    (batch,) = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    context.queue.delete(redis_keys.replies("g"))
    (reply,) = decode_replies(batch)
    return reply


@pytest.mark.parametrize(
    ("rewritten", "compared"),
    [({}, "version 1; its state has 2"), ({"version": 1}, "rows_seen 3; its state has 6")],
    ids=["digest", "digest and version"],
)
async def test_an_old_bundle_of_the_same_model_is_refused(
    shop: Workshop, context: WorkerContext, rewritten: dict[str, int], compared: str
) -> None:
    """A signed bundle that was live before is not used again, although the state names its digest."""
    model_hash = await shop.learned()
    old = shop.data(model_hash)
    await shop.learn(model_hash)
    model = await shop.model(model_hash)
    shop.redis.set(redis_keys.bundle(model_hash), old)
    shop.redis.hset(redis_keys.state(model_hash), mapping={"digest": digest_of(old), **rewritten})
    entry = encode(
        WorkerRequest(1, "g", model_hash, "predict", model.generation, shape(model.recipe, SHOES, learning=False))
    )
    reply = await asyncio.to_thread(execute, context, entry)
    assert reply.error[0] == "EnvelopeError"
    assert compared in reply.error[1]
    await shop.accept(model_hash)
    assert not await asyncio.to_thread(learn, context, model_hash, "lease")
    assert (await shop.model(model_hash)).inbox == 1


async def test_a_restored_snapshot_keeps_its_generation(shop: Workshop, context: WorkerContext) -> None:
    """A bundle that a restore installed unchanged, in a later generation, is predicted with and learned on."""
    model_hash = await shop.learned()
    await save.save(shop.resources, model_hash)
    for generation in (2, 3):
        shop.lose(model_hash)
        await restores.restore(shop.resources, model_hash)
        model = await shop.model(model_hash)
        assert model.generation == generation
        rows = shape(model.recipe, SHOES, learning=False)
        reply = await asyncio.to_thread(
            execute, context, encode(WorkerRequest(1, "g", model_hash, "predict", generation, rows))
        )
        assert reply.error is None
        assert (reply.version, reply.rows_seen) == (1, 3)
    await shop.accept(model_hash)
    assert not await asyncio.to_thread(learn, context, model_hash, "lease")
    model = await shop.model(model_hash)
    assert (model.inbox, model.rows_seen) == (0, 6)


async def test_a_bundle_of_a_later_generation_is_refused(shop: Workshop, context: WorkerContext) -> None:
    """A state that was put back does not take the bundle of a later generation."""
    model_hash = await shop.learned()
    shop.redis.hset(redis_keys.state(model_hash), "generation", 0)
    claimed = context.consumer.claim(model_hash, "lease", "")
    assert claimed is not None
    with pytest.raises(EnvelopeError, match="generation 1; its state has 0"):
        context.bundles.get(claimed)


async def test_learning_also_compares_the_last_sequence(shop: Workshop, context: WorkerContext) -> None:
    """A bundle whose requests would be skipped is not learned on, although version and rows agree."""
    model_hash = await shop.learned()
    await shop.accept(model_hash)
    shop.redis.hset(redis_keys.state(model_hash), mapping={"learned": 2, "accepted": 3})
    claimed = context.consumer.claim(model_hash, "lease", "")
    assert claimed is not None
    with pytest.raises(EnvelopeError, match="sequence 1; its state has 2"):
        context.bundles.get(claimed)


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_a_forgery_is_never_unpickled(
    shop: Workshop, context: WorkerContext, unpickled: list[Any], tmp_path: Path, forge: Forge
) -> None:
    """With a forged bundle in Redis or storage, learning, predicting and restoring fail; the pickle is never loaded."""
    model_hash = await shop.learned()
    await save.save(shop.resources, model_hash)
    model = await shop.model(model_hash)
    good = shop.data(model_hash)
    entry = encode(
        WorkerRequest(1, "g", model_hash, "predict", model.generation, shape(model.recipe, SHOES, learning=False))
    )
    forged = forge(good, pickle.dumps(Bomb(tmp_path / "ran")), shop.keyring)
    unpickled.clear()

    (blob,) = [path for path in (tmp_path / "snapshots").rglob("*") if path.is_file()]
    blob.write_bytes(forged)
    shop.redis.set(redis_keys.bundle(model_hash), forged)
    reply = await asyncio.to_thread(execute, context, entry)
    assert reply.error
    await shop.accept(model_hash)
    await asyncio.to_thread(learn, context, model_hash, "lease")
    assert (await shop.model(model_hash)).inbox == 1
    shop.lose(model_hash)
    with pytest.raises(KeepfitError):
        await restores.restore(shop.resources, model_hash)
    assert unpickled == []
    assert not (tmp_path / "ran").exists()

    # Control: unpickling the signed bundle of another model is recorded.
    other = await shop.learned(session="other")
    await shop.predict(other)
    assert unpickled


async def test_a_bundle_of_another_key_of_the_same_id_names_the_key(shop: Workshop, context: WorkerContext) -> None:
    """A live bundle that is as it was committed, and signed with another key of our key's id, is not called damaged."""
    model_hash = await shop.learned()
    ((key_id, _),) = shop.keyring.keys
    other = resigned(shop.data(model_hash), shop.keyring, Keyring.from_text(f"{key_id}:{'ab' * 32}"))
    shop.redis.set(redis_keys.bundle(model_hash), other)
    shop.redis.hset(redis_keys.state(model_hash), "digest", digest_of(other))
    claimed = context.consumer.claim(model_hash, "lease", "")
    assert claimed is not None
    with pytest.raises(UnknownKeyError, match=f"another key of the id '{key_id}'"):
        context.bundles.get(claimed)

"""Only bundles signed with a signing key are unpickled: forged bundles in every place that a process reads."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from keepfit.backends import redis_keys, redis_scripts
from keepfit.errors import KeepfitError
from keepfit.jobs.messages import WorkerRequest, decode_replies, encode
from keepfit.model import pickling
from keepfit.restore import restorer as restores
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring
from keepfit.settings import Settings
from keepfit.snapshots import save
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from keepfit_workers.predicting import answer_all
from tests.factories import SHOES, Workshop, resigned, workshop


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
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on servers of this test only."""
    async with workshop(settings) as opened:
        yield opened


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
    unsent = answer_all(context, [entry])
    if unsent:
        redis_scripts.run(context.queue, *unsent)
    (batch,) = context.queue.lrange(redis_keys.replies("g"), 0, -1)
    context.queue.delete(redis_keys.replies("g"))
    (reply,) = decode_replies(batch)
    return reply


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

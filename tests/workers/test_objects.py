"""Uploaded objects in workers: from the recipe to Redis, to a snapshot and back, under changing keys."""

import pytest

from keepfit.backends import redis_keys
from keepfit.recipe import uploads
from keepfit.recipe.recipe import Recipe, parse
from keepfit.restore import restorer as restores
from keepfit.security.envelope import UPLOAD_KEYS
from keepfit.settings import Settings
from keepfit.snapshots import save
from keepfit_workers.context import WorkerContext
from keepfit_workers.learning import learn
from tests.factories import Workshop, dump_local

KEYS, OTHER = "u1:" + "ab" * 32, "u2:" + "cd" * 32
SOURCE = """class Last:
    def partial_fit(self, X, y): self.y = float(y[-1])
    def predict(self, X): return [self.y] * len(X)
"""


@pytest.fixture
def recipe() -> Recipe:
    """Return the recipe of an object whose class cannot be imported."""
    return parse({"object": dump_local(SOURCE, KEYS)}, uploads.upload_keyring(KEYS))


def worker(settings: Settings, upload_keys: str) -> WorkerContext:
    """Return the context of a worker process with these upload keys."""
    return WorkerContext(Settings(**{**settings.model_dump(), "upload_keys": upload_keys}), "test")


async def test_an_object_is_restored_from_its_snapshot(shop: Workshop, settings: Settings, recipe: Recipe) -> None:
    """An object is saved, lost and restored like any bundle; after its first commit no upload key is needed."""
    model_hash = await shop.make(recipe)
    first, second = worker(settings, KEYS), worker(settings, "")
    await shop.accept(model_hash, [[1.0]], [7.0])
    learn(first, model_hash, "lease")
    assert await shop.predict(model_hash, [[1.0], [2.0]]) == [7.0, 7.0]
    await save.save(shop.resources, model_hash)
    shop.lose(model_hash)
    restored = await restores.restore(shop.resources, model_hash)
    assert restored.document is not None
    assert "cloudpickle" in restored.document["runtime"]
    await shop.accept(model_hash, [[1.0]], [9.0])
    learn(second, model_hash, "lease")
    assert await shop.predict(model_hash, [[1.0]]) == [9.0]
    for context in (first, second):
        context.close()


async def test_rows_stay_pending_until_a_worker_has_the_upload_key(
    shop: Workshop, settings: Settings, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers without the object's upload key learn no rows and lose none; a worker with the key learns all."""
    model_hash = await shop.make(recipe)
    keyless, keyed = (worker(settings, upload_keys) for upload_keys in ("", f"{OTHER},{KEYS}"))
    foreign = worker(settings, OTHER)
    for value in (1.0, 2.0, 3.0):
        await shop.accept(model_hash, [[value]], [value])
        for context in (keyless, foreign):
            assert not learn(context, model_hash, "lease")
    assert (await shop.model(model_hash)).inbox == 3
    assert shop.redis.exists(redis_keys.lock(model_hash)) == 0
    output = capsys.readouterr().out
    assert output.count("bundle_unreadable") == 2
    assert UPLOAD_KEYS in output
    assert not learn(keyed, model_hash, "lease")
    assert ((await shop.model(model_hash)).inbox, await shop.predict(model_hash, [[0.0]])) == (0, [3.0])
    for context in (keyless, foreign, keyed):
        context.close()

"""Bundles of other versions under real workers: refused by name, nothing lost meanwhile, learned anew where wanted."""

import json
from typing import Any

import pytest

from keepfit.backends import redis_clients, redis_keys
from keepfit.security import envelope
from keepfit.security.envelope import BUNDLE, Keyring, digest_of
from tests.conftest import Stack
from tests.factories import resigned
from tests.gateway.api_client import REGRESSOR, Api, eventually

X, Y = [[1.0], [2.0]], [1.0, 2.0]


class SnapshotReader:
    """The stack's own Redis and signing key: what another deployment would have written."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        settings = stack.settings()
        self._redis = redis_clients.store_sync(settings)
        self._ring = Keyring.from_text(settings.signing_keys.get_secret_value())

    def written_with(self, model_hash: str, **versions: str) -> None:
        """Put the live bundle back as if processes of these `versions` had committed it."""
        data = self._redis.get(redis_keys.bundle(model_hash))
        assert isinstance(data, bytes)
        runtime = {**envelope.runtime(), **{name.replace("_", "-"): version for name, version in versions.items()}}
        data = resigned(data, self._ring, self._ring, runtime=runtime)
        with self._redis.pipeline() as together:
            together.set(redis_keys.bundle(model_hash), data)
            together.hset(redis_keys.state(model_hash), "digest", digest_of(data))
            together.execute()

    def runtime(self, model_hash: str) -> dict[str, str]:
        """Versions that the live bundle names."""
        data = self._redis.get(redis_keys.bundle(model_hash))
        assert isinstance(data, bytes)
        return self._ring.open(data, BUNDLE)[0].runtime

    def logged(self, event: str, model_hash: str) -> list[dict[str, Any]]:
        """Lines of the workers' log about a model."""
        lines = [json.loads(line) for line in self._stack.log("workers").splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event and line.get("hash") == model_hash]

    def have_mail_looked_for(self) -> None:
        """Have the next sweep look for mail at once, and not a few seconds after the last look."""
        with redis_clients.queue_sync(self._stack.settings()) as queue:
            queue.delete(redis_keys.SWEEP)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()


@pytest.fixture
def shelf(stack: Stack) -> Any:
    """Return what the stack's models are stored in."""
    opened = SnapshotReader(stack)
    yield opened
    opened.close()


async def test_a_bundle_of_another_minor_version_waits_for_who_can_read_it(
    api: Api, stack: Stack, shelf: SnapshotReader, metadata: dict[str, Any]
) -> None:
    """Predicting names both versions with a 503; accepted rows wait, the log says it once a worker, and none spins."""
    path = await api.make(metadata, REGRESSOR)
    model_hash = path.rpartition("/")[2]
    await api.learn(path, X, Y)
    shelf.written_with(model_hash, scikit_learn="1.2.2")
    here = envelope.runtime()["scikit-learn"]
    for i in range(4):
        problem = (await api.post(f"{path}/predict", {"X": [[float(i)]]})).problem(503)
        assert problem["type"] == "urn:keepfit:problem:runtime-mismatch"
        assert f"was written with scikit-learn 1.2.2, this process has {here}" in problem["detail"]
        (await api.post(f"{path}/partial_fit", {"X": X, "y": Y})).of(202)
    waiting = await api.model(path)
    assert (waiting["version"], waiting["inbox"]) == (1, 4)
    lines = shelf.logged("bundle_unreadable", model_hash)
    assert 1 <= len(lines) <= len(stack.workers())
    assert "scikit-learn 1.2.2" in lines[0]["reason"]
    assert shelf.logged("learning_stopped", model_hash) == []

    # As if workers of the right versions were back; nothing but the sweep tells ours.
    shelf.written_with(model_hash)
    shelf.have_mail_looked_for()

    async def is_learned() -> bool:
        return bool((await api.model(path))["inbox"] == 0)

    await eventually(is_learned, "learning what had waited")
    assert (await api.model(path))["rows_seen"] == 10
    assert len((await api.predict(path, X))["predictions"]) == 2


async def test_a_bundle_of_another_patch_release_is_loaded_and_said(
    api: Api, stack: Stack, shelf: SnapshotReader, metadata: dict[str, Any]
) -> None:
    """A patch release's bundle goes on, the log says so once a worker, and the next commit is of our versions."""
    path = await api.make(metadata, REGRESSOR)
    model_hash = path.rpartition("/")[2]
    await api.learn(path, X, Y)
    before = (await api.predict(path, [[1.5]]))["predictions"]
    other = ".".join([*envelope.runtime()["numpy"].split(".")[:2], "99"])
    for _ in range(2):
        shelf.written_with(model_hash, numpy=other)
        assert (await api.predict(path, [[1.5], [2.5]]))["predictions"][:1] == before
    lines = shelf.logged("bundle_of_other_release", model_hash)
    assert 1 <= len(lines) <= len(stack.workers())
    assert lines[0]["versions"] == {"numpy": f"{other}, here {envelope.runtime()['numpy']}"}
    assert (await api.learn(path, X, Y))["version"] == 2
    assert shelf.runtime(model_hash) == envelope.runtime()


async def test_a_model_is_learned_anew_from_its_recipe(
    api: Api, shelf: SnapshotReader, metadata: dict[str, Any]
) -> None:
    """Deleted and made again, a model that no worker can read begins at version 0 and learns at once."""
    path = await api.make(metadata, REGRESSOR)
    model_hash = path.rpartition("/")[2]
    await api.learn(path, X, Y)
    shelf.written_with(model_hash, python="2.7.18")
    (await api.post(f"{path}/predict", {"X": X})).problem(503)
    recipe = (await api.model(path))["recipe"]
    assert (await api.call("DELETE", path)).status == 204
    assert await api.make(metadata, recipe) == path
    learned = await api.learn(path, X, Y)
    assert (learned["version"], learned["rows_seen"]) == (1, 2)
    assert len((await api.predict(path, X))["predictions"]) == 2

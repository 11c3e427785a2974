"""Bundles written with other library versions, with real workers: reported, and nothing is lost."""

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


class Bundles:
    """Access to the bundles in the stack's Redis, with its signing key."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        settings = stack.settings()
        self._redis = redis_clients.store_sync(settings)
        self._ring = Keyring.from_text(settings.signing_keys.get_secret_value())

    def rewrite(self, model_hash: str, **versions: str) -> None:
        """Replace the live bundle as if processes with these `versions` had committed it."""
        data = self._redis.get(redis_keys.bundle(model_hash))
        assert isinstance(data, bytes)
        runtime = {**envelope.runtime(), **{name.replace("_", "-"): version for name, version in versions.items()}}
        data = resigned(data, self._ring, self._ring, runtime=runtime)
        with self._redis.pipeline() as together:
            together.set(redis_keys.bundle(model_hash), data)
            together.hset(redis_keys.state(model_hash), "digest", digest_of(data))
            together.execute()

    def runtime(self, model_hash: str) -> dict[str, str]:
        """Return the versions in the header of the live bundle."""
        data = self._redis.get(redis_keys.bundle(model_hash))
        assert isinstance(data, bytes)
        return self._ring.open(data, BUNDLE)[0].runtime

    def logged(self, event: str, model_hash: str) -> list[dict[str, Any]]:
        """Return the lines of the workers' log about a model."""
        lines = [json.loads(line) for line in self._stack.log("workers").splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event and line.get("hash") == model_hash]

    def check_inboxes_at_once(self) -> None:
        """Make the next sweep check inboxes, although the last check was less than a few seconds ago."""
        with redis_clients.queue_sync(self._stack.settings()) as queue:
            queue.delete(redis_keys.SWEEP)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()


@pytest.fixture
def bundles(stack: Stack) -> Any:
    """Return the bundles of the stack."""
    opened = Bundles(stack)
    yield opened
    opened.close()


async def test_a_bundle_of_another_minor_version_is_not_read(
    api: Api, stack: Stack, bundles: Bundles, metadata: dict[str, Any]
) -> None:
    """A prediction answers 503 with both versions; rows stay pending, each worker logs it once and does not spin."""
    path = await api.make(metadata, REGRESSOR)
    model_hash = path.rpartition("/")[2]
    await api.learn(path, X, Y)
    bundles.rewrite(model_hash, scikit_learn="1.2.2")
    here = envelope.runtime()["scikit-learn"]
    for i in range(4):
        problem = (await api.post(f"{path}/predict", {"X": [[float(i)]]})).problem(503)
        assert problem["type"] == "urn:keepfit:problem:runtime-mismatch"
        assert f"was written with scikit-learn 1.2.2, this process has {here}" in problem["detail"]
        (await api.post(f"{path}/partial_fit", {"X": X, "y": Y})).of(202)
    model = await api.model(path)
    assert (model["version"], model["inbox"]) == (1, 4)
    lines = bundles.logged("bundle_unreadable", model_hash)
    assert 1 <= len(lines) <= len(stack.workers())
    assert "scikit-learn 1.2.2" in lines[0]["reason"]
    assert bundles.logged("learning_stopped", model_hash) == []

    # As if workers with the right versions were back; only the sweep notifies ours.
    bundles.rewrite(model_hash)
    bundles.check_inboxes_at_once()

    async def is_learned() -> bool:
        return bool((await api.model(path))["inbox"] == 0)

    await eventually(is_learned, "learning the pending requests")
    assert (await api.model(path))["rows_seen"] == 10
    assert len((await api.predict(path, X))["predictions"]) == 2


async def test_a_bundle_of_another_patch_release_is_loaded_and_logged(
    api: Api, stack: Stack, bundles: Bundles, metadata: dict[str, Any]
) -> None:
    """A bundle of another patch release is used, each worker logs it once, and the next commit has our versions."""
    path = await api.make(metadata, REGRESSOR)
    model_hash = path.rpartition("/")[2]
    await api.learn(path, X, Y)
    before = (await api.predict(path, [[1.5]]))["predictions"]
    other = ".".join([*envelope.runtime()["numpy"].split(".")[:2], "99"])
    for _ in range(2):
        bundles.rewrite(model_hash, numpy=other)
        # A gateway that has the scorer of this version would not ask a worker.
        answer = await api.post(f"{path}/predict", {"X": [[1.5], [2.5]]}, {"Cache-Control": "no-cache"})
        assert answer.of(200)["predictions"][:1] == before
    lines = bundles.logged("bundle_of_other_release", model_hash)
    assert 1 <= len(lines) <= len(stack.workers())
    assert lines[0]["versions"] == {"numpy": f"{other}, here {envelope.runtime()['numpy']}"}
    assert (await api.learn(path, X, Y))["version"] == 2
    assert bundles.runtime(model_hash) == envelope.runtime()


async def test_a_recreated_model_begins_from_its_recipe(api: Api, bundles: Bundles, metadata: dict[str, Any]) -> None:
    """A model that no worker can read begins at version 0 after it is deleted and created again, and learns."""
    path = await api.make(metadata, REGRESSOR)
    model_hash = path.rpartition("/")[2]
    await api.learn(path, X, Y)
    bundles.rewrite(model_hash, python="2.7.18")
    (await api.post(f"{path}/predict", {"X": X})).problem(503)
    recipe = (await api.model(path))["recipe"]
    assert (await api.call("DELETE", path)).status == 204
    assert await api.make(metadata, recipe) == path
    learned = await api.learn(path, X, Y)
    assert (learned["version"], learned["rows_seen"]) == (1, 2)
    assert len((await api.predict(path, X))["predictions"]) == 2
